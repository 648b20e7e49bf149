"""Inception-v3 (Szegedy et al. 2015, arXiv:1512.00567), as torchvision has it.

torchvision's `transform_input` is not part of the network: it turns pictures that are normalised with
ImageNet's mean and deviation into ones normalised with 0.5, which `default_meta` says from the start.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from tlx.errors import InputError
from tlx.models.base import Model, Rates
from tlx.models.layers import (
    BatchNorm,
    Conv,
    Linear,
    Size,
    average_pool,
    chain,
    global_average_pool,
    max_pool,
    normal,
)
from tlx.weights.keymap import Key, KeyTable, batchnorm, conv, linear
from tlx.weights.meta import ImagePreprocess, WeightsMeta

EPSILON = 1e-3  # of every BatchNorm
# PyTorch's `trunc_normal_(std=0.1, a=-2, b=2)` cuts off twenty deviations away.
_INIT = normal(0.1)
AUX_WEIGHT = 0.4  # of the auxiliary loss, in torchvision's training
AUX_MAP = 17  # pixels, the side of the smallest map that the auxiliary classifier can read
AUX_PICTURE = 299  # pixels, the side of the smallest picture that gives such a map


class Step(NamedTuple):
    """A convolution of a branch, or two that read the same map side by side."""

    width: int  # channels of each
    size: Size
    beside: Size | None = None


class Branches(NamedTuple):
    """What an Inception block does with its map; all outputs are concatenated in this order."""

    convolutions: dict[str, tuple[Step, ...]]  # name of the branch -> from first to last
    pooled: int = 0  # channels of the average-pooled branch; 0: a max-pool, and half the resolution


def _block_a(pooled: int) -> Branches:
    """Figure 5 of the paper."""
    return Branches(
        {
            "branch1x1": (Step(64, 1),),
            "branch5x5": (Step(48, 1), Step(64, 5)),
            "branch3x3dbl": (Step(64, 1), Step(96, 3), Step(96, 3)),
        },
        pooled,
    )


def _block_c(inner: int) -> Branches:
    """Figure 6: 7x7 convolutions as 1x7 and 7x1 ones."""
    row, column = (1, 7), (7, 1)
    double = (Step(inner, 1), Step(inner, column), Step(inner, row), Step(inner, column))
    return Branches(
        {
            "branch1x1": (Step(192, 1),),
            "branch7x7": (Step(inner, 1), Step(inner, row), Step(192, column)),
            "branch7x7dbl": (*double, Step(192, row)),
        },
        192,
    )


# Figure 10: half the resolution, from 35x35 to 17x17 pixels.
_BLOCK_B = Branches(
    {
        "branch3x3": (Step(384, 3),),
        "branch3x3dbl": (Step(64, 1), Step(96, 3), Step(96, 3)),
    }
)
# The same from 17x17 to 8x8 pixels.
_BLOCK_D = Branches(
    {
        "branch3x3": (Step(192, 1), Step(320, 3)),
        "branch7x7x3": (Step(192, 1), Step(192, (1, 7)), Step(192, (7, 1)), Step(192, 3)),
    }
)
# Figure 7: the last 3x3 convolutions as a 1x3 and a 3x1 one side by side.
_BLOCK_E = Branches(
    {
        "branch1x1": (Step(320, 1),),
        "branch3x3": (Step(384, 1), Step(384, (1, 3), (3, 1))),
        "branch3x3dbl": (Step(448, 1), Step(384, 3), Step(384, (1, 3), (3, 1))),
    },
    192,
)


@dataclasses.dataclass(frozen=True)
class InceptionPreset:
    """The numbers that tell one Inception from another."""

    pooled: tuple[int, ...] = (32, 64, 64)  # channels of the pooled branch of each block of mixed5
    inner: tuple[int, ...] = (128, 160, 160, 192)  # of the 7x7 branches of mixed6

    def blocks(self) -> dict[str, tuple[Branches, ...]]:
        """Returns the blocks of each stage after the stem."""
        return {
            "mixed5": tuple(map(_block_a, self.pooled)),
            "mixed6": (_BLOCK_B, *map(_block_c, self.inner)),
            "mixed7": (_BLOCK_D, _BLOCK_E, _BLOCK_E),
        }


PRESETS = {"inception_v3": InceptionPreset()}


class ConvUnit(nnx.Module):
    """Convolution, BatchNorm and ReLU."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        size: Size,
        *,
        stride: int = 1,
        padding: Size = 0,
    ):
        self.conv = Conv(
            in_features, out_features, size, stride=stride, padding=padding, init=_INIT
        )
        self.bn = BatchNorm(out_features, epsilon=EPSILON)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return jax.nn.relu(self.bn(self.conv(x)))


class PooledUnit(ConvUnit):
    """A 3x3 average, 1x1 convolution, BatchNorm and ReLU."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, 1)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        # The average and a 1x1 convolution commute: in this order fewer channels are averaged.
        return jax.nn.relu(self.bn(average_pool(self.conv(x), 3, stride=1, padding=1)))


class Fork(nnx.List):
    """Convolutions side by side."""

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return jnp.concatenate([unit(x) for unit in self], axis=-1)


class Branch(nnx.List):
    """Convolutions one after the other."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return chain(x, self, None)


def _branch(in_features: int, steps: tuple[Step, ...], *, halve: bool) -> Branch:
    """Returns the branch; all convolutions keep the resolution, but the last if it is to halve it."""
    units: list[ConvUnit | Fork] = []
    for index, step in enumerate(steps, 1):
        stride = 2 if halve and index == len(steps) else 1
        sizes = (step.size,) if step.beside is None else (step.size, step.beside)
        convolutions = [
            ConvUnit(
                in_features,
                step.width,
                size,
                stride=stride,
                padding=_half(size) if stride == 1 else 0,
            )
            for size in sizes
        ]
        units.append(convolutions[0] if len(sizes) == 1 else Fork(convolutions))
        in_features = step.width * len(sizes)
    return Branch(units)


def _half(size: Size) -> Size:
    return size // 2 if isinstance(size, int) else (size[0] // 2, size[1] // 2)


class Mixed(nnx.Module):
    """An Inception block: branches that read the same map, and a pooling beside them."""

    def __init__(self, in_features: int, branches: Branches):
        self.names = tuple(branches.convolutions)
        halve = not branches.pooled
        widths = [branches.pooled or in_features]
        for name, steps in branches.convolutions.items():
            setattr(self, name, _branch(in_features, steps, halve=halve))
            widths.append(steps[-1].width * (1 if steps[-1].beside is None else 2))
        self.branch_pool = None if halve else PooledUnit(in_features, branches.pooled)
        self.out_features = sum(widths)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Maps [B, H, W, in] to [B, H, W, out]; without `branch_pool` to half the resolution."""
        pool = self.branch_pool
        last = max_pool(x, 3, stride=2) if pool is None else pool(x)
        return jnp.concatenate([*(getattr(self, name)(x) for name in self.names), last], axis=-1)


class Stem(nnx.Module):
    """Five convolutions and two 3x3/2 max-pools: to an eighth of the resolution."""

    out_features = 192

    def __init__(self, in_channels: int):
        self.conv1a = ConvUnit(in_channels, 32, 3, stride=2)
        self.conv2a = ConvUnit(32, 32, 3)
        self.conv2b = ConvUnit(32, 64, 3, padding=1)
        self.conv3b = ConvUnit(64, 80, 1)
        self.conv4a = ConvUnit(80, self.out_features, 3)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        x = max_pool(self.conv2b(self.conv2a(self.conv1a(x))), 3, stride=2)
        return max_pool(self.conv4a(self.conv3b(x)), 3, stride=2)


class Blocks(nnx.List):
    """A stage: Inception blocks one after the other."""

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return chain(x, self, key)


class Auxiliary(nnx.Module):
    """The classifier of the map in the middle of the network; it is used in training only."""

    def __init__(self, in_features: int, num_classes: int):
        self.conv0 = ConvUnit(in_features, 128, 1)
        # torchvision's 0.01 for this convolution is set beside it, so that it has no effect.
        self.conv1 = ConvUnit(128, 768, 5)
        self.fc = Linear(768, num_classes, init=normal(0.001))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, in] to logits [B, num_classes].

        Raises:
          InputError: the map has fewer than 17 pixels in a direction, as those of pictures below 299 pixels do.
        """
        if min(x.shape[1:3]) < AUX_MAP:
            raise InputError(
                f"the auxiliary classifier of Inception-v3 reads maps of at least {AUX_MAP}x{AUX_MAP} pixels, those "
                f"of pictures of {AUX_PICTURE}x{AUX_PICTURE}; here the map has {x.shape[1]}x{x.shape[2]}. Train with "
                f"larger pictures (data.image_size), or without it: --config.tune.method=rules "
                f"--config.tune.rules=aux=frozen,head=head,.*=backbone"
            )
        x = self.conv1(self.conv0(average_pool(x, 5, stride=3)))
        return self.fc(global_average_pool(x))


class Inception(Model):
    """Stages: stem, mixed5, mixed6, mixed7; features: the global average of the last.

    The blocks of a stage are numbered from 0: torchvision's Mixed_5b is mixed5.0. The auxiliary
    classifier `aux` reads what mixed6 returns. It is there where there is a head, and is computed
    by `training_outputs` alone, if `auxiliary` names it. Pictures have 75 pixels or more in each
    direction, and 299 in training with the auxiliary classifier.
    """

    input_kernel = "stem.conv1a.conv.kernel"
    classifiers = ("head", "aux.fc")
    auxiliary = (("aux", 3, AUX_WEIGHT),)

    def __init__(
        self, preset: InceptionPreset, *, num_classes: int, meta: WeightsMeta, rates: Rates
    ):
        self.stem = Stem(meta.image.channels)
        width = self.stem.out_features
        widths = []
        for name, blocks in preset.blocks().items():
            modules = []
            for branches in blocks:
                modules.append(Mixed(width, branches))
                width = modules[-1].out_features
            setattr(self, name, Blocks(modules))
            widths.append(width)
        super().__init__(
            num_features=width,
            num_classes=num_classes,
            meta=meta,
            dropout=rates.dropout_only(meta.architecture, 0.5),
        )
        self.stages = ("stem", *preset.blocks())
        self.aux = Auxiliary(widths[1], num_classes) if num_classes else None

    def make_head(self) -> nnx.Module:
        """Returns the classifier, drawn as the network's other layers are."""
        return Linear(self.num_features, self.num_classes, init=_INIT)

    def training_outputs(
        self, x: jax.Array, key: jax.Array | None
    ) -> tuple[jax.Array, tuple[tuple[jax.Array, float], ...]]:
        """Returns the logits, and those of the auxiliary classifier with the weight of their loss.

        Raises:
          InputError: the auxiliary classifier is trained, and the pictures are too small for it.
        """
        if self.aux is None or not self.auxiliary:
            return super().training_outputs(x, key)
        ((_, position, weight),) = self.auxiliary
        carry = self.run(self.enter(x), self.start, position, key=key)
        further = self.aux(carry).astype(jnp.float32)
        carry = self.run(carry, start=position, key=key)
        return self._classify(self.pool(carry), key), ((further, weight),)


def create(name: str, *, num_classes: int, meta: WeightsMeta, rates: Rates) -> Inception:
    """Returns the Inception called `name`, shapes for values: see `tlx.models.abstract_model`.

    Raises:
      InputError: a rate of stochastic depth is asked for.
    """
    return Inception(PRESETS[name], num_classes=num_classes, meta=meta, rates=rates)


def default_meta(name: str) -> WeightsMeta:
    """Returns how inputs are prepared where the weights do not say: as torchvision evaluates."""
    half = (0.5, 0.5, 0.5)
    return WeightsMeta(
        architecture=name,
        preprocess=ImagePreprocess(size=299, resize=342, mean=half, std=half),
        num_classes=1000,
        classifier="fc",
    )


def _unit(source: str, target: str) -> tuple[Key, ...]:
    return (conv(f"{source}.conv", f"{target}.conv"), *batchnorm(f"{source}.bn", f"{target}.bn"))


def _block(source: str, target: str, branches: Branches) -> list[Key]:
    """The rows of an Inception block: a branch's convolutions are counted from 1 if there are more."""
    rows: list[Key] = []
    for name, steps in branches.convolutions.items():
        for index, step in enumerate(steps):
            theirs = f"{source}.{name}" + (f"_{index + 1}" if len(steps) > 1 else "")
            ours = f"{target}.{name}.{index}"
            if step.beside is None:
                rows += _unit(theirs, ours)
            else:
                rows += [*_unit(f"{theirs}a", f"{ours}.0"), *_unit(f"{theirs}b", f"{ours}.1")]
    if branches.pooled:
        rows += _unit(f"{source}.branch_pool", f"{target}.branch_pool")
    return rows


# Of each stage, what torchvision calls its blocks.
_NAMES = {
    "mixed5": ("5b", "5c", "5d"),
    "mixed6": ("6a", "6b", "6c", "6d", "6e"),
    "mixed7": ("7a", "7b", "7c"),
}


def key_tables(name: str) -> tuple[KeyTable, ...]:
    """Returns the key tables that weights of this architecture may come in.

    The names are the same in both; timm's files lack the auxiliary classifier, unless they come from torchvision.
    """
    rows = list(linear("fc", "head"))
    for layer in ("1a_3x3", "2a_3x3", "2b_3x3", "3b_1x1", "4a_3x3"):
        rows += _unit(f"Conv2d_{layer}", f"stem.conv{layer[:2]}")
    for stage, blocks in PRESETS[name].blocks().items():
        for index, branches in enumerate(blocks):
            rows += _block(f"Mixed_{_NAMES[stage][index]}", f"{stage}.{index}", branches)
    auxiliary = (
        *_unit("AuxLogits.conv0", "aux.conv0"),
        *_unit("AuxLogits.conv1", "aux.conv1"),
        *linear("AuxLogits.fc", "aux.fc"),
    )
    return (
        KeyTable("torchvision", (*rows, *auxiliary)),
        KeyTable("timm", tuple(rows), absent=(r"aux\..*",)),
    )
