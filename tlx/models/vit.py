"""Vision Transformers: ViT (Dosovitskiy et al. 2020, arXiv:2010.11929; the tiny and small ones of Touvron et al.),
DeiT without distillation token (Touvron et al. 2020, arXiv:2012.12877), and the backbones of DINOv2 (Oquab et al. 2023,
arXiv:2304.07193) with and without registers (Darcet et al. 2023, arXiv:2309.16588).

Epsilons are those of the authors', timm's and torchvision's networks, 1e-6. transformers' ViT has 1e-12: its files
get that by their key table, as part of the meta, because patches of little contrast make it matter (5e-4 of the logits).
What a class token looks like after the final norm is the feature; networks that average the patches are others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tlx.errors import InputError
from tlx.models.attention import SelfAttention
from tlx.models.base import Model, Rates
from tlx.models.formulations import fork
from tlx.models.layers import (
    Constant,
    Conv,
    LayerNorm,
    Linear,
    drop_path,
    gelu,
    layer_scale,
    normal,
    parameter,
    subkeys,
    uniform,
    uniform_conv,
)
from tlx.models.positions import resize_positions
from tlx.models.vit_keys import dinov2_tables, vit_tables
from tlx.weights.keymap import KeyTable
from tlx.weights.meta import ImagePreprocess, WeightsMeta

EPSILON = 1e-6  # of every LayerNorm, where the weights do not say otherwise
POSITIONS = "stem.position_embedding"

# timm's `trunc_normal_(std=0.02)` cuts off at -2 and 2, a hundred deviations away: a plain normal.
_INIT = normal(0.02)
_TOKEN_INIT = normal(1e-6)
_LAYER_SCALE_INIT = Constant(1e-5)


@dataclasses.dataclass(frozen=True)
class ViTPreset:
    """The numbers that tell one Vision Transformer from another."""

    width: int
    depth: int
    patch: int  # pixels, both sides
    deit: bool = False  # trained by DeiT's recipe: stochastic depth, ImageNet's mean and deviation
    dinov2: bool = False  # a backbone with layer scale, for larger pictures
    registers: int = 0  # tokens that stand for nothing

    @property
    def heads(self) -> int:
        """Attention heads are 64 wide in all of them."""
        return self.width // 64

    @property
    def positioned(self) -> int:
        """The first tokens that have a position embedding: with registers, none has."""
        return 0 if self.registers else 1


_SIZES = {"tiny": (192, 12), "small": (384, 12), "base": (768, 12), "large": (1024, 24)}

PRESETS = {
    **{
        f"vit_{size}_patch{patch}_224": ViTPreset(*_SIZES[size], patch)
        for size, patch in (
            ("tiny", 16),
            ("small", 16),
            ("small", 32),
            ("base", 16),
            ("base", 32),
            ("large", 16),
        )
    },
    **{
        f"deit_{size}_patch16_224": ViTPreset(*_SIZES[size], 16, deit=True)
        for size in ("tiny", "small", "base")
    },
    **{
        f"vit_{size}_patch14{suffix}_dinov2": ViTPreset(
            *_SIZES[size], 14, dinov2=True, registers=registers
        )
        for suffix, registers in (("", 0), ("_reg4", 4))
        for size in ("small", "base")
    },
}

VIT_EVAL = ImagePreprocess(
    size=224, resize=248, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3
)
DEIT_EVAL = ImagePreprocess(size=224, resize=248, interpolation="bicubic")
DINOV2_EVAL = ImagePreprocess(size=518, resize=518, interpolation="bicubic")


class Stem(nnx.Module):
    """Patches as tokens, row by row, after the class token and the registers; position embeddings added."""

    def __init__(self, preset: ViTPreset, in_channels: int, size: int):
        self.size, self.positioned = size, preset.positioned
        width, patch = preset.width, preset.patch
        # The convolution is the one layer whose values timm leaves as PyTorch draws them.
        bound = (patch * patch * in_channels) ** -0.5
        self.conv = Conv(
            in_channels,
            width,
            patch,
            stride=patch,
            bias=True,
            init=uniform_conv,
            bias_init=uniform(bound),
        )
        self.class_token = parameter((1, 1, width), _TOKEN_INIT)
        self.registers = (
            parameter((1, preset.registers, width), _TOKEN_INIT) if preset.registers else None
        )
        tokens = (size // patch) ** 2 + preset.positioned
        self.position_embedding = parameter((1, tokens, width), _INIT)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Maps [B, size, size, C] to [B, tokens, D].

        Raises:
          InputError: pictures of another size, for which there are no position embeddings.
        """
        if x.shape[1:3] != (self.size, self.size):
            height, width = x.shape[1:3]
            raise InputError(
                f"the pictures have {height}x{width} pixels (height x width), but the network was made for "
                f"{self.size}x{self.size}: resize them, or make the network for another square (image_size=...)"
            )
        patches = self.conv(x).reshape(x.shape[0], -1, self.class_token.shape[-1])
        positions = self.position_embedding[...].astype(x.dtype)
        own, shared = positions[:, : self.positioned], positions[:, self.positioned :]
        token = self.class_token[...].astype(x.dtype)
        prefix = [token + own if self.positioned else token]
        if self.registers is not None:
            prefix.append(self.registers[...].astype(x.dtype))
        prefix = [jnp.broadcast_to(part, (x.shape[0], *part.shape[1:])) for part in prefix]
        return jnp.concatenate([*prefix, patches + shared], axis=1)


class Block(nnx.Module):
    """Attention, then two linear layers with a GELU between, each normalised before and added to the tokens."""

    def __init__(self, preset: ViTPreset, rate: float, epsilon: float):
        width = preset.width
        self.drop_path = rate
        self.norm1 = LayerNorm(width, epsilon=epsilon)
        self.attention = SelfAttention(width, preset.heads, init=_INIT)
        self.norm2 = LayerNorm(width, epsilon=epsilon)
        self.fc1 = Linear(width, 4 * width, init=_INIT)
        self.fc2 = Linear(4 * width, width, init=_INIT)
        self.scale1, self.scale2 = (
            parameter((width,), _LAYER_SCALE_INIT) if preset.dinov2 else None for _ in range(2)
        )

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        key1, key2 = subkeys(key, 2)
        y, x = fork(x)
        y = _scaled(self.attention(self.norm1(y)), self.scale1)
        y, x = fork(x + drop_path(y, self.drop_path, key1))
        y = _scaled(self.fc2(gelu(self.fc1(self.norm2(y)))), self.scale2)
        return x + drop_path(y, self.drop_path, key2)


def _scaled(x: jax.Array, scale: nnx.Param[jax.Array] | None) -> jax.Array:
    return x if scale is None else layer_scale(x, scale)


class FinalNorm(LayerNorm):
    """LayerNorm as a stage of its own."""

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return super().__call__(x)


class ViT(Model):
    """Stages: stem, block0, block1, ..., norm, all of [B, tokens, D]; features: the class token, the first one."""

    def __init__(self, preset: ViTPreset, *, num_classes: int, meta: WeightsMeta, rates: Rates):
        size = meta.image.size
        if size < preset.patch or size % preset.patch:
            raise InputError(
                f"{meta.architecture} cuts pictures into patches of {preset.patch}x{preset.patch} pixels: the input size "
                f"must be a multiple of {preset.patch}, not {size}"
            )
        rate, last_rate = rates.or_own(0.0, 0.1 if preset.deit else 0.0)
        super().__init__(
            num_features=preset.width, num_classes=num_classes, meta=meta, dropout=rate
        )
        blocks = [f"block{index}" for index in range(preset.depth)]
        self.stages = ("stem", *blocks, "norm")
        self.positioned = preset.positioned
        self.grid = (size // preset.patch,) * 2
        self.stem = Stem(preset, meta.image.channels, size)
        epsilon = meta.norm_epsilon if meta.norm_epsilon > 0 else EPSILON
        for index, name in enumerate(blocks):
            block_rate = last_rate * index / (preset.depth - 1)
            setattr(self, name, Block(preset, block_rate, epsilon))
        self.norm = FinalNorm(preset.width, epsilon=epsilon)

    def make_head(self) -> nnx.Module:
        return Linear(self.num_features, self.num_classes, init=_INIT)

    def pool(self, carry: jax.Array) -> jax.Array:
        return carry[:, 0]

    def fit_value(self, path: str, array: np.ndarray, shape: Sequence[int]) -> np.ndarray | None:
        if path != POSITIONS:
            return None
        return resize_positions(array, self.grid, self.positioned)


def create(name: str, *, num_classes: int, meta: WeightsMeta, rates: Rates) -> ViT:
    """Returns the Vision Transformer called `name`, with shapes for values: see `tlx.models.abstract_model`."""
    return ViT(PRESETS[name], num_classes=num_classes, meta=meta, rates=rates)


def default_meta(name: str) -> WeightsMeta:
    """Returns how inputs are prepared for this architecture where the weights do not say."""
    if PRESETS[name].dinov2:
        return WeightsMeta(architecture=name, preprocess=DINOV2_EVAL)
    return WeightsMeta(
        architecture=name,
        preprocess=DEIT_EVAL if PRESETS[name].deit else VIT_EVAL,
        num_classes=1000,
        classifier="head",
    )


def key_tables(name: str) -> tuple[KeyTable, ...]:
    """Returns the key tables that weights of this architecture may come in."""
    preset = PRESETS[name]
    if preset.dinov2:
        return dinov2_tables(preset.width, registers=preset.registers > 0)
    return vit_tables()
