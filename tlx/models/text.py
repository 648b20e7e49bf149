"""What text encoders share: token ids in, hidden states and their mask from stage to stage, one vector for each text or token out."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tlx.errors import InputError
from tlx.models.attention import SelfAttention
from tlx.models.base import Carry, Model, Rates
from tlx.models.layers import LayerNorm, Linear, dropout, gelu, normal, subkeys
from tlx.weights.meta import TextPreprocess, WeightsMeta

POOLER = "tlx_pooler"  # field that is added to config.json where the weights have no pooler

Activation = Callable[[jax.Array], jax.Array]

# By their names in config.json.
ACTIVATIONS: dict[str, Activation] = {
    "gelu": gelu,
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}


class Settings:
    """What a `config.json` says of a network; errors name the field."""

    def __init__(self, values: Mapping[str, Any], place: str = ""):
        """Takes the content of the file; {} has defaults alone. `place` is before its fields' names."""
        self.values, self.place = values, place

    def integer(self, name: str, default: int, low: int = 1, high: int = 2**24) -> int:
        """Returns a whole number. Raises InputError for anything else."""
        value = self._get(name, default)
        if type(value) is not int or not low <= value <= high:
            raise self._wrong(name, value, f"a whole number from {low} to {high}")
        return value

    def number(self, name: str, default: float, high: float = math.inf) -> float:
        """Returns a number from 0 on. Raises InputError for anything else."""
        value = self._get(name, default)
        if type(value) not in (int, float) or not 0 <= value <= high:
            raise self._wrong(name, value, f"a number from 0 to {high}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """Returns true or false. Raises InputError for anything else."""
        value = self._get(name, default)
        if type(value) is not bool:
            raise self._wrong(name, value, "true or false")
        return value

    def choice(self, name: str, default: str, choices: Sequence[str]) -> str:
        """Returns one of the choices. Raises InputError for anything else."""
        value = self._get(name, default)
        if value not in choices:
            raise self._wrong(name, value, f"one of {', '.join(choices)}")
        return value

    def names(self, name: str, default: str, choices: Sequence[str]) -> tuple[str, ...]:
        """Returns some of the choices, of a list or of a text that has | between them. Raises InputError for anything else."""
        value = self._get(name, default)
        parts = [part.strip() for part in value.split("|")] if isinstance(value, str) else value
        if not isinstance(parts, list) or not all(part in choices for part in parts if part):
            raise self._wrong(name, value, f"a list of any of {', '.join(choices)}")
        return tuple(part for part in parts if part)

    def part(self, name: str) -> Settings:
        """Returns the settings of an object in this one; of an empty one where it is not there.

        Raises:
          InputError: the field is something else.
        """
        value = self._get(name, {})
        if not isinstance(value, Mapping):
            raise self._wrong(name, value, "an object")
        return Settings(value, f"{self.place}{name}.")

    def refuse(self, name: str, *allowed: Any) -> None:
        """Raises InputError where a field is there and has another value: a network that is not made here."""
        value = self.values.get(name)
        if value is not None and value not in allowed:
            raise self._wrong(name, value, " or ".join(map(repr, allowed)))

    def _get(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        return default if value is None else value

    def _wrong(self, name: str, value: Any, expected: str) -> InputError:
        return InputError(
            f"config.json: {self.place}{name} is {str(value)[:80]!r}, expected {expected}"
        )


class TextFacts(NamedTuple):
    """What is asked of the network that a config.json describes, before it is made."""

    vocabulary: int  # rows of its embedding
    longest: int  # number of tokens that it takes; 0: any
    pad_id: int
    segments: bool  # whether it is told which of two texts a token is of

    def default_meta(self, name: str) -> WeightsMeta:
        """Returns the facts of an architecture where no weights say them: it has no tokenizer."""
        preprocess = TextPreprocess(self.longest, pad_id=self.pad_id, segments=self.segments)
        return WeightsMeta(architecture=name, preprocess=preprocess, classifier="classifier")


@dataclasses.dataclass(frozen=True)
class Projection:
    """The layer before a family's classifier of whole texts."""

    activation: str  # behind it; one of ACTIVATIONS
    dropout: float  # rate behind the activation
    first_dropout: float  # rate of its inputs


class TextEncoder(Model):
    """Base of encoders of texts.

    The first stage maps `{"input_ids", "attention_mask", "token_type_ids"}`, each [B, T], to the carry of all others:
    `{"hidden": [B, T, D], "mask": [B, T]}`, the mask 1 where a token counts, in the compute type. A last stage `pooler`, where
    there is one, makes [B, D] of it. Features are its output, else the hidden state of the first token; with
    `meta.per_token` the hidden states of all tokens, [B, T, D].

    Attributes:
      positions: the largest number of tokens; 0: any.
    """

    input_kernel = ""
    positions: int = 0

    def __init__(
        self,
        *,
        num_features: int,
        num_classes: int,
        meta: WeightsMeta,
        dropout: float,
        std: float,
        positions: int,
        projection: Projection | None = None,
    ):
        """Makes head and facts; the stages are the family's.

        Args:
          num_features: D.
          num_classes: 0: no head.
          meta: whose `per_token` says what the head reads.
          dropout: rate before the classifier.
          std: of a new classifier's kernel.
          positions: the largest number of tokens; 0: any.
          projection: the layer that this family has before the classifier of whole texts.
        """
        self.std = std
        self.projection = None if meta.per_token else projection
        super().__init__(
            num_features=num_features, num_classes=num_classes, meta=meta, dropout=dropout
        )
        self.positions = positions
        if num_classes and self.projection is not None:
            self.classifiers = ("head.out",)

    def make_head(self) -> nnx.Module:
        """Returns the classifier, for [..., num_features]."""
        if self.projection is not None:
            return ProjectionHead(self.num_features, self.num_classes, self.std, self.projection)
        return Linear(self.num_features, self.num_classes, init=normal(self.std))

    def as_input(self, x: Any) -> Carry:
        """Returns the inputs as the first stage reads them.

        Raises:
          InputError: they are no token ids [B, T], or more of them than the network has positions for.
        """
        if not isinstance(x, Mapping) or "input_ids" not in x:
            raise InputError(
                f'{self.meta.architecture} takes a dict of "input_ids" and "attention_mask", each [B, T], not '
                f"{type(x).__name__} (tlx.preprocess(model) makes it of texts)"
            )
        ids = jnp.asarray(x["input_ids"], jnp.int32)
        if ids.ndim != 2:
            raise InputError(f"input_ids have shape {list(ids.shape)}, expected [B, T]")
        if self.positions and ids.shape[1] > self.positions:
            raise InputError(
                f"texts of {ids.shape[1]} tokens, but the network has positions for {self.positions}: cut them "
                f"(data.max_length={self.positions})"
            )
        mask = x.get("attention_mask")
        mask = ids != self.meta.text.pad_id if mask is None else mask
        found = {"input_ids": ids, "attention_mask": jnp.asarray(mask, self.dtype)}
        if x.get("token_type_ids") is not None:
            found["token_type_ids"] = jnp.asarray(x["token_type_ids"], jnp.int32)
        for name, array in found.items():
            if array.shape != ids.shape:
                raise InputError(
                    f"{name} has shape {list(array.shape)}, but input_ids {list(ids.shape)}"
                )
        return found

    def enter(self, x: Any) -> Carry:
        """Returns the carry that the first stage to be applied reads, in the compute type."""
        if self.start == 0:
            return self.as_input(x)
        if self.start > len(self.stages) and isinstance(x, Mapping):  # of each token
            x = x["hidden"]
        return jax.tree.map(lambda part: jnp.asarray(part, self.dtype), x)

    def pool(self, carry: Carry) -> jax.Array:
        """Maps the last stage's carry to [B, D], or with `meta.per_token` to [B, T, D]."""
        if self.meta.per_token:
            return carry["hidden"]
        return carry["hidden"][:, 0] if isinstance(carry, dict) else carry

    def _classify(self, features: jax.Array, key: jax.Array | None) -> jax.Array:
        if not isinstance(self.head, ProjectionHead):
            return super()._classify(features, key)
        key = None if key is None else jax.random.fold_in(key, len(self.stages))
        return self.head(features, key).astype(jnp.float32)


class ProjectionHead(nnx.Module):
    """A layer as wide as the features with an activation, then the classifier."""

    def __init__(self, features: int, num_classes: int, std: float, projection: Projection):
        self.projection = projection
        self.dense = Linear(features, features, init=normal(std))
        self.out = Linear(features, num_classes, init=normal(std))

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Maps [B, D] to [B, num_classes]."""
        first, second = subkeys(key, 2)
        x = dropout(x, self.projection.first_dropout, first)
        x = ACTIVATIONS[self.projection.activation](self.dense(x))
        return self.out(dropout(x, self.projection.dropout, second))


class PostNormLayer(nnx.Module):
    """Attention, then two layers with an activation between; each is added to its input, and then normalised."""

    def __init__(
        self,
        attention: SelfAttention,
        *,
        width: int,
        inner: int,
        activation: str,
        epsilon: float,
        std: float,
        rate: float,
        output_rate: float,
    ):
        """Makes the layer; `rate` is that of dropout behind the two layers, `output_rate` behind attention."""
        self.activation, self.rate, self.output_rate = activation, rate, output_rate
        self.attention = attention
        self.norm1 = LayerNorm(width, epsilon=epsilon)
        self.fc1 = Linear(width, inner, init=normal(std))
        self.fc2 = Linear(inner, width, init=normal(std))
        self.norm2 = LayerNorm(width, epsilon=epsilon)

    def attend(self, carry: Carry, key: jax.Array | None) -> jax.Array:
        """Returns what attention makes of the hidden states, [B, T, D]."""
        return self.attention(carry["hidden"], carry["mask"] > 0, key)

    def __call__(self, carry: Carry, key: jax.Array | None = None) -> Carry:
        """Maps a carry to one with other hidden states."""
        key1, key2, key3 = subkeys(key, 3)
        y = dropout(self.attend(carry, key1), self.output_rate, key2)
        x = self.norm1(carry["hidden"] + y)
        y = self.fc2(ACTIVATIONS[self.activation](self.fc1(x)))
        return {**carry, "hidden": self.norm2(x + dropout(y, self.rate, key3))}


class Pooler(nnx.Module):
    """The stage that makes one vector of a text: the first token's hidden state through a layer and tanh (Devlin et al. 2018)."""

    def __init__(self, features: int, std: float):
        self.dense = Linear(features, features, init=normal(std))

    def __call__(self, carry: Carry, key: jax.Array | None = None) -> jax.Array:
        """Maps hidden states [B, T, D] to [B, D]."""
        return jnp.tanh(self.dense(carry["hidden"][:, 0]))


def text_rates(rates: Rates, *own: float) -> tuple[float, ...]:
    """Returns the architecture's own rates of dropout, of its several places; one that is given is that of all.

    Raises:
      InputError: a rate of stochastic depth is asked for.
    """
    if rates.drop_path > 0:
        raise InputError(
            f"text encoders drop no residual branches (model.drop_path={rates.drop_path}): leave it out"
        )
    if rates.dropout >= 0:
        return (rates.dropout,) * len(own)
    return own


def lookup(table: nnx.Param[jax.Array], ids: jax.Array | np.ndarray, dtype: Any) -> jax.Array:
    """Returns the rows of an embedding [V, D] for ids [...], in the compute type: [..., D]."""
    return jnp.take(table[...], ids, axis=0).astype(dtype)
