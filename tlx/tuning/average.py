"""Averages of the trained values over steps, kept beside the optimizer's state and used for evaluation and inference."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from tlx.errors import InputError
from tlx.models.leaves import Values


class AverageState(NamedTuple):
    """The average so far, and how many steps there were."""

    count: jax.Array
    average: Values


@dataclasses.dataclass(frozen=True)
class Average:
    """How the values of a step enter the average, and whether training's running statistics are those of the average."""

    share: Callable[[jax.Array], jax.Array]  # step, from 0 -> the share of the new values
    estimated_after: int | None = None  # steps; from then on the average's statistics are estimated


def parse_average(text: str, steps: Callable[[str], int]) -> Average | None:
    """Reads `optimizer.average`; None where there is none.

    ema:DECAY is the exponential moving average, its decay at most (1 + t) / (10 + t) at step t, so that the first values
    do not count for long (as in TensorFlow). swa:START is the mean of the values after every step from START, a
    duration, on (stochastic weight averaging: Izmailov et al. 2018, arXiv:1803.05407, with an average at each step).

    The running statistics of training trail the last values, as an exponential average does, and stand beside one as they
    are. Of a mean over many steps they are not: they are estimated again (section 3.2; `tlx.training.statistics`).

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


def averaged(average: Average) -> optax.GradientTransformation:
    """Returns the last transformation of a chain: it changes no update, and keeps the average of the values."""

    def init(params: Values) -> AverageState:
        return AverageState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params))

    def update(
        updates: Values, state: AverageState, params: Values | None = None
    ) -> tuple[Values, AverageState]:
        new = optax.apply_updates(params, updates)
        share = average.share(state.count.astype(jnp.float32))
        moved = jax.tree.map(lambda old, now: old + share * (now - old), state.average, new)
        return updates, AverageState(state.count + 1, moved)

    return optax.GradientTransformation(init, update)
