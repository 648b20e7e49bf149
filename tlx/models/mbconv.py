"""What MobileNets and EfficientNets are made of: inverted residual blocks, and a network of them.

Inverted residuals are of Sandler et al. 2018 (arXiv:1801.04381), squeeze-excite of Hu et al. 2018
(arXiv:1709.01507), and the fused block, one full convolution in place of the 1x1 and the depthwise one, of Tan & Le
2021 (arXiv:2104.00298).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
from flax import nnx

from tlx.models.base import Model, Rates
from tlx.models.layers import (
    BatchNorm,
    Conv,
    Initializer,
    Linear,
    chain,
    drop_path,
    global_average_pool,
    kaiming_normal_fan_out,
    normal,
    uniform,
)
from tlx.weights.meta import IMAGENET_EVAL, ImagePreprocess, WeightsMeta

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "": lambda x: x,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "silu": jax.nn.silu,
    "hard_swish": jax.nn.hard_swish,
    "sigmoid": jax.nn.sigmoid,
    "hard_sigmoid": jax.nn.hard_sigmoid,
}


@dataclasses.dataclass(frozen=True)
class Style:
    """What all layers of a network have in common. Activations are names in `ACTIVATIONS`."""

    activation: str  # of the stem, the last stage, and blocks that name no other
    squeeze_activation: str = "relu"  # between the two layers of a squeeze-excite
    gate: str = "sigmoid"  # what its factors go through
    epsilon: float = 1e-5  # of every BatchNorm
    momentum: float = 0.1
    same_padding: bool = False  # TensorFlow's
    initial: str = (
        "efficientnet"  # whose: torchvision's mobilenet, torchvision's efficientnet, timm
    )

    def depthwise_init(self, kernel: int) -> Initializer:
        """Returns how a depthwise kernel is drawn; timm divides the fan by the groups."""
        return normal(2**0.5 / kernel) if self.initial == "timm" else kaiming_normal_fan_out

    def projection_init(self) -> Initializer:
        """Returns how the layer behind the pooling is drawn."""
        return kaiming_normal_fan_out if self.initial == "timm" else normal(0.01)

    def classifier_init(self, num_classes: int) -> Initializer:
        """Returns how the classifier's kernel is drawn."""
        return normal(0.01) if self.initial == "mobilenet" else uniform(num_classes**-0.5)


@dataclasses.dataclass(frozen=True)
class Block:
    """The numbers that tell one block from another; widths are channels."""

    in_features: int
    inner: int  # of the depthwise convolution
    out_features: int
    kernel: int
    stride: int = 1
    squeeze: int = 0  # width inside the squeeze-excite; 0: there is none
    activation: str = ""  # "": the style's
    fused: bool = False

    @property
    def residual(self) -> bool:
        """Whether the input is added to the output."""
        return self.stride == 1 and self.in_features == self.out_features

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the block's parts, in order."""
        expanding = self.inner != self.in_features
        if self.fused:
            return ("expand", "project") if expanding else ("conv",)
        parts = {
            "expand": expanding,
            "depthwise": True,
            "se": self.squeeze > 0,
            "project": True,
        }
        return tuple(name for name, present in parts.items() if present)


@dataclasses.dataclass(frozen=True)
class MBConvPreset:
    """The numbers that tell one network from another."""

    style: Style
    stem: int  # channels
    stages: tuple[tuple[Block, ...], ...]
    last: int  # channels of the last convolution
    projection: int = 0  # width of the layer behind the pooling (MobileNet-V3); 0: there is none
    dropout: float = 0.2
    drop_path: float = 0.0
    projects: tuple[str, ...] = ("torchvision", "timm")  # that have this network, under their names
    preprocess: ImagePreprocess = IMAGENET_EVAL


class ConvNorm(nnx.Module):
    """Convolution, BatchNorm and activation ("": none)."""

    def __init__(
        self,
        style: Style,
        in_features: int,
        out_features: int,
        kernel: int,
        *,
        stride: int = 1,
        depthwise: bool = False,
        activation: str = "",
    ):
        self.activation = activation
        self.conv = Conv(
            in_features,
            out_features,
            kernel,
            stride=stride,
            padding="same" if style.same_padding else (kernel - 1) // 2,
            groups=in_features if depthwise else 1,
            init=style.depthwise_init(kernel) if depthwise else kaiming_normal_fan_out,
        )
        self.bn = BatchNorm(out_features, momentum=style.momentum, epsilon=style.epsilon)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return ACTIVATIONS[self.activation](self.bn(self.conv(x)))


class PooledConvNorm(ConvNorm):
    """The last stage of MobileNet-V3 (Howard et al. 2019): pooled before the last, then linear, layer."""

    def __init__(
        self, style: Style, in_features: int, out_features: int, projection: int, activation: str
    ):
        super().__init__(style, in_features, out_features, 1, activation=activation)
        self.linear = Linear(out_features, projection, init=style.projection_init())

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        x = self.linear(global_average_pool(super().__call__(x)))
        return ACTIVATIONS[self.activation](x)


class SqueezeExcite(nnx.Module):
    """Scales each channel by a factor that follows from the averages of all."""

    def __init__(self, style: Style, features: int, squeeze: int):
        self.activation, self.gate = style.squeeze_activation, style.gate
        self.reduce = Linear(features, squeeze, init=kaiming_normal_fan_out)
        self.expand = Linear(squeeze, features, init=kaiming_normal_fan_out)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = ACTIVATIONS[self.activation](self.reduce(global_average_pool(x)))
        return x * ACTIVATIONS[self.gate](self.expand(y))[:, None, None, :]


class InvertedResidual(nnx.Module):
    """The block with the parts that `Block.layers` names, and the input added where shapes allow it."""

    def __init__(self, style: Style, block: Block, rate: float):
        self.layers, self.residual, self.drop_path = block.layers, block.residual, rate
        activation = block.activation or style.activation
        for name in block.layers:
            setattr(self, name, _layer(name, style, block, activation))

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        y = x
        for name in self.layers:
            y = getattr(self, name)(y)
        return x + drop_path(y, self.drop_path, key) if self.residual else y


def _layer(name: str, style: Style, block: Block, activation: str) -> nnx.Module:
    narrow, inner, out, kernel = block.in_features, block.inner, block.out_features, block.kernel
    stride = block.stride
    if name == "se":
        return SqueezeExcite(style, inner, block.squeeze)
    if name == "project":
        return ConvNorm(style, inner, out, 1)
    if name == "conv":
        return ConvNorm(style, narrow, out, kernel, stride=stride, activation=activation)
    if name == "depthwise":
        return ConvNorm(
            style, inner, inner, kernel, stride=stride, depthwise=True, activation=activation
        )
    if block.fused:
        return ConvNorm(style, narrow, inner, kernel, stride=stride, activation=activation)
    return ConvNorm(style, narrow, inner, 1, activation=activation)


class Stage(nnx.List):
    """Blocks one after the other, the first of which may halve the resolution."""

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return chain(x, self, key)


class MBConvNet(Model):
    """Stages: stem, stage1, stage2, ..., conv_head (the last convolution and what follows it).

    The small-image stem has the same 3x3 kernel without stride.
    """

    def __init__(self, preset: MBConvPreset, *, num_classes: int, meta: WeightsMeta, rates: Rates):
        style = preset.style
        dropout, last_rate = rates.or_own(preset.dropout, preset.drop_path)
        self.style = style
        super().__init__(
            num_features=preset.projection or preset.last,
            num_classes=num_classes,
            meta=meta,
            dropout=dropout,
        )
        names = tuple(f"stage{i + 1}" for i in range(len(preset.stages)))
        self.stages = ("stem", *names, "conv_head")
        self.stem = ConvNorm(
            style,
            meta.image.channels,
            preset.stem,
            3,
            stride=1 if meta.stem == "small" else 2,
            activation=style.activation,
        )
        count, total = 0, sum(map(len, preset.stages))
        if preset.projection:
            total += 1  # timm counts MobileNet-V3's last convolution as a block
        for name, blocks in zip(names, preset.stages, strict=True):
            rate = [last_rate * (count + i) / total for i in range(len(blocks))]
            made = [InvertedResidual(style, b, r) for b, r in zip(blocks, rate, strict=True)]
            setattr(self, name, Stage(made))
            count += len(blocks)
        self.conv_head = self._conv_head(preset)

    def _conv_head(self, preset: MBConvPreset) -> ConvNorm:
        style, width = preset.style, preset.stages[-1][-1].out_features
        if preset.projection:
            return PooledConvNorm(style, width, preset.last, preset.projection, style.activation)
        return ConvNorm(style, width, preset.last, 1, activation=style.activation)

    def make_head(self) -> Linear:
        """Returns the classifier, which maps [B, num_features] to [B, num_classes]."""
        init = self.style.classifier_init(self.num_classes)
        return Linear(self.num_features, self.num_classes, init=init)

    def pool(self, carry: jax.Array) -> jax.Array:
        """Maps the last stage's map to [B, num_features]; MobileNet-V3's is pooled already."""
        return carry if carry.ndim == 2 else global_average_pool(carry)


def make_divisible(channels: float, by: int = 8) -> int:
    """Returns the multiple of `by` nearest to a number of channels, but not under 9/10 of it.

    The rounding of the MobileNets' and EfficientNets' TensorFlow code, which all ports keep.
    """
    rounded = max(by, int(channels + by / 2) // by * by)
    return rounded + by if rounded < 0.9 * channels else rounded
