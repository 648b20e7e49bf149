import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tlx.data.image import decode, sniff, upright_rgb
from tlx.errors import InputError, InputFileNotFoundError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 9, 3), np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, color: int, rows: np.ndarray, *extra: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    chunks = [chunk(b"IHDR", header), *(chunk(e[:4], e[4:]) for e in extra)]
    chunks += [chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    ("kind", "options"), [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True})]
)
def test_lossless_formats(kind: str, options: dict[str, Any]) -> None:
    image = decode(encoded(Image.fromarray(PIXELS), kind, **options), name="x")
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), PIXELS)


def test_jpeg_from_a_path_with_a_misleading_name(tmp_path: Path) -> None:
    path = tmp_path / "ünï code & spaces.png"
    path.write_bytes(encoded(Image.new("RGB", (16, 16), (200, 100, 50)), "JPEG", quality=95))
    pixels = np.asarray(decode(path, name="x")).astype(int)
    assert np.abs(pixels - [200, 100, 50]).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_exif_orientation(orientation: int, kind: str) -> None:
    """The stored corner that the orientation calls the visual top left must end there."""
    marks = {"tl": (255, 0, 0), "tr": (0, 255, 0), "bl": (0, 0, 255), "br": (255, 255, 255)}
    stored = Image.new("RGB", (64, 32))
    for corner, color in marks.items():
        left, top = 32 * (corner[1] == "r"), 16 * (corner[0] == "b")
        stored.paste(color, (left, top, left + 32, top + 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"JPEG": {"quality": 100, "subsampling": 0}, "PNG": {}}.get(
        kind, {"lossless": True}
    )
    image = decode(encoded(stored, kind, exif=exif, **options), name="x")
    # TIFF 6.0: which stored corner is shown at the top left, and which at the top right.
    expected = {1: "tl tr", 2: "tr tl", 3: "br bl", 4: "bl br"}
    expected |= {5: "tl bl", 6: "bl tl", 7: "br tr", 8: "tr br"}
    assert image.size == ((64, 32) if orientation < 5 else (32, 64))
    top = [image.getpixel((3, 3)), image.getpixel((image.width - 4, 3))]
    for seen, corner in zip(top, expected[orientation].split(), strict=True):
        assert np.abs(np.array(seen) - marks[corner]).max() < 8
    assert upright_rgb(image).tobytes() == image.tobytes(), "turned twice"


@pytest.mark.filterwarnings("ignore:.*EXIF")
def test_damaged_exif_is_no_orientation() -> None:
    data = encoded(Image.fromarray(PIXELS), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    np.testing.assert_array_equal(np.asarray(decode(data, name="x")), PIXELS)


def test_grey_and_bilevel() -> None:
    grey = decode(encoded(Image.fromarray(PIXELS[..., 0]), "PNG"), name="x")
    np.testing.assert_array_equal(np.asarray(grey), PIXELS[..., :1].repeat(3, -1))
    bits = decode(encoded(Image.fromarray(PIXELS[..., 0] > 128), "PNG"), name="x")
    np.testing.assert_array_equal(np.asarray(bits)[..., 1], (PIXELS[..., 0] > 128) * 255)


def test_transparency_is_over_white() -> None:
    alpha = RNG.integers(0, 256, PIXELS.shape[:2], np.uint8)
    alpha[0, 0], alpha[0, 1] = 0, 255
    rgba = Image.fromarray(np.dstack([PIXELS, alpha]))
    pixels = np.asarray(decode(encoded(rgba, "PNG"), name="x")).astype(float)
    share = alpha[..., None] / 255
    assert np.abs(pixels - (PIXELS * share + 255 * (1 - share))).max() <= 1
    assert pixels[0, 0].tolist() == [255, 255, 255]
    np.testing.assert_array_equal(pixels[0, 1], PIXELS[0, 1])
    grey = Image.fromarray(np.dstack([PIXELS[..., 0], alpha]))
    pixels = np.asarray(decode(encoded(grey, "PNG"), name="x")).astype(float)
    assert np.abs(pixels - (PIXELS[..., :1] * share + 255 * (1 - share))).max() <= 1
    assert pixels[0, 0].tolist() == [255, 255, 255]


def test_palettes() -> None:
    palette = Image.fromarray(PIXELS).quantize(16)
    plain = decode(encoded(palette, "PNG"), name="x")
    np.testing.assert_array_equal(np.asarray(plain), np.asarray(palette.convert("RGB")))
    index = np.asarray(palette)
    clear = np.asarray(decode(encoded(palette, "PNG", transparency=3), name="x"))
    expected = np.asarray(palette.convert("RGB")).copy()
    expected[index == 3] = 255
    np.testing.assert_array_equal(clear, expected)


def test_cmyk_jpeg_is_not_inverted() -> None:
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert np.abs(np.asarray(decode(encoded(red, "JPEG"), name="x")) - [255.0, 0, 0]).max() <= 4


def test_sixteen_bits() -> None:
    wide = RNG.integers(0, 65536, (5, 6, 3)).astype(">u2")
    grey = decode(png(6, 5, 16, 0, wide[..., 0].copy()), name="x")
    np.testing.assert_array_equal(np.asarray(grey), (wide[..., :1] >> 8).repeat(3, -1))
    color = decode(png(6, 5, 16, 2, wide), name="x")
    np.testing.assert_array_equal(np.asarray(color), wide >> 8)
    key = b"tRNS" + wide[0, 0, :1].tobytes()
    clear = np.asarray(decode(png(6, 5, 16, 0, wide[..., 0].copy(), key), name="x"))
    assert clear[0, 0].tolist() == [255, 255, 255]
    np.testing.assert_array_equal(clear[1:], np.asarray(grey)[1:])


def test_animations_give_the_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    for kind, options in (("WEBP", {"lossless": True}), ("PNG", {})):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert decode(data, name="x").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("size", [(1, 1), (3000, 20), (1, 5000)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    assert decode(encoded(Image.new("RGB", size), "PNG"), name="x").size == size


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_truncated_pictures_are_named(kind: str) -> None:
    data = encoded(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8)), kind)
    for length in (4, 20, len(data) // 2):
        with pytest.raises(InputError, match=r"^dir/cat 1\.jpg: "):
            decode(data[:length], name="dir/cat 1.jpg")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_damaged_pictures_raise_nothing_but_input_errors(kind: str) -> None:
    data = encoded(Image.fromarray(PIXELS), kind)
    messages = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        damaged = bytearray(data)
        for position in rng.integers(8, len(data), 6):
            damaged[position] = rng.integers(0, 256)
        try:
            decode(bytes(damaged), name="x", max_pixels=10_000)
        except InputError as error:
            messages.append(str(error))
    assert messages or kind == "BMP"  # which has nothing but a short header to be damaged
    assert all(message.startswith("x: ") and "\n" not in message for message in messages)


def test_what_is_no_picture(tmp_path: Path) -> None:
    gif = encoded(Image.fromarray(PIXELS).quantize(8), "GIF")
    for content, message in (
        (b"", "is empty"),
        (b"hello, I am a text\n", "not a picture in JPEG, PNG, WebP or BMP"),
        (gif, "this is a GIF file; convert it"),
        (encoded(Image.fromarray(PIXELS), "TIFF"), "this is a TIFF file"),
    ):
        path = tmp_path / "a.jpg"
        path.write_bytes(content)
        for data in (content, path):
            with pytest.raises(InputError, match=message):
                decode(data, name="a.jpg")
    with pytest.raises(InputFileNotFoundError, match=r"^gone\.jpg: no such file"):
        decode(tmp_path / "gone.jpg", name="gone.jpg")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        decode(tmp_path, name="a.jpg")


def test_pixel_limit_is_checked_before_decoding() -> None:
    bomb = png(50_000, 50_000, 8, 0, np.zeros((1, 10), np.uint8))
    with pytest.raises(InputError, match="more pixels than the limit"):
        decode(bomb, name="bomb.png")
    small = png(200, 200, 8, 0, np.zeros((1, 10), np.uint8))
    with pytest.raises(InputError, match="200x200 pixels are more than the limit of 30,000"):
        decode(small, name="x", max_pixels=30_000)


def test_sniff() -> None:
    assert sniff(b"\xff\xd8\xff\xe0") == "JPEG"
    assert sniff(b"RIFF\0\0\0\0WEBPVP8 ") == "WebP"
    assert sniff(b"") == sniff(b"# a readme") == ""
