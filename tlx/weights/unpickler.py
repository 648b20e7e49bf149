"""A pickle interpreter for tensors and plain data: nothing else is built, called or looked up.

It has only the opcodes for plain data, its globals are the functions of this file under torch's names,
and it sets no attributes. tlx/weights/torch_pickle.py feeds it.
"""

from __future__ import annotations

import dataclasses
import math
import mmap
import pickle
import pickletools
import re
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

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

# The types that have no storage class of their own: _rebuild_tensor_v3 names them beside untyped bytes.
_LATE_DTYPES = {
    name: np.dtype(getattr(np, name, None) or getattr(ml_dtypes, name))
    for name in "uint16 uint32 uint64 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz".split()
}
_DTYPES = {dtype.name: dtype for dtype in _STORAGES.values()} | _LATE_DTYPES

# What a file asks for may be this many times as large as the file: tied and expanded tensors are real, a
# shape of terabytes over a few bytes (strides of zero) is an attack.
_AMPLIFICATION = 16

_MAX_DIMENSIONS = 32  # the most that jax and every numpy can do

_DATA_OPCODES = frozenset(
    "PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 "
    "LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 UNICODE "
    "BINUNICODE SHORT_BINUNICODE BINUNICODE8 EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 "
    "TUPLE2 TUPLE3 EMPTY_DICT PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET GLOBAL STACK_GLOBAL "
    "BINPERSID".split()
)


class BadFileError(Exception):
    """What is wrong with the file, worded to follow its name."""


@dataclasses.dataclass(frozen=True, eq=False)
class Storage:
    """The bytes under one or more tensors, `[n]` uint8, and the type in which tensors count them."""

    raw: np.ndarray
    dtype: np.dtype


class _NumpyType:
    """A numpy dtype in the making: a pickle states the type first and the byte order afterwards."""

    def __init__(self, code: str, *_: object) -> None:
        if not re.fullmatch(r"[biufc]\d{1,2}", code):
            raise BadFileError(f"holds a numpy scalar of type {short(code)}; only numbers are read")
        self.dtype = np.dtype(code)

    def set_state(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


StorageOf = Callable[[np.dtype, str, int, Any], Storage]  # (dtype, key, elements, view)


class TensorUnpickler(pickle._Unpickler):
    """Python's own pickle interpreter, in Python, with an allow-list for opcodes and for globals.

    The C interpreter takes globals out of copyreg's extension cache without asking `find_class`, sets
    attributes of whatever is on its stack, and sizes its memo by the largest index in the file.
    """

    # What the base class has and its type stubs lack.
    stack: list[Any]
    pop_mark: Callable[[], list[Any]]
    readline: Callable[[], bytes]

    def __init__(self, file: BinaryIO | mmap.mmap, storage_of: StorageOf, file_size: int) -> None:
        super().__init__(file, encoding="utf-8")  # Python 2 wrote keys as byte strings
        self._storage_of = storage_of
        self._budget = _AMPLIFICATION * file_size + 2**20  # bytes
        self._globals: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): self._dict,
            ("collections", "Counter"): self._dict,  # the milestones of a torch scheduler
            ("torch", "Size"): _size,
            ("torch", "device"): _device,
            ("torch._utils", "_rebuild_tensor"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor_v2,
            ("torch._utils", "_rebuild_tensor_v3"): self._tensor_v3,
            ("torch._utils", "_rebuild_parameter"): _parameter,
            ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
            ("numpy", "dtype"): _NumpyType,
            ("numpy.core.multiarray", "scalar"): _numpy_scalar,
            ("numpy._core.multiarray", "scalar"): _numpy_scalar,
            ("_codecs", "encode"): self._latin1,
        }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._globals:
            return self._globals[module, name]
        if (module, name) in _STORAGES:
            return _STORAGES[module, name]
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        raise BadFileError(
            f"asks for {short(f'{module}.{name}')}, which is neither a tensor nor plain data; refused, "
            "nothing was executed (save the tensors alone: torch.save(model.state_dict(), ...))"
        )

    def persistent_load(self, pid: Any) -> Storage:
        match pid:
            case ("storage", np.dtype() as dtype, str() as key, str(), int() as size, *view) if (
                len(view) <= 1 and size >= 0
            ):
                return self._storage_of(dtype, key, size, view[0] if view else None)
        raise BadFileError("refers to something other than a tensor's storage; refused")

    def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any) -> np.ndarray:
        if not isinstance(storage, Storage):
            raise BadFileError("holds a tensor without a storage (a sparse or a meta tensor?)")
        return self._view(storage.raw, storage.dtype, offset, shape, strides)

    def _tensor_v2(
        self,
        storage: Any,
        offset: Any,
        shape: Any,
        strides: Any,
        requires_grad: Any,
        hooks: Any,
        metadata: Any = None,
    ) -> np.ndarray:
        if metadata:
            raise BadFileError(
                "holds a lazily conjugated or negated tensor; save it again after .resolve_conj()"
            )
        return self._tensor(storage, offset, shape, strides)

    def _tensor_v3(
        self,
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
        if not isinstance(storage, Storage) or not late or metadata:
            raise BadFileError("holds a tensor of a kind that cannot be read")
        return self._view(storage.raw, dtype, offset, shape, strides)

    def _view(
        self, raw: np.ndarray, dtype: np.dtype, offset: Any, shape: Any, strides: Any
    ) -> np.ndarray:
        """Returns the array with these offset and strides (in elements), checked against the storage."""
        numbers = (offset, *shape, *strides)
        if (
            len(shape) != len(strides)
            or len(shape) > _MAX_DIMENSIONS
            or any(type(n) is not int or not 0 <= n < 2**63 for n in numbers)
        ):
            raise BadFileError("holds a tensor with an invalid offset, shape or stride")
        count = math.prod(shape)
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if count and (last + 1) * dtype.itemsize > raw.size:
            raise BadFileError(
                f"holds a tensor of shape {short(shape)} that reaches beyond its storage"
            )
        self._spend(count * dtype.itemsize)
        if count == 0:
            array = np.empty(shape, dtype)
        else:
            steps = tuple(stride * dtype.itemsize for stride in strides)
            array = np.ndarray(tuple(shape), dtype, raw.data, offset * dtype.itemsize, steps)
        array.flags.writeable = False
        return array

    def _dict(self, pairs: Any = ()) -> dict[Any, Any]:
        self._spend(64 * len(pairs))
        return _checked(pairs.items() if type(pairs) is dict else pairs)

    def _latin1(self, text: Any, encoding: Any) -> bytes:
        """The way in which protocol 2 writes bytes."""
        if not isinstance(text, str) or encoding != "latin1":
            raise BadFileError("encodes text in an unexpected way; refused")
        self._spend(len(text))
        return text.encode("latin1")

    def _spend(self, size: int) -> None:
        self._budget -= size
        if self._budget < 0:
            raise BadFileError(
                f"needs more than {_AMPLIFICATION} times its own size in memory; refused"
            )

    def load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not callable(function) or type(arguments) is not tuple:
            raise BadFileError("calls something that is no function; refused")
        self.stack.append(function(*arguments))

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, _NumpyType):
            target.set_state(state)
        elif type(target) is not dict:  # of a state_dict: its version numbers, which are not needed
            raise BadFileError(f"sets attributes of a {type(target).__name__}; refused")

    def load_dict(self) -> None:
        pairs = self.pop_mark()
        self.stack.append({})
        self._put(pairs)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._put([key, value])

    def load_setitems(self) -> None:
        self._put(self.pop_mark())

    def _put(self, pairs: list[Any]) -> None:
        if type(self.stack[-1]) is not dict:
            raise BadFileError(f"sets items of a {type(self.stack[-1]).__name__}; refused")
        self.stack[-1].update(_checked(zip(pairs[::2], pairs[1::2], strict=True)))

    def load_inst(self) -> None:
        self.find_class(self.readline()[:-1].decode("ascii"), self.readline()[:-1].decode("ascii"))
        raise BadFileError("makes instances of classes; refused")


def _refuse(name: str) -> Callable[[TensorUnpickler], None]:
    def refuse(_: TensorUnpickler) -> None:
        raise BadFileError(
            f"uses the pickle instruction {name}, which tensors and plain data do not need; refused"
        )

    return refuse


def _dispatch() -> dict[int, Callable[[Any], None]]:
    own = {
        "REDUCE": TensorUnpickler.load_reduce,
        "BUILD": TensorUnpickler.load_build,
        "DICT": TensorUnpickler.load_dict,
        "SETITEM": TensorUnpickler.load_setitem,
        "SETITEMS": TensorUnpickler.load_setitems,
        "INST": TensorUnpickler.load_inst,
    }
    table: dict[int, Callable[[Any], None]] = {}
    for opcode in pickletools.opcodes:
        inherited = opcode.name in _DATA_OPCODES
        code = ord(opcode.code)
        table[code] = (
            pickle._Unpickler.dispatch[code]
            if inherited
            else own.get(opcode.name) or _refuse(opcode.name)
        )
    return table


TensorUnpickler.dispatch = _dispatch()


def _checked(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """Makes the dicts of a file. Tuples as keys are out: hashing deeply shared ones never ends."""
    made = {}
    for key, value in pairs:
        if not isinstance(key, str | bytes | int | float | None):
            raise BadFileError(f"holds a dict with a {type(key).__name__} as a key; refused")
        made[key] = value
    return made


def _size(numbers: Any) -> tuple[Any, ...]:
    if len(numbers) > _MAX_DIMENSIONS:
        raise BadFileError("holds a shape of too many dimensions")
    return tuple(numbers)


def _device(kind: Any, index: Any = 0) -> str:
    if type(kind) is not str or len(kind) > 20 or type(index) is not int:
        raise BadFileError("names a device in an unexpected way; refused")
    return f"{kind}:{index}"


def _parameter(data: Any, *_: object) -> Any:
    return data


def _numpy_scalar(kind: Any, data: Any) -> Any:
    if not isinstance(kind, _NumpyType) or not isinstance(data, bytes):
        raise BadFileError("holds a numpy scalar that is no number; refused")
    if len(data) != kind.dtype.itemsize:
        raise BadFileError("holds a numpy scalar of the wrong size")
    return np.frombuffer(data, kind.dtype)[0].item()


def no_storage(dtype: np.dtype, key: str, size: int, view: Any) -> Storage:
    """The `StorageOf` of pickles that must not hold tensors."""
    raise BadFileError("is no torch file")


def short(value: Any) -> str:
    """Returns the value as one line of at most 120 printable characters."""
    text = " ".join(str(value).split())
    return (text if len(text) <= 120 else text[:117] + "...").encode("ascii", "replace").decode()
