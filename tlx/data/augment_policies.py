"""Random changes of colour and content: RandAugment, TrivialAugment, jitter, greyscale, erasing.

Each function returns the map of one picture: (key, [H, W, C] with values from 0 to 255) -> the same shape.
All but `random_erasing` take 1 or 3 channels and return whole numbers, as torchvision on uint8; what
comes as floats is rounded first.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from tlx.data.augment_ops import NAMES, brightness, color, contrast, gray, hue, one_of, whole
from tlx.weights.meta import ImagePreprocess

ImageMap = Callable[[jax.Array, jax.Array], jax.Array]

BINS = 31  # magnitudes are 0 .. 30
_UNSIGNED = ("identity", "posterize", "solarize", "autocontrast", "equalize")


def rand_augment(preprocess: ImagePreprocess, count: float, magnitude: float) -> ImageMap:
    """Applies `count` of the 14 operations, drawn with replacement, each at the magnitude or its negative.

    Cubuk et al. 2020, "RandAugment", with torchvision's operations, magnitudes and interpolation (nearest,
    black outside). A magnitude is one of 0 .. 30.
    """
    del preprocess
    steps, bin_ = int(count), int(magnitude)

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        table = jnp.asarray(rand_augment_magnitudes(image.shape[0], image.shape[1]))

        def step(pixels: jax.Array, step_key: jax.Array) -> tuple[jax.Array, None]:
            return _drawn(step_key, pixels, table[:, bin_]), None

        pixels, _ = jax.lax.scan(step, whole(image), jax.random.split(key, steps))
        return pixels.astype(jnp.uint8)

    return apply


def trivial_augment(preprocess: ImagePreprocess) -> ImageMap:
    """Applies one of the 14 operations at a magnitude that is drawn too.

    Müller & Hutter 2021, "TrivialAugment", its wide ranges, as torchvision's TrivialAugmentWide.
    """
    del preprocess
    table = trivial_augment_magnitudes()

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        bin_key, key = jax.random.split(key)
        bin_ = jax.random.randint(bin_key, (), 0, BINS)
        return _drawn(key, whole(image), jnp.asarray(table)[:, bin_]).astype(jnp.uint8)

    return apply


def color_jitter(preprocess: ImagePreprocess, *strengths: float) -> ImageMap:
    """Changes brightness, contrast, saturation and hue in a random order.

    torchvision's `ColorJitter(b, c, s, h)`: the first three by a factor from 1 - strength, but at least 0, to
    1 + strength, the hue by a share of its circle from -h to h. Of one strength, b = c = s and h = 0. Pictures
    of one channel have neither saturation nor hue: those leave them as they are.
    """
    del preprocess
    strengths = strengths * 3 if len(strengths) == 1 else strengths
    operations = (brightness, contrast, color, hue)[: len(strengths)]
    high = np.array(strengths, np.float32)
    low = np.maximum(-high, -1.0)

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        order_key, change_key = jax.random.split(key)
        order = jax.random.permutation(order_key, len(operations))
        limits = {"minval": jnp.asarray(low)[order], "maxval": jnp.asarray(high)[order]}
        changes = jax.random.uniform(change_key, (len(operations),), **limits)

        def step(pixels: jax.Array, drawn: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            operation, change = drawn
            return jax.lax.switch(operation, operations, pixels, change), None

        pixels, _ = jax.lax.scan(step, whole(image), (order, changes))
        return pixels.astype(jnp.uint8)

    return apply


def grayscale(preprocess: ImagePreprocess, probability: float) -> ImageMap:
    """Takes the colour out of a picture with that probability: torchvision's `RandomGrayscale`."""
    del preprocess

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        pixels = whole(image)
        chosen = jax.random.bernoulli(key, probability)
        return jnp.where(chosen, gray(pixels), pixels).astype(jnp.uint8)

    return apply


def random_erasing(preprocess: ImagePreprocess, probability: float) -> ImageMap:
    """Paints a box of the picture with the mean that normalisation subtracts, with that probability.

    Zhong et al. 2020, "Random Erasing", as torchvision's `RandomErasing`: the box has 0.02 .. 0.33 of
    the area and a ratio of its sides of 0.3 .. 3.3, drawn up to ten times until it fits. After
    normalisation its value is 0, as theirs. Returns float32.
    """
    mean = np.asarray(preprocess.mean, np.float32) * np.float32(255)
    fill = mean[::-1] if preprocess.channel_order == "BGR" else mean

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        height, width = image.shape[:2]
        chosen_key, area_key, ratio_key, place_key = jax.random.split(key, 4)
        area = height * width * jax.random.uniform(area_key, (10,), minval=0.02, maxval=0.33)
        limits = {"minval": np.log(0.3), "maxval": np.log(3.3)}
        ratio = jnp.exp(jax.random.uniform(ratio_key, (10,), **limits))
        sides = jnp.round(jnp.sqrt(area * jnp.stack([ratio, 1 / ratio]))).astype(jnp.int32)
        whole_sides = jnp.array([height, width])
        fits = jnp.all(sides < whole_sides[:, None], axis=0)
        box = sides[:, jnp.argmax(fits)]
        start = jax.random.randint(place_key, (2,), 0, whole_sides - box + 1)
        row, column = jnp.arange(height), jnp.arange(width)
        inside = ((row >= start[0]) & (row < start[0] + box[0]))[:, None] & (
            (column >= start[1]) & (column < start[1] + box[1])
        )
        erased = inside & fits.any() & jax.random.bernoulli(chosen_key, probability)
        return jnp.where(erased[..., None], fill, image.astype(jnp.float32))

    return apply


def rand_augment_magnitudes(height: int, width: int) -> np.ndarray:
    """Returns the magnitudes of torchvision's RandAugment, float32 [14, 31], as `one_of` takes them."""
    largest = {"shear": 0.3, "rotate": 30.0, "blending": 0.9, "posterize": 4}
    return _magnitudes(largest, 150.0 / 331.0 * height, 150.0 / 331.0 * width)


def trivial_augment_magnitudes() -> np.ndarray:
    """Returns the magnitudes of torchvision's TrivialAugmentWide, float32 [14, 31]."""
    return _magnitudes({"shear": 0.99, "rotate": 135.0, "blending": 0.99, "posterize": 6}, 32, 32)


def _magnitudes(largest: dict[str, float], down: float, across: float) -> np.ndarray:
    share = np.linspace(0, 1, BINS)
    found = dict.fromkeys(NAMES, share * largest["blending"])
    found |= dict.fromkeys(("shear_x", "shear_y"), share * largest["shear"])
    # Whole pixels, not one less where rounding falls short of one.
    found |= {"translate_x": share * across + 1e-6, "translate_y": share * down + 1e-6}
    found |= {name: np.trunc(found[name]) for name in ("translate_x", "translate_y")}
    found["rotate"] = share * largest["rotate"]
    found["posterize"] = 8 - np.round(share * largest["posterize"])
    found["solarize"] = 255 * (1 - share)
    return np.stack([found[name] for name in NAMES]).astype(np.float32)


def _drawn(key: jax.Array, pixels: jax.Array, magnitudes: jax.Array) -> jax.Array:
    """Applies one of the operations at its magnitude, float [14], or where it has a sign, its negative."""
    operation_key, sign_key = jax.random.split(key)
    operation = jax.random.randint(operation_key, (), 0, len(NAMES))
    signed = jnp.array([name not in _UNSIGNED for name in NAMES])[operation]
    negative = signed & jax.random.bernoulli(sign_key)
    magnitude = magnitudes[operation]
    return one_of(pixels, operation, jnp.where(negative, -magnitude, magnitude))
