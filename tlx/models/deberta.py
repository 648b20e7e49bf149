"""DeBERTa V3 (He et al. 2021, arXiv:2111.09543), built as DeBERTa (He et al. 2020, arXiv:2006.03654).

Its sizes come from the weights' own config.json; what that does not say is as in transformers' configuration class. Without
weights they are those of the published base network. Features are the first token's hidden state: the layer that transformers puts
between it and the classifier is new wherever these networks are fine-tuned, and so part of the head.
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
from tlx.models.deberta_keys import deberta_tables
from tlx.models.disentangled import DisentangledAttention, Distances
from tlx.models.layers import LayerNorm, Linear, dropout, normal, parameter
from tlx.models.text import (
    ACTIVATIONS,
    PostNormLayer,
    Projection,
    Settings,
    TextEncoder,
    TextFacts,
    lookup,
    text_rates,
)
from tlx.weights.keymap import KeyTable
from tlx.weights.meta import WeightsMeta

# Name here -> model type in config.json.
MODEL_TYPES = {"deberta_v3": "deberta-v2"}

# Name -> the value that only weights with a pooler have.
POOLERS: dict[str, str] = {}

# What the published base network's config.json has and the configuration class has otherwise.
_BASE: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
}


@dataclasses.dataclass(frozen=True)
class DebertaSizes:
    """The numbers that tell one of these encoders from another."""

    vocabulary: int
    width: int
    depth: int
    heads: int
    inner: int  # width between the two layers behind attention
    positions: int  # that the network was made for
    absolute: bool  # whether tokens know their own position
    segments: int  # kinds of token_type_ids; 0: none are read
    embedding_width: int
    distances: Distances | None  # None: tokens do not know how far they are from each other
    terms: tuple[str, ...]  # of attention, by distance: c2p, p2c
    share_key: bool
    relative_norm: bool  # whether the relative embedding is normalised
    activation: str
    pooler_activation: str
    epsilon: float
    dropout: float
    attention_dropout: float
    pooler_dropout: float
    classifier_dropout: float  # of whole texts
    std: float
    pad_id: int

    @property
    def longest(self) -> int:
        """The largest number of tokens; 0: any."""
        return self.positions if self.absolute else 0


def sizes(name: str, config: str) -> DebertaSizes:
    """Returns the sizes that the content of a config.json gives; "": the published base network's.

    Raises:
      InputError: a field that is no number, or says of a network that it is not built as these are.
    """
    settings = Settings(json.loads(config) if config else _BASE)
    width = settings.integer("hidden_size", 1536)
    heads = settings.integer("num_attention_heads", 24)
    settings.refuse("conv_kernel_size", 0)
    settings.refuse("z_steps", 0, 1)
    settings.refuse("pooler_hidden_size", width)
    settings.refuse("attention_head_size", width // heads)
    settings.refuse("is_decoder", False)
    hidden = settings.number("hidden_dropout_prob", 0.1, 1)
    positions = settings.integer("max_position_embeddings", 512)
    activations = tuple(ACTIVATIONS)
    norms = settings.names("norm_rel_ebd", "none", ("none", "layer_norm"))
    return DebertaSizes(
        vocabulary=settings.integer("vocab_size", 128100),
        width=width,
        depth=settings.integer("num_hidden_layers", 24, high=1024),
        heads=heads,
        inner=settings.integer("intermediate_size", 6144),
        positions=positions,
        absolute=settings.flag("position_biased_input", True),
        segments=settings.integer("type_vocab_size", 0, 0),
        embedding_width=settings.integer("embedding_size", width),
        distances=_distances(settings, positions),
        terms=settings.names("pos_att_type", "", ("c2p", "p2c")),
        share_key=settings.flag("share_att_key", False),
        relative_norm="layer_norm" in norms,
        activation=settings.choice("hidden_act", "gelu", activations),
        pooler_activation=settings.choice("pooler_hidden_act", "gelu", activations),
        epsilon=settings.number("layer_norm_eps", 1e-7),
        dropout=hidden,
        attention_dropout=settings.number("attention_probs_dropout_prob", 0.1, 1),
        pooler_dropout=settings.number("pooler_dropout", 0.0, 1),
        classifier_dropout=settings.number("cls_dropout", hidden, 1),
        std=settings.number("initializer_range", 0.02),
        pad_id=settings.integer("pad_token_id", 0, 0),
    )


def _distances(settings: Settings, positions: int) -> Distances | None:
    longest = settings.integer("max_relative_positions", -1, -1)
    longest = longest if longest > 0 else positions
    buckets = max(settings.integer("position_buckets", -1, -1), 0)
    if not settings.flag("relative_attention", False):
        return None
    # Half of the buckets are of single distances; the others must have some left.
    if buckets and not 2 <= buckets < 2 * (longest - 1):
        raise InputError(
            f"config.json: position_buckets is {buckets}, expected at least 2, and less than {2 * (longest - 1)} for "
            f"distances up to {longest} (max_relative_positions)"
        )
    return Distances(longest, buckets)


class Embeddings(nnx.Module):
    """The embedding of tokens, normalised, and that of the distances between them, which all layers read."""

    def __init__(self, sizes: DebertaSizes, rate: float):
        self.rate = rate
        width, init = sizes.embedding_width, normal(sizes.std)
        self.word_embedding = parameter((sizes.vocabulary, width), init)
        rows = sizes.positions if sizes.absolute else 0
        self.position_embedding = parameter((rows, width), init) if rows else None
        self.type_embedding = parameter((sizes.segments, width), init) if sizes.segments else None
        wider = width != sizes.width
        self.projection = Linear(width, sizes.width, bias=False, init=init) if wider else None
        self.norm = LayerNorm(sizes.width, epsilon=sizes.epsilon)
        rows = 2 * sizes.distances.span if sizes.distances is not None else 0
        self.relative_embedding = parameter((rows, sizes.width), init) if rows else None
        normalised = sizes.relative_norm
        self.relative_norm = LayerNorm(sizes.width, epsilon=sizes.epsilon) if normalised else None

    def __call__(self, inputs: Carry, key: jax.Array | None = None) -> Carry:
        """Maps token ids [B, T] to the carry of hidden states [B, T, D] and of what `relative` returns."""
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        x = lookup(self.word_embedding, ids, mask.dtype)
        if self.position_embedding is not None:
            x = x + lookup(self.position_embedding, jnp.arange(ids.shape[1]), mask.dtype)
        if self.type_embedding is not None:
            kinds = inputs.get("token_type_ids", jnp.zeros_like(ids))
            x = x + lookup(self.type_embedding, kinds, mask.dtype)
        if self.projection is not None:
            x = self.projection(x)
        x = dropout(self.norm(x) * mask[..., None], self.rate, key)
        return self.with_relative({"hidden": x, "mask": mask})

    def with_relative(self, carry: Carry) -> Carry:
        """Returns the carry with the relative embedding [2 * span, D], where there is one."""
        if self.relative_embedding is None:
            return carry
        table = self.relative_embedding[...]
        table = table if self.relative_norm is None else self.relative_norm(table)
        return {**carry, "relative": table.astype(carry["hidden"].dtype)}


class Layer(PostNormLayer):
    """A layer whose attention reads the relative embedding too."""

    attention: DisentangledAttention

    def __init__(self, sizes: DebertaSizes, rate: float, attention_rate: float):
        attention = DisentangledAttention(
            sizes.width,
            sizes.heads,
            distances=sizes.distances,
            terms=sizes.terms,
            share_key=sizes.share_key,
            dropout=attention_rate,
            relative_dropout=rate,
            init=normal(sizes.std),
        )
        super().__init__(
            attention,
            width=sizes.width,
            inner=sizes.inner,
            activation=sizes.activation,
            epsilon=sizes.epsilon,
            std=sizes.std,
            rate=rate,
            output_rate=rate,
        )

    def attend(self, carry: Carry, key: jax.Array | None) -> jax.Array:
        """Returns what attention makes of the hidden states, [B, T, D]."""
        return self.attention(carry["hidden"], carry["mask"] > 0, key, carry.get("relative"))


class Deberta(TextEncoder):
    """Stages: embeddings, layer.0, layer.1, ... The carry has the relative embedding too, which is a value of the first stage."""

    def __init__(self, name: str, *, num_classes: int, meta: WeightsMeta, rates: Rates):
        own = sizes(name, meta.config)
        hidden, attention, pooler, classifier = text_rates(
            rates, own.dropout, own.attention_dropout, own.pooler_dropout, own.classifier_dropout
        )
        super().__init__(
            num_features=own.width,
            num_classes=num_classes,
            meta=meta,
            dropout=hidden,
            std=own.std,
            positions=own.longest,
            projection=Projection(own.pooler_activation, classifier, pooler),
        )
        layers = [f"layer.{index}" for index in range(own.depth)]
        self.stages = ("embeddings", *layers)
        self.embeddings = Embeddings(own, hidden)
        for layer in layers:
            setattr(self, layer, Layer(own, hidden, attention))
        if not own.absolute:  # published files have one all the same
            self.unused = ("embeddings.position_embedding",)

    def prefix(self, x: Any, stop: int) -> Carry:
        """As `Model.prefix`; without the relative embedding, which is no text's own."""
        carry = super().prefix(x, stop)
        return _own(carry) if isinstance(carry, dict) else carry

    def enter(self, x: Any) -> Carry:
        """Returns the carry that the first stage to be applied reads, with the relative embedding."""
        carry = super().enter(x)
        behind = 0 < self.start <= len(self.stages)
        return self.embeddings.with_relative(carry) if behind else carry


def _own(carry: Carry) -> Carry:
    return {name: carry[name] for name in ("hidden", "mask")}


def create(name: str, *, num_classes: int, meta: WeightsMeta, rates: Rates) -> Deberta:
    """Returns the encoder called `name`, with shapes for values: see `tlx.models.abstract_model`."""
    return Deberta(name, num_classes=num_classes, meta=meta, rates=rates)


def text_facts(name: str, config: dict[str, Any]) -> TextFacts:
    """Returns the facts of the network that a config.json describes. Raises InputError as `sizes`."""
    own = sizes(name, json.dumps(config))
    return TextFacts(own.vocabulary, own.longest, own.pad_id, own.segments > 1)


def default_meta(name: str) -> WeightsMeta:
    """Returns the facts of this architecture where no weights say them, for texts as long as it was made for."""
    own = text_facts(name, _BASE)
    return own._replace(longest=sizes(name, "").positions).default_meta(name)


def key_tables(name: str) -> tuple[KeyTable, ...]:
    """Returns the key tables that weights of this architecture may come in."""
    return deberta_tables()
