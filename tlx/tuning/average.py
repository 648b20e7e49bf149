"""Averages of the trained values over steps, kept beside the optimizer's state and used for evaluation and inference."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from tlx.errors import InputError
from tlx.models.leaves import Values


class AverageState(NamedTuple):
    """The average so far, and how many steps there were."""

    count: jax.Array
    average: Values
    statistics: Values | None  # of the running statistics that move; None: they are not averaged


@dataclasses.dataclass(frozen=True)
class Average:
    """How the values of a step enter the average, and its running statistics: averaged alike, or estimated."""

    share: Callable[[jax.Array], jax.Array]  # step, from 0 -> the share of the new values
    estimated_after: int | None = (
        None  # steps; from then on statistics are estimated; None: they are averaged
    )


def parse_average(text: str, steps: Callable[[str], int]) -> Average | None:
    """Reads `optimizer.average`; None where there is none.

    ema:DECAY is the exponential moving average, its decay at most (1 + t) / (10 + t) at step t, so that the first values
    do not count for long (as in TensorFlow). swa:START is the mean of the values after every step from START, a
    duration, on (stochastic weight averaging: Izmailov et al. 2018, arXiv:1803.05407, with an average at each step).

    The running statistics of training are those of its last values, which an average trails by many steps. ema averages them
    with the same decay, as the moving averages of TensorFlow's models and timm do. For a mean over many steps they are
    estimated again (section 3.2; `tlx.training.statistics`).

    Args:
      text: of the config.
      steps: returns a duration in steps.

    Raises:
      InputError: another name, or a decay that is not between 0 and 1.
    """
    name, _, value = text.partition(":")
    if not text:
        return None
    if name == "ema":
        try:
            decay = float(value)
        except ValueError:
            decay = -1.0
        if 0.0 < decay < 1.0:
            return Average(lambda step: 1.0 - jnp.minimum(decay, (1.0 + step) / (10.0 + step)))
    if name == "swa" and value:
        start = steps(value)

        def share(step: jax.Array) -> jax.Array:
            return jnp.where(step < start, 1.0, 1.0 / (1.0 + jnp.maximum(step - start, 0)))

        return Average(share, estimated_after=start)
    raise InputError(
        f"optimizer.average is {text!r}, expected ema:DECAY with 0 < DECAY < 1, or swa:START, a duration as 75%"
    )


def averaged(average: Average) -> optax.GradientTransformationExtraArgs:
    """Returns the last transformation of a chain: it changes no update, and keeps the average of the values.

    Where statistics are averaged too, `with_statistics` gives its state the first, and its update takes those after the
    step as the argument `statistics`.
    """
    averages = average.estimated_after is None

    def init(params: Values) -> AverageState:
        zero = jnp.zeros((), jnp.int32)
        return AverageState(zero, jax.tree.map(jnp.copy, params), {} if averages else None)

    def update(
        updates: Values,
        state: AverageState,
        params: Values | None = None,
        *,
        statistics: Values | None = None,
        **further: Any,
    ) -> tuple[Values, AverageState]:
        del further
        share = average.share(state.count.astype(jnp.float32))

        def moved(old: Values, new: Values) -> Values:
            return jax.tree.map(lambda old, now: old + share * (now - old), old, new)

        trained = moved(state.average, optax.apply_updates(params, updates))
        others = moved(state.statistics, statistics or {}) if state.statistics is not None else None
        return updates, AverageState(state.count + 1, trained, others)

    return optax.GradientTransformationExtraArgs(init, update)


def with_statistics(state: Any, statistics: Values) -> Any:
    """Returns an optimizer's fresh state with these running statistics in its average, where they are averaged."""

    def filled(node: Any) -> Any:
        if not _averages_statistics(node):
            return node
        return node._replace(statistics=jax.tree.map(jnp.copy, statistics))

    return jax.tree.map(filled, state, is_leaf=_averages_statistics)


def averages_statistics(state: Any) -> bool:
    """Returns whether the optimizer's update needs the running statistics."""
    return any(map(_averages_statistics, jax.tree.leaves(state, is_leaf=_averages_statistics)))


def _averages_statistics(node: Any) -> bool:
    return isinstance(node, AverageState) and node.statistics is not None
