import dataclasses
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision_import import import_torchvision

from tlx.config import build
from tlx.data import preprocess as module
from tlx.data.preprocess import canvas, normalize, overrides, preprocess_fn, resolve
from tlx.errors import InputError
from tlx.weights.meta import IMAGENET_MEAN, ImagePreprocess, WeightsMeta

IMAGENET = ImagePreprocess(size=224, resize=256)
SIZES = [(300, 200), (200, 300), (257, 513), (32, 32), (1, 1), (3000, 20), (20, 3000), (225, 224)]


def synthetic(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise over a gradient, so that both aliasing and a shift by a pixel would show."""
    noise = np.random.default_rng(seed).integers(0, 128, (height, width, 3))
    ramp = np.linspace(0, 127, width)[None, :, None] + np.zeros((height, 1, 3))
    return Image.fromarray((noise + ramp).astype(np.uint8))


def config(**fields: Any) -> Any:
    return build({f"data.{key}": value for key, value in fields.items()}).data


def test_resolve_keeps_the_weights_own() -> None:
    assert resolve(IMAGENET, config()) == IMAGENET
    assert overrides(IMAGENET, IMAGENET) == []


@pytest.mark.parametrize(
    ("size", "resize"), [(112, 128), (128, 146), (299, 342), (32, 37), (224, 256)]
)
def test_image_size_scales_resize_in_proportion(size: int, resize: int) -> None:
    resolved = resolve(IMAGENET, config(image_size=size))
    assert (resolved.size, resolved.resize) == (size, resize)


def test_overrides_are_listed() -> None:
    fields = {"resize": 224, "interpolation": "bicubic", "mean": "0.5,0.5,0.5", "std": (0.5,) * 3}
    resolved = resolve(IMAGENET, config(image_size=192, **fields))
    assert resolved == ImagePreprocess(192, 224, "bicubic", (0.5,) * 3, (0.5,) * 3)
    assert overrides(IMAGENET, resolved) == [
        "size: 224 -> 192",
        "resize: 256 -> 224",
        "interpolation: bilinear -> bicubic",
        f"mean: {IMAGENET_MEAN} -> (0.5, 0.5, 0.5)",
        "std: (0.229, 0.224, 0.225) -> (0.5, 0.5, 0.5)",
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mean": (0.5,)}, r"data\.mean has 1 values"),
        ({"std": (0.5,) * 4}, r"data\.std has 4 values"),
        ({"mean": (123.7, 116.3, 103.5)}, "from 0 to 1, for pixels divided by 255"),
        ({"std": (0.2, 0.0, 0.2)}, "none of them 0"),
        ({"mean": (float("nan"),) * 3}, "from 0 to 1"),
    ],
)
def test_wrong_mean_and_std(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve(IMAGENET, config(**fields))


def test_unknown_interpolation_of_a_weights_file() -> None:
    with pytest.raises(InputError, match="interpolation 'area', expected one of nearest"):
        resolve(dataclasses.replace(IMAGENET, interpolation="area"), config())


def test_canvas_is_rgb_uint8_and_pads_with_black() -> None:
    wanted = ImagePreprocess(size=8, resize=4)
    pixels = canvas(Image.new("RGB", (5, 4), (9, 8, 7)), wanted)
    assert pixels.shape == (8, 8, 3) and pixels.dtype == np.uint8
    filled = np.zeros((8, 8), bool)
    filled[2:6, 1:6] = True
    np.testing.assert_array_equal(pixels.any(-1), filled)
    np.testing.assert_array_equal(pixels[filled], np.tile([9, 8, 7], (20, 1)))
    assert canvas(Image.new("L", (5, 4), 3), wanted, size=2).tolist() == [[[3] * 3] * 2] * 2


def test_very_long_pictures_are_resized_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    extreme = canvas(Image.new("RGB", (1, 200_000), (1, 2, 3)), IMAGENET)
    np.testing.assert_array_equal(extreme, np.tile([1, 2, 3], (224, 224, 1)))
    for size in SIZES:
        image = synthetic(*size)
        for interpolation in ("bilinear", "bicubic", "lanczos"):
            wanted = dataclasses.replace(IMAGENET, interpolation=interpolation)
            whole = canvas(image, wanted).astype(int)
            monkeypatch.setattr(module, "_WHOLE_RESIZE_LIMIT", 0)
            part = canvas(image, wanted).astype(int)
            monkeypatch.undo()
            if size[0] >= size[1]:
                assert np.abs(whole - part).max() <= 1
                assert np.abs(whole - part).mean() < 0.001
            else:  # PIL then may do its two passes, each rounded, in the other order
                assert np.abs(whole - part).mean() < 0.35
                assert abs((whole - part).mean()) < 0.01


def test_normalize() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10
    found = normalize(pixels, IMAGENET)
    assert found.dtype == np.float32
    expected = (pixels / 255 - IMAGENET.mean) / np.array(IMAGENET.std)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    batch = normalize(pixels[None].astype(np.float32), IMAGENET)
    np.testing.assert_array_equal(batch[0], found)


def test_bgr_has_mean_in_its_own_order() -> None:
    wanted = ImagePreprocess(4, 4, mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0), channel_order="BGR")
    red = normalize(np.array([255, 0, 0], np.uint8), wanted)
    np.testing.assert_allclose(red, [-0.1, -0.2, 0.7], atol=1e-6)


def test_preprocess_fn_takes_pictures_and_arrays_alike() -> None:
    image = synthetic(300, 260)
    meta = WeightsMeta("resnet18", preprocess=IMAGENET)
    apply = preprocess_fn(meta)
    expected = apply(image)
    assert expected.shape == (224, 224, 3) and expected.dtype == np.float32
    pixels = np.asarray(image)
    alpha = np.full((*pixels.shape[:2], 1), 255, np.uint8)
    for array in (
        pixels,
        pixels / 255,
        (pixels / 255).astype(np.float32),
        np.concatenate([pixels, alpha], axis=-1),
        pixels[:, ::-1][:, ::-1],
    ):
        np.testing.assert_array_equal(apply(array), expected)
    np.testing.assert_array_equal(preprocess_fn(IMAGENET)(image), expected)
    grey = apply(np.asarray(image.convert("L")))
    np.testing.assert_array_equal(grey, apply(np.asarray(image.convert("L"))[..., None]))
    np.testing.assert_array_equal(grey, apply(image.convert("L")))


def test_preprocess_fn_turns_pictures_upright() -> None:
    image = synthetic(40, 30)
    turned = image.transpose(Image.Transpose.ROTATE_90)  # orientation 6 turns it back
    turned.getexif()[0x0112] = 6
    turned.info["exif"] = turned.getexif().tobytes()
    apply = preprocess_fn(ImagePreprocess(size=16, resize=20))
    np.testing.assert_array_equal(apply(turned), apply(image))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 8, 9), np.uint8), r"shape \[3, 8, 9\] is not one picture"),
        (np.zeros((1, 8, 9, 3), np.uint8), "is not one picture"),
        (np.zeros((0, 8, 3), np.uint8), "is not one picture"),
        (np.full((8, 9, 3), 200.0), "values from 200 to 200, expected 0 to 1"),
        (np.full((8, 9, 3), np.nan), "expected 0 to 1"),
        (np.zeros((8, 9, 3), np.int64), "dtype int64: expected uint8"),
        (np.zeros((8, 9), bool), "dtype bool: expected uint8"),
    ],
)
def test_arrays_that_are_no_picture(array: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        preprocess_fn(IMAGENET)(array)


@pytest.mark.parity
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("width_height", SIZES, ids=str)
@pytest.mark.parametrize(("resize", "size"), [(256, 224), (37, 32), (20, 33), (64, 64)])
def test_torchvision_parity(
    width_height: tuple[int, int], resize: int, size: int, interpolation: str
) -> None:
    transforms = import_torchvision().transforms
    image = synthetic(*width_height)
    wanted = ImagePreprocess(size, resize, interpolation)
    cut = transforms.Compose(
        [
            transforms.Resize(resize, transforms.InterpolationMode(interpolation)),
            transforms.CenterCrop(size),
        ]
    )(image)
    np.testing.assert_array_equal(canvas(image, wanted), np.asarray(cut))
    tensor = transforms.Normalize(wanted.mean, wanted.std)(transforms.ToTensor()(cut))
    found = preprocess_fn(wanted)(image)
    np.testing.assert_allclose(found, tensor.numpy().transpose(1, 2, 0), rtol=0, atol=1e-6)
