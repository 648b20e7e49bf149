"""The names that transformers' files have for the values of DeBERTa V2 and V3."""

from __future__ import annotations

import functools

from tlx.models.bert_keys import DROPPED, norm
from tlx.weights.keymap import Key, KeyTable, linear, same, value

_TABLE = same(2)  # an embedding, [V, D]

# Of pretraining: also V3's two networks (arXiv:2111.09543), whose embeddings were written as a sum with their difference.
_DROPPED = (
    *DROPPED,
    r"(lm|mask)_predictions\..*",
    r"(deberta\.)?embeddings\.(word|position)_embeddings\._weight",
)


@functools.cache
def deberta_tables() -> tuple[KeyTable, ...]:
    """Returns the key tables: of a network that classifies texts, or tokens, and of the encoder alone."""
    rows = _rows("deberta.")
    texts = (*linear("pooler.dense", "head.dense"), *linear("classifier", "head.out"))
    return (
        KeyTable("transformers", (*rows, *texts), dropped=_DROPPED, required="pooler.dense.weight"),
        KeyTable("transformers_tokens", (*rows, *linear("classifier", "head")), dropped=_DROPPED),
        KeyTable("transformers_backbone", _rows(""), dropped=_DROPPED),
    )


def _rows(prefix: str) -> tuple[Key, ...]:
    first, theirs, ours = f"{prefix}embeddings", f"{prefix}encoder.layer.{{i}}", "layer.{i}"
    parts = {
        "query_proj": "query",
        "key_proj": "key",
        "value_proj": "value",
        "pos_key_proj": "position_key",
        "pos_query_proj": "position_query",
    }
    return (
        value(f"{first}.word_embeddings.weight", "embeddings.word_embedding", _TABLE),
        value(f"{first}.position_embeddings.weight", "embeddings.position_embedding", _TABLE),
        value(f"{first}.token_type_embeddings.weight", "embeddings.type_embedding", _TABLE),
        *linear(f"{first}.embed_proj", "embeddings.projection"),
        *norm(f"{first}.LayerNorm", "embeddings.norm"),
        Key(f"{first}.position_ids", ()),
        value(f"{prefix}encoder.rel_embeddings.weight", "embeddings.relative_embedding", _TABLE),
        *norm(f"{prefix}encoder.LayerNorm", "embeddings.relative_norm"),
        *(
            row
            for part, own in parts.items()
            for row in linear(f"{theirs}.attention.self.{part}", f"{ours}.attention.{own}")
        ),
        *linear(f"{theirs}.attention.output.dense", f"{ours}.attention.output"),
        *norm(f"{theirs}.attention.output.LayerNorm", f"{ours}.norm1"),
        *linear(f"{theirs}.intermediate.dense", f"{ours}.fc1"),
        *linear(f"{theirs}.output.dense", f"{ours}.fc2"),
        *norm(f"{theirs}.output.LayerNorm", f"{ours}.norm2"),
    )
