"""The models: a literal dict from name to family. A new family is one file and one line here."""

from __future__ import annotations

import fnmatch
import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from tlx.config import nearest
from tlx.errors import InputError

if TYPE_CHECKING:
    from tlx.models.base import Model
    from tlx.weights.meta import WeightsMeta

# Module of a family -> its models: PRESETS, create, default_meta and key_tables live there.
_MODELS = {
    "resnet": (
        "resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d resnext101_32x8d "
        "wide_resnet50_2 wide_resnet101_2 resnet18d resnet26d resnet34d resnet50d resnet101d "
        "resnet152d resnet20_cifar resnet32_cifar resnet44_cifar resnet56_cifar resnet110_cifar"
    ),
    "convnext": "convnext_tiny convnext_small convnext_base",
    "swin": (
        "swin_tiny_patch4_window7_224 swin_small_patch4_window7_224 swin_base_patch4_window7_224"
    ),
    "mobilenet": (
        "mobilenetv2_100 mobilenet_v3_large mobilenet_v3_small mobilenetv3_large_100 "
        "mobilenetv3_small_100"
    ),
    "efficientnet": (
        "efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 "
        "efficientnet_v2_s tf_efficientnetv2_s"
    ),
    "vgg": "vgg11 vgg13 vgg16 vgg19 vgg11_bn vgg13_bn vgg16_bn vgg19_bn",
    "squeezenet": "squeezenet1_0 squeezenet1_1",
    "densenet": "densenet121 densenet161 densenet169 densenet201",
    "inception": "inception_v3",
    "vit": (
        "vit_tiny_patch16_224 vit_small_patch16_224 vit_small_patch32_224 vit_base_patch16_224 "
        "vit_base_patch32_224 vit_large_patch16_224 deit_tiny_patch16_224 deit_small_patch16_224 "
        "deit_base_patch16_224 vit_small_patch14_dinov2 vit_base_patch14_dinov2 "
        "vit_small_patch14_reg4_dinov2 vit_base_patch14_reg4_dinov2"
    ),
    "bert": "bert roberta xlm_roberta distilbert electra",
    "deberta": "deberta_v3",
    "modernbert": "modernbert",
}

# The families that take texts, in place of pictures.
_TEXT = ("bert", "deberta", "modernbert")

# Model name -> module of its family.
FAMILIES = {
    name: f"tlx.models.{module}" for module, names in _MODELS.items() for name in names.split()
}

# Another project's name for the same network -> the name here.
ALIASES: dict[str, str] = {
    "vit_b_16": "vit_base_patch16_224",
    "vit_b_32": "vit_base_patch32_224",
    "vit_l_16": "vit_large_patch16_224",
    "swin_t": "swin_tiny_patch4_window7_224",
    "swin_s": "swin_small_patch4_window7_224",
    "swin_b": "swin_base_patch4_window7_224",
    "mobilenet_v2": "mobilenetv2_100",
    "xlm-roberta": "xlm_roberta",
    "deberta_v2": "deberta_v3",
    "deberta-v2": "deberta_v3",
}


def resolve(name: str) -> str:
    """Returns the model's name here, for it or for another project's name of the same network.

    Raises:
      InputError: there is no model of that name; the nearest is shown.
    """
    if name in FAMILIES:
        return name
    if name in ALIASES:
        return ALIASES[name]
    known = [*FAMILIES, *ALIASES]
    raise InputError(
        f"unknown model {name!r}{nearest(name, known)} (python -m tlx.models lists all {len(known)})"
    )


def list_models(pattern: str = "*") -> list[str]:
    """Returns the names that `create_model` accepts and that match the shell pattern.

    They are the models' (`resnet50`), other projects' names for them (`vit_b_16`), and the known sets of
    weights (`resnet50.tv_in1k`).
    """
    from tlx.weights import catalog

    names = [*FAMILIES, *ALIASES, *catalog.entries()]
    return sorted(fnmatch.filter(names, pattern))


def is_text(name: str) -> bool:
    """Returns whether the model takes texts, in place of pictures. Raises as `resolve` does."""
    return FAMILIES[resolve(name)].rpartition(".")[2] in _TEXT


def family(name: str) -> ModuleType:
    """Returns the module of the family that has this model. Raises as `resolve` does."""
    return importlib.import_module(FAMILIES[resolve(name)])


def default_meta(name: str) -> WeightsMeta:
    """Returns how inputs are prepared for a model where no weights say it."""
    return family(name).default_meta(resolve(name))


def abstract_model(
    name: str,
    *,
    num_classes: int,
    meta: WeightsMeta | None = None,
    dropout: float = -1.0,
    drop_path: float = -1.0,
) -> Model:
    """Returns the model with shapes in place of values: nothing is allocated or computed.

    Args:
      name: of the model.
      num_classes: 0: no head.
      meta: says the number of input channels, the input size (which decides the shape of position
        embeddings) and the stem; None: the architecture's own.
      dropout: rate before the classifier in training; below 0: as the architecture was trained.
      drop_path: likewise the largest rate of stochastic depth.

    Raises:
      InputError: the model does not exist, or not in this shape.
    """
    from tlx.models.base import Rates

    name, module = resolve(name), family(name)
    meta = meta or module.default_meta(name)
    if meta.stem == "small" and not getattr(module, "SMALL_STEM", False):
        raise InputError(f"{name} has no small-image stem (model.stem=small)")
    return module.create(name, num_classes=num_classes, meta=meta, rates=Rates(dropout, drop_path))
