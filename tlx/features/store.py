"""Arrays on disk by key, for later runs: an entry that is not exactly what was written is none.

An entry is `KEY.npy` and beside it `KEY.json`, written last, with the sha256 of the file.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from tlx.errors import InputError
from tlx.files import replacing, write_json_atomic
from tlx.weights.files import sha256_of

# What numpy's format has no name for is stored as integers of its size.
_STORED_AS = {"bfloat16": np.dtype(np.uint16)}
_TYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16)}

_ABANDONED = 86_400  # seconds without a write

Fill = Callable[[np.ndarray], None]


class Store:
    """A folder of entries, of which the least recently used go where a new one would not fit."""

    def __init__(self, folder: Path, budget: float):
        self.folder = folder
        self.budget = int(budget)  # bytes

    def read(self, key: str, shape: tuple[int, ...], dtype: str) -> np.ndarray | None:
        """Returns the entry, memory-mapped and read-only; None where there is none that is sound."""
        path = self.folder / f"{key}.npy"
        try:
            facts = json.loads(path.with_suffix(".json").read_text())
            if facts["sha256"] != sha256_of(path):
                return None
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (InputError, OSError, ValueError, KeyError, TypeError):
            return None
        if array.shape != shape or array.dtype != _STORED_AS.get(dtype, np.dtype(dtype)):
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return _as_type(array, dtype)

    def write(
        self, key: str, shape: tuple[int, ...], dtype: str, fill: Fill, what: dict[str, Any]
    ) -> np.ndarray | None:
        """Writes an entry and returns it as `read` does; None where the disk does not take it.

        Args:
          key: of the entry.
          shape, dtype: of the array.
          fill: called with the array, to be filled in place.
          what: is kept beside it, for people.
        """
        stored = _STORED_AS.get(dtype, np.dtype(dtype))
        size = int(np.prod(shape)) * stored.itemsize
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not self._make_room(size):
                return None
            path = self.folder / f"{key}.npy"
            with replacing(path) as temporary:
                array = np.lib.format.open_memmap(temporary, "w+", dtype=stored, shape=shape)
                fill(_as_type(array, dtype))
                array.flush()
                digest = sha256_of(temporary)
            write_json_atomic(path.with_suffix(".json"), {"sha256": digest, **what})
            return _as_type(np.load(path, mmap_mode="r", allow_pickle=False), dtype)
        except OSError:
            return None

    def _make_room(self, size: int) -> bool:
        """Returns whether `size` bytes fit, once entries have been removed that were used longest ago."""
        if size > self.budget:
            return False
        files = sorted(self.folder.glob("*.npy"), key=lambda path: path.stat().st_mtime)
        entries = [path for path in files if not path.name.startswith(".")]
        for path in set(files) - set(
            entries
        ):  # being written, or left by a process that was killed
            if time.time() - path.stat().st_mtime > _ABANDONED:
                path.unlink(missing_ok=True)
        total = sum(path.stat().st_size for path in entries)
        while entries and total + size > self.budget:
            oldest = entries.pop(0)
            total -= oldest.stat().st_size
            for path in (oldest.with_suffix(".json"), oldest):
                path.unlink(missing_ok=True)
        return size < shutil.disk_usage(self.folder).free


def _as_type(array: np.ndarray, dtype: str) -> np.ndarray:
    """Returns a stored array as what it holds."""
    return array.view(_TYPES[dtype]) if dtype in _TYPES else array
