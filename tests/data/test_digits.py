import numpy as np

from tlx.config import build
from tlx.data.source import load_splits


def test_digits() -> None:
    splits = load_splits(build({"data.source": "digits"}).data, 0)
    assert splits.test is not None and splits.val is None
    assert len(splits.train) + len(splits.test) == 1797 and len(splits.test) == 359
    assert any("359 examples (0.2 of the data)" in note for note in splits.notes)
    assert splits.train.class_names == tuple("0123456789")
    assert splits.train.labels.dtype == np.int32


def test_pixels_span_0_to_255() -> None:
    from sklearn.datasets import load_digits

    splits = load_splits(build({"data.source": "digits", "data.labels_per_class": 10}).data, 1)
    image = splits.train.image(0)
    assert image.mode == "RGB" and image.size == (8, 8)
    original = load_digits().images[int(splits.train.name(0)[len("digits[") : -1])]
    expected = np.floor(original * 255 / 16 + 0.5)[..., None].repeat(3, -1)
    np.testing.assert_array_equal(np.asarray(image), expected)
    assert expected.max() == 255
