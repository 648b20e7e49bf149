"""The phases of a run: what is trained from which step on."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import optax

from tlx.config import OWN_STEPS, Config, duration
from tlx.errors import InputError
from tlx.models.leaves import module_of
from tlx.tuning.average import Average
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
    average: Average | None,
    *,
    total_steps: int,
    steps_per_epoch: float,
) -> tuple[Phase, ...]:
    """Returns those phases of the plans that begin before the run ends.

    Raises:
      InputError: only the first would, a phase would be empty, the optimizer does not exist, or no group has that which
        `optimizer.options` are for.
    """

    def steps(text: str) -> int:
        return duration(text, steps_per_epoch=steps_per_epoch, total_steps=total_steps)

    field = {"gradual": "unfreeze_every", "lpft": "head_first"}.get(config.tune.method, "")
    each = 0
    if field:
        text = getattr(config.tune, field)
        each = steps(text)
        if not 0 < each < total_steps:
            raise InputError(
                f"tune.{field}={text} is {each} steps of a run of {total_steps}: expected at least 1, and "
                "fewer than the run has"
            )
    names = {
        group.optimizer or config.optimizer.name for plan in plans for group in plan.groups.values()
    }
    if config.optimizer.options and config.optimizer.name not in names:
        raise InputError(
            f"optimizer.options={config.optimizer.options} are for {config.optimizer.name}, and tune.groups gives every group "
            f"another optimizer ({', '.join(sorted(names))}): set GROUP.options there"
        )
    counting = names & set(OWN_STEPS)
    if len(plans) > 1 and counting:
        raise InputError(
            f"tune.method={config.tune.method}: {', '.join(sorted(counting))} would begin the schedule again for what joins "
            "later; use another optimizer"
        )
    starts = [index * each for index in range(len(plans))]
    pull = pull_of(config)
    return tuple(
        Phase(start, plan, make_optimizer(plan, config.optimizer, schedule, average, pull=pull))
        for start, plan in zip(starts, plans, strict=True)
        if start < total_steps
    )


def pull_of(config: Config) -> float:
    """Returns the strength of decay to the initial values. Raises as `tlx.tuning.regularizers.parse`."""
    return sum(one.strength for one in parse(config.tune.regularizers) if one.name == "init")


def describe(phases: Sequence[Phase], plans: Sequence[TuningPlan] = ()) -> list[str]:
    """Returns a line for each phase after the first: what it trains beside what was trained before.

    And one for what the method's plans would train after the end of the run.
    """
    lines = [
        f"from step {phase.start}: {_joining(before.plan, phase.plan)}"
        for before, phase in itertools.pairwise(phases)
    ]
    if len(plans) > len(phases):
        lines.append(
            f"the run ends before these are trained: {_joining(phases[-1].plan, plans[-1])}"
        )
    return lines


def _joining(before: TuningPlan, after: TuningPlan) -> str:
    frozen = set(before.frozen)
    new = [path for path in after.trainable if path in frozen]
    return ", ".join(dict.fromkeys(module_of(path) for path in new))
