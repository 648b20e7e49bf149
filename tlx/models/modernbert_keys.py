"""The names that transformers' files have for the values of ModernBERT."""

from __future__ import annotations

import functools

import numpy as np

from tlx.models.bert_keys import DROPPED, norm
from tlx.weights.keymap import Key, KeyTable, Layout, fused_qkv, linear, same, value

_DROPPED = (*DROPPED, r"decoder\..*")

# The layer before the activation and its gate, one below the other.
_GATED_KERNEL = Layout(
    "(2O)I->2 IO",
    lambda x: tuple(part.T for part in np.split(x, 2)),
    lambda *parts: np.concatenate([part.T for part in parts]),
    2,
)
_GATED_BIAS = Layout("(2O)->2 O", lambda x: np.split(x, 2), lambda *parts: np.concatenate(parts), 1)


@functools.cache
def modernbert_tables() -> tuple[KeyTable, ...]:
    """Returns the key tables: of a network with a head, or one for pretraining, and of the encoder alone."""
    head = (
        *linear("head.dense", "pooler.dense"),
        *norm("head.norm", "pooler.norm"),
        *linear("classifier", "head"),
    )
    return (
        KeyTable("transformers", (*_rows("model."), *head), dropped=_DROPPED),
        KeyTable("transformers_backbone", _rows(""), dropped=_DROPPED),
    )


def _rows(prefix: str) -> tuple[Key, ...]:
    first, theirs, ours = f"{prefix}embeddings", f"{prefix}layers.{{i}}", "layer.{i}"
    gated = (f"{ours}.fc1", f"{ours}.gate")
    return (
        value(f"{first}.tok_embeddings.weight", "embeddings.word_embedding", same(2)),
        *norm(f"{first}.norm", "embeddings.norm"),
        *norm(f"{theirs}.attn_norm", f"{ours}.norm1"),
        *fused_qkv(f"{theirs}.attn.Wqkv.weight", f"{theirs}.attn.Wqkv.bias", f"{ours}.attention"),
        *linear(f"{theirs}.attn.Wo", f"{ours}.attention.output"),
        *norm(f"{theirs}.mlp_norm", f"{ours}.norm2"),
        Key(f"{theirs}.mlp.Wi.weight", tuple(f"{part}.kernel" for part in gated), _GATED_KERNEL),
        Key(f"{theirs}.mlp.Wi.bias", tuple(f"{part}.bias" for part in gated), _GATED_BIAS),
        *linear(f"{theirs}.mlp.Wo", f"{ours}.fc2"),
        *norm(f"{prefix}final_norm", "norm"),
    )
