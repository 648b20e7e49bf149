import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tlx.data.augment_ops import (
    NAMES,
    affine,
    autocontrast,
    blurred,
    color,
    equalize,
    gray,
    hue,
    one_of,
    posterize,
    solarize,
    turn_hue,
    whole,
)
from tlx.data.augment_policies import rand_augment_magnitudes, trivial_augment_magnitudes

ramp = np.arange(12, dtype=np.float32).reshape(3, 4, 1)
apply = jax.jit(one_of)


def operated(image, name, magnitude=0.0):
    found = apply(jnp.asarray(image, jnp.float32), NAMES.index(name), np.float32(magnitude))
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, np.round(found))
    return np.asarray(found)


def test_translation_moves_whole_pixels_and_fills_with_black():
    right = operated(ramp, "translate_x", 1)
    np.testing.assert_array_equal(right[:, 1:], ramp[:, :-1])
    assert (right[:, 0] == 0).all()
    up = operated(ramp, "translate_y", -2)
    np.testing.assert_array_equal(up[:1], ramp[2:])
    assert (up[1:] == 0).all()


def test_rotation_turns_counter_clockwise():
    square = np.arange(16, dtype=np.float32).reshape(4, 4, 1)
    np.testing.assert_array_equal(operated(square, "rotate", 90), np.rot90(square))
    np.testing.assert_array_equal(operated(square, "rotate", -180), np.rot90(square, 2))


def test_shear_moves_rows_by_their_height():
    rows = np.tile(np.arange(1, 9, dtype=np.float32)[None, :, None], (4, 1, 1))
    found = operated(rows, "shear_x", 1.0)[..., 0]
    # Row y starts at y + 0.5: midway between two pixels, where the later one counts.
    np.testing.assert_array_equal(found[:, 0], [2, 3, 4, 5])
    columns = rows.transpose(1, 0, 2)
    np.testing.assert_array_equal(operated(columns, "shear_y", 1.0)[..., 0], found.T)


def test_blending_by_hand():
    image = jnp.array([[[10.0, 20, 30], [200, 100, 0]]])
    np.testing.assert_array_equal(gray(image)[..., 0], [[18, 118]])  # 18.149 and 118.48
    np.testing.assert_array_equal(
        operated(image, "brightness", 0.5), [[[15, 30, 45], [255, 150, 0]]]
    )
    np.testing.assert_array_equal(operated(image, "color", -1), [[[18] * 3, [118] * 3]])
    np.testing.assert_array_equal(operated(image, "contrast", -1), [[[68] * 3] * 2])
    np.testing.assert_array_equal(
        operated(image, "contrast", -0.5), [[[39, 44, 49], [134, 84, 34]]]
    )


def test_a_third_of_the_circle_exchanges_the_channels():
    image = np.random.default_rng(0).random((6, 7, 3), np.float32)
    for turns in (-2, -1, 1, 2):
        found = jax.jit(turn_hue)(image, turns / 3)
        np.testing.assert_allclose(found, np.roll(image, turns, -1), atol=1e-6)
    np.testing.assert_allclose(turn_hue(image, 0.0), image, atol=1e-6)
    half = turn_hue(jnp.array([[[1.0, 0.25, 0.5], [0.2, 0.2, 0.2]]]), 0.5)
    np.testing.assert_allclose(half, [[[0.25, 1.0, 0.75], [0.2, 0.2, 0.2]]], atol=1e-6)


def test_hue_of_whole_numbers_and_of_one_channel():
    levels = np.arange(256, dtype=np.float32)
    image = np.stack([levels, levels[::-1], np.roll(levels, 77)], -1).reshape(16, 16, 3)
    np.testing.assert_array_equal(jax.jit(hue)(image, 0.0), image)
    np.testing.assert_array_equal(jax.jit(hue)(image, 1 / 3), np.roll(image, 1, -1))
    np.testing.assert_array_equal(hue(jnp.asarray(image[..., :1]), 0.3), image[..., :1])


def test_sharpness_blends_with_a_blur_that_spares_the_border():
    image = np.zeros((5, 5, 1), np.float32)
    image[2, 2] = 130
    expected = image.copy()
    expected[1:4, 1:4] = 10
    expected[2, 2] = 50
    np.testing.assert_array_equal(blurred(jnp.asarray(image)), expected)
    np.testing.assert_array_equal(operated(image, "sharpness", -1), expected)
    small = jnp.asarray(image[:2])
    np.testing.assert_array_equal(blurred(small), small)


def test_tables_by_hand():
    image = np.array([[[0.0], [17], [128], [255]]], np.float32)
    np.testing.assert_array_equal(operated(image, "posterize", 4)[0, :, 0], [0, 16, 128, 240])
    np.testing.assert_array_equal(operated(image, "posterize", 8), image)
    np.testing.assert_array_equal(operated(image, "solarize", 128)[0, :, 0], [0, 17, 127, 0])
    np.testing.assert_array_equal(
        operated(image / 2, "autocontrast")[0, :, 0] // 2, [0, 8, 64, 127]
    )
    flat = np.full((4, 4, 1), 9.0, np.float32)
    np.testing.assert_array_equal(operated(flat, "autocontrast"), flat)
    np.testing.assert_array_equal(operated(flat, "equalize"), flat)
    # 1,020 pixels of each of three values: the step is 2040 // 255 = 8, and a value becomes the count below it / 8.
    three = np.repeat(np.array([3.0, 5, 200], np.float32), 1020).reshape(36, 85, 1)
    found = operated(three, "equalize")
    np.testing.assert_array_equal(np.unique(found), [0, 128, 255])


def test_an_operation_is_each_pictures_own():
    rng = np.random.default_rng(0)
    images = rng.integers(5, 240, (14, 24, 22, 3)).astype(np.float32)
    magnitudes = rand_augment_magnitudes(24, 22)[:, 20]
    together = jax.jit(jax.vmap(one_of))(images, np.arange(14), magnitudes)
    for i, name in enumerate(NAMES):
        np.testing.assert_array_equal(together[i], operated(images[i], name, magnitudes[i]))
    np.testing.assert_array_equal(together[0], images[0])
    assert all((together[i] != images[i]).any() for i in range(1, 14))


def test_floats_become_whole_numbers():
    found = whole(jnp.array([-3.0, 0.5, 1.5, 254.6, 300.0]))
    np.testing.assert_array_equal(found, [0, 0, 2, 255, 255])
    assert whole(jnp.array([7], jnp.uint8)).dtype == jnp.float32


@functools.cache
def pictures(channels, height=40, width=48):
    """Smooth pictures with noise, of a limited range, so that each operation has something to do."""
    rng = np.random.default_rng(channels)
    waves = np.sin(np.linspace(0, 5, height))[:, None, None] * np.cos(
        np.linspace(0, 4, width)[:, None] + np.arange(channels)
    )
    noise = rng.normal(0, 12, (3, height, width, channels))
    return np.clip(110 + 70 * waves + noise, 5, 240).astype(np.uint8)


def torchvisions(image, name, magnitude):
    """The operation of torchvision's RandAugment on uint8 [H, W, C]."""
    import torch

    from tests.torchvision_import import import_torchvision

    transforms = import_torchvision().transforms
    names = {"shear_x": "ShearX", "shear_y": "ShearY", "translate_x": "TranslateX"}
    names |= {"translate_y": "TranslateY", "autocontrast": "AutoContrast"}
    found = transforms.autoaugment._apply_op(
        torch.from_numpy(np.array(image.transpose(2, 0, 1))),
        names.get(name, name.title()),
        float(magnitude),
        transforms.InterpolationMode.NEAREST,
        None,
    )
    return found.numpy().transpose(1, 2, 0)


GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
EXACT = (
    "identity",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
    "translate_x",
    "translate_y",
)


@pytest.mark.parity
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 3])
def test_each_operation_is_torchvisions(name, channels):
    index = NAMES.index(name)
    tables = rand_augment_magnitudes(40, 48)[index], trivial_augment_magnitudes()[index]
    # RandAugment's shears of 4, 8, 12, ... lead to points midway between two pixels.
    magnitudes = {table[i] for table in tables for i in (0, 1, 5, 9, 14, 17, 22, 27, 30)}
    if name not in ("identity", "posterize", "solarize", "autocontrast", "equalize"):
        magnitudes |= {-m for m in magnitudes}
    for image in pictures(channels):
        for magnitude in sorted(magnitudes):
            expected = torchvisions(image, name, magnitude).astype(np.float32)
            found = operated(image, name, magnitude)
            same = found == expected
            if name in EXACT:
                assert same.all(), (magnitude, same.mean())
            elif name in GEOMETRIC:
                assert same.mean() >= 0.995, (magnitude, same.mean())
            else:
                # Where the exact result is whole, as on the border that a blur spares, torchvision's
                # rounding may lose a level.
                assert np.abs(found - expected).max() <= 1 and same.mean() > 0.9, magnitude


@pytest.mark.parity
@pytest.mark.parametrize("size", [(32, 32), (224, 224), (331, 331), (9, 13)])
def test_the_magnitudes_are_torchvisions(size):
    from tests.torchvision_import import import_torchvision

    transforms = import_torchvision().transforms
    rand = transforms.RandAugment()._augmentation_space(31, size)
    trivial = transforms.TrivialAugmentWide()._augmentation_space(31)
    for theirs, ours in (
        (rand, rand_augment_magnitudes(*size)),
        (trivial, trivial_augment_magnitudes()),
    ):
        assert [name.lower() for name in theirs] == [name.replace("_", "") for name in NAMES]
        for (name, (magnitudes, signed)), row in zip(theirs.items(), ours, strict=True):
            assert signed == (
                name not in ("Identity", "Posterize", "Solarize", "AutoContrast", "Equalize")
            )
            if magnitudes.ndim:
                expected = magnitudes.numpy().astype(np.float32)
                if name.startswith("Translate"):
                    # Where the exact magnitude is whole, torch's rounding may lose a pixel.
                    unsure = np.abs(expected - np.round(expected)) < 1e-4
                    expected = np.where(unsure, np.round(expected), np.trunc(expected))
                np.testing.assert_allclose(row, expected, rtol=1e-6, atol=2e-5, err_msg=name)


@pytest.mark.parity
def test_extremes_of_the_functions_are_torchvisions():
    import torch

    from tests.torchvision_import import import_torchvision

    functional = import_torchvision().transforms.functional
    (image, *_) = pictures(3)
    dark = np.zeros_like(image)
    dark[0, :5] = np.arange(5)[:, None]
    for picture in (image, dark, np.full_like(image, 255)):
        theirs = torch.from_numpy(np.array(picture.transpose(2, 0, 1)))
        ours = jnp.asarray(picture, jnp.float32)
        for found, expected in (
            (equalize(ours), functional.equalize(theirs)),
            (autocontrast(ours), functional.autocontrast(theirs)),
            (solarize(ours, 0.0), functional.solarize(theirs, 0)),
            (posterize(ours, 1), functional.posterize(theirs, 1)),
            (jnp.broadcast_to(gray(ours), ours.shape), functional.rgb_to_grayscale(theirs, 3)),
            (
                color(ours, -1.0),
                functional.adjust_saturation(theirs, 0),
            ),
            (affine(ours, jnp.eye(2, 3)), theirs),
        ):
            np.testing.assert_array_equal(found, expected.numpy().transpose(1, 2, 0))


@pytest.mark.parity
def test_hue_is_torchvisions():
    import torch

    from tests.torchvision_import import import_torchvision

    adjust = import_torchvision().transforms.functional.adjust_hue
    rng = np.random.default_rng(1)
    corners = np.array([[[r, g, b] for r in (0, 1) for g in (0, 1)] for b in (0, 1)], np.float32)
    greys = np.repeat(rng.random((5, 5, 1), np.float32), 3, -1)
    fractions = rng.random((64, 64, 3), np.float32)
    whole_numbers = rng.integers(0, 256, (64, 64, 3), np.uint8)
    for change in (-0.5, -0.31, -1 / 6, -0.1, 0.0, 0.05, 1 / 3, 0.42, 0.5):
        for picture in (fractions, corners, greys):
            theirs = adjust(torch.from_numpy(picture.transpose(2, 0, 1).copy()), change)
            found = jax.jit(turn_hue)(picture, change)
            np.testing.assert_allclose(found, theirs.numpy().transpose(1, 2, 0), atol=1e-5)
        theirs = adjust(torch.from_numpy(whole_numbers.transpose(2, 0, 1).copy()), change)
        found = np.asarray(jax.jit(hue)(whole_numbers.astype(np.float32), change))
        away = np.abs(found - theirs.numpy().transpose(1, 2, 0))
        # The last level hangs on the rounding of float32.
        assert away.max() <= 1 and (away > 0).mean() < 1e-3, (change, (away > 0).mean())
