"""Operations on one picture, as torchvision's on uint8, and the choice of one of them per picture.

Pictures are float32 [H, W, C] of whole numbers from 0 to 255, and so are the results: torchvision
computes in float32 and cuts off the fraction, and so does this. Where exact arithmetic gives a whole
number, or a point midway between two pixels, torchvision's result hangs on the rounding of float32; here a
nudge decides, so that it is the same however it is compiled. Those that need a brightness are defined
for 1 and 3 channels (red, green, blue).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

Operation = Callable[[jax.Array, jax.Array], jax.Array]  # (picture, magnitude) -> picture

# Above the rounding of float32 at 255 grey levels and at a few hundred pixels.
_LEVEL, _PIXEL = 1e-3, 1e-4


def whole(image: jax.Array) -> jax.Array:
    """Returns the picture rounded to whole numbers from 0 to 255, float32."""
    if image.dtype == jnp.uint8:
        return image.astype(jnp.float32)
    return jnp.clip(jnp.round(image.astype(jnp.float32)), 0, 255)


def affine(image: jax.Array, matrix: jax.Array) -> jax.Array:
    """Returns at (x, y), from the centre, the nearest pixel to matrix @ (x, y, 1); black outside.

    torchvision's `affine` with its nearest interpolation; of two that are as near, the later one.

    Args:
      image: [H, W, C].
      matrix: float [2, 3], in pixels.
    """
    height, width, channels = image.shape
    x = jnp.arange(width) - (width - 1) / 2
    y = (jnp.arange(height) - (height - 1) / 2)[:, None]
    from_x, from_y = (row[0] * x + row[1] * y + row[2] + _PIXEL for row in matrix)
    column, row = jnp.round(from_x + (width - 1) / 2), jnp.round(from_y + (height - 1) / 2)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    index = jnp.where(inside, row * width + column, 0).astype(jnp.int32)
    found = image.reshape(-1, channels)[index]
    return jnp.where(inside[..., None], found, 0)


def blend(image: jax.Array, other: jax.Array, ratio: jax.Array) -> jax.Array:
    """Returns ratio * image + (1 - ratio) * other, cut off to 0 .. 255: torchvision's `_blend`."""
    return jnp.floor(jnp.clip(ratio * image + (1.0 - ratio) * other + _LEVEL, 0, 255))


def shear_x(image: jax.Array, slope: jax.Array) -> jax.Array:
    """Returns the rows moved left by slope times their distance from the top: RandAugment's ShearX."""
    return affine(image, jnp.array([[1.0, slope, slope * image.shape[0] / 2], [0.0, 1.0, 0.0]]))


def shear_y(image: jax.Array, slope: jax.Array) -> jax.Array:
    """Returns the columns moved up by slope times their distance from the left: RandAugment's ShearY."""
    return affine(image, jnp.array([[1.0, 0.0, 0.0], [slope, 1.0, slope * image.shape[1] / 2]]))


def translate_x(image: jax.Array, pixels: jax.Array) -> jax.Array:
    """Returns the picture moved right by whole pixels: RandAugment's TranslateX."""
    return affine(image, jnp.array([[1.0, 0.0, -pixels], [0.0, 1.0, 0.0]]))


def translate_y(image: jax.Array, pixels: jax.Array) -> jax.Array:
    """Returns the picture moved down by whole pixels: RandAugment's TranslateY."""
    return affine(image, jnp.array([[1.0, 0.0, 0.0], [0.0, 1.0, -pixels]]))


def rotate(image: jax.Array, degrees: jax.Array) -> jax.Array:
    """Returns the picture turned counter-clockwise about its centre: torchvision's `rotate`."""
    angle = jnp.deg2rad(degrees)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return affine(image, jnp.array([[cos, -sin, 0.0], [sin, cos, 0.0]]))


def gray(image: jax.Array) -> jax.Array:
    """Returns the brightness, [H, W, 1], of 3 channels (ITU-R 601-2); of 1 channel the picture itself.

    torchvision's `rgb_to_grayscale`.
    """
    if image.shape[2] == 1:
        return image
    red, green, blue = image[..., :1], image[..., 1:2], image[..., 2:]
    return jnp.floor(0.2989 * red + 0.587 * green + 0.114 * blue)


def brightness(image: jax.Array, change: jax.Array) -> jax.Array:
    """Returns the picture blended with black: torchvision's `adjust_brightness` by 1 + change."""
    return blend(image, jnp.zeros_like(image), 1.0 + change)


def color(image: jax.Array, change: jax.Array) -> jax.Array:
    """Returns the picture blended with its brightness: torchvision's `adjust_saturation` by 1 + change."""
    return blend(image, gray(image), 1.0 + change)


def contrast(image: jax.Array, change: jax.Array) -> jax.Array:
    """Returns the picture blended with its mean brightness: torchvision's `adjust_contrast` by 1 + change."""
    return blend(image, gray(image).mean(), 1.0 + change)


def hue(image: jax.Array, change: jax.Array) -> jax.Array:
    """Returns the picture with its hue turned by a share of the circle: torchvision's `adjust_hue` by change.

    One channel has no hue, and stays as it is.
    """
    if image.shape[2] == 1:
        return image
    return jnp.floor(turn_hue(image / 255, change) * 255.999)


def turn_hue(image: jax.Array, change: jax.Array) -> jax.Array:
    """Returns the hue of a picture turned, [H, W, 3], red, green and blue in [0, 1] before and after.

    The largest and the smallest channel stay as they are (the hexcone model: Smith 1978, "Color gamut transform
    pairs"). A grey has no hue.

    Args:
      image: float [H, W, 3].
      change: of the hue, as a share of the circle: 1/3 makes red green.
    """
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    largest = image.max(-1)
    chroma = largest - image.min(-1)
    by = jnp.where(chroma > 0, chroma, 1.0)
    sixth = jnp.where(
        largest == red,
        (green - blue) / by,
        jnp.where(largest == green, 2 + (blue - red) / by, 4 + (red - green) / by),
    )
    # How far each channel is below the largest depends on the hue's distance from its complement.
    turned = (sixth + 6 * change)[..., None] + jnp.array([5.0, 3.0, 1.0])
    place = jnp.mod(turned, 6.0)
    below = jnp.clip(jnp.minimum(place, 4 - place), 0, 1)
    return largest[..., None] - chroma[..., None] * below


def sharpness(image: jax.Array, change: jax.Array) -> jax.Array:
    """Returns the picture blended with itself blurred: torchvision's `adjust_sharpness` by 1 + change."""
    return blend(image, blurred(image), 1.0 + change)


def blurred(image: jax.Array) -> jax.Array:
    """Returns the picture smoothed by 3 x 3 weights, 5 in the centre and 1 around, the border as it is."""
    if min(image.shape[:2]) <= 2:
        return image
    rows = image[:-2] + image[1:-1] + image[2:]
    inner = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * image[1:-1, 1:-1]
    return image.at[1:-1, 1:-1].set(jnp.round(inner / 13))


def posterize(image: jax.Array, bits: jax.Array) -> jax.Array:
    """Returns the picture with all but the highest bits 0: torchvision's `posterize`."""
    step = 2.0 ** (8 - bits)
    return jnp.floor(image / step) * step


def solarize(image: jax.Array, threshold: jax.Array) -> jax.Array:
    """Returns the picture with the values from the threshold up inverted: torchvision's `solarize`."""
    return jnp.where(image >= threshold, 255 - image, image)


def autocontrast(image: jax.Array) -> jax.Array:
    """Returns each channel stretched to 0 .. 255, a constant one as it is: torchvision's `autocontrast`."""
    low, high = image.min((0, 1)), image.max((0, 1))
    flat = low == high
    scale = jnp.where(flat, 1.0, 255 / jnp.where(flat, 1.0, high - low))
    return jnp.floor(jnp.clip((image - jnp.where(flat, 0.0, low)) * scale + _LEVEL, 0, 255))


def equalize(image: jax.Array) -> jax.Array:
    """Returns each channel with its histogram made flat: torchvision's `equalize`, which follows PIL's."""
    channels = image.shape[2]
    values = image.reshape(-1, channels).astype(jnp.int32)
    counts = jnp.zeros((256, channels), jnp.int32).at[values, jnp.arange(channels)].add(1)
    at_most = jnp.cumsum(counts, axis=0)
    last = jnp.take_along_axis(counts, values.max(axis=0, keepdims=True), axis=0)
    step = (len(values) - last) // 255
    table = (at_most - counts + step // 2) // jnp.maximum(step, 1)
    found = jnp.take_along_axis(jnp.clip(table, 0, 255), values, axis=0)
    equal = found.reshape(image.shape).astype(jnp.float32)
    return jnp.where(step == 0, image, equal)


# In the order of torchvision's RandAugment and TrivialAugmentWide.
OPERATIONS: dict[str, Operation] = {
    "identity": lambda image, _: image,
    "shear_x": shear_x,
    "shear_y": shear_y,
    "translate_x": translate_x,
    "translate_y": translate_y,
    "rotate": rotate,
    "brightness": brightness,
    "color": color,
    "contrast": contrast,
    "sharpness": sharpness,
    "posterize": posterize,
    "solarize": solarize,
    "autocontrast": lambda image, _: autocontrast(image),
    "equalize": lambda image, _: equalize(image),
}
NAMES = tuple(OPERATIONS)


def one_of(image: jax.Array, operation: jax.Array, magnitude: jax.Array) -> jax.Array:
    """Returns the picture after one of OPERATIONS.

    A loop over pictures computes the one that is chosen; `jax.vmap` computes all for all pictures.

    Args:
      image: float32 [H, W, C] of whole numbers, C 1 or 3.
      operation: its index.
      magnitude: float32, its second argument.
    """
    return jax.lax.switch(operation, tuple(OPERATIONS.values()), image, magnitude)
