"""VGG (Simonyan & Zisserman 2014, arXiv:1409.1556), with and without BatchNorm, as torchvision has it."""

from __future__ import annotations

import dataclasses

import jax
from flax import nnx

from tlx.models.base import Model, Rates
from tlx.models.formulations import project
from tlx.models.layers import (
    BatchNorm,
    Conv,
    Layer,
    Linear,
    adaptive_average_pool,
    chain,
    dropout,
    max_pool,
    normal,
    parameter,
    subkeys,
    zeros,
)
from tlx.weights.keymap import (
    CONV_AS_LINEAR,
    Key,
    KeyTable,
    batchnorm,
    conv_bias,
    linear,
    reshape,
)
from tlx.weights.meta import IMAGENET_EVAL, WeightsMeta

WIDTHS = (64, 128, 256, 512, 512)  # of the five blocks
MAP_SIDE = 7  # pixels, the map that the linear layers read


@dataclasses.dataclass(frozen=True)
class VGGPreset:
    """The numbers that tell one VGG from another."""

    depths: tuple[int, ...]  # convolutions in each of block1, ..., block5
    batchnorm: bool = False  # after each convolution
    hidden: int = 4096  # width of the linear layers


_DEPTHS = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}

PRESETS = {
    **{name: VGGPreset(depths) for name, depths in _DEPTHS.items()},
    **{f"{name}_bn": VGGPreset(depths, batchnorm=True) for name, depths in _DEPTHS.items()},
}


class ConvUnit(nnx.Module):
    """3x3 convolution, BatchNorm where the network has it, and ReLU."""

    def __init__(self, in_features: int, out_features: int, *, batchnorm: bool):
        self.conv = Conv(in_features, out_features, 3, padding=1, bias=True)
        self.bn = BatchNorm(out_features) if batchnorm else None

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        x = self.conv(x)
        return jax.nn.relu(x if self.bn is None else self.bn(x))


class Block(nnx.List):
    """A stage: convolutions of one width, and a max-pool that halves the resolution."""

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return max_pool(chain(x, self, key), 2, stride=2)


class MapLinear(Layer):
    """A linear layer that reads a whole map; `kernel` is [h, w, C, out].

    Its axes are kept apart, so that the kernel of a file, ordered [out, C, h, w], need not be copied
    to be put in this order, and is the same as that of a convolution as large as the map.
    """

    def __init__(self, side: int, in_features: int, out_features: int):
        self.kernel = parameter((side, side, in_features, out_features), normal(0.01))
        self.bias = parameter((out_features,), zeros)

    def project(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """Maps [B, h, w, C] to [B, out]."""
        flat = kernel.reshape(-1, kernel.shape[-1]).astype(x.dtype)
        return project(x.reshape(x.shape[0], -1), flat)


class PreLogits(nnx.Module):
    """The last stage: an average over 7x7 parts of the map and two linear layers with ReLU.

    Dropout is applied after the first of them; the one after the second is the classifier's.
    """

    def __init__(self, in_features: int, hidden: int, *, rate: float):
        self.dropout = rate
        self.fc1 = MapLinear(MAP_SIDE, in_features, hidden)
        self.fc2 = Linear(hidden, hidden, init=normal(0.01))

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Maps [B, H, W, in] to [B, hidden]."""
        x = jax.nn.relu(self.fc1(adaptive_average_pool(x, MAP_SIDE)))
        x = dropout(x, self.dropout, subkeys(key, 1)[0])
        return jax.nn.relu(self.fc2(x))


class VGG(Model):
    """Stages: block1, ..., block5, prelogits; features: what the last of the hidden layers gives."""

    input_kernel = "block1.0.conv.kernel"

    def __init__(self, preset: VGGPreset, *, num_classes: int, meta: WeightsMeta, rates: Rates):
        rate = rates.dropout_only(meta.architecture, 0.5)
        super().__init__(
            num_features=preset.hidden, num_classes=num_classes, meta=meta, dropout=rate
        )
        blocks = tuple(f"block{i + 1}" for i in range(len(WIDTHS)))
        self.stages = (*blocks, "prelogits")
        in_features = meta.image.channels
        for name, depth, width in zip(blocks, preset.depths, WIDTHS, strict=True):
            units = []
            for _ in range(depth):
                units.append(ConvUnit(in_features, width, batchnorm=preset.batchnorm))
                in_features = width
            setattr(self, name, Block(units))
        self.prelogits = PreLogits(in_features, preset.hidden, rate=rate)

    def make_head(self) -> nnx.Module:
        return Linear(self.num_features, self.num_classes, init=normal(0.01))

    def pool(self, carry: jax.Array) -> jax.Array:
        """Returns the carry: the last stage has pooled already."""
        return carry


def create(name: str, *, num_classes: int, meta: WeightsMeta, rates: Rates) -> VGG:
    """Returns the VGG called `name`, with shapes for values: see `tlx.models.abstract_model`.

    Raises:
      InputError: a rate of stochastic depth is asked for.
    """
    return VGG(PRESETS[name], num_classes=num_classes, meta=meta, rates=rates)


def default_meta(name: str) -> WeightsMeta:
    """Returns how inputs are prepared for this architecture where the weights do not say."""
    return WeightsMeta(
        architecture=name,
        preprocess=IMAGENET_EVAL,
        num_classes=1000,
        classifier="classifier.6",
    )


def _features(name: str) -> list[Key]:
    """Returns the rows of the convolutions, which are numbered from end to end with all that is between."""
    preset, position = PRESETS[name], 0
    rows: list[Key] = []
    for block, depth in enumerate(preset.depths, 1):
        for unit in range(depth):
            source, target = f"features.{position}", f"block{block}.{unit}"
            rows += conv_bias(source, f"{target}.conv")
            if preset.batchnorm:
                rows += batchnorm(f"features.{position + 1}", f"{target}.bn")
            position += 3 if preset.batchnorm else 2
        position += 1  # the pooling
    return rows


# torchvision flattens its map as [C, h, w].
_FLAT = reshape(
    "O(IHW)->HWIO",
    2,
    lambda x: x.reshape(len(x), -1, MAP_SIDE, MAP_SIDE).transpose(2, 3, 1, 0),
    lambda x: x.transpose(3, 2, 0, 1).reshape(x.shape[-1], -1),
)


def key_tables(name: str) -> tuple[KeyTable, ...]:
    """Returns the key tables that weights of this architecture may come in."""
    features = _features(name)
    torchvision = (
        *linear("classifier.0", "prelogits.fc1", _FLAT),
        *linear("classifier.3", "prelogits.fc2"),
        *linear("classifier.6", "head"),
    )
    # timm's linear layers are convolutions: the same where the input is not larger than 224 pixels.
    timm = (
        *conv_bias("pre_logits.fc1", "prelogits.fc1"),
        *linear("pre_logits.fc2", "prelogits.fc2", CONV_AS_LINEAR),
        *linear("head.fc", "head"),
    )
    return (
        KeyTable("torchvision", (*features, *torchvision)),
        KeyTable("timm", (*features, *timm)),
    )
