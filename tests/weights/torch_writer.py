"""Writes torch's files, and files that only look like them, without torch."""

import io
import pickle
import struct
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

REBUILD = ("torch._utils", "_rebuild_tensor_v2")
MAGIC, PROTOCOL, SYSTEM = 0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}


class Global(NamedTuple):
    module: str
    name: str


class Call(NamedTuple):
    function: Global
    arguments: tuple


class Stored(NamedTuple):
    pid: tuple


class Raw(NamedTuple):
    opcodes: bytes


class Pickler(pickle._Pickler):
    """Writes what torch writes, and what it never would, without importing what is named."""

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, Global):
            self.write(f"c{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Call):
            self.save(obj.function)
            self.save(obj.arguments)
            self.write(pickle.REDUCE)
        elif isinstance(obj, Stored):
            self.save(obj.pid)
            self.write(pickle.BINPERSID)
        elif isinstance(obj, Raw):
            self.write(obj.opcodes)
        else:
            super().save(obj, save_persistent_id)


def dumps(value: Any, protocol: int = 2) -> bytes:
    buffer = io.BytesIO()
    Pickler(buffer, protocol).dump(value)
    return buffer.getvalue()


def tensor(
    shape=(2, 3), strides=(3, 1), offset=0, *, key="0", numel=6, kind="FloatStorage", **more
) -> Call:
    storage = more.get("storage", Stored(("storage", Global("torch", kind), key, "cpu", numel)))
    return Call(Global(*REBUILD), (storage, offset, shape, strides, False, Call(ORDERED, ())))


ORDERED = Global("collections", "OrderedDict")
SIX = np.arange(6, dtype="<f4").tobytes()


def call(module: str, name: str, *arguments: Any) -> Call:
    return Call(Global(module, name), arguments)


def text(value: str) -> bytes:
    """The instruction that pushes the text."""
    content = value.encode("utf-8", "surrogatepass")
    return pickle.BINUNICODE + struct.pack("<I", len(content)) + content


def zip_bytes(
    program: bytes,
    *,
    extra: Iterable[tuple[str, bytes]] = (),
    storages: Mapping[str, bytes] | None = None,
) -> bytes:
    entries = [("data.pkl", program), ("byteorder", b"little")]
    entries += [(f"data/{k}", v) for k, v in ({"0": SIX} if storages is None else storages).items()]
    return archive({f"archive/{name}": content for name, content in entries}, extra)


def archive(
    entries: Mapping[str, bytes], extra: Iterable[tuple[str, bytes]] = (), **how: Any
) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", **how) as file:
        warnings.simplefilter("ignore")  # of two entries of one name, which is the point
        for name, content in [*entries.items(), *((f"archive/{n}", c) for n, c in extra)]:
            file.writestr(name, content)
    return buffer.getvalue()


def legacy_bytes(
    program: bytes, *, keys: Iterable[Any] = ("0",), storages: Any = ((6, SIX),), protocol: int = 2
) -> bytes:
    parts = [pickle.dumps(part, protocol) for part in (MAGIC, PROTOCOL, SYSTEM)]
    parts += [program, pickle.dumps(list(keys), protocol)]
    parts += [struct.pack("<q", numel) + content for numel, content in storages]
    return b"".join(parts)


def zip_file(folder: Path, program: bytes, **more: Any) -> Path:
    path = folder / "weights.pth"
    path.write_bytes(zip_bytes(program, **more))
    return path


def legacy_file(folder: Path, program: bytes, **more: Any) -> Path:
    path = folder / "weights.th"
    path.write_bytes(legacy_bytes(program, **more))
    return path
