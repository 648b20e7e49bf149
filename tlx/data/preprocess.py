"""From a picture to a network's input: a pure function of `ImagePreprocess`.

Resizing, cropping and normalising follow torchvision's transforms on PIL pictures (`Resize`,
`CenterCrop`, `ToTensor`, `Normalize`), pixel for pixel; with `resize_mode` squash, timm's evaluation
transform of that name and the picture processors of Hugging Face's vision transformers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from tlx.config import DataConfig
from tlx.data.image import upright_rgb
from tlx.data.text_preprocess import TEXT_FIELDS, resolve_text, text_preprocess_fn
from tlx.errors import InputError
from tlx.weights.meta import PREPROCESS_CHOICES, ImagePreprocess, Preprocess, TextPreprocess

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

# Above this many pixels (very long, thin pictures) only what the crop needs is resized.
_WHOLE_RESIZE_LIMIT = 64_000_000


def resolve(preprocess: Preprocess, config: DataConfig) -> Preprocess:
    """Returns the weights' own preprocessing with the overrides that the config names. Raises as `resolve_image` or `resolve_text`."""
    if isinstance(preprocess, TextPreprocess):
        return resolve_text(preprocess, config)
    return resolve_image(preprocess, config)


def resolve_image(preprocess: ImagePreprocess, config: DataConfig) -> ImagePreprocess:
    """Returns the preprocessing of pictures with the overrides that the config names.

    `image_size` alone scales `resize` in proportion, rounded to the nearest pixel. The number of
    channels stays the network's.

    Raises:
      InputError: mean or std of a wrong length or scale, an unknown interpolation, resize mode or
        channel order.
    """
    default = DataConfig()
    for field in TEXT_FIELDS:
        if getattr(config, field) != getattr(default, field):
            raise InputError(
                f"config.data.{field} is {getattr(config, field)!r}, but the network takes pictures, not texts"
            )
    sized = preprocess.at_size(config.image_size) if config.image_size else preprocess
    resolved = dataclasses.replace(
        sized,
        resize=config.resize or sized.resize,
        interpolation=config.interpolation or sized.interpolation,
        mean=config.mean or sized.mean,
        std=config.std or sized.std,
        resize_mode=config.resize_mode or sized.resize_mode,
    )
    for name in ("mean", "std"):
        values = getattr(resolved, name)
        if len(values) != preprocess.channels:
            raise InputError(
                f"config.data.{name} has {len(values)} values {values}, expected "
                f"{preprocess.channels}, one for each channel that the network takes"
            )
        if not all(0 <= value <= 1 for value in values) or (name == "std" and 0 in values):
            raise InputError(
                f"config.data.{name} is {values}, expected {preprocess.channels} values from 0 to "
                "1, for pixels divided by 255" + (", none of them 0" if name == "std" else "")
            )
    check(resolved)
    return resolved


def check(preprocess: ImagePreprocess) -> None:
    """Raises InputError where a field has a value that is not known here, as a file's meta may."""
    for name, choices in PREPROCESS_CHOICES.items():
        value = getattr(preprocess, name)
        if value not in choices:
            raise InputError(f"{name} {value!r}, expected one of {', '.join(choices)}")
    if preprocess.channel_order == "L" and preprocess.channels != 1:
        raise InputError(
            f"channel_order 'L' is one channel, but mean has {preprocess.channels} values"
        )


def overrides(before: Preprocess, after: Preprocess) -> list[str]:
    """Returns "field: before -> after" for each field that differs, for the log; both are of one kind."""
    return [
        f"{field.name}: {getattr(before, field.name)} -> {getattr(after, field.name)}"
        for field in dataclasses.fields(before)
        if field.compare and getattr(before, field.name) != getattr(after, field.name)
    ]


def canvas(
    picture: Image.Image | np.ndarray, preprocess: ImagePreprocess, *, size: int | None = None
) -> np.ndarray:
    """Returns the resized centre of a picture, uint8 [S, S, C], C as the network takes.

    The short side becomes `preprocess.resize`, the long side `int(resize * long / short)`, or with
    `resize_mode` squash both sides become `resize`; antialiased. The centre S x S is cut out. Where
    the resized picture is smaller than S, black is added around it. Three channels are always RGB;
    one is brightness (ITU-R 601-2, as PIL's mode L), taken before resizing as timm does.

    Args:
      picture: of any mode; what is not RGB is converted and turned upright as tlx.data.image does.
        Or uint8 [H, W, C], whose C channels are resized one by one.
      preprocess: how it is resized, the number of channels and, unless `size` is given, S.
      size: S in pixels, as for a canvas from which training cuts random crops.

    Raises:
      InputError: the picture's channels are not those that the network takes.
    """
    size = size or preprocess.size
    layers = [_cut(layer, preprocess, size) for layer in _layers(picture, preprocess.channels)]
    return layers[0] if len(layers) == 1 else np.concatenate(layers, axis=-1)


def normalize(pixels: Any, preprocess: ImagePreprocess) -> Any:
    """Returns (pixels / 255 - mean) / std, float32 [..., C] as `pixels`, which is numpy or jax.

    Pixels are as `canvas` gives them, from 0 to 255; for `channel_order` BGR the channels are
    reversed first, so that mean and std are always in the order of the network's own input.
    """
    scaled = pixels.astype(np.float32) / np.float32(255)
    if preprocess.channel_order == "BGR":
        scaled = scaled[..., ::-1]
    mean = np.asarray(preprocess.mean, np.float32)
    std = np.asarray(preprocess.std, np.float32)
    return (scaled - mean) / std


def network_input(inputs: Any, preprocess: Preprocess) -> Any:
    """Returns what the network is called on: pixels are normalised, token ids are as they are."""
    return normalize(inputs, preprocess) if isinstance(preprocess, ImagePreprocess) else inputs


def preprocess_fn(source: Any) -> Callable[..., Any]:
    """Returns the function that turns one picture into one network input, or texts into one: see `text_preprocess_fn`.

    Args:
      source: a model, a WeightsMeta, an ImagePreprocess or a TextPreprocess.

    Of pictures the function takes a PIL picture (any mode; turned upright by its EXIF orientation) or an array
    [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]: uint8, or floats from 0 to 1, which are rounded to 8
    bits as a picture file would hold them. For a network that takes neither 1 nor 3 channels it
    takes an array [H, W, C] of that many. It returns float32 [size, size, C], normalised. It raises
    InputError for anything else.
    """
    meta = getattr(source, "meta", source)
    preprocess: Preprocess = getattr(meta, "preprocess", meta)
    if isinstance(preprocess, TextPreprocess):
        return text_preprocess_fn(preprocess)
    if not isinstance(preprocess, ImagePreprocess):
        raise InputError(
            f"preprocess: expected a model, a WeightsMeta, an ImagePreprocess or a TextPreprocess, not {source!r}"
        )
    check(preprocess)

    def apply(picture: Image.Image | np.ndarray) -> np.ndarray:
        if not isinstance(picture, Image.Image):
            picture = _from_array(picture, preprocess.channels)
        if isinstance(picture, Image.Image):
            picture = upright_rgb(picture)
        return normalize(canvas(picture, preprocess), preprocess)

    return apply


def _from_array(array: np.ndarray, channels: int) -> Image.Image | np.ndarray:
    array = np.asarray(array)
    if array.ndim == 2:
        array = array[..., None]
    as_picture = channels in (1, 3)
    allowed = (1, 3, 4) if as_picture else (channels,)
    if array.ndim != 3 or array.shape[-1] not in allowed or 0 in array.shape:
        expected = (
            "[H, W], or [H, W, C] with 1, 3 or 4 channels last"
            if as_picture
            else f"[H, W, {channels}], the channels that the network takes"
        )
        raise InputError(
            f"an array of shape {list(array.shape)} is not one picture: expected {expected}"
        )
    if array.dtype.kind == "f":
        if not (array.min() >= 0 and array.max() <= 1):
            raise InputError(
                f"a {array.dtype} picture has values from {array.min():g} to {array.max():g}, "
                "expected 0 to 1; for 0 to 255 convert it to uint8"
            )
        array = np.rint(array.astype(np.float64) * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise InputError(f"a picture of dtype {array.dtype}: expected uint8, or floats from 0 to 1")
    if not as_picture:
        return array
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[-1] == 1 else array))


def _layers(picture: Image.Image | np.ndarray, channels: int) -> list[Image.Image]:
    """Returns the picture as PIL can resize it: one of mode RGB or L, or one L for each channel."""
    if isinstance(picture, np.ndarray) and picture.shape[-1] == channels:
        return [Image.fromarray(np.ascontiguousarray(picture[..., c])) for c in range(channels)]
    if isinstance(picture, np.ndarray):
        raise InputError(
            f"pictures of {picture.shape[-1]} channels, but the network takes {channels} "
            f"(model.in_channels={picture.shape[-1]} makes one that fits)"
        )
    if channels not in (1, 3):
        raise InputError(
            f"the network takes {channels} channels, but this is a picture of red, green and blue; "
            "only arrays [N, H, W, C] (data.source=npz) have other channels"
        )
    if picture.mode != "RGB":
        picture = upright_rgb(picture)
    return [picture.convert("L") if channels == 1 else picture]


def _cut(image: Image.Image, preprocess: ImagePreprocess, size: int) -> np.ndarray:
    """Resizes a picture of mode RGB or L and cuts out its centre: uint8 [size, size, 3 or 1]."""
    width, height = _resized(image.size, preprocess)
    left, top = _offset(width, size), _offset(height, size)
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
    values = np.asarray(part)
    values = values if values.ndim == 3 else values[..., None]
    pixels = np.zeros((size, size, values.shape[-1]), np.uint8)
    y, x = inside[1] - top, inside[0] - left
    pixels[y : y + part.height, x : x + part.width] = values
    return pixels


def _resampling(preprocess: ImagePreprocess) -> Image.Resampling:
    return INTERPOLATIONS[preprocess.interpolation]


def _resized(size: tuple[int, int], preprocess: ImagePreprocess) -> tuple[int, int]:
    (width, height), target = size, preprocess.resize
    if preprocess.resize_mode == "squash":
        return target, target
    if width <= height:
        return target, int(target * height / width)
    return int(target * width / height), target


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
