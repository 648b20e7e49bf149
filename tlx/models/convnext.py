"""ConvNeXt (Liu et al. 2022, arXiv:2201.03545), the first version.

Each stage starts with its own downsampling, as in timm and transformers; torchvision and the
authors' release keep it apart. Global average pooling comes before the last LayerNorm, so the stage
`norm` ends in [B, D].
"""

from __future__ import annotations

import dataclasses

import jax
from flax import nnx

from tlx.models.base import Model, Rates
from tlx.models.formulations import fork
from tlx.models.layers import (
    Constant,
    Conv,
    LayerNorm,
    Linear,
    chain,
    drop_path,
    gelu,
    global_average_pool,
    layer_scale,
    normal,
    parameter,
)
from tlx.weights.keymap import Key, KeyTable, conv_bias, linear, norm, reshape, value
from tlx.weights.meta import ImagePreprocess, WeightsMeta

# PyTorch's `trunc_normal_(std=0.02)` cuts off at -2 and 2, a hundred deviations away.
_INIT = normal(0.02)


@dataclasses.dataclass(frozen=True)
class ConvNeXtPreset:
    """The numbers that tell one ConvNeXt from another."""

    depths: tuple[int, ...]  # blocks in each stage
    widths: tuple[int, ...]
    drop_path: float  # of the last block, as torchvision trains it
    resize: int  # pixels, of torchvision's evaluation


PRESETS = {
    "convnext_tiny": ConvNeXtPreset((3, 3, 9, 3), (96, 192, 384, 768), 0.1, 236),
    "convnext_small": ConvNeXtPreset((3, 3, 27, 3), (96, 192, 384, 768), 0.4, 230),
    "convnext_base": ConvNeXtPreset((3, 3, 27, 3), (128, 256, 512, 1024), 0.5, 232),
}


class Stem(nnx.Module):
    """Patches of 4x4 pixels as vectors, and LayerNorm."""

    def __init__(self, in_channels: int, width: int):
        self.conv = Conv(in_channels, width, 4, stride=4, bias=True, init=_INIT)
        self.norm = LayerNorm(width)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return self.norm(self.conv(x))


class Downsampling(nnx.Module):
    """LayerNorm and a 2x2 convolution that halves the resolution."""

    def __init__(self, in_features: int, width: int):
        self.norm = LayerNorm(in_features)
        self.conv = Conv(in_features, width, 2, stride=2, bias=True, init=_INIT)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(self.norm(x))


class Block(nnx.Module):
    """7x7 depthwise convolution, LayerNorm, two layers, and layer scale.

    Between the two layers it is four times as wide.
    """

    def __init__(self, width: int, *, rate: float):
        self.drop_path = rate
        self.conv = Conv(width, width, 7, padding=3, groups=width, bias=True, init=_INIT)
        self.norm = LayerNorm(width)
        self.fc1 = Linear(width, 4 * width, init=_INIT)
        self.fc2 = Linear(4 * width, width, init=_INIT)
        self.layer_scale = parameter((width,), Constant(1e-6))

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        y, x = fork(x)
        y = self.fc2(gelu(self.fc1(self.norm(self.conv(y)))))
        return x + drop_path(layer_scale(y, self.layer_scale), self.drop_path, key)


class Stage(nnx.Module):
    """Downsampling, but in the first stage, and blocks of one width."""

    def __init__(self, in_features: int, width: int, rates: tuple[float, ...]):
        self.downsample = None if in_features == width else Downsampling(in_features, width)
        self.blocks = nnx.List([Block(width, rate=rate) for rate in rates])

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return chain(x if self.downsample is None else self.downsample(x), self.blocks, key)


class PooledNorm(nnx.Module):
    """Global average, then LayerNorm: [B, H, W, C] to [B, C]."""

    def __init__(self, width: int):
        self.norm = LayerNorm(width)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return self.norm(global_average_pool(x))


class ConvNeXt(Model):
    """Stages: stem, stage1 to stage4, norm; features: the output of norm."""

    def __init__(
        self, preset: ConvNeXtPreset, *, num_classes: int, meta: WeightsMeta, rates: Rates
    ):
        dropout, last_rate = rates.or_own(0.0, preset.drop_path)
        super().__init__(
            num_features=preset.widths[-1], num_classes=num_classes, meta=meta, dropout=dropout
        )
        names = tuple(f"stage{i + 1}" for i in range(len(preset.depths)))
        self.stages = ("stem", *names, "norm")
        in_features = preset.widths[0]
        self.stem = Stem(meta.image.channels, in_features)
        total = sum(preset.depths)
        all_rates = [last_rate * i / (total - 1) for i in range(total)]
        for name, depth, width in zip(names, preset.depths, preset.widths, strict=True):
            own_rates, all_rates = tuple(all_rates[:depth]), all_rates[depth:]
            setattr(self, name, Stage(in_features, width, own_rates))
            in_features = width
        self.norm = PooledNorm(in_features)

    def make_head(self) -> nnx.Module:
        """Returns the classifier, drawn as the network's other layers are."""
        return Linear(self.num_features, self.num_classes, init=_INIT)

    def pool(self, carry: jax.Array) -> jax.Array:
        """The last stage has pooled already."""
        return carry


def create(name: str, *, num_classes: int, meta: WeightsMeta, rates: Rates) -> ConvNeXt:
    """Returns the ConvNeXt called `name`, shapes for values: see `tlx.models.abstract_model`."""
    return ConvNeXt(PRESETS[name], num_classes=num_classes, meta=meta, rates=rates)


def default_meta(name: str) -> WeightsMeta:
    """Returns how inputs are prepared where the weights do not say: as torchvision evaluates."""
    return WeightsMeta(
        architecture=name,
        preprocess=ImagePreprocess(size=224, resize=PRESETS[name].resize),
        num_classes=1000,
        classifier="classifier.2",
    )


_SCALE = reshape("O11->O", 3, lambda x: x[:, 0, 0], lambda x: x[:, None, None])


def _torchvision() -> tuple[Key, ...]:
    rows = [*conv_bias("features.0.0", "stem.conv"), *norm("features.0.1", "stem.norm")]
    for stage in (1, 2, 3, 4):
        ours, theirs = f"stage{stage}.blocks.{{j}}", f"features.{2 * stage - 1}.{{j}}"
        rows += [
            *conv_bias(f"{theirs}.block.0", f"{ours}.conv"),
            *norm(f"{theirs}.block.2", f"{ours}.norm"),
            *linear(f"{theirs}.block.3", f"{ours}.fc1"),
            *linear(f"{theirs}.block.5", f"{ours}.fc2"),
            value(f"{theirs}.layer_scale", f"{ours}.layer_scale", _SCALE),
        ]
        if stage > 1:
            before = f"features.{2 * stage - 2}"
            rows += _downsampling(f"{before}.0", f"{before}.1", stage)
    return (*rows, *norm("classifier.0", "norm.norm"), *linear("classifier.2", "head"))


def _downsampling(norm_name: str, conv_name: str, stage: int) -> tuple[Key, ...]:
    ours = f"stage{stage}.downsample"
    return (*norm(norm_name, f"{ours}.norm"), *conv_bias(conv_name, f"{ours}.conv"))


def _block(stage: int, theirs: str, names: str) -> tuple[Key, ...]:
    """The rows of a stage's blocks; `names`: of its convolution, norm, two layers and scale."""
    ours = f"stage{stage}.blocks.{{j}}"
    conv, norm_name, fc1, fc2, scale = names.split()
    return (
        *conv_bias(f"{theirs}.{conv}", f"{ours}.conv"),
        *norm(f"{theirs}.{norm_name}", f"{ours}.norm"),
        *linear(f"{theirs}.{fc1}", f"{ours}.fc1"),
        *linear(f"{theirs}.{fc2}", f"{ours}.fc2"),
        value(f"{theirs}.{scale}", f"{ours}.layer_scale"),
    )


def _timm() -> tuple[Key, ...]:
    rows = [*conv_bias("stem.0", "stem.conv"), *norm("stem.1", "stem.norm")]
    for i in range(4):
        rows += _block(i + 1, f"stages.{i}.blocks.{{j}}", "conv_dw norm mlp.fc1 mlp.fc2 gamma")
        if i > 0:
            rows += _downsampling(f"stages.{i}.downsample.0", f"stages.{i}.downsample.1", i + 1)
    return (*rows, *norm("head.norm", "norm.norm"), *linear("head.fc", "head"))


def _facebook() -> tuple[Key, ...]:
    rows = [
        *conv_bias("downsample_layers.0.0", "stem.conv"),
        *norm("downsample_layers.0.1", "stem.norm"),
    ]
    for i in range(4):
        rows += _block(i + 1, f"stages.{i}.{{j}}", "dwconv norm pwconv1 pwconv2 gamma")
        if i > 0:
            rows += _downsampling(f"downsample_layers.{i}.0", f"downsample_layers.{i}.1", i + 1)
    return (*rows, *norm("norm", "norm.norm"), *linear("head", "head"))


def _transformers() -> tuple[Key, ...]:
    rows = [
        *conv_bias("convnext.embeddings.patch_embeddings", "stem.conv"),
        *norm("convnext.embeddings.layernorm", "stem.norm"),
    ]
    for i in range(4):
        theirs = f"convnext.encoder.stages.{i}"
        names = "dwconv layernorm pwconv1 pwconv2 layer_scale_parameter"
        rows += _block(i + 1, f"{theirs}.layers.{{j}}", names)
        if i > 0:
            before = f"{theirs}.downsampling_layer"
            rows += _downsampling(f"{before}.0", f"{before}.1", i + 1)
    return (*rows, *norm("convnext.layernorm", "norm.norm"), *linear("classifier", "head"))


_TABLES = (
    KeyTable("torchvision", _torchvision()),
    KeyTable("timm", _timm()),
    # The authors' release, github.com/facebookresearch/ConvNeXt.
    KeyTable("facebook", _facebook()),
    # ConvNextForImageClassification. Its default configuration has an epsilon of 1e-12 in the last
    # norm, where the others have 1e-6: features differ by 5e-7 of themselves over their variance.
    KeyTable("transformers", _transformers()),
)


def key_tables(name: str) -> tuple[KeyTable, ...]:
    """Returns the key tables that weights of this architecture may come in."""
    return _TABLES
