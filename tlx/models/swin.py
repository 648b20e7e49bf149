"""Swin Transformer (Liu et al. 2021, arXiv:2103.14030), the first version, windows of 7x7 patches.

Maps of any size are padded to whole windows as torchvision does it: with zeros, after the norm and
before the shift. (timm shifts first: the two agree where nothing is padded, as at 224 pixels.) Each
stage starts with its own downsampling, as in timm; the authors' release and transformers have it at
the end of the stage before.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tlx.models.base import Model, Rates
from tlx.models.formulations import fork
from tlx.models.layers import (
    Conv,
    LayerNorm,
    Linear,
    chain,
    drop_path,
    gelu,
    global_average_pool,
    normal,
    parameter,
    subkeys,
    uniform,
    uniform_conv,
)
from tlx.models.swin_keys import tables
from tlx.models.swin_windows import MASKED, WINDOW, regions, relative_position_index
from tlx.weights.keymap import KeyTable
from tlx.weights.meta import ImagePreprocess, WeightsMeta

EPSILON = 1e-5  # of every LayerNorm
HEAD_FEATURES = 32

# PyTorch's `trunc_normal_(std=0.02)` cuts off at -2 and 2, a hundred deviations away.
_INIT = normal(0.02)


@dataclasses.dataclass(frozen=True)
class SwinPreset:
    """The numbers that tell one Swin from another."""

    depths: tuple[int, ...]  # blocks in each stage
    width: int  # of the first stage; each further one is twice as wide
    drop_path: float  # of the last block, as torchvision trains it
    resize: int  # pixels, of torchvision's evaluation


PRESETS = {
    "swin_tiny_patch4_window7_224": SwinPreset((2, 2, 6, 2), 96, 0.2, 232),
    "swin_small_patch4_window7_224": SwinPreset((2, 2, 18, 2), 96, 0.3, 246),
    "swin_base_patch4_window7_224": SwinPreset((2, 2, 18, 2), 128, 0.5, 238),
}


class Stem(nnx.Module):
    """Patches of 4x4 pixels as vectors, and LayerNorm."""

    def __init__(self, in_channels: int, width: int):
        # The convolution is the one layer whose values the originals leave as PyTorch draws them.
        bound = (16 * in_channels) ** -0.5
        self.conv = Conv(
            in_channels, width, 4, stride=4, bias=True, init=uniform_conv, bias_init=uniform(bound)
        )
        self.norm = LayerNorm(width, epsilon=EPSILON)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return self.norm(self.conv(x))


class PatchMerging(nnx.Module):
    """Four neighbouring patches become one of twice the width; odd sizes are padded with zeros."""

    def __init__(self, width: int):
        self.norm = LayerNorm(4 * width, epsilon=EPSILON)
        self.reduction = Linear(4 * width, 2 * width, bias=False, init=_INIT)

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, features = x.shape
        x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
        x = x.reshape(batch, -(-height // 2), 2, -(-width // 2), 2, features)
        # The column counts before the row: upper left, lower left, upper right, lower right.
        x = x.transpose(0, 1, 3, 4, 2, 5).reshape(*x.shape[:2], x.shape[3], 4 * features)
        return self.reduction(self.norm(x))


class WindowAttention(nnx.Module):
    """Multi-head attention inside each window, with a learned bias for each relative position."""

    def __init__(self, width: int):
        self.heads = width // HEAD_FEATURES
        self.query, self.key, self.value, self.output = (
            Linear(width, width, init=_INIT) for _ in range(4)
        )
        self.position_bias = parameter(((2 * WINDOW - 1) ** 2, self.heads), _INIT)

    def __call__(self, x: jax.Array, numbers: np.ndarray | None) -> jax.Array:
        """Maps [B, windows, 49, C] to the same.

        `numbers` are from `swin_windows.regions`; None: all of a window are neighbours.
        """
        split = (*x.shape[:3], self.heads, HEAD_FEATURES)
        query, key, value = (part(x).reshape(split) for part in (self.query, self.key, self.value))
        query = query * jnp.asarray(HEAD_FEATURES**-0.5, x.dtype)
        logits = jnp.einsum("bnqhd,bnkhd->bnhqk", query, key, preferred_element_type=jnp.float32)
        table = jnp.asarray(self.position_bias[...])
        biases = table.at[relative_position_index()].get(mode="promise_in_bounds")
        logits = logits + biases.transpose(2, 0, 1)
        if numbers is not None:
            # Compared here: a mask of all windows would be a large constant of the program.
            apart = jnp.asarray(numbers)[:, None, :, None] != jnp.asarray(numbers)[:, None, None, :]
            logits = logits + jnp.where(apart, MASKED, 0.0)
        weights = jax.nn.softmax(logits, axis=-1).astype(x.dtype)
        return self.output(jnp.einsum("bnhqk,bnkhd->bnqhd", weights, value).reshape(x.shape))


class Block(nnx.Module):
    """Attention in windows, every second time shifted by half a window, and two layers."""

    def __init__(self, width: int, *, shifted: bool, rate: float):
        self.shifted, self.drop_path = shifted, rate
        self.norm1 = LayerNorm(width, epsilon=EPSILON)
        self.attention = WindowAttention(width)
        self.norm2 = LayerNorm(width, epsilon=EPSILON)
        self.fc1 = Linear(width, 4 * width, init=_INIT)
        self.fc2 = Linear(4 * width, width, init=_INIT)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        attention_key, layers_key = subkeys(key, 2)
        y, x = fork(x)
        y, x = fork(x + drop_path(self._attend(self.norm1(y)), self.drop_path, attention_key))
        y = self.fc2(gelu(self.fc1(self.norm2(y))))
        return x + drop_path(y, self.drop_path, layers_key)

    def _attend(self, x: jax.Array) -> jax.Array:
        batch, height, width, features = x.shape
        rows, columns = -(-height // WINDOW), -(-width // WINDOW)
        padding = (rows * WINDOW - height, columns * WINDOW - width)
        x = jnp.pad(x, ((0, 0), (0, padding[0]), (0, padding[1]), (0, 0)))
        # A map of a single window has nothing beyond it to shift in.
        by = WINDOW // 2 if self.shifted else 0
        shift = (by if rows > 1 else 0, by if columns > 1 else 0)
        x = jnp.roll(x, (-shift[0], -shift[1]), (1, 2)) if any(shift) else x
        x = x.reshape(batch, rows, WINDOW, columns, WINDOW, features).transpose(0, 1, 3, 2, 4, 5)
        numbers = regions(rows * WINDOW, columns * WINDOW, shift) if any(shift) else None
        x = self.attention(x.reshape(batch, rows * columns, WINDOW**2, features), numbers)
        x = x.reshape(batch, rows, columns, WINDOW, WINDOW, features).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(batch, rows * WINDOW, columns * WINDOW, features)
        x = jnp.roll(x, shift, (1, 2)) if any(shift) else x
        return x[:, :height, :width]


class Stage(nnx.Module):
    """Downsampling, but in the first stage, and blocks of one width."""

    def __init__(self, width: int, rates: tuple[float, ...], *, first: bool):
        self.downsample = None if first else PatchMerging(width // 2)
        self.blocks = nnx.List(
            [Block(width, shifted=i % 2 == 1, rate=rate) for i, rate in enumerate(rates)]
        )

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return chain(x if self.downsample is None else self.downsample(x), self.blocks, key)


class NormPooled(nnx.Module):
    """LayerNorm, then the global average: [B, H, W, C] to [B, C]."""

    def __init__(self, width: int):
        self.norm = LayerNorm(width, epsilon=EPSILON)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return global_average_pool(self.norm(x))


class Swin(Model):
    """Stages: stem, stage1 to stage4, norm; features: the output of norm."""

    def __init__(self, preset: SwinPreset, *, num_classes: int, meta: WeightsMeta, rates: Rates):
        dropout, last_rate = rates.or_own(0.0, preset.drop_path)
        width = preset.width * 2 ** (len(preset.depths) - 1)
        super().__init__(num_features=width, num_classes=num_classes, meta=meta, dropout=dropout)
        names = tuple(f"stage{i + 1}" for i in range(len(preset.depths)))
        self.stages = ("stem", *names, "norm")
        self.stem = Stem(meta.image.channels, preset.width)
        total = sum(preset.depths)
        all_rates = [last_rate * i / (total - 1) for i in range(total)]
        for i, (name, depth) in enumerate(zip(names, preset.depths, strict=True)):
            own_rates, all_rates = tuple(all_rates[:depth]), all_rates[depth:]
            setattr(self, name, Stage(preset.width * 2**i, own_rates, first=i == 0))
        self.norm = NormPooled(width)

    def make_head(self) -> nnx.Module:
        """Returns the classifier, drawn as the network's other layers are."""
        return Linear(self.num_features, self.num_classes, init=_INIT)

    def pool(self, carry: jax.Array) -> jax.Array:
        """The last stage has pooled already."""
        return carry


def create(name: str, *, num_classes: int, meta: WeightsMeta, rates: Rates) -> Swin:
    """Returns the Swin called `name`, with shapes for values: see `tlx.models.abstract_model`."""
    return Swin(PRESETS[name], num_classes=num_classes, meta=meta, rates=rates)


def default_meta(name: str) -> WeightsMeta:
    """Returns how inputs are prepared where the weights do not say: as torchvision evaluates."""
    resize = PRESETS[name].resize
    return WeightsMeta(
        architecture=name,
        preprocess=ImagePreprocess(size=224, resize=resize, interpolation="bicubic"),
        num_classes=1000,
        classifier="head",
    )


def key_tables(name: str) -> tuple[KeyTable, ...]:
    """Returns the key tables that weights of this architecture may come in."""
    return tables(PRESETS[name].depths)
