import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tlx.config import build
from tlx.data.source import Splits, load_splits
from tlx.errors import InputError, InputFileNotFoundError


def read(root: Path | str, **config: Any) -> Splits:
    fields = {f"data.{key}": value for key, value in config.items()}
    return load_splits(build({"data.source": "folder", "data.root": str(root)}, fields).data, 0)


def picture(path: Path, color: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), color).save(path)
    return path


def filled(root: Path, classes: tuple[str, ...] = ("ant", "bee"), count: int = 5) -> Path:
    for name in classes:
        for index in range(count):
            picture(root / name / f"{index}.png", "red" if name == classes[0] else "blue")
    return root


def test_flat_layout(tmp_path: Path) -> None:
    splits = read(filled(tmp_path), test_fraction=0.4, val_fraction=0.34)
    assert splits.val is not None and splits.test is not None
    assert splits.train.class_names == ("ant", "bee")
    for part, count in ((splits.train, 2), (splits.val, 1), (splits.test, 2)):
        assert np.bincount(part.labels).tolist() == [count] * 2
        for index, label in enumerate(part.labels):
            expected = (255, 0, 0) if label == 0 else (0, 0, 255)
            assert part.image(index).getpixel((0, 0)) == expected
    assert splits.notes == (
        "no test split given: 4 examples (0.4 of the data) are held out as test, "
        "stratified by class, seed 0",
    )


def test_train_val_test_layout(tmp_path: Path) -> None:
    for split, count in (("Train", 4), ("validation", 3), ("test", 2)):
        filled(tmp_path / split, count=count)
    splits = read(tmp_path)
    assert splits.val is not None and splits.test is not None
    assert [len(part) for part in splits.given().values()] == [8, 6, 4]
    assert splits.notes == ()


def test_val_alone_is_the_held_out_test(tmp_path: Path) -> None:
    filled(tmp_path / "train")
    filled(tmp_path / "val", count=2)
    splits = read(tmp_path, val_fraction=0.2)
    assert splits.val is not None and splits.test is not None
    assert [len(part) for part in splits.given().values()] == [8, 2, 4]
    assert "val/" in splits.test.name(0) and "train/" in splits.val.name(0)
    assert any("'val' is the held-out test" in note for note in splits.notes)


def test_names_suffixes_subfolders_and_links(tmp_path: Path) -> None:
    root = tmp_path / "my pictures, 100%"
    picture(root / "Ätna & co" / "a b.JPG")
    picture(root / "Ätna & co" / "deep" / "er" / "x.webp")
    picture(root / "Ätna & co" / "z.bmp")
    other = picture(tmp_path / "elsewhere" / "y.png")
    (root / "zoo").symlink_to(other.parent)
    (root / "Ätna & co" / "loop").symlink_to(root / "Ätna & co")
    bare = picture(root / "zoo" / "bare.png")
    bare.rename(bare.with_name("no suffix"))
    splits = read(root, test_fraction=0.2)
    assert splits.train.class_names == ("zoo", "Ätna & co")
    both = [splits.train, splits.test]
    names = [part.name(i) for part in both if part for i in range(len(part))]
    relative = sorted(name.removeprefix(str(root) + "/") for name in names)
    assert relative == [
        "zoo/no suffix",
        "zoo/y.png",
        "Ätna & co/a b.JPG",
        "Ätna & co/deep/er/x.webp",
        "Ätna & co/z.bmp",
    ]


def test_what_is_passed_over_is_mentioned(tmp_path: Path) -> None:
    filled(tmp_path)
    for name in ("README.md", "ant/notes.txt", "ant/.DS_Store", "bee/Thumbs.db", "bee/zero"):
        (tmp_path / name).write_text("" if name == "bee/zero" else "x")
    picture(tmp_path / "ant" / "._0.png")
    splits = read(tmp_path, test_fraction=0.2)
    assert len(splits.train) == 8
    assert splits.notes[0].endswith(
        "1 entries beside the folders in use are not used, as README.md"
    )
    assert splits.notes[1].endswith("5 files are not pictures and not used, as ant/.DS_Store")


def test_unused_folders_beside_train_are_mentioned(tmp_path: Path) -> None:
    filled(tmp_path / "train")
    filled(tmp_path / "unlabelled", count=1)
    assert "as unlabelled" in read(tmp_path).notes[0]


@pytest.mark.parametrize("content", [b"", b"I am a text file", b"\xff\xd8\xff\xe0\0\x10JFIF"])
def test_broken_images_are_named(tmp_path: Path, content: bytes) -> None:
    bad = filled(tmp_path / "train") / "bee" / "bad one.jpg"
    filled(tmp_path / "test", count=1)
    bad.write_bytes(content)
    splits = read(tmp_path)
    names = [splits.train.name(index) for index in range(len(splits.train))]
    with pytest.raises(InputError, match=r"bee/bad one\.jpg: "):
        splits.train.image(names.index(str(bad)))

    kept = read(tmp_path, on_bad_image="skip")
    assert len(kept.skipped) == 1 and kept.skipped[0].startswith(f"{bad}: ")
    assert [kept.train.name(index) for index in range(len(kept.train))] == [
        name for name in names if name != str(bad)
    ]
    assert kept.train.labels.tolist() == [0] * 5 + [1] * 5
    for index in range(len(kept.train)):
        kept.train.image(index)


def test_skipping_a_whole_class_is_an_error(tmp_path: Path) -> None:
    filled(tmp_path)
    for path in (tmp_path / "ant").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match="every picture of class 'ant' in the train split"):
        read(tmp_path, on_bad_image="skip")


def test_broken_link_and_unsupported_format(tmp_path: Path) -> None:
    filled(tmp_path / "train", count=1)
    filled(tmp_path / "test", count=1)
    (tmp_path / "train" / "ant" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    picture(tmp_path / "train" / "ant" / "old.gif")
    train = read(tmp_path).train
    with pytest.raises(InputFileNotFoundError, match=r"gone\.jpg: no such file"):
        train.image(1)
    with pytest.raises(InputError, match=r"old\.gif: this is a GIF file; convert it"):
        train.image(2)


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(InputFileNotFoundError, match=r"expected a folder of pictures as DIR/"):
        read(tmp_path / "nowhere")
    with pytest.raises(InputFileNotFoundError, match=r"data\.root=''"):
        read("")
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(InputFileNotFoundError, match="is a file"):
        read(file)
    with pytest.raises(InputError, match="holds no folder"):
        read(tmp_path)
    inner = tmp_path / "download"
    filled(inner, ("ant",))
    with pytest.raises(InputError, match="holds one folder, 'ant'"):
        read(inner)
    filled(inner, ("bee",))
    with pytest.raises(InputError, match=f"is {inner} meant"):
        read(tmp_path)


def test_empty_class_folder_is_named(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / "cat").mkdir()
    with pytest.raises(InputError, match=r"/cat has no pictures$"):
        read(tmp_path)
    (tmp_path / "cat" / "list.txt").write_text("x")
    with pytest.raises(InputError, match=r"/cat has no pictures \(but 1 other files, as list\.txt"):
        read(tmp_path)


def test_class_folders_that_differ(tmp_path: Path) -> None:
    filled(tmp_path / "train", ("ant", "bee", "cat"))
    filled(tmp_path / "val", ("ant", "bee", "dog"))
    with pytest.raises(InputError, match="only val has dog; only train has cat"):
        read(tmp_path)


def test_split_folders_without_train_or_twice(tmp_path: Path) -> None:
    filled(tmp_path / "val")
    filled(tmp_path / "test")
    with pytest.raises(InputError, match="no folder 'train' beside test, val"):
        read(tmp_path)
    filled(tmp_path / "train")
    filled(tmp_path / "validation")
    with pytest.raises(InputError, match="both 'val' and 'validation' are val"):
        read(tmp_path)


def test_labels_per_class(tmp_path: Path) -> None:
    filled(tmp_path / "train")
    filled(tmp_path / "test", count=1)
    splits = read(tmp_path, labels_per_class=3)
    assert np.bincount(splits.train.labels).tolist() == [3, 3]
    assert splits.test is not None and len(splits.test) == 2
    with pytest.raises(InputError, match="class 'ant' has only 5 training examples"):
        read(tmp_path, labels_per_class=6)


def test_fingerprint_is_of_names_and_sizes_not_of_the_place(tmp_path: Path) -> None:
    one = read(filled(tmp_path / "one"))
    same = read(filled(tmp_path / "two"))
    assert one.train.fingerprint == same.train.fingerprint
    first = tmp_path / "two" / "ant" / "0.png"
    first.write_bytes(first.read_bytes() + b"\0")
    assert read(tmp_path / "two").train.fingerprint != one.train.fingerprint
    first.rename(first.with_name("00.png"))
    assert read(tmp_path / "two").train.fingerprint != one.train.fingerprint


def test_examples_can_be_pickled(tmp_path: Path) -> None:
    train = read(filled(tmp_path)).train
    copy = pickle.loads(pickle.dumps(train))
    assert copy.fingerprint == train.fingerprint and copy.image(0).size == (6, 4)


@pytest.mark.skipif(os.name != "posix", reason="file names are text elsewhere")
def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    filled(tmp_path / "train", count=1)
    filled(tmp_path / "test", count=1)
    plain = tmp_path / "train" / "ant" / "0.png"
    try:
        plain.rename(plain.with_name(os.fsdecode(b"\xff.png")))
    except OSError:
        pytest.skip("this file system refuses such names")
    train = read(tmp_path).train
    assert train.name(0).endswith("\\udcff.png") and train.name(0).encode()
    assert train.image(0).size == (6, 4) and train.fingerprint


@pytest.mark.shared
def test_hymenoptera(shared: Path) -> None:
    splits = read(shared / "data" / "hymenoptera")
    assert splits.test is not None and splits.train.class_names == ("ants", "bees")
    assert len(splits.train) == 244 and len(splits.test) == 153
    assert min(splits.train.image(0).size) == 288
