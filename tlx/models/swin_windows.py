"""The windows of a Swin Transformer: which patches see each other, and at which offset.

Everything here is a constant of the map's size, computed with numpy while a program is traced.
"""

from __future__ import annotations

import functools

import numpy as np

WINDOW = 7  # patches, both sides
MASKED = -100.0  # added to the logits of patches that are no neighbours


@functools.cache
def relative_position_index() -> np.ndarray:
    """Returns for each pair of patches of a window the row of the bias table, int64 [49, 49].

    Rows count the vertical offset (query's minus key's, from -6) times 13 plus the horizontal one.
    """
    y, x = np.divmod(np.arange(WINDOW * WINDOW), WINDOW)
    down, right = (at[:, None] - at[None, :] + WINDOW - 1 for at in (y, x))
    return down * (2 * WINDOW - 1) + right


def regions(height: int, width: int, shift: tuple[int, int]) -> np.ndarray:
    """Returns a number for each patch that tells which were neighbours before the cyclic shift.

    Args:
      height, width: of the map in patches, whole windows.
      shift: patches that the map was moved up and to the left.

    Returns:
      int32 [windows, 49]; patches of one window with equal numbers attend to each other.
    """

    def bands(length: int, by: int) -> np.ndarray:
        position = np.arange(length)
        if by == 0:
            return np.zeros_like(position)
        return (position >= length - WINDOW) * 1 + (position >= length - by) * 1

    numbers = 3 * bands(height, shift[0])[:, None] + bands(width, shift[1])[None, :]
    windows = numbers.reshape(height // WINDOW, WINDOW, width // WINDOW, WINDOW)
    return windows.transpose(0, 2, 1, 3).reshape(-1, WINDOW * WINDOW).astype(np.int32)


def attention_mask(size: int) -> np.ndarray:
    """Returns what the authors' files store for a shifted block, float32 [windows, 49, 49]: 0 or -100.

    Args:
      size: of the map in patches, both sides.
    """
    numbers = regions(size, size, (WINDOW // 2, WINDOW // 2))
    return np.where(numbers[:, :, None] == numbers[:, None, :], 0, MASKED).astype(np.float32)
