"""The jitted steps of a setup."""

from __future__ import annotations

from tlx.data import pipeline
from tlx.setup import Setup, Tuning
from tlx.training.statistics import Estimator
from tlx.training.step import (
    StatisticsStep,
    StepFunction,
    TrainStep,
    make_statistics_step,
    make_step_function,
    make_train_step,
)
from tlx.tuning.phases import Phase
from tlx.tuning.plan import TuningPlan


def train_step(
    setup: Setup, tuning: Tuning, phase: Phase, drawn: frozenset[str] = frozenset()
) -> TrainStep:
    """Returns the jitted training step of one phase, on pictures or texts; arguments as for `step_function`."""
    return make_train_step(step_function(setup, tuning, phase, drawn), setup.mesh)


def step_function(
    setup: Setup,
    tuning: Tuning,
    phase: Phase,
    drawn: frozenset[str] = frozenset(),
    start: int = 0,
) -> StepFunction:
    """Returns the training step of one phase.

    Args:
      setup, tuning: of the run.
      phase: one of `tuning`'s.
      drawn: the values that came from no weights file.
      start: the stages that inputs have been through.
    """
    config = setup.config
    return make_step_function(
        setup.model,
        setup.task,
        phase.plan,
        phase.optimizer,
        setup.augmentation,
        dtype=setup.dtype,
        loss_options=tuning.loss_options,
        mixing=tuning.mixing,
        parts=config.train.accumulate,
        regularizers=tuning.regularizers,
        drawn=drawn,
        start=start,
        seed=config.seed,
        remat=config.model.remat,
    )


def statistics_step(setup: Setup, tuning: Tuning, plan: TuningPlan) -> StatisticsStep:
    """Returns the jitted step that estimates the statistics which move in that plan."""
    config = setup.config
    return make_statistics_step(
        setup.model,
        plan,
        setup.augmentation,
        setup.mesh,
        dtype=setup.dtype,
        seed=config.seed,
        mixing=tuning.mixing,
        parts=config.train.accumulate,
    )


def estimator(setup: Setup, tuning: Tuning, split: pipeline.Rows) -> Estimator | None:
    """Returns what estimates the statistics of the average; None where none are estimated."""
    if tuning.estimated_after is None:
        return None
    plans = [phase.plan for phase in tuning.phases]
    return Estimator(
        tuning.estimated_after,
        plans,
        [statistics_step(setup, tuning, plan) for plan in plans],
        split=split,
        seed=setup.config.seed,
        batch_size=setup.config.train.batch_size,
        mesh=setup.mesh,
    )
