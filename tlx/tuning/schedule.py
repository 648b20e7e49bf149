"""Learning-rate schedules: step -> learning rate, with linear warmup."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from tlx.config import OptimizerConfig, duration
from tlx.errors import InputError

Schedule = Callable[[jax.Array | int], jax.Array]


def make_schedule(config: OptimizerConfig, *, total_steps: int, steps_per_epoch: float) -> Schedule:
    """Returns the schedule of the whole run.

    Warmup rises linearly and reaches the peak at the end of its last step; cosine (Loshchilov & Hutter
    2016) and linear then fall to zero over the steps that remain; step multiplies by gamma at each milestone.

    Raises:
      InputError: the warmup is longer than the run.
    """

    def steps(text: str) -> int:
        return duration(text, steps_per_epoch=steps_per_epoch, total_steps=total_steps)

    warmup = steps(config.warmup)
    if warmup > total_steps:
        raise InputError(
            f"optimizer.warmup={config.warmup} is {warmup} steps, longer than the run of {total_steps}"
        )
    milestones = [steps(text) for text in config.milestones]

    def factor(step: jax.Array) -> jax.Array:
        if config.schedule == "constant":
            return jnp.ones(())
        if config.schedule == "step":
            passed = sum((step >= milestone).astype(jnp.float32) for milestone in milestones)
            return jnp.power(config.gamma, jnp.asarray(passed, jnp.float32))
        progress = (step - warmup) / max(total_steps - warmup, 1)
        if config.schedule == "linear":
            return 1.0 - jnp.clip(progress, 0.0, 1.0)
        return 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0)))

    def schedule(step: jax.Array | int) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        rising = jnp.minimum((step + 1) / warmup, 1.0) if warmup else 1.0
        return jnp.asarray(config.lr * jnp.where(step < warmup, rising, factor(step)), jnp.float32)

    return schedule
