"""ResNet (He et al. 2015, arXiv:1512.03385): torchvision's for ImageNet, and the CIFAR ones.

The ImageNet networks follow torchvision (stride in the 3x3 convolution of a bottleneck, "v1.5"); the CIFAR
networks follow section 4.2 of the paper with parameter-free shortcuts (option A), as in the widely used
PyTorch reimplementation github.com/akamaster/pytorch_resnet_cifar10.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from tlx.models.base import Model
from tlx.models.layers import BatchNorm, Conv, chain, max_pool
from tlx.weights.keymap import Key, KeyTable, batchnorm, conv, linear
from tlx.weights.meta import ImagePreprocess, WeightsMeta


@dataclasses.dataclass(frozen=True)
class ResNetPreset:
    """The numbers that tell one ResNet from another."""

    depths: tuple[int, ...]  # blocks in each of layer1, layer2, ...
    widths: tuple[int, ...] = (64, 128, 256, 512)
    bottleneck: bool = False
    cifar: bool = False  # 3x3 stem without pooling, option-A shortcuts


PRESETS = {
    "resnet18": ResNetPreset((2, 2, 2, 2)),
    "resnet34": ResNetPreset((3, 4, 6, 3)),
    "resnet50": ResNetPreset((3, 4, 6, 3), bottleneck=True),
    "resnet101": ResNetPreset((3, 4, 23, 3), bottleneck=True),
    "resnet152": ResNetPreset((3, 8, 36, 3), bottleneck=True),
    **{
        f"resnet{6 * n + 2}_cifar": ResNetPreset((n, n, n), (16, 32, 64), cifar=True)
        for n in (3, 5, 7, 9, 18)
    },
}

IMAGENET_EVAL = ImagePreprocess(size=224, resize=256)
CIFAR_EVAL = ImagePreprocess(size=32, resize=32)


class ImageNetStem(nnx.Module):
    """7x7/2 convolution, BatchNorm, ReLU, 3x3/2 max-pool."""

    def __init__(self, width: int):
        self.conv = Conv(3, width, 7, stride=2, padding=3)
        self.bn = BatchNorm(width)

    def __call__(self, x: jax.Array) -> jax.Array:
        return max_pool(jax.nn.relu(self.bn(self.conv(x))), 3, stride=2, padding=1)


class CifarStem(nnx.Module):
    """3x3 convolution, BatchNorm, ReLU."""

    def __init__(self, width: int):
        self.conv = Conv(3, width, 3, padding=1)
        self.bn = BatchNorm(width)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.relu(self.bn(self.conv(x)))


class ProjectionShortcut(nnx.Module):
    """1x1 convolution and BatchNorm: option B of the paper."""

    def __init__(self, in_features: int, out_features: int, stride: int):
        self.conv = Conv(in_features, out_features, 1, stride=stride)
        self.bn = BatchNorm(out_features)

    def __call__(self, x: jax.Array) -> jax.Array:
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


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, in_features: int, width: int, *, stride: int, cifar: bool):
        self.conv1 = Conv(in_features, width, 3, stride=stride, padding=1)
        self.bn1 = BatchNorm(width)
        self.conv2 = Conv(width, width, 3, padding=1)
        self.bn2 = BatchNorm(width)
        shortcut = PaddingShortcut if cifar else ProjectionShortcut
        same = stride == 1 and in_features == width
        self.shortcut = None if same else shortcut(in_features, width, stride)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = jax.nn.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return jax.nn.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; the output is four times as wide."""

    expansion = 4

    def __init__(self, in_features: int, width: int, *, stride: int, cifar: bool):
        del cifar
        out_features = width * self.expansion
        self.conv1 = Conv(in_features, width, 1)
        self.bn1 = BatchNorm(width)
        self.conv2 = Conv(width, width, 3, stride=stride, padding=1)
        self.bn2 = BatchNorm(width)
        self.conv3 = Conv(width, out_features, 1)
        self.bn3 = BatchNorm(out_features)
        same = stride == 1 and in_features == out_features
        self.shortcut = None if same else ProjectionShortcut(in_features, out_features, stride)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = jax.nn.relu(self.bn1(self.conv1(x)))
        y = jax.nn.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return jax.nn.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class Layer(nnx.List):
    """A stage: blocks of one width, the first of which may halve the resolution."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return chain(x, self)


class ResNet(Model):
    """Stages: stem, layer1, layer2, ...; features: the global average of the last one."""

    def __init__(self, preset: ResNetPreset, *, num_classes: int, meta: WeightsMeta):
        block = Bottleneck if preset.bottleneck else BasicBlock
        super().__init__(
            num_features=preset.widths[-1] * block.expansion, num_classes=num_classes, meta=meta
        )
        self.stages = ("stem", *(f"layer{i + 1}" for i in range(len(preset.depths))))
        stem_width = preset.widths[0]
        self.stem = CifarStem(stem_width) if preset.cifar else ImageNetStem(stem_width)
        in_features = stem_width
        for index, (depth, width) in enumerate(zip(preset.depths, preset.widths, strict=True)):
            blocks = []
            for position in range(depth):
                stride = 2 if index > 0 and position == 0 else 1
                blocks.append(block(in_features, width, stride=stride, cifar=preset.cifar))
                in_features = width * block.expansion
            setattr(self, f"layer{index + 1}", Layer(blocks))


def create(name: str, *, num_classes: int, meta: WeightsMeta) -> ResNet:
    """Returns the ResNet called `name`, with zeros for values: see `tlx.models.abstract_model`."""
    return ResNet(PRESETS[name], num_classes=num_classes, meta=meta)


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
    return (CIFAR,) if PRESETS[name].cifar else (TORCHVISION,)
