"""From a picture to a network's input: a pure function of `ImagePreprocess`.

Resizing, cropping and normalising follow torchvision's transforms on PIL pictures (`Resize`,
`CenterCrop`, `ToTensor`, `Normalize`), pixel for pixel.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from tlx.config import DataConfig
from tlx.data.image import upright_rgb
from tlx.errors import InputError
from tlx.weights.meta import ImagePreprocess

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

# Above this many pixels (very long, thin pictures) only what the crop needs is resized.
_WHOLE_RESIZE_LIMIT = 64_000_000


def resolve(preprocess: ImagePreprocess, config: DataConfig) -> ImagePreprocess:
    """Returns the weights' own preprocessing with the overrides that the config names.

    `image_size` alone scales `resize` in proportion, rounded to the nearest pixel.

    Raises:
      InputError: mean or std of a wrong length or scale, or an unknown interpolation.
    """
    size = config.image_size or preprocess.size
    in_proportion = math.floor(preprocess.resize * size / preprocess.size + 0.5)
    resolved = dataclasses.replace(
        preprocess,
        size=size,
        resize=config.resize or in_proportion,
        interpolation=config.interpolation or preprocess.interpolation,
        mean=config.mean or preprocess.mean,
        std=config.std or preprocess.std,
    )
    _resampling(resolved)
    for name in ("mean", "std"):
        values = getattr(resolved, name)
        if len(values) != 3:
            raise InputError(f"config.data.{name} has {len(values)} values {values}, expected 3")
        if not all(0 <= value <= 1 for value in values) or (name == "std" and 0 in values):
            raise InputError(
                f"config.data.{name} is {values}, expected 3 values from 0 to 1, for pixels "
                "divided by 255" + (", none of them 0" if name == "std" else "")
            )
    return resolved


def overrides(before: ImagePreprocess, after: ImagePreprocess) -> list[str]:
    """Returns "field: before -> after" for each field that differs, for the log."""
    return [
        f"{field.name}: {getattr(before, field.name)} -> {getattr(after, field.name)}"
        for field in dataclasses.fields(ImagePreprocess)
        if getattr(before, field.name) != getattr(after, field.name)
    ]


def canvas(
    image: Image.Image, preprocess: ImagePreprocess, *, size: int | None = None
) -> np.ndarray:
    """Returns the resized centre of a picture, uint8 [S, S, 3], channels always RGB.

    The short side becomes `preprocess.resize`, the long side `int(resize * long / short)`,
    antialiased; the centre S x S is cut out. Where the resized picture is smaller than S, black is
    added around it.

    Args:
      image: any mode; what is not RGB is converted and turned upright as tlx.data.image does.
      preprocess: resize, interpolation and, unless `size` is given, S.
      size: S in pixels, as for a canvas from which training cuts random crops.
    """
    size = size or preprocess.size
    if image.mode != "RGB":
        image = upright_rgb(image)
    width, height = _resized(image.size, preprocess.resize)
    left, top = _offset(width, size), _offset(height, size)
    box = (left, top, left + size, top + size)
    inside = (
        max(left, 0),
        max(top, 0),
        min(left + size, width),
        min(top + size, height),
    )
    if (width, height) == image.size:
        part = image.crop(inside)
    elif width * height <= _WHOLE_RESIZE_LIMIT:
        part = image.resize((width, height), _resampling(preprocess)).crop(inside)
    else:
        part = _resize_part(image, (width, height), inside, _resampling(preprocess))
    pixels = np.zeros((size, size, 3), np.uint8)
    y, x = inside[1] - box[1], inside[0] - box[0]
    pixels[y : y + part.height, x : x + part.width] = np.asarray(part)
    return pixels


def normalize(pixels: Any, preprocess: ImagePreprocess) -> Any:
    """Returns (pixels / 255 - mean) / std, float32 [..., 3] as `pixels`, which is numpy or jax.

    Pixels are RGB from 0 to 255; for `channel_order` BGR the channels are reversed first, so that
    mean and std are always in the order of the network's own input.
    """
    scaled = pixels.astype(np.float32) / np.float32(255)
    if preprocess.channel_order == "BGR":
        scaled = scaled[..., ::-1]
    mean = np.asarray(preprocess.mean, np.float32)
    std = np.asarray(preprocess.std, np.float32)
    return (scaled - mean) / std


def preprocess_fn(source: Any) -> Callable[[Image.Image | np.ndarray], np.ndarray]:
    """Returns the function that turns one picture into one network input.

    Args:
      source: a model, a WeightsMeta or an ImagePreprocess.

    The function takes a PIL picture (any mode; turned upright by its EXIF orientation) or an array
    [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]: uint8, or floats from 0 to 1, which are rounded to 8
    bits as a picture file would hold them. It returns float32 [size, size, 3], normalised. It
    raises InputError for any other array.
    """
    meta = getattr(source, "meta", source)
    preprocess: ImagePreprocess = getattr(meta, "preprocess", meta)

    def apply(picture: Image.Image | np.ndarray) -> np.ndarray:
        image = picture if isinstance(picture, Image.Image) else _from_array(picture)
        return normalize(canvas(upright_rgb(image), preprocess), preprocess)

    return apply


def _from_array(array: np.ndarray) -> Image.Image:
    array = np.asarray(array)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (3, 4))
    if not shaped or 0 in array.shape:
        raise InputError(
            f"an array of shape {list(array.shape)} is not one picture: expected [H, W], or [H, W, "
            "C] "
            "with 1, 3 or 4 channels last"
        )
    if array.dtype.kind == "f":
        if not (array.min() >= 0 and array.max() <= 1):
            raise InputError(
                f"a {array.dtype} picture has values from {array.min():g} to {array.max():g}, "
                "expected "
                "0 to 1; for 0 to 255 convert it to uint8"
            )
        array = np.rint(array.astype(np.float64) * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise InputError(f"a picture of dtype {array.dtype}: expected uint8, or floats from 0 to 1")
    return Image.fromarray(np.ascontiguousarray(array))


def _resampling(preprocess: ImagePreprocess) -> Image.Resampling:
    if preprocess.interpolation not in INTERPOLATIONS:
        raise InputError(
            f"interpolation {preprocess.interpolation!r}, expected one of "
            f"{', '.join(INTERPOLATIONS)}"
        )
    return INTERPOLATIONS[preprocess.interpolation]


def _resized(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    width, height = size
    if width <= height:
        return short_side, int(short_side * height / width)
    return int(short_side * width / height), short_side


def _offset(length: int, size: int) -> int:
    if length < size:  # torchvision pads the odd pixel at the end
        return -((size - length) // 2)
    return round((length - size) / 2.0)


def _resize_part(
    image: Image.Image,
    resized: tuple[int, int],
    part: tuple[int, int, int, int],
    resampling: Image.Resampling,
) -> Image.Image:
    scale_x, scale_y = image.width / resized[0], image.height / resized[1]
    source = (
        part[0] * scale_x,
        part[1] * scale_y,
        part[2] * scale_x,
        part[3] * scale_y,
    )
    within = (*source[:2], min(source[2], image.width), min(source[3], image.height))
    return image.resize((part[2] - part[0], part[3] - part[1]), resampling, box=within)
