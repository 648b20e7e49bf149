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
        dropout: float = 0.0,
        init: Initializer = uniform_fan_in,
        bias_init: Initializer = zeros,
    ):
        """Makes the layer; `bias` is that of query, key and value, the output has one always.

        Raises:
          InputError: the heads cannot share the features evenly.
        """
        if features % heads:
            raise InputError(
                f"{features} features cannot be shared by {heads} attention heads: the first must be a multiple"
            )
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value = (
            Linear(features, features, bias=bias, init=init, bias_init=bias_init) for _ in range(3)
        )
        self.output = Linear(features, features, init=init, bias_init=bias_init)

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
        shape = (*x.shape[:2], self.heads, x.shape[-1] // self.heads)
        query, keys, values = (
            layer(x).reshape(shape) for layer in (self.query, self.key, self.value)
        )
        logits = jnp.einsum(
            "bqhd,bkhd->bhqk", query * shape[-1] ** -0.5, keys, preferred_element_type=jnp.float32
        )
        if mask is not None:
            allowed = mask[:, None, None] if mask.ndim == 2 else mask
            logits = jnp.where(allowed, logits, jnp.finfo(jnp.float32).min)
        weights = dropout(jax.nn.softmax(logits).astype(x.dtype), self.dropout, key)
        return self.output(jnp.einsum("bhqk,bkhd->bqhd", weights, values).reshape(x.shape))
