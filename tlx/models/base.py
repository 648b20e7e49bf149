"""What every model is: a fold over its stages, then pooling, then the head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tlx.errors import InputError
from tlx.models.layers import Linear, dropout, global_average_pool, subkeys
from tlx.weights.keymap import Origin
from tlx.weights.meta import WeightsMeta

Carry = Any  # what a stage maps to the next: an array, or a dict of arrays


class Rates(NamedTuple):
    """Probabilities of what training leaves out at random; below 0: the architecture's own."""

    dropout: float = -1.0  # of features before the classifier
    drop_path: float = -1.0  # of residual branches of the last block (Huang et al. 2016)

    def or_own(self, dropout: float, drop_path: float = 0.0) -> Rates:
        """Returns the rates with the architecture's own where none is given."""
        return Rates(
            dropout if self.dropout < 0 else self.dropout,
            drop_path if self.drop_path < 0 else self.drop_path,
        )

    def dropout_only(self, name: str, dropout: float) -> float:
        """Returns the rate of dropout, of an architecture without residual branches.

        Raises:
          InputError: a rate of stochastic depth is asked for.
        """
        if self.drop_path > 0:
            raise InputError(
                f"{name} has no residual branches, so that drop_path={self.drop_path} drops nothing: leave it out"
            )
        return self.or_own(dropout).dropout


class Model(nnx.Module):
    """Base of all models; a family's file defines the sub-modules that `stages` names.

    Every stage is called as `stage(carry, key)`; `key` is None where nothing is random.

    Attributes:
      stages: sub-module names from the stem to the last block; each maps a carry to a carry.
      num_features: the width D of `features`.
      num_classes: the width of the logits; 0: no head, calling the model returns `features`.
      meta: the facts of the weights inside, or of the architecture where they came from no file.
      origin: what else the file had that the weights came from; None where they came from none.
      input_kernel: the path of the kernel that reads the input's channels.
      classifiers: modules whose last axis is the number of classes.
      auxiliary: modules that give a further loss in training, with the number of stages before
        the point where each branches off and the weight of its loss.
      unused: modules that weights files may have and this network does without.
      dropout: rate before the classifier in training.
      random_stages: the stages that may drop anything in training (a frozen one must not).
      watch: called with the name and the output of each stage that `run` has applied; None: not called.
      remat: whether a stage's insides are computed again in the backward pass, in place of being kept (Chen et al. 2016, arXiv:1604.06174).
      start: how many stages the input has been through already, by `prefix`; more than there are: pooling too.
      dtype: the compute type, "float32" or "bfloat16"; parameters and logits stay float32.
    """

    stages: tuple[str, ...]
    num_features: int
    num_classes: int
    meta: WeightsMeta
    origin: Origin | None = None
    input_kernel: str = "stem.conv.kernel"
    classifiers: tuple[str, ...] = ("head",)
    auxiliary: tuple[tuple[str, int, float], ...] = ()
    unused: tuple[str, ...] = ()
    dropout: float = 0.0
    random_stages: tuple[str, ...] | None = None
    watch: Callable[[str, Carry], None] | None = None
    remat: bool = False
    start: int = 0
    dtype: str = "float32"

    def __init__(
        self, *, num_features: int, num_classes: int, meta: WeightsMeta, dropout: float = 0.0
    ):
        self.num_features, self.num_classes, self.meta = num_features, num_classes, meta
        self.dropout = dropout
        self.dtype = "float32"
        self.head = self.make_head() if num_classes else None

    @property
    def auxiliary_modules(self) -> tuple[str, ...]:
        """The names of `auxiliary`."""
        return tuple(name for name, _, _ in self.auxiliary)

    def make_head(self) -> nnx.Module:
        """Returns the classifier, which maps [B, num_features] to [B, num_classes]."""
        return Linear(self.num_features, self.num_classes)

    def __call__(self, x: jax.Array | np.ndarray, key: jax.Array | None = None) -> jax.Array:
        """Maps preprocessed pictures [B, H, W, C] to float32 logits [B, num_classes].

        Of a text encoder inputs are a dict of [B, T] (see `TextEncoder`), with `meta.per_token` the logits [B, T, num_classes].

        Args:
          x: the inputs; with `start`, what `prefix` made of them.
          key: of what training drops at random; None: nothing is dropped.
        """
        return self._classify(self._pooled(x, key), key)

    def training_outputs(
        self, x: jax.Array, key: jax.Array | None
    ) -> tuple[jax.Array, tuple[tuple[jax.Array, float], ...]]:
        """Returns the logits, and for each further loss of training its logits and its weight."""
        return self(x, key), ()

    def features(self, x: jax.Array | np.ndarray) -> jax.Array:
        """Maps preprocessed [B, H, W, C] to the head's input, float32 [B, num_features]."""
        return self._pooled(x, None).astype(jnp.float32)

    def prefix(self, x: jax.Array | np.ndarray, stop: int) -> Carry:
        """Maps preprocessed [B, H, W, C] to what a model whose `start` is `stop` takes for it."""
        carry = self.run(self.as_input(x), stop=stop)
        return self.pool(carry) if stop > len(self.stages) else carry

    def enter(self, x: Any) -> Carry:
        """Returns the carry that the first stage to be applied reads, in the compute type."""
        return self.as_input(x) if self.start == 0 else jnp.asarray(x, self.dtype)

    def run(
        self, carry: Carry, start: int = 0, stop: int | None = None, key: jax.Array | None = None
    ) -> Carry:
        """Applies `stages[start:stop]` to what the stage before `start` returned.

        Raises:
          InputError: the pictures are so small that a stage leaves nothing of them.
        """
        keys = subkeys(key, len(self.stages))
        for name, stage_key in list(zip(self.stages, keys, strict=True))[start:stop]:
            random = self.random_stages is None or name in self.random_stages
            stage, own_key = getattr(self, name), stage_key if random else None
            carry = _rematerialized(stage, carry, own_key) if self.remat else stage(carry, own_key)
            if getattr(carry, "ndim", 0) == 4 and 0 in carry.shape[1:3]:
                raise InputError(
                    f"the pictures are too small for {self.meta.architecture}: no pixel is left of them after "
                    f"{name}; make them larger (image_size), or use the small stem where there is one (stem=small)"
                )
            if self.watch is not None:
                self.watch(name, carry)
        return carry

    def pool(self, carry: Carry) -> jax.Array:
        """Maps the last stage's carry to [B, num_features]."""
        return global_average_pool(carry)

    def fit_value(self, path: str, array: np.ndarray, shape: Sequence[int]) -> np.ndarray | None:
        """Returns a file's array made to fit a shape that follows from the input size.

        None where that makes no sense: the shape of `array` is then an error.
        """
        return None

    def as_input(self, x: jax.Array | np.ndarray) -> jax.Array:
        """Returns pictures [B, H, W, C] in the compute type.

        Raises:
          InputError: they have another shape, or not the network's number of channels.
        """
        channels = self.meta.image.channels
        if np.ndim(x) != 4 or np.shape(x)[-1] != channels:
            raise InputError(
                f"{self.meta.architecture} takes pictures [B, H, W, {channels}], not {list(np.shape(x))}"
            )
        return jnp.asarray(x, self.dtype)

    def _pooled(self, x: jax.Array | np.ndarray, key: jax.Array | None) -> jax.Array:
        carry = self.enter(x)
        if self.start > len(self.stages):
            return carry
        return self.pool(self.run(carry, self.start, key=key))

    def _classify(self, features: jax.Array, key: jax.Array | None) -> jax.Array:
        if self.head is None:
            return features.astype(jnp.float32)
        if key is not None:
            features = dropout(features, self.dropout, jax.random.fold_in(key, len(self.stages)))
        return self.head(features).astype(jnp.float32)


def _rematerialized(stage: Any, carry: Carry, key: jax.Array | None) -> Carry:
    """Returns what the stage makes of the carry, of which alone the backward pass is told."""
    graphdef, statistics, rest = nnx.split(stage, nnx.BatchStat, ...)

    def run(statistics: Any, rest: Any, carry: Carry, key: Any) -> tuple[Carry, Any]:
        module = nnx.merge(graphdef, statistics, rest)
        return module(carry, key), nnx.state(module, nnx.BatchStat)

    carry, moved = jax.checkpoint(run)(statistics, rest, carry, key)
    nnx.update(stage, moved)
    return carry
