import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prepared_tfds import NUMBER, TEXT, label, record, write

from tlx.config import build
from tlx.data.source import Splits, load_splits
from tlx.errors import InputError

SENTIMENT = {"text": TEXT, "label": label(2)}
REVIEWS = ["a fine film", "dull", "not bad , 'twas said", "ein schöner Film"]
NAMES = {"label": "neg\npos\n"}


def read(data_dir: Path, name: str, *, targets: str = "class", **config: Any) -> Splits:
    fields = {f"data.{key}": value for key, value in config.items()}
    base = {"data.source": f"tfds:{name}", "data.root": str(data_dir)}
    return load_splits(build(base, fields).data, 0, targets=targets, modality="text")


def texts(examples: Any) -> list[tuple[str, ...]]:
    return [examples.text(index) for index in range(len(examples))]


def rows(labels: list[Any], **columns: list[str]) -> list[bytes]:
    return [
        record(label=value, **{key: column[index] for key, column in columns.items()})
        for index, value in enumerate(labels)
    ]


def test_one_text_with_a_class(tmp_path: Path) -> None:
    records = rows([1, 0, 1, 1], text=REVIEWS)
    write(
        tmp_path,
        "imdb_reviews/plain_text/1.0.0",
        {"train": records, "test": records[1:3], "unsupervised": rows([-1], text=["?"])},
        SENTIMENT,
        names=NAMES,
    )
    splits = read(tmp_path, "imdb_reviews", val_fraction=0.25)
    assert [len(part) for part in splits.given().values()] == [3, 1, 2]
    assert splits.class_names == ("neg", "pos")
    assert splits.test and splits.test.labels.dtype == np.int32
    assert splits.test.labels.tolist() == [0, 1]
    assert texts(splits.test) == [("dull",), ("not bad , 'twas said",)]
    assert splits.test.name(1) == "imdb_reviews/test[1]"
    assert splits.notes[0].startswith("tfds:imdb_reviews: imdb_reviews/plain_text/1.0.0 in ")
    copy = pickle.loads(pickle.dumps(splits.train))
    assert copy.fingerprint == splits.train.fingerprint and texts(copy) == texts(splits.train)


def test_pairs_with_numbers_and_a_test_split_without_labels(tmp_path: Path) -> None:
    features = {"sentence1": TEXT, "sentence2": TEXT, "label": NUMBER, "idx": NUMBER}
    one, two = ["a", "b", "c"], ["x", "y", "z"]
    splits = {
        name: [
            record(sentence1=a, sentence2=b, label=value, idx=0.0)
            for a, b, value in zip(one, two, labels, strict=True)
        ]
        for name, labels in (
            ("train", [0.0, 2.5, 5.0]),
            ("validation", [-1.0, 4.2, 1.0]),
            ("test", [-1.0, -1.0, -1.0]),
        )
    }
    write(tmp_path, "glue/stsb/2.0.0", splits, features)
    found = read(tmp_path, "glue/stsb", targets="number")
    assert found.train and found.test and found.val is None and found.class_names == ()
    assert "'test' has no labels: 'validation' is the held-out test" in found.notes[1]
    assert texts(found.train) == [("a", "x"), ("b", "y"), ("c", "z")]
    assert found.train.labels.dtype == np.float32
    np.testing.assert_array_equal(found.test.labels, np.array([-1.0, 4.2, 1.0], np.float32))
    assert found.test.name(2) == "glue/stsb/validation[2]"
    with pytest.raises(InputError, match=r"stsb/test\[0\] has no label \(-1\).*test_split=valid"):
        read(tmp_path, "glue/stsb", targets="number", val_split="validation")
    with pytest.raises(InputError, match=r"label is not a class label.*task=regression predicts"):
        read(tmp_path, "glue/stsb")
    single = read(tmp_path, "glue/stsb", targets="number", text_column="sentence2")
    assert single.train and texts(single.train) == [("x",), ("y",), ("z",)]


def test_classes_that_were_withheld(tmp_path: Path) -> None:
    train, test = rows([0, 1], sentence=REVIEWS), rows([-1, -1], sentence=REVIEWS)
    features = {"sentence": TEXT, "label": label(2)}
    places = {"train": train, "validation": train, "test": test}
    write(tmp_path, "glue/sst2/2.0.0", places, features, names=NAMES)
    found = read(tmp_path, "glue/sst2")
    assert found.test and found.test.name(0) == "glue/sst2/validation[0]"
    with pytest.raises(InputError, match=r"sst2/test\[0\] has no label \(-1\).*validation, test"):
        read(tmp_path, "glue/sst2", val_split="validation")
    held_out = load_splits(
        build({"data.source": "tfds:glue/sst2", "data.root": str(tmp_path)}).data,
        0,
        training=False,
        modality="text",
    )
    assert list(held_out.given()) == ["test"]


def test_which_features_are_what(tmp_path: Path) -> None:
    features = {"question": TEXT, "sentence": TEXT, "answered": label(2), "hint": TEXT}
    records = [record(question="q", sentence="s", answered=i, hint="h") for i in (0, 1)]
    splits = {"train": records, "test": records}
    write(tmp_path, "qa/1.0.0", splits, features, names={"answered": "no\nyes\n"})
    with pytest.raises(InputError, match=r"no column for the label .*answered \(ClassLabel\)"):
        read(tmp_path, "qa")
    found = read(tmp_path, "qa", label_column="answered")
    assert found.train and texts(found.train) == [("q", "s")] * 2
    assert found.class_names == ("no", "yes")
    chosen = read(
        tmp_path, "qa", label_column="answered", text_column="hint", pair_column="question"
    )
    assert chosen.train and texts(chosen.train) == [("h", "q")] * 2
    with pytest.raises(InputError, match="its answered is not a text"):
        read(tmp_path, "qa", label_column="hint", text_column="answered")
    with pytest.raises(InputError, match="its hint is not a class label"):
        read(tmp_path, "qa", label_column="hint", text_column="question")
    with pytest.raises(InputError, match="its answered is not a number"):
        read(tmp_path, "qa", label_column="answered", targets="number")


def test_records_that_are_wrong_are_named(tmp_path: Path) -> None:
    good = rows([0, 1], text=REVIEWS)
    wrong = {
        "empty": (rows([0, 1], text=["a", " \n"]), SENTIMENT, r"/train\[1\]: text is empty"),
        "latin": ([record(text=b"caf\xe9", label=0)], SENTIMENT, r"/train\[0\]: text is not UTF-8"),
        "high": (rows([0, 2], text=["a", "b"]), SENTIMENT, r"\[1\]: label 2 is outside 0\.\.1"),
        "cut": ([*good, b"\xff"], SENTIMENT, r"/train\[2\]: damaged record"),
    }
    for name, (records, features, message) in wrong.items():
        write(tmp_path, f"{name}/1.0.0", {"train": records, "test": good}, features, names=NAMES)
        with pytest.raises(InputError, match=message):
            read(tmp_path, name)
    numbers = {"text": TEXT, "label": NUMBER}
    records = [record(text="a", label=float("nan"))]
    write(tmp_path, "nan/1.0.0", {"train": records, "test": records}, numbers)
    with pytest.raises(InputError, match=r"nan/train\[0\]: label is nan, no finite number"):
        read(tmp_path, "nan", targets="number")


@pytest.mark.shared
def test_pictures_for_a_network_that_reads_texts(shared: Path) -> None:
    with pytest.raises(InputError, match=r"no column for the text .*image \(Image\)"):
        read(shared / "data" / "tfds", "cifar10")
