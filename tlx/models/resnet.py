"""ResNet (He et al. 2015, arXiv:1512.03385) and its variants for ImageNet, and the CIFAR ones.

The ImageNet networks follow torchvision (stride in the 3x3 convolution of a bottleneck, "v1.5"), also ResNeXt
(Xie et al. 2016, arXiv:1611.05431) and Wide ResNet (Zagoruyko & Komodakis 2016, arXiv:1605.07146). Names ending in
d have timm's ResNet-D stem and shortcuts (He et al. 2018, arXiv:1812.01187). The CIFAR networks follow section 4.2
of the first paper with parameter-free shortcuts (option A), as in the widely used PyTorch reimplementation
github.com/akamaster/pytorch_resnet_cifar10.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from tlx.models.base import Model, Rates
from tlx.models.formulations import add_relu
from tlx.models.layers import (
    BatchNorm,
    Conv,
    average_pool,
    chain,
    drop_path,
    max_pool,
)
from tlx.weights.keymap import Key, KeyTable, batchnorm, conv, linear
from tlx.weights.meta import IMAGENET_EVAL, ImagePreprocess, WeightsMeta

SMALL_STEM = True  # a 3x3 convolution without stride, and no pooling


@dataclasses.dataclass(frozen=True)
class ResNetPreset:
    """The numbers that tell one ResNet from another."""

    depths: tuple[int, ...]  # blocks in each of layer1, layer2, ...
    widths: tuple[int, ...] = (64, 128, 256, 512)
    bottleneck: bool = False
    groups: int = 1  # of the bottleneck's 3x3 convolution
    group_width: int = 64  # its channels per group, for every 64 of the layer's width
    deep: bool = False  # ResNet-D: three 3x3 convolutions as stem, average-pooled shortcuts
    cifar: bool = False  # 3x3 stem without pooling, option-A shortcuts


_BOTTLENECK = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}

PRESETS = {
    "resnet18": ResNetPreset((2, 2, 2, 2)),
    "resnet34": ResNetPreset((3, 4, 6, 3)),
    **{f"resnet{n}": ResNetPreset(depths, bottleneck=True) for n, depths in _BOTTLENECK.items()},
    "resnext50_32x4d": ResNetPreset(_BOTTLENECK[50], bottleneck=True, groups=32, group_width=4),
    "resnext101_32x8d": ResNetPreset(_BOTTLENECK[101], bottleneck=True, groups=32, group_width=8),
    "wide_resnet50_2": ResNetPreset(_BOTTLENECK[50], bottleneck=True, group_width=128),
    "wide_resnet101_2": ResNetPreset(_BOTTLENECK[101], bottleneck=True, group_width=128),
    "resnet18d": ResNetPreset((2, 2, 2, 2), deep=True),
    "resnet26d": ResNetPreset((2, 2, 2, 2), bottleneck=True, deep=True),
    "resnet34d": ResNetPreset((3, 4, 6, 3), deep=True),
    **{
        f"resnet{n}d": ResNetPreset(depths, bottleneck=True, deep=True)
        for n, depths in _BOTTLENECK.items()
    },
    **{
        f"resnet{6 * n + 2}_cifar": ResNetPreset((n, n, n), (16, 32, 64), cifar=True)
        for n in (3, 5, 7, 9, 18)
    },
}

CIFAR_EVAL = ImagePreprocess(size=32, resize=32)


class Stem(nnx.Module):
    """Convolution, BatchNorm, ReLU, and for large pictures a 3x3/2 max-pool."""

    def __init__(self, in_channels: int, width: int, *, small: bool):
        self.small = small
        size, stride = (3, 1) if small else (7, 2)
        self.conv = Conv(in_channels, width, size, stride=stride, padding=size // 2)
        self.bn = BatchNorm(width)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        x = jax.nn.relu(self.bn(self.conv(x)))
        return x if self.small else max_pool(x, 3, stride=2, padding=1)


class DeepStem(nnx.Module):
    """ResNet-D: three 3x3 convolutions with BatchNorm and ReLU, and for large pictures a max-pool."""

    def __init__(self, in_channels: int, width: int, *, small: bool):
        self.small = small
        self.conv = Conv(in_channels, width // 2, 3, stride=1 if small else 2, padding=1)
        self.bn = BatchNorm(width // 2)
        self.conv2 = Conv(width // 2, width // 2, 3, padding=1)
        self.bn2 = BatchNorm(width // 2)
        self.conv3 = Conv(width // 2, width, 3, padding=1)
        self.bn3 = BatchNorm(width)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        x = jax.nn.relu(self.bn(self.conv(x)))
        x = jax.nn.relu(self.bn2(self.conv2(x)))
        x = jax.nn.relu(self.bn3(self.conv3(x)))
        return x if self.small else max_pool(x, 3, stride=2, padding=1)


class ProjectionShortcut(nnx.Module):
    """1x1 convolution and BatchNorm: option B of the paper; pooled first in ResNet-D."""

    def __init__(self, in_features: int, out_features: int, stride: int, *, pooled: bool = False):
        self.pooled = pooled and stride > 1
        self.conv = Conv(in_features, out_features, 1, stride=1 if self.pooled else stride)
        self.bn = BatchNorm(out_features)

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.pooled:
            x = average_pool(x, 2, stride=2, ceil_mode=True, count_padding=False)
        return self.bn(self.conv(x))


class PaddingShortcut(nnx.Module):
    """Every second pixel, new channels zero on both sides: option A of the paper, without parameters."""

    def __init__(self, in_features: int, out_features: int, stride: int):
        self.stride = stride
        self.before = (out_features - in_features) // 2
        self.after = out_features - in_features - self.before

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x[:, :: self.stride, :: self.stride]
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (self.before, self.after)))


def _shortcut(
    preset: ResNetPreset, in_features: int, out_features: int, stride: int
) -> nnx.Module | None:
    if stride == 1 and in_features == out_features:
        return None
    if preset.cifar:
        return PaddingShortcut(in_features, out_features, stride)
    return ProjectionShortcut(in_features, out_features, stride, pooled=preset.deep)


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(
        self, preset: ResNetPreset, in_features: int, width: int, *, stride: int, rate: float
    ):
        self.drop_path = rate
        self.conv1 = Conv(in_features, width, 3, stride=stride, padding=1)
        self.bn1 = BatchNorm(width)
        self.conv2 = Conv(width, width, 3, padding=1)
        self.bn2 = BatchNorm(width)
        self.shortcut = _shortcut(preset, in_features, width, stride)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        y = jax.nn.relu(self.bn1(self.conv1(x)))
        y = drop_path(self.bn2(self.conv2(y)), self.drop_path, key)
        return add_relu(y, x if self.shortcut is None else self.shortcut(x))


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; the output is four times as wide."""

    expansion = 4

    def __init__(
        self, preset: ResNetPreset, in_features: int, width: int, *, stride: int, rate: float
    ):
        self.drop_path = rate
        out_features = width * self.expansion
        inner = width * preset.group_width // 64 * preset.groups
        self.conv1 = Conv(in_features, inner, 1)
        self.bn1 = BatchNorm(inner)
        self.conv2 = Conv(inner, inner, 3, stride=stride, padding=1, groups=preset.groups)
        self.bn2 = BatchNorm(inner)
        self.conv3 = Conv(inner, out_features, 1)
        self.bn3 = BatchNorm(out_features)
        self.shortcut = _shortcut(preset, in_features, out_features, stride)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        y = jax.nn.relu(self.bn1(self.conv1(x)))
        y = jax.nn.relu(self.bn2(self.conv2(y)))
        y = drop_path(self.bn3(self.conv3(y)), self.drop_path, key)
        return add_relu(y, x if self.shortcut is None else self.shortcut(x))


class Layer(nnx.List):
    """A stage: blocks of one width, the first of which may halve the resolution."""

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return chain(x, self, key)


class ResNet(Model):
    """Stages: stem, layer1, layer2, ...; features: the global average of the last one."""

    def __init__(self, preset: ResNetPreset, *, num_classes: int, meta: WeightsMeta, rates: Rates):
        block = Bottleneck if preset.bottleneck else BasicBlock
        dropout, last_rate = rates.or_own(0.0, 0.0)
        super().__init__(
            num_features=preset.widths[-1] * block.expansion,
            num_classes=num_classes,
            meta=meta,
            dropout=dropout,
        )
        self.stages = ("stem", *(f"layer{i + 1}" for i in range(len(preset.depths))))
        in_features = preset.widths[0]
        stem, small = DeepStem if preset.deep else Stem, preset.cifar or meta.stem == "small"
        self.stem = stem(meta.image.channels, in_features, small=small)
        count, total = 0, sum(preset.depths)
        for index, (depth, width) in enumerate(zip(preset.depths, preset.widths, strict=True)):
            blocks = []
            for position in range(depth):
                stride = 2 if index > 0 and position == 0 else 1
                rate = last_rate * count / (total - 1)
                blocks.append(block(preset, in_features, width, stride=stride, rate=rate))
                in_features, count = width * block.expansion, count + 1
            setattr(self, f"layer{index + 1}", Layer(blocks))


def create(name: str, *, num_classes: int, meta: WeightsMeta, rates: Rates) -> ResNet:
    """Returns the ResNet called `name`, with shapes for values: see `tlx.models.abstract_model`."""
    return ResNet(PRESETS[name], num_classes=num_classes, meta=meta, rates=rates)


def default_meta(name: str) -> WeightsMeta:
    """Returns how inputs are prepared for this architecture where the weights do not say."""
    cifar = PRESETS[name].cifar
    return WeightsMeta(
        architecture=name,
        preprocess=CIFAR_EVAL if cifar else IMAGENET_EVAL,
        num_classes=10 if cifar else 1000,
        classifier="linear" if cifar else "fc",
    )


def _block_keys() -> tuple[Key, ...]:
    return (
        *(conv("layer{i}.{j}.conv%d" % n, "layer{i}.{j}.conv%d" % n) for n in (1, 2, 3)),
        *(
            row
            for n in (1, 2, 3)
            for row in batchnorm("layer{i}.{j}.bn%d" % n, "layer{i}.{j}.bn%d" % n)
        ),
    )


TORCHVISION = KeyTable(
    "torchvision",
    (
        conv("conv1", "stem.conv"),
        *batchnorm("bn1", "stem.bn"),
        *_block_keys(),
        conv("layer{i}.{j}.downsample.0", "layer{i}.{j}.shortcut.conv"),
        *batchnorm("layer{i}.{j}.downsample.1", "layer{i}.{j}.shortcut.bn"),
        *linear("fc", "head"),
    ),
)

# timm's names for ResNet-D; its other ResNets have torchvision's names.
DEEP = KeyTable(
    "timm",
    (
        conv("conv1.0", "stem.conv"),
        *batchnorm("conv1.1", "stem.bn"),
        conv("conv1.3", "stem.conv2"),
        *batchnorm("conv1.4", "stem.bn2"),
        conv("conv1.6", "stem.conv3"),
        *batchnorm("bn1", "stem.bn3"),
        *_block_keys(),
        conv("layer{i}.{j}.downsample.1", "layer{i}.{j}.shortcut.conv"),
        *batchnorm("layer{i}.{j}.downsample.2", "layer{i}.{j}.shortcut.bn"),
        *linear("fc", "head"),
    ),
)

# github.com/akamaster/pytorch_resnet_cifar10; option-A shortcuts have no parameters.
CIFAR = KeyTable(
    "pytorch_resnet_cifar10",
    (
        conv("conv1", "stem.conv"),
        *batchnorm("bn1", "stem.bn"),
        *_block_keys(),
        *linear("linear", "head"),
    ),
)


def key_tables(name: str) -> tuple[KeyTable, ...]:
    """Returns the key tables that weights of this architecture may come in."""
    if PRESETS[name].cifar:
        return (CIFAR,)
    return (DEEP,) if PRESETS[name].deep else (TORCHVISION,)
