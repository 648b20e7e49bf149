"""Statistics of averaged weights: as torch estimates them, part of what is validated, saved and resumed."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

import tlx
from tests import levels
from tests.training.test_phases import evaluated_values, stop_at
from tests.training.test_step import SMALL, Fixture
from tlx import config as config_lib
from tlx import setup as setup_lib
from tlx.data import pipeline
from tlx.data.preprocess import normalize
from tlx.models import family
from tlx.models.layers import BatchNorm
from tlx.models.leaves import values
from tlx.steps import statistics_step
from tlx.training import statistics
from tlx.training.checkpoint import Checkpoints
from tlx.training.loop import Interrupted
from tlx.training.state import all_values
from tlx.training.statistics import batches_of_estimate, estimate
from tlx.training.step import make_statistics_step

pytestmark = pytest.mark.wide

SWA = {"optimizer.average": "swa:2", "train.steps": 6, "optimizer.lr": 0.05}
STATISTICS = (".mean", ".var")


@pytest.fixture
def config(tmp_path):
    return levels.fields(tmp_path) | SWA


def rows(it, count):
    split = it.setup.open("train")["train"]
    size = it.config.train.batch_size
    return pipeline.training_batches(split, seed=0, batch_size=size, start=0, stop=count)


def estimated(it, found, batches):
    step = statistics_step(it.setup, it.tuning, it.phase.plan)
    return jax.device_get(estimate(step, found, batches, 0, it.setup.mesh))


@pytest.mark.parity
def test_statistics_are_those_of_torchs_update_bn():
    import torch
    from torch.optim.swa_utils import update_bn

    from tests.models.originals.resnet import cifar_resnet

    it = Fixture()
    original = cifar_resnet(20)
    table = family("resnet20_cifar").key_tables("resnet20_cifar")[0]
    before = table.to_source({p: np.asarray(v) for p, v in it.values.items()})
    tensors = {k: torch.tensor(np.ascontiguousarray(v)) for k, v in before.items()}
    original.load_state_dict(tensors, strict=False)
    batches = list(rows(it, 3))
    inputs = [normalize(b["inputs"], it.setup.model.meta.preprocess) for b in batches]
    update_bn([torch.tensor(np.array(x.transpose(0, 3, 1, 2))) for x in inputs], original)

    found = estimated(it, it.values, batches)
    assert set(found) == {path for path in it.values if path.endswith(STATISTICS)}
    theirs = original.state_dict()
    for name, value in table.to_source(found, carried={}).items():
        expected = theirs[name].numpy()
        assert not np.allclose(expected, before[name], rtol=1e-2, atol=1e-2), name
        np.testing.assert_allclose(
            value, expected, rtol=0, atol=1e-5 * np.abs(expected).max(), err_msg=name
        )


def test_one_batch_leaves_nothing_of_what_was_before():
    it = Fixture()
    (batch,) = rows(it, 1)
    other = {p: v + 3 if p.endswith(STATISTICS) else v for p, v in it.values.items()}
    one, two = (estimated(it, found, [batch]) for found in (it.values, other))
    for path in one:
        np.testing.assert_array_equal(one[path], two[path], err_msg=path)


def test_a_batch_in_parts_counts_as_so_many_batches():
    whole, parts = Fixture(train__batch_size=8), Fixture(train__batch_size=16, train__accumulate=2)
    (batch,) = rows(parts, 1)
    halves = [{name: value[i::2] for name, value in batch.items()} for i in (0, 1)]
    expected, found = (
        estimated(whole, whole.values, halves),
        estimated(parts, parts.values, [batch]),
    )
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, rtol=1e-5, atol=1e-6, err_msg=path)


@pytest.mark.slow
def test_the_network_and_its_inputs_are_those_of_the_training_step():
    # One step at rate 0: what training moves its statistics by is a tenth of the batch's.
    fields = {"data__augment": "pad_crop:1,flip", "train__mixup": 0.5, "train__cutmix": 1.0}
    it = Fixture(**fields, model__drop_path=0.3, optimizer__lr=0.0)
    before = {path: np.array(value) for path, value in it.values.items()}
    (batch,) = rows(it, 1)
    found = estimated(it, it.values, [batch])
    it.train(1)
    after = all_values(it.state, it.frozen)
    for path, value in found.items():
        expected = 0.9 * before[path] + 0.1 * value
        np.testing.assert_allclose(after[path], expected, rtol=1e-5, atol=1e-6, err_msg=path)


def test_what_training_does_not_run_keeps_its_statistics():
    it = Fixture()
    model = nnx.merge(*nnx.split(it.setup.model))
    model.unused = BatchNorm(4)  # as an auxiliary head whose loss does not count
    plan = it.phase.plan
    plan = dataclasses.replace(
        plan,
        statistics=(*plan.statistics, "unused.mean"),
        training_norms=plan.training_norms | {"unused"},
    )
    step = make_statistics_step(
        model, plan, it.setup.augmentation, it.setup.mesh, dtype="float32", seed=0
    )
    others = {f"unused.{name}": np.full(4, 0.3, np.float32) for name in ("scale", "bias", "var")}
    mean = np.array([0.1, -0.2, 0.3, 7.0], np.float32)
    found = estimate(
        step, {**it.values, **others, "unused.mean": mean}, rows(it, 3), 0, it.setup.mesh
    )
    np.testing.assert_array_equal(found["unused.mean"], mean)
    assert not np.array_equal(found["stem.bn.mean"], it.values["stem.bn.mean"])


def test_an_estimate_takes_an_epoch_within_the_least_and_the_most():
    assert batches_of_estimate(160, 8) == 20 and batches_of_estimate(161, 8) == 21
    assert batches_of_estimate(24, 8) == statistics.LEAST_BATCHES
    assert batches_of_estimate(10**6, 8) == statistics.MOST_BATCHES


@pytest.mark.slow
def test_what_validation_saw_is_what_is_saved_loaded_and_resumed(
    tmp_path, config, monkeypatch, capsys
):
    fields = config | {"data.val_fraction": 0.25, "eval.every": "2", "checkpoint.every": "2",
                       "checkpoint.keep_last": 9, "eval.metric": "loss", "data.augment": "flip",
                       "tune.method": "partial", "tune.freeze_stages": 2}  # fmt: skip
    with monkeypatch.context() as patched:
        seen = evaluated_values(patched)
        summary = tlx.finetune(fields, tmp_path / "whole")
    assert "after step 2 BatchNorm statistics of the average" in capsys.readouterr().out
    last = values(tlx.load(tmp_path / "whole", checkpoint="last"))
    loaded = values(tlx.load(tmp_path / "whole"))
    validated = seen[summary["best_step"] // 2 - 1]
    for path in loaded:
        np.testing.assert_array_equal(last[path], seen[2][path], err_msg=path)
        np.testing.assert_array_equal(loaded[path], validated[path], err_msg=path)
        np.testing.assert_array_equal(loaded[path], seen[-1][path], err_msg=path)
    assert tlx.evaluate(fields, tmp_path / "whole")["test/loss"] == summary["test/loss"]

    # What is frozen keeps its bits; what moves is not what training left.
    source = values(tlx.create_model("resnet20_cifar.glyphs"))
    frozen = {path for path in source if path.startswith(("stem", "layer1"))}
    assert all(np.array_equal(source[path], last[path]) for path in frozen)
    plain = fields | {"optimizer.average": ""}
    tlx.finetune(plain, tmp_path / "plain")
    other = values(tlx.load(tmp_path / "plain", checkpoint="last"))
    moving = {path for path in source if path.endswith(STATISTICS)} - frozen
    assert not any(np.array_equal(last[path], other[path]) for path in moving)

    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        stop_at(patched, 5)  # a step that nothing else would save
        tlx.finetune(fields, tmp_path / "stopped")
    with Checkpoints(tmp_path / "stopped", read_only=True) as checkpoints:
        assert checkpoints.steps() == [2, 4, 5]

    def estimates():
        found = (tmp_path / "stopped" / "checkpoints").glob("*/estimated")
        return {path.parent.name for path in found}

    assert estimates() == {"4"}  # nothing before it begins, and nothing in haste
    again = tlx.finetune(fields, tmp_path / "stopped")
    assert again["test/loss"] == summary["test/loss"]
    assert estimates() == {"4", "5", "6"}
    for path, value in values(tlx.load(tmp_path / "stopped", checkpoint="last")).items():
        np.testing.assert_array_equal(value, last[path], err_msg=path)


FREE = {"optimizer.name": "schedule_free_sgd", "optimizer.schedule": "constant"}


def broken(*_):
    raise tlx.InputError("train[3]: broken")


def records(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if "second" not in k} for line in lines]


@pytest.mark.parametrize("validates", [True, False])
def test_an_interrupted_run_is_saved_at_once_and_makes_up_for_it(
    tmp_path, config, monkeypatch, validates
):
    stop = 4 if validates else 5
    fields = config | {"data.val_fraction": 0.25, "eval.every": "2", "checkpoint.every": "0",
                       "eval.metric": "loss", "train.log_every": 1}  # fmt: skip
    summary = tlx.finetune(fields, tmp_path / "whole")
    estimate, calls = statistics.estimate, []

    def counted(step, found, batches, first, mesh):
        calls.append(list(batches))
        return estimate(step, found, calls[-1], first, mesh) if calls[-1] else {}

    with monkeypatch.context() as patched, pytest.raises(Interrupted, match=f"step {stop} of 6"):
        patched.setattr(statistics, "estimate", counted)
        stop_at(patched, stop)
        tlx.finetune(fields, tmp_path / "stopped")
    assert calls[-1] == [] and len(calls) == stop - 3
    with pytest.raises(
        tlx.InputError, match=rf"checkpoints/{stop} was saved when the run was inte"
    ):
        tlx.load(tmp_path / "stopped", checkpoint="last")
    if not validates:
        tlx.load(tmp_path / "stopped")  # the best
    with monkeypatch.context() as patched, pytest.raises(tlx.InputError, match="broken"):
        patched.setattr(statistics, "estimate", broken)  # again nothing is lost
        tlx.finetune(fields, tmp_path / "stopped")
    again = tlx.finetune(fields, tmp_path / "stopped")
    assert [again[k] for k in ("test/loss", "best_step", "val/loss")] == [
        summary[k] for k in ("test/loss", "best_step", "val/loss")
    ]
    assert sorted(map(str, records(tmp_path / "stopped"))) == sorted(
        map(str, records(tmp_path / "whole"))
    )
    one, two = (values(tlx.load(tmp_path / n, checkpoint="last")) for n in ("whole", "stopped"))
    for path, value in one.items():
        np.testing.assert_array_equal(value, two[path], err_msg=path)
    assert not (tmp_path / "stopped" / "replacing").exists()


def test_a_run_without_validation_ends_with_its_estimate(tmp_path, config):
    fields = config | {"tune.method": "gradual", "tune.unfreeze_every": "3",
                       "tune.freeze_stages": 2}  # fmt: skip
    summary = tlx.finetune(fields, tmp_path / "run")
    assert summary["checkpoint"] == "last"
    assert tlx.evaluate(fields, tmp_path / "run")["test/loss"] == summary["test/loss"]
    (tmp_path / "run" / "summary.json").unlink()  # as if it had been stopped just before its end
    assert tlx.finetune(fields, tmp_path / "run")["test/loss"] == summary["test/loss"]
    trained = values(tlx.load(tmp_path / "run"))
    written = tlx.run.export(tmp_path / "run")
    exported = values(tlx.create_model("resnet20_cifar", weights=written[0]))
    for path, value in trained.items():
        np.testing.assert_array_equal(exported[path], value, err_msg=path)


def test_the_estimate_is_of_the_average_and_of_the_last_batches(tmp_path, config):
    config = config | {"data.augment": "pad_crop:1,flip", "train.steps": 18}
    tlx.finetune(config, tmp_path / "run")
    found = values(tlx.load(tmp_path / "run"))
    it = Fixture(**{name.replace(".", "__"): value for name, value in config.items()})
    split = it.setup.open("train")["train"]
    batches = pipeline.training_batches(split, seed=0, batch_size=8, start=2, stop=18)
    step = statistics_step(it.setup, it.tuning, it.phase.plan)
    expected = estimate(step, found, batches, 2, it.setup.mesh)
    assert step._cache_size() == 1
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)


def test_a_broken_picture_keeps_what_was_reached_with_its_estimate(tmp_path, config, monkeypatch):
    from tlx.data.npz import ArrayExamples
    from tlx.data.order import indices

    order = indices(0, 0, 24, 24)
    image = ArrayExamples.image

    def broken(self, index):
        if index == order[20] and len(self) == 24:
            raise tlx.InputError(f"train[{index}]: broken")
        return image(self, index)

    monkeypatch.setattr(ArrayExamples, "image", broken)
    fields = config | {
        "data.storage": "stream",
        "train.batch_size": 4,
        "optimizer.average": "swa:1",
    }
    with pytest.raises(tlx.InputError, match="broken"):
        tlx.finetune(fields, tmp_path / "run")
    with Checkpoints(tmp_path / "run", read_only=True) as checkpoints:
        (step,) = checkpoints.steps()
    assert (tmp_path / "run" / "checkpoints" / str(step) / "estimated").is_dir() and step > 1


@pytest.mark.slow
def test_schedule_free_averages_have_statistics_of_their_own(tmp_path, monkeypatch, capsys):
    fields = levels.fields(tmp_path) | FREE | {"train.steps": 6, "optimizer.lr": 0.5}
    fields |= {"data.val_fraction": 0.25, "eval.every": "2", "eval.metric": "loss",
               "checkpoint.every": "2", "checkpoint.keep_last": 9}  # fmt: skip
    with monkeypatch.context() as patched:
        seen = evaluated_values(patched)
        summary = tlx.finetune(fields, tmp_path / "whole")
    assert "schedule-free: after step 0 BatchNorm statistics" in capsys.readouterr().out
    validated = seen[summary["best_step"] // 2 - 1]
    last = values(tlx.load(tmp_path / "whole", checkpoint="last"))
    for path, value in values(tlx.load(tmp_path / "whole")).items():
        np.testing.assert_array_equal(value, validated[path], err_msg=path)
        np.testing.assert_array_equal(value, seen[-1][path], err_msg=path)
        np.testing.assert_array_equal(last[path], seen[2][path], err_msg=path)

    # They are those of the evaluated values, which training's are not.
    it = Fixture(**{name.replace(".", "__"): value for name, value in fields.items()})
    split = it.setup.open("train")["train"]
    batches = pipeline.training_batches(split, seed=0, batch_size=8, start=0, stop=6)
    step = statistics_step(it.setup, it.tuning, it.phase.plan)
    for path, value in estimate(step, last, batches, 0, it.setup.mesh).items():
        np.testing.assert_array_equal(last[path], value, err_msg=path)

    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        stop_at(patched, 3)
        tlx.finetune(fields, tmp_path / "stopped")
    assert tlx.finetune(fields, tmp_path / "stopped")["test/loss"] == summary["test/loss"]
    for path, value in values(tlx.load(tmp_path / "stopped", checkpoint="last")).items():
        np.testing.assert_array_equal(value, last[path], err_msg=path)


@pytest.mark.parametrize(
    ("fields", "after"),
    [
        ({}, 0),
        ({"tune.batchnorm": "frozen"}, None),  # nothing moves
        ({"tune.method": "head"}, None),
        ({"optimizer.name": "sgd", "tune.groups": "backbone.optimizer=schedule_free_sgd"}, 0),
        # Behind all statistics.
        ({"optimizer.name": "sgd", "tune.groups": "head.optimizer=schedule_free_sgd"}, None),
        ({"optimizer.name": "sgd", "optimizer.average": "ema:0.9"}, None),
        ({"optimizer.name": "sgd", "optimizer.average": "swa:3"}, 3),
        ({"optimizer.name": "sgd"}, None),
    ],
)
def test_statistics_are_estimated_where_those_of_training_are_not_evaluated(fields, after):
    config = config_lib.build(SMALL, FREE, fields)
    setup, _ = setup_lib.prepare(config)
    assert setup_lib.prepare_tuning(setup).estimated_after == after


def test_the_estimate_of_another_step_is_noticed(tmp_path, config):
    tlx.finetune(config | {"checkpoint.every": "3"}, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    shutil.rmtree(folder / "6" / "estimated")
    (folder / "3" / "estimated").rename(folder / "6" / "estimated")  # whole, but another step's
    shutil.rmtree(folder / "3")
    with pytest.raises(
        tlx.InputError, match=r"checkpoint .* is damaged \(a checksum does not match"
    ):
        tlx.load(tmp_path / "run")
