from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tlx.config import build
from tlx.data.source import Splits, load_splits
from tlx.errors import InputError, InputFileNotFoundError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 5, 4, 3), np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def read(path: Path, **config: Any) -> Splits:
    fields = {f"data.{key}": value for key, value in config.items()}
    return load_splits(build({"data.source": "npz", "data.root": str(path)}, fields).data, 0)


def written(folder: Path, **arrays: Any) -> Path:
    path = folder / "some data.npz"
    np.savez(path, **arrays)
    return path


def test_reads_all_splits(tmp_path: Path) -> None:
    names = np.array(["ape", "bear", "Ärger"])
    path = written(
        tmp_path,
        train_images=IMAGES,
        train_labels=LABELS[:, None].astype(np.uint8),
        val_images=IMAGES[:3, ..., :1],
        val_labels=LABELS[:3],
        test_images=IMAGES[:3, ..., 0],
        test_labels=LABELS[:3],
        class_names=names,
        extra=LABELS,
    )
    splits = read(path)
    assert splits.val is not None and splits.test is not None
    assert splits.train.class_names == tuple(names)
    assert splits.train.labels.tolist() == LABELS.tolist()
    np.testing.assert_array_equal(np.asarray(splits.train.image(4)), IMAGES[4])
    for part in (splits.val, splits.test):
        np.testing.assert_array_equal(
            np.asarray(part.image(1)), IMAGES[1, ..., :1].repeat(3, axis=-1)
        )
    assert splits.test.name(2) == "test[2]"
    assert splits.notes == ("some data.npz: arrays not used: extra",)


def test_without_names_classes_are_numbers(tmp_path: Path) -> None:
    path = written(tmp_path, train_images=IMAGES, train_labels=LABELS)
    splits = read(path, test_fraction=0.5)
    assert splits.train.class_names == ("0", "1", "2")
    assert splits.test is not None and np.bincount(splits.test.labels).tolist() == [1, 1, 1]


GOOD = {"train_images": IMAGES, "train_labels": LABELS}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_images": None}, "no array 'train_images'"),
        ({"train_labels": None}, "no array 'train_labels'"),
        ({"test_images": IMAGES}, "no array 'test_labels'"),
        ({"train_images": IMAGES / 255}, "train_images is float64"),
        ({"train_images": IMAGES.transpose(0, 3, 1, 2)}, r"\[6, 3, 5, 4\]"),
        ({"train_images": IMAGES[:, :0]}, r"\[6, 0, 4, 3\]"),
        ({"train_images": IMAGES[:5]}, "5 train_images but 6 train_labels"),
        ({"train_labels": LABELS.astype(float)}, "train_labels is float64"),
        ({"train_labels": LABELS - 1}, r"train_labels\[0\] is -1, outside 0\.\.1"),
        (
            {"test_images": IMAGES, "test_labels": LABELS + 2, "class_names": list("abc")},
            r"test_labels\[1\] is 3, outside 0\.\.2",
        ),
        (
            {
                "train_labels": LABELS.astype(np.uint64) + np.uint64(2**32),
                "class_names": ["a", "b"],
            },
            "4294967296",
        ),
        ({"train_labels": LABELS * 10**9}, "a label is 2000000000"),
        ({"class_names": np.array(["a", "b", "a"])}, "a name twice"),
        ({"class_names": np.arange(3)}, "class_names is int64"),
        ({"train_labels": np.zeros(6, int)}, "1 class"),
    ],
)
def test_wrong_arrays(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    arrays = {key: value for key, value in (GOOD | change).items() if value is not None}
    with pytest.raises(InputError, match=message):
        read(written(tmp_path, **arrays))


def test_pickles_are_not_loaded(tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (marker,)

    path = tmp_path / "evil.npz"
    np.savez(path, train_images=np.array([Evil()], object), train_labels=LABELS)
    with pytest.raises(InputError, match="only plain arrays are read"):
        read(path)
    path.write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(InputError, match="only plain arrays are read"):
        read(path)
    assert not marker.exists()


def test_broken_files(tmp_path: Path) -> None:
    path = written(tmp_path, **GOOD)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"cannot be read as \.npz"):
        read(path)
    damaged = bytearray(content)
    damaged[200] ^= 1
    path.write_bytes(bytes(damaged))
    with pytest.raises(InputError, match=r"cannot be read as \.npz"):
        read(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"cannot be read as \.npz"):
        read(path)
    np.save(tmp_path / "one.npy", IMAGES)
    with pytest.raises(InputError, match="one unnamed array"):
        read(tmp_path / "one.npy")
    with pytest.raises(InputFileNotFoundError, match="nowhere"):
        read(tmp_path / "nowhere.npz")


def test_fingerprint_sees_pixels_labels_and_names_but_not_the_path(tmp_path: Path) -> None:
    def fingerprint(folder: str, **change: Any) -> str:
        (tmp_path / folder).mkdir(exist_ok=True)
        return read(written(tmp_path / folder, **(GOOD | change))).train.fingerprint

    assert fingerprint("a") == fingerprint("b")
    other = IMAGES.copy()
    other[0, 0, 0, 0] ^= 1
    changes = [{}, {"train_images": other}, {"class_names": list("xyz")}]
    assert len({fingerprint("a", **change) for change in changes}) == 3
