import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tlx.data.augment import AUGMENTATIONS, parse
from tlx.data.augment_ops import NAMES, one_of
from tlx.data.augment_policies import rand_augment_magnitudes
from tlx.data.preprocess import normalize
from tlx.errors import InputError
from tlx.weights.meta import ImagePreprocess

PREPROCESS = ImagePreprocess(size=8, resize=8, mean=(0.3, 0.5, 0.6), std=(0.2, 0.2, 0.2))


def pictures(count, size=8, channels=3):
    rng = np.random.default_rng(0)
    return rng.integers(1, 250, (count, size, size, channels), dtype=np.uint8)


def augmented(text, images, seed=0, preprocess=PREPROCESS):
    augmentation = jax.jit(parse((text,), preprocess))
    return np.asarray(augmentation(jax.random.key(seed), jnp.asarray(images)))


@pytest.mark.parametrize(
    "text",
    [
        *("rand_augment", "trivial_augment", "color_jitter", "color_jitter:0:0:0:0.5"),
        *("grayscale:0.5", "random_erasing:0.5"),
    ],
)
def test_each_picture_has_its_own_key_and_values_stay_in_range(text):
    same = np.repeat(pictures(1), 64, axis=0)
    found = augmented(text, same)
    assert found.shape == same.shape
    assert found.dtype == (np.float32 if text.startswith("random_erasing") else np.uint8)
    assert found.min() >= 0 and found.max() <= 255
    assert len({picture.tobytes() for picture in found}) > (1 if text.startswith("gray") else 8)
    np.testing.assert_array_equal(found, augmented(text, same))
    assert (found != augmented(text, same, seed=1)).any()


def test_rand_augment_of_one_operation_is_each_of_them_at_its_magnitude_or_the_negative():
    (picture,) = pictures(1, size=24)
    magnitudes = rand_augment_magnitudes(24, 24)[:, 20]
    expected = {}
    for index, name in enumerate(NAMES):
        for sign in (1, -1):
            signed = name not in ("identity", "posterize", "solarize", "autocontrast", "equalize")
            magnitude = sign * magnitudes[index] if signed else magnitudes[index]
            result = np.asarray(
                one_of(jnp.asarray(picture, jnp.float32), index, magnitude), np.uint8
            )
            expected.setdefault(result.tobytes(), (name, sign))
    assert len(expected) == 5 + 2 * 9
    counts = dict.fromkeys(expected.values(), 0)
    found = augmented("rand_augment:1:20", np.repeat(picture[None], 2000, axis=0))
    for result in found:
        counts[expected[result.tobytes()]] += 1
    # Each of the 14 is expected 143 times, with either sign 71 times; five standard deviations.
    unsigned = ("identity", "posterize", "solarize", "autocontrast", "equalize")
    for (name, _), count in counts.items():
        low, high = (85, 200) if name in unsigned else (30, 113)
        assert low < count < high, (name, count)


def test_rand_augment_of_two_is_more_than_one():
    same = np.repeat(pictures(1, size=24), 300, axis=0)
    one, two = ({p.tobytes() for p in augmented(f"rand_augment:{n}:9", same)} for n in (1, 2))
    assert len(one) <= 23 < 80 < len(two)


def test_trivial_augment_draws_the_magnitude():
    picture = pictures(1, size=32)
    preprocess = ImagePreprocess(size=32, resize=32)
    found = augmented("trivial_augment", np.repeat(picture, 400, axis=0), preprocess=preprocess)
    assert len({p.tobytes() for p in found}) > 150
    assert (found == picture).all((1, 2, 3)).sum() > 15  # identity, and magnitudes of 0


def test_jitter_of_strength_0_changes_nothing_and_a_grey_picture_keeps_its_hue():
    x = pictures(20)
    np.testing.assert_array_equal(augmented("color_jitter:0", x), x)
    grey = np.repeat(pictures(50, channels=1), 3, axis=-1)
    found = augmented("color_jitter:0.8", grey).astype(int)
    # The weights of the brightness add up to 0.9999, so that grey may lose one.
    assert np.abs(found - found[..., :1]).max() <= 1
    assert (found != grey).any((1, 2, 3)).mean() > 0.9


def test_brightness_is_drawn_from_1_less_the_strength_to_1_and_the_strength():
    # On a picture of one grey, contrast and saturation change a level or two.
    grey = np.full((2000, 8, 8, 3), 100, np.uint8)
    share = augmented("color_jitter:0.5", grey).mean((1, 2, 3)) / 100
    assert 0.47 < share.min() < 0.53 and 1.46 < share.max() < 1.53
    assert share.mean() == pytest.approx(1.0, abs=0.03)


def test_each_of_the_four_strengths_is_its_own():
    grey = np.full(
        (500, 8, 8, 3), 100, np.uint8
    )  # only brightness changes a picture of one grey by much
    share = augmented("color_jitter:0.2:0:0:0", grey).mean((1, 2, 3)) / 100
    assert 0.79 <= share.min() < 0.82 and 1.17 < share.max() <= 1.2
    for text in ("color_jitter:0:0.9:0:0", "color_jitter:0:0:0.9:0", "color_jitter:0:0:0:0.5"):
        assert np.abs(augmented(text, grey).astype(int) - 100).max() <= 1
    x = pictures(300)
    turned = augmented("color_jitter:0:0:0:0.1", x).astype(int)
    # Hue leaves each pixel's largest and smallest channel as they are.
    np.testing.assert_array_equal(turned.max(-1), x.max(-1))
    np.testing.assert_array_equal(turned.min(-1), x.min(-1))
    assert (turned != x).any((1, 2, 3)).mean() > 0.95
    np.testing.assert_array_equal(augmented("color_jitter:0:0:0:0", x), x)
    np.testing.assert_array_equal(
        augmented("color_jitter:0.4:0.4:0.4:0.1", x), augmented("color_jitter:0.4:0.4:0.4:.1", x)
    )


def test_hues_are_drawn_evenly_on_both_sides():
    red = np.broadcast_to(np.array([255, 0, 0], np.uint8), (2000, 4, 4, 3))
    found = augmented("color_jitter:0:0:0:0.1", red)[:, 0, 0].astype(int)
    # Red turns to yellow by 1/6 of the circle, or to magenta by as much the other way.
    share = (found[:, 1] - found[:, 2]) / 255 / 6
    assert -0.1 <= share.min() < -0.097 and 0.097 < share.max() <= 0.1
    assert abs(share.mean()) < 0.006 and share.std() == pytest.approx(0.1 / 3**0.5, abs=0.003)


def test_brightness_comes_before_contrast_as_often_as_after():
    # Black and white: made lighter and then of less contrast they add up to 255, the other way round to more;
    # of more contrast to 255 either way, and darker to less. So 1/2 * (1/2 + 1/2 * 1/2) add up to 255.
    x = np.zeros((4000, 4, 4, 3), np.uint8)
    x[:, :2] = 255
    found = augmented("color_jitter:0.5:0.5:0:0", x).astype(int)
    share = (np.abs(found[:, 0, 0, 0] + found[:, 3, 0, 0] - 255) <= 1).mean()
    assert share == pytest.approx(0.375, abs=0.03)


def test_grayscale_is_all_or_nothing():
    x = pictures(400)
    found = augmented("grayscale:0.3", x)
    grey = (found == found[..., :1]).all((1, 2, 3))
    same = (found == x).all((1, 2, 3))
    assert np.all(grey ^ same)
    assert 80 < grey.sum() < 160


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_erased_pixels_are_0_after_normalisation_and_the_others_as_they_were(order):
    preprocess = ImagePreprocess(
        size=24, resize=24, mean=(0.3, 0.5, 0.6), std=(0.2, 0.1, 0.3), channel_order=order
    )
    x = pictures(400, size=24)
    x[x == 0] = (
        1  # so that nothing is at its mean by chance: 76.5, 127.5 and 153 are no such values
    )
    found = np.asarray(
        normalize(augmented("random_erasing:0.6", x, preprocess=preprocess), preprocess)
    )
    plain = np.asarray(normalize(x, preprocess))
    boxes = (np.abs(found) < 1e-6).all(-1)
    np.testing.assert_array_equal(found[~boxes], plain[~boxes])
    assert 190 < boxes.any((1, 2)).sum() < 290
    shares, ratios = [], []
    for box in boxes[boxes.any((1, 2))]:
        rows, columns = np.flatnonzero(box.any(1)), np.flatnonzero(box.any(0))
        height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
        assert box.sum() == height * width and height < 24 and width < 24
        shares.append(height * width / 24**2)
        ratios.append(height / width)
    # Sides are rounded to whole pixels.
    assert 0.01 < min(shares) < 0.06 and 0.28 < max(shares) < 0.36
    assert 0.2 < min(ratios) < 0.45 and 2.2 < max(ratios) < 4.5
    assert (
        boxes[:, 0].any() and boxes[:, -1].any() and boxes[:, :, 0].any() and boxes[:, :, -1].any()
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_colours_of_one_channel_are_none(channels):
    preprocess = ImagePreprocess(size=8, resize=8, mean=(0.5,) * channels, std=(0.5,) * channels)
    x = pictures(40, channels=channels)
    changed = augmented("grayscale:1", x, preprocess=preprocess) != x
    assert changed.any() == (channels == 3)
    assert augmented("rand_augment", x, preprocess=preprocess).shape == x.shape
    turned = augmented("color_jitter:0:0:0.9:0.5", x, preprocess=preprocess) != x
    assert turned.any() == (channels == 3)


def test_floats_of_a_resized_crop_are_rounded_first():
    x = pictures(6).astype(np.float32) + 0.25
    np.testing.assert_array_equal(augmented("color_jitter:0", x), pictures(6))


@pytest.mark.parametrize("text", ["rand_augment", "trivial_augment", "color_jitter", "grayscale"])
def test_other_numbers_of_channels_are_refused_where_colours_are_needed(text):
    four = ImagePreprocess(size=8, resize=8, mean=(0.5,) * 4, std=(0.5,) * 4)
    with pytest.raises(
        InputError, match=f"{text} is for pictures of 1 or 3 channels, the network takes 4"
    ):
        parse((text,), four)
    found = augmented("random_erasing:1", pictures(3, channels=4), preprocess=four)
    assert (found == 127.5).all(-1).any((1, 2)).all()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "rand_augment:0:9",
            "rand_augment:COUNT:MAGNITUDE with 1 <= COUNT <= 10, 0 <= MAGNITUDE <= 30",
        ),
        ("rand_augment:2:31", "expected rand_augment:COUNT:MAGNITUDE"),
        ("rand_augment:2:9.5", "expected rand_augment:COUNT:MAGNITUDE"),
        ("rand_augment:2:9:1", "expected rand_augment:COUNT:MAGNITUDE"),
        ("trivial_augment:3", "expected trivial_augment without a value"),
        ("random_erasing:1.5", "random_erasing:PROBABILITY with 0 <= PROBABILITY <= 1"),
        ("color_jitter:-1", "color_jitter:STRENGTH with 0 <= STRENGTH"),
        ("color_jitter:0.4:0.4", "or color_jitter:BRIGHTNESS:CONTRAST:SATURATION:HUE with 0 <="),
        ("color_jitter:0.4:0.4:0.4", "color_jitter:STRENGTH with 0 <= STRENGTH <= 10 or"),
        ("color_jitter:0.4:0.4:0.4:0.6", "0 <= HUE <= 0.5"),
        ("color_jitter:0.4:0.4:0.4:0.1:1", "expected color_jitter:STRENGTH"),
        ("grayscale:nan", "grayscale:PROBABILITY"),
        ("randaugment", "did you mean 'rand_augment'"),
    ],
)
def test_wrong_values_are_named(text, says):
    with pytest.raises(InputError) as caught:
        parse((text,), PREPROCESS)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["rand_augment:3:15", "trivial_augment", "color_jitter:0.5", "color_jitter:0.4:0.4:0.4:0.1"],
)
def test_all_branches_for_all_pictures_are_what_the_loop_on_the_cpu_computes(text):
    name, *values = text.split(":")
    image_map = AUGMENTATIONS[name].make(PREPROCESS, *map(float, values))
    images = jnp.asarray(pictures(60))
    keys = jax.random.split(jax.random.key(3), 60)
    looped = jax.jit(lambda: jax.lax.map(lambda item: image_map(*item), (keys, images)))()
    np.testing.assert_array_equal(jax.jit(jax.vmap(image_map))(keys, images), looped)
