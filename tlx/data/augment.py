"""Augmentation on the device: uint8 canvases in, uint8 or float crops out, one key per example.

`random_crop` and `random_resized_crop` cut from a canvas that is larger than the input (the `resize` side of
the weights' preprocessing); `pad_crop` pads the input-sized canvas with black, as in He et al. 2015, section 4.2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from tlx.config import nearest
from tlx.errors import InputError
from tlx.weights.meta import ImagePreprocess

ImageMap = Callable[[jax.Array, jax.Array], jax.Array]  # (key, [H, W, C]) -> [S, S, C]


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """A list of per-image maps and the size of the canvas that they start from."""

    names: tuple[str, ...]
    canvas: int  # pixels
    maps: tuple[ImageMap, ...]

    def __call__(self, key: jax.Array, images: jax.Array) -> jax.Array:
        """Maps uint8 [B, canvas, canvas, C] to [B, size, size, C] with values still in 0 .. 255."""
        for position, image_map in enumerate(self.maps):
            keys = jax.random.split(jax.random.fold_in(key, position), images.shape[0])
            images = jax.vmap(image_map)(keys, images)
        return images


def parse(texts: Sequence[str], preprocess: ImagePreprocess) -> Augmentation:
    """Reads `data.augment`: pad_crop:PIXELS, random_crop, random_resized_crop:SMALLEST_AREA, flip.

    Raises:
      InputError: an unknown name or a value out of range.
    """
    size, canvas, maps = preprocess.size, preprocess.size, []
    for text in texts:
        name, _, value = text.partition(":")
        if name not in AUGMENTATIONS:
            known = ", ".join(AUGMENTATIONS)
            raise InputError(
                f"data.augment: unknown {name!r}{nearest(name, AUGMENTATIONS)} (there are: {known})"
            )
        default, low, high, needs_canvas, make = AUGMENTATIONS[name]
        try:
            number = float(value) if value else default
        except ValueError:
            number = float("nan")
        if not low <= number <= high or (value and low == high):
            raise InputError(
                f"data.augment: {text!r}: expected {name}:VALUE with {low:g} <= VALUE <= {high:g}"
            )
        if needs_canvas and canvas != size:
            raise InputError(f"data.augment: {', '.join(texts)}: crop only once")
        canvas = max(preprocess.resize, size) if needs_canvas else canvas
        maps.append(make(number, size))
    return Augmentation(tuple(texts), canvas, tuple(maps))


def flip(key: jax.Array, image: jax.Array) -> jax.Array:
    """Mirrors the image left to right, every second time."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def _pad_crop(padding: float, size: int) -> ImageMap:
    pad = int(padding)

    def pad_crop(key: jax.Array, image: jax.Array) -> jax.Array:
        padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
        return _crop(key, padded, size)

    return pad_crop


def _random_crop(_: float, size: int) -> ImageMap:
    return lambda key, image: _crop(key, image, size)


def _crop(key: jax.Array, image: jax.Array, size: int) -> jax.Array:
    limit = jnp.asarray(image.shape[:2]) - size + 1
    y, x = jax.random.randint(key, (2,), 0, limit)
    return jax.lax.dynamic_slice(image, (y, x, 0), (size, size, image.shape[2]))


def _random_resized_crop(smallest: float, size: int) -> ImageMap:
    """Inception's crop (Szegedy et al. 2014): area in [smallest, 1], aspect ratio in [3/4, 4/3]."""

    def random_resized_crop(key: jax.Array, image: jax.Array) -> jax.Array:
        side = image.shape[0]
        area_key, ratio_key, place_key = jax.random.split(key, 3)
        area = jax.random.uniform(area_key, (), minval=smallest, maxval=1.0)
        limit = jnp.log(4 / 3)
        ratio = jnp.exp(jax.random.uniform(ratio_key, (), minval=-limit, maxval=limit))
        # torchvision draws again where the crop does not fit; here it is cut to the canvas instead.
        crop = jnp.minimum(jnp.sqrt(area * jnp.stack([1 / ratio, ratio])), 1.0) * side
        start = jax.random.uniform(place_key, (2,)) * (side - crop)
        scale = size / crop
        return jax.image.scale_and_translate(
            image.astype(jnp.float32),
            (size, size, image.shape[2]),
            (0, 1),
            scale,
            -start * scale,
            "linear",
            antialias=True,
        )

    return random_resized_crop


# name -> (default, smallest, largest value, whether it cuts from the larger canvas, maker)
AUGMENTATIONS: dict[str, tuple[float, float, float, bool, Callable[[float, int], ImageMap]]] = {
    "pad_crop": (4, 1, 256, False, _pad_crop),
    "random_crop": (0, 0, 0, True, _random_crop),
    "random_resized_crop": (0.08, 0.01, 1, True, _random_resized_crop),
    "flip": (0, 0, 0, False, lambda _, __: flip),
}
