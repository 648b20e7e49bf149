"""Pretrained values made to fit a network with other input channels, another stem or other classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def input_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Returns the first convolution's kernel for another number of input channels.

    One channel: the sum over the kernel's own, which treats a grey picture as its three equal channels. Other
    numbers: the kernel's channels repeated in order and rescaled, so that the sums keep their size. (As timm's
    `adapt_input_conv`.)

    Args:
      kernel: [kh, kw, C, out].
      channels: of the new input.

    Returns:
      [kh, kw, channels, out], float32.
    """
    own = kernel.shape[2]
    wide = kernel.astype(np.float32)
    if channels == 1:
        return wide.sum(axis=2, keepdims=True)
    order = np.arange(channels) % own
    return wide[:, :, order] * np.float32(own / channels)


def centre_crop(kernel: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Returns the centre of a kernel [kh, kw, in, out] as [*size, in, out]."""
    top, left = ((have - want) // 2 for have, want in zip(kernel.shape[:2], size, strict=True))
    return kernel[top : top + size[0], left : left + size[1]]


def select_classes(array: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """Returns a classifier's kernel [..., C] or bias [C] for the chosen classes only, in their order."""
    return array[..., np.asarray(classes, np.int64)]
