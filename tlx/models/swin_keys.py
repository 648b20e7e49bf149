"""The names that five kinds of files have for the values of a Swin Transformer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np

from tlx.models.swin_windows import WINDOW, attention_mask, relative_position_index
from tlx.weights.keymap import (
    LINEAR,
    Key,
    KeyTable,
    conv_bias,
    fused_qkv,
    linear,
    norm,
    same,
    value,
)

STAGES = (1, 2, 3, 4)
_BIASES = same(2)  # the table of position biases, [169, heads]


@functools.cache
def tables(depths: Sequence[int]) -> tuple[KeyTable, ...]:
    """Returns the key tables for a network with so many blocks in each stage.

    They are those of torchvision; timm; the authors' release (github.com/microsoft/Swin-Transformer);
    the files of transformers' SwinForImageClassification; and the modules of its version 5, which
    renames the files' keys when it reads and writes them.
    """
    return (
        KeyTable("torchvision", _torchvision()),
        KeyTable("timm", _timm()),
        KeyTable("microsoft", _microsoft(depths)),
        KeyTable("transformers", _transformers()),
        KeyTable("transformers5", _transformers5()),
    )


def _index(source: str, ours: str, make: Callable[[], np.ndarray] | None) -> Key:
    """The row of an unused buffer that each block has."""
    beside = f"{ours}.attention.position_bias" if make else ""
    return Key(f"{source}.relative_position_index", (), beside=beside, default=make)


def _square_index() -> np.ndarray:
    return relative_position_index().astype(np.int64)


def _flat_index() -> np.ndarray:
    return _square_index().ravel()


def _merging(source: str, stage: int) -> tuple[Key, ...]:
    ours = f"stage{stage}.downsample"
    return (
        *norm(f"{source}.norm", f"{ours}.norm"),
        value(f"{source}.reduction.weight", f"{ours}.reduction.kernel", LINEAR),
    )


def _fused_block(theirs: str, ours: str, fc1: str, fc2: str) -> tuple[Key, ...]:
    """The rows of a block with query, key and value in one layer."""
    return (
        *norm(f"{theirs}.norm1", f"{ours}.norm1"),
        *fused_qkv(f"{theirs}.attn.qkv.weight", f"{theirs}.attn.qkv.bias", f"{ours}.attention"),
        *linear(f"{theirs}.attn.proj", f"{ours}.attention.output"),
        value(
            f"{theirs}.attn.relative_position_bias_table",
            f"{ours}.attention.position_bias",
            _BIASES,
        ),
        *norm(f"{theirs}.norm2", f"{ours}.norm2"),
        *linear(f"{theirs}.{fc1}", f"{ours}.fc1"),
        *linear(f"{theirs}.{fc2}", f"{ours}.fc2"),
    )


def _torchvision() -> tuple[Key, ...]:
    rows = [*conv_bias("features.0.0", "stem.conv"), *norm("features.0.2", "stem.norm")]
    for stage in STAGES:
        ours, theirs = f"stage{stage}.blocks.{{j}}", f"features.{2 * stage - 1}.{{j}}"
        rows += _fused_block(theirs, ours, "mlp.0", "mlp.3")
        rows.append(_index(f"{theirs}.attn", ours, _flat_index))
        if stage > 1:
            rows += _merging(f"features.{2 * stage - 2}", stage)
    return (*rows, *norm("norm", "norm.norm"), *linear("head", "head"))


def _patches() -> tuple[Key, ...]:
    return (
        *conv_bias("patch_embed.proj", "stem.conv"),
        *norm("patch_embed.norm", "stem.norm"),
        *norm("norm", "norm.norm"),
    )


def _timm() -> tuple[Key, ...]:
    rows = [*_patches(), *linear("head.fc", "head")]
    for stage in STAGES:
        ours, theirs = f"stage{stage}.blocks.{{j}}", f"layers.{stage - 1}.blocks.{{j}}"
        rows += _fused_block(theirs, ours, "mlp.fc1", "mlp.fc2")
        # Older files have the two buffers, which timm's modules no longer store.
        rows.append(_index(f"{theirs}.attn", ours, None))
        rows.append(Key(f"{theirs}.attn_mask", ()))
        if stage > 1:
            rows += _merging(f"layers.{stage - 1}.downsample", stage)
    return tuple(rows)


def _microsoft(depths: Sequence[int]) -> tuple[Key, ...]:
    rows = [*_patches(), *linear("head", "head")]
    for stage, depth in zip(STAGES, depths, strict=True):
        ours, theirs = f"stage{stage}.blocks.{{j}}", f"layers.{stage - 1}.blocks.{{j}}"
        rows += _fused_block(theirs, ours, "mlp.fc1", "mlp.fc2")
        rows.append(_index(f"{theirs}.attn", ours, _square_index))
        size = 56 // 2 ** (stage - 1)  # patches of the map, of pictures of 224 pixels
        # A map of one window is not shifted and has no mask.
        for block in range(1, depth, 2) if size > WINDOW else ():
            rows.append(
                Key(
                    f"layers.{stage - 1}.blocks.{block}.attn_mask",
                    (),
                    beside=f"stage{stage}.blocks.{block}.attention.position_bias",
                    default=functools.partial(attention_mask, size),
                )
            )
        if stage < STAGES[-1]:
            rows += _merging(f"layers.{stage - 1}.downsample", stage + 1)
    return tuple(rows)


def _split_block(theirs: str, ours: str, names: str) -> tuple[Key, ...]:
    """The rows of a block of transformers.

    `names`: of the query, key, value and output layers, the bias table, and the two layers after.
    """
    *attention, biases, fc1, fc2 = names.split()
    parts = zip(attention, ("query", "key", "value", "output"), strict=True)
    return (
        *norm(f"{theirs}.layernorm_before", f"{ours}.norm1"),
        *(
            row
            for name, part in parts
            for row in linear(f"{theirs}.attention.{name}", f"{ours}.attention.{part}")
        ),
        value(
            f"{theirs}.attention.{biases}.relative_position_bias_table",
            f"{ours}.attention.position_bias",
            _BIASES,
        ),
        *norm(f"{theirs}.layernorm_after", f"{ours}.norm2"),
        *linear(f"{theirs}.{fc1}", f"{ours}.fc1"),
        *linear(f"{theirs}.{fc2}", f"{ours}.fc2"),
    )


def _around_blocks() -> tuple[Key, ...]:
    """The rows of transformers' network but for its blocks."""
    rows = [
        *conv_bias("swin.embeddings.patch_embeddings.projection", "stem.conv"),
        *norm("swin.embeddings.norm", "stem.norm"),
        *norm("swin.layernorm", "norm.norm"),
        *linear("classifier", "head"),
    ]
    for stage in STAGES[1:]:
        rows += _merging(f"swin.encoder.layers.{stage - 2}.downsample", stage)
    return tuple(rows)


def _transformers() -> tuple[Key, ...]:
    names = "self.query self.key self.value output.dense self intermediate.dense output.dense"
    rows = [*_around_blocks()]
    for stage in STAGES:
        ours, theirs = f"stage{stage}.blocks.{{j}}", f"swin.encoder.layers.{stage - 1}.blocks.{{j}}"
        rows += _split_block(theirs, ours, names)
        rows.append(_index(f"{theirs}.attention.self", ours, _square_index))
    return tuple(rows)


def _transformers5() -> tuple[Key, ...]:
    names = "q_proj k_proj v_proj o_proj relative_position_bias mlp.fc1 mlp.fc2"
    rows = [*_around_blocks()]
    for stage in STAGES:
        ours, theirs = f"stage{stage}.blocks.{{j}}", f"swin.encoder.layers.{stage - 1}.blocks.{{j}}"
        rows += _split_block(theirs, ours, names)
    return tuple(rows)
