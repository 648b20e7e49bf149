"""The numbers of the experiments on text, for tlx and for the reference alike.

SST-2 is the first 20,000 rows of its training file, the same for every seed. Examples are drawn in the order of `tlx.data.order`, so
that a seed gives both sides the same batches. A batch is padded to the longest of its sequences, or to the smallest bucket that holds it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

METHODS = ("full", "head", "lora")
PADDINGS = ("buckets", "longest")
LORA_RANK, LORA_ALPHA, LORA_TARGETS = 8, 16, ("query", "value")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """AdamW with a linear warmup and a linear decay to zero; dropout is that of the weights' config.json."""

    lr: Mapping[str, float]  # by method
    epochs: Mapping[str, int]  # by method
    batch: int
    max_length: int  # tokens, with those that the tokenizer adds
    buckets: tuple[int, ...]
    examples: int = 0  # the first of the training file; 0: all
    weight_decay: float = 0.01  # not of biases and of LayerNorm
    warmup: float = 0.1  # of the steps
    clip: float = 1.0  # norm of the gradient

    def steps(self, method: str, count: int) -> int:
        """Returns the steps of a training on so many examples; batches go on from one epoch into the next."""
        return -(-self.epochs[method] * count // self.batch)

    def padded(self, longest: int, padding: str) -> int:
        """Returns the length of a batch whose longest sequence has so many tokens."""
        if padding == "longest":
            return longest
        return next(bucket for bucket in self.buckets if bucket >= longest)


RECIPES = {
    "sst2": Recipe(
        lr={"full": 1e-4, "head": 3e-2, "lora": 1e-3},
        epochs={"full": 1, "head": 10, "lora": 1},
        batch=32,
        max_length=64,
        buckets=(16, 32, 48, 64),
        examples=20_000,
    ),
    # No sentence of WNUT-17 is longer than its last bucket; those of training need the first five.
    "wnut17": Recipe(
        lr={"full": 1e-4, "head": 1e-2, "lora": 2e-3},
        epochs={"full": 5, "head": 20, "lora": 5},
        batch=16,
        max_length=192,
        buckets=(16, 32, 48, 64, 96, 128, 192),
    ),
}
