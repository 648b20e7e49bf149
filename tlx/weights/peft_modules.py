"""Which of a source's modules the layers here are: what peft's files name adapters after."""

from __future__ import annotations

from typing import Any, NamedTuple

from flax import nnx

from tlx.models.base import Model
from tlx.models.layers import Layer
from tlx.models.leaves import module_of
from tlx.weights.keymap import Key, KeyTable


class Place(NamedTuple):
    """A module of the source, and the layers here that it is."""

    key: Key  # of its weight
    paths: tuple[str, ...]


def places_of(table: KeyTable, model: Model) -> dict[str, Place]:
    """Returns the source's modules that are layers here, by their names."""
    found: dict[str, Place] = {}
    for path, module in nnx.iter_modules(model):
        if isinstance(module, Layer):
            row = table.row(".".join(map(str, path)) + ".kernel")
            if row is not None and row[0].endswith(".weight"):
                source, key, targets = row
                paths = tuple(target.removesuffix(".kernel") for target in targets)
                found[source.removesuffix(".weight")] = Place(key, paths)
    return found


def layer_at(model: Model, path: str) -> Layer:
    """Returns the layer of that path."""
    top = module_of(path)
    module: Any = getattr(model, top)
    for part in path[len(top) :].split(".")[1:]:
        module = module[int(part)] if part.isdecimal() else getattr(module, part)
    return module
