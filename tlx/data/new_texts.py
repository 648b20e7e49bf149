"""New texts, without labels, to be predicted: lines, tables, and sentences of words.

They are the examples that training has, whose labels are zeros that nobody looks at.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tlx.config import DataConfig, nearest
from tlx.data.conll_columns import read_columns
from tlx.data.conll_json import WORDS, split_words
from tlx.data.table_rows import SUFFIXES as TABLES
from tlx.data.table_rows import Record, read_records
from tlx.data.tagged import TaggedTexts
from tlx.data.text_file import at_line, check_text, decoded, json_objects, read_text, shown
from tlx.data.text_table import text_schema, texts_of
from tlx.data.texts import Texts
from tlx.errors import InputError
from tlx.files import printable

LINES = ".txt"
COLUMNS = (".conll", ".bio", ".iob")
STDIN = "stdin"  # what errors call the standard input
_EXPECTED = "a text on each line"
# What is written of an input beside its own columns; of them, those in a CSV begin with it and a dot.
_WRITTEN = frozenset(
    "line prediction probability probabilities entities marked cut_off input".split()
)

Facts = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class NewInputs:
    """Inputs in their order."""

    examples: Any  # Texts, TaggedTexts or PictureFiles
    facts: Sequence[Facts]  # what is known of each beforehand: where it stands, its columns
    notes: tuple[str, ...] = ()
    texts: tuple[str, ...] | None = None  # that the words are of; None: there are but words

    def __len__(self) -> int:
        return len(self.facts)


@dataclasses.dataclass(frozen=True)
class _Read:
    """What a file holds: for each input its text, the two of its pair, or its words."""

    title: str
    contents: Sequence[tuple[str, ...]]
    facts: Sequence[Facts]
    are_words: bool = False
    notes: tuple[str, ...] = ()


def read_texts(path: Path, config: DataConfig, class_names: Sequence[str], task: str) -> NewInputs:
    """Returns the texts of a file.

    A .txt has one on each line. A .csv, .tsv or .jsonl has columns as those of the source `table`; all of them are kept as
    facts. For tagging, texts are split by `tlx.data.conll_json.split_words`; a .conll has sentences of words, with or
    without tags, and a .jsonl may have lists of words as `tokens` or `words`.

    Args:
      path: of the file; "-": lines of the standard input.
      config: its columns.
      class_names: of the run.
      task: of the run.

    Raises:
      InputError: names the line: no UTF-8 text, a NUL, a blank line or empty text, no such column; the file is empty, or of
        another kind.
    """
    tagging = task == "tagging"
    return _inputs(_read(path, config, tagging), class_names, tagging)


def _read(path: Path, config: DataConfig, tagging: bool) -> _Read:
    suffix = path.suffix.lower()
    if str(path) == "-":
        return _lines(Path(STDIN), decoded(Path(STDIN), sys.stdin.buffer.read(), _EXPECTED))
    if suffix == LINES:
        return _lines(path, read_text(path, _EXPECTED))
    if tagging and suffix in COLUMNS:
        return _columns(path)
    if suffix in TABLES:
        words = _word_lists(path) if tagging and suffix == ".jsonl" else None
        return words or _table(path, config)
    kinds = (LINES, *TABLES, *(COLUMNS if tagging else ()))
    what = "a folder" if path.is_dir() else shown(suffix) if suffix else "no suffix"
    why = " (tagged words, which only task=tagging reads)" if suffix in COLUMNS else ""
    raise InputError(
        f"{printable(path)}: {what}{why}, expected one of {', '.join(kinds)}"
        f"{nearest(suffix, kinds) if suffix else ''}"
    )


def given_texts(inputs: Sequence[Any], class_names: Sequence[str], task: str) -> NewInputs:
    """Returns the texts of a sequence: strings, or pairs of them.

    Raises:
      InputError: names the place: no string, an empty one, or one that is no text; not all are texts, or all pairs.
    """
    contents = [tuple(item) if isinstance(item, (list, tuple)) else (item,) for item in inputs]
    if not contents:
        raise InputError("there are no inputs")
    for index, parts in enumerate(contents):
        if len(parts) != len(contents[0]) or len(parts) not in (1, 2):
            raise InputError(
                f"inputs[{index}]: {len(parts)} texts, expected a string, or for each input a pair of them"
            )
        for text in parts:
            _check(f"inputs[{index}]", text)
    names = ("text", "pair")
    facts = [
        {"index": index} | dict(zip(names, parts, strict=False))
        for index, parts in enumerate(contents)
    ]
    return _inputs(_Read("inputs", contents, facts), class_names, task == "tagging")


def _inputs(read: _Read, class_names: Sequence[str], tagging: bool) -> NewInputs:
    names, contents = tuple(class_names), read.contents
    lines = None
    if "line" in read.facts[0]:
        lines = np.array([facts["line"] for facts in read.facts], np.int64)
    notes = read.notes
    if not tagging:
        first, *second = zip(*contents, strict=True)
        labels = np.zeros(len(first), np.int32)
        if second:
            notes = (
                "each input is a pair of texts (data.text_column alone takes one of them)",
                *notes,
            )
        texts = Texts(first, second[0] if second else None, labels, names, read.title, lines)
        return NewInputs(texts, read.facts, notes)
    if not read.are_words and len(contents[0]) == 2:
        raise InputError(
            f"{read.title}: the inputs are pairs of texts, but words of one are tagged (data.text_column names it)"
        )
    words = tuple(contents) if read.are_words else tuple(_split(text) for (text,) in contents)
    tags = tuple(np.zeros(len(own), np.int32) for own in words)
    places = np.arange(len(words)) if lines is None else lines
    examples = TaggedTexts(words, tags, names, read.title, places)
    whole = None if read.are_words else tuple(text for (text,) in contents)
    return NewInputs(examples, read.facts, notes, whole)


def _split(text: str) -> tuple[str, ...]:
    return tuple(text[start:end] for start, end in split_words(text))


def _lines(path: Path, text: str) -> _Read:
    # Not str.splitlines, which also splits at characters that a text may have.
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise InputError(
                f"{at_line(path, number)} is blank; expected {_EXPECTED} (sentences as a word a line are read from a .conll)"
            )
    facts = [{"line": number, "text": line} for number, line in enumerate(lines, 1)]
    return _Read(printable(path), [(line,) for line in lines], facts)


def _columns(path: Path) -> _Read:
    comments: list[str] = []
    text = read_text(path, "words")
    sentences = list(read_columns(path, text, comments, tagged=False))
    if not sentences:
        raise InputError(f"{printable(path)} holds no words")
    notes = f"{len(comments)} comments are no words, as {comments[0]}" if comments else ""
    facts = [{"line": each.lines[0], "words": list(each.words)} for each in sentences]
    words = [each.words for each in sentences]
    return _Read(printable(path), words, facts, True, (notes,) if notes else ())


def _word_lists(path: Path) -> _Read | None:
    """Returns the words of a .jsonl; None where its first object has none."""
    text = read_text(path, "objects, one on each line")
    objects = json_objects(path, text, '{"text": "In Rome"}')
    first = next(objects, None)
    name = next((key for key in WORDS if first and isinstance(first[1].get(key), list)), "")
    if first is None or not name:
        return None
    rows = [first, *objects]
    for line, record in rows:
        words = record.get(name)
        if not isinstance(words, list) or not words:
            raise InputError(
                f"{at_line(path, line)}: {shown(name)} is {shown(str(words))}, expected words"
            )
        for word in words:
            _check(at_line(path, line), word)
    facts = [{"line": line} | _carried(list(record.items())) for line, record in rows]
    return _Read(printable(path), [tuple(record[name]) for _, record in rows], facts, True)


def _table(path: Path, config: DataConfig) -> _Read:
    schema = dataclasses.replace(text_schema(config, None), whole=True)
    records = read_records(path, schema)
    contents = [texts_of(record) for record in records]
    return _Read(printable(path), contents, [facts_of(record) for record in records])


def facts_of(record: Record) -> Facts:
    """Returns a table's line and all its columns by their names, those of what is written changed: `input.prediction`.

    Raises:
      InputError: two columns of one name.
    """
    names = [name for name, _ in record.row]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{record.where}: two columns are called {shown(twice)}; rename one")
    return {"line": record.line} | _carried(record.row)


def _carried(row: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    return {
        f"input.{name}" if name.partition(".")[0] in _WRITTEN else name: value
        for name, value in row
    }


def _check(where: str, text: Any) -> None:
    if not isinstance(text, str):
        raise InputError(f"{where}: {shown(str(text))} is no string")
    if not text.strip():
        raise InputError(f"{where}: the text is empty")
    check_text(where, text)
