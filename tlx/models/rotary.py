"""Self-attention with rotary position embeddings (Su et al. 2021, arXiv:2104.09864), of all tokens or of those near by."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from tlx.errors import InputError
from tlx.models.attention import SelfAttention
from tlx.models.layers import Initializer


class RotaryAttention(SelfAttention):
    """Self-attention where queries and keys are turned by angles that grow with the token's position.

    Attributes:
      theta: the base of the wavelengths: positions, 2 pi to 2 pi theta.
      window: how far a token looks on each side; 0: at all.
    """

    def __init__(
        self,
        features: int,
        heads: int,
        *,
        theta: float,
        window: int,
        bias: bool,
        dropout: float,
        init: Initializer,
        output_init: Initializer,
    ):
        """Makes the layer; `bias` is that of all four linear layers.

        Raises:
          InputError: the heads cannot share the features evenly, or a head has an odd number of them.
        """
        super().__init__(
            features,
            heads,
            bias=bias,
            output_bias=bias,
            dropout=dropout,
            init=init,
            output_init=output_init,
        )
        if features // heads % 2:
            raise InputError(
                f"{features} features of {heads} attention heads are {features // heads} each: an odd number cannot be "
                "turned by pairs"
            )
        self.theta, self.window = theta, window

    def __call__(
        self, x: jax.Array, mask: jax.Array | None = None, key: jax.Array | None = None
    ) -> jax.Array:
        """Maps [B, T, D] to [B, T, D]; `mask` is that of all tokens, bool [B, T]."""
        length = x.shape[1]
        if self.window and length > self.window + 1:
            positions = np.arange(length)
            near = np.abs(positions[:, None] - positions) <= self.window
            mask = near[None, None] if mask is None else near & mask[:, None, None]
        return super().__call__(x, mask, key)

    def scores(self, query: jax.Array, keys: jax.Array) -> jax.Array:
        """As `SelfAttention.scores`, of what is turned."""
        angles = _angles(query.shape[1], query.shape[-1], self.theta)
        return super().scores(_turned(query, angles), _turned(keys, angles))


def _angles(length: int, features: int, theta: float) -> np.ndarray:
    """Returns float32 [T, 1, d / 2]; rounded as float32 rounds, which is seen at far positions."""
    exponents = np.arange(0, features, 2, dtype=np.float64) / features
    frequencies = (1.0 / theta**exponents).astype(np.float32)
    return np.arange(length, dtype=np.float32)[:, None, None] * frequencies


def _turned(x: jax.Array, angles: np.ndarray) -> jax.Array:
    """Turns [B, T, heads, d] in the planes of the features i and i + d / 2, in float32."""
    cos, sin = (f(angles.astype(np.float64)).astype(np.float32) for f in (np.cos, np.sin))
    first, second = jnp.split(x.astype(jnp.float32), 2, -1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(turned, -1).astype(x.dtype)
