"""Prediction on new inputs: of trained runs and of published networks as they are, by the command line and as a call."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import tlx
from tests import levels
from tests.text_models import text_folder
from tlx import main
from tlx.tokens.tokenizer import Tokenizer

LINES = [
    "the cats sat",
    "a b c, the cat wanted",
    "un",
    "cafe. the cats wanted a b c d e f g h i j the cat sat",
    "d",
    "the the the cat cats cats sat un wanted wanted , , .",
    "j i h g",
]
TAGS = ("O", "B-place", "I-place")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("folders")
    return {
        "two": text_folder(root / "two"),
        "five": text_folder(root / "five", tuple("vwxyz"), task="multilabel"),
        "unknown": text_folder(root / "unknown", task=""),
        "number": text_folder(root / "number", ("value",), task="regression"),
        "tags": text_folder(root / "tags", TAGS, task="tagging"),
        "inner": text_folder(root / "inner", (*TAGS[1:], "O"), task="tagging"),
    }


@pytest.fixture
def fields(folders):
    def fields(name, **more):
        return {"model.name": "bert", "model.weights": str(folders[name])} | more

    return fields


@pytest.fixture
def refused(capsys):
    """Calls main, expects exit code 2 and one readable line, and returns that line."""

    def refused(*arguments):
        assert main.main([*map(str, arguments)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        return line

    return refused


@pytest.fixture
def as_it_is(folders, tmp_path):
    """Returns the flags with which a folder's network predicts as it is."""
    config = tmp_path / "published.py"
    config.write_text("from tlx import config\n\ndef get_config():\n    return config.defaults()\n")

    def flags(name, *more):
        return (
            "--mode=predict",
            f"--config={config}",
            f"--workdir={tmp_path / 'run'}",
            "--config.model.name=bert",
            f"--config.model.weights={folders[name]}",
            *more,
        )

    return flags


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def probabilities(records):
    return np.array([list(record["probabilities"].values()) for record in records])


def own_words(folder, texts, pairs=None):
    """Softmax of the network's logits on one text after the other, without padding."""
    model = tlx.create_model("bert", weights=folder)
    preprocess = tlx.preprocess(model)
    pairs = pairs or [None] * len(texts)
    rows = [
        model(preprocess(t, p) if p else preprocess(t)) for t, p in zip(texts, pairs, strict=True)
    ]
    logits = np.concatenate([np.asarray(row, np.float64) for row in rows])
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def test_as_a_process(tmp_path, as_it_is, folders):
    source = write(tmp_path / "new.txt", "\n".join(LINES) + "\r\n\n")
    command = [sys.executable, "-m", "tlx.main", *as_it_is("two", f"--input={source}")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "predicted: 7 texts, 0 of them cut off, in " in done.stdout
    written = tmp_path / "run" / "predictions.jsonl"
    records = [json.loads(line) for line in written.read_text().splitlines()]
    assert [(r["line"], r["text"]) for r in records] == list(enumerate(LINES, 1))
    expected = own_words(folders["two"], LINES)
    assert np.abs(probabilities(records) - expected).max() < 1e-5
    for record, row in zip(records, expected, strict=True):
        assert record["prediction"] == ("bad", "good")[row.argmax()]
        assert record["probability"] == max(record["probabilities"].values())


@pytest.mark.parametrize(
    "how", [{"eval.batch_size": 2}, {"data.length_buckets": "40"}, {"eval.batch_size": 1}]
)
def test_results_do_not_depend_on_batches_or_padding(tmp_path, fields, how):
    plain = tlx.predict(tmp_path, LINES, config=fields("two"))
    other = tlx.predict(tmp_path, LINES, config=fields("two") | how)
    assert [r["text"] for r in other] == LINES
    assert np.abs(probabilities(plain) - probabilities(other)).max() < 1e-6
    assert np.ptp(probabilities(plain)[:, 0]) > 0.1  # the texts do differ


def test_a_table_keeps_its_columns_and_order(tmp_path, fields, folders, capsys):
    table = write(
        tmp_path / "new.csv",
        'id,review,label,prediction,probabilities.good\n7,the cats sat,what,old,0.5\n8,"un,\nwanted",,old,1\n',
    )
    tlx.predict(tmp_path, table, output=tmp_path / "out.csv", config=fields("two"))
    assert "2 texts" in capsys.readouterr().out
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    assert list(rows[0])[:6] == [
        *("line", "id", "review", "label", "input.prediction", "input.probabilities.good")
    ]
    assert list(rows[0])[6:] == [
        *("prediction", "probability", "probabilities.bad", "probabilities.good")
    ]
    assert [row["line"] for row in rows] == ["2", "3"] and rows[1]["review"] == "un,\nwanted"
    found = [float(row["probabilities.good"]) for row in rows]
    expected = own_words(folders["two"], ["the cats sat", "un,\nwanted"])[:, 1]
    assert np.abs(found - expected).max() < 1e-5


def test_pairs_and_columns_that_the_config_names(tmp_path, fields, folders):
    first, second = LINES[:3], LINES[3:6]
    rows = [
        {"sentence1": a, "sentence2": b, "n": n}
        for n, (a, b) in enumerate(zip(first, second, strict=True))
    ]
    table = write(tmp_path / "new.jsonl", "\n".join(map(json.dumps, rows)))
    records = tlx.predict(tmp_path, table, config=fields("two"))
    assert [record["n"] for record in records] == [0, 1, 2]
    expected = own_words(folders["two"], first, second)
    assert np.abs(probabilities(records) - expected).max() < 1e-5
    given = tlx.predict(tmp_path, list(zip(first, second, strict=True)), config=fields("two"))
    assert (probabilities(given) == probabilities(records)).all()
    config = fields("two") | {"data.text_column": "sentence2"}
    alone = tlx.predict(tmp_path, table, config=config)
    assert np.abs(probabilities(alone) - own_words(folders["two"], second)).max() < 1e-5


def test_windows_of_a_long_text_have_the_mean_of_their_logits(tmp_path, fields, folders, capsys):
    config = fields("two") | {"data.max_length": 8}
    cut = tlx.predict(tmp_path, LINES, config=config)
    out = capsys.readouterr().out
    assert "inputs: 3 of 7 texts are longer than 8 tokens, and cut off" in out
    assert "7 texts, 3 of them cut off" in out
    config |= {"data.long_texts": "split", "data.stride": 2}
    split = tlx.predict(tmp_path, LINES, config=config)
    assert "7 texts, 0 of them cut off" in capsys.readouterr().out
    model = tlx.create_model("bert", weights=folders["two"])
    tokenizer = Tokenizer.of(model.meta.text.content)
    encoded = tokenizer.encode([LINES[3]], max_length=8, stride=2, split_long=True)
    windows = np.split(encoded.ids, encoded.offsets[1:-1])
    assert len(windows) > 2
    logits = [
        np.asarray(model({"input_ids": ids[None], "attention_mask": np.ones_like(ids[None])}))[0]
        for ids in windows
    ]
    mean = np.exp(np.mean(logits, axis=0, dtype=np.float64))
    assert np.abs(probabilities(split)[3] - mean / mean.sum()).max() < 1e-5
    assert abs(probabilities(split)[3] - probabilities(cut)[3]).max() > 1e-3


def test_several_labels_and_numbers(tmp_path, fields, folders):
    records = tlx.predict(
        tmp_path, LINES, output=tmp_path / "o.csv", config=fields("five", task="multilabel")
    )
    model = tlx.create_model("bert", weights=folders["five"])
    preprocess = tlx.preprocess(model)
    logits = np.concatenate([np.asarray(model(preprocess(text))) for text in LINES])
    assert np.abs(probabilities(records) - 1 / (1 + np.exp(-logits))).max() < 1e-5
    for record, row in zip(records, logits, strict=True):
        assert record["prediction"] == [
            name for name, value in zip("vwxyz", row, strict=True) if value > 0
        ]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "o.csv").read_text())))
    assert [row["prediction"] for row in rows] == ["|".join(r["prediction"]) for r in records]
    assert any("|" in row["prediction"] for row in rows)

    records = tlx.predict(tmp_path, LINES, config=fields("number", task="regression"))
    model = tlx.create_model("bert", weights=folders["number"])
    expected = [float(np.asarray(model(preprocess(text)))[0, 0]) for text in LINES]
    assert np.abs(np.array([r["prediction"] for r in records]) - expected).max() < 1e-5
    assert set(records[0]) == {"index", "text", "prediction"}


def test_tagged_words_have_their_places_in_the_text(tmp_path, fields):
    records = tlx.predict(tmp_path, LINES, config=fields("tags", task="tagging"))
    entities = [(record, entity) for record in records for entity in record["entities"]]
    assert any(" " in entity["text"] for _, entity in entities)
    for record, entity in entities:
        text = record["text"][entity["start"] : entity["end"]]
        assert entity["text"] == text == text.strip() and entity["type"] in (
            "place",
            "person",
            "group",
        )
        assert f"[{text}]({entity['type']})" in record["marked"] and 0 < entity["probability"] <= 1
    for record in records:
        assert re.sub(r"\[([^]]*)\]\([a-z]+\)", r"\1", record["marked"]) == record["text"]


def test_files_of_words_with_tags_or_without_say_the_same(tmp_path, fields):
    sentences = [["the", "cats", "sat"], ["#un", "wanted", "#", "a"], ["b"]]
    config = fields("tags", task="tagging")
    plain = write(tmp_path / "a.conll", "\n\n".join("\n".join(words) for words in sentences))
    rows = ["\n".join(f"{word}\tB-nonsense" for word in words) for words in sentences]
    tagged = write(tmp_path / "b.conll", "\n\n".join(rows))
    objects = [json.dumps({"id": i, "tokens": own}) for i, own in enumerate(sentences)]
    lists = write(tmp_path / "c.jsonl", "\n".join(objects))
    found, same, third = (
        tlx.predict(tmp_path, path, config=config) for path in (plain, tagged, lists)
    )
    assert [record["words"] for record in found] == sentences and found == same
    assert [record["line"] for record in found] == [1, 5, 10]
    assert [record["id"] for record in third] == [0, 1, 2]
    places = [(e["type"], e["start"], e["end"], e["text"]) for r in found for e in r["entities"]]
    assert places == [
        (e["type"], e["start"], e["end"], e["text"]) for r in third for e in r["entities"]
    ]
    words = [[e["text"] for e in record["entities"]] for record in found]
    assert any(words) and words == [
        [" ".join(own[e["start"] : e["end"]]) for e in record["entities"]]
        for own, record in zip(sentences, found, strict=True)
    ]


def test_words_beyond_what_is_read_are_in_no_entity(tmp_path, fields):
    config = fields("inner", task="tagging") | {"data.max_length": 6}  # of its tags O is the last
    (short, long) = tlx.predict(tmp_path, ["the cats", "the cat sat un a b c d"], config=config)
    assert short["cut_off"] == 0 and long["cut_off"] == 4
    assert all(entity["end"] <= len("the cat sat un") for entity in long["entities"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory, folders):
    """A run of two steps on a table, and its test split."""
    root = tmp_path_factory.mktemp("trained")
    rows = [f"{text}\t{'no' if n % 2 else 'yes'}" for n, text in enumerate(LINES * 2)]
    for name in ("train", "test"):
        write(root / f"{name}.tsv", "\n".join(["sentence\tlabel", *rows]))
    config = {
        "model.name": "bert",
        "model.weights": str(folders["two"]),
        "data.source": "table",
        "data.root": str(root),
        "data.max_length": 12,
        "train.steps": 2,
        "train.batch_size": 8,
        "optimizer.name": "adamw",
    }
    summary = tlx.finetune(config, root / "run")
    return SimpleNamespace(run=root / "run", test=root / "test.tsv", summary=summary)


def test_a_trained_run_needs_nothing_but_its_folder(trained, tmp_path, refused, capsys):
    records = tlx.predict(trained.run, trained.test)
    right = sum(record["prediction"] == record["label"] for record in records)
    assert right == trained.summary["test/correct"] and len(records) == 14
    model = tlx.load(trained.run)
    logits = np.asarray(model(tlx.preprocess(model)([record["sentence"] for record in records])))
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert np.abs(probabilities(records) - softmax).max() < 1e-5
    assert not (trained.run / "predictions.jsonl").exists()

    other = write(tmp_path / "other.csv", "body,sentence\nun,the cats sat\n")
    (record,) = tlx.predict(trained.run, other, config={"data.text_column": "body"})
    (same,) = tlx.predict(trained.run, ["un"])
    assert record["probabilities"] == same["probabilities"]
    capsys.readouterr()
    line = refused(
        "--mode=predict",
        f"--workdir={trained.run}",
        f"--input={other}",
        "--config.data.max_length=20",
    )
    assert "holds another run (data.max_length: 12 -> 20)" in line


def test_a_trained_regression_predicts_what_was_evaluated(tmp_path, fields):
    rows = [f"{text}\t{len(text) / 10}" for text in LINES]
    for name in ("train", "test"):
        write(tmp_path / f"{name}.tsv", "\n".join(["text\tscore", *rows]))
    config = fields("number", task="regression") | {
        "data.source": "table",
        "data.root": str(tmp_path),
        "train.steps": 1,
        "train.batch_size": 4,
    }
    summary = tlx.finetune(config, tmp_path / "run")
    records = tlx.predict(tmp_path / "run", tmp_path / "test.tsv")
    off = [abs(record["prediction"] - float(record["score"])) for record in records]
    assert np.mean(off) == pytest.approx(summary["test/mae"], rel=1e-5)
    assert tlx.evaluate(config, tmp_path / "run")["test/mae"] == summary["test/mae"]


def test_a_trained_tagger_predicts_what_was_evaluated(tmp_path, fields):
    sentences = [
        [(word, "B-x" if word in "abcdefghij" else "O") for word in text.split()] for text in LINES
    ]
    text = "\n\n".join("\n".join(map(" ".join, sentence)) for sentence in sentences)
    for name in ("train", "test"):
        write(tmp_path / f"{name}.conll", text)
    config = fields("tags", task="tagging") | {
        "data.source": "conll",
        "data.root": str(tmp_path),
        "model.dropout": 0.0,
        "train.steps": 40,
        "train.batch_size": 7,
        "optimizer.name": "adamw",
        "optimizer.lr": 1e-2,
    }
    summary = tlx.finetune(config, tmp_path / "run")
    records = tlx.predict(tmp_path / "run", tmp_path / "test.conll")
    found = {(n, e["start"], e["end"]) for n, r in enumerate(records) for e in r["entities"]}
    true = {
        (n, place, place + 1)
        for n, sentence in enumerate(sentences)
        for place, (_, tag) in enumerate(sentence)
        if tag != "O"
    }
    f1 = 2 * len(found & true) / (len(found) + len(true))
    assert len(found) > 0 and f1 == pytest.approx(summary["test/f1"])


def test_a_run_that_cannot_be_written_predicts_elsewhere(trained, tmp_path):
    source, output = write(tmp_path / "a.txt", "un\n"), tmp_path / "o.jsonl"
    trained.run.chmod(0o500)
    try:
        flags = (f"--workdir={trained.run}", f"--input={source}", f"--output={output}")
        assert main.main(["--mode=predict", *flags]) == 0
    finally:
        trained.run.chmod(0o700)
    assert json.loads(output.read_text())["text"] == "un"


def test_standard_input(monkeypatch, as_it_is, tmp_path):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"un\nthe cat\n")))
    output = tmp_path / "o.csv"
    assert main.main([*as_it_is("two", "--input=-", f"--output={output}")]) == 0
    rows = list(csv.DictReader(io.StringIO(output.read_text())))
    assert [row["text"] for row in rows] == ["un", "the cat"]


BAD = {
    "blank.txt": (b"the cat\n \nun\n", "blank.txt line 2 is blank"),
    "empty.txt": (b"\n\n", "empty.txt is empty; expected a text on each line"),
    "nul.txt": (b"the cat\nu\0n\n", "nul.txt line 2: a NUL byte"),
    "latin.txt": (b"the cat\ncaf\xe9\n", "latin.txt line 2: byte 0xe9 is not UTF-8"),
    "text.pdf": (b"the cat", "'.pdf', expected one of .txt, .csv, .tsv, .jsonl"),
    "words.conll": (b"the O\n", "tagged words, which only task=tagging reads"),
    "none.csv": (b"a,b\n1,2\n", "none.csv line 1: no column for the text"),
    "empty.csv": (b"", "empty.csv is empty; expected a table of text"),
    "hole.csv": (b"text,n\nun,1\n,2\n", "hole.csv line 3: the text is empty"),
    "twice.csv": (b"text,n,n\nun,1,2\n", "twice.csv line 2: two columns are called 'n'"),
    "number.jsonl": (b'{"text": "un"}\n{"text": 3}\n', "number.jsonl line 2: the text is '3'"),
    "nul.jsonl": (b'{"text": "u\\u0000n"}\n', "nul.jsonl line 1: 'u\\x00n' has a NUL"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_writes_nothing(name, tmp_path, as_it_is, refused):
    content, expected = BAD[name]
    (tmp_path / name).write_bytes(content)
    output = write(tmp_path / "out.jsonl", "of before")
    line = refused(*as_it_is("two", f"--input={tmp_path / name}", f"--output={output}"))
    assert expected in line and output.read_text() == "of before"


def test_bad_words(tmp_path, fields):
    for name, content, expected in (
        ("a.conll", "the O\ncat\n", "a.conll line 2: one column"),
        ("b.jsonl", '{"tokens": ["un"]}\n{"tokens": []}', "b.jsonl line 2: 'tokens' is"),
        ("c.jsonl", '{"tokens": ["un", 3]}', "c.jsonl line 1: '3' is no string"),
        ("d.csv", "sentence1,sentence2\na,b\n", "the inputs are pairs of texts"),
    ):
        path = write(tmp_path / name, content)
        with pytest.raises(tlx.InputError, match=expected):
            tlx.predict(tmp_path, path, config=fields("tags", task="tagging"))


def test_a_text_of_100_000_words_is_cut_off_and_counted(tmp_path, fields, capsys):
    (record,) = tlx.predict(tmp_path, ["the cat " * 50_000], config=fields("two"))
    assert 0.5 <= record["probability"] <= 1
    assert "1 of 1 texts are longer than 40 tokens, and cut off" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ([], "there are no inputs"),
        (["un", ""], r"inputs\[1\]: the text is empty"),
        (["un", 3], r"inputs\[1\]: '3' is no string"),
        (["un", ("a", "b")], r"inputs\[1\]: 2 texts"),
        (["a\0b"], r"inputs\[0\]: .* has a NUL"),
        (["a\ud800b"], r"inputs\[0\]: .* half of a surrogate"),
    ],
)
def test_bad_sequences(tmp_path, fields, inputs, expected):
    with pytest.raises(tlx.InputError, match=expected):
        tlx.predict(tmp_path, inputs, config=fields("two"))


def test_flags(tmp_path, as_it_is, refused):
    source = write(tmp_path / "a.txt", "un\n")
    assert "--mode=predict needs --input=FILE" in refused(*as_it_is("two"))
    assert "--input=nowhere.txt is not there" in refused(*as_it_is("two", "--input=nowhere.txt"))
    assert "did you mean '--input'" in refused(*as_it_is("two", f"--inptu={source}"))
    line = refused("--mode=evaluate", f"--input={source}")
    assert "--input is of --mode=predict, but the mode is evaluate" in line
    known = as_it_is("two", f"--input={source}")
    assert "neither a .jsonl nor a .csv" in refused(*known, "--output=a.xlsx")
    assert "there is no folder" in refused(*known, f"--output={tmp_path}/none/a.csv")
    table = write(tmp_path / "a.csv", "text\nun\n")
    same = as_it_is("two", f"--input={table}", f"--output={table}")
    assert "is the input" in refused(*same) and table.read_text() == "text\nun\n"
    assert "holds no run" in refused("--mode=predict", f"--workdir={tmp_path}", f"--input={source}")
    assert "model.head=new" in refused(*known, "--config.model.head=new")


def test_weights_without_a_head_predict_nothing(tmp_path, fields):
    headless = {"model.name": "resnet20_cifar", "model.weights": "none"}
    with pytest.raises(tlx.InputError, match="nothing to predict with"):
        tlx.predict(tmp_path, ["a.png"], config=headless)


def test_a_head_of_another_task_is_refused(tmp_path, fields):
    for name, task, expected in (
        ("tags", "classification", "is of the task tagging.*set config.task=tagging"),
        ("two", "multilabel", "is of the task classification"),
        ("unknown", "tagging", "of whole inputs, not of words"),
        ("unknown", "regression", "has 2 outputs"),
        ("number", "multilabel", "is of the task regression"),
    ):
        with pytest.raises(tlx.InputError, match=expected):
            tlx.predict(tmp_path, ["un"], config=fields(name, task=task))


def test_pictures(tmp_path, capsys):
    config = levels.fields(tmp_path) | {"model.name": "resnet20_cifar", "train.steps": 2}
    tlx.finetune(config, tmp_path / "run")
    new = tmp_path / "new"
    (new / "deep").mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = ("b.png", "deep/c.png", "a.png")
    for name in names:
        Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).save(new / name)
    write(new / "notes.txt", "no picture")
    records = tlx.predict(tmp_path / "run", new)
    assert "new: 1 files are not pictures" in capsys.readouterr().out
    assert [r["path"] for r in records] == [str(new / name) for name in sorted(names)]
    model = tlx.load(tmp_path / "run")
    pictures = [tlx.preprocess(model)(Image.open(record["path"])) for record in records]
    logits = np.asarray(model(np.stack(pictures)), np.float64)
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert np.abs(probabilities(records) - softmax).max() < 1e-5
    (one,) = tlx.predict(tmp_path / "run", new / "b.png")
    assert np.abs(probabilities([one]) - softmax[1]).max() < 1e-5
    table = write(tmp_path / "list.csv", "id,path\n4,new/deep/c.png\n")
    (listed,) = tlx.predict(tmp_path / "run", table)
    assert listed["id"] == "4" and listed["probabilities"] == pytest.approx(
        records[2]["probabilities"], abs=1e-5
    )
    write(new / "broken.png", "no picture")
    with pytest.raises(tlx.InputError, match=r"broken\.png"):
        tlx.predict(tmp_path / "run", new)
