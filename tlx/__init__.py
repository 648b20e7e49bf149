"""tlx: transfer learning and fine-tuning in JAX. Names resolve on first use; this imports no jax."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tlx.config import Config as Config
    from tlx.data.preprocess import preprocess_fn as preprocess  # noqa: F401
    from tlx.errors import InputError as InputError
    from tlx.models import list_models as list_models
    from tlx.prediction import predict as predict
    from tlx.pretrained import create_model as create_model
    from tlx.pretrained import save_weights as save_weights
    from tlx.run import evaluate as evaluate
    from tlx.run import finetune as finetune
    from tlx.run import load as load
    from tlx.soups.make import soup as soup
    from tlx.weights.meta import WeightsMeta as WeightsMeta
    from tlx.weights.peft_read import load_adapters as load_adapters
    from tlx.weights.peft_write import save_adapters as save_adapters

_PUBLIC = {
    "Config": ("tlx.config", "Config"),
    "InputError": ("tlx.errors", "InputError"),
    "WeightsMeta": ("tlx.weights.meta", "WeightsMeta"),
    "create_model": ("tlx.pretrained", "create_model"),
    "evaluate": ("tlx.run", "evaluate"),
    "finetune": ("tlx.run", "finetune"),
    "list_models": ("tlx.models", "list_models"),
    "load": ("tlx.run", "load"),
    "load_adapters": ("tlx.weights.peft_read", "load_adapters"),
    "predict": ("tlx.prediction", "predict"),
    "preprocess": ("tlx.data.preprocess", "preprocess_fn"),
    "save_adapters": ("tlx.weights.peft_write", "save_adapters"),
    "save_weights": ("tlx.pretrained", "save_weights"),
    "soup": ("tlx.soups.make", "soup"),
}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'tlx' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
