import functools
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import data_files
from tests.data_files import written
from tlx.data.conll_json import split_words
from tlx.data.tagged import TaggedTexts
from tlx.errors import InputError, InputFileNotFoundError

GOOD = "Ann\tB-PER\nLee\tI-PER\nsits\tO\n\nRome\tB-LOC\n"


read = functools.partial(data_files.read, source="conll", targets="tags", modality="text")


def examples(path: Path, text: str | bytes) -> TaggedTexts:
    """Everything in one file, none held out."""
    found = read(written(path, text), training=False, test_fraction=1.0).test
    assert isinstance(found, TaggedTexts)
    return found


def tagged(found: Any) -> list[list[tuple[str, str]]]:
    return [
        [(word, found.class_names[tag]) for word, tag in zip(words, tags, strict=True)]
        for words, tags in zip(found.words, found.tags, strict=True)
    ]


def refused(path: Path, text: str | bytes) -> str:
    with pytest.raises(InputError) as error:
        examples(path, text)
    assert "\n" not in str(error.value)
    return str(error.value).replace(str(path), path.name)


def test_sentences_and_their_tags(tmp_path: Path) -> None:
    found = examples(tmp_path / "a.conll", GOOD)
    assert found.class_names == ("O", "B-LOC", "B-PER", "I-PER")
    assert tagged(found) == [
        [("Ann", "B-PER"), ("Lee", "I-PER"), ("sits", "O")],
        [("Rome", "B-LOC")],
    ]
    assert all(tags.dtype == np.int32 for tags in found.tags)
    assert found.labels.dtype == np.uint8
    assert found.labels.tolist() == [[1, 0, 1, 1], [0, 1, 0, 0]]
    assert [found.name(i) for i in (0, 1)] == [f"{tmp_path / 'a.conll'} line {i}" for i in (1, 5)]
    assert pickle.loads(pickle.dumps(found)).fingerprint == found.fingerprint


@pytest.mark.parametrize(
    "text",
    [
        GOOD.replace("\n", "\r\n"),
        "\ufeff" + GOOD,
        GOOD.replace("\t", " "),
        GOOD.replace("\t", "  \t "),
        GOOD.replace("\n\n", "\n\t\n \t \n\n"),
        "\n\n" + GOOD + "\n\n\n",
        GOOD.rstrip("\n"),
        "-DOCSTART- -X- -X- O\n\n" + GOOD,
        GOOD.replace("\n\n", "\n-DOCSTART-\n"),
        GOOD.replace("\t", "\tNNP\t_\t"),
        GOOD.replace("\t", " NNP I-NP "),
        "# sent_id = 1\n# text = Ann Lee sits\n#comment\n" + GOOD,
        GOOD.replace("sits", "# newdoc\nsits"),
    ],
)
def test_one_and_the_same_in_many_forms(tmp_path: Path, text: str) -> None:
    plain, other = (examples(tmp_path / f"{i}.txt", t) for i, t in enumerate((GOOD, text)))
    assert tagged(other) == tagged(plain)
    assert other.fingerprint == plain.fingerprint


def test_comments_are_counted_and_hashtags_are_words(tmp_path: Path) -> None:
    text = "#one\n# id = 3\n#tag\tO\n#\tO\n# text = x\tO\n"
    path = written(tmp_path / "a.conll", text)
    splits = read(path, training=False, test_fraction=1.0)
    assert splits.test is not None
    assert tagged(splits.test) == [[("#tag", "O"), ("#", "O"), ("# text = x", "O")]]
    assert f"{path}: 2 comments are no words, as line 1 '#one'" in splits.notes
    assert tagged(examples(tmp_path / "b.conll", "# O\n#x B-LOC\n")) == [
        [("#", "O"), ("#x", "B-LOC")]
    ]


def test_words_keep_their_characters(tmp_path: Path) -> None:
    words = ["\xa0", "a\xa0b", "\u200d", "😂", "a b", "e\u0301", "\u2028x"]
    found = examples(tmp_path / "a.conll", "".join(f"{word}\tO\n" for word in words))
    assert found.words == (tuple(words),)


@pytest.mark.parametrize(
    "text",
    ["a S-X\nb B-Y\nc I-Y\nd E-Y\ne O\n", "a U-X\nb B-Y\nc I-Y\nd L-Y\ne O\n"],
)
def test_bioes_and_bilou(tmp_path: Path, text: str) -> None:
    found = examples(tmp_path / "a.bio", text)
    assert found.class_names == ("O", "S-X", "B-Y", "E-Y", "I-Y")
    assert [tag for _, tag in tagged(found)[0]] == ["S-X", "B-Y", "I-Y", "E-Y", "O"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a O\nb I-LOC\n", "a.txt line 2: 'I-LOC' continues no entity: the tags are not IOB2"),
        ("a B-LOC\nb I-PER\n", "a.txt line 2: 'I-PER' continues no entity"),
        ("a B-LOC\n\nb I-LOC\n", "a.txt line 3: 'I-LOC' continues no entity"),
        ("a S-X\nb E-X\n", "a.txt line 2: 'E-X' continues no entity"),
        ("a E-X\n", "a.txt line 1: 'E-X' continues no entity"),
        (
            "a S-X\nb B-X\nc O\n",
            "a.txt line 2: 'B-X' is followed by no E-X, so the tags are not BIOES; they are not IOB2 "
            "because of 'S-X' in ",
        ),
        ("a B-X\nb I-X\n\nc S-X\n", "a.txt line 2: 'I-X' is followed by no E-X"),
        ("a U-X\nb B-X\n", "a.txt line 2: 'B-X' is followed by no L-X, so the tags are not BILOU"),
        ("a O\nb U-X\nc S-X\n", "'U-X' in "),
        ("a O\nb X-LOC\n", "a.txt line 2: 'X-LOC' is no tag of IOB2 (O, B-TYPE, I-TYPE) or BIOES"),
        ("a loc\n", "a.txt line 1: 'loc' is no tag"),
        ("a o\n", "a.txt line 1: 'o' is no tag"),
        ("a B\n", "a.txt line 1: 'B' is no tag"),
        ("a B-\n", "a.txt line 1: 'B-' is no tag"),
        ("a b-LOC\n", "a.txt line 1: 'b-LOC' is no tag"),
        ("a O\nb\n", "a.txt line 2: one column, 'b'; expected a word and its tag"),
        ("a O\nb NN O\n", "a.txt line 2: 3 columns, but line 1 has 2"),
        ("a\tO\nb B-LOC\tO\tO\n", "a.txt line 2: 3 columns, but line 1 has 2"),
        ("a\tO\nb\t\n", "a.txt line 2: there is no tag (the last one)"),
        ("a\tO\n\tO\n", "a.txt line 2: there is no word (the first column)"),
        ("a O\nb\0 O\n", "a.txt line 2: a NUL byte"),
        ("a O\nb\xe9 O\n".encode("latin-1"), "a.txt line 2: byte 0xe9 is not UTF-8, it may be lat"),
        ("a O\n".encode("utf-16"), "a.txt is UTF-16; save it as UTF-8"),
        ("", "a.txt is empty; expected words and their tags"),
        ("\ufeff", "a.txt is empty; expected words and their tags"),
        (" \n\t\n", "a.txt is empty"),
        ("#x\n-DOCSTART- O\n", "a.txt holds no tagged words"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, text: str | bytes, says: str) -> None:
    assert refused(tmp_path / "a.txt", text).startswith(says)


def test_the_scheme_is_that_of_all_files(tmp_path: Path) -> None:
    written(tmp_path / "train.conll", "a S-X\n\nb O\n")
    written(tmp_path / "test.conll", "a B-X\nb I-X\n")
    with pytest.raises(InputError, match=r"test.conll line 2: 'I-X' is followed by no E-X.*'S-X'"):
        read(tmp_path)
    written(tmp_path / "test.conll", "a B-X\nb L-X\n")
    with pytest.raises(InputError, match=r"'L-X' in .*test.conll line 2 is BILOU, but 'S-X' in"):
        read(tmp_path)


def test_classes_are_the_tags_of_all_files(tmp_path: Path) -> None:
    written(tmp_path / "train.conll", "a B-X\nb B-A\n")
    written(tmp_path / "dev.txt", "a B-A\n")
    written(tmp_path / "test.iob", "a O\nb B-X\nc I-X\n")
    splits = read(tmp_path)
    assert {s: p.class_names for s, p in splits.given().items()} == dict.fromkeys(
        ("train", "val", "test"), ("O", "B-A", "B-X", "I-X")
    )
    assert "2 class(es) have no training example: 'O', 'I-X'" in splits.notes
    alone = read(tmp_path, training=False)
    assert alone.train is None and alone.val is None and alone.test is not None
    assert alone.class_names == splits.class_names
    assert alone.notes == (f"evaluated: {tmp_path / 'test.iob'}",)
    assert splits.test is not None and alone.test.fingerprint == splits.test.fingerprint


def test_a_type_that_training_has_nothing_of_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "train.conll", "a B-person\n")
    written(tmp_path / "test.conll", "a O\nb B-persn\n")
    with pytest.raises(InputError, match=r"line 2: 'B-persn' is of no type.*did you mean 'person'"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [(["a\0b"], "a NUL"), (["a\ud800"], "a NUL or half"), (["a"] * 10_001, "10,001 words")],
)
def test_what_is_no_text_and_what_is_no_sentence_is_refused(tmp_path: Path, words, message) -> None:
    record = {"tokens": words, "tags": ["B-X"] * len(words)}
    written(tmp_path / "train.jsonl", json.dumps(record))
    with pytest.raises(InputError, match=rf"line 1: .*{message}"):
        read(tmp_path)


def test_without_a_test_file_dev_is_the_test(tmp_path: Path) -> None:
    for name in ("train", "dev"):
        written(tmp_path / f"{name}.conll", GOOD)
    written(tmp_path / "readme.txt", "no tags here")
    splits = read(tmp_path)
    assert splits.val is None and splits.test is not None and len(splits.test) == 2
    assert any("there is no test file: 'dev.conll' is the held-out test" in n for n in splits.notes)
    assert f"{tmp_path}: 1 files are not used, as readme.txt" in splits.notes


def test_one_file_is_split_with_the_seed(tmp_path: Path) -> None:
    path = written(tmp_path / "all.tsv", "\n".join(f"w{i}\tB-X\nv\tO\n" for i in range(20)))
    splits = read(path, test_fraction=0.25, val_fraction=0.2)
    assert {s: len(p) for s, p in splits.given().items()} == {"train": 12, "val": 3, "test": 5}
    assert splits.test is not None and splits.test.name(0).startswith(f"{path} line ")


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputFileNotFoundError, match="is not there; expected a file of tagged"):
        read(tmp_path / "none.conll")
    with pytest.raises(InputFileNotFoundError, match=r"holds no train\.conll"):
        read(tmp_path)
    written(tmp_path / "mine.conll", GOOD)
    with pytest.raises(InputFileNotFoundError, match=r"is .*mine.conll meant\?"):
        read(tmp_path)
    with pytest.raises(InputError, match="expected a file of tagged words"):
        read(written(tmp_path / "a.pdf", GOOD))
    written(tmp_path / "dev.conll", GOOD)
    with pytest.raises(InputError, match=r"no training file beside dev.conll \(--mode=evaluate"):
        read(tmp_path)
    written(tmp_path / "valid.conll", GOOD)
    with pytest.raises(InputError, match=r"both 'dev.conll' and 'valid.conll' are val"):
        read(tmp_path)


TEXT = "Ann Lee's in New York."


def lines(*records: Any) -> str:
    return "\n".join(
        record if isinstance(record, str) else json.dumps(record) for record in records
    )


@pytest.mark.parametrize(
    "record",
    [
        {"text": TEXT, "entities": [{"start": 13, "end": 21, "label": "LOC"}, {"start": 0, "end": 7, "label": "PER", "id": 3}]},
        {"text": TEXT, "spans": [[0, 7, "PER"], [13, 21, "LOC"]], "meta": 1},
        {"tokens": ["Ann", "Lee", "'", "s", "in", "New", "York", "."], "ner_tags": "B-PER I-PER O O O B-LOC I-LOC O".split()},
        {"words": ["Ann", "Lee", "'", "s", "in", "New", "York", "."], "tags": "B-PER E-PER O O O B-LOC E-LOC O".split()},
    ],
)  # fmt: skip
def test_spans_and_tokens(tmp_path: Path, record: dict[str, Any]) -> None:
    found = examples(tmp_path / "a.jsonl", lines("", record))
    assert found.words == (("Ann", "Lee", "'", "s", "in", "New", "York", "."),)
    tags = [tag.replace("E-", "I-") for _, tag in tagged(found)[0]]
    assert tags == ["B-PER", "I-PER", "O", "O", "O", "B-LOC", "I-LOC", "O"]
    assert found.name(0) == f"{tmp_path / 'a.jsonl'} line 2"


def test_entities_within_words_are_widened_and_counted(tmp_path: Path) -> None:
    record = {"text": TEXT, "entities": [[1, 6, "PER"], [12, 22, "LOC"]]}
    path = written(tmp_path / "a.jsonl", lines(record, {"text": "x y", "entities": [[0, 2, "A"]]}))
    splits = read(path, training=False, test_fraction=1.0)
    assert splits.test is not None
    assert [tag for _, tag in tagged(splits.test)[0]] == (
        "B-PER I-PER O O O B-LOC I-LOC I-LOC".split()
    )
    assert [tag for _, tag in tagged(splits.test)[1]] == ["B-A", "O"]
    assert (
        "1 entities begin or end inside a word and have all of it, as "
        f"{path} line 1: 'nn Le' to 'Ann Lee'" in splits.notes
    )


def test_words_of_a_text() -> None:
    def words(text: str) -> list[str]:
        return [text[start:end] for start, end in split_words(text)]

    assert words(" don't  e-mail @a_b!? ") == ["don", "'", "t", "e", "-", "mail", "@", "a", "_", "b", "!?"]  # fmt: skip
    assert words("東京 is カナ") == ["東", "京", "is", "カ", "ナ"]
    assert words("नमस्ते 😂😂ok") == ["नमस्ते", "😂😂", "ok"]
    assert words(" \n\u3000") == []


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ('{"text": ', "not one JSON object"),
        ('{"text": "a", "text": "b"}', "not one JSON object: 'a key is there twice'"),
        ("[1]", "expected an object, as {"),
        ({"text": "a b", "entites": []}, "no text with entities and no tokens with tags, only 'text', 'entites'; did you mean 'entities'?"),
        ({"text": " ", "entities": []}, "the text is empty"),
        ({"text": 3, "entities": []}, "expected a text and a list of entities"),
        ({"text": "ab", "entities": {"start": 0}}, "expected a text and a list of entities"),
        ({"text": "ab", "entities": [[0, 3, "X"]]}, "an entity is from 0 to 3, but the text has the characters 0 to 2"),
        ({"text": "ab", "entities": [[1, 1, "X"]]}, "an entity is from 1 to 1"),
        ({"text": "ab", "entities": [[-1, 1, "X"]]}, "an entity is from -1 to 1"),
        ({"text": "ab", "entities": [["0", 1, "X"]]}, "an entity is from 0 to 1"),
        ({"text": "ab", "entities": [[True, 2, "X"]]}, "an entity is from True to 2"),
        ({"text": "ab", "entities": [[0, 2]]}, "an entity is '[0, 2]', expected start, end and label"),
        ({"text": "ab", "entities": [{"start": 0, "end": 2}]}, "an entity is '[0, 2, None]', expected"),
        ({"text": "ab", "entities": [[0, 2, " "]]}, "the entity 'ab' (0 to 2) has no label"),
        ({"text": "a b", "entities": [[1, 2, "X"]]}, "the entity ' ' (1 to 2) has no word"),
        ({"text": "a b c", "entities": [[2, 5, "X"], [0, 3, "Y"]]}, "the entity 'a b' (0 to 3) and the entity 'b c' (2 to 5) overlap"),
        ({"text": "abc", "entities": [[0, 1, "X"], [1, 3, "Y"]]}, "the entity 'a' (0 to 1) and the entity 'bc' (1 to 3) are both in the word 'abc'"),
        ({"tokens": ["a"], "tags": ["O", "O"]}, "1 in 'tokens', but 2 in 'tags'"),
        ({"tokens": ["a"], "ner_tags": [0]}, "'ner_tags' is '[0]', expected a list of strings (names of tags, not numbers)"),
        ({"tokens": "a", "tags": ["O"]}, "'tokens' is 'a', expected a list of strings"),
        ({"tokens": [], "tags": []}, "there are no words"),
        ({"tokens": ["a", " "], "tags": ["O", "O"]}, "a word is empty"),
        ({"tokens": ["a", "b"], "tags": ["O", "I-X"]}, "'I-X' continues no entity"),
    ],
)  # fmt: skip
def test_json_that_is_wrong_is_said_with_its_line(tmp_path: Path, record: Any, says: str) -> None:
    good = {"tokens": ["a"], "tags": ["O"]}
    found = refused(tmp_path / "a.jsonl", lines(good, "", record))
    assert found.startswith(f"a.jsonl line 3: {says}")


@pytest.mark.shared
def test_wnut17(shared: Path) -> None:
    splits = read(shared / "data" / "wnut17")
    parts = splits.given()
    assert {s: len(p) for s, p in parts.items()} == {"train": 3394, "val": 1009, "test": 1287}
    types = ("corporation", "creative-work", "group", "location", "person", "product")
    assert splits.class_names == ("O", *(f"{p}-{t}" for t in types for p in "BI"))
    assert splits.notes == ()
    counts = {}
    for split, part in parts.items():
        assert isinstance(part, TaggedTexts)
        tags = np.concatenate(part.tags)
        counts[split] = (
            len(tags),
            int((tags % 2 == 1).sum()),
        )  # words, and those that begin an entity
    assert counts == {"train": (62730, 1975), "val": (15733, 836), "test": (23394, 1079)}
    assert parts["train"].name(1).endswith("train.conll line 29")
