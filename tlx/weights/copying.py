"""Arrays of a file copied into memory that jax takes as it is, quickly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

_ALIGNMENT = 64  # bytes, of XLA's buffers on the CPU
_COLUMNS = 16  # of float32, a line of the processor's cache
_GROUP = 1 << 22  # bytes, of values that are copied and placed together


def own_copy(array: np.ndarray, dtype: Any) -> np.ndarray:
    """Returns a contiguous copy in memory aligned to 64 bytes, which jax then takes as it is on the CPU.

    Always a copy: an array of a file is a view of it, and what jax takes must not change when the file does.
    """
    size = array.size * np.dtype(dtype).itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    copy = memory[start : start + size].view(dtype).reshape(array.shape)
    if array.ndim < 2 or array.strides[-1] == array.itemsize:
        copy[...] = array
        return copy
    # Rearranged, that is read across its lines of memory: fewer of them at once stay in the cache.
    for start in range(0, array.shape[-1], _COLUMNS):
        copy[..., start : start + _COLUMNS] = array[..., start : start + _COLUMNS]
    return copy


def in_groups(arrays: Mapping[str, np.ndarray]) -> list[list[str]]:
    """Returns the names in groups of some megabytes each, for as few calls as may be."""
    groups: list[list[str]] = []
    size = _GROUP
    for name, array in arrays.items():
        if size >= _GROUP:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += array.nbytes
    return groups
