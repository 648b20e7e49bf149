"""Between modules and flat dicts: outside models/, a model's values are `path -> array`.

A path is the attribute path joined by dots, as `layer4.0.conv1.kernel`.
"""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from tlx.errors import InputError
from tlx.models.base import Model
from tlx.models.layers import Constant

Values = dict[str, Any]  # path -> array

_MODULE = re.compile(r"layer\.\d+|[^.]+")


class Leaf(NamedTuple):
    """What is known of a value before there is one."""

    shape: tuple[int, ...]
    dtype: Any
    init: Any  # draws the value where no file has it: (key, shape, dtype) -> array
    is_parameter: bool  # differentiable, else a running statistic


def leaves(model: Model) -> dict[str, Leaf]:
    """Returns every parameter and statistic of the (abstract or real) model, from the stem to the head."""
    found = {}
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        value = variable.get_value()
        is_parameter = isinstance(variable, nnx.Param)
        init = variable.get_metadata()["init"]
        found[_join(path)] = Leaf(tuple(value.shape), value.dtype, init, is_parameter)
    modules = (*model.stages, *model.auxiliary_modules, "head")
    order = {name: index for index, name in enumerate(modules)}
    return dict(sorted(found.items(), key=lambda item: order[module_of(item[0])]))


def values(model: Model) -> Values:
    """Returns the model's values."""
    return {_join(path): v.get_value() for path, v in nnx.to_flat_state(nnx.state(model))}


def with_values(model: Model, arrays: Mapping[str, Any]) -> Model:
    """Returns a new model of the same structure that holds the arrays; all paths must be there."""
    graphdef, state = nnx.split(model)
    filled = [(path, v.replace(arrays[_join(path)])) for path, v in nnx.to_flat_state(state)]
    return nnx.merge(graphdef, nnx.from_flat_state(filled))


def matcher(pattern: str, field: str) -> Callable[[str], bool]:
    """Returns whether a path is meant by a pattern: a module's path (its whole subtree) or a regex.

    Raises:
      InputError: it is no regular expression; `field` says where it stands.
    """
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise InputError(f"{field}: {pattern!r} is not a regular expression: {error}") from error
    return lambda path: path.startswith(f"{pattern}.") or regex.fullmatch(path) is not None


def module_of(path: str) -> str:
    """Returns the module of the model that a value belongs to, a stage or the head: layer.3 of layer.3.fc1.kernel.

    The layers of text encoders are called as in their files, by a word and a number; others have names without a dot.
    """
    match = _MODULE.match(path)
    assert match is not None, path
    return match[0]


def is_within(path: str, modules: Iterable[str]) -> bool:
    """Returns whether the value belongs to one of the modules, or is one of them: they are given by their paths."""
    return any(path == module or path.startswith(f"{module}.") for module in modules)


def initial_values(
    found: Mapping[str, Leaf], paths: Iterable[str], seed: int, sharding: Any = None
) -> Values:
    """Draws the values of the given paths; each depends on its own path and the seed alone."""
    drawn: Values = {}
    key = None
    for path in paths:
        init, shape, dtype = found[path].init, found[path].shape, found[path].dtype
        if isinstance(init, Constant):  # nothing to draw, and so nothing to compile
            drawn[path] = jax.device_put(np.full(shape, init.value, dtype), sharding)
            continue
        key = jax.random.key(seed) if key is None else key
        own = jax.random.fold_in(key, zlib.crc32(path.encode()))
        drawn[path] = _drawer(init, shape, dtype, sharding)(own)
    return drawn


@functools.cache
def _drawer(init: Any, shape: tuple[int, ...], dtype: Any, sharding: Any) -> Any:
    """Returns the compiled initializer; one for all values of a kind, which one for the model would not be."""
    return jax.jit(lambda key: init(key, shape, dtype), out_shardings=sharding)


def _join(path: Iterable[Any]) -> str:
    return ".".join(map(str, path))
