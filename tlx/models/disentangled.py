"""Disentangled attention (He et al. 2020, arXiv:2006.03654): what a token is and where it is are looked at apart.

To the scores of two tokens' contents come those of one's content and the other's distance: from content to position (c2p) and from
position to content (p2c).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from tlx.models.attention import SelfAttention
from tlx.models.layers import Initializer, Linear, dropout, subkeys


@dataclasses.dataclass(frozen=True)
class Distances:
    """Which row of the relative embedding, [2 * span, D], stands for which distance of two tokens."""

    longest: int  # distances from here on are not told apart
    buckets: int = 0  # of the rows; 0: each distance up to `longest` has a row of its own

    @property
    def span(self) -> int:
        """Half the number of rows; the middle one is distance 0."""
        return self.buckets or self.longest

    def rows(self, length: int) -> np.ndarray:
        """Returns the rows of the distances 1 - length, ..., length - 1: int [2 * length - 1], never falling."""
        distance = np.arange(1 - length, length)
        if self.buckets:
            distance = _log_buckets(distance, self.buckets, self.longest)
        return np.clip(distance + self.span, 0, 2 * self.span - 1)


def _log_buckets(distance: np.ndarray, buckets: int, longest: int) -> np.ndarray:
    """Returns distances below half the buckets as they are, and larger ones on a logarithmic scale, with their sign.

    Taken in float32, as the published networks were trained: other digits put some distances into the next bucket.
    """
    middle = buckets // 2
    far = np.maximum(np.abs(distance), middle).astype(np.float32)
    scale = np.log(np.float32((longest - 1) / middle))
    log = np.log(far / np.float32(middle)) / scale * np.float32(middle - 1)
    bucket = np.ceil(log).astype(np.int64) + middle
    return np.where(np.abs(distance) <= middle, distance, bucket * np.sign(distance))


class DisentangledAttention(SelfAttention):
    """Self-attention that knows the distances of tokens by their relative embedding."""

    def __init__(
        self,
        features: int,
        heads: int,
        *,
        distances: Distances | None,
        terms: tuple[str, ...],
        share_key: bool,
        dropout: float,
        relative_dropout: float,
        init: Initializer,
    ):
        """Makes the layer.

        Args:
          features: D.
          heads: that share them.
          distances: the rows of the relative embedding; None: there is none.
          terms: c2p, p2c or both.
          share_key: whether positions go through the layers of contents; else they have layers of their own.
          dropout: rate of attention weights.
          relative_dropout: rate of the relative embedding.
          init: of kernels.

        Raises:
          InputError: the heads cannot share the features evenly.
        """
        super().__init__(features, heads, dropout=dropout, init=init)
        self.scale = (features // heads * (1 + len(terms))) ** -0.5
        self.distances, self.terms, self.relative_dropout = distances, terms, relative_dropout
        own = () if share_key or distances is None else terms
        self.position_key = Linear(features, features, init=init) if "c2p" in own else None
        self.position_query = Linear(features, features, init=init) if "p2c" in own else None

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        key: jax.Array | None = None,
        relative: jax.Array | None = None,
    ) -> jax.Array:
        """Maps [B, T, D] to [B, T, D]: as `SelfAttention`, with the relative embedding [2 * span, D]; None: without one."""
        query, keys, values = (
            self.by_head(layer(x)) for layer in (self.query, self.key, self.value)
        )
        weights_key, relative_key = subkeys(key, 2)
        scores = self.scores(query, keys)
        if relative is not None and self.distances is not None:
            rows = self.distances.rows(x.shape[1])
            scores += self._by_position(query, keys, relative, rows, relative_key)
        return self.attend(scores, values, mask, weights_key)

    def _by_position(
        self,
        query: jax.Array,
        keys: jax.Array,
        relative: jax.Array,
        rows: np.ndarray,
        key: jax.Array | None,
    ) -> jax.Array:
        """Returns what the distances add to the scores, [B, heads, T, T]."""
        first, last = int(rows[0]), int(rows[-1])
        near = dropout(relative[first : last + 1], self.relative_dropout, key)
        rows = rows - first
        total = jnp.zeros((), jnp.float32)
        if "c2p" in self.terms:
            # A column's distance rises with the key's position where the row's falls: the order is turned round.
            there = self.by_head((self.position_key or self.key)(near))
            total += self._by_distance(query, _take(there, rows)[::-1])
        if "p2c" in self.terms:
            here = self.by_head((self.position_query or self.query)(near))
            total += self._by_distance(keys, _take(here, rows)).swapaxes(2, 3)
        return total

    def _by_distance(self, x: jax.Array, table: jax.Array) -> jax.Array:
        """Maps [B, T, heads, d] and a table [2T - 1, heads, d] to [B, heads, T, T]: entry i, j is of x[i] and table[j - i + T - 1]."""
        found = jnp.einsum(
            "bqhd,rhd->bhqr", x * self.scale, table, preferred_element_type=jnp.float32
        )
        return diagonals(found)


def diagonals(x: jax.Array) -> jax.Array:
    """Maps [..., T, 2T - 1] to [..., T, T], of which entry i, j is x[i, j - i + T - 1].

    Reading the rows on, one element later each time, needs no gather, which is slow on CPUs and slower backward.
    """
    length, columns = x.shape[-2:]
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, 1)])
    flat = padded.reshape(*x.shape[:-2], length * (columns + 1))
    shifted = flat[..., length - 1 : length - 1 + length * columns]
    return shifted.reshape(x.shape)[..., :length]


def _take(table: jax.Array, rows: np.ndarray) -> jax.Array:
    """Returns the rows of a table, without a gather where these are all of them in order."""
    return table if np.array_equal(rows, np.arange(len(table))) else table[rows]
