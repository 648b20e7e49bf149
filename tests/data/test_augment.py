import jax
import numpy as np
import pytest

from tlx.data.augment import parse
from tlx.errors import InputError
from tlx.weights.meta import ImagePreprocess

PREPROCESS = ImagePreprocess(size=8, resize=12)


def pictures(size, count=200):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_flip_mirrors_about_half():
    x = pictures(8)
    y = np.asarray(parse(("flip",), PREPROCESS)(jax.random.key(0), x))
    same = (y == x).all((1, 2, 3))
    mirrored = (y == x[:, :, ::-1]).all((1, 2, 3))
    assert np.all(same ^ mirrored)
    assert 70 < mirrored.sum() < 130


def test_pad_crop_shifts_by_at_most_the_padding_and_fills_with_black():
    x = pictures(8)
    y = np.asarray(parse(("pad_crop:2",), PREPROCESS)(jax.random.key(0), x))
    padded = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
    shifts = set()
    for i in range(len(x)):
        hits = [
            (a, b)
            for a in range(5)
            for b in range(5)
            if (padded[i, a : a + 8, b : b + 8] == y[i]).all()
        ]
        assert len(hits) == 1
        shifts.update(hits)
    assert len(shifts) == 25


def test_random_crop_cuts_from_the_larger_canvas():
    augmentation = parse(("random_crop", "flip"), PREPROCESS)
    assert augmentation.canvas == 12
    x = pictures(12, 40)
    y = np.asarray(parse(("random_crop",), PREPROCESS)(jax.random.key(1), x))
    assert y.shape == (40, 8, 8, 3) and y.dtype == np.uint8
    for i in range(len(x)):
        assert any((x[i, a : a + 8, b : b + 8] == y[i]).all() for a in range(5) for b in range(5))


def test_random_resized_crop_of_a_gradient_keeps_its_slope():
    # On a linear ramp a crop and resize is a ramp again, whose slope tells the crop's width.
    side = 64
    ramp = np.broadcast_to(
        np.arange(side, dtype=np.uint8)[None, None, :, None], (300, side, side, 3)
    )
    preprocess = ImagePreprocess(size=16, resize=side)
    y = np.asarray(parse(("random_resized_crop:0.25",), preprocess)(jax.random.key(2), ramp))
    assert y.shape == (300, 16, 16, 3)
    slopes = np.diff(y[:, 8, 4:12, 0], axis=1)
    # The antialiasing filter's own ripple is below 0.1 grey levels.
    np.testing.assert_allclose(slopes, slopes.mean(1, keepdims=True) * np.ones((1, 7)), atol=0.1)
    widths = slopes.mean(1) * 16
    assert side * (0.25 * 3 / 4) ** 0.5 - 1 < widths.min() and widths.max() <= side + 1e-2
    assert y.min() >= 0 and y.max() <= side - 1
    # Means of area in [0.25, 1]: a crop at the full area leaves the whole width more often than not.
    assert widths.std() > 5


def test_the_same_key_gives_the_same_pictures_and_another_does_not():
    augmentation = parse(("pad_crop:2", "flip"), PREPROCESS)
    x = pictures(8, 20)
    one, two, other = (np.asarray(augmentation(jax.random.key(seed), x)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)


def test_nothing_asked_for_changes_nothing():
    x = pictures(8, 4)
    np.testing.assert_array_equal(parse((), PREPROCESS)(jax.random.key(0), x), x)


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (("flipp",), "did you mean 'flip'"),
        (("pad_crop:0",), "1 <= VALUE <= 256"),
        (
            ("pad_crop:4.5",),
            "'pad_crop:4.5': expected pad_crop:VALUE with 1 <= VALUE <= 256, VALUE a whole",
        ),
        (("random_resized_crop:2",), "0.01 <= VALUE <= 1"),
        (("random_resized_crop:x",), "VALUE"),
        (("flip:3",), "expected flip"),
        (("random_crop", "random_resized_crop"), "crop only once"),
    ],
)
def test_wrong_augmentations_are_named(texts, says):
    with pytest.raises(InputError) as caught:
        parse(texts, PREPROCESS)
    assert says in str(caught.value)
