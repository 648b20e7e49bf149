"""Reads what torch.save wrote, without torch and without executing anything.

Two containers (torch/serialization.py in https://github.com/pytorch/pytorch defines both): the zip
archive (torch 1.6 and later), whose tensors stay memory-mapped, and the older stream of pickles
followed by raw storages. Both hold a pickle, which is a program; tlx/weights/unpickler.py runs only
harmless ones.
"""

from __future__ import annotations

import mmap
import re
import stat
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tlx.errors import InputError, InputFileNotFoundError
from tlx.weights.pickle_machine import MAX_PROGRAM, BadFileError, short
from tlx.weights.unpickler import Storage, TensorUnpickler, no_storage
from tlx.weights.zip_archive import Archive

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001

# With which bytes a legacy file may begin: protocols 2 and later state their number, 0 and 1 do
# not.
_LEGACY_BEGINNINGS = (b"\x80", b"L%dL\n." % _LEGACY_MAGIC)

_MAX_BYTE_ORDER = 16  # bytes of an entry that says "little"


def read_torch(path: str | Path) -> Any:
    """Returns what torch.save wrote: dicts, lists, tuples, numbers, strings and numpy arrays.

    Tensors and parameters become read-only arrays of their own type (bfloat16 through ml_dtypes)
    and their own strides; those of a zip archive are views of the file, which must not change while
    they live. `torch.Size` becomes a tuple, `torch.device` a string, `torch.dtype` a numpy dtype;
    an argparse.Namespace and the like become dicts of their attributes
    (tlx/weights/plain_objects.py has the list).

    Raises:
      InputFileNotFoundError: there is no such file.
      InputError: the file is damaged, is not torch's, or its pickle asks for anything but plain
        data and tensors, which is then named.
    """
    path = Path(path)
    return read_torch_from(path, map_file(path))


def read_torch_from(path: Path, data: mmap.mmap) -> Any:
    """As `read_torch`, of a file that is mapped already; `path` is for the messages."""
    try:
        if data[:4] == b"PK\x03\x04":
            return _read_zip(data)
        if data[257:262] == b"ustar":
            raise BadFileError(
                "is a tar archive, torch's format before 0.1.10; load and save it again with torch"
            )
        if not looks_like_torch(data[:512]):
            raise BadFileError(f"is no torch file (it begins with {data[:8]!r})")
        return _read_legacy(data)
    except BadFileError as error:
        raise InputError(f"{path} {error}") from None
    except Exception as error:  # whatever a damaged or hostile file provokes, one line says it
        what = f"{type(error).__name__}: {short(error)}"
        raise InputError(f"{path} is damaged, or no torch file ({what})") from error


def looks_like_torch(head: bytes) -> bool:
    """Whether a file that begins with `head` (262 bytes or more) may be one of torch's."""
    return head.startswith((b"PK\x03\x04", *_LEGACY_BEGINNINGS)) or head[257:262] == b"ustar"


def map_file(path: Path) -> mmap.mmap:
    """Returns the file's bytes, mapped read-only.

    Raises:
      InputFileNotFoundError: there is no such file.
      InputError: it is a folder or a device, is empty, or cannot be read.
    """
    if "\0" in str(path):
        raise InputError(f"{str(path)!r} is no path of a file")
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            raise InputError(f"{path} is a folder, expected a weights file")
        if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for ever
            raise InputError(f"{path} is no regular file, expected a weights file")
        if found.st_size == 0:
            raise InputError(f"{path} is empty, expected a weights file")
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise InputFileNotFoundError(f"no weights file {path}") from None
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
    """torch's entries; they are stored, not compressed, so each storage is a view of the file."""

    def __init__(self, data: mmap.mmap) -> None:
        self._archive = Archive(data)
        roots = [
            name.removesuffix(b"data.pkl")
            for name in self._archive.names()
            if re.fullmatch(rb"[^/]*/data\.pkl", name)
        ]
        if len(roots) != 1:
            raise BadFileError(
                "is a zip archive, but not one that torch.save wrote (no data.pkl in it)"
            )
        self._root = roots[0]
        if self._root + b"constants.pkl" in self._archive:
            raise BadFileError(
                "is a TorchScript program; save the tensors alone: torch.save(m.state_dict(), ...)"
            )
        self.byteorder = self._read_byteorder()
        self._storages: dict[str, Storage] = {}

    def read(self, name: str) -> np.ndarray:
        """Returns the entry's bytes, mapped, after checking their CRC."""
        return self._archive.read(self._root + name.encode("utf-8", "surrogatepass"))

    def storage(self, dtype: np.dtype, key: str, size: int, view: Any) -> Storage:
        if view is not None:
            raise BadFileError("mixes torch's two formats")
        if key not in self._storages:
            self._storages[key] = _typed(self.read(f"data/{key}"), dtype, self.byteorder)
        storage = self._storages[key]
        if storage.dtype != dtype or storage.raw.size != size * dtype.itemsize:
            raise BadFileError(f"states another size or type for storage {short(key)} than it has")
        return storage

    def _read_byteorder(self) -> str:
        if self._root + b"byteorder" not in self._archive:
            return "little"
        text = self.read("byteorder")[:_MAX_BYTE_ORDER].tobytes().decode("ascii", "replace")
        if text not in ("little", "big"):
            raise BadFileError(f"states an unknown byte order {short(text)}")
        return text


def _read_zip(data: mmap.mmap) -> Any:
    archive = _Zip(data)
    program = archive.read("data.pkl")
    # The machine copies its program, so a long one is refused before it is copied.
    if program.size > MAX_PROGRAM:
        raise BadFileError(f"has a pickle of more than {MAX_PROGRAM >> 20} MB; refused")
    return TensorUnpickler(program.tobytes(), archive.storage, len(data)).load()


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
        match view:
            case None:
                return storage
            case (_, int() as offset, int() as count) if offset >= 0 <= count <= size - offset:
                start, stop = offset * dtype.itemsize, (offset + count) * dtype.itemsize
                return Storage(storage.raw[start:stop], dtype)
        raise BadFileError(f"holds a view beyond the end of storage {short(key)}")

    def fill(self, keys: Any, at: int) -> None:
        """Reads the storages from offset `at` on, in the order of the keys.

        torch writes their bytes little-endian everywhere.
        """
        if (
            type(keys) is not list
            or not all(type(key) is str for key in keys)
            or sorted(keys) != sorted(self._storages)
        ):
            raise BadFileError("is damaged: its list of storages does not match its tensors")
        for key in keys:
            storage, start = self._storages[key], at + 8
            if start + storage.raw.size > len(self._data):
                raise BadFileError("is truncated: it ends before its last tensor")
            (size,) = struct.unpack_from("<q", self._data, at)
            if size * storage.dtype.itemsize != storage.raw.size:
                raise BadFileError(
                    f"is damaged: storage {short(key)} does not have the size its tensors need"
                )
            at = start + storage.raw.size
            # Copied, since only by chance does a storage lie at a multiple of its type's size.
            storage.raw[:] = np.frombuffer(memoryview(self._data)[start:at], np.uint8)
            if sys.byteorder != "little" or storage.dtype.kind == "b":
                storage.raw[:] = _typed(storage.raw, storage.dtype, "little").raw
            self._forget(at)
        if at != len(self._data):
            raise BadFileError("is damaged: there is more after its last tensor")

    def _forget(self, stop: int) -> None:
        """Has the system drop what was copied, else the file would be in memory twice."""
        whole = stop // mmap.PAGESIZE * mmap.PAGESIZE
        if hasattr(self._data, "madvise") and whole:
            self._data.madvise(mmap.MADV_DONTNEED, 0, whole)


def _read_legacy(data: mmap.mmap) -> Any:
    machine = TensorUnpickler(data, no_storage, len(data))
    magic = machine.load()
    if type(magic) is not int or magic != _LEGACY_MAGIC:
        raise BadFileError("is a pickle, but not one that torch.save wrote")
    version = machine.load()
    if type(version) is not int or version != _LEGACY_PROTOCOL:
        raise BadFileError("is of an unknown version of torch's format")
    machine.load()  # sizes of C types on the writing machine, which torch does not heed either
    storages = _Legacy(data)
    machine.storage_of = storages.storage
    result = machine.load()
    machine.storage_of = no_storage
    storages.fill(machine.load(), machine.position)
    return result
