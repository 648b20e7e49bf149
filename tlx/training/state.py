"""What a training step reads and writes, split by what the plan says can change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding

from tlx.models.leaves import Values
from tlx.tuning.average import with_statistics
from tlx.tuning.optimizer import evaluation_values
from tlx.tuning.phases import Phase
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
    initial = jax.jit(initial_optimizer(optimizer), out_shardings=sharding)
    return TrainState(trainable, statistics, initial(trainable, statistics)), frozen


def initial_optimizer(optimizer: optax.GradientTransformation) -> Callable[[Values, Values], Any]:
    """Returns `(trainable, statistics) -> the optimizer's state` before the first step."""
    return lambda trainable, statistics: with_statistics(optimizer.init(trainable), statistics)


def advance(
    state: TrainState, frozen: Values, phase: Phase, step: int, sharding: NamedSharding
) -> tuple[TrainState, Values]:
    """Returns the state and the frozen values of the next phase, which begins at `step`.

    What was trained before keeps its values and its optimizer's state. What is new to the optimizer starts
    without momentum, at the learning rate that the schedule has reached.
    """
    values = all_values(state, frozen)
    # The step may write into what it is given to change; frozen values can be views of a file, or a regularizer's.
    changing = (*phase.plan.trainable, *phase.plan.statistics)
    values |= {path: frozen[path].copy() for path in changing if path in frozen}
    fresh, frozen = create_state(values, phase.plan, phase.optimizer, sharding)
    optimizer = _carried_over(state.optimizer, fresh.optimizer, step)
    return fresh._replace(optimizer=jax.device_put(optimizer, sharding)), frozen


def _carried_over(old: Any, new: Any, step: int) -> Any:
    """Returns the new optimizer state with the leaves that the old one has in the same places."""

    def is_schedule(node: Any) -> bool:  # optax has one for rates, and one for decays
        return "count" in getattr(node, "_fields", ()) and "Schedule" in type(node).__name__

    known = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(old)}

    def fitting(path: Any, node: Any) -> Any:
        if is_schedule(node):
            return node._replace(count=np.asarray(step, node.count.dtype))
        before = known.get(jax.tree_util.keystr(path))
        return node if before is None or before.shape != node.shape else before

    return jax.tree.map_with_path(fitting, new, is_leaf=is_schedule)


def all_values(state: TrainState, frozen: Values) -> Values:
    """Returns every value of the model, as training goes on from it."""
    return {**frozen, **state.statistics, **state.trainable}


def inference_values(state: TrainState, frozen: Values) -> Values:
    """Returns every value of the model, as evaluation and inference use it."""
    return evaluation_values(state.optimizer, all_values(state, frozen))
