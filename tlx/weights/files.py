"""Weights files as flat dicts of numpy arrays: reading, writing, and what identifies them."""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import json
import mmap
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from tlx.errors import InputError
from tlx.files import replacing
from tlx.weights.pickle_machine import BadFileError, short
from tlx.weights.plain_objects import empty_array
from tlx.weights.safetensors_header import Tensor, read_header
from tlx.weights.torch_pickle import looks_like_torch, map_file, read_torch_from

# Under which names training scripts keep the network's tensors; where there are several, the first
# counts.
WRAPPERS = "state_dict model_state_dict model net network params weights module".split()

# What data-parallel training and torch.compile put before every name.
PREFIXES = ("module.", "_orig_mod.")

_MAX_NAME = 512  # characters
_MAX_WRAPPERS = 8  # of wrappers in wrappers, and of prefixes before prefixes


def read_weights(path: str | Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a weights file by name, in the file's order and the file's own types.

    The content decides how it is read, not the extension: torch's two formats or safetensors.
    Wrappers around the tensors (`{"state_dict": ..., "epoch": ...}`) are opened, what is beside
    them and no tensor is left out, and prefixes that every name has (`module.`, `_orig_mod.`) are
    taken off. The arrays are read-only and may be views of the file, which must not change while
    they live.

    Raises:
      InputFileNotFoundError: there is no such file.
      InputError: it is no weights file, is damaged, or holds several sets of tensors.
    """
    path = Path(path)
    data = map_file(path)
    if _is_safetensors(path, data):
        arrays = _read_safetensors(path, data)
    else:
        arrays = unwrap(read_torch_from(path, data), path)
    if not arrays:
        raise InputError(f"{path} holds no tensors")
    _check_names(arrays, path)
    return _without_prefixes(arrays)


def unwrap(value: Any, path: Path) -> dict[str, np.ndarray]:
    """Returns the tensors in what `read_torch` returned for `path`, out of their wrappers.

    Raises:
      InputError: there are none, or several sets of them none of which has a name in `WRAPPERS`.
    """
    known: dict[tuple[int, int], bool] = {}
    for _ in range(_MAX_WRAPPERS):
        if type(value) is not dict:
            raise InputError(f"{path} holds a {type(value).__name__}, expected tensors by name")
        inner = [key for key, item in value.items() if _holds_tensors(item, known)]
        named = [key for key in WRAPPERS if key in inner]
        tensors = {key: item for key, item in value.items() if isinstance(item, np.ndarray)}
        if not named and (tensors or len(inner) != 1):
            return _only_set(tensors, inner, path)
        value = value[(named or inner)[0]]
    raise InputError(f"{path} holds more than {_MAX_WRAPPERS} wrappers around its tensors; refused")


def _only_set(tensors: dict[Any, np.ndarray], inner: list[Any], path: Path) -> dict:
    if inner:
        beside = " beside tensors of its own" if tensors else ""
        raise InputError(
            f"{path} holds several sets of tensors: {_listed(inner)}{beside}; "
            "save the one that is meant under the name 'state_dict'"
        )
    if not tensors:
        raise InputError(f"{path} holds no tensors")
    strange = [key for key in tensors if type(key) is not str]
    if strange:
        raise InputError(f"{path} holds a tensor whose name is no text but {_listed(strange[:1])}")
    return tensors


def _listed(names: list[Any]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(short(repr(name)) for name in names[:8]) + more


def safetensors_metadata(path: str | Path) -> dict[str, str]:
    """Returns the texts in a safetensors file's header; {} where it has none, and for torch's.

    Raises:
      InputFileNotFoundError: there is no such file.
      InputError: it is no weights file, or its header is damaged.
    """
    path = Path(path)
    data = map_file(path)
    if not _is_safetensors(path, data):
        return {}
    with _naming(path):
        return read_header(data).metadata


def is_safetensors(path: str | Path) -> bool:
    """Returns whether a weights file is safetensors, by its content; else it is torch's. Raises as `read_weights`."""
    path = Path(path)
    return _is_safetensors(path, map_file(path))


def write_safetensors(
    arrays: Mapping[str, np.ndarray], path: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes arrays, and texts for the header; `path` is the old file until all is written.

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
    map_file(Path(path)).close()  # says what is wrong with it
    return _sha256(path, threading.Event())


@contextlib.contextmanager
def hashing(path: str | Path) -> Iterator[Callable[[], str]]:
    """Computes the file's SHA-256 beside the block; what it yields waits for it and returns it.

    When the block ends, whether it asked or not, so does the computation.
    """
    stop = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        digest = pool.submit(_sha256, path, stop)
        try:
            yield digest.result
        finally:
            stop.set()


def _sha256(path: str | Path, stop: threading.Event) -> str:
    digest, part = hashlib.sha256(), memoryview(bytearray(1 << 20))
    # Read, not mapped: its pages would count as memory of the process.
    with open(path, "rb", buffering=0) as file:
        while not stop.is_set() and (size := file.readinto(part)):
            digest.update(part[:size])
    return digest.hexdigest()


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
    if looks_like_torch(head):
        return False
    raise InputError(
        f"{path} is neither safetensors nor a torch file (it begins with {head[:8]!r})"
    )


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except BadFileError as error:
        raise InputError(f"{path} {error}") from error


def _read_safetensors(path: Path, data: mmap.mmap) -> dict[str, np.ndarray]:
    """Returns views of the file; the library copies, and cannot give float8 to numpy."""
    with _naming(path):
        return {tensor.name: _array(tensor, data) for tensor in read_header(data).tensors}


def _array(tensor: Tensor, data: mmap.mmap) -> np.ndarray:
    if tensor.start == tensor.stop:
        array = empty_array(tensor.shape, tensor.dtype)
    else:
        array = np.ndarray(tensor.shape, tensor.dtype, data, tensor.start)
    if tensor.dtype.kind == "b":  # a byte above 1 is no bool, whatever reads it next
        array = array.view(np.uint8) != 0
    elif not array.flags.aligned:
        array = array.copy()
    array.flags.writeable = False
    return array


def _check_names(arrays: dict[str, np.ndarray], path: Path) -> None:
    """Names end up in logs, terminals and regular expressions."""
    for name in arrays:
        if len(name) > _MAX_NAME or not name.isprintable():
            raise InputError(
                f"{path} holds a tensor with an impossible name: {short(repr(name[:_MAX_NAME]))}"
            )


def _holds_tensors(value: Any, known: dict[tuple[int, int], bool], depth: int = 3) -> bool:
    """`known` keeps the answers by identity: a hostile file holds one dict a million times."""
    if type(value) is not dict or depth == 0:
        return False
    key = (id(value), depth)
    if key not in known:
        known[key] = any(isinstance(item, np.ndarray) for item in value.values()) or any(
            _holds_tensors(value.get(name), known, depth - 1) for name in WRAPPERS
        )
    return known[key]


def _without_prefixes(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    for _ in range(_MAX_WRAPPERS):
        for prefix in PREFIXES:
            if all(name.startswith(prefix) and name != prefix for name in arrays):
                arrays = {name[len(prefix) :]: array for name, array in arrays.items()}
                break
        else:
            break
    return arrays
