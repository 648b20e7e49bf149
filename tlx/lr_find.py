"""The learning-rate range test: `--mode=lr_find` (Smith 2015, arXiv:1506.01186; smoothed and stopped as fastai does)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tlx import config as config_lib
from tlx.config import Config
from tlx.data import pipeline
from tlx.errors import InputError
from tlx.evaluation.figures import range_test
from tlx.files import write_json_atomic
from tlx.notes import describe_drawn
from tlx.setup import prepare, prepare_tuning
from tlx.steps import train_step
from tlx.training.mesh import place_batch, replicated
from tlx.training.state import create_state
from tlx.tuning.optimizer import make_optimizer
from tlx.tuning.phases import Phase
from tlx.tuning.table import plan_table

LOWEST, HIGHEST, STEPS = 1e-7, 10.0, 100
SMOOTHING = 0.98  # of the exponential average of the losses
DIVERGED = 4.0  # times the smallest smoothed loss so far
_EDGE = 5  # losses at the beginning that are too few to have a slope


@dataclasses.dataclass(frozen=True)
class RangeTest:
    """Losses over rising learning rates; the test ends where the loss diverges."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def smoothed(self) -> np.ndarray:
        """The bias-corrected exponential average of the losses."""
        average, found = 0.0, []
        for count, loss in enumerate(self.losses, 1):
            average = SMOOTHING * average + (1 - SMOOTHING) * loss
            found.append(average / (1 - SMOOTHING**count))
        return np.array(found)

    @property
    def suggestion(self) -> float:
        """The rate at which the smoothed loss falls most steeply, over the logarithm of the rate, before its minimum.

        nan where it does not fall at all.
        """
        smoothed = self.smoothed
        end = int(np.argmin(smoothed)) + 1
        if end <= _EDGE:
            return math.nan
        slopes = np.gradient(smoothed[:end], np.log(self.rates[:end]))
        return float(self.rates[_EDGE - 1 + int(np.argmin(slopes[_EDGE - 1 :]))])


def lr_find(config: Config | Mapping[str, Any], workdir: str | Path) -> RangeTest:
    """Trains for at most 100 steps with rates from 1e-7 to 10, as the config's method does (in its last phase).

    Writes lr_find.json and lr_find.png into the workdir, and no checkpoint: nothing of the run that may be there changes.
    The schedule and regularizers are not used; groups keep their multipliers. With tune.method=auto the rate is what is
    searched, and not chosen: all else is as in a run with the suggestion.

    Raises:
      InputError: as `tlx.finetune`.
    """
    config = config_lib.build(config)
    config = config_lib.build(config, {"optimizer.lr": config.optimizer.lr})
    setup, lines = prepare(config)
    config, tuning = setup.config, prepare_tuning(setup)
    plan = tuning.phases[-1].plan

    def schedule(step: jax.Array | int) -> jax.Array:
        return LOWEST * (HIGHEST / LOWEST) ** (jnp.asarray(step, jnp.float32) / (STEPS - 1))

    phase = Phase(0, plan, make_optimizer(plan, config.optimizer, schedule))
    lines += describe_drawn(setup)
    print(*lines, "", plan_table(plan, setup.leaves, config.optimizer), "", sep="\n", flush=True)
    split = setup.open("train")["train"]
    sharding = replicated(setup.mesh)
    values = setup.weights.place(config.seed, sharding)
    state, frozen = create_state(values, plan, phase.optimizer, sharding)
    step = train_step(setup, dataclasses.replace(tuning, regularizers=()), phase)
    batches = pipeline.training_batches(
        split, seed=config.seed, batch_size=config.train.batch_size, start=0
    )
    rates: list[float] = []
    losses: list[float] = []
    for index, batch in zip(range(STEPS), batches, strict=False):
        state, metrics = step(state, frozen, place_batch(batch, setup.mesh), np.int32(index))
        loss = float(metrics["loss"])
        if not math.isfinite(loss):
            break
        rates.append(float(schedule(index)))
        losses.append(loss)
        smoothed = RangeTest(tuple(rates), tuple(losses)).smoothed
        if index > _EDGE and smoothed[-1] > DIVERGED * smoothed.min():
            break
    return _report(RangeTest(tuple(rates), tuple(losses)), Path(workdir))


def _report(found: RangeTest, folder: Path) -> RangeTest:
    if not found.losses:
        raise InputError("the loss is not finite at the first step, at a learning rate of 1e-07")
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "suggestion": found.suggestion,
        "rates": found.rates,
        "losses": found.losses,
        "smoothed": _rounded(found.smoothed),
    }
    write_json_atomic(folder / "lr_find.json", facts)
    range_test(found.rates, found.losses, found.smoothed, found.suggestion, folder / "lr_find.png")
    if math.isnan(found.suggestion):
        print("the loss does not fall at any rate: nothing is suggested")
    else:
        print(f"suggestion: --config.optimizer.lr={found.suggestion:.2g}")
    print(f"curve: {folder}/lr_find.png", flush=True)
    return found


def _rounded(values: Sequence[float] | np.ndarray) -> list[float]:
    return [float(f"{value:.6g}") for value in values]
