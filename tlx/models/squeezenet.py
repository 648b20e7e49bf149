"""SqueezeNet (Iandola et al. 2016, arXiv:1602.07360), versions 1.0 and 1.1, as torchvision has it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tlx.models.base import Model, Rates
from tlx.models.layers import (
    Conv,
    chain,
    dropout,
    global_average_pool,
    kaiming_uniform_fan_in,
    max_pool,
    normal,
)
from tlx.weights.keymap import Key, KeyTable, conv_bias
from tlx.weights.meta import IMAGENET_EVAL, WeightsMeta

SMALL_STEM = True  # a 3x3 convolution without stride, and no pooling


@dataclasses.dataclass(frozen=True)
class SqueezeNetPreset:
    """The numbers that tell one SqueezeNet from another."""

    stem_width: int
    stem_kernel: int  # pixels
    # Per stage and Fire module: channels of its squeeze and of each of its two expand convolutions.
    fires: tuple[tuple[tuple[int, int], ...], ...]


PRESETS = {
    "squeezenet1_0": SqueezeNetPreset(
        stem_width=96,
        stem_kernel=7,
        fires=(
            ((16, 64), (16, 64), (32, 128)),
            ((32, 128), (48, 192), (48, 192), (64, 256)),
            ((64, 256),),
        ),
    ),
    "squeezenet1_1": SqueezeNetPreset(
        stem_width=64,
        stem_kernel=3,
        fires=(
            ((16, 64), (16, 64)),
            ((32, 128), (32, 128)),
            ((48, 192), (48, 192), (64, 256), (64, 256)),
        ),
    ),
}


def _conv(in_features: int, out_features: int, size: int, *, padding: int, stride: int = 1) -> Conv:
    return Conv(
        in_features,
        out_features,
        size,
        stride=stride,
        padding=padding,
        bias=True,
        init=kaiming_uniform_fan_in,
    )


class Stem(nnx.Module):
    """Convolution and ReLU, and for large pictures a 3x3/2 max-pool."""

    def __init__(self, in_channels: int, preset: SqueezeNetPreset, *, small: bool):
        self.small = small
        self.conv = (
            _conv(in_channels, preset.stem_width, 3, padding=1)
            if small
            else _conv(in_channels, preset.stem_width, preset.stem_kernel, padding=0, stride=2)
        )

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        x = jax.nn.relu(self.conv(x))
        return x if self.small else max_pool(x, 3, stride=2, ceil_mode=True)


class Fire(nnx.Module):
    """A 1x1 convolution to few channels, then 1x1 and 3x3 convolutions side by side."""

    def __init__(self, in_features: int, squeezed: int, expanded: int):
        self.squeeze = _conv(in_features, squeezed, 1, padding=0)
        self.expand1x1 = _conv(squeezed, expanded, 1, padding=0)
        self.expand3x3 = _conv(squeezed, expanded, 3, padding=1)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Maps [B, H, W, in] to [B, H, W, 2 * expanded]."""
        x = jax.nn.relu(self.squeeze(x))
        return jax.nn.relu(jnp.concatenate([self.expand1x1(x), self.expand3x3(x)], axis=-1))


class Fires(nnx.List):
    """A stage: Fire modules at one resolution, and the max-pool that halves it for the next."""

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return chain(x, self, key)


class PooledFires(Fires):
    """Fire modules and a 3x3/2 max-pool."""

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return max_pool(super().__call__(x, key), 3, stride=2, ceil_mode=True)


class SqueezeNet(Model):
    """Stages: stem, stage1, stage2, stage3.

    The one exception among the models: its head is a 1x1 convolution, ReLU and then the average over
    the map. What the head reads is the map (`pool` leaves it as it is); `features` are the map's
    average, [B, 512], and the logits are no function of them.
    """

    def __init__(
        self, preset: SqueezeNetPreset, *, num_classes: int, meta: WeightsMeta, rates: Rates
    ):
        super().__init__(
            num_features=2 * preset.fires[-1][-1][-1],
            num_classes=num_classes,
            meta=meta,
            dropout=rates.dropout_only(meta.architecture, 0.5),
        )
        self.stages = ("stem", *(f"stage{i + 1}" for i in range(len(preset.fires))))
        self.stem = Stem(meta.image.channels, preset, small=meta.stem == "small")
        in_features = preset.stem_width
        for index, sizes in enumerate(preset.fires):
            fires = []
            for squeezed, expanded in sizes:
                fires.append(Fire(in_features, squeezed, expanded))
                in_features = 2 * expanded
            kind = Fires if index == len(preset.fires) - 1 else PooledFires
            setattr(self, f"stage{index + 1}", kind(fires))

    def make_head(self) -> nnx.Module:
        """Returns the classifier, a convolution that maps [B, H, W, 512] to [B, H, W, num_classes]."""
        return Conv(self.num_features, self.num_classes, 1, bias=True, init=normal(0.01))

    def features(self, x: jax.Array | np.ndarray) -> jax.Array:
        """Maps preprocessed [B, H, W, C] to the average of the last map, float32 [B, 512]."""
        return global_average_pool(self._pooled(x, None)).astype(jnp.float32)

    def pool(self, carry: jax.Array) -> jax.Array:
        """Returns the map itself: it is averaged after the classifier."""
        return carry

    def _classify(self, features: jax.Array, key: jax.Array | None) -> jax.Array:
        if self.head is None:
            return global_average_pool(features).astype(jnp.float32)
        if key is not None:
            features = dropout(features, self.dropout, jax.random.fold_in(key, len(self.stages)))
        return jnp.mean(jax.nn.relu(self.head(features)), (1, 2), dtype=jnp.float32)


def create(name: str, *, num_classes: int, meta: WeightsMeta, rates: Rates) -> SqueezeNet:
    """Returns the SqueezeNet called `name`, with shapes for values: see `tlx.models.abstract_model`.

    Raises:
      InputError: a rate of stochastic depth is asked for.
    """
    return SqueezeNet(PRESETS[name], num_classes=num_classes, meta=meta, rates=rates)


def default_meta(name: str) -> WeightsMeta:
    """Returns how inputs are prepared for this architecture where the weights do not say."""
    return WeightsMeta(
        architecture=name,
        preprocess=IMAGENET_EVAL,
        num_classes=1000,
        classifier="classifier.1",
    )


def key_tables(name: str) -> tuple[KeyTable, ...]:
    """Returns the key tables that weights of this architecture may come in."""
    rows: list[Key] = [*conv_bias("features.0", "stem.conv")]
    position = 3  # after the stem's ReLU and pooling: all are numbered from end to end
    for stage, sizes in enumerate(PRESETS[name].fires, 1):
        for index in range(len(sizes)):
            for part in ("squeeze", "expand1x1", "expand3x3"):
                rows += conv_bias(f"features.{position}.{part}", f"stage{stage}.{index}.{part}")
            position += 1
        position += 1  # the pooling
    return (KeyTable("torchvision", (*rows, *conv_bias("classifier.1", "head"))),)
