"""Position embeddings of a grid of patches, made to fit another grid."""

from __future__ import annotations

import math

import numpy as np

# The cubic convolution kernel's parameter (Keys 1981); -0.5 is what Pillow and PyTorch's antialiased resize use.
_CUBIC = -0.5


def resize_positions(
    positions: np.ndarray, grid: tuple[int, int], prefix: int
) -> np.ndarray | None:
    """Returns position embeddings for another grid, resized bicubically and with antialiasing.

    This is what timm's `resample_abs_pos_embed` does. (torchvision's `interpolate_embeddings` has the corners aligned
    and no antialiasing, transformers' ViT and DINOv2 no antialiasing.)

    Args:
      positions: [1, prefix + h * h, D], row by row of a square grid.
      grid: rows and columns that are wanted.
      prefix: first tokens without a place in the picture, as the class token; theirs stay as they are.

    Returns:
      [1, prefix + rows * columns, D], float32; None where `positions` are not those of a square grid.
    """
    if positions.ndim != 3 or positions.shape[1] <= prefix:
        return None
    side = math.isqrt(positions.shape[1] - prefix)
    if side * side != positions.shape[1] - prefix:
        return None
    wide = positions[0].astype(np.float64)
    own = wide[prefix:].reshape(side, side, -1)
    down, across = (_bicubic(side, new) for new in grid)
    resized = np.einsum("yh,xw,hwd->yxd", down, across, own, optimize=True)
    resized = resized.reshape(grid[0] * grid[1], -1)
    return np.concatenate([wide[:prefix], resized])[None].astype(np.float32)


def _bicubic(length: int, new: int) -> np.ndarray:
    """Returns the weights [new, length] of a bicubic, antialiased resize along one axis."""
    scale = length / new
    width = max(
        scale, 1.0
    )  # of the kernel: wider where the axis shrinks, which is the antialiasing
    weights = np.zeros((new, length))
    for row in range(new):
        centre = (row + 0.5) * scale
        first = max(int(centre - 2 * width + 0.5), 0)
        last = min(int(centre + 2 * width + 0.5), length)
        weights[row, first:last] = _cubic((np.arange(first, last) + 0.5 - centre) / width)
    return weights / weights.sum(1, keepdims=True)


def _cubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    near = ((_CUBIC + 2) * x - (_CUBIC + 3)) * x * x + 1
    far = _CUBIC * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
