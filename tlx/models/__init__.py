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

# Model name -> module of its family: PRESETS, create, default_meta and key_tables live there.
FAMILIES: dict[str, str] = {
    **dict.fromkeys(
        ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"), "tlx.models.resnet"
    ),
    **dict.fromkeys((f"resnet{n}_cifar" for n in (20, 32, 44, 56, 110)), "tlx.models.resnet"),
}


def list_models(pattern: str = "*") -> list[str]:
    """Returns the names of the models that match the shell pattern."""
    return [name for name in FAMILIES if fnmatch.fnmatch(name, pattern)]


def family(name: str) -> ModuleType:
    """Returns the module of the family that has this model.

    Raises:
      InputError: there is no model of that name; the nearest is shown.
    """
    if name not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise InputError(f"unknown model {name!r}{nearest(name, FAMILIES)} (there are: {known})")
    return importlib.import_module(FAMILIES[name])


def abstract_model(name: str, *, num_classes: int, meta: WeightsMeta | None = None) -> Model:
    """Returns the model with shapes in place of values: nothing is allocated or computed."""
    from flax import nnx

    module = family(name)
    meta = meta or module.default_meta(name)
    return nnx.eval_shape(lambda: module.create(name, num_classes=num_classes, meta=meta))
