"""Weights files as flat dicts of numpy arrays: reading, writing, and what identifies them."""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tlx.errors import InputError
from tlx.files import replacing
from tlx.weights.torch_pickle import map_file, read_torch

# Under which names training scripts keep the network's tensors; where there are several, the first counts.
WRAPPERS = "state_dict model_state_dict model net network params weights module".split()

# What data-parallel training and torch.compile put before every name.
PREFIXES = ("module.", "_orig_mod.")

_SAFETENSORS_DTYPES = {
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


def read_weights(path: str | Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a weights file by name, in the file's order and the file's own types.

    The content decides how it is read, not the extension: torch's two formats or safetensors. Wrappers
    around the tensors (`{"state_dict": ..., "epoch": ...}`) are opened, what is beside them and no tensor
    is left out, and prefixes that every name has (`module.`, `_orig_mod.`) are taken off. The arrays are
    read-only and may be views of the file, which must not change while they live.

    Raises:
      InputFileNotFoundError: there is no such file.
      InputError: it is no weights file, is damaged, or holds several sets of tensors.
    """
    path = Path(path)
    data = map_file(path)
    if _is_safetensors(path, data):
        arrays = _read_safetensors(path, data)
    else:
        arrays = unwrap(read_torch(path), path)
    if not arrays:
        raise InputError(f"{path} holds no tensors")
    return _without_prefixes(arrays)


def unwrap(value: Any, path: Path) -> dict[str, np.ndarray]:
    """Returns the tensors in what `read_torch` returned for `path`, out of their wrappers.

    Raises:
      InputError: there are none, or several sets of them none of which has a name in `WRAPPERS`.
    """
    if type(value) is not dict:
        raise InputError(f"{path} holds a {type(value).__name__}, expected tensors by name")
    inner = [key for key, item in value.items() if _holds_tensors(item)]
    named = [key for key in WRAPPERS if key in inner]
    tensors = {key: item for key, item in value.items() if isinstance(item, np.ndarray)}
    if named or (len(inner) == 1 and not tensors):
        return unwrap(value[(named or inner)[0]], path)
    if inner:
        beside = " beside tensors of its own" if tensors else ""
        raise InputError(
            f"{path} holds several sets of tensors: {', '.join(map(repr, inner))}{beside}; "
            "save the one that is meant under the name 'state_dict'"
        )
    if not tensors:
        raise InputError(f"{path} holds no tensors")
    strange = [key for key in tensors if type(key) is not str]
    if strange:
        raise InputError(f"{path} holds a tensor whose name is no text but {strange[0]!r}")
    return tensors


def safetensors_metadata(path: str | Path) -> dict[str, str]:
    """Returns the texts in the header of a safetensors file; {} where it has none, and for torch's files.

    Raises:
      InputFileNotFoundError: there is no such file.
      InputError: it is no weights file, or its header is damaged.
    """
    path = Path(path)
    return _validated_metadata(path) if _is_safetensors(path, map_file(path)) else {}


def write_safetensors(
    arrays: Mapping[str, np.ndarray], path: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes the arrays, and texts for the header, to `path`, which is the old file until all is written.

    Raises:
      InputError: no space left, no permission, or an array of a type the format lacks.
    """
    # The library writes the memory as it lies: a transposed view would come back scrambled.
    plain = {
        name: np.asarray(array, array.dtype.newbyteorder("="), order="C")
        for name, array in arrays.items()
    }
    try:
        with replacing(path) as temporary:
            save_file(plain, temporary, metadata=dict(metadata) if metadata else None)
            temporary.chmod(0o644)  # the library makes files that only their owner can read
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    except (SafetensorError, KeyError) as error:
        raise InputError(f"cannot write {path}: {error}") from error


def sha256_of(path: str | Path) -> str:
    """Returns the file's SHA-256 as 64 hexadecimal digits. Raises as `map_file` does."""
    with map_file(Path(path)) as data:
        return hashlib.sha256(data).hexdigest()


def content_hash(arrays: Mapping[str, np.ndarray]) -> str:
    """Returns a SHA-256, as 64 hexadecimal digits, over name, type, shape and bytes of each array.

    Order, strides and file format do not enter: the same weights in two formats have one hash.
    """
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(json.dumps([name, array.dtype.name, list(array.shape)]).encode() + b"\n")
        little = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
        digest.update(little.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _is_safetensors(path: Path, data: mmap.mmap) -> bool:
    """Tells the two kinds of weights apart, and says what a file of neither kind is."""
    head = data[:512]
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise InputError(
            f"{path} is a web page, not weights: its download went wrong; fetch it again"
        )
    if text.startswith(b"version https://git-lfs"):
        raise InputError(f"{path} is a Git LFS pointer, not the weights; run: git lfs pull")
    if head[8:9] == b"{":
        return True
    if head[:4] == b"PK\x03\x04" or head[:1] == b"\x80" or head[257:262] == b"ustar":
        return False
    raise InputError(
        f"{path} is neither safetensors nor a torch file (it begins with {head[:8]!r})"
    )


def _validated_metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="np") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is a truncated or damaged safetensors file ({error})") from error


def _read_safetensors(path: Path, data: mmap.mmap) -> dict[str, np.ndarray]:
    """Returns views of the file; the library copies, and cannot give float8 to numpy."""
    _validated_metadata(path)  # also checks that offsets, shapes and the file's size agree
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    arrays = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype = _SAFETENSORS_DTYPES.get(entry["dtype"])
        if dtype is None:
            raise InputError(
                f"{path}: {name!r} is of type {entry['dtype']}, which is not supported"
            )
        array = np.ndarray(entry["shape"], dtype, data, start + entry["data_offsets"][0])
        if dtype.kind == "b":  # a byte above 1 is no bool, whatever reads it next
            array = array.view(np.uint8) != 0
        elif not array.flags.aligned:
            array = array.copy()
        array.flags.writeable = False
        arrays[name] = array
    return arrays


def _holds_tensors(value: Any, depth: int = 3) -> bool:
    if type(value) is not dict or depth == 0:
        return False
    return any(isinstance(item, np.ndarray) for item in value.values()) or any(
        _holds_tensors(value.get(name), depth - 1) for name in WRAPPERS
    )


def _without_prefixes(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    for prefix in PREFIXES:
        if all(name.startswith(prefix) and name != prefix for name in arrays):
            return _without_prefixes({name[len(prefix) :]: array for name, array in arrays.items()})
    return arrays
