"""Reading picture files safely: four formats, a limit on pixels, always upright RGB."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from tlx.errors import InputError, InputFileNotFoundError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
FORMATS_TEXT = "JPEG, PNG, WebP or BMP"
MAX_PIXELS = 178_956_970  # where PIL, too, refuses a picture: half a gigabyte as RGB

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Signature, where it stands in the file, format.
_SIGNATURES = (
    (b"\xff\xd8\xff", 0, "JPEG"),
    (b"\x89PNG\r\n\x1a\n", 0, "PNG"),
    (b"WEBP", 8, "WebP"),
    (b"BM", 0, "BMP"),
    (b"GIF8", 0, "GIF"),
    (b"II*\0", 0, "TIFF"),
    (b"MM\0*", 0, "TIFF"),
    (b"ftyphei", 4, "HEIC"),
    (b"ftypmif", 4, "HEIC"),
    (b"ftypavif", 4, "AVIF"),
)


def decode(data: bytes | Path, *, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes a picture completely.

    Args:
      data: a file's content, or its path. The format is found from the content, not from the
        suffix.
      name: what an error calls the picture.
      max_pixels: largest width times height, checked before anything is decoded.

    Returns:
      A PIL picture in mode RGB, turned upright as its EXIF orientation says, transparency
      composited onto white. Of an animation it is the first frame.

    Raises:
      InputError: empty, truncated or otherwise broken, another format, or too many pixels.
      InputFileNotFoundError: there is no such file.
    """
    try:
        with Image.open(
            io.BytesIO(data) if isinstance(data, bytes) else data, formats=FORMATS
        ) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise InputError(
                    f"{name}: {width}x{height} pixels are more than the limit of {max_pixels:,}; "
                    "make the picture smaller"
                )
            image.load()
            return upright_rgb(image)
    except (InputError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise InputFileNotFoundError(f"{name}: no such file (or a broken link)") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{name}: {_what_it_is(data)}") from error
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{name}: more pixels than the limit of {max_pixels:,}; make the picture smaller"
        ) from error
    # PIL's decoders raise OSError, SyntaxError, ValueError, struct.error, IndexError and others.
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise InputError(f"{name}: cannot be read: {error.strerror}") from error
        what = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{name}: broken picture: {what}") from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """Returns the picture as RGB, turned as its EXIF orientation says, over white if transparent.

    Grey of 16 bits keeps its upper 8, as PIL does for 16-bit colour; CMYK is converted without a
    colour profile, as torchvision's loader (PIL) does.
    """
    turn = _UPRIGHT.get(_orientation(image))
    rgb = _rgb(image)
    rgb = rgb.transpose(turn) if turn is not None else rgb
    rgb.info = {}  # the orientation is done, and must not be applied again
    return rgb


def displayable(pixels: np.ndarray) -> np.ndarray:
    """Returns uint8 [H, W, C] of any C as [H, W, 3]: grey repeated, of other numbers the first three."""
    channels = pixels.shape[-1]
    return pixels[..., np.minimum(np.arange(3), channels - 1)] if channels != 3 else pixels


def sniff(head: bytes) -> str:
    """Returns the picture format whose signature a file's first 16 bytes bear, or "".

    More formats are known here than `decode` reads, so that a message can name them.
    """
    for signature, offset, name in _SIGNATURES:
        if head[offset : offset + len(signature)] == signature:
            return name
    return ""


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy()
    if image.mode.startswith("I"):
        return _from_wide_grey(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _from_wide_grey(image: Image.Image) -> Image.Image:
    grey = np.asarray(image).astype(np.int64)  # PIL's own conversion clips at 255
    narrow = (np.clip(grey, 0, 65535) >> 8).astype(np.uint8)
    if isinstance(image.info.get("transparency"), int):
        narrow[grey == image.info["transparency"]] = 255
    return Image.fromarray(narrow).convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # noqa: BLE001 - damaged metadata of any kind says nothing about the pixels
        return 1


def _what_it_is(data: bytes | Path) -> str:
    if isinstance(data, bytes):
        head = data[:16]
    else:
        with open(data, "rb") as file:
            head = file.read(16)
    if not head:
        return "the file is empty (0 bytes)"
    found = sniff(head)
    if found and found.upper() not in FORMATS:
        return f"this is a {found} file; convert it to {FORMATS_TEXT}"
    if found:
        return f"broken picture: it begins as {found} but has no valid header"
    return f"not a picture in {FORMATS_TEXT}, whatever its name says"
