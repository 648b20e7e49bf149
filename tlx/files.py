"""Files that are either the old one or the new one, never half of one."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a temporary name beside `path` to write to; it becomes `path` when the block succeeds.

    The temporary name keeps the suffix, since writers choose a format by it. When the block raises,
    the temporary file is removed and `path` is as it was.

    Raises:
      OSError: no space left, no permission.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem[:100]}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        # Renaming before the data is on disk can leave an empty file after a power cut.
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Yields a temporary folder beside `path` to fill; it becomes `path` when the block succeeds.

    When the block raises, the temporary folder is removed.

    Raises:
      OSError: no space left, no permission, or `path` is there and is not empty.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_bytes_atomic(path: str | Path, data: bytes) -> None:
    """Writes `data` to `path` under a temporary name, then renames. Raises OSError."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text_atomic(path: str | Path, text: str) -> None:
    """Writes `text` as UTF-8 to `path` under a temporary name, then renames. Raises OSError."""
    write_bytes_atomic(path, text.encode())


def write_json_atomic(path: str | Path, value: Any) -> None:
    """Writes `plain(value)` as indented JSON, keys in the given order. Raises OSError."""
    write_text_atomic(path, json.dumps(plain(value), indent=2, ensure_ascii=False) + "\n")


def printable(path: Path) -> str:
    """Returns the path as text that can be printed and stored, even where its name is not UTF-8."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def plain(value: Any) -> Any:
    """Returns `value` as JSON can hold it.

    numpy and jax scalars and arrays become numbers and lists, tuples become lists, paths strings,
    and numbers that JSON has no word for (NaN, infinities) None.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if not isinstance(value, (str, bool, int, float)) and hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value
