"""The networks that tlx's are compared with: one module for each family of tlx/models.

Each has PARAMETERS (name -> published number of parameters, all models of the family), GOLDENS (name -> pictures,
height and width of its committed logits) and `originals(name)`.
"""

import importlib
from types import ModuleType

from tlx.models import FAMILIES, is_text

NAMES = tuple(
    name for name in FAMILIES if not is_text(name)
)  # those of texts have tests of their own
MODULES = tuple(dict.fromkeys(FAMILIES[name].rsplit(".", 1)[1] for name in NAMES))


def module_of(name: str) -> ModuleType:
    """The module here that belongs to the model's family."""
    return importlib.import_module(f"tests.models.originals.{FAMILIES[name].rsplit('.', 1)[1]}")


def cases() -> dict[str, tuple[int, int, int]]:
    """Name -> pictures, height and width of the golden logits, over all families."""
    modules = [importlib.import_module(f"tests.models.originals.{name}") for name in MODULES]
    return {name: size for module in modules for name, size in module.GOLDENS.items()}
