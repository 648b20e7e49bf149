"""Augmentation on the device: uint8 canvases in, uint8 or float crops out, one key per example.

`random_crop` and `random_resized_crop` cut from a canvas that is larger than the input (the `resize` side of
the weights' preprocessing); `pad_crop` pads the input-sized canvas with black, as in He et al. 2015, section 4.2.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from tlx.config import nearest
from tlx.data.augment_policies import (
    ImageMap,
    color_jitter,
    grayscale,
    rand_augment,
    random_erasing,
    trivial_augment,
)
from tlx.errors import InputError
from tlx.weights.meta import ImagePreprocess, Preprocess, TextPreprocess

BatchMap = Callable[[jax.Array, jax.Array], jax.Array]  # (keys [B], [B, H, W, C]) -> [B, S, S, C]


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """A list of maps with one key for each image, and the size of the canvas that they start from."""

    names: tuple[str, ...]
    canvas: int  # pixels
    maps: tuple[BatchMap, ...]

    def __call__(self, key: jax.Array, images: jax.Array) -> jax.Array:
        """Maps uint8 [B, canvas, canvas, C] to [B, size, size, C] with values still in 0 .. 255."""
        for position, batch_map in enumerate(self.maps):
            keys = jax.random.split(jax.random.fold_in(key, position), images.shape[0])
            images = batch_map(keys, images)
        return images


@dataclasses.dataclass(frozen=True)
class _Value:
    """A number that follows an augmentation's name."""

    name: str
    default: float
    low: float
    high: float
    whole: bool = False

    def read(self, text: str) -> float:
        """Returns the number; nan where the text is none that is allowed."""
        try:
            number = float(text)
        except ValueError:
            return math.nan
        fits = self.low <= number <= self.high and (not self.whole or number == int(number))
        return number if fits else math.nan


@dataclasses.dataclass(frozen=True)
class _Kind:
    """An augmentation that can be named in `data.augment`."""

    make: Callable[..., ImageMap]  # (preprocess, *values)
    values: tuple[_Value, ...] = ()
    longer: tuple[_Value, ...] = ()  # where as many are given, in place of `values`
    cuts: bool = False  # from the larger canvas
    colors: bool = False  # needs 1 or 3 channels
    chooses: bool = False  # an operation for each image

    def read(self, given: Sequence[str]) -> list[float]:
        """Returns the values, by default those that are not given; nan for each that is not allowed."""
        values = self.longer if self.longer and len(given) == len(self.longer) else self.values
        if len(given) > len(values):
            return [math.nan]
        return [
            value.read(given[i]) if i < len(given) else value.default
            for i, value in enumerate(values)
        ]

    def form(self, name: str) -> str:
        """Returns how it is written."""
        if not self.values:
            return f"{name} without a value"
        return " or ".join(_form(name, values) for values in (self.values, self.longer) if values)


def _form(name: str, values: Sequence[_Value]) -> str:
    limits = ", ".join(f"{v.low:g} <= {v.name} <= {v.high:g}" for v in values)
    whole = "".join(f", {v.name} a whole number" for v in values if v.whole)
    return f"{':'.join((name, *(v.name for v in values)))} with {limits}{whole}"


NO_AUGMENTATION = Augmentation((), 0, ())


def parse(texts: Sequence[str], preprocess: Preprocess) -> Augmentation:
    """Reads `data.augment`, whose names are those of AUGMENTATIONS, applied in their order; texts have none.

    Raises:
      InputError: an unknown name, a value out of range, or one that pictures of the network's number of
        channels cannot have.
    """
    if isinstance(preprocess, TextPreprocess):
        return NO_AUGMENTATION
    size, canvas, maps = preprocess.size, preprocess.size, []
    for text in texts:
        name, *given = text.split(":")
        if name not in AUGMENTATIONS:
            known = ", ".join(AUGMENTATIONS)
            raise InputError(
                f"data.augment: unknown {name!r}{nearest(name, AUGMENTATIONS)} (there are: {known})"
            )
        kind = AUGMENTATIONS[name]
        numbers = kind.read(given)
        if any(map(math.isnan, numbers)):
            raise InputError(f"data.augment: {text!r}: expected {kind.form(name)}")
        if kind.colors and preprocess.channels not in (1, 3):
            raise InputError(
                f"data.augment: {name} is for pictures of 1 or 3 channels, the network takes "
                f"{preprocess.channels}"
            )
        if kind.cuts and canvas != size:
            raise InputError(f"data.augment: {', '.join(texts)}: crop only once")
        canvas = max(preprocess.resize, size) if kind.cuts else canvas
        image_map = kind.make(preprocess, *numbers)
        maps.append(_chosen(image_map) if kind.chooses else jax.vmap(image_map))
    return Augmentation(tuple(texts), canvas, tuple(maps))


def _chosen(image_map: ImageMap) -> BatchMap:
    """Returns the map of a batch whose images take different branches.

    On the CPU a loop, which computes one branch for each image: 10 to 20 times as fast as all branches
    for all images, which suits an accelerator better than a loop.
    """

    def loop(keys: jax.Array, images: jax.Array) -> jax.Array:
        return jax.lax.map(lambda item: image_map(*item), (keys, images))

    def batch_map(keys: jax.Array, images: jax.Array) -> jax.Array:
        return jax.lax.platform_dependent(keys, images, cpu=loop, default=jax.vmap(image_map))

    return batch_map


def flip(key: jax.Array, image: jax.Array) -> jax.Array:
    """Mirrors the image left to right, every second time."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def _pad_crop(preprocess: ImagePreprocess, padding: float) -> ImageMap:
    pad, size = int(padding), preprocess.size

    def pad_crop(key: jax.Array, image: jax.Array) -> jax.Array:
        padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
        return _crop(key, padded, size)

    return pad_crop


def _random_crop(preprocess: ImagePreprocess) -> ImageMap:
    return lambda key, image: _crop(key, image, preprocess.size)


def _crop(key: jax.Array, image: jax.Array, size: int) -> jax.Array:
    limit = jnp.asarray(image.shape[:2]) - size + 1
    y, x = jax.random.randint(key, (2,), 0, limit)
    return jax.lax.dynamic_slice(image, (y, x, 0), (size, size, image.shape[2]))


def _random_resized_crop(preprocess: ImagePreprocess, smallest: float) -> ImageMap:
    """Inception's crop (Szegedy et al. 2014): area in [smallest, 1], aspect ratio in [3/4, 4/3]."""
    size = preprocess.size

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


def _share(default: float) -> tuple[_Value, ...]:
    return (_Value("PROBABILITY", default, 0, 1),)


def _strengths(*names: str) -> tuple[_Value, ...]:
    return tuple(_Value(name, 0.4, 0, 10) for name in names)


AUGMENTATIONS = {
    "pad_crop": _Kind(_pad_crop, (_Value("VALUE", 4, 1, 256, whole=True),)),
    "random_crop": _Kind(_random_crop, cuts=True),
    "random_resized_crop": _Kind(
        _random_resized_crop, (_Value("VALUE", 0.08, 0.01, 1),), cuts=True
    ),
    "flip": _Kind(lambda _: flip),
    "rand_augment": _Kind(
        rand_augment,
        (_Value("COUNT", 2, 1, 10, whole=True), _Value("MAGNITUDE", 9, 0, 30, whole=True)),
        colors=True,
        chooses=True,
    ),
    "trivial_augment": _Kind(trivial_augment, colors=True, chooses=True),
    "color_jitter": _Kind(
        color_jitter,
        _strengths("STRENGTH"),
        (*_strengths("BRIGHTNESS", "CONTRAST", "SATURATION"), _Value("HUE", 0.0, 0, 0.5)),
        colors=True,
        chooses=True,
    ),
    "grayscale": _Kind(grayscale, _share(0.1), colors=True),
    "random_erasing": _Kind(random_erasing, _share(0.5)),
}
