"""Reads what torch.save wrote, without torch and without executing anything.

Two containers (torch/serialization.py in https://github.com/pytorch/pytorch defines both): the zip archive
(torch 1.6 and later), whose tensors stay memory-mapped, and the older stream of pickles followed by raw
storages. Both hold a pickle, which is a program; tlx/weights/unpickler.py runs only harmless ones.
"""

from __future__ import annotations

import io
import mmap
import re
import struct
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from tlx.errors import InputError, InputFileNotFoundError
from tlx.weights.unpickler import (
    BadFileError,
    Storage,
    StorageOf,
    TensorUnpickler,
    no_storage,
    short,
)

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


def read_torch(path: str | Path) -> Any:
    """Returns the object that torch.save wrote: dicts, lists, tuples, numbers, strings and numpy arrays.

    Tensors and parameters become read-only arrays of their own type (bfloat16 through ml_dtypes) and their
    own strides; those of a zip archive are views of the file, which must not change while they live.
    `torch.Size` becomes a tuple, `torch.device` a string, `torch.dtype` a numpy dtype.

    Raises:
      InputFileNotFoundError: there is no such file.
      InputError: the file is damaged, is not torch's, or its pickle asks for anything but plain data and
        tensors, which is then named.
    """
    path = Path(path)
    data = map_file(path)
    try:
        if data[:4] == b"PK\x03\x04":
            return _read_zip(path, data)
        if data[257:262] == b"ustar":
            raise BadFileError(
                "is a tar archive, torch's format before 0.1.10; load and save it again with torch"
            )
        return _read_legacy(data)
    except BadFileError as error:
        raise InputError(f"{path} {error}") from None
    except Exception as error:  # whatever a damaged or hostile file provokes, one line says it
        what = f"{type(error).__name__}: {short(error)}"
        raise InputError(f"{path} is damaged, or no torch file ({what})") from error


def map_file(path: Path) -> mmap.mmap:
    """Returns the file's bytes, mapped read-only.

    Raises:
      InputFileNotFoundError: there is no such file.
      InputError: it is a folder, is empty, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise InputFileNotFoundError(f"no weights file {path}") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder, expected a weights file") from None
    except ValueError:
        raise InputError(f"{path} is empty, expected a weights file") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _typed(raw: np.ndarray, dtype: np.dtype, byteorder: str) -> Storage:
    """Returns the storage with its bytes aligned and in this machine's order."""
    if byteorder != sys.byteorder and dtype.itemsize > 1:
        unit = dtype.itemsize // (2 if dtype.kind == "c" else 1)
        raw = np.frombuffer(raw.tobytes(), f"u{unit}").byteswap().view(np.uint8)
    if dtype.kind == "b":  # a byte above 1 is no bool, whatever reads it next
        raw = (raw != 0).view(np.uint8)
    if raw.size and raw.ctypes.data % dtype.alignment:
        raw = raw.copy()
    return Storage(raw, dtype)


class _Zip:
    """The entries of torch's archive; they are stored, not compressed, so each is a view of the file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        try:
            with zipfile.ZipFile(path) as archive:
                entries = archive.infolist()
        except zipfile.BadZipFile as error:
            raise BadFileError(f"is a truncated or damaged zip archive ({short(error)})") from error
        self._data = data
        self._entries = {entry.filename: entry for entry in entries}
        if len(self._entries) < len(entries):
            raise BadFileError("is a zip archive with two entries of the same name; refused")
        roots = [
            name[: -len("data.pkl")]
            for name in self._entries
            if re.fullmatch(r"[^/]*/data.pkl", name)
        ]
        if len(roots) != 1:
            raise BadFileError(
                "is a zip archive, but not one that torch.save wrote (no data.pkl in it)"
            )
        self._root = roots[0]
        if self._root + "constants.pkl" in self._entries:
            raise BadFileError(
                "is a TorchScript program; save the tensors alone: torch.save(m.state_dict(), ...)"
            )
        order = self.read("byteorder").tobytes() if self.has("byteorder") else b"little"
        self.byteorder = order.decode("ascii", "replace")
        if self.byteorder not in ("little", "big"):
            raise BadFileError(f"states an unknown byte order {short(self.byteorder)}")
        self._storages: dict[str, Storage] = {}

    def has(self, name: str) -> bool:
        return self._root + name in self._entries

    def read(self, name: str) -> np.ndarray:
        """Returns the entry's bytes, mapped, after checking their CRC."""
        name = self._root + name
        if name not in self._entries:
            raise BadFileError(f"lacks its entry {short(name)}")
        entry = self._entries[name]
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise BadFileError(
                f"has a compressed or encrypted entry {short(name)}, which torch never writes"
            )
        signature, names, extra = struct.unpack_from("<4s22xHH", self._data, entry.header_offset)
        start, size = entry.header_offset + 30 + names + extra, entry.file_size
        if (
            signature != b"PK\x03\x04"
            or size != entry.compress_size
            or start + size > len(self._data)
        ):
            raise BadFileError(f"is damaged: its entry {short(name)} is not where the index says")
        raw = np.frombuffer(memoryview(self._data)[start : start + size], np.uint8)
        if zlib.crc32(raw.data) != entry.CRC:
            raise BadFileError(f"is damaged: the checksum of its entry {short(name)} is wrong")
        return raw

    def storage(self, dtype: np.dtype, key: str, size: int, view: Any) -> Storage:
        if view is not None:
            raise BadFileError("mixes torch's two formats")
        if key not in self._storages:
            self._storages[key] = _typed(self.read(f"data/{key}"), dtype, self.byteorder)
        storage = self._storages[key]
        if storage.dtype != dtype or storage.raw.size != size * dtype.itemsize:
            raise BadFileError(f"states another size or type for storage {short(key)} than it has")
        return storage


def _read_zip(path: Path, data: mmap.mmap) -> Any:
    archive = _Zip(path, data)
    program = io.BytesIO(archive.read("data.pkl").tobytes())
    return TensorUnpickler(program, archive.storage, len(data)).load()


class _Legacy:
    """The storages of the older format: promised by the pickle, filled from what follows it."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._left = data, len(data)
        self._storages: dict[str, Storage] = {}

    def storage(self, dtype: np.dtype, key: str, size: int, view: Any) -> Storage:
        if key not in self._storages:
            self._left -= size * dtype.itemsize
            if self._left < 0:
                raise BadFileError("is truncated or damaged: its storages are larger than the file")
            self._storages[key] = Storage(np.zeros(size * dtype.itemsize, np.uint8), dtype)
        storage = self._storages[key]
        if storage.dtype != dtype or storage.raw.size != size * dtype.itemsize:
            raise BadFileError(f"states two sizes or types for storage {short(key)}")
        if view is None:
            return storage
        _, offset, count = view
        if (
            type(offset) is not int
            or type(count) is not int
            or offset < 0
            or not 0 <= count <= size - offset
        ):
            raise BadFileError(f"holds a view beyond the end of storage {short(key)}")
        start, stop = offset * dtype.itemsize, (offset + count) * dtype.itemsize
        return Storage(storage.raw[start:stop], dtype)

    def fill(self, keys: Any) -> None:
        """Reads the storages, in the order of the keys; torch writes them little-endian everywhere."""
        if (
            type(keys) is not list
            or not all(type(key) is str for key in keys)
            or sorted(keys) != sorted(self._storages)
        ):
            raise BadFileError("is damaged: its list of storages does not match its tensors")
        for key in keys:
            storage, header = self._storages[key], self._data.read(8)
            if len(header) < 8:
                raise BadFileError("is truncated: it ends before its last tensor")
            (size,) = struct.unpack("<q", header)
            if size * storage.dtype.itemsize != storage.raw.size:
                raise BadFileError(
                    f"is damaged: storage {short(key)} does not have the size its tensors need"
                )
            content = self._data.read(storage.raw.size)
            if len(content) < storage.raw.size:
                raise BadFileError("is truncated: it ends before its last tensor")
            storage.raw[:] = _typed(np.frombuffer(content, np.uint8), storage.dtype, "little").raw
        if self._data.tell() != len(self._data):
            raise BadFileError("is damaged: there is more after its last tensor")


def _read_legacy(data: mmap.mmap) -> Any:
    def load(storage_of: StorageOf) -> Any:
        return TensorUnpickler(data, storage_of, len(data)).load()

    if load(no_storage) != _LEGACY_MAGIC:
        raise BadFileError("is a pickle, but not one that torch.save wrote")
    if load(no_storage) != _LEGACY_PROTOCOL:
        raise BadFileError("is of an unknown version of torch's format")
    load(no_storage)  # sizes of C types on the writing machine, which torch does not heed either
    storages = _Legacy(data)
    result = load(storages.storage)
    storages.fill(load(no_storage))
    return result
