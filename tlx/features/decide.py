"""Whether a phase trains on pictures or on what the frozen prefix makes of them, and why."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from tlx.config import CacheConfig
from tlx.models.base import Model
from tlx.models.leaves import Leaf, Values, with_values
from tlx.training.compilation import shapes_and_operations
from tlx.training.step import inference_model
from tlx.tuning.plan import TuningPlan

# Work that must be saved for each byte that is kept and read again instead: a slow disk gives 10^8 bytes a second, and a slow CPU
# does 10^10 operations.
OPERATIONS_A_BYTE = 100
SMALLEST_SAVING = 0.05  # of the operations of the whole run


@dataclasses.dataclass(frozen=True)
class Prefix:
    """A network's first stages."""

    stop: int  # as `Model.prefix` takes it
    shape: tuple[int, ...]  # of what they make of one picture
    dtype: str
    flops: float  # of a picture, by XLA's count

    @property
    def nbytes(self) -> int:
        """Bytes for each picture."""
        return math.prod(self.shape) * jnp.dtype(self.dtype).itemsize


@dataclasses.dataclass(frozen=True)
class Use:
    """What a phase would use the cache for."""

    pictures: int  # of training
    evaluated: int  # of validation
    passes: float  # over the training pictures, of this phase
    views: int = 0  # of each that are kept; 0: itself
    obstacle: str = ""  # why every step needs its pictures; "": it does not


@dataclasses.dataclass(frozen=True)
class Decision:
    """From which stage on a phase runs; 0: from the pictures."""

    start: int
    reason: str
    prefix: Prefix | None = None


def decide(
    model: Model,
    leaves: dict[str, Leaf],
    plan: TuningPlan,
    config: CacheConfig,
    use: Use,
    *,
    dtype: str,
    last_stage_runs: bool = False,
) -> Decision:
    """Decides for one phase.

    Args:
      model: abstract.
      leaves: the model's.
      plan: of the phase.
      config: `use` off never caches, on always where it can, auto where it pays.
      use: what for.
      dtype: the compute type.
      last_stage_runs: whether a regularizer reads the output of the last stage.
    """
    if config.use == "off":
        return Decision(0, "cache.use=off")
    stop = constant_stages(model, plan)
    if last_stage_runs:
        stop = min(stop, len(model.stages) - 1)
    obstacle = use.obstacle or ("" if stop else f"{model.stages[0]} is trained")
    if obstacle:
        return Decision(0, obstacle)
    prefix = measure(model, leaves, stop, dtype, config.dtype)
    views = max(use.views, 1)
    nbytes = prefix.nbytes * (use.pictures * views + use.evaluated)
    what = f"{describe_prefix(model, stop)}, {nbytes / 2**30:.2g} GiB"
    chosen = Decision(stop, what, prefix)
    if nbytes > 2**30 * max(config.memory_gb, config.disk_gb):
        return Decision(0, f"{what}: more than cache.memory_gb and cache.disk_gb")
    if config.use == "on":
        return chosen
    if use.passes <= views:
        return Decision(0, f"{use.passes:.2g} passes over the data do not repay {views}")
    if prefix.flops < OPERATIONS_A_BYTE * prefix.nbytes:
        size = model.meta.preprocess.size
        return Decision(
            0,
            f"{describe_prefix(model, stop)} would be {prefix.nbytes:,} bytes for each picture of {size}x{size}, and "
            f"save {prefix.flops / 1e6:.3g} million operations",
        )
    whole = measure(model, leaves, len(model.stages) + 1, dtype, config.dtype).flops
    rest = whole - prefix.flops
    saved = prefix.flops * (1 - views / use.passes) / (prefix.flops + 3 * rest)
    if saved < SMALLEST_SAVING:
        return Decision(0, f"{describe_prefix(model, stop)} is {100 * saved:.1f} % of the work")
    return dataclasses.replace(chosen, reason=f"{what}, saves {100 * saved:.0f} % of the work")


def constant_stages(model: Model, plan: TuningPlan) -> int:
    """Returns how many first stages, as `Model.prefix` counts them, make the same of a picture in every step."""
    trained = {path.split(".", 1)[0] for path in plan.trainable}
    branches = [position for name, position, _ in model.auxiliary if name in trained]
    stages = len(model.stages)
    stop = min([plan.first_trained_stage, *branches])
    return stages + 1 if stop == stages else stop


def describe_prefix(model: Model, stop: int) -> str:
    """Returns "stem to layer3"."""
    if stop > len(model.stages):
        return "the pooled features"
    first, last = model.stages[0], model.stages[stop - 1]
    return f"the output of {first}" + (f" to {last}" if stop > 1 else "")


def measure(model: Model, leaves: dict[str, Leaf], stop: int, dtype: str, stored: str) -> Prefix:
    """Returns the prefix of `stop` stages; `stored` is the type that it is kept in, auto: as it is computed."""
    forward = inference_model(model, dtype)
    values = {path: jax.ShapeDtypeStruct(leaf.shape, jnp.float32) for path, leaf in leaves.items()}
    preprocess = model.meta.preprocess
    size = preprocess.size
    picture = jax.ShapeDtypeStruct((1, size, size, preprocess.channels), jnp.float32)

    def run(values: Values, picture: jax.Array) -> jax.Array:
        return with_values(forward, values).prefix(picture, stop)

    out, flops = shapes_and_operations(run, values, picture)
    kept = str(out.dtype) if stored == "auto" else stored
    return Prefix(stop, tuple(out.shape[1:]), kept, flops)
