import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from tlx.errors import InputError

FILE = Path(__file__).parents[2] / "experiments" / "digits" / "glyphs.py"
_spec = importlib.util.spec_from_file_location("experiments_digits_glyphs", FILE)
glyphs = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = glyphs
_spec.loader.exec_module(glyphs)


@pytest.fixture(scope="module")
def rendered():
    return glyphs.render(20, 3)


def test_shapes_types_and_values(rendered):
    images, labels, names = rendered
    assert images.shape == (20 * len(names), 8, 8) and images.dtype == np.uint8
    assert labels.dtype == np.int32
    assert np.array_equal(labels, np.repeat(np.arange(len(names)), 20))
    levels = np.round(np.arange(17) * 255 / 16)
    assert set(np.unique(images)) == set(levels)


def test_classes_partition_the_characters():
    characters = "".join(glyphs.CLASSES)
    assert len(characters) == len(set(characters)) == 62
    assert characters.isalnum() and characters.isascii()
    assert [name[0] for name in glyphs.CLASSES[:10]] == list("0123456789")


def test_same_seed_same_examples_other_seed_others(rendered):
    again = glyphs.render(20, 3)
    other = glyphs.render(20, 4)
    assert np.array_equal(rendered[0], again[0])
    assert (rendered[0] != other[0]).any((1, 2)).mean() > 0.99


def test_ink_is_what_the_style_asks_for(rendered):
    ink = rendered[0].reshape(len(rendered[0]), -1).mean(1) / 255
    mean, deviation = glyphs.Style().ink
    assert abs(ink.mean() - mean) < 0.01
    assert abs(ink.std() - deviation) < 0.01


def test_ink_fills_the_height_and_stays_within_the_width():
    plain = glyphs.Style(speckle=0.0, roughness=0.0, shift=0.0, width=16.0, ink=(0.2, 0.0))
    images, _, _ = glyphs.render(10, 0, style=plain)
    assert (images[:, 0].max(1) > 0).mean() > 0.97 and (images[:, -1].max(1) > 0).mean() > 0.97
    assert not images[:, :, 0].any() and not images[:, :, -1].any()


def test_no_font_is_both_trained_on_and_held_out():
    assert not set(glyphs.TRAIN_FONTS) & set(glyphs.HELD_OUT_FONTS)


@pytest.mark.parametrize("fonts", [glyphs.TRAIN_FONTS, glyphs.HELD_OUT_FONTS])
def test_every_font_has_every_character(fonts):
    lines, owners = glyphs.centre_lines(fonts)
    sizes = [len(name) * len(fonts) for name in glyphs.CLASSES]
    assert np.array_equal(np.bincount(owners), sizes)
    assert np.isfinite(lines).all()
    assert np.allclose(np.ptp(lines[..., 1], axis=1), 1, atol=1e-6)


def test_classes_can_be_told_apart_across_fonts():
    """The nearest mean of the training fonts names most undistorted held-out characters."""
    plain = glyphs.Style(0.0, 0.0, 0.0, 0.0, shift=0.0, gap=0.0, roughness=0.0, speckle=0.0)
    images, labels, names = glyphs.render(40, 0, style=plain)
    test_images, test_labels, _ = glyphs.render(20, 0, held_out=True, style=plain)
    means = np.stack([images[labels == k].mean(0).ravel() for k in range(len(names))])
    distances = ((test_images.reshape(-1, 1, 64) - means) ** 2).sum(2)
    assert (distances.argmin(1) == test_labels).mean() > 0.6  # chance is 0.02


def test_thinning_leaves_lines_of_one_pixel_and_keeps_the_topology():
    shapes = np.zeros((2, 20, 30), bool)
    shapes[0, 6:13, 4:26] = True
    shapes[1, 3:17, 5:25] = True
    shapes[1, 8:12, 10:20] = False
    bar, ring = glyphs.thin(shapes)
    assert bar.sum(0).max() == 1 and bar.sum() >= 14
    assert set(np.nonzero(bar)[0]) <= {8, 9, 10}
    inside = np.zeros_like(ring)
    inside[10, 15] = True
    for _ in range(ring.size):
        grown = inside.copy()
        grown[1:] |= inside[:-1]
        grown[:-1] |= inside[1:]
        grown[:, 1:] |= inside[:, :-1]
        grown[:, :-1] |= inside[:, 1:]
        grown &= ~ring
        if np.array_equal(grown, inside):
            break
        inside = grown
    assert not inside[0].any() and not inside[:, 0].any()  # the ring is still closed


def test_reduction_counts_the_pixels_of_each_block():
    bitmap = np.zeros((1, 32, 32), bool)
    bitmap[0, 4:8, 8:12] = True
    bitmap[0, 31, 28:31] = True
    expected = np.zeros((1, 8, 8), np.uint8)
    expected[0, 1, 2], expected[0, 7, 7] = 255, 48  # 3 * 255 / 16 = 47.8
    assert np.array_equal(glyphs._reduce(bitmap), expected)


@pytest.mark.parametrize(("count", "seed"), [(0, 0), (-1, 0), (1, -1)])
def test_bad_arguments_are_input_errors(count, seed):
    with pytest.raises(InputError, match=str(min(count, seed))):
        glyphs.render(count, seed)


def test_command_writes_the_arrays_and_nothing_else(tmp_path, capsys):
    out = tmp_path / "new" / "glyphs.npz"
    glyphs.main([*("--out", str(out)), *("--train-per-class", "3", "--test-per-class", "2")])
    assert list(out.parent.iterdir()) == [out]
    assert "144 + 96" in capsys.readouterr().out
    with np.load(out) as file:
        assert np.array_equal(file["train_images"], glyphs.render(3, 0)[0])
        assert np.array_equal(file["test_images"], glyphs.render(2, 0, held_out=True)[0])
        assert file["train_labels"].shape == (144,) and file["test_labels"].shape == (96,)
        assert file["class_names"].tolist() == list(glyphs.CLASSES)


def test_a_failed_command_leaves_no_file(tmp_path):
    with pytest.raises(InputError):
        glyphs.main(["--out", str(tmp_path / "glyphs.npz"), "--train-per-class", "0"])
    assert not list(tmp_path.iterdir())
