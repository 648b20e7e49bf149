"""Soups of real runs: what they hold, how they are read again, and what is refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import tlx
from tests import levels
from tests.models.reference import images
from tests.training.test_phases import evaluated_values
from tlx import main, run
from tlx.errors import InputError, InputFileNotFoundError
from tlx.models.adapters import adapted_layers
from tlx.models.leaves import values
from tlx.setup import Setup
from tlx.training.checkpoint import Checkpoints, Position
from tlx.training.state import TrainState
from tlx.workdir import Workdir

pytestmark = pytest.mark.wide

VALIDATED = {"data.val_fraction": 0.25, "train.steps": 3, "optimizer.lr": 0.02}
STATISTICS = (".mean", ".var")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def paths(folder):
    """Returns the folders of finished runs; each is trained once, when it is first asked for."""
    fields = levels.fields(folder) | VALIDATED
    head = fields | {"tune.method": "head", "train.steps": 20, "optimizer.lr": 0.1}
    averaged = {"optimizer.average": "ema:0.5"}  # of which no checkpoint of a soup has anything
    lora = fields | {"tune.method": "lora", "tune.rank": 2, "tune.targets": "layer3.*conv1"}
    configs = {
        "full-a": fields | {"checkpoint.every": "1", "checkpoint.keep_last": 3},
        "full-b": fields | {"optimizer.lr": 0.05, "data.augment": "flip"},
        "head-a": head | averaged,
        "head-b": head | {"optimizer.lr": 0.3},
        "lora-a": lora | {"optimizer.lr": 0.1},
        "dora-b": lora | {"optimizer.lr": 0.2, "tune.method": "dora"},
    }

    def trained(*names):
        for name in names:
            tlx.finetune(configs[name], folder / name)  # a complete run stays as it is
        return [str(folder / name) for name in names]

    return trained


def means(*models):
    found = [values(model) for model in models]
    return {
        path: np.mean([np.asarray(one[path], np.float64) for one in found], 0).astype(np.float32)
        for path in found[0]
    }


def test_a_uniform_soup_is_the_mean_of_every_leaf(tmp_path, paths):
    runs = paths("head-a", "head-b")
    out = tmp_path / "soup"
    summary = tlx.soup(runs, out, kind="uniform")
    soup = tlx.load(out)
    for path, value in means(*map(tlx.load, runs)).items():
        np.testing.assert_array_equal(values(soup)[path], value, err_msg=path)
    assert [one["run"] for one in summary["ingredients"]] == runs
    for one in summary["ingredients"]:
        stored = json.loads((Path(one["run"]) / "summary.json").read_text())
        assert one["val/accuracy"] == stored["val/accuracy"] and one["in_soup"]
        assert one["step"] == stored["best_step"]
    assert summary == json.loads((out / "summary.json").read_text())
    assert summary["params/averaged"] == 195
    # A checkpoint of the head alone, beside the frozen weights.
    arrays = sum(f.stat().st_size for f in (out / "checkpoints").rglob("d/*"))
    assert arrays < 20_000 and (out / "base" / "frozen.safetensors").is_file()
    assert "What it is made of" in (out / "report.md").read_text()
    assert {p.name for p in tmp_path.iterdir()} == {"soup"}


def test_a_soup_is_evaluated_loaded_and_exported(tmp_path, paths, capsys):
    out = tmp_path / "soup"
    summary = tlx.soup(paths("full-a", "full-b"), out, kind="uniform")
    config = Workdir(out).read_config()
    assert tlx.evaluate(config, out)["test/loss"] == summary["test/loss"]
    exported = tlx.create_model("resnet20_cifar", weights=run.export(out)[0])
    soup = values(tlx.load(out))
    for path, value in values(exported).items():
        np.testing.assert_array_equal(value, soup[path], err_msg=path)
    capsys.readouterr()
    assert tlx.soup(paths("full-a", "full-b"), out, kind="uniform")["kind"] == "uniform"
    assert f"{out}: this soup is complete" in capsys.readouterr().out


class Scripted:
    """An evaluation whose accuracy on the validation split is given."""

    def __init__(self, found, split, numbers):
        self.found = found
        self.given = {"accuracy": next(numbers)} if len(split) == 6 else {}

    def __getattr__(self, name):
        return getattr(self.found, name)

    def summary(self):
        return self.found.summary() | self.given


def test_statistics_that_moved_are_estimated_and_those_of_one_checkpoint_kept(
    tmp_path, paths, monkeypatch
):
    runs, evaluate = paths("full-a", "full-b"), Setup.evaluate
    seen = evaluated_values(monkeypatch)
    tlx.soup(runs, tmp_path / "soup", kind="uniform")
    soup, mean = values(tlx.load(tmp_path / "soup")), means(*map(tlx.load, runs))
    for path, value in soup.items():
        np.testing.assert_array_equal(value, seen[-1][path], err_msg=path)  # the test split's
        np.testing.assert_array_equal(value, seen[-2][path], err_msg=path)  # validation's
        same = np.array_equal(value, mean[path])
        assert same is not path.endswith(STATISTICS), path

    # The first, the second, the first alone, and both.
    scripted = iter([0.9, 0.8, 0.9, 0.7])
    monkeypatch.setattr(
        Setup,
        "evaluate",
        lambda self, split, found: Scripted(evaluate(self, split, found), split, scripted),
    )
    summary = tlx.soup(runs, tmp_path / "greedy")
    assert [one["in_soup"] for one in summary["ingredients"]] == [True, False]
    alone = values(tlx.load(tmp_path / "greedy"))
    for path, value in values(tlx.load(runs[0])).items():
        np.testing.assert_array_equal(alone[path], value, err_msg=path)


def test_a_greedy_soup_leaves_a_spoilt_run_out(tmp_path, paths):
    spoilt = tmp_path / "spoilt"
    shutil.copytree(*paths("head-b"), spoilt)
    with Checkpoints(spoilt, keep_last=9) as checkpoints:
        step = max(checkpoints.steps())
        meta = {k: v for k, v in checkpoints._meta(step).items() if k != "checksums"}
        position = Position(**meta | {"step": step + 1, "best_step": step + 1})
        # A head whose classes are turned round, and which is sure of them.
        head = {path: v for path, v in values(tlx.load(spoilt)).items() if path.startswith("head")}
        wrong = {path: 100 * np.roll(value, 1, -1) for path, value in head.items()}
        checkpoints.save(TrainState(jax.device_put(wrong), {}, None), position)
    runs = [str(spoilt), *paths("head-a", "head-b")]
    summary = tlx.soup(runs, tmp_path / "greedy")
    found = {one["run"]: one for one in summary["ingredients"]}
    assert found[runs[0]]["step"] == step + 1 and not found[runs[0]]["in_soup"]
    assert summary["val/accuracy"] >= max(one["val/accuracy"] for one in found.values()) > 0.5
    uniform = tlx.soup(runs, tmp_path / "uniform", kind="uniform")
    assert all(one["in_soup"] for one in uniform["ingredients"])
    assert uniform["val/accuracy"] < summary["val/accuracy"]


def test_all_checkpoints_of_one_run_make_a_soup(tmp_path, paths):
    summary = tlx.soup(paths("full-a")[0], tmp_path / "soup", checkpoints="all")
    assert [one["step"] for one in summary["ingredients"]] == [1, 2, 3]
    with pytest.raises(InputError, match="has one checkpoint, and a soup needs two"):
        tlx.soup(paths("full-a"), tmp_path / "other")


@pytest.mark.slow
def test_adapters_are_merged_before_they_are_averaged(tmp_path, paths):
    runs = paths("lora-a", "dora-b")
    summary = tlx.soup(runs, tmp_path / "soup", kind="uniform")
    soup, x = tlx.load(tmp_path / "soup"), images(4, 8, 8)
    assert not any(adapted_layers(soup))
    exports = [tlx.create_model("resnet20_cifar", weights=run.export(path)[0]) for path in runs]
    for path, value in means(*exports).items():
        np.testing.assert_array_equal(values(soup)[path], value, err_msg=path)
    assert not np.allclose(soup(x), tlx.load(runs[0])(x), rtol=1e-3)
    assert (
        tlx.evaluate(Workdir(tmp_path / "soup").read_config(), tmp_path / "soup")["test/loss"]
        == summary["test/loss"]
    )


def test_an_interrupted_soup_leaves_nothing(tmp_path, paths, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("tlx.soups.make.make_report", interrupted)
        tlx.soup(paths("head-a", "head-b"), tmp_path / "soup")
    assert not list(tmp_path.iterdir())
    tlx.soup(paths("head-a", "head-b"), tmp_path / "soup")


@pytest.mark.slow
def test_runs_of_other_networks_are_refused_with_what_differs(tmp_path, paths):
    fields = levels.fields(tmp_path) | VALIDATED
    others = {
        "frozen weights": fields | {"tune.method": "head"},
        "validation examples": fields | {"seed": 1},
        "weights that training began with": fields | {"model.name": "resnet20_cifar"},
        "preprocessing .*mean": fields | {"data.mean": "0.5,0.5,0.5"},
        r"architecture \(resnet20_cifar and resnet32_cifar\)": fields
        | {"model.name": "resnet32_cifar"},
    }
    for number, (says, config) in enumerate(others.items()):
        other = tmp_path / f"other-{number}"
        tlx.finetune(config | {"train.steps": 1}, other)
        with pytest.raises(InputError, match=rf"full-a and .*other-{number} cannot be .*{says}"):
            tlx.soup([*paths("full-a"), other], tmp_path / "soup")
    assert not (tmp_path / "soup").exists()


def test_what_is_no_finished_run_is_refused(tmp_path, paths):
    runs = paths("head-a", "head-b")
    out = tmp_path / "soup"
    with pytest.raises(InputError, match="no runs to make a soup of"):
        tlx.soup([], out)
    with pytest.raises(InputFileNotFoundError, match="absent holds no run"):
        tlx.soup([*runs, "absent"], out)
    with pytest.raises(InputError, match=r"no run matches .*sweep-"):
        tlx.soup(str(tmp_path / "sweep-*"), out)
    with pytest.raises(InputError, match=r"soup.kind is 'greddy', .*did you mean 'greedy'"):
        tlx.soup(runs, out, kind="greddy")
    with pytest.raises(InputError, match=r"optimizer.lr: 0.1 -> 0.5 would make them others"):
        tlx.soup(runs, out, overrides={"optimizer.lr": 0.5})
    with pytest.raises(InputError, match="head-b is one of the runs"):
        tlx.soup(runs, runs[1])
    with pytest.raises(InputError, match=r"holds another run .*soup.runs"):
        tlx.soup(runs, *paths("full-a"))
    shutil.copytree(runs[1], tmp_path / "stopped")
    (tmp_path / "stopped" / "summary.json").unlink()
    with pytest.raises(InputError, match="stopped is not finished"):
        tlx.soup([*runs, tmp_path / "stopped"], out)
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is there and is no soup"):
        tlx.soup(runs, out)
    made = tmp_path / "made"
    tlx.soup(runs, made)
    with pytest.raises(InputError, match="is a soup: name the runs"):
        tlx.soup([*runs, made], tmp_path / "second")
    with pytest.raises(InputError, match=r"soup.kind: 'greedy' -> 'uniform'"):
        tlx.soup(runs, made, kind="uniform")
    with pytest.raises(InputError, match="a soup is not trained"):
        tlx.finetune(Workdir(made).read_config(), made)


def test_without_validation_only_a_uniform_soup_is_made(tmp_path):
    fields = levels.fields(tmp_path) | {"train.steps": 1, "tune.method": "head"}
    for name, rate in (("a", 0.01), ("b", 0.1)):
        tlx.finetune(fields | {"optimizer.lr": rate}, tmp_path / name)
    pattern = str(tmp_path / "*")
    runs = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(InputError, match="greedy chooses by validation, and the runs had none"):
        tlx.soup(pattern, tmp_path / "soup")
    for _ in range(2):  # a pattern that means the soup itself too
        summary = tlx.soup(pattern, tmp_path / "soup", kind="uniform")
        assert [one["val/accuracy"] for one in summary["ingredients"]] == [None, None]
    assert "test/accuracy" in summary
    levels.write_data(tmp_path / "levels.npz", seed=1)
    with pytest.raises(InputError, match="a was trained on other data than there is now"):
        tlx.soup(runs, tmp_path / "other", kind="uniform")


def test_pictures_held_out_from_one_run_may_not_have_trained_another(tmp_path):
    fields = levels.fields(tmp_path) | {"train.steps": 1, "tune.method": "head"}
    with np.load(fields["data.root"]) as data:
        arrays = {name: data[name] for name in data if not name.startswith("test")}
    np.savez(fields["data.root"], **arrays)  # the test split is drawn from training, with the seed
    for seed in (0, 1):
        tlx.finetune(fields | {"seed": seed}, tmp_path / f"seed-{seed}")
    with pytest.raises(InputError, match=r"seed-0 and .*seed-1 cannot be averaged.* test examples"):
        tlx.soup(str(tmp_path / "seed-*"), tmp_path / "soup", kind="uniform")


def test_data_that_was_moved_is_found(tmp_path, paths, folder):
    moved = tmp_path / "moved.npz"
    shutil.copy(folder / "levels.npz", moved)
    tlx.soup(paths("head-a", "head-b"), tmp_path / "soup", overrides={"data.root": str(moved)})
    assert Workdir(tmp_path / "soup").read_config().data.root == str(moved)


@pytest.mark.slow
def test_the_command_line_makes_a_soup(tmp_path, paths, capsys):
    runs = ",".join(paths("head-a", "head-b"))
    command = [sys.executable, "-m", "tlx.main", "--mode=soup", f"--config.soup.runs={runs}"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, timeout=400,
        env={**os.environ, "PYTHONPATH": str(Path(tlx.__file__).parent.parent)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (out,) = (tmp_path / "runs").iterdir()
    assert out.name.startswith("soup-") and f"report: runs/{out.name}/report.md" in done.stdout
    assert "--mode=soup" in (out / "report.md").read_text()
    tlx.load(out)
    assert main.main(["--mode=soup", f"--workdir={out}"]) == 0
    assert main.main(["--mode=evaluate", f"--workdir={out}"]) == 0
    assert main.main(["--mode=export", f"--workdir={out}"]) == 0
    output = capsys.readouterr().out
    assert "this soup is complete" in output and "written: " in output
    for arguments, says in {
        ("--mode=soup",): "no runs to make a soup of",
        ("--mode=soup", "--config=configs/digits.py"): "leave --config out",
        ("--mode=soup", f"--workdir={paths('head-a')[0]}"): "is a run: a soup needs a folder",
        ("--mode=train", f"--workdir={out}"): "a soup is not trained",
    }.items():
        assert main.main(arguments) == 2
        assert says in capsys.readouterr().err


def test_runs_that_decided_for_themselves_are_averaged_as_what_they_became(tmp_path, folder):
    fields = levels.fields(folder) | VALIDATED | {"tune.method": "auto", "train.batch_size": 8}
    runs = [str(tmp_path / f"rate-{rate}") for rate in (0.01, 0.02)]
    for path, rate in zip(runs, (0.01, 0.02), strict=True):
        tlx.finetune(fields | {"optimizer.lr": rate}, path)
    tlx.soup(runs, tmp_path / "soup", kind="uniform")
    soup = Workdir(tmp_path / "soup").read_config()
    assert soup.tune == Workdir(Path(runs[0])).read_decided().tune and soup.tune.method != "auto"
    mean, loaded = means(*map(tlx.load, runs)), values(tlx.load(tmp_path / "soup"))
    trained = [path for path in mean if not path.endswith(STATISTICS)]
    assert all(np.array_equal(mean[path], loaded[path]) for path in trained)


def trained_twice(tmp_path, fields):
    """Trains two runs whose rates differ; returns their folders."""
    runs = [str(tmp_path / name) for name in ("one", "two")]
    for path, rate in zip(runs, (0.02, 0.05), strict=True):
        tlx.finetune(fields | {"optimizer.lr": rate * fields.get("optimizer.lr", 1.0)}, path)
    return runs


def test_statistics_that_a_later_phase_would_have_moved_stay_as_they_are(tmp_path):
    fields = levels.fields(tmp_path) | {"train.steps": 3, "tune.method": "gradual"}
    runs = trained_twice(tmp_path, fields | {"tune.unfreeze_every": "2"})  # layer3 is the last
    tlx.soup(runs, tmp_path / "soup", kind="uniform")
    soup, mean = values(tlx.load(tmp_path / "soup")), means(*map(tlx.load, runs))
    source = values(tlx.create_model("resnet20_cifar.glyphs"))
    for path in mean:
        if path.startswith(("layer3", "head")):
            assert np.array_equal(soup[path], mean[path]) is not path.endswith(STATISTICS), path
        else:
            np.testing.assert_array_equal(soup[path], source[path], err_msg=path)
    with Checkpoints(tmp_path / "soup", read_only=True) as checkpoints:
        assert checkpoints._meta(3)["phase"] == 1
    arrays = sum(f.stat().st_size for f in (tmp_path / "soup" / "checkpoints").rglob("d/*"))
    assert arrays < 900_000  # of 203,715 values, not of all 270,643


def test_a_soup_of_heads_before_the_rest_was_trained_has_the_sources_statistics(tmp_path):
    # Validation is never better than after the first step, and patience ends the runs in the first phase.
    fields = levels.fields(tmp_path) | {"data.val_fraction": 0.25, "train.steps": 6}
    fields |= {"tune.method": "lpft", "train.patience": 1, "eval.every": "1"}
    runs = trained_twice(tmp_path, fields | {"optimizer.lr": 1e-6})
    tlx.soup(runs, tmp_path / "soup", kind="uniform")
    soup = values(tlx.load(tmp_path / "soup"))
    for path, value in values(tlx.create_model("resnet20_cifar.glyphs")).items():
        if not path.startswith("head"):
            np.testing.assert_array_equal(soup[path], value, err_msg=path)
    config = Workdir(tmp_path / "soup").read_config()
    found = json.loads((tmp_path / "soup" / "summary.json").read_text())
    assert tlx.evaluate(config, tmp_path / "soup")["test/loss"] == found["test/loss"]
    assert found["params/averaged"] == 195


def test_runs_of_the_same_pictures_in_other_places_are_averaged(tmp_path):
    fields = levels.fields(tmp_path) | {"train.steps": 1, "tune.method": "head"}
    with np.load(fields["data.root"]) as data:
        arrays = dict(data)
    arrays |= {name: arrays[name][:16] for name in ("train_images", "train_labels")}
    np.savez(tmp_path / "fewer.npz", **arrays)  # others to train on, the same to test
    tlx.finetune(fields, tmp_path / "one")
    tlx.finetune(fields | {"data.root": str(tmp_path / "fewer.npz")}, tmp_path / "two")
    runs = [tmp_path / "one", tmp_path / "two"]
    assert len(tlx.soup(runs, tmp_path / "soup", kind="uniform")["ingredients"]) == 2
    where = {"data.root": str(tmp_path / "fewer.npz")}
    with pytest.raises(InputError, match="one was trained on other data than there is now"):
        tlx.soup(runs, tmp_path / "other", kind="uniform", overrides=where)


def test_heads_that_were_drawn_apart_are_named(tmp_path, capsys):
    fields = levels.fields(tmp_path) | {"train.steps": 1, "tune.method": "head"}
    tlx.finetune(fields, tmp_path / "one")
    tlx.finetune(fields | {"seed": 1}, tmp_path / "two")
    tlx.finetune(fields | {"optimizer.lr": 0.5}, tmp_path / "three")
    says = "did not begin with the same head.kernel"
    tlx.soup([tmp_path / "one", tmp_path / "three"], tmp_path / "same", kind="uniform")
    assert says not in capsys.readouterr().out
    tlx.soup([tmp_path / "one", tmp_path / "two"], tmp_path / "apart", kind="uniform")
    assert f"{tmp_path / 'one'} and {tmp_path / 'two'} {says}" in capsys.readouterr().out


def test_a_damaged_ingredient_is_named(tmp_path, paths):
    run = tmp_path / "damaged"
    shutil.copytree(*paths("full-a"), run)
    shutil.rmtree(run / "checkpoints" / "2" / "values")
    with pytest.raises(InputError) as caught:
        tlx.soup(run, tmp_path / "soup", checkpoints="all")
    assert f"{run}/checkpoints/2 is damaged" in str(caught.value)
    assert "there are steps: 1, 3" in str(caught.value)
