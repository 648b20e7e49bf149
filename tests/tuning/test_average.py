import json

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tlx
from tests import levels
from tests.training.test_phases import stop_at
from tlx.errors import InputError
from tlx.models.leaves import values
from tlx.setup import Setup
from tlx.training.loop import Interrupted
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


def test_averages_that_do_not_go_together_are_refused(tmp_path, config):
    free = {"optimizer.name": "schedule_free_sgd", "optimizer.schedule": "constant"}
    with pytest.raises(InputError, match="evaluated at averages of their own"):
        tlx.finetune(config | free | {"optimizer.average": "ema:0.9"}, tmp_path / "run")
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

    def found(self, split, state):
        found = evaluate(self, split, state)
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
