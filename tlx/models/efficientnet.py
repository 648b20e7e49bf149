"""EfficientNet (Tan & Le 2019, arXiv:1905.11946) B0 to B4, and EfficientNet-V2 small (arXiv:2104.00298).

torchvision's and timm's B0 to B4 are the same networks. Of EfficientNet-V2 small torchvision has one that pads
evenly (efficientnet_v2_s), and timm the authors' own, which pads as TensorFlow does (tf_efficientnetv2_s); in the
rest they agree.
"""

from __future__ import annotations

import dataclasses
import functools
import math

from tlx.models.base import Rates
from tlx.models.mbconv import Block, MBConvNet, MBConvPreset, Style, make_divisible
from tlx.models.mbconv_keys import blocks, conv_norm, timm_table, torchvision_block
from tlx.weights.keymap import KeyTable, linear
from tlx.weights.meta import ImagePreprocess, WeightsMeta

SMALL_STEM = True  # the same 3x3 convolution without stride

# Of each stage: expansion, kernel, stride of the first block, channels, blocks, fused or not.
_Stage = tuple[int, int, int, int, int, bool]
_V1: tuple[_Stage, ...] = (  # table 1 of the first paper
    (1, 3, 1, 16, 1, False),
    (6, 3, 2, 24, 2, False),
    (6, 5, 2, 40, 2, False),
    (6, 3, 2, 80, 3, False),
    (6, 5, 1, 112, 3, False),
    (6, 5, 2, 192, 4, False),
    (6, 3, 1, 320, 1, False),
)
_V2_SMALL: tuple[_Stage, ...] = (  # table 4 of the second paper
    (1, 3, 1, 24, 2, True),
    (4, 3, 2, 48, 4, True),
    (4, 3, 2, 64, 4, True),
    (4, 3, 2, 128, 6, False),
    (6, 3, 1, 160, 9, False),
    (6, 3, 2, 256, 15, False),
)


def _stages(
    rows: tuple[_Stage, ...], stem: int, width: float = 1.0, depth: float = 1.0
) -> tuple[tuple[Block, ...], ...]:
    """Returns the blocks of all stages, channels and blocks scaled and rounded as the authors do."""
    stages, features = [], stem
    for expansion, kernel, stride, channels, count, fused in rows:
        stage = []
        out = make_divisible(channels * width)
        for position in range(math.ceil(count * depth)):
            step = stride if position == 0 else 1
            squeeze = 0 if fused else features // 4
            inner = features * expansion
            stage.append(Block(features, inner, out, kernel, step, squeeze, fused=fused))
            features = out
        stages.append(tuple(stage))
    return tuple(stages)


def _v1(width: float, depth: float, dropout: float, size: int, resize: int) -> MBConvPreset:
    stem = make_divisible(32 * width)
    stages = _stages(_V1, stem, width, depth)
    return MBConvPreset(
        Style("silu", squeeze_activation="silu"),
        stem,
        stages,
        4 * stages[-1][-1].out_features,
        dropout=dropout,
        drop_path=0.2,
        preprocess=ImagePreprocess(size=size, resize=resize, interpolation="bicubic"),
    )


_V2_S = MBConvPreset(
    Style("silu", squeeze_activation="silu", epsilon=1e-3),
    24,
    _stages(_V2_SMALL, 24),
    1280,
    dropout=0.2,
    drop_path=0.2,
    projects=("torchvision",),
    preprocess=ImagePreprocess(size=384, resize=384),
)

# Scaled as in the authors' code; sizes are those of torchvision's first weights.
PRESETS = {
    "efficientnet_b0": _v1(1.0, 1.0, 0.2, 224, 256),
    "efficientnet_b1": _v1(1.0, 1.1, 0.2, 240, 256),
    "efficientnet_b2": _v1(1.1, 1.2, 0.3, 288, 288),
    "efficientnet_b3": _v1(1.2, 1.4, 0.3, 300, 320),
    "efficientnet_b4": _v1(1.4, 1.8, 0.4, 380, 384),
    "efficientnet_v2_s": _V2_S,
    "tf_efficientnetv2_s": dataclasses.replace(
        _V2_S,
        style=dataclasses.replace(_V2_S.style, same_padding=True, initial="timm"),
        projects=("timm",),
        preprocess=ImagePreprocess(
            size=384, resize=384, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3
        ),
    ),
}


def create(name: str, *, num_classes: int, meta: WeightsMeta, rates: Rates) -> MBConvNet:
    """Returns the EfficientNet called `name`, with shapes for values: see `tlx.models.abstract_model`."""
    return MBConvNet(PRESETS[name], num_classes=num_classes, meta=meta, rates=rates)


def default_meta(name: str) -> WeightsMeta:
    """Returns how inputs are prepared for this architecture where the weights do not say."""
    preset = PRESETS[name]
    return WeightsMeta(
        architecture=name,
        preprocess=preset.preprocess,
        num_classes=1000,
        classifier="classifier" if preset.projects[0] == "timm" else "classifier.1",
    )


def _torchvision(preset: MBConvPreset) -> KeyTable:
    last = f"features.{len(preset.stages) + 1}"
    rows = [
        *conv_norm("features.0.0", "features.0.1", "stem"),
        *conv_norm(f"{last}.0", f"{last}.1", "conv_head"),
        *linear("classifier.1", "head"),
    ]
    for stage, position, block, target in blocks(preset):
        source = f"features.{stage + 1}.{position}.block"
        rows += torchvision_block(source, target, block, nested=True)
    return KeyTable("torchvision", tuple(rows))


@functools.cache
def key_tables(name: str) -> tuple[KeyTable, ...]:
    """Returns the key tables that weights of this architecture may come in."""
    makers = {"torchvision": _torchvision, "timm": timm_table}
    return tuple(makers[project](PRESETS[name]) for project in PRESETS[name].projects)
