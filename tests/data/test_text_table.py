import csv
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import data_files
from tests.data_files import written
from tlx.config import build
from tlx.data.source import load_splits
from tlx.errors import InputError, InputFileNotFoundError

read = functools.partial(data_files.read, modality="text")


def all_of(table: Path, **config: Any) -> Any:
    """Returns all examples of a table."""
    return read(table, test_fraction=1, training=False, **config).test


def texts(examples: Any) -> list[tuple[str, ...]]:
    return [examples.text(index) for index in range(len(examples))]


FINE = [("a fine film",), ('she said "no", twice',), ("two\nlines",)]
FORMATS = {
    "plain.csv": 'text,label\na fine film,pos\n"she said ""no"", twice",neg\n"two\nlines",pos\n',
    "bom.csv": b"\xef\xbb\xbf"
    + b'text,label\r\na fine film,pos\r\n"she said ""no"", twice",neg\r\n"two\nlines",pos\r\n',
    "tabs.csv": 'label\ttext\npos\ta fine film\nneg\t"she said ""no"", twice"\npos\t"two\nlines"\n',
    "semicolons.csv": 'Review;Sentiment\na fine film;pos\n"she said ""no"", twice";neg\n"two\nlines";pos',
    "quoted.tsv": 'text\tlabel\na fine film\tpos\n"she said ""no"", twice"\tneg\n"two\nlines"\tpos\n',
    "plain.jsonl": "\n".join(
        json.dumps({"id": i, "sentence": text, "label": label})
        for i, ((text,), label) in enumerate(zip(FINE, ("pos", "neg", "pos"), strict=True))
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats(tmp_path: Path, name: str) -> None:
    found = all_of(written(tmp_path / name, FORMATS[name]))
    assert texts(found) == FINE
    assert found.class_names == ("neg", "pos")
    assert found.labels.dtype == np.int32 and found.labels.tolist() == [1, 0, 1]
    assert found.name(2) == f"{name} line {3 if name == 'plain.jsonl' else 4}"


def test_lines_are_those_where_rows_begin(tmp_path: Path) -> None:
    table = written(tmp_path / "x.csv", '\ntext,label\n"a\n\nb",0\n\nc,1\n')
    assert [all_of(table).name(i) for i in (0, 1)] == ["x.csv line 3", "x.csv line 7"]


COLUMNS = {
    # header: the columns of the text and, of a pair, of the second one
    "sentence,label": "sentence",
    "idx,label,tweet": "tweet",
    "index,sentence1,sentence2,label": "sentence1 sentence2",  # MRPC, RTE, WNLI, STS-B
    "index,question,sentence,label": "question sentence",  # QNLI
    "premise,hypothesis,label,idx": "premise hypothesis",  # MNLI
    "id,question1,question2,is_duplicate": "question1 question2",  # QQP
    "Quality,#1 ID,#2 ID,#1 String,#2 String": "#1 String,#2 String",
    "question,passage,label": "question passage",  # BoolQ
    "Text,Text Pair,Label": "Text,Text Pair",
    "sentence2,gold_label,sentence1": "sentence1 sentence2",  # SNLI
    "premise,label": "premise",
    "question,answer,class": "question answer",
}


@pytest.mark.parametrize("header", COLUMNS)
def test_columns_of_usual_names(tmp_path: Path, header: str) -> None:
    columns = header.split(",")
    split = "," if "," in COLUMNS[header] else " "
    expected = tuple(COLUMNS[header].split(split))
    cells = [f"the {column}" for column in columns]
    named = {"Quality", "is_duplicate", "gold_label", "class"}
    place = next(i for i, c in enumerate(columns) if c in named or c.lower() == "label")
    rows = [",".join([*cells[:place], label, *cells[place + 1 :]]) for label in "10"]
    table = written(tmp_path / "x.csv", "\n".join([header, *rows]))
    found = read(table, test_fraction=1, training=False)
    assert texts(found.test) == [tuple(f"the {column}" for column in expected)] * 2
    assert found.class_names == ("0", "1")
    pairs = [note for note in found.notes if "is a pair of texts" in note]
    assert len(pairs) == (len(expected) == 2)


def test_columns_that_the_config_names(tmp_path: Path) -> None:
    table = written(tmp_path / "x.csv", "text,other,label,y\na,b,c,1\nd,e,f,0\n")
    assert texts(all_of(table)) == [("a",), ("d",)]
    found = all_of(table, text_column="Other", label_column="y")
    assert texts(found) == [("b",), ("e",)] and found.labels.tolist() == [1, 0]
    assert texts(all_of(table, pair_column="other")) == [("a", "b"), ("d", "e")]
    assert texts(all_of(table, text_column="other", pair_column="label", label_column="y")) == [
        ("b", "c"),
        ("e", "f"),
    ]
    pair = written(tmp_path / "pair.csv", "question,sentence,label\na,b,1\nd,e,0\n")
    assert texts(all_of(pair, text_column="question")) == [("a",), ("d",)]
    for config, message in (
        (
            {"text_column": "texts"},
            r"line 1: config\.data\.text_column is 'texts', but .*mean 'text",
        ),
        ({"label_column": "z"}, r"label_column is 'z', but the columns are 'text', 'other', 'lab"),
        ({"text_column": "y", "label_column": "y"}, r"column 'y' is both the text and the label"),
    ):
        with pytest.raises(InputError, match=message):
            all_of(table, **config)


def test_a_folder_of_tables_with_dev(tmp_path: Path) -> None:
    written(tmp_path / "train.tsv", "text\tlabel\na\tpos\nb\tneg\na\tpos\n")
    written(tmp_path / "dev.csv", "label,text\nneg,a\n")
    written(tmp_path / "test.jsonl", '{"text": "c", "label": "neg"}\n')
    written(tmp_path / "old.csv", "?")
    splits = read(tmp_path)
    assert splits.train and splits.val and splits.test
    assert texts(splits.train) == [("a",), ("b",), ("a",)]
    assert [part.labels.tolist() for part in splits.given().values()] == [[1, 0, 1], [0], [0]]
    assert splits.val.name(0) == "dev.csv line 2"
    assert any("1 tables are not used, as old.csv" in note for note in splits.notes)
    alone = read(tmp_path, training=False)
    assert list(alone.given()) == ["test"] and alone.class_names == ("neg", "pos")
    written(tmp_path / "test.jsonl", '{"text": "c", "label": "neutral"}\n')
    message = r"test\.jsonl line 1: label 'neutral' is none of training's, which are 'neg', 'pos'"
    for training in (True, False):
        with pytest.raises(InputError, match=message):
            read(tmp_path, training=training)
    written(tmp_path / "test.jsonl", '{"text": "c", "label": -1}\n')
    with pytest.raises(InputError, match=r"label '-1' .*labels that were withheld"):
        read(tmp_path)
    written(tmp_path / "test.jsonl", '{"text": "c", "text2": "d", "label": "neg"}\n')
    with pytest.raises(InputError, match=r"test\.jsonl has pairs of texts, train\.tsv has not"):
        read(tmp_path)


def test_a_column_says_the_split(tmp_path: Path) -> None:
    rows = "a,1,train\nb,0,Training\nc,1,dev\nd,0,val\ne,1,test\n"
    table = written(tmp_path / "x.csv", "text,label,split\n" + rows)
    splits = read(table)
    assert [len(part) for part in splits.given().values()] == [2, 2, 1]
    assert splits.test and splits.test.name(0) == "x.csv line 6"
    table.write_text(table.read_text() + "f,2,test\n")
    with pytest.raises(InputError, match=r"line 7: label '2' is none of training's"):
        read(table)


def test_splits_are_stratified_and_few(tmp_path: Path) -> None:
    rows = [f"text {i},{'abc'[i % 3]}" for i in range(30)]
    table = written(tmp_path / "x.csv", "\n".join(["text,label", *rows]))
    splits = read(table, test_fraction=0.2, val_fraction=0.25)
    assert [np.bincount(part.labels).tolist() for part in splits.given().values()] == [
        [6] * 3,
        [2] * 3,
        [2] * 3,
    ]
    shown = {text for part in splits.given().values() for text in texts(part)}
    assert shown == {(f"text {i}",) for i in range(30)}
    few = read(table, labels_per_class=2)
    assert few.train and np.bincount(few.train.labels).tolist() == [2] * 3
    for part in splits.given().values():
        assert all(
            part.name(i) == f"x.csv line {int(text.split()[1]) + 2}"
            for i, (text,) in enumerate(texts(part))
        )


GLUE = {
    # A .tsv -> its texts. Quotes are literal where each line then has as many fields as the header
    "unbalanced": ('he said "no\n"yes\nno"\n', ['he said "no', '"yes', 'no"']),
    "whole": ('"The Ring" is bad\n"quoted"\n""\n', ['"The Ring" is bad', '"quoted"', '""']),
    "no quotes": ("it 's\nfine \n", ["it 's", "fine "]),
    # ... and those of RFC 4180 where quoting shows.
    "doubled": ('"say ""hi"""\n"a" \n', ['"say ""hi"""', '"a" ']),
    "doubled well": ('"say ""hi"""\n"a"\nb\n', ['say "hi"', "a", "b"]),
}


@pytest.mark.parametrize("case", GLUE)
def test_quotes_in_a_tsv(tmp_path: Path, case: str) -> None:
    lines, expected = GLUE[case]
    rows = [f"{line}\t{i % 2}" for i, line in enumerate(lines.splitlines())]
    table = written(tmp_path / "x.tsv", "\r\n".join(["sentence\tlabel", *rows]))
    assert texts(all_of(table)) == [(text,) for text in expected]


def test_what_csv_writes_comes_back(tmp_path: Path) -> None:
    wild = [
        'say "hi"',
        '"',
        "a\tb",
        "a\nb",
        "a\r\nb",
        '""',
        "x",
        '"a" b',
        "l\u2028m",
        "n\x85o",
        "'",
    ]
    for name, delimiter in (("x.csv", ","), ("y.csv", ";"), ("z.tsv", "\t")):
        for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC):
            with (tmp_path / name).open("w", newline="") as file:
                writer = csv.writer(file, delimiter=delimiter, quoting=quoting)
                writer.writerow(["text", "label"])
                writer.writerows([text, i % 2] for i, text in enumerate(wild))
            assert texts(all_of(tmp_path / name)) == [(text,) for text in wild]


def test_a_text_of_100_000_words(tmp_path: Path) -> None:
    long = "wonderful " * 100_000
    before = csv.field_size_limit()
    for name, rows in (
        ("x.csv", f'text,label\n"{long}",a\nb,b\n'),
        ("x.tsv", f"text\tlabel\n{long}\ta\nb\tb\n"),
        ("x.jsonl", f'{{"text": "{long}", "label": "a"}}\n{{"text": "b", "label": "b"}}\n'),
    ):
        assert all_of(written(tmp_path / name, rows)).text(0) == (long,)
    assert csv.field_size_limit() == before


LONG = "x" * 10_000
WRONG = {
    "empty": (b"", r"x\.csv is empty; expected a table of text and label"),
    "blank": (b"\n \n", r"x\.csv is empty"),
    "BOM alone": (b"\xef\xbb\xbf\n", r"x\.csv is empty"),
    "header alone": (b"text,label\n", r"x\.csv holds no rows"),
    "no header": (b"fine,1\nbad,0\n", r"line 1: no column for the text .*columns are 'fine', '1'"),
    "no label": (
        b"text,y\na,1\n",
        r"line 1: no column for the label .*'text', 'y'; config\.data\.l",
    ),
    "no text": (
        b"title,label\na,1\n",
        r"no column for the text \(one of text, .*text_column can n",
    ),
    "two texts": (
        b"text,review,label\na,b,1\n",
        r"'text' and 'review' could both be the text; set",
    ),
    "two labels": (
        b"text,label,class\na,b,1\n",
        r"columns 'label' and 'class' could both be the l",
    ),
    "two pairs": (
        b"question,sentence,answer,label\na,b,c,1\n",
        r"several of the columns .* could be the text or its pair; set config\.data\.text_column",
    ),
    "pair and text": (b"premise,hypothesis,text,label\na,b,c,1\n", r"several of the columns"),
    "short row": (b"text,label\na,1\nb\n", r"line 3: 1 fields, but the header has 2"),
    "comma": (b"text,label\nwell, fine,1\n", r"line 2: 3 fields, .*delimiter in it needs quotes"),
    "open quote": (b'text,label\na,1\n"b,0\nc,1\n', r"line 3: unexpected end of data"),
    "empty text": (b"text,label\na,1\n ,0\n", r"line 3: the text is empty"),
    "empty pair": (b"text,text2,label\na,b,1\na,,0\n", r"line 3: the pair is empty"),
    "empty label": (b"text,label\na,1\nb, \n", r"line 3: 'b' has no label"),
    "several": (b"text,label\na,x\nb,x|y\n", r"line 3: 2 labels \('x', 'y'\), but"),
    "NUL": (b"text,label\na,1\nb\0,0\n", r"line 3: a NUL byte"),
    "latin-1": (
        b"text,label\na,1\ncaf\xe9,0\n",
        r"line 3: byte 0xe9 is not UTF-8, it may be latin-1 \(ISO-8859-1 or Windows-1252\); save",
    ),
    "UTF-16": ("text,label\na,1\n".encode("utf-16"), r"x\.csv is UTF-16; save it as UTF-8"),
    "split": (b"text,label,split\na,1,trian\n", r"line 2: the split is 'trian'.*mean 'train'\?"),
    "one class": (b"text,label\na,1\nb,1\n", r"the data has 1 class\(es\) \['1'\]"),
    "long header": (f"{LONG},label\na,1\n".encode(), r"no column for the text .*'x{80}\.\.\.'"),
}


def one_line(error: Exception) -> bool:
    return "\n" not in str(error) and len(str(error)) < 500


@pytest.mark.parametrize("case", WRONG)
def test_wrong_tables(tmp_path: Path, case: str) -> None:
    content, message = WRONG[case]
    with pytest.raises(InputError, match=message) as caught:
        read(written(tmp_path / "x.csv", content))
    assert one_line(caught.value)


WRONG_JSON = {
    "no JSON": ('{"text": "a"', r"line 1: not one JSON object"),
    "an array": ('["a", "x"]', r'expected an object, as \{"text": "\.\.\.", "label": "\.\.\."\}'),
    "text": ('{"text": 3, "label": "x"}', r"line 1: the text is '3', expected a string"),
    "null": ('{"text": null, "label": "x"}', r"line 1: the text is 'None', expected a string"),
    "NUL": ('{"text": "a\\u0000", "label": "x"}', r"line 1: 'a\\x00' has a NUL or half of a surr"),
    "half": ('{"text": "\\ud800", "label": "x"}', r"line 1: '\\ud800' has a NUL or half"),
    "float": ('{"text": "a", "label": 1.5}', r"line 1: label '1\.5' is neither"),
    "other keys": (
        '{"text": "a", "label": "x"}\n{"sentence": "b", "label": "x"}',
        r"line 2 has 'sentence', 'label', but line 1 has 'text', 'label'",
    ),
    "pair gone": (
        '{"text": "a", "text2": "b", "label": "x"}\n{"text": "b", "label": "x"}',
        r"line 2 has 'text', 'label', but line 1 has 'text', 'text2', 'label'",
    ),
}


@pytest.mark.parametrize("case", WRONG_JSON)
def test_wrong_lines_of_json(tmp_path: Path, case: str) -> None:
    content, message = WRONG_JSON[case]
    with pytest.raises(InputError, match=message) as caught:
        read(written(tmp_path / "x.jsonl", content))
    assert one_line(caught.value)


def test_several_labels(tmp_path: Path) -> None:
    table = written(tmp_path / "x.csv", "text,labels\na,cat|dog\nb,\nc,dog\nd,cat | eel\n")
    found = read(table, targets="multi_hot", test_fraction=1, training=False)
    assert found.class_names == ("cat", "dog", "eel") and found.test
    assert found.test.labels.dtype == np.uint8
    assert found.test.labels.tolist() == [[1, 1, 0], [0, 0, 0], [0, 1, 0], [1, 0, 1]]
    assert "1 of 4 texts have no label" in found.notes
    text = "text,labels,split\na,cat|dog,train\nb,cat|eel,test\n"
    with pytest.raises(InputError, match=r"line 3: label 'eel' is none of training's"):
        read(written(tmp_path / "y.csv", text), targets="multi_hot")


def test_numbers(tmp_path: Path) -> None:
    rows = "a,x,0.5\nb,y, -3 \nc,z,2e1\nd,z,7\n"
    table = written(tmp_path / "x.csv", "sentence1,sentence2,score\n" + rows)
    splits = read(table, targets="number", test_fraction=0.5)
    assert splits.train and splits.test and splits.class_names == ()
    found = {
        part.text(i): float(part.labels[i])  # type: ignore[attr-defined]
        for part in splits.given().values()
        for i in range(len(part))
    }
    assert found == {("a", "x"): 0.5, ("b", "y"): -3.0, ("c", "z"): 20.0, ("d", "z"): 7.0}
    assert splits.train.labels.dtype == np.float32 and len(splits.test) == 2
    assert any("are held out as test, drawn, seed 0" in note for note in splits.notes)
    lines = '{"text": "a", "label": 1}\n{"text": "b", "label": "2.5"}\n{"text": "c", "label": -1.5}'
    json_table = written(tmp_path / "x.jsonl", lines)
    assert all_of(json_table, targets="number").labels.tolist() == [1.0, 2.5, -1.5]
    with pytest.raises(
        InputError, match=r"labels_per_class is 2, which only examples with classes"
    ):
        read(table, targets="number", labels_per_class=2)
    with pytest.raises(
        InputError, match=r"val_fraction=0\.1 of 2 training examples leaves nothing"
    ):
        read(table, targets="number", test_fraction=0.5, val_fraction=0.1)


@pytest.mark.parametrize("value", ["nan", "inf", "1e39", "3,5", "four", "1_0", ""])
def test_numbers_that_are_none(tmp_path: Path, value: str) -> None:
    table = written(tmp_path / "x.tsv", f"text\tlabel\na\t1\nb\t{value}\n")
    with pytest.raises(InputError, match=r"line 3: label .*the task predicts numbers, as 3\.5"):
        read(table, targets="number")
    for other in ("true", "null", "[1]", "NaN", "9" * 400):
        table = written(tmp_path / "x.jsonl", f'{{"text": "a", "label": {other}}}')
        with pytest.raises(InputError, match=r"line 1: label '.* is not a finite number"):
            read(table, targets="number")


def test_sources_of_pictures_and_of_texts() -> None:
    def refused(source: str, modality: str, targets: str = "class", **config: Any) -> str:
        fields = {f"data.{key}": value for key, value in config.items()}
        built = build({"data.source": source, "data.root": "x"}, fields)
        with pytest.raises(InputError) as caught:
            load_splits(built.data, 0, modality=modality, targets=targets)
        assert one_line(caught.value)
        return str(caught.value)

    for source in ("digits", "folder", "npz"):
        text = refused(source, "text")
        assert f"{source} has pictures" in text and "table, tfds:NAME, conll" in text
    assert "conll has texts" in refused("conll", "image")
    assert "did you mean 'table'" in refused("tabel", "text")
    assert "a header text,label and rows as a fine film,pos" in refused("conll", "text")
    assert "use data.source=conll" in refused("table", "text", "tags")
    assert "no source of pictures has that" in refused("folder", "image", "tags")
    assert "a.jpg,3.5" in refused("digits", "image", "number")
    assert "text,labels and rows" in refused("tfds:imdb_reviews", "text", "multi_hot")
    assert "on_bad_image is 'skip', which only" in refused("table", "text", on_bad_image="skip")
    assert "text_column is 'x', which only" in refused("table", "image", text_column="x")
    assert "label_column is 'x', which only" in refused("digits", "image", label_column="x")
    assert "only tfds takes a name" in refused("table:x.csv", "text")


def test_wrong_roots(tmp_path: Path) -> None:
    for root in ("", tmp_path / "nowhere.csv"):
        with pytest.raises(
            InputFileNotFoundError, match=r"\.jsonl of text and label \(and split\)"
        ):
            read(root)


@pytest.mark.shared
def test_sst2(shared: Path) -> None:
    splits = read(shared / "data" / "sst2")
    assert [len(part) for part in splits.given().values()] == [60_614, 6_735, 872]
    assert splits.class_names == ("0", "1")
    for split, file in (("train", "train"), ("val", "dev"), ("test", "test")):
        lines = (shared / "data" / "sst2" / f"{file}.tsv").read_text().rstrip("\n").split("\n")
        examples: Any = splits.given()[split]
        for index, line in enumerate(lines[1:]):
            text, label = line.split("\t")
            assert examples.text(index) == (text,) and examples.labels[index] == int(label)
    assert splits.test and splits.test.name(871) == "test.tsv line 873"
