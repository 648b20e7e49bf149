"""The phases of a run: what is trained from which step on."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import optax

from tlx.config import Config, duration
from tlx.errors import InputError
from tlx.tuning.optimizer import make_optimizer
from tlx.tuning.plan import TuningPlan
from tlx.tuning.regularizers import parse
from tlx.tuning.schedule import Schedule


@dataclasses.dataclass(frozen=True)
class Phase:
    """A plan, its optimizer, and the step that it begins at."""

    start: int
    plan: TuningPlan
    optimizer: optax.GradientTransformation


def make_phases(
    plans: Sequence[TuningPlan],
    config: Config,
    schedule: Schedule,
    *,
    total_steps: int,
    steps_per_epoch: float,
) -> tuple[Phase, ...]:
    """Returns those phases of the plans that begin before the run ends.

    Raises:
      InputError: only the first would, a phase would be empty, or the optimizer does not exist.
    """
    field = {"gradual": "unfreeze_every", "lpft": "head_first"}.get(config.tune.method, "")
    each = 0
    if field:
        text = getattr(config.tune, field)
        each = duration(text, steps_per_epoch=steps_per_epoch, total_steps=total_steps)
        if not 0 < each < total_steps:
            raise InputError(
                f"tune.{field}={text} is {each} steps of a run of {total_steps}: expected at least 1, and "
                "fewer than the run has"
            )
    starts = [index * each for index in range(len(plans))]
    pull = sum(one.strength for one in parse(config.tune.regularizers) if one.name == "init")
    return tuple(
        Phase(start, plan, make_optimizer(plan, config.optimizer, schedule, pull=pull))
        for start, plan in zip(starts, plans, strict=True)
        if start < total_steps
    )


def describe(phases: Sequence[Phase]) -> list[str]:
    """Returns a line for each phase after the first: what it trains beside what was trained before."""
    lines = []
    for before, phase in itertools.pairwise(phases):
        new = [path for path in phase.plan.trainable if path in set(before.plan.frozen)]
        modules = dict.fromkeys(path.split(".", 1)[0] for path in new)
        lines.append(f"from step {phase.start}: {', '.join(modules)}")
    return lines
