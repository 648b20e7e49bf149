"""DenseNet (Huang et al. 2016, arXiv:1608.06993), the BC variants for ImageNet, as torchvision has them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from tlx.models.base import Model, Rates
from tlx.models.layers import (
    BatchNorm,
    Conv,
    average_pool,
    kaiming_normal_fan_in,
    max_pool,
)
from tlx.weights.keymap import Key, KeyTable, batchnorm, conv, linear
from tlx.weights.meta import IMAGENET_EVAL, WeightsMeta

SMALL_STEM = True  # a 3x3 convolution without stride, and no pooling
BOTTLENECK = 4  # width of a dense layer's 1x1 convolution, in growth rates


@dataclasses.dataclass(frozen=True)
class DenseNetPreset:
    """The numbers that tell one DenseNet from another."""

    depths: tuple[int, ...]  # dense layers in each of denseblock1, denseblock2, ...
    growth: int = 32  # channels that a dense layer adds
    stem_width: int = 64


PRESETS = {
    "densenet121": DenseNetPreset((6, 12, 24, 16)),
    "densenet161": DenseNetPreset((6, 12, 36, 24), growth=48, stem_width=96),
    "densenet169": DenseNetPreset((6, 12, 32, 32)),
    "densenet201": DenseNetPreset((6, 12, 48, 32)),
}


class Stem(nnx.Module):
    """Convolution, BatchNorm, ReLU, and for large pictures a 3x3/2 max-pool."""

    def __init__(self, in_channels: int, width: int, *, small: bool):
        self.small = small
        size, stride = (3, 1) if small else (7, 2)
        self.conv = Conv(
            in_channels,
            width,
            size,
            stride=stride,
            padding=size // 2,
            init=kaiming_normal_fan_in,
        )
        self.norm = BatchNorm(width)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        x = jax.nn.relu(self.norm(self.conv(x)))
        return x if self.small else max_pool(x, 3, stride=2, padding=1)


class DenseLayer(nnx.Module):
    """BatchNorm, ReLU and convolution twice, 1x1 then 3x3; returns only the new channels."""

    def __init__(self, in_features: int, growth: int):
        inner = BOTTLENECK * growth
        self.norm1 = BatchNorm(in_features)
        self.conv1 = Conv(in_features, inner, 1, init=kaiming_normal_fan_in)
        self.norm2 = BatchNorm(inner)
        self.conv2 = Conv(inner, growth, 3, padding=1, init=kaiming_normal_fan_in)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, in] to [B, H, W, growth]."""
        x = self.conv1(jax.nn.relu(self.norm1(x)))
        return self.conv2(jax.nn.relu(self.norm2(x)))


class Transition(nnx.Module):
    """BatchNorm, ReLU, a 2x2 average-pool and a 1x1 convolution to half the channels."""

    def __init__(self, in_features: int):
        self.norm = BatchNorm(in_features)
        self.conv = Conv(in_features, in_features // 2, 1, init=kaiming_normal_fan_in)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, in] to [B, H // 2, W // 2, in // 2]."""
        # The average and a 1x1 convolution commute: in this order there is a quarter of the work.
        return self.conv(average_pool(jax.nn.relu(self.norm(x)), 2, stride=2))


class DenseBlock(nnx.Module):
    """A stage: dense layers, each of which reads all channels so far, then a transition.

    After the last block there is a BatchNorm and ReLU in its place.
    """

    def __init__(self, in_features: int, depth: int, growth: int, *, last: bool):
        self.depth = depth
        for index in range(depth):
            layer = DenseLayer(in_features + index * growth, growth)
            setattr(self, f"denselayer{index + 1}", layer)
        out_features = in_features + depth * growth
        self.transition = None if last else Transition(out_features)
        self.norm = BatchNorm(out_features) if last else None

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        for index in range(self.depth):
            layer = getattr(self, f"denselayer{index + 1}")
            x = jnp.concatenate([x, layer(x)], axis=-1)
        if self.norm is not None:
            return jax.nn.relu(self.norm(x))
        assert self.transition is not None
        return self.transition(x)


class DenseNet(Model):
    """Stages: stem, denseblock1, ..., denseblock4; features: the global average of the last one."""

    def __init__(
        self, preset: DenseNetPreset, *, num_classes: int, meta: WeightsMeta, rates: Rates
    ):
        widths = [preset.stem_width]
        for depth in preset.depths[:-1]:
            widths.append((widths[-1] + depth * preset.growth) // 2)
        super().__init__(
            num_features=widths[-1] + preset.depths[-1] * preset.growth,
            num_classes=num_classes,
            meta=meta,
            dropout=rates.dropout_only(meta.architecture, 0.0),
        )
        blocks = tuple(f"denseblock{i + 1}" for i in range(len(preset.depths)))
        self.stages = ("stem", *blocks)
        self.stem = Stem(meta.image.channels, preset.stem_width, small=meta.stem == "small")
        for name, width, depth in zip(blocks, widths, preset.depths, strict=True):
            block = DenseBlock(width, depth, preset.growth, last=name == blocks[-1])
            setattr(self, name, block)


def create(name: str, *, num_classes: int, meta: WeightsMeta, rates: Rates) -> DenseNet:
    """Returns the DenseNet called `name`, with shapes for values: see `tlx.models.abstract_model`.

    Raises:
      InputError: a rate of stochastic depth is asked for.
    """
    return DenseNet(PRESETS[name], num_classes=num_classes, meta=meta, rates=rates)


def default_meta(name: str) -> WeightsMeta:
    """Returns how inputs are prepared for this architecture where the weights do not say."""
    return WeightsMeta(
        architecture=name,
        preprocess=IMAGENET_EVAL,
        num_classes=1000,
        classifier="classifier",
    )


_LAYER = "denseblock{i}.denselayer{j}"
_OUTSIDE_LAYERS = (
    conv("features.conv0", "stem.conv"),
    *batchnorm("features.norm0", "stem.norm"),
    *batchnorm("features.transition{i}.norm", "denseblock{i}.transition.norm"),
    conv("features.transition{i}.conv", "denseblock{i}.transition.conv"),
    *batchnorm("features.norm5", "denseblock4.norm"),
    *linear("classifier", "head"),
)

# Also timm's names.
TORCHVISION = KeyTable(
    "torchvision",
    (
        *_OUTSIDE_LAYERS,
        *(conv(f"features.{_LAYER}.conv{n}", f"{_LAYER}.conv{n}") for n in (1, 2)),
        *(
            row
            for n in (1, 2)
            for row in batchnorm(f"features.{_LAYER}.norm{n}", f"{_LAYER}.norm{n}")
        ),
    ),
)


def _without_counter(rows: tuple[Key, ...]) -> tuple[Key, ...]:
    """Returns the rows with an unused counter read and written again, but not made."""
    return tuple(dataclasses.replace(row, beside="", default=None) for row in rows)


# The files that torchvision publishes are older than its present names, and than BatchNorm's counter.
PUBLISHED = KeyTable(
    "torchvision_published",
    _without_counter(
        (
            *_OUTSIDE_LAYERS,
            *(conv(f"features.{_LAYER}.conv.{n}", f"{_LAYER}.conv{n}") for n in (1, 2)),
            *(
                row
                for n in (1, 2)
                for row in batchnorm(f"features.{_LAYER}.norm.{n}", f"{_LAYER}.norm{n}")
            ),
        )
    ),
)


def key_tables(name: str) -> tuple[KeyTable, ...]:
    """Returns the key tables that weights of this architecture may come in."""
    return (TORCHVISION, PUBLISHED)
