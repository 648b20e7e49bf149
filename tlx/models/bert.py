"""BERT (Devlin et al. 2018, arXiv:1810.04805) and the encoders built as it is: RoBERTa (Liu et al. 2019, arXiv:1907.11692),
XLM-R (Conneau et al. 2019, arXiv:1911.02116), DistilBERT (Sanh et al. 2019, arXiv:1910.01108), ELECTRA's discriminator (Clark et
al. 2020, arXiv:2003.10555), and what is published under their model types, as MiniLM.

Their sizes come from the weights' own config.json; without weights, and for what it does not say, they are those of
transformers' configuration classes.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tlx.models.attention import SelfAttention
from tlx.models.base import Carry, Rates
from tlx.models.bert_keys import bert_tables, distilbert_tables
from tlx.models.layers import LayerNorm, Linear, dropout, normal, parameter
from tlx.models.text import (
    ACTIVATIONS,
    POOLER,
    Pooler,
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
MODEL_TYPES = {
    "bert": "bert",
    "roberta": "roberta",
    "xlm_roberta": "xlm-roberta",
    "distilbert": "distilbert",
    "electra": "electra",
}

# Name -> the value that only weights with a pooler have.
POOLERS = {"bert": "pooler.dense.kernel"}

_ROBERTAS = ("roberta", "xlm_roberta")  # positions are counted from behind the padding's id


@dataclasses.dataclass(frozen=True)
class BertSizes:
    """The numbers that tell one of these encoders from another."""

    vocabulary: int
    width: int
    depth: int
    heads: int
    inner: int  # width between the two layers behind attention
    positions: int
    segments: int  # kinds of token_type_ids; 0: none are read
    embedding_width: int
    activation: str
    epsilon: float
    dropout: float
    attention_dropout: float
    classifier_dropout: float
    std: float
    pad_id: int
    first_position: int  # position of the first token
    pooler: bool  # whether a last stage makes one vector of a text
    output_dropout: bool = True  # whether what attention gives is dropped at random too

    @property
    def max_length(self) -> int:
        """The largest number of tokens."""
        return self.positions - self.first_position


def sizes(name: str, config: str) -> BertSizes:
    """Returns the sizes that the content of a config.json gives; "": the architecture's own.

    Raises:
      InputError: a field that is no number, or says of a network that it is not built as these are.
    """
    settings = Settings(json.loads(config) if config else {})
    if name == "distilbert":
        return _distilbert(settings)
    settings.refuse("position_embedding_type", "absolute")
    settings.refuse("is_decoder", False)
    settings.refuse("add_cross_attention", False)
    roberta, electra = name in _ROBERTAS, name == "electra"
    width = settings.integer("hidden_size", 256 if electra else 768)
    hidden = settings.number("hidden_dropout_prob", 0.1, 1)
    pad_id = settings.integer("pad_token_id", 1 if roberta else 0, 0)
    return BertSizes(
        vocabulary=settings.integer("vocab_size", 50265 if name == "roberta" else 30522),
        width=width,
        depth=settings.integer("num_hidden_layers", 12, high=1024),
        heads=settings.integer("num_attention_heads", 4 if electra else 12),
        inner=settings.integer("intermediate_size", 1024 if electra else 3072),
        positions=settings.integer("max_position_embeddings", 512),
        segments=settings.integer("type_vocab_size", 2),
        embedding_width=settings.integer("embedding_size", 128) if electra else width,
        activation=settings.choice("hidden_act", "gelu", tuple(ACTIVATIONS)),
        epsilon=settings.number("layer_norm_eps", 1e-12),
        dropout=hidden,
        attention_dropout=settings.number("attention_probs_dropout_prob", 0.1, 1),
        classifier_dropout=settings.number("classifier_dropout", hidden, 1),
        std=settings.number("initializer_range", 0.02),
        pad_id=pad_id,
        first_position=pad_id + 1 if roberta else 0,
        pooler=name == "bert" and settings.flag(POOLER, True),
    )


def _distilbert(settings: Settings) -> BertSizes:
    settings.refuse("sinusoidal_pos_embds", False, True)
    width = settings.integer("dim", 768)
    return BertSizes(
        vocabulary=settings.integer("vocab_size", 30522),
        width=width,
        depth=settings.integer("n_layers", 6, high=1024),
        heads=settings.integer("n_heads", 12),
        inner=settings.integer("hidden_dim", 3072),
        positions=settings.integer("max_position_embeddings", 512),
        segments=0,
        embedding_width=width,
        activation=settings.choice("activation", "gelu", tuple(ACTIVATIONS)),
        epsilon=1e-12,
        dropout=settings.number("dropout", 0.1, 1),
        attention_dropout=settings.number("attention_dropout", 0.1, 1),
        classifier_dropout=settings.number("seq_classif_dropout", 0.2, 1),
        std=settings.number("initializer_range", 0.02),
        pad_id=settings.integer("pad_token_id", 0, 0),
        first_position=0,
        pooler=False,
        output_dropout=False,
    )


class Embeddings(nnx.Module):
    """The sum of a token's own embedding, its position's and its segment's, normalised; made wider where layers are wider."""

    def __init__(self, sizes: BertSizes, rate: float):
        self.rate, self.pad_id, self.first_position = rate, sizes.pad_id, sizes.first_position
        width, init = sizes.embedding_width, normal(sizes.std)
        self.word_embedding = parameter((sizes.vocabulary, width), init)
        self.position_embedding = parameter((sizes.positions, width), init)
        self.type_embedding = parameter((sizes.segments, width), init) if sizes.segments else None
        self.norm = LayerNorm(width, epsilon=sizes.epsilon)
        self.projection = Linear(width, sizes.width, init=init) if width != sizes.width else None

    def __call__(self, inputs: Carry, key: jax.Array | None = None) -> Carry:
        """Maps token ids [B, T] to the carry of hidden states [B, T, D]."""
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        x = lookup(self.word_embedding, ids, mask.dtype)
        if self.type_embedding is not None:
            kinds = inputs.get("token_type_ids", jnp.zeros_like(ids))
            x = x + lookup(self.type_embedding, kinds, mask.dtype)
        x = x + lookup(self.position_embedding, self._positions(ids), mask.dtype)
        x = dropout(self.norm(x), self.rate, key)
        return {"hidden": x if self.projection is None else self.projection(x), "mask": mask}

    def _positions(self, ids: jax.Array) -> jax.Array:
        if not self.first_position:
            return jnp.arange(ids.shape[1])
        # RoBERTa's: padding has its own position, and counts for none.
        real = (ids != self.pad_id).astype(jnp.int32)
        return jnp.cumsum(real, axis=1) * real + self.pad_id


def layer(sizes: BertSizes, rate: float, attention_rate: float) -> PostNormLayer:
    """Returns a layer with these rates of dropout."""
    init = normal(sizes.std)
    return PostNormLayer(
        SelfAttention(sizes.width, sizes.heads, dropout=attention_rate, init=init),
        width=sizes.width,
        inner=sizes.inner,
        activation=sizes.activation,
        epsilon=sizes.epsilon,
        std=sizes.std,
        rate=rate,
        output_rate=rate if sizes.output_dropout else 0.0,
    )


class Bert(TextEncoder):
    """Stages: embeddings, layer.0, layer.1, ..., and for whole texts BERT's pooler."""

    def __init__(self, name: str, *, num_classes: int, meta: WeightsMeta, rates: Rates):
        own = sizes(name, meta.config)
        hidden, attention, classifier = text_rates(
            rates, own.dropout, own.attention_dropout, own.classifier_dropout
        )
        projection = {
            "distilbert": Projection("relu", classifier, 0.0),
            "electra": Projection("gelu", classifier, classifier),
            "roberta": Projection("tanh", classifier, classifier),
            "xlm_roberta": Projection("tanh", classifier, classifier),
        }.get(name)
        # DistilBERT's classifier of tokens has the rate of its layers.
        per_token = hidden if name == "distilbert" and meta.per_token else classifier
        super().__init__(
            num_features=own.width,
            num_classes=num_classes,
            meta=meta,
            dropout=per_token,
            std=own.std,
            positions=own.max_length,
            projection=projection,
        )
        names = [f"layer.{index}" for index in range(own.depth)]
        pooled = own.pooler and not meta.per_token
        self.stages = ("embeddings", *names, *(["pooler"] if pooled else []))
        self.embeddings = Embeddings(own, hidden)
        for each in names:
            setattr(self, each, layer(own, hidden, attention))
        if pooled:
            self.pooler = Pooler(own.width, own.std)
        else:
            self.unused = ("pooler",)


def create(name: str, *, num_classes: int, meta: WeightsMeta, rates: Rates) -> Bert:
    """Returns the encoder called `name`, with shapes for values: see `tlx.models.abstract_model`."""
    return Bert(name, num_classes=num_classes, meta=meta, rates=rates)


def text_facts(name: str, config: dict[str, Any]) -> TextFacts:
    """Returns the facts of the network that a config.json describes. Raises InputError as `sizes`."""
    own = sizes(name, json.dumps(config))
    return TextFacts(own.vocabulary, own.max_length, own.pad_id, own.segments > 1)


def default_meta(name: str) -> WeightsMeta:
    """Returns the facts of this architecture where no weights say them."""
    return text_facts(name, {}).default_meta(name)


def key_tables(name: str) -> tuple[KeyTable, ...]:
    """Returns the key tables that weights of this architecture may come in."""
    return distilbert_tables() if name == "distilbert" else bert_tables(name)
