"""A pickle interpreter for tensors and plain data: nothing else is built, called or looked up.

torch's names stand for the functions of this file; torch/_utils.py and torch/_tensor.py in
https://github.com/pytorch/pytorch say what their arguments are. tlx/weights/torch_pickle.py feeds
it.
"""

from __future__ import annotations

import dataclasses
import math
import mmap
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from tlx.weights.pickle_machine import BadFileError, Function, Named, PickleMachine, short
from tlx.weights.plain_objects import MAX_DIMENSIONS, PlainObjects, empty_array

_STORAGES = {
    ("torch", f"{name}Storage"): np.dtype(kind)
    for name, kind in {
        "Double": np.float64,
        "Float": np.float32,
        "Half": np.float16,
        "BFloat16": ml_dtypes.bfloat16,
        "Long": np.int64,
        "Int": np.int32,
        "Short": np.int16,
        "Char": np.int8,
        "Byte": np.uint8,
        "Bool": np.bool_,
        "ComplexDouble": np.complex128,
        "ComplexFloat": np.complex64,
    }.items()
}
_STORAGES["torch.storage", "UntypedStorage"] = np.dtype(np.uint8)
_STORAGES["torch", "UntypedStorage"] = np.dtype(np.uint8)

# The types that have no storage class of their own: _rebuild_tensor_v3 names them beside untyped
# bytes.
_LATE_DTYPES = {
    name: np.dtype(getattr(np, name, None) or getattr(ml_dtypes, name))
    for name in (
        "uint16 uint32 uint64 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz"
    ).split()
}
_DTYPES = {dtype.name: dtype for dtype in _STORAGES.values()} | _LATE_DTYPES

# What a file asks for may be this many times as large as the file: tied and expanded tensors are
# real, a shape of terabytes over a few bytes (strides of zero) is an attack.
_AMPLIFICATION = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Storage:
    """The bytes under one or more tensors, `[n]` uint8, and the type that counts them."""

    raw: np.ndarray
    dtype: np.dtype


StorageOf = Callable[[np.dtype, str, int, Any], Storage]  # (dtype, key, elements, view)


def no_storage(dtype: np.dtype, key: str, size: int, view: Any) -> Storage:
    """The `StorageOf` of pickles that must not hold tensors."""
    raise BadFileError("is no torch file")


class TensorUnpickler(PlainObjects):
    """A machine that knows tensors too; their bytes come from `storage_of`."""

    def __init__(self, data: bytes | mmap.mmap, storage_of: StorageOf, file_size: int) -> None:
        super().__init__(data)
        self.storage_of = storage_of
        self._budget = _AMPLIFICATION * file_size + 2**20  # bytes

    def find_global(self, module: str, name: str) -> Any:
        if (module, name) in _GLOBALS:
            return _GLOBALS[module, name]
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if module == "torch._utils" and name in _UNREADABLE:
            raise BadFileError(f"holds {_UNREADABLE[name]} (torch._utils.{name})")
        return super().find_global(module, name)

    def find_persistent(self, identity: Any) -> Storage:
        match identity:
            case (
                str() as kind,
                np.dtype() as dtype,
                str() as key,
                str(),
                int() as size,
                *view,
            ) if kind == "storage" and len(view) <= 1 and 0 <= size < 2**63:
                return self.storage_of(dtype, key, size, view[0] if view else None)
        raise BadFileError("refers to something other than a tensor's storage; refused")

    def view(
        self, raw: np.ndarray, dtype: np.dtype, offset: Any, shape: Any, strides: Any
    ) -> np.ndarray:
        """Returns the array with these offset and strides in elements, after checking them."""
        if (
            not isinstance(shape, tuple | list)
            or not isinstance(strides, tuple | list)
            or len(shape) != len(strides)
            or len(shape) > MAX_DIMENSIONS
            or any(type(n) is not int or not 0 <= n < 2**63 for n in (offset, *shape, *strides))
        ):
            raise BadFileError("holds a tensor with an invalid offset, shape or stride")
        count = math.prod(shape)
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if count and (last + 1) * dtype.itemsize > raw.size:
            raise BadFileError(
                f"holds a tensor of shape {short(shape)} that reaches beyond its storage"
            )
        self._budget -= count * dtype.itemsize
        if self._budget < 0:
            raise BadFileError(
                f"needs more than {_AMPLIFICATION} times its own size in memory; refused"
            )
        if count == 0:
            array = empty_array(shape, dtype)
        else:
            # Where there is one element only, torch's stride is arbitrary, and may overflow.
            steps = tuple(
                (stride if n > 1 else 0) * dtype.itemsize
                for n, stride in zip(shape, strides, strict=True)
            )
            array = np.ndarray(tuple(shape), dtype, raw.data, offset * dtype.itemsize, steps)
        array.flags.writeable = False
        return array


def _tensor(
    machine: TensorUnpickler, storage: Any, offset: Any, shape: Any, strides: Any
) -> np.ndarray:
    if not isinstance(storage, Storage):
        raise BadFileError("holds a tensor without a storage (a sparse or a meta tensor?)")
    return machine.view(storage.raw, storage.dtype, offset, shape, strides)


def _tensor_v2(
    machine: TensorUnpickler,
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    requires_grad: Any,
    hooks: Any,
    metadata: Any = None,
) -> np.ndarray:
    if metadata is not None and (type(metadata) is not dict or metadata):
        raise BadFileError(
            "holds a lazily conjugated or negated tensor; save it again after .resolve_conj()"
        )
    return _tensor(machine, storage, offset, shape, strides)


def _tensor_v3(
    machine: TensorUnpickler,
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    requires_grad: Any,
    hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> np.ndarray:
    late = isinstance(dtype, np.dtype) and dtype.name in _LATE_DTYPES
    special = metadata is not None and (type(metadata) is not dict or metadata)
    if not isinstance(storage, Storage) or not late or special:
        raise BadFileError("holds a tensor of a kind that cannot be read")
    return machine.view(storage.raw, dtype, offset, shape, strides)


def _tensor_with_attributes(
    machine: TensorUnpickler, function: Any, kind: Any, arguments: Any, state: Any
) -> np.ndarray:
    """A tensor to which somebody gave attributes, or an nn.Buffer; the attributes are dropped."""
    known = type(function) is Function and function.call in (_tensor_v2, _tensor_v3)
    if not known or type(kind) is not Named or type(arguments) is not tuple:
        raise BadFileError("holds a tensor of a subclass; save its .as_subclass(torch.Tensor)")
    return function.call(machine, *arguments)


def _parameter(machine: TensorUnpickler, data: Any, *_: object) -> np.ndarray:
    if not isinstance(data, np.ndarray):
        raise BadFileError("holds a parameter that is no tensor; refused")
    return data


def _size(machine: TensorUnpickler, numbers: Any = ()) -> tuple[Any, ...]:
    if not isinstance(numbers, tuple | list) or len(numbers) > MAX_DIMENSIONS:
        raise BadFileError("holds a shape of too many dimensions")
    return tuple(numbers)


def _device(machine: PickleMachine, kind: Any, index: Any = 0) -> str:
    if type(kind) is not str or len(kind) > 20 or type(index) is not int:
        raise BadFileError("names a device in an unexpected way; refused")
    return f"{kind}:{index}"


_GLOBALS: dict[tuple[str, str], Any] = {
    **_STORAGES,
    ("torch", "Size"): Function(_size),
    ("torch", "device"): Function(_device),
    ("torch", "Tensor"): Named("torch.Tensor"),
    ("torch.nn.parameter", "Parameter"): Named("torch.nn.parameter.Parameter"),
    ("torch._utils", "_rebuild_tensor"): Function(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): Function(_tensor_v2),
    ("torch._utils", "_rebuild_tensor_v3"): Function(_tensor_v3),
    ("torch._utils", "_rebuild_parameter"): Function(_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): Function(_parameter),
    ("torch._tensor", "_rebuild_from_type_v2"): Function(_tensor_with_attributes),
}

_UNREADABLE = {
    "_rebuild_sparse_tensor": "a sparse tensor; save it as tensor.to_dense()",
    "_rebuild_sparse_csr_tensor": "a sparse tensor; save it as tensor.to_dense()",
    "_rebuild_qtensor": "a quantised tensor; save it as tensor.dequantize()",
    "_rebuild_nested_tensor": "a nested (ragged) tensor; save its parts",
    "_rebuild_meta_tensor_no_storage": "a tensor without values, on torch's meta device",
    "_rebuild_wrapper_subclass": "a tensor of a subclass; save it as a plain torch.Tensor",
}
