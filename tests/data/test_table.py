import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data_files import read, written
from tlx.config import build
from tlx.data.pipeline import evaluation_batches, make_splits
from tlx.data.source import Splits
from tlx.errors import InputError, InputFileNotFoundError
from tlx.weights.meta import ImagePreprocess


def pictures(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), "red" if "ant" in name else "blue").save(root / name, "PNG")
    return root


def ten(root: Path) -> Path:
    """Five ants and five bees, and a table of them, the two in turn."""
    pictures(root, *(f"{kind}{i}.png" for i in range(5) for kind in ("ant", "bee")))
    rows = [f"{kind}{i}.png,{kind}" for i in range(5) for kind in ("ant", "bee")]
    return written(root / "all.csv", "\n".join(["path,label", *rows]))


def labels_by_name(splits: Splits) -> dict[str, Any]:
    return {
        Path(part.name(i)).name: part.labels[i].tolist()
        for part in splits.given().values()
        for i in range(len(part))
    }


def test_one_table_is_split_as_a_folder_is(tmp_path: Path) -> None:
    splits = read(ten(tmp_path), test_fraction=0.4, val_fraction=0.34)
    assert splits.train and splits.val and splits.test
    assert splits.train.class_names == ("ant", "bee")
    for part, count in ((splits.train, 2), (splits.val, 1), (splits.test, 2)):
        assert part.labels.dtype == np.int32
        assert np.bincount(part.labels).tolist() == [count] * 2
        for index, label in enumerate(part.labels):
            expected = (255, 0, 0) if label == 0 else (0, 0, 255)
            picture = part.image(index)
            assert isinstance(picture, Image.Image) and picture.getpixel((0, 0)) == expected
    few = read(tmp_path / "all.csv", labels_per_class=2)
    assert few.train and np.bincount(few.train.labels).tolist() == [2, 2]


def test_a_table_of_a_folder_is_the_same_data(tmp_path: Path) -> None:
    names = [f"{kind}/{i}.png" for kind in ("ant", "bee") for i in range(5)]
    pictures(tmp_path / "data", *names)
    rows = "".join(f"{name},{name[:3]}\n" for name in names)
    table = written(tmp_path / "data.csv", "path,label\n" + rows)
    moved = written(tmp_path / "data" / "x.csv", "path,label\n" + rows)
    folder = read(tmp_path / "data", source="folder", val_fraction=0.2)
    same = read(moved, val_fraction=0.2)
    assert len(folder.given()) == 3
    for split, part in folder.given().items():
        assert same.given()[split].fingerprint == part.fingerprint
    with pytest.raises(InputFileNotFoundError, match=r"10 of 10 pictures cannot be opened"):
        read(table)


CATS = "a.png,cat\nb.png,dog\n"
FORMATS = {
    "plain.csv": "path,label\n" + CATS,
    "bom.csv": b"\xef\xbb\xbf" + ("path,label\r\n" + CATS.replace("\n", "\r\n")).encode(),
    "tabs.csv": "path\tlabel\n" + CATS.replace(",", "\t"),
    "semicolons.csv": "Filename;Class\n" + CATS.replace(",", ";"),
    "tabs.tsv": "image\ttarget\n" + CATS.replace(",", "\t"),
    "quoted.csv": '"path","label"\n"a.png","cat"\n"b.png","dog"',
    "spaces.csv": "path, label\na.png, cat \nb.png, dog\n",
    "more, columns.csv": 'id,"comma, in it",label,file_name\n1,"x, y",cat,a.png\n2,,dog,b.png\n',
    "blank lines.csv": "\npath,label\n\na.png,cat\n\nb.png,dog\n\n",
    "plain.jsonl": '{"path": "a.png", "label": "cat"}\n\n{"label": "dog", "path": "b.png"}\n',
    "lists.JSONL": '{"file": "a.png", "labels": ["cat"]}\r\n{"file": "b.png", "labels": ["dog"]}',
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats(tmp_path: Path, name: str) -> None:
    pictures(tmp_path, "a.png", "b.png")
    splits = read(written(tmp_path / name, FORMATS[name]), test_fraction=1, training=False)
    assert splits.class_names == ("cat", "dog")
    assert labels_by_name(splits) == {"a.png": 0, "b.png": 1}


def test_a_column_says_the_split(tmp_path: Path) -> None:
    pictures(tmp_path, *"abcdefg")
    rows = "a,1,train\nb,0,Training\nc,1,valid\nd,0,val\ne,0,validation\nf,1,test\ng,0,TEST\n"
    table = written(tmp_path / "x.csv", "path,label,split\n" + rows)
    splits = read(table)
    assert [len(part) for part in splits.given().values()] == [2, 3, 2] and splits.notes == ()
    assert labels_by_name(splits) == dict(zip("abcdefg", [1, 0, 1, 0, 0, 1, 0], strict=True))
    alone = read(table, training=False)
    assert list(alone.given()) == ["test"] and "evaluated: 2 rows" in alone.notes[0]

    table.write_text(table.read_text().replace(",test", ",val").replace(",TEST", ",val"))
    splits = read(table)
    assert [len(part) for part in splits.given().values()] == [2, 5]
    assert splits.val is None and "'val' is the held-out test" in splits.notes[0]


def test_only_the_held_out_pictures_need_to_be_there(tmp_path: Path) -> None:
    pictures(tmp_path, "a", "b")
    text = "path,label,split\na,cat,test\nb,dog,test\ngone,eel,train\n"
    table = written(tmp_path / "x.csv", text)
    splits = read(table, training=False)
    assert splits.class_names == ("cat", "dog", "eel") and list(splits.given()) == ["test"]
    with pytest.raises(InputFileNotFoundError, match=r"line 4: 'gone': no such file"):
        read(table)
    written(tmp_path / "x.csv", text.replace("gone,eel,train\n", ""))
    with pytest.raises(InputError, match=r"no row is of the split train, only of test"):
        read(table)


def test_a_folder_of_tables(tmp_path: Path) -> None:
    pictures(tmp_path / "data", *"abcdef")
    folder = tmp_path / "data"
    written(folder / "Train.csv", "path,label\na,cat\nb,dog\n")
    written(folder / "valid.tsv", "path\tlabel\nc\tcat\nd\tdog\n")
    written(folder / "test.jsonl", '{"path":"e","label":"dog"}\n{"path":"f","label":"dog"}\n')
    written(folder / "old.csv", "?")
    splits = read(folder)
    assert [len(part) for part in splits.given().values()] == [2, 2, 2]
    assert labels_by_name(splits) == {"a": 0, "b": 1, "c": 0, "d": 1, "e": 1, "f": 1}
    assert "1 tables are not used, as old.csv" in splits.notes[0]
    written(folder / "val.csv", "path,label\n")
    with pytest.raises(InputError, match=r"both 'val\.csv' and 'valid\.tsv' are val"):
        read(folder)
    (folder / "val.csv").unlink()
    written(folder / "test.jsonl", '{"path":"e","label":"dog","split":"val"}\n')
    with pytest.raises(InputError, match=r"line 1: the split is 'val' in a table of 'test'"):
        read(folder)
    written(folder / "test.jsonl", '{"path":"./a","label":"dog"}\n')
    with pytest.raises(InputError, match=r"test\.jsonl line 1: '\./a' is already in .*n\.csv line"):
        read(folder)


def test_absolute_paths_and_other_folders(tmp_path: Path) -> None:
    pictures(tmp_path / "else where", "ä.png")
    pictures(tmp_path / "tables" / "sub", "b.png")
    absolute = tmp_path / "else where" / "ä.png"
    table = written(tmp_path / "tables" / "x.csv", f"path,label\n{absolute},1\nsub/b.png,2\n")
    splits = read(table, test_fraction=1, training=False)
    assert splits.test
    assert [splits.test.name(i) for i in (0, 1)] == [
        str(absolute),
        str(tmp_path / "tables" / "sub" / "b.png"),
    ]
    copy = pickle.loads(pickle.dumps(splits.test))
    assert copy.fingerprint == splits.test.fingerprint and copy.image(0).size == (6, 4)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["10", "9", "-1"], ("-1", "9", "10")),
        (["10", "9", "x"], ("10", "9", "x")),
        (["01", "1", "2"], ("01", "1", "2")),
        (["1.0", "10", "9"], ("1.0", "10", "9")),
        (["9" * 5000, "1", "1e3"], ("1", "1e3", "9" * 5000)),
    ],
)
def test_names_that_are_whole_numbers_are_in_their_order(
    tmp_path: Path, labels: list[str], expected: tuple[str, ...]
) -> None:
    pictures(tmp_path, *"abc")
    rows = "".join(f"{p},{n}\n" for p, n in zip("abc", labels, strict=True))
    splits = read(
        written(tmp_path / "x.csv", "path,label\n" + rows), test_fraction=1, training=False
    )
    assert splits.class_names == expected


def test_numbers_in_json_are_names_too(tmp_path: Path) -> None:
    pictures(tmp_path, *"ab")
    lines = '{"path":"a","label":10}\n{"path":"b","label":[9]}\n'
    splits = read(written(tmp_path / "x.jsonl", lines), test_fraction=1, training=False)
    assert splits.class_names == ("9", "10")


LONG = "x" * 10_000
WRONG = {
    "empty": (b"", r"x\.csv is empty"),
    "blank": (b"\n \n", r"x\.csv is empty"),
    "header alone": (b"path,label\n", r"x\.csv holds no rows"),
    "no header": (b"a,cat\nb,dog\n", r"line 1: no column for the path .*columns are 'a', 'cat'"),
    "no label": (b"\npath,species\na,cat\n", r"line 2: no column for the label .* 'path', 'speci"),
    "two paths": (b"path,image,label\na,a,cat\n", r"line 1: columns 'path' and 'image' could both"),
    "twice": (b"path,label,label\na,c,c\n", r"line 1: columns 'label' and 'label' could both"),
    "short row": (b"path,label\na,cat\nb\n", r"line 3: 1 fields, but the header has 2"),
    "long row": (b"path,label\na,cat,x\n", r"line 2: 3 fields, but the header has 2"),
    "open quote": (b'path,label\na,cat\n"b,dog\nc,d\n', r"line 3: unexpected end of data"),
    "text after quote": (b'path,label\n"a"b,cat\n', r"line 2: ',' expected after '\"'"),
    "row after lines": (b'path,label\n"a\nb",cat\nc\n', r"line 4: 1 fields"),
    "empty path": (b"path,label\n ,cat\n", r"line 2: the path is empty"),
    "empty label": (b"path,label\na,cat\nb, \n", r"line 3: 'b' has no label"),
    "several": (b"path,label\na,cat\nb,cat|dog\n", r"line 3: 2 labels \('cat', 'dog'\), but"),
    "empty among": (b"path,label\na,cat||dog\n", r"line 2: one of the labels is empty"),
    "label twice": (b"path,label\na,cat|dog|cat\n", r"line 2: label 'cat' is there twice"),
    "control": (b"path,label\na,c\x07t\n", r"line 2: label 'c\\x07t' has a character that is"),
    "duplicate": (b"path,label\na,cat\nb,dog\na,cat\n", r"line 4: 'a' is already in line 2"),
    "same file": (b"path,label\na,cat\nq/../a,dog\n", r"line 3: 'q/../a' is already in line 2"),
    "NUL": (b"path,label\na,cat\nb,d\0g\n", r"line 3: a NUL byte"),
    "latin-1": (b"path,label\na,cat\nb,\xe9\n", r"line 3: byte 0xe9 is not UTF-8"),
    "UTF-16": ("path,label\na,cat\n".encode("utf-16"), r"x\.csv is UTF-16; save it as UTF-8"),
    "split": (b"path,label,split\na,c,trian\n", r"line 2: the split is 'trian'.*mean 'train'\?"),
    "no split": (b"path,label,split\na,c,\n", r"line 2: the split is '', expected train"),
    "long path": (f"path,label\n{LONG},c\n".encode(), r"line 2: 'x{80}\.\.\.': File name too long"),
    "long field": (f"path,label\n{'x' * 200_000},c\n".encode(), r"line 2: field larger than"),
    "directory": (b"path,label\na,cat\nfolder,dog\n", r"line 3: 'folder': a folder, not a pict"),
    "pipe": (b"path,label\na,cat\npipe,dog\n", r"line 3: 'pipe': not a file"),
    "missing": (b"path,label\na,cat\ny,d\nz/a,d\n", r"line 3: 'y': no such file.*; 2 of 3 pict"),
    "one class": (b"path,label\na,cat\nb,cat\n", r"the data has 1 class\(es\) \['cat'\]"),
}


def one_line(error: Exception) -> bool:
    return "\n" not in str(error) and len(str(error)) < 500


@pytest.mark.parametrize("case", WRONG)
def test_wrong_tables(tmp_path: Path, case: str) -> None:
    content, message = WRONG[case]
    pictures(tmp_path, *"ab")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=message) as caught:
        read(written(tmp_path / "x.csv", content))
    assert one_line(caught.value)
    assert isinstance(caught.value, InputFileNotFoundError) == (case == "missing")


WRONG_JSON = {
    "no JSON": ('{"path": "a"', r"line 1: not one JSON object"),
    "an array": ('["a", "cat"]', r"line 1: expected an object"),
    "a whole file": ('[{"path": "a",\n"label": "cat"}]', r"line 1: not one JSON object"),
    "deep": ("[" * 100_000, r"line 1: not one JSON object"),
    "key twice": ('{"path": "a", "label": "x", "label": "y"}', r"a key is there twice"),
    "path": ('{"path": 3, "label": "x"}', r"line 1: the path is '3', expected a string"),
    "true": ('{"path": "a", "label": true}', r"line 1: label 'true' is neither a string nor"),
    "null": ('{"path": "a", "label": null}', r"line 1: label 'null' is neither"),
    "float": ('{"path": "a", "label": 1.5}', r"line 1: label '1\.5' is neither"),
    "nested": ('{"path": "a", "label": [["x"]]}', r"label '\[\"x\"\]' is neither"),
    "none": ('{"path": "a", "label": []}', r"line 1: 'a' has no label"),
    "several": ('{"path": "a", "labels": ["x", "y"]}', r"line 1: 2 labels \('x', 'y'\)"),
    "other keys": (
        '{"path": "a", "label": "x"}\n{"path": "b", "label": "x", "split": "test"}',
        r"line 2 has 'path', 'label', 'split', but line 1 has 'path', 'label'",
    ),
    "keys gone": ('{"path": "a", "label": "x"}\n{"path": "b"}', r"line 2: no column for the label"),
    "NUL": ('{"path": "a\\u0000", "label": "x"}', r"line 1: 'a\\x00': not a file name"),
    "half a pair": ('{"path": "\\ud800", "label": "x"}', r"line 1: '\\ud800': not a file name"),
    "label half": ('{"path": "a", "label": "\\ud800"}', r"line 1: label '\\ud800' has a charac"),
    "digits": ('{"path": "a", "label": ' + "9" * 5000 + "}", r"line 1: not one JSON object"),
}


@pytest.mark.parametrize("case", WRONG_JSON)
def test_wrong_lines_of_json(tmp_path: Path, case: str) -> None:
    content, message = WRONG_JSON[case]
    pictures(tmp_path, *"ab")
    with pytest.raises(InputError, match=message) as caught:
        read(written(tmp_path / "x.jsonl", content))
    assert one_line(caught.value)


def test_a_label_in_json_is_not_taken_apart(tmp_path: Path) -> None:
    pictures(tmp_path, *"ab")
    lines = '{"path":"a","label":"cat|dog"}\n{"path":"b","label":"x"}\n'
    splits = read(written(tmp_path / "x.jsonl", lines), test_fraction=1, training=False)
    assert splits.class_names == ("cat|dog", "x")


def test_wrong_roots(tmp_path: Path) -> None:
    for root in ("", tmp_path / "nowhere.csv"):
        with pytest.raises(InputFileNotFoundError, match=r"expected a \.csv, \.tsv or \.jsonl"):
            read(root)
    with pytest.raises(InputFileNotFoundError, match=r"holds no train\.csv"):
        read(tmp_path)
    written(tmp_path / "all.csv", "path,label\n")
    with pytest.raises(InputFileNotFoundError, match=r"; is .*/all\.csv meant\?"):
        read(tmp_path)
    with pytest.raises(InputError, match=r"x\.parquet'.* is no table; expected a \.csv"):
        read(written(tmp_path / "x.parquet", "PAR1"))


@pytest.mark.parametrize("content", [b"", b"I am a text file", b"GIF89a", None])
def test_broken_and_missing_pictures_can_be_skipped(tmp_path: Path, content: bytes | None) -> None:
    table = ten(tmp_path)
    bad = tmp_path / "bee3.png"
    if content is None:
        bad.unlink()
    else:
        written(bad, content)
        splits = read(table, test_fraction=1, training=False)
        assert splits.test
        with pytest.raises(InputError, match=r"bee3\.png: "):
            splits.test.image(7)
    kept = read(table, on_bad_image="skip", test_fraction=0.4)
    assert len(kept.skipped) == 1 and kept.skipped[0].startswith(f"{bad}: ")
    assert sorted(labels_by_name(kept).values()) == [0] * 5 + [1] * 4


def test_what_is_no_missing_file_is_not_skipped(tmp_path: Path) -> None:
    table = written(tmp_path / "x.csv", f"path,label\n{tmp_path},x\n")
    with pytest.raises(InputError, match=r"line 2: .* a folder, not a picture"):
        read(table, on_bad_image="skip")


def test_a_class_that_is_only_in_test_is_mentioned(tmp_path: Path) -> None:
    pictures(tmp_path, *"abc")
    text = "path,label,split\na,x,train\nb,y,train\nc,z,test\n"
    splits = read(written(tmp_path / "x.csv", text))
    assert splits.class_names == ("x", "y", "z")
    assert splits.notes == ("1 class(es) have no training example: 'z'",)


def test_fingerprint_is_of_the_rows_and_sizes(tmp_path: Path) -> None:
    def fingerprint() -> str:
        found = read(tmp_path / "all.csv", test_fraction=1, training=False).test
        assert found
        return found.fingerprint

    table = ten(tmp_path)
    prints = [fingerprint()]
    table.write_text("\n" + table.read_text())
    assert fingerprint() == prints[0]
    table.write_text(table.read_text().replace("ant0.png,ant", "ant0.png,bee"))
    prints.append(fingerprint())
    (tmp_path / "bee0.png").write_bytes((tmp_path / "bee0.png").read_bytes() + b"\0")
    prints.append(fingerprint())
    table.write_text(table.read_text().replace("bee0.png", "./bee0.png"))
    prints.append(fingerprint())
    assert len(set(prints)) == 4


SEVERAL = "path,labels\na,cat|dog\nb,\nc,dog\nd,cat | eel\n"


def several(root: Path) -> Path:
    pictures(root, *"abcd")
    return written(root / "several.csv", SEVERAL)


def test_several_labels(tmp_path: Path) -> None:
    expected = {"a": [1, 1, 0], "b": [0, 0, 0], "c": [0, 1, 0], "d": [1, 0, 1]}
    lists = {"a": ["cat", "dog"], "b": [], "c": "dog", "d": ["cat", "eel"]}
    lines = "\n".join(json.dumps({"path": p, "labels": v}) for p, v in lists.items())
    for table in (several(tmp_path), written(tmp_path / "x.jsonl", lines)):
        splits = read(table, targets="multi_hot", test_fraction=1, training=False)
        assert splits.class_names == ("cat", "dog", "eel") and splits.test
        assert splits.test.labels.dtype == np.uint8
        assert labels_by_name(splits) == expected
        assert splits.notes[0] == "1 of 4 pictures have no label"
    preprocess = ImagePreprocess(size=4, resize=4)
    split = make_splits({"test": (splits.test, 4)}, preprocess, build().data)["test"]
    (batch,) = evaluation_batches(split, batch_size=6)
    assert batch["targets"].dtype == np.float32
    np.testing.assert_array_equal(batch["targets"][:4], [*expected.values()])
    assert not batch["targets"][4:].any() and batch["weight"].tolist() == [1, 1, 1, 1, 0, 0]


def test_several_labels_that_are_one_each_are_mentioned(tmp_path: Path) -> None:
    splits = read(ten(tmp_path), targets="multi_hot")
    assert splits.notes[0].startswith("no picture has several labels (they are written cat|dog)")
    assert splits.train and splits.train.labels.sum(axis=1).tolist() == [1] * 8


def test_one_class_will_do_where_there_may_be_none(tmp_path: Path) -> None:
    pictures(tmp_path, *"abcd")
    table = written(tmp_path / "x.csv", "path,labels\na,cat\nb,\nc,cat\nd,\n")
    splits = read(table, targets="multi_hot", test_fraction=0.5)
    assert splits.train and splits.test and splits.class_names == ("cat",)
    assert splits.train.labels.tolist() in ([[1], [0]], [[0], [1]])
    table.write_text("path,labels\na,\nb,\n")
    with pytest.raises(InputError, match="at least 1 is needed"):
        read(table, targets="multi_hot")


def test_several_labels_of_a_picture_stand_in_one_row(tmp_path: Path) -> None:
    pictures(tmp_path, "a")
    table = written(tmp_path / "x.csv", "path,label\na,cat\na,dog\n")
    with pytest.raises(InputError, match=r"line 3: 'a' is already in line 2; .* cat\|dog"):
        read(table, targets="multi_hot")


def test_splits_of_several_labels(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(40)]
    pictures(tmp_path, *names)
    rows = [
        f"{name},{'|'.join(k for k, n in (('x', 2), ('y', 3), ('z', 5)) if i % n == 0)}"
        for i, name in enumerate(names)
    ]
    table = written(tmp_path / "x.csv", "\n".join(["path,labels", *rows]))
    splits = read(table, targets="multi_hot", test_fraction=0.25, val_fraction=0.2)
    assert splits.train and splits.val and splits.test
    assert [len(part) for part in splits.given().values()] == [24, 6, 10]
    totals = np.array([20, 14, 8])
    for part, share in ((splits.train, 0.6), (splits.val, 0.15), (splits.test, 0.25)):
        assert (np.abs(part.labels.sum(axis=0) - share * totals) <= 1).all()
    few = read(table, targets="multi_hot", labels_per_class=4)
    assert few.train and (few.train.labels.sum(axis=0) >= 4).all()
    assert 4 <= len(few.train) <= 12


def test_skipping_every_picture_of_a_label_is_an_error(tmp_path: Path) -> None:
    table = several(tmp_path)
    written(tmp_path / "d", b"")
    with pytest.raises(InputError, match=r"every picture of class 'eel' in the train split"):
        read(table, targets="multi_hot", on_bad_image="skip")


@pytest.mark.parametrize("source", ["folder", "digits", "npz", "tfds:mnist"])
def test_sources_of_one_label_say_what_to_use_for_several(tmp_path: Path, source: str) -> None:
    with pytest.raises(
        InputError, match=r"use data\.source=table .* path,labels and rows as .*cat\|dog"
    ):
        read(tmp_path, targets="multi_hot", source=source)
