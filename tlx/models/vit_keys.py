"""The names that the projects' files have for the values of a Vision Transformer."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable

import numpy as np

from tlx.weights.keymap import (
    Arrays,
    Conversion,
    Key,
    KeyTable,
    conv_bias,
    fused_qkv,
    linear,
    norm,
    same,
    value,
)

# Of its ViT, not its DINOv2; most of the files it reads were trained with 1e-6.
TRANSFORMERS_EPSILON = 1e-12

_TOKENS = same(3)  # [1, tokens, D]

# Of transformers' blocks: query, key, value and output; the two layers after attention. Its files have had the first
# names since version 1; version 5 renames them when it reads and writes, but its modules have the second.
_FILE_ATTENTION = "attention.query attention.key attention.value output.dense"
_MODULE_ATTENTION = "q_proj k_proj v_proj o_proj"


@dataclasses.dataclass(frozen=True)
class BackboneTable(KeyTable):
    """A table of files which may have a position for the class token.

    The network with registers gives positions to patches only, as timm's does: there the class token has its
    own added to it already. Other projects' files have the two apart, as `class_token` and the first of `positions`; they
    are added on the way in, and kept so that what training did not change comes out as it was.

    Attributes:
      class_token, positions: the source's names where the two are to be added, else "".
    """

    class_token: str = ""
    positions: str = ""

    def to_target(self, arrays: Arrays) -> Conversion:
        """Renames and rearranges a file's arrays."""
        token, positions = arrays.get(self.class_token), arrays.get(self.positions)
        if token is None or positions is None or positions.ndim != 3:
            return super().to_target(arrays)
        own = positions[:, :1]
        merged = {self.class_token: _sum(token, own), self.positions: positions[:, 1:]}
        conversion = super().to_target({**arrays, **merged})
        conversion.carried.update({self._token_alone: token, self._token_position: own})
        return conversion

    def to_source(self, arrays: Arrays, carried: Arrays | None = None) -> dict[str, np.ndarray]:
        """Returns the arrays under the source's names and in its layouts. Raises as the base does."""
        if not self.class_token:
            return super().to_source(arrays, carried)
        rest = dict(carried or {})
        token, own = rest.pop(self._token_alone, None), rest.pop(self._token_position, None)
        source = super().to_source(arrays, None if carried is None else rest)
        merged, patches = source[self.class_token], source[self.positions]
        if token is None or own is None:
            token, own = merged, np.zeros_like(merged)
        elif not np.array_equal(merged, _sum(token, own), equal_nan=True):
            token = merged - own
        source[self.class_token] = token
        source[self.positions] = np.concatenate([own.astype(patches.dtype), patches], axis=1)
        return source

    @property
    def _token_alone(self) -> str:
        return f"{self.class_token} without its position"

    @property
    def _token_position(self) -> str:
        return f"{self.positions} of the class token"


def _sum(token: np.ndarray, position: np.ndarray) -> np.ndarray:
    return token.astype(np.float32) + position.astype(np.float32)


@functools.cache
def vit_tables() -> tuple[KeyTable, ...]:
    """Returns the key tables for a ViT or DeiT.

    They are those of timm (also the authors' DeiT and DINO releases); torchvision, and the files that it publishes,
    which are older than its present names; transformers' ViTForImageClassification and ViTModel, as files and as
    modules of version 5. (ViTModel has no classifier; one that was trained here is written beside its names. DeiT without
    distillation is a ViTForImageClassification too; DeiTForImageClassification has a token more and is another network.)
    """
    classifier = linear("classifier", "head")
    # What was trained without the pooling layer does not have it, and none is made up.
    pooler = (Key("pooler.dense.weight", ()), Key("pooler.dense.bias", ()))
    files = functools.partial(_transformers_vit, block="encoder.layer.{i}", new=False)
    modules = functools.partial(_transformers_vit, block="layers.{i}", new=True)
    return (
        KeyTable("timm", (*_timm(), *linear("head", "head"))),
        KeyTable("torchvision", _torchvision("mlp.0", "mlp.3")),
        KeyTable("torchvision_published", _torchvision("mlp.linear_1", "mlp.linear_2")),
        *(
            KeyTable(name, (*rows, *classifier), norm_epsilon=TRANSFORMERS_EPSILON)
            for name, rows in (
                ("transformers", files("vit.")),
                ("transformers5", modules("vit.")),
                ("transformers_backbone", (*files(""), *pooler)),
                ("transformers5_backbone", (*modules(""), *pooler)),
            )
        ),
    )


@functools.cache
def dinov2_tables(width: int, *, registers: bool) -> tuple[KeyTable, ...]:
    """Returns the key tables for a DINOv2 backbone of that width.

    They are those of timm; the authors' release; transformers' Dinov2Model or Dinov2WithRegistersModel, as files and as
    modules of version 5. All but timm's have the token that stood for masked patches in pretraining. The
    originals have no classifier; one that was trained here is written beside their names.
    """

    def table(name: str, rows: Iterable[Key], prefix: str, positions: str) -> KeyTable:
        mask = f"{prefix}mask_token"
        unused = Key(mask, (), beside="norm.scale", default=functools.partial(_zeros, 1, width))
        own = _registers(f"{prefix}register_tokens") if registers else ()
        return BackboneTable(
            name,
            (*rows, *own, unused),
            required="" if prefix else mask,  # all else is as in timm's files
            class_token=f"{prefix}cls_token" if registers else "",
            positions=f"{prefix}{positions}" if registers else "",
        )

    scales = tuple(value(f"blocks.{{i}}.ls{n}.gamma", f"block{{i}}.scale{n}") for n in (1, 2))
    shared = (*_timm(), *scales, *linear("head", "head"))
    files, modules = map(_transformers_dinov2, (_FILE_ATTENTION, _MODULE_ATTENTION))
    return (
        KeyTable("timm", (*shared, *(_registers("reg_token") if registers else ()))),
        table("facebook", shared, "", "pos_embed"),
        table("transformers", files, "embeddings.", "position_embeddings"),
        table("transformers5", modules, "embeddings.", "position_embeddings"),
    )


def _zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def _registers(name: str) -> tuple[Key, ...]:
    return (value(name, "stem.registers", _TOKENS),)


def _timm() -> tuple[Key, ...]:
    ours, theirs = "block{i}", "blocks.{i}"
    return (
        value("cls_token", "stem.class_token", _TOKENS),
        value("pos_embed", "stem.position_embedding", _TOKENS),
        *conv_bias("patch_embed.proj", "stem.conv"),
        *norm(f"{theirs}.norm1", f"{ours}.norm1"),
        *fused_qkv(f"{theirs}.attn.qkv.weight", f"{theirs}.attn.qkv.bias", f"{ours}.attention"),
        *linear(f"{theirs}.attn.proj", f"{ours}.attention.output"),
        *norm(f"{theirs}.norm2", f"{ours}.norm2"),
        *linear(f"{theirs}.mlp.fc1", f"{ours}.fc1"),
        *linear(f"{theirs}.mlp.fc2", f"{ours}.fc2"),
        *norm("norm", "norm"),
    )


def _torchvision(fc1: str, fc2: str) -> tuple[Key, ...]:
    ours, theirs = "block{i}", "encoder.layers.encoder_layer_{i}"
    attention = f"{theirs}.self_attention"
    return (
        value("class_token", "stem.class_token", _TOKENS),
        value("encoder.pos_embedding", "stem.position_embedding", _TOKENS),
        *conv_bias("conv_proj", "stem.conv"),
        *norm(f"{theirs}.ln_1", f"{ours}.norm1"),
        *fused_qkv(f"{attention}.in_proj_weight", f"{attention}.in_proj_bias", f"{ours}.attention"),
        *linear(f"{attention}.out_proj", f"{ours}.attention.output"),
        *norm(f"{theirs}.ln_2", f"{ours}.norm2"),
        *linear(f"{theirs}.{fc1}", f"{ours}.fc1"),
        *linear(f"{theirs}.{fc2}", f"{ours}.fc2"),
        *norm("encoder.ln", "norm"),
        *linear("heads.head", "head"),
    )


def _transformers_embeddings(prefix: str) -> tuple[Key, ...]:
    theirs = f"{prefix}embeddings"
    return (
        value(f"{theirs}.cls_token", "stem.class_token", _TOKENS),
        value(f"{theirs}.position_embeddings", "stem.position_embedding", _TOKENS),
        *conv_bias(f"{theirs}.patch_embeddings.projection", "stem.conv"),
        *norm(f"{prefix}layernorm", "norm"),
    )


def _transformers_attention(theirs: str, names: str) -> tuple[Key, ...]:
    parts = zip(names.split(), ("query", "key", "value", "output"), strict=True)
    return tuple(
        row
        for name, part in parts
        for row in linear(f"{theirs}.attention.{name}", f"block{{i}}.attention.{part}")
    )


def _transformers_vit(prefix: str, *, block: str, new: bool) -> tuple[Key, ...]:
    theirs = f"{prefix}{block}"
    fc1, fc2 = ("mlp.fc1", "mlp.fc2") if new else ("intermediate.dense", "output.dense")
    return (
        *_transformers_embeddings(prefix),
        *norm(f"{theirs}.layernorm_before", "block{i}.norm1"),
        *_transformers_attention(theirs, _MODULE_ATTENTION if new else _FILE_ATTENTION),
        *norm(f"{theirs}.layernorm_after", "block{i}.norm2"),
        *linear(f"{theirs}.{fc1}", "block{i}.fc1"),
        *linear(f"{theirs}.{fc2}", "block{i}.fc2"),
    )


def _transformers_dinov2(attention: str) -> tuple[Key, ...]:
    theirs = "encoder.layer.{i}"
    return (
        *_transformers_embeddings(""),
        *(row for n in (1, 2) for row in norm(f"{theirs}.norm{n}", f"block{{i}}.norm{n}")),
        *_transformers_attention(theirs, attention),
        *(value(f"{theirs}.layer_scale{n}.lambda1", f"block{{i}}.scale{n}") for n in (1, 2)),
        *(row for n in (1, 2) for row in linear(f"{theirs}.mlp.fc{n}", f"block{{i}}.fc{n}")),
        *linear("classifier", "head"),
    )
