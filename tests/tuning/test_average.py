import json

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tlx
from tests import levels
from tests.training.test_phases import evaluated_values, stop_at
from tests.training.test_step import Fixture
from tlx.errors import InputError
from tlx.models.leaves import values
from tlx.setup import Setup
from tlx.training.loop import Interrupted
from tlx.training.state import inference_values
from tlx.tuning.average import averaged, parse_average


def trajectory(text, steps=12, total=100):
    """The values after every step of a walk, and their average after each."""
    average = parse_average(text, lambda value: int(float(value.rstrip("%")) * total / 100))
    optimizer = optax.chain(optax.sgd(0.1), averaged(average))
    values = {"w": jnp.array([1.0, -2.0])}
    state, seen, kept = optimizer.init(values), [], []
    for step in range(steps):
        updates, state = optimizer.update({"w": jnp.array([step % 3 - 1.0, 0.5])}, state, values)
        values = optax.apply_updates(values, updates)
        seen.append(np.asarray(values["w"], np.float64))
        kept.append(np.asarray(state[-1].average["w"]))
    return np.stack(seen), np.stack(kept)


def test_exponential_average_forgets_its_beginning():
    seen, kept = trajectory("ema:0.6")
    expected = np.array([1.0, -2.0])
    for step, value in enumerate(seen):
        decay = min(0.6, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
        np.testing.assert_allclose(kept[step], expected, rtol=1e-6)


def test_stochastic_weight_average_is_the_mean_from_its_start_on():
    seen, kept = trajectory("swa:4%")
    np.testing.assert_allclose(kept[:5], seen[:5], rtol=1e-6)
    for step in range(5, 12):
        np.testing.assert_allclose(kept[step], seen[4 : step + 1].mean(0), rtol=1e-6)


@pytest.mark.parametrize("text", ["ema", "ema:1", "ema:0", "ema:x", "swa", "mean:3", "swa:"])
def test_what_is_no_average_is_refused(text):
    with pytest.raises(InputError, match="expected ema:DECAY with 0 < DECAY < 1, or swa:START"):
        parse_average(text, int)


@pytest.fixture
def config(tmp_path):
    return levels.fields(tmp_path) | {
        "train.steps": 6,
        "optimizer.lr": 0.02,
    }


def test_the_average_is_evaluated_loaded_and_resumed(tmp_path, config, monkeypatch):
    fields = config | {"optimizer.average": "ema:0.9", "tune.method": "gradual",
                       "tune.unfreeze_every": "2", "tune.freeze_stages": 2,
                       "tune.regularizers": "init:0.01"}  # fmt: skip
    summary = tlx.finetune(fields, tmp_path / "whole")
    plain = tlx.finetune(fields | {"optimizer.average": ""}, tmp_path / "plain")
    assert summary["test/loss"] != plain["test/loss"]
    assert tlx.evaluate(fields, tmp_path / "whole")["test/loss"] == summary["test/loss"]
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        stop_at(patched, 3)
        tlx.finetune(fields, tmp_path / "stopped")
    tlx.finetune(fields, tmp_path / "stopped")
    one, two, other = (values(tlx.load(tmp_path / n)) for n in ("whole", "stopped", "plain"))
    for path, value in one.items():
        np.testing.assert_array_equal(value, two[path], err_msg=path)
        if path.startswith(("stem", "layer1")):
            np.testing.assert_array_equal(value, other[path])
    assert not np.array_equal(one["head.kernel"], other["head.kernel"])


def test_moving_statistics_are_averaged_with_the_decay_of_the_values():
    fields = {"tune__method": "partial", "tune__freeze_stages": 2, "optimizer__lr": 0.05}
    it = Fixture(**fields, optimizer__average="ema:0.6")
    expected = {
        path: it.before_values[path].astype(np.float64)
        for path in (*it.phase.plan.trainable, *it.phase.plan.statistics)
    }
    for step, batch in zip(range(6), it.batches(), strict=False):
        it.state, _ = it.step(it.state, it.frozen, batch, np.int32(step))
        decay = min(0.6, (1 + step) / (10 + step))
        for path, value in (it.state.trainable | it.state.statistics).items():
            expected[path] = decay * expected[path] + (1 - decay) * np.asarray(value, np.float64)
    found = inference_values(it.state, it.frozen)
    for path, value in expected.items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(found[path], value, rtol=1e-5, atol=1e-6 * scale, err_msg=path)
    trailing = [path for path in it.phase.plan.statistics if path.endswith(".mean")]
    assert trailing and not any(
        np.allclose(found[path], it.state.statistics[path], rtol=1e-3) for path in trailing
    )
    for path in it.phase.plan.frozen:
        np.testing.assert_array_equal(found[path], it.before_values[path], err_msg=path)


COMBINED = {
    "lora": {"tune.method": "lora", "tune.rank": 2, "tune.targets": "layer3.*conv1"},
    "gradual": {"tune.method": "gradual", "tune.unfreeze_every": "2", "tune.freeze_stages": 2},
    "lpft": {"tune.method": "lpft", "tune.freeze_stages": 2},
    "accumulate": {"tune.method": "norms", "train.accumulate": 2},
    "frozen head": {"tune.method": "surgical", "tune.train_stages": "layer3", "model.head": "keep"},
    "frozen statistics": {"tune.method": "bitfit"},
}


@pytest.mark.slow
@pytest.mark.parametrize("average", ["ema:0.9", "swa:3"])
@pytest.mark.parametrize("method", COMBINED)
def test_every_method_is_averaged_validated_loaded_and_resumed(
    tmp_path, config, monkeypatch, method, average
):
    fields = config | COMBINED[method] | {"optimizer.average": average, "data.val_fraction": 0.25}
    fields |= {"eval.every": "2", "checkpoint.every": "2", "eval.metric": "loss"}
    if method == "frozen head":  # of a file that has the same classes
        tlx.finetune(config | {"train.steps": 1}, tmp_path / "source")
        (fields["model.weights"],) = tlx.run.export(tmp_path / "source")
        fields["model.weights"] = str(fields["model.weights"])
        fields["model.name"] = "resnet20_cifar"
    with monkeypatch.context() as patched:
        seen = evaluated_values(patched)
        summary = tlx.finetune(fields, tmp_path / "whole")
    last = values(tlx.load(tmp_path / "whole", checkpoint="last"))
    for path, value in values(tlx.load(tmp_path / "whole")).items():
        np.testing.assert_array_equal(value, seen[summary["best_step"] // 2 - 1][path])
        np.testing.assert_array_equal(value, seen[-1][path])
        np.testing.assert_array_equal(last[path], seen[-2][path])
    assert tlx.evaluate(fields, tmp_path / "whole")["test/loss"] == summary["test/loss"]
    done = 0
    for stop in (3, 4, 5):
        with monkeypatch.context() as patched, pytest.raises(Interrupted):
            stop_at(patched, stop - done)
            tlx.finetune(fields, tmp_path / "stopped")
        done = stop
    assert tlx.finetune(fields, tmp_path / "stopped")["test/loss"] == summary["test/loss"]
    for path, value in values(tlx.load(tmp_path / "stopped", checkpoint="last")).items():
        np.testing.assert_array_equal(value, last[path], err_msg=path)
    plain = tlx.finetune(fields | {"optimizer.average": ""}, tmp_path / "plain")
    assert plain["val/loss"] != summary["val/loss"]


@pytest.mark.parametrize("average", ["ema:0.9", "swa:3"])
@pytest.mark.parametrize(
    "free",
    [
        {"optimizer.name": "schedule_free_sgd"},
        {"tune.groups": "head.optimizer=schedule_free_adamw"},
    ],
)
def test_averages_that_do_not_go_together_are_refused(tmp_path, config, average, free):
    fields = config | free | {"optimizer.schedule": "constant", "optimizer.average": average}
    with pytest.raises(InputError, match="evaluated at averages of their own"):
        tlx.finetune(fields, tmp_path / "run")
    assert not (tmp_path / "run").exists()


PATIENT = {
    "data.val_fraction": 0.25,
    "eval.every": "1",
    "checkpoint.every": "0",
    "train.steps": 9,
    "eval.metric": "loss",
}


@pytest.fixture
def losses(monkeypatch):
    """Has validation find these losses, one after the other."""
    evaluate, scripted = Setup.evaluate, []

    class Found:
        def __init__(self, found, loss):
            self.found, self.loss = found, loss

        def __getattr__(self, name):
            return getattr(self.found, name)

        def summary(self):
            return self.found.summary() | {"loss": self.loss}

    def found(self, split, state, start=0):
        found = evaluate(self, split, state, start)
        return Found(found, scripted.pop(0)) if len(split) == 6 else found

    monkeypatch.setattr(Setup, "evaluate", found)
    return scripted


def test_a_run_ends_when_patience_does(tmp_path, config, losses, capsys):
    fields = config | PATIENT | {"train.patience": 2}
    losses += [3.0, 2.0, 2.5, 2.0, 1.0, 1.0, 1.0]
    summary = tlx.finetune(fields, tmp_path / "run")
    assert (summary["steps"], summary["best_step"]) == (4, 2)
    assert "step 4: no new best in 2 validations, training ends" in capsys.readouterr().out
    records = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert max(record["step"] for record in records) == 4
    (tmp_path / "run" / "summary.json").unlink()  # as if it had been stopped just before its end
    again = tlx.finetune(fields, tmp_path / "run")
    assert again["steps"] == 4 and again["test/loss"] == summary["test/loss"]
    with pytest.raises(InputError, match="there is no validation split"):
        tlx.finetune(config | {"train.patience": 1}, tmp_path / "other")


@pytest.mark.parametrize("stop", [3, 4])
def test_patience_goes_on_counting_in_a_run_that_was_stopped(
    tmp_path, config, losses, monkeypatch, stop
):
    losses += [3.0, 2.0, 2.5, 2.5, 2.5, 1.0, 1.0, 1.0, 1.0]
    fields = config | PATIENT | {"train.patience": 3}
    with monkeypatch.context() as patched, pytest.raises(Interrupted, match=f"step {stop} of 9"):
        stop_at(patched, stop)
        tlx.finetune(fields, tmp_path / "run")
    summary = tlx.finetune(fields, tmp_path / "run")
    assert (summary["steps"], summary["best_step"]) == (5, 2)


def test_patience_begins_again_with_a_phase_and_ends_the_run_in_any(tmp_path, config, losses):
    fields = config | PATIENT | {"tune.method": "lpft", "tune.head_first": "3"}
    losses += [2.0, 2.5, 2.5, 2.5, 2.5, 2.5]
    summary = tlx.finetune(fields | {"train.patience": 3}, tmp_path / "second")
    assert (summary["steps"], summary["best_step"]) == (6, 1)  # not 4
    losses[:] = [2.0, 2.5, 2.5]
    summary = tlx.finetune(fields | {"train.patience": 2}, tmp_path / "first")
    assert (summary["steps"], summary["best_step"]) == (3, 1)
    start, end = values(tlx.create_model("resnet20_cifar.glyphs")), tlx.load(tmp_path / "first")
    moved = {p for p, value in values(end).items() if not np.array_equal(value, start[p])}
    assert moved == {"head.kernel", "head.bias"}
