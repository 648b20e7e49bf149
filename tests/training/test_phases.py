"""Methods that train more and more of a network: what carries over, and that a stop anywhere changes nothing."""

import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

import tlx
from tests import levels
from tests.training.test_step import Fixture
from tlx.errors import InputError
from tlx.models.leaves import values
from tlx.setup import Setup
from tlx.training import loop
from tlx.training.loop import Interrupted
from tlx.training.state import advance, all_values
from tlx.tuning.plan import digests

GRADUAL = {"tune.method": "gradual", "tune.unfreeze_every": "2", "tune.freeze_stages": 2}


@pytest.fixture
def config(tmp_path):
    return levels.fields(tmp_path) | {
        "train.steps": 6,
        "optimizer.lr": 0.02,
        "optimizer.weight_decay": 0.1,
        "optimizer.clip_norm": 1.0,
    }


def evaluated_values(monkeypatch):
    """Returns a list that gets the values of every evaluation from now on, as path -> array."""
    evaluate, seen = Setup.evaluate, []

    def watched(self, split, found, start=0):
        seen.append({path: np.array(value) for path, value in found.items()})
        return evaluate(self, split, found, start)

    monkeypatch.setattr(Setup, "evaluate", watched)
    return seen


def stop_at(monkeypatch, step):
    """Has the run be asked to stop while it trains that step."""
    place = loop.place_batches

    def placed(batch, mesh):
        steps.append(1)
        if len(steps) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return place(batch, mesh)

    steps = []
    monkeypatch.setattr(loop, "place_batches", placed)


def test_gradual_unfreezing_ends_with_the_same_bits_wherever_it_was_stopped(
    tmp_path, config, monkeypatch, capsys
):
    fields = config | GRADUAL
    summary = tlx.finetune(fields, tmp_path / "whole")
    assert summary["compilations/train_step"] == 1
    out = capsys.readouterr().out
    assert "from step 2: layer3" in out and "from step 4: layer2" in out
    done = 0
    for stop in (1, 2, 3, 5):  # within each phase, and where two of them meet
        with monkeypatch.context() as patched, pytest.raises(Interrupted, match=f"step {stop} of"):
            stop_at(patched, stop - done)
            tlx.finetune(fields, tmp_path / "stopped")
        done = stop
    again = tlx.finetune(fields, tmp_path / "stopped")
    assert again["steps"] == 6 and again["test/loss"] == summary["test/loss"]
    one, two = (values(tlx.load(tmp_path / name)) for name in ("whole", "stopped"))
    assert digests(one, tuple(one)) == digests(two, tuple(two))
    start = values(tlx.create_model("resnet20_cifar.glyphs"))
    moved = {path.split(".")[0] for path in start if not np.array_equal(start[path], one[path])}
    assert moved == {"layer2", "layer3", "head"}  # the others stay, their statistics too


# A run that dies before it trains the step of that number; what it began to save is saved, nothing else is.
DIES = """
import json, os, signal, sys
import tlx
from tlx.training.loop import Loop

def begins_next(self, step, phase, begins=Loop._begins_next):
    if step == int(sys.argv[1]):
        self.checkpoints.wait()
        os.kill(os.getpid(), signal.SIGKILL)
    return begins(self, step, phase)

Loop._begins_next = begins_next
tlx.finetune(json.loads(sys.argv[2]), sys.argv[3])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "kills"),
    [
        # In each of three phases; what is read last is of the phase before.
        (
            GRADUAL
            | {
                "tune.unfreeze_every": "4",
                "train.steps": 12,
                "optimizer.name": "adamw",
                "optimizer.lr": 1e-3,
                "optimizer.average": "ema:0.9",
            },
            (3, 7, 9),
        ),
        ({"tune.method": "lpft", "train.steps": 8, "optimizer.options": "momentum=0.9"}, (3, 7)),
    ],
)
def test_a_killed_run_ends_with_the_same_bits_in_whichever_phase_it_was(
    tmp_path, config, fields, kills, capsys
):
    fields = config | fields | {"checkpoint.every": "2"}
    tlx.finetune(fields, tmp_path / "whole")
    said, ran = "", ()
    for kill in kills:
        command = [sys.executable, "-c", DIES, str(kill), json.dumps(fields)]
        ran = subprocess.run(
            [*command, tmp_path / "killed"], capture_output=True, text=True, timeout=400
        )
        assert ran.returncode == -signal.SIGKILL, ran.stderr
        said += ran.stdout
    tlx.finetune(fields, tmp_path / "killed")
    said += capsys.readouterr().out
    for kill in kills:
        assert f"resuming at step {kill - 1} of" in said
    one, two = (values(tlx.load(tmp_path / name)) for name in ("whole", "killed"))
    assert digests(one, tuple(one)) == digests(two, tuple(two))
    one, two = (last_optimizer_state(tmp_path / name) for name in ("whole", "killed"))
    assert one == two


def last_optimizer_state(workdir):
    """The checksums of the last checkpoint's optimizer state."""
    steps = (workdir / "checkpoints").iterdir()
    last = max((path for path in steps if path.name.isdigit()), key=lambda path: int(path.name))
    return json.loads((last / "meta" / "metadata").read_text())["checksums"]["optimizer"]


LPFT = {"tune.method": "lpft", "tune.head_first": "2"}


@pytest.mark.parametrize(
    ("method", "optimizer", "average"),
    [
        (GRADUAL, "sgd", ""),
        (GRADUAL, "adamw", "ema:0.9"),
        (LPFT, "sgd", "ema:0.9"),
        (LPFT, "adamw", ""),
    ],
)
def test_what_was_trained_before_keeps_its_optimizers_state(method, optimizer, average):
    it = Fixture(
        **{name.replace(".", "__"): value for name, value in method.items()},
        optimizer__name=optimizer,
        optimizer__average=average,
        optimizer__weight_decay=0.1,
        optimizer__clip_norm=1.0,
        train__steps=8,
    )
    assert [phase.start for phase in it.tuning.phases] == [0, 2, 4][: len(it.tuning.phases)]
    assert len(it.tuning.phases) == (3 if method is GRADUAL else 2)
    for index, phase in enumerate(it.tuning.phases[1:]):
        it.step = it.steps[index]
        it.train(2)
        before, kept = jax.device_get((it.state, it.frozen))
        it.state, it.frozen = advance(it.state, it.frozen, phase, phase.start, it.sharding)
        after, frozen = jax.device_get((it.state, it.frozen))
        assert set(after.trainable) == set(phase.plan.trainable) > set(before.trainable)
        assert digests(all_values(after, frozen), tuple(it.values)) == digests(
            all_values(before, kept), tuple(it.values)
        )
        old, new = dict(named(before.optimizer)), dict(named(after.optimizer))
        assert old.keys() < new.keys()
        for name, value in old.items():
            np.testing.assert_array_equal(new[name], value, err_msg=name)
            assert np.any(value), name
        schedules = 0
        for name in new.keys() - old.keys():
            if (
                ".average[" in name or ".statistics[" in name
            ):  # of values that stood still it is they
                now = after.trainable if ".average[" in name else after.statistics
                (path,) = (path for path in now if f"'{path}'" in name)
                np.testing.assert_array_equal(new[name], now[path])
            elif new[name].ndim == 0 and new[name] == phase.start:
                schedules += 1
            else:
                assert not np.any(new[name]), name
        assert schedules == 1


def named(tree):
    for path, leaf in jax.tree.leaves_with_path(tree):
        yield jax.tree_util.keystr(path), np.asarray(leaf)


@pytest.mark.parametrize("optimizer", ["schedule_free_sgd", "muon"])
def test_other_optimizers_go_through_the_phases(tmp_path, config, optimizer, capsys):
    fields = config | GRADUAL | {"optimizer.name": optimizer, "optimizer.schedule": "constant"}
    fields |= {"tune.unfreeze_every": "4", "optimizer.weight_decay": 0.0}
    tlx.finetune(fields, tmp_path / "run")
    out = capsys.readouterr().out
    assert "from step 4: layer3" in out
    assert "the run ends before these are trained: layer2" in out


def test_optimizers_that_would_begin_the_schedule_again_are_refused(tmp_path, config):
    with pytest.raises(InputError, match="prodigy would begin the schedule again"):
        fields = {"optimizer.name": "prodigy", "optimizer.weight_decay": 0.0}
        tlx.finetune(config | GRADUAL | fields, tmp_path / "run")


def test_the_head_first_then_everything(tmp_path, config, capsys):
    fields = config | {"tune.method": "lpft", "tune.head_first": "50%", "train.steps": 4}
    tlx.finetune(fields | {"tune.groups": "backbone.lr=0.1"}, tmp_path / "run")
    out = capsys.readouterr().out
    assert "from step 2: stem, layer1, layer2, layer3" in out
    assert "audit: 0 frozen values" in out


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"tune.method": "gradual", "tune.unfreeze_every": "6"}, "is 6 steps of a run of 6"),
        ({"tune.method": "gradual", "tune.unfreeze_every": "0"}, "expected at least 1"),
        ({"tune.method": "gradual", "tune.freeze_stages": 4}, "leaves nothing to unfreeze"),
        ({"tune.method": "lpft", "tune.head_first": "100%"}, "tune.head_first=100% is 6 steps"),
        ({"tune.method": "gradual", "tune.unfreeze_every": "soon"}, "is 'soon', expected"),
    ],
)
def test_phases_that_do_not_fit_the_run_are_refused(tmp_path, config, fields, says):
    with pytest.raises(InputError) as caught:
        tlx.finetune(config | fields, tmp_path / "run")
    assert says in str(caught.value)
    assert not (tmp_path / "run").exists()
