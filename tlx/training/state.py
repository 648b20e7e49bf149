"""What a training step reads and writes, split by what the plan says can change."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import NamedSharding

from tlx.models.leaves import Values
from tlx.tuning.optimizer import evaluation_values
from tlx.tuning.plan import TuningPlan


class TrainState(NamedTuple):
    """Everything that changes from step to step; donated to the step."""

    trainable: Values
    statistics: Values  # running statistics that move
    optimizer: Any


def create_state(
    values: Values,
    plan: TuningPlan,
    optimizer: optax.GradientTransformation,
    sharding: NamedSharding,
) -> tuple[TrainState, Values]:
    """Returns the state, and the frozen values that the step reads but never writes."""
    trainable = {path: values[path] for path in plan.trainable}
    statistics = {path: values[path] for path in plan.statistics}
    frozen = {path: values[path] for path in plan.frozen}
    state = jax.jit(optimizer.init, out_shardings=sharding)(trainable)
    return TrainState(trainable, statistics, state), frozen


def all_values(state: TrainState, frozen: Values) -> Values:
    """Returns every value of the model, as training goes on from it."""
    return {**frozen, **state.statistics, **state.trainable}


def inference_values(state: TrainState, frozen: Values) -> Values:
    """Returns every value of the model, as evaluation and inference use it."""
    return evaluation_values(state.optimizer, all_values(state, frozen))
