"""Whether a phase trains on pictures, or texts, or on what the frozen prefix makes of them, and why."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from tlx.config import CacheConfig
from tlx.models.base import Model
from tlx.models.leaves import Leaf, Values, module_of, with_values
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
    shape: tuple[int, ...]  # of what they make of one picture; of a text, or of each of its tokens
    dtype: str
    flops: float  # of a picture or text, by XLA's count
    tokens: int = (
        0  # for how many tokens of a text, on average, there is something; 0: it is for the whole
    )

    @property
    def nbytes(self) -> int:
        """Bytes for each picture or text."""
        return max(self.tokens, 1) * math.prod(self.shape) * jnp.dtype(self.dtype).itemsize


@dataclasses.dataclass(frozen=True)
class Use:
    """What a phase would use the cache for."""

    examples: int  # of training
    evaluated: int  # of validation
    passes: float  # over the training examples, of this phase
    views: int = 0  # of each that are kept; 0: itself
    obstacle: str = ""  # why every step needs its inputs; "": it does not
    tokens: int = 0  # of a text on average; 0: they are pictures


@dataclasses.dataclass(frozen=True)
class Decision:
    """From which stage on a phase runs; 0: from the inputs."""

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
    prefix = measure(model, leaves, stop, dtype, config.dtype, use.tokens)
    views = max(use.views, 1)
    nbytes = prefix.nbytes * (use.examples * views + use.evaluated)
    what = f"{describe_prefix(model, stop)}, {nbytes / 2**30:.2g} GiB"
    chosen = Decision(stop, what, prefix)
    if nbytes > 2**30 * max(config.memory_gb, config.disk_gb):
        return Decision(0, f"{what}: more than cache.memory_gb and cache.disk_gb")
    if config.use == "on":
        return chosen
    if use.passes <= views:
        return Decision(0, f"{use.passes:.2g} passes over the data do not repay {views}")
    if prefix.flops < OPERATIONS_A_BYTE * prefix.nbytes:
        return Decision(
            0,
            f"{describe_prefix(model, stop)} would be {prefix.nbytes:,} bytes for each {_example(model, use.tokens)}, and "
            f"save {prefix.flops / 1e6:.3g} million operations",
        )
    whole = measure(model, leaves, len(model.stages) + 1, dtype, config.dtype, use.tokens).flops
    rest = whole - prefix.flops
    saved = prefix.flops * (1 - views / use.passes) / (prefix.flops + 3 * rest)
    if saved < SMALLEST_SAVING:
        return Decision(0, f"{describe_prefix(model, stop)} is {100 * saved:.1f} % of the work")
    return dataclasses.replace(chosen, reason=f"{what}, saves {100 * saved:.0f} % of the work")


def constant_stages(model: Model, plan: TuningPlan) -> int:
    """Returns how many first stages, as `Model.prefix` counts them, make the same of a picture in every step."""
    trained = {module_of(path) for path in plan.trainable}
    branches = [position for name, position, _ in model.auxiliary if name in trained]
    stages = len(model.stages)
    stop = min([plan.first_trained_stage, *branches])
    return stages + 1 if stop == stages else stop


def describe_prefix(model: Model, stop: int) -> str:
    """Returns "stem to layer3"."""
    if stop > len(model.stages):
        return "the features of all tokens" if model.meta.per_token else "the pooled features"
    first, last = model.stages[0], model.stages[stop - 1]
    return f"the output of {first}" + (f" to {last}" if stop > 1 else "")


def measure(
    model: Model, leaves: dict[str, Leaf], stop: int, dtype: str, stored: str, tokens: int = 0
) -> Prefix:
    """Returns the prefix of `stop` stages.

    Args:
      model: abstract.
      leaves: the model's.
      stop: as `Model.prefix` takes it.
      dtype: the compute type.
      stored: the type that it is kept in, auto: as it is computed.
      tokens: of a text; 0: it is for a picture.
    """
    forward = inference_model(model, dtype)
    values = {path: jax.ShapeDtypeStruct(leaf.shape, jnp.float32) for path, leaf in leaves.items()}
    inputs: Any
    if tokens:
        ids = jax.ShapeDtypeStruct((1, tokens), jnp.int32)
        inputs = {"input_ids": ids, "attention_mask": ids}
    else:
        preprocess = model.meta.image
        side = (1, preprocess.size, preprocess.size, preprocess.channels)
        inputs = jax.ShapeDtypeStruct(side, jnp.float32)

    def run(values: Values, inputs: Any) -> Any:
        return with_values(forward, values).prefix(inputs, stop)

    out, flops = shapes_and_operations(run, values, inputs)
    hidden = out["hidden"] if isinstance(out, dict) else out
    each = tokens if tokens and hidden.ndim == 3 else 0
    kept = str(hidden.dtype) if stored == "auto" else stored
    return Prefix(stop, tuple(hidden.shape[2 if each else 1 :]), kept, flops, each)


def _example(model: Model, tokens: int) -> str:
    if tokens:
        return f"text of {tokens} tokens"
    size = model.meta.image.size
    return f"picture of {size}x{size}"
