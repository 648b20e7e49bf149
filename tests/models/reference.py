"""Originals to compare with, and random weights that need no torch to be drawn again."""

import functools
import zlib
from typing import Any

import numpy as np


def random_arrays(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Returns float32 arrays that depend on each key's name and shape alone.

    Convolutions keep the activations' scale; BatchNorm's statistics and scales are near 0 and 1 but not equal to them.
    """
    arrays = {}
    for name, shape in shapes.items():
        draw = _normal(zlib.crc32(name.encode()), shape)
        if name.endswith("num_batches_tracked"):
            arrays[name] = np.array(7, np.int64)
        elif len(shape) > 1:
            arrays[name] = draw * np.float32((2.0 / np.prod(shape[1:])) ** 0.5)
        elif name.endswith(("running_var", "weight")):
            arrays[name] = 1 + np.float32(0.2) * np.tanh(draw)
        else:
            arrays[name] = np.float32(0.1) * draw
    return arrays


@functools.cache
def _pool() -> np.ndarray:
    rng = np.random.Generator(np.random.PCG64(0))
    return rng.standard_normal(
        2**20 + 7, dtype=np.float32
    )  # prime: no kernel's rows repeat in step


def _normal(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Returns float32 normal values: a pool repeated, from a place of the seed's own, for speed."""
    start = seed % _pool().size
    return np.resize(np.roll(_pool(), -start), shape)


def images(count: int, height: int, width: int) -> np.ndarray:
    """Returns float32 [B, H, W, 3], the same for the same arguments."""
    rng = np.random.Generator(np.random.PCG64(count * height + width))
    return rng.standard_normal((count, height, width, 3)).astype(np.float32)


def torchvision_model(name: str, **options: Any) -> Any:
    """torchvision's model with random weights."""
    from tests.torchvision_import import import_torchvision

    return import_torchvision().models.get_model(name, weights=None, **options)


def timm_model(name: str, **options: Any) -> Any:
    """timm's model with random weights."""
    from tests.torchvision_import import import_torchvision

    import_torchvision()
    import timm

    return timm.create_model(name, pretrained=False, **options)


def timm_features(module: Any, x: Any) -> Any:
    """What the classifier of timm's network reads."""
    return module.forward_head(module.forward_features(x), pre_logits=True)
