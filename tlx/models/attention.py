"""Multi-head self-attention (Vaswani et al. 2017, arXiv:1706.03762), for pictures and text alike."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from tlx.errors import InputError
from tlx.models.layers import Initializer, Linear, dropout, uniform_fan_in, zeros


class SelfAttention(nnx.Module):
    """Every token looks at every other one.

    Query, key, value and output are linear layers of their own, so that files which have the first three in one
    tensor and files which have them apart map to the same paths.
    """

    def __init__(
        self,
        features: int,
        heads: int,
        *,
        bias: bool = True,
        output_bias: bool = True,
        dropout: float = 0.0,
        init: Initializer = uniform_fan_in,
        bias_init: Initializer = zeros,
        output_init: Initializer | None = None,
    ):
        """Makes the layer; `bias` is that of query, key and value, `output_init` draws the output's kernel; None: as theirs.

        Raises:
          InputError: the heads cannot share the features evenly.
        """
        if features % heads:
            raise InputError(
                f"{features} features cannot be shared by {heads} attention heads: the first must be a multiple"
            )
        self.heads, self.dropout = heads, dropout
        self.scale = (features // heads) ** -0.5
        self.query, self.key, self.value = (
            Linear(features, features, bias=bias, init=init, bias_init=bias_init) for _ in range(3)
        )
        self.output = Linear(
            features, features, bias=output_bias, init=output_init or init, bias_init=bias_init
        )

    def __call__(
        self, x: jax.Array, mask: jax.Array | None = None, key: jax.Array | None = None
    ) -> jax.Array:
        """Maps [B, T, D] to [B, T, D]; the softmax is taken in float32 whatever the input's dtype.

        Args:
          x: the tokens.
          mask: bool, True where a token may be looked at: [B, T], the same for all that look; or [B, 1, T, T]
            or [B, heads, T, T], by who looks (third axis) at whom (last axis). None: everywhere. A token that may look
            at none looks at all equally.
          key: of the dropped attention weights; None: none is dropped.
        """
        query, keys, values = (
            self.by_head(layer(x)) for layer in (self.query, self.key, self.value)
        )
        return self.attend(self.scores(query, keys), values, mask, key)

    def by_head(self, x: jax.Array) -> jax.Array:
        """Maps [..., D] to [..., heads, D / heads]."""
        return x.reshape(*x.shape[:-1], self.heads, x.shape[-1] // self.heads)

    def scores(self, query: jax.Array, keys: jax.Array) -> jax.Array:
        """Maps two [B, T, heads, D / heads] to float32 [B, heads, T, T], by who looks and at whom, before the softmax."""
        return jnp.einsum(
            "bqhd,bkhd->bhqk", query * self.scale, keys, preferred_element_type=jnp.float32
        )

    def attend(
        self, scores: jax.Array, values: jax.Array, mask: jax.Array | None, key: jax.Array | None
    ) -> jax.Array:
        """Maps scores and values [B, T, heads, D / heads] to what the layer returns; the others are as in a call."""
        if mask is not None:
            allowed = mask[:, None, None] if mask.ndim == 2 else mask
            scores = jnp.where(allowed, scores, jnp.finfo(jnp.float32).min)
        weights = dropout(jax.nn.softmax(scores).astype(values.dtype), self.dropout, key)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, values)
        return self.output(mixed.reshape(*mixed.shape[:2], -1))
