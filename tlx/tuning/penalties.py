"""The values of the regularizers that `tlx.tuning.regularizers` describes, inside the training step."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import jax
import jax.numpy as jnp

from tlx.models.base import Carry, Model
from tlx.models.layers import global_average_pool
from tlx.models.leaves import Values, module_of, with_values
from tlx.tuning.plan import TuningPlan
from tlx.tuning.regularizers import FROM_SOURCE, Regularizer


@dataclasses.dataclass(frozen=True)
class Penalties:
    """What the regularizers of a run say in the training step of one phase."""

    regularizers: tuple[Regularizer, ...]
    plan: TuningPlan
    source_model: Model | None  # abstract, in inference mode; needed where `need_outputs`
    drawn: frozenset[str] = frozenset()

    @property
    def need_source(self) -> bool:
        """Whether the step has the source's values as an argument."""
        return any(one.name in FROM_SOURCE for one in self.regularizers)

    def watch(self, network: Model) -> dict[str, Carry]:
        """Returns a dict that the outputs of the network's stages are put into, by stage, when it is called."""
        carries: dict[str, Carry] = {}
        if self.regularizers:
            network.watch = carries.__setitem__
        return carries

    def __call__(
        self,
        network: Model,
        carries: Mapping[str, Carry],
        images: jax.Array,
        trainable: Values,
        fixed: Values,
        source: Values,
    ) -> tuple[jax.Array | float, Values]:
        """Returns what is added to the loss, and each regularizer's part by its name.

        Args:
          network: that was called on the images.
          carries: what `watch` gave, filled.
          images: [B, H, W, C], preprocessed, or texts as a dict of [B, T].
          trainable: the parameters that are differentiated.
          fixed: the network's other values.
          source: `Reference.values`.
        """
        found: Values = {}
        for one in self.regularizers:
            if one.name == "l2sp":
                found["l2sp"] = l2sp(trainable, source, self.drawn, one.strength, one.head)
            elif one.name == "init":  # not in the loss: see `pull_to_source`
                found["init"] = l2sp(
                    jax.lax.stop_gradient(trainable), source, frozenset(), one.strength
                )
            elif one.name == "delta":
                values = {**jax.lax.stop_gradient(trainable), **fixed, **source}
                found["delta"] = one.strength * self._distance(network, carries, images, values)
            else:
                features = network.pool(carries[network.stages[-1]])
                if features.ndim == 4:  # of SqueezeNet, which pools behind its classifier
                    features = global_average_pool(features)
                found["bss"] = one.strength * smallest_singular_values(features, one.count)
        added = [part for name, part in found.items() if name != "init"]
        return sum(added), found

    def _distance(
        self, network: Model, carries: Mapping[str, Carry], images: jax.Array, values: Values
    ) -> jax.Array:
        """Returns the sum over the trained stages; what is before them is that of the network itself."""
        model = self.source_model
        assert model is not None  # `need_outputs`
        stages, first = model.stages, self.plan.first_trained_stage
        trained = {module_of(path) for path in self.plan.trainable} & set(stages)
        if not trained:
            return jnp.zeros(())
        source_network = with_values(model, values)
        begun = first == network.start  # with what those stages made of the images
        carry = network.enter(images) if begun else carries[stages[first - 1]]
        carry, total = jax.lax.stop_gradient(carry), jnp.zeros(())
        last = max((stages.index(name) for name in trained), default=-1)
        for place in range(first, last + 1):
            carry = source_network.run(carry, place, place + 1)
            if stages[place] in trained:
                total += distance(carries[stages[place]], carry)
        return total


def need_outputs(regularizers: Sequence[Regularizer]) -> bool:
    """Returns whether the source network is called on the step's images."""
    return any(one.name == "delta" for one in regularizers)


def l2sp(
    values: Values, source: Values, drawn: Collection[str], alpha: float, beta: float = 0.0
) -> jax.Array:
    """Returns alpha / 2 * |values - source|^2, plus beta / 2 * |values|^2 over those without a source.

    Args:
      values: path -> trained value.
      source: path -> what it is pulled to; may hold more.
      drawn: paths that count as without a source, whatever `source` holds.
      alpha, beta: the strengths.
    """
    own = {path for path in values if path in source and path not in drawn}
    near = [jnp.sum(jnp.square(v - source[path])) for path, v in values.items() if path in own]
    small = [jnp.sum(jnp.square(v)) for path, v in values.items() if path not in own]
    return jnp.asarray(alpha / 2 * sum(near) + (beta / 2 * sum(small) if beta else 0.0))


def distance(carry: Carry, source: Carry) -> jax.Array:
    """Returns the squared distance of two outputs of a stage, [B, ..., C], in float32.

    Summed over channels, averaged over examples and positions; of a dict, the sum over its floating arrays. Of texts, the hidden
    states alone, and of them those that are no padding.
    """
    if isinstance(carry, dict) and "hidden" in carry:
        counted = carry["mask"].astype(jnp.float32)
        squares = _squares(carry["hidden"], source["hidden"])
        return jnp.sum(squares * counted) / jnp.maximum(jnp.sum(counted), 1.0)
    total = jnp.zeros(())
    for one, other in zip(jax.tree.leaves(carry), jax.tree.leaves(source), strict=True):
        if jnp.issubdtype(one.dtype, jnp.floating):
            total += jnp.mean(_squares(one, other))
    return total


def _squares(one: jax.Array, other: jax.Array) -> jax.Array:
    """Returns the squared distance at each position, [...], of two arrays [..., C]."""
    difference = one.astype(jnp.float32) - jax.lax.stop_gradient(other).astype(jnp.float32)
    return jnp.sum(jnp.square(difference), -1)


def smallest_singular_values(features: jax.Array, count: int) -> jax.Array:
    """Returns the sum of the squares of the `count` smallest of the min(B, D) singular values of [B, D]."""
    found = jnp.linalg.svd(features.astype(jnp.float32), compute_uv=False)
    return jnp.sum(jnp.square(found[found.shape[0] - count :]))
