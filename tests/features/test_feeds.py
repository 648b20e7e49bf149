"""Runs with the outputs of frozen stages kept are the runs without."""

import json
import signal

import numpy as np
import pytest

import tlx
from tests import levels
from tests.training.test_phases import stop_at
from tlx.errors import InputError
from tlx.models.leaves import values
from tlx.training.loop import Interrupted

STEPS = 50


@pytest.fixture
def config(tmp_path):
    source = tlx.create_model("resnet20_cifar", num_classes=5, seed=3)
    tlx.save_weights(source, tmp_path / "net.safetensors")
    return levels.fields(tmp_path) | {
        "model.name": "resnet20_cifar",
        "model.weights": str(tmp_path / "net.safetensors"),
        "data.val_fraction": 0.25,
        "eval.every": "25",
        "checkpoint.every": "0",
        "train.steps": STEPS,
        "train.log_every": 1,
        "optimizer.lr": 1e-3,
        "cache.dir": str(tmp_path / "cache"),
        "cache.use": "on",
    }


def curve(workdir, name="train/loss"):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return np.array([record[name] for record in map(json.loads, lines) if name in record])


def assert_same_run(kept, computed):
    losses, expected = curve(kept), curve(computed)
    assert len(losses) == len(expected) == STEPS
    assert abs(losses[0] / expected[0] - 1) <= 1e-6
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    np.testing.assert_allclose(curve(kept, "val/loss"), curve(computed, "val/loss"), rtol=1e-5)


def boundaries(cache):
    """Returns the stages behind which there are entries, once for each."""
    return sorted({json.loads(p.read_text())["of"]["stages"] for p in cache.glob("*.json")})


@pytest.mark.parametrize(
    ("method", "behind"),
    [
        ({"tune.method": "head"}, [5]),
        ({"tune.method": "lora", "tune.targets": ("layer3",)}, [3]),
        ({"tune.method": "partial", "tune.freeze_stages": 2, "tune.batchnorm": "frozen"}, [2]),
        (
            {
                "tune.method": "gradual",
                "tune.unfreeze_every": "30%",
                "tune.freeze_stages": 2,
                "tune.regularizers": ("delta:0.1", "bss:0.01"),
            },
            [2, 3],
        ),
    ],
    ids=["head", "lora", "frozen norms", "gradual, regularized"],
)
def test_the_run_is_the_one_without(tmp_path, config, method, behind):
    kept = tlx.finetune(config | method, tmp_path / "kept")
    off = tlx.finetune(config | method | {"cache.use": "off"}, tmp_path / "off")
    assert_same_run(tmp_path / "kept", tmp_path / "off")
    assert kept["test/loss"] == pytest.approx(off["test/loss"], rel=1e-5)
    assert boundaries(tmp_path / "cache") == behind


def test_a_later_run_finds_what_was_kept_and_a_damaged_entry_is_computed_anew(
    tmp_path, config, capsys
):
    fields = config | {"tune.method": "head"}
    tlx.finetune(fields, tmp_path / "first")
    assert capsys.readouterr().out.count("computed in") == 2
    tlx.finetune(fields | {"optimizer.lr": 2e-3}, tmp_path / "second")
    assert capsys.readouterr().out.count("found in") == 2
    for path in (tmp_path / "cache").glob("*.npy"):
        data = bytearray(path.read_bytes())
        data[-3] ^= 1
        path.write_bytes(data)
    tlx.finetune(fields, tmp_path / "third")
    assert capsys.readouterr().out.count("computed in") == 2
    np.testing.assert_array_equal(curve(tmp_path / "first"), curve(tmp_path / "third"))


def test_other_weights_and_other_pictures_are_other_entries(tmp_path, config, capsys):
    fields = config | {"tune.method": "head", "train.steps": 2, "eval.every": "0"}
    tlx.finetune(fields, tmp_path / "first")
    other = tlx.create_model("resnet20_cifar", num_classes=5, seed=4)
    tlx.save_weights(other, tmp_path / "other.safetensors")
    tlx.finetune(
        fields | {"model.weights": str(tmp_path / "other.safetensors")}, tmp_path / "second"
    )
    tlx.finetune(fields | {"data.mean": (0.1, 0.1, 0.1)}, tmp_path / "third")
    tlx.finetune(fields | {"seed": 1}, tmp_path / "fourth")  # another validation split
    assert capsys.readouterr().out.count("computed in") == 8


def test_stopped_anywhere_it_ends_with_the_same_bits(tmp_path, config, monkeypatch):
    fields = config | {
        "tune.method": "gradual",
        "tune.unfreeze_every": "2",
        "tune.freeze_stages": 2,
        "train.steps": 6,
    }
    tlx.finetune(fields, tmp_path / "whole")
    expected = values(tlx.load(tmp_path / "whole"))
    for step in (1, 2, 3):
        with monkeypatch.context() as patch:
            stop_at(patch, step)
            with pytest.raises(Interrupted):
                tlx.finetune(fields, tmp_path / f"at{step}")
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        tlx.finetune(fields, tmp_path / f"at{step}")
        found = values(tlx.load(tmp_path / f"at{step}"))
        for path, value in expected.items():
            np.testing.assert_array_equal(found[path], value)


def test_each_pass_over_the_data_sees_the_next_view(tmp_path, config, monkeypatch):
    from tlx.features.cached import CachedSplit

    rows, seen = CachedSplit.rows, []

    def watched(self, index, epoch):
        found = rows(self, index, epoch)
        if len(self.features) > 1:
            seen.extend(zip(index.tolist(), epoch.tolist(), found, strict=True))
        return found

    monkeypatch.setattr(CachedSplit, "rows", watched)
    fields = config | {
        "tune.method": "head",
        "data.augment": ("pad_crop:4", "flip"),
        "cache.views": 2,
    }
    tlx.finetune(fields, tmp_path / "run")
    views = {}
    for index, epoch, row in seen:
        views.setdefault((index, epoch % 2), []).append(row)
    assert max(epoch for _, epoch, _ in seen) > 2
    for (index, view), found in views.items():
        assert all(np.array_equal(row, found[0]) for row in found)
        if view == 0 and (index, 1) in views:
            assert not np.array_equal(found[0], views[index, 1][0])


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"tune.method": "full"}, "stem is trained"),
        ({"tune.method": "head", "data.augment": ("flip",)}, "data.augment draws"),
        ({"tune.method": "head", "train.mixup": 0.2}, "mix pictures"),
        ({"tune.method": "head", "cache.memory_gb": 0.0, "cache.disk_gb": 0.0}, "more than"),
    ],
)
def test_what_cannot_be_cached_is_said(tmp_path, config, capsys, fields, reason):
    with pytest.raises(InputError, match=f"cache.use=on.*{reason}"):
        tlx.finetune(config | fields, tmp_path / "run")
    tlx.finetune(config | fields | {"cache.use": "auto", "train.steps": 1}, tmp_path / "run")
    assert "cache: off (" in capsys.readouterr().out
    assert not (tmp_path / "cache").exists()


def test_auto_keeps_what_pays(tmp_path, config, capsys):
    auto = config | {"cache.use": "auto"}
    tlx.finetune(auto | {"tune.method": "head"}, tmp_path / "head")
    assert "cache: the pooled features" in (out := capsys.readouterr().out) and "saves 9" in out
    tlx.finetune(auto | {"tune.method": "head", "train.steps": 1}, tmp_path / "short")
    assert "do not repay" in capsys.readouterr().out
    tlx.finetune(auto | {"tune.method": "partial", "tune.freeze_stages": 1}, tmp_path / "stem")
    assert "cache: off (the output of stem would be" in capsys.readouterr().out


def test_what_is_on_is_used_by_the_phases_that_can(tmp_path, config, capsys):
    fields = config | {"tune.method": "lpft", "train.steps": 2, "eval.every": "0"}
    tlx.finetune(fields, tmp_path / "run")
    out = capsys.readouterr().out
    assert "cache: phase 1: the pooled features" in out
    assert "cache: phase 2: off (stem is trained)" in out
