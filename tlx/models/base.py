"""What every model is: a fold over its stages, then pooling, then the head."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tlx.models.layers import Linear, global_average_pool
from tlx.weights.meta import WeightsMeta

Carry = Any  # what a stage maps to the next: an array, or a dict of arrays


class Model(nnx.Module):
    """Base of all models; a family's file defines the sub-modules that `stages` names.

    Attributes:
      stages: sub-module names from the stem to the last block; each maps a carry to a carry.
      num_features: the width D of `features`.
      num_classes: the width of the logits; 0: no head, calling the model returns `features`.
      meta: the facts of the weights inside, or of the architecture where they came from no file.
      dtype: the compute type, "float32" or "bfloat16"; parameters and logits stay float32.
    """

    stages: tuple[str, ...]
    num_features: int
    num_classes: int
    meta: WeightsMeta
    dtype: str = "float32"

    def __init__(self, *, num_features: int, num_classes: int, meta: WeightsMeta):
        self.num_features, self.num_classes, self.meta = num_features, num_classes, meta
        self.dtype = "float32"
        self.head = Linear(num_features, num_classes) if num_classes else None

    def __call__(self, x: jax.Array | np.ndarray) -> jax.Array:
        """Maps preprocessed [B, H, W, C] to float32 logits [B, num_classes]."""
        features = self._features(x)
        logits = features if self.head is None else self.head(features)
        return logits.astype(jnp.float32)

    def features(self, x: jax.Array | np.ndarray) -> jax.Array:
        """Maps preprocessed [B, H, W, C] to the head's input, float32 [B, num_features]."""
        return self._features(x).astype(jnp.float32)

    def run(self, carry: Carry, start: int = 0, stop: int | None = None) -> Carry:
        """Applies `stages[start:stop]` to what the stage before `start` returned."""
        for name in self.stages[start:stop]:
            carry = getattr(self, name)(carry)
        return carry

    def pool(self, carry: Carry) -> jax.Array:
        """Maps the last stage's carry to [B, num_features]."""
        return global_average_pool(carry)

    def _features(self, x: jax.Array | np.ndarray) -> jax.Array:
        return self.pool(self.run(jnp.asarray(x, self.dtype)))
