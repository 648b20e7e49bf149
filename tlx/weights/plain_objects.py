"""Harmless Python and numpy objects beside tensors, made without their classes.

A pickle names a class and its contents; here every admitted name has a function that makes plain
data out of the contents. Trainers write them: timm an argparse.Namespace, Lightning its
AttributeDict, others paths, sets, counters, numpy numbers and arrays.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tlx.weights.pickle_instructions import INSTRUCTIONS
from tlx.weights.pickle_machine import (
    BadFileError,
    Function,
    Named,
    PickleMachine,
    checked_key,
    short,
)

MAX_DIMENSIONS = 32  # the most that jax and every numpy can do

_NUMPY_TYPES = "b1 i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 c8 c16".split()


class Attributes(dict[Any, Any]):
    """The attributes, or the items, of an object whose class is only a bag of them."""


@dataclasses.dataclass(eq=False)
class _NumpyType:
    """A numpy dtype in the making: a pickle states the type first and the byte order afterwards."""

    dtype: np.dtype


class PlainObjects(PickleMachine):
    """A machine whose globals are those of this file."""

    instructions = INSTRUCTIONS

    _unbuilt: np.ndarray | None = None  # the array that was announced and has no contents yet

    def find_global(self, module: str, name: str) -> Any:
        if (module, name) in _GLOBALS:
            return _GLOBALS[module, name]
        raise BadFileError(
            f"asks for {short(f'{module}.{name}')}, which is neither a tensor nor plain data; "
            "refused, nothing was executed (save the tensors alone: "
            "torch.save(model.state_dict(), ...))"
        )

    def build(self, target: Any, state: Any) -> None:
        if isinstance(target, _NumpyType):
            _set_byte_order(target, state)
        elif type(target) is Attributes and type(state) is dict:
            self.spend(64 * len(state))
            target.update(state)
        elif target is self._unbuilt and isinstance(target, np.ndarray):
            self._unbuilt = None
            self.spend(_set_contents(target, state))
        elif type(target) is not dict:  # of a state_dict: its version numbers, which are not needed
            raise BadFileError(f"sets attributes of a {type(target).__name__}; refused")

    def announce_array(self) -> np.ndarray:
        """Returns an array that the next BUILD fills, in place: the memo may hold it already."""
        self._unbuilt = np.empty((0,), np.uint8)
        return self._unbuilt


def empty_array(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Returns an array without elements; numpy has no place for (0, 2**62, 2**62)."""
    try:
        array = np.empty(shape, dtype)
    except ValueError:
        raise BadFileError(f"holds a tensor of the impossible shape {short(shape)}") from None
    array.flags.writeable = False
    return array


def _dict(machine: PlainObjects, pairs: Any = ()) -> dict[Any, Any]:
    if not isinstance(pairs, dict | list | tuple):
        raise BadFileError("makes a dict in an unexpected way; refused")
    machine.spend(64 * len(pairs))
    items = pairs.items() if isinstance(pairs, dict) else pairs
    return {checked_key(key): value for key, value in items}


def _defaultdict(machine: PlainObjects, factory: Any = None, pairs: Any = ()) -> dict[Any, Any]:
    return _dict(machine, pairs)


def _set(machine: PlainObjects, items: Any = ()) -> set[Any]:
    if type(items) not in (list, tuple):
        raise BadFileError("makes a set in an unexpected way; refused")
    machine.spend(64 * len(items))
    return set(map(checked_key, items))


def _attributes(machine: PlainObjects) -> Attributes:
    return Attributes()


def _old_attributes(machine: PlainObjects, kind: Any, base: Any, state: Any) -> Attributes:
    """How protocols 0 and 1 make objects."""
    if type(kind) is not Function or kind.call is not _attributes or type(base) is not Named:
        raise BadFileError("makes an instance of what is no plain class; refused")
    return Attributes(_dict(machine, () if state is None else state))


def _path(machine: PlainObjects, *parts: Any) -> str:
    if not all(type(part) is str for part in parts):
        raise BadFileError("makes a path in an unexpected way; refused")
    machine.spend(sum(len(part) + 1 for part in parts))
    return "/".join(parts)


def _text(machine: PlainObjects, text: Any) -> str:
    if type(text) is not str:
        raise BadFileError("makes a text in an unexpected way; refused")
    return text


def _bytes(machine: PlainObjects, content: Any = b"", encoding: Any = None) -> bytes:
    if type(content) is bytes and encoding is None:
        return content
    return _latin1(machine, content, encoding)


def _latin1(machine: PlainObjects, text: Any, encoding: Any) -> bytes:
    """The way in which protocol 2 writes bytes."""
    if type(text) is not str or type(encoding) is not str or encoding not in ("latin1", "latin-1"):
        raise BadFileError("encodes text in an unexpected way; refused")
    machine.spend(len(text))
    return text.encode("latin1")


def _complex(machine: PlainObjects, real: Any, imaginary: Any) -> complex:
    if type(real) is not float or type(imaginary) is not float:
        raise BadFileError("makes a complex number in an unexpected way; refused")
    return complex(real, imaginary)


def _numpy_type(machine: PlainObjects, code: Any, *_: object) -> _NumpyType:
    if type(code) is not str or code not in _NUMPY_TYPES:
        raise BadFileError(f"holds a numpy scalar of type {short(code)}; only numbers are read")
    return _NumpyType(np.dtype(code))


def _set_byte_order(target: _NumpyType, state: Any) -> None:
    match state:
        case (int(), str() as order, *_) if order in ("<", ">", "|", "="):
            big = order == ">"
        case _:
            raise BadFileError("holds a numpy type of an unexpected kind; refused")
    target.dtype = target.dtype.newbyteorder(">" if big else "<")


def _numpy_scalar(machine: PlainObjects, kind: Any, data: Any) -> Any:
    if not isinstance(kind, _NumpyType) or type(data) is not bytes:
        raise BadFileError("holds a numpy scalar that is no number; refused")
    if len(data) != kind.dtype.itemsize:
        raise BadFileError("holds a numpy scalar of the wrong size")
    return np.frombuffer(data, kind.dtype)[0].item()


def _numpy_array(machine: PlainObjects, kind: Any, shape: Any, code: Any) -> np.ndarray:
    if type(kind) is not Named or kind.name != "numpy.ndarray":
        raise BadFileError("holds a numpy array of an unexpected kind; refused")
    return machine.announce_array()


def _set_contents(array: np.ndarray, state: Any) -> int:
    """Fills an announced array, and returns its size in bytes."""
    match state:
        case (int(), tuple(shape), _NumpyType(dtype), bool(fortran), bytes(content)):
            _check_array(shape, dtype, content)
            if not content:
                empty_array(shape, dtype)
            # numpy's own way, and the only one in place; all is checked above.
            array.__setstate__((1, shape, dtype, fortran, content))  # type: ignore[arg-type]
            array.flags.writeable = False
            return len(content)
    raise BadFileError("holds a numpy array in an unexpected form; refused")


def _numpy_from_buffer(
    machine: PlainObjects, content: Any, kind: Any, shape: Any, order: Any
) -> np.ndarray:
    """How protocol 5 writes arrays."""
    known = type(order) is str and order in ("C", "F")
    if type(content) is not bytes or not isinstance(kind, _NumpyType) or not known:
        raise BadFileError("holds a numpy array in an unexpected form; refused")
    _check_array(shape, kind.dtype, content)
    if not content:
        return empty_array(shape, kind.dtype)
    return np.ndarray(shape, kind.dtype, content, order=order)


def _check_array(shape: Any, dtype: np.dtype, content: bytes) -> None:
    if (
        type(shape) is not tuple
        or len(shape) > MAX_DIMENSIONS
        or any(type(n) is not int or not 0 <= n < 2**63 for n in shape)
        or math.prod(shape) * dtype.itemsize != len(content)
    ):
        raise BadFileError(f"holds a numpy array whose shape {short(shape)} does not fit its bytes")


_BAGS = (
    ("argparse", "Namespace"),
    ("types", "SimpleNamespace"),
    ("lightning.fabric.utilities.data", "AttributeDict"),
    ("lightning_fabric.utilities.data", "AttributeDict"),
    ("pytorch_lightning.utilities.parsing", "AttributeDict"),
    ("yacs.config", "CfgNode"),
)
_PATHS = "PosixPath WindowsPath PurePosixPath PureWindowsPath".split()
_BUILTINS: dict[str, Function | Named] = {
    **{
        name: Named(f"builtins.{name}")
        for name in "object dict list tuple int float str bool".split()
    },
    "set": Function(_set),
    "frozenset": Function(_set),
    "bytes": Function(_bytes),  # without arguments: how protocol 2 writes b""
    "bytearray": Function(_bytes),
    "complex": Function(_complex),
}

_GLOBALS: dict[tuple[str, str], Function | Named] = {
    **{bag: Function(_attributes, is_class=True) for bag in _BAGS},
    **{
        (module, name): Function(_path)
        for module in ("pathlib", "pathlib._local")
        for name in _PATHS
    },
    # Up to protocol 2 pickles have Python 2's names.
    **{(m, name): value for m in ("builtins", "__builtin__") for name, value in _BUILTINS.items()},
    **{(module, "_reconstructor"): Function(_old_attributes) for module in ("copyreg", "copy_reg")},
    **{
        (f"numpy.{core}.{module}", name): function
        for core in ("core", "_core")
        for module, name, function in (
            ("multiarray", "scalar", Function(_numpy_scalar)),
            ("multiarray", "_reconstruct", Function(_numpy_array)),
            ("numeric", "_frombuffer", Function(_numpy_from_buffer)),
        )
    },
    ("numpy", "dtype"): Function(_numpy_type),
    ("numpy", "ndarray"): Named("numpy.ndarray"),
    ("collections", "OrderedDict"): Function(_dict),
    ("collections", "Counter"): Function(_dict),  # the milestones of a torch scheduler
    ("collections", "defaultdict"): Function(_defaultdict),
    ("_codecs", "encode"): Function(_latin1),
    ("torch.torch_version", "TorchVersion"): Function(_text, is_class=True),
}
