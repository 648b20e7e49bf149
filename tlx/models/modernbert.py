"""ModernBERT (Warner et al. 2024, arXiv:2412.13663).

Its sizes come from the weights' own config.json; without weights, and for what that does not say, they are those of transformers'
configuration class, which are the published base network's.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tlx.errors import InputError
from tlx.models.base import Carry, Rates
from tlx.models.formulations import fork
from tlx.models.layers import LayerNorm, Linear, dropout, parameter, subkeys, truncated_normal
from tlx.models.modernbert_keys import modernbert_tables
from tlx.models.rotary import RotaryAttention
from tlx.models.text import (
    ACTIVATIONS,
    POOLER,
    Settings,
    TextEncoder,
    TextFacts,
    lookup,
    text_rates,
)
from tlx.weights.keymap import KeyTable
from tlx.weights.meta import WeightsMeta

# Name here -> model type in config.json.
MODEL_TYPES = {"modernbert": "modernbert"}

# Name -> the value that only weights with a pooler have.
POOLERS = {"modernbert": "pooler.dense.kernel"}

_GLOBAL, _LOCAL = "full_attention", "sliding_attention"


@dataclasses.dataclass(frozen=True)
class ModernBertSizes:
    """The numbers that tell one of these encoders from another."""

    vocabulary: int
    width: int
    heads: int
    inner: int  # width between the two layers behind attention
    positions: int  # that the network was made for
    local: tuple[bool, ...]  # of each layer: whether a token looks at near ones only
    window: int  # how many of them on each side
    global_theta: float  # of the rotary embedding
    local_theta: float
    norm_bias: bool
    attention_bias: bool
    inner_bias: bool
    pooler_bias: bool
    activation: str
    pooler_activation: str
    pooling: str  # how one vector is made of a text: cls or mean
    epsilon: float
    embedding_dropout: float
    attention_dropout: float
    inner_dropout: float
    classifier_dropout: float
    std: float
    pad_id: int
    pooler: bool  # whether layers follow behind the pooling

    @property
    def output_std(self) -> float:
        """Of the kernels whose outputs are added up, layer by layer."""
        return self.std * (2 * len(self.local)) ** -0.5


def sizes(name: str, config: str) -> ModernBertSizes:
    """Returns the sizes that the content of a config.json gives; "": the architecture's own.

    Raises:
      InputError: a field that is no number, or says of a network that it is not built as these are.
    """
    settings = Settings(json.loads(config) if config else {})
    width = settings.integer("hidden_size", 768)
    heads = settings.integer("num_attention_heads", 12)
    settings.refuse("head_dim", width // heads)
    activations = tuple(ACTIVATIONS)
    return ModernBertSizes(
        vocabulary=settings.integer("vocab_size", 50368),
        width=width,
        heads=heads,
        inner=settings.integer("intermediate_size", 1152),
        positions=settings.integer("max_position_embeddings", 8192),
        local=_local(settings),
        window=settings.integer("local_attention", 128, 2) // 2,
        global_theta=_theta(settings, _GLOBAL, "global_rope_theta", 160_000.0),
        local_theta=_theta(settings, _LOCAL, "local_rope_theta", 10_000.0),
        norm_bias=settings.flag("norm_bias", False),
        attention_bias=settings.flag("attention_bias", False),
        inner_bias=settings.flag("mlp_bias", False),
        pooler_bias=settings.flag("classifier_bias", False),
        activation=settings.choice("hidden_activation", "gelu", activations),
        pooler_activation=settings.choice("classifier_activation", "gelu", activations),
        pooling=settings.choice("classifier_pooling", "cls", ("cls", "mean")),
        epsilon=settings.number("norm_eps", 1e-5),
        embedding_dropout=settings.number("embedding_dropout", 0.0, 1),
        attention_dropout=settings.number("attention_dropout", 0.0, 1),
        inner_dropout=settings.number("mlp_dropout", 0.0, 1),
        classifier_dropout=settings.number("classifier_dropout", 0.0, 1),
        std=settings.number("initializer_range", 0.02),
        pad_id=settings.integer("pad_token_id", 50283, 0),
        pooler=settings.flag(POOLER, True),
    )


def _local(settings: Settings) -> tuple[bool, ...]:
    """Returns which layers are local, of the list of newer files or the number of older ones."""
    depth = settings.integer("num_hidden_layers", 22, high=1024)
    every = settings.integer("global_attn_every_n_layers", 3)
    kinds = settings.names("layer_types", "", (_GLOBAL, _LOCAL))
    if not kinds:
        return tuple(index % every > 0 for index in range(depth))
    if len(kinds) != depth:
        raise InputError(
            f"config.json: layer_types has {len(kinds)} entries, expected one for each of {depth} layers "
            "(num_hidden_layers)"
        )
    return tuple(kind == _LOCAL for kind in kinds)


def _theta(settings: Settings, kind: str, older: str, default: float) -> float:
    """Returns the base of a rotary embedding, by its name in newer files or in older ones."""
    settings.refuse("rope_scaling", None)
    own = settings.part("rope_parameters").part(kind)
    own.refuse("rope_type", "default")
    theta = own.number("rope_theta", settings.number(older, default))
    if not theta:
        raise InputError(f"config.json: the rope_theta of {kind} is 0, expected a larger number")
    return theta


class Embeddings(nnx.Module):
    """The embedding of tokens, normalised."""

    def __init__(self, sizes: ModernBertSizes, rate: float):
        self.rate = rate
        init = truncated_normal(sizes.std)
        self.word_embedding = parameter((sizes.vocabulary, sizes.width), init)
        self.norm = _norm(sizes)

    def __call__(self, inputs: Carry, key: jax.Array | None = None) -> Carry:
        """Maps token ids [B, T] to the carry of hidden states [B, T, D]."""
        mask = inputs["attention_mask"]
        x = self.norm(lookup(self.word_embedding, inputs["input_ids"], mask.dtype))
        return {"hidden": dropout(x, self.rate, key), "mask": mask}


class Block(nnx.Module):
    """Attention, then a gated pair of layers (GeGLU: Shazeer 2020, arXiv:2002.05202); each is of its normalised input, and added."""

    def __init__(self, sizes: ModernBertSizes, index: int, rate: float, attention_rate: float):
        width, bias, local = sizes.width, sizes.inner_bias, sizes.local[index]
        self.activation, self.rate, self.attention_rate = sizes.activation, rate, attention_rate
        init, output_init = truncated_normal(sizes.std), truncated_normal(sizes.output_std)
        self.norm1 = _norm(sizes) if index else None  # the embeddings are normalised already
        self.attention = RotaryAttention(
            width,
            sizes.heads,
            theta=sizes.local_theta if local else sizes.global_theta,
            window=sizes.window if local else 0,
            bias=sizes.attention_bias,
            dropout=attention_rate,
            init=init,
            output_init=output_init,
        )
        self.norm2 = _norm(sizes)
        self.fc1, self.gate = (Linear(width, sizes.inner, bias=bias, init=init) for _ in range(2))
        self.fc2 = Linear(sizes.inner, width, bias=bias, init=output_init)

    def __call__(self, carry: Carry, key: jax.Array | None = None) -> Carry:
        x, mask = carry["hidden"], carry["mask"]
        key1, key2, key3 = subkeys(key, 3)
        y, x = fork(x)
        y = self.attention(y if self.norm1 is None else self.norm1(y), mask > 0, key1)
        y, x = fork(x + dropout(y, self.attention_rate, key2))
        y = self.norm2(y)
        y = ACTIVATIONS[self.activation](self.fc1(y)) * self.gate(y)
        return {"hidden": x + self.fc2(dropout(y, self.rate, key3)), "mask": mask}


class Norm(LayerNorm):
    """The stage that normalises what the last layer gives."""

    def __call__(self, carry: Carry, key: jax.Array | None = None) -> Carry:  # type: ignore[override]
        return {**carry, "hidden": super().__call__(carry["hidden"])}


class PredictionHead(nnx.Module):
    """The stage of a layer with an activation and a norm: of a text's one vector, or of each token."""

    def __init__(self, sizes: ModernBertSizes, per_token: bool):
        self.activation, self.pooling = sizes.pooler_activation, sizes.pooling
        self.per_token = per_token
        init = truncated_normal(sizes.output_std)
        self.dense = Linear(sizes.width, sizes.width, bias=sizes.pooler_bias, init=init)
        self.norm = _norm(sizes)

    def __call__(self, carry: Carry, key: jax.Array | None = None) -> Carry:
        """Maps hidden states [B, T, D] to [B, D], or to the carry of hidden states."""
        x = carry["hidden"] if self.per_token else pooled(carry, self.pooling)
        x = self.norm(ACTIVATIONS[self.activation](self.dense(x)))
        return {**carry, "hidden": x} if self.per_token else x


def pooled(carry: Carry, pooling: str) -> jax.Array:
    """Maps hidden states [B, T, D] to [B, D]: the first token's, or the mean over tokens that count, taken in float32."""
    x, mask = carry["hidden"], carry["mask"].astype(jnp.float32)
    if pooling == "cls":
        return x[:, 0]
    total = jnp.einsum("btd,bt->bd", x, mask, preferred_element_type=jnp.float32)
    return (total / jnp.maximum(mask.sum(1, keepdims=True), 1)).astype(x.dtype)


def _norm(sizes: ModernBertSizes) -> LayerNorm:
    return LayerNorm(sizes.width, epsilon=sizes.epsilon, bias=sizes.norm_bias)


class ModernBert(TextEncoder):
    """Stages: embeddings, layer.0, layer.1, ..., norm, and where the weights have it the pooler, for texts and tokens alike."""

    def __init__(self, name: str, *, num_classes: int, meta: WeightsMeta, rates: Rates):
        own = sizes(name, meta.config)
        embedding, attention, inner, classifier = text_rates(
            rates,
            own.embedding_dropout,
            own.attention_dropout,
            own.inner_dropout,
            own.classifier_dropout,
        )
        super().__init__(
            num_features=own.width,
            num_classes=num_classes,
            meta=meta,
            dropout=classifier,
            std=own.width**-0.5,
            positions=own.positions,
        )
        self.pooling = own.pooling
        layers = [f"layer.{index}" for index in range(len(own.local))]
        self.stages = ("embeddings", *layers, "norm", *(["pooler"] if own.pooler else []))
        self.embeddings = Embeddings(own, embedding)
        for index, layer in enumerate(layers):
            setattr(self, layer, Block(own, index, inner, attention))
        self.norm = Norm(own.width, epsilon=own.epsilon, bias=own.norm_bias)
        if own.pooler:
            self.pooler = PredictionHead(own, meta.per_token)

    def pool(self, carry: Carry) -> jax.Array:
        """As `TextEncoder.pool`; where there is no pooler, its way of making one vector of a text."""
        if self.meta.per_token or not isinstance(carry, dict):
            return super().pool(carry)
        return pooled(carry, self.pooling)


def create(name: str, *, num_classes: int, meta: WeightsMeta, rates: Rates) -> ModernBert:
    """Returns the encoder called `name`, with shapes for values: see `tlx.models.abstract_model`."""
    return ModernBert(name, num_classes=num_classes, meta=meta, rates=rates)


def text_facts(name: str, config: dict[str, Any]) -> TextFacts:
    """Returns the facts of the network that a config.json describes. Raises InputError as `sizes`."""
    own = sizes(name, json.dumps(config))
    return TextFacts(own.vocabulary, own.positions, own.pad_id, segments=False)


def default_meta(name: str) -> WeightsMeta:
    """Returns the facts of this architecture where no weights say them."""
    return text_facts(name, {}).default_meta(name)


def key_tables(name: str) -> tuple[KeyTable, ...]:
    """Returns the key tables that weights of this architecture may come in."""
    return modernbert_tables()
