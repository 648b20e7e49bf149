"""MobileNet-V2 (Sandler et al. 2018, arXiv:1801.04381) and V3 (Howard et al. 2019, arXiv:1905.02244).

torchvision's and timm's MobileNet-V2 are one network. Their MobileNet-V3 differ in BatchNorm's epsilon and momentum
and are two presets: mobilenet_v3_large (torchvision's names, and its 1e-3) and mobilenetv3_large_100 (timm's names,
and its 1e-5), likewise the small ones. In the rest, the widths of the squeeze-excites and the head's activation
included, they agree.
"""

from __future__ import annotations

import functools

from tlx.models.base import Rates
from tlx.models.mbconv import Block, MBConvNet, MBConvPreset, Style, make_divisible
from tlx.models.mbconv_keys import blocks, conv_norm, timm_table, torchvision_block
from tlx.weights.keymap import KeyTable, linear
from tlx.weights.meta import ImagePreprocess, WeightsMeta

SMALL_STEM = True  # the same 3x3 convolution without stride

# Of each stage: expansion, channels, blocks, stride of the first one (the V2 paper's table 2).
_V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)

# Of each stage: its kernel, channels, squeeze-excite or not, activation ("": hard-swish), stride of the first block,
# and each block's inner channels (the V3 paper's tables 1 and 2).
_Stage = tuple[int, int, bool, str, int, tuple[int, ...]]
_V3_LARGE: tuple[_Stage, ...] = (
    (3, 16, False, "relu", 1, (16,)),
    (3, 24, False, "relu", 2, (64, 72)),
    (5, 40, True, "relu", 2, (72, 120, 120)),
    (3, 80, False, "", 2, (240, 200, 184, 184)),
    (3, 112, True, "", 1, (480, 672)),
    (5, 160, True, "", 2, (672, 960, 960)),
)
_V3_SMALL: tuple[_Stage, ...] = (
    (3, 16, True, "relu", 2, (16,)),
    (3, 24, False, "relu", 2, (72, 88)),
    (5, 40, True, "", 2, (96, 240, 240)),
    (5, 48, True, "", 1, (120, 144)),
    (5, 96, True, "", 2, (288, 576, 576)),
)


def _v2() -> MBConvPreset:
    stages, width = [], 32
    for expansion, out, depth, stride in _V2:
        stage = []
        for position in range(depth):
            step = stride if position == 0 else 1
            stage.append(Block(width, width * expansion, out, 3, step))
            width = out
        stages.append(tuple(stage))
    return MBConvPreset(Style("relu6", initial="mobilenet"), 32, tuple(stages), 1280)


def _v3(
    rows: tuple[_Stage, ...], projection: int, *, timm: bool, drop_path: float = 0.0
) -> MBConvPreset:
    stages, width = [], 16
    for kernel, out, squeezed, activation, stride, inners in rows:
        stage = []
        for position, inner in enumerate(inners):
            step = stride if position == 0 else 1
            squeeze = make_divisible(inner / 4) if squeezed else 0
            stage.append(Block(width, inner, out, kernel, step, squeeze, activation))
            width = out
        stages.append(tuple(stage))
    style = Style(
        "hard_swish",
        gate="hard_sigmoid",
        epsilon=1e-5 if timm else 1e-3,
        momentum=0.1 if timm else 0.01,
        initial="timm" if timm else "mobilenet",
    )
    interpolation = "bicubic" if timm else "bilinear"
    return MBConvPreset(
        style,
        16,
        tuple(stages),
        6 * width,
        projection,
        drop_path=drop_path,
        projects=("timm",) if timm else ("torchvision",),
        preprocess=ImagePreprocess(size=224, resize=256, interpolation=interpolation),
    )


# timm's published recipe of the large one (ra_in1k) drops paths at 0.2; torchvision's drop none.
PRESETS = {
    "mobilenetv2_100": _v2(),
    "mobilenet_v3_large": _v3(_V3_LARGE, 1280, timm=False),
    "mobilenet_v3_small": _v3(_V3_SMALL, 1024, timm=False),
    "mobilenetv3_large_100": _v3(_V3_LARGE, 1280, timm=True, drop_path=0.2),
    "mobilenetv3_small_100": _v3(_V3_SMALL, 1024, timm=True),
}


def create(name: str, *, num_classes: int, meta: WeightsMeta, rates: Rates) -> MBConvNet:
    """Returns the MobileNet called `name`, with shapes for values: see `tlx.models.abstract_model`."""
    return MBConvNet(PRESETS[name], num_classes=num_classes, meta=meta, rates=rates)


def default_meta(name: str) -> WeightsMeta:
    """Returns how inputs are prepared for this architecture where the weights do not say."""
    preset = PRESETS[name]
    classifier = "classifier.3" if preset.projection else "classifier.1"
    return WeightsMeta(
        architecture=name,
        preprocess=preset.preprocess,
        num_classes=1000,
        classifier="classifier" if preset.projects[0] == "timm" else classifier,
    )


def _torchvision(preset: MBConvPreset) -> KeyTable:
    """Returns torchvision's table: stem, blocks and last convolution are one flat sequence."""
    rows = [*conv_norm("features.0.0", "features.0.1", "stem")]
    last = 1
    for _, _, block, target in blocks(preset):
        if preset.projection:
            rows += torchvision_block(f"features.{last}.block", target, block, nested=True)
        else:
            rows += torchvision_block(f"features.{last}.conv", target, block, nested=False)
        last += 1
    rows += conv_norm(f"features.{last}.0", f"features.{last}.1", "conv_head")
    if preset.projection:
        rows += (*linear("classifier.0", "conv_head.linear"), *linear("classifier.3", "head"))
    else:
        rows += linear("classifier.1", "head")
    return KeyTable("torchvision", tuple(rows))


@functools.cache
def key_tables(name: str) -> tuple[KeyTable, ...]:
    """Returns the key tables that weights of this architecture may come in."""
    makers = {"torchvision": _torchvision, "timm": timm_table}
    return tuple(makers[project](PRESETS[name]) for project in PRESETS[name].projects)
