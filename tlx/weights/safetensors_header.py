"""The header of a safetensors file, read with suspicion.

The format (https://github.com/huggingface/safetensors): 8 bytes of little-endian length, a JSON
object of that length, and the tensors' bytes one after another without gaps. The library's own
reader admits headers of 100 MB, which take gigabytes and seconds in Python; here the limit follows
what real files have.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from mmap import mmap
from typing import Any

import ml_dtypes
import numpy as np

from tlx.weights.pickle_machine import BadFileError, short
from tlx.weights.plain_objects import MAX_DIMENSIONS

MAX_HEADER = 2**23  # bytes: some 80,000 tensors

_DTYPES = {
    name: np.dtype(kind)
    for name, kind in {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "I64": np.int64,
        "I32": np.int32,
        "I16": np.int16,
        "I8": np.int8,
        "U64": np.uint64,
        "U32": np.uint32,
        "U16": np.uint16,
        "U8": np.uint8,
        "BOOL": np.bool_,
        "C64": np.complex64,
    }.items()
}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where a tensor lies in the file."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int  # bytes from the file's beginning
    stop: int


@dataclasses.dataclass(frozen=True)
class Header:
    """What a safetensors file says about itself."""

    metadata: dict[str, str]
    tensors: list[Tensor]  # in the order of their bytes


def read_header(data: mmap) -> Header:
    """Returns the header, whose tensors fill the rest of the file exactly.

    Raises:
      BadFileError: it is no such header, or does not fit the file.
    """
    size = int.from_bytes(data[:8], "little")
    if size > MAX_HEADER:
        raise BadFileError(
            f"is a truncated or damaged safetensors file (it announces a header of {size} bytes)"
        )
    if 8 + size > len(data):
        raise BadFileError("is a truncated or damaged safetensors file (its header is cut off)")
    entries = _parse(data[8 : 8 + size])
    metadata = _metadata(entries.pop("__metadata__", {}))
    tensors = [_tensor(name, entry, 8 + size) for name, entry in entries.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.stop))
    at = 8 + size
    for tensor in tensors:
        if tensor.start != at:
            raise BadFileError(
                f"is a damaged safetensors file ({short(tensor.name)} overlaps another tensor, "
                "or follows a gap)"
            )
        at = tensor.stop
    if at != len(data):
        raise BadFileError(
            f"is a truncated or damaged safetensors file (its header describes {at} bytes, "
            f"it has {len(data)})"
        )
    return Header(metadata, tensors)


def _parse(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise BadFileError("is a damaged safetensors file (its header is nested deeply)") from None
    except ValueError as error:  # no UTF-8, no JSON, or a number of thousands of digits
        raise BadFileError(
            f"is a truncated or damaged safetensors file (its header is no JSON: {short(error)})"
        ) from error
    if type(value) is not dict:
        raise BadFileError("is a damaged safetensors file (its header is no JSON object)")
    return value


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise BadFileError(f"is a damaged safetensors file (it states {short(key)} twice)")
        made[key] = value
    return made


def _no_constant(name: str) -> None:
    raise BadFileError(f"is a damaged safetensors file (its header holds {name})")


def _metadata(value: Any) -> dict[str, str]:
    if type(value) is not dict or any(type(text) is not str for text in value.values()):
        raise BadFileError("is a damaged safetensors file (its metadata are no texts)")
    return value


def _tensor(name: str, entry: Any, base: int) -> Tensor:
    match entry:
        case {"dtype": str(kind), "shape": list(shape), "data_offsets": [start, stop]} if (
            len(entry) == 3
        ):
            pass
        case _:
            raise BadFileError(
                f"is a damaged safetensors file (it describes {short(name)} in an unexpected way)"
            )
    if kind not in _DTYPES:
        raise BadFileError(f"holds {short(name)} as {short(kind)}, a type that is not supported")
    dtype = _DTYPES[kind]
    numbers = (start, stop, *shape)
    if len(shape) > MAX_DIMENSIONS or any(
        type(n) is not int or not 0 <= n < 2**63 for n in numbers
    ):
        raise BadFileError(
            f"is a damaged safetensors file (shape or offsets of {short(name)} are impossible)"
        )
    if math.prod(shape) * dtype.itemsize != stop - start:
        raise BadFileError(
            f"is a damaged safetensors file (shape and size of {short(name)} disagree)"
        )
    return Tensor(name, dtype, tuple(shape), base + start, base + stop)
