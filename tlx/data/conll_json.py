"""Tagged sentences in JSONL: texts with spans of characters, or words with their tags."""

from __future__ import annotations

import bisect
import functools
import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tlx.config import nearest
from tlx.data.tag_scheme import OUTSIDE
from tlx.data.tagged import Sentence
from tlx.data.text_file import at_line, json_objects, shown
from tlx.errors import InputError

EXAMPLE = '{"text": "In Rome", "entities": [{"start": 3, "end": 7, "label": "location"}]}'

# What may hold what; the first that is there counts.
_SPANS = ("entities", "spans")
WORDS = ("tokens", "words")
_TAGS = ("tags", "ner_tags")
# Scripts that put no spaces between words, as BERT's tokenizer separates them: ideographs, and kana.
_ALONE = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f]")

Span = tuple[int, int, str]  # start, end, type


def read_json(path: Path, text: str, widened: list[str]) -> Iterator[Sentence]:
    """Yields the sentences of a JSONL file, one object a line.

    With `text` and `entities` (or `spans`) the text is split by `split_words` and gets IOB2 tags. An entity is
    {"start", "end", "label"} or [start, end, label], in characters, the end excluded. One that
    begins or ends inside a word has the whole word; what it was is added to `widened`. With
    `tokens` (or `words`) and `tags` (or `ner_tags`) these are taken as they are.

    Raises:
      InputError: names the line: broken JSON, neither of these, no words, entities that overlap,
        are outside the text or without a word, another number of tags than of words.
    """
    for line, record in json_objects(path, text, EXAMPLE):
        where = at_line(path, line)
        spans, words, tags = (_first(record, names) for names in (_SPANS, WORDS, _TAGS))
        if spans and "text" in record:
            found = _from_spans(where, record["text"], record[spans], widened)
        elif words and tags:
            found = _from_words(where, words, record[words], tags, record[tags])
        else:
            raise InputError(
                f"{where}: no text with entities and no tokens with tags, only "
                f"{', '.join(map(shown, record)) or 'nothing'}{_hint(record)}; expected as {EXAMPLE}"
            )
        yield Sentence(path, (line,) * len(found[0]), *found)


def split_words(text: str) -> list[tuple[int, int]]:
    """Returns where the words of a text begin and end.

    A word is a run of characters that are neither white space nor punctuation or symbols, or a run of
    punctuation and symbols (Unicode's categories P and S); Chinese and Japanese characters stand alone.
    """
    groups = itertools.groupby(range(len(text)), key=lambda index: _kind(text[index], index))
    runs = [(kind, list(places)) for kind, places in groups]
    return [(places[0], places[-1] + 1) for kind, places in runs if kind != "space"]


def _kind(character: str, index: int) -> str:
    return str(index) if _ALONE.match(character) else _category(character)


@functools.lru_cache(maxsize=4096)
def _category(character: str) -> str:
    if character.isspace():
        return "space"
    return "mark" if unicodedata.category(character)[0] in "PS" else "letter"


def _first(record: dict[str, Any], names: Sequence[str]) -> str:
    return next((name for name in names if name in record), "")


def _hint(record: dict[str, Any]) -> str:
    known = ("text", *_SPANS, *WORDS, *_TAGS)
    hints = (nearest(key[:80], known) for key in record if key not in known)
    return next((hint for hint in hints if hint), "")


def _from_spans(
    where: str, text: Any, spans: Any, widened: list[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if not isinstance(text, str) or not isinstance(spans, list):
        raise InputError(f"{where}: expected a text and a list of entities, as {EXAMPLE}")
    places = split_words(text)
    if not places:
        raise InputError(f"{where}: the text is empty")
    starts, ends = zip(*places, strict=True)
    tags = [OUTSIDE] * len(places)
    before: Span = (0, 0, "")
    for span in sorted(_span(where, text, item) for item in spans):
        start, end, label = span
        if start < before[1]:
            raise InputError(
                f"{where}: {_described(text, before)} and {_described(text, span)} overlap"
            )
        own = range(bisect.bisect_right(ends, start), bisect.bisect_left(starts, end))
        if not own:
            raise InputError(f"{where}: {_described(text, span)} has no word")
        if tags[own[0]] != OUTSIDE:
            shared = text[slice(*places[own[0]])]
            raise InputError(
                f"{where}: {_described(text, before)} and {_described(text, span)} are both in the "
                f"word {shown(shared)}"
            )
        for index in own:
            tags[index] = f"{'B' if index == own[0] else 'I'}-{label}"
        outer = text[places[own[0]][0] : places[own[-1]][1]]
        if outer != text[start:end].strip():
            widened.append(f"{where}: {shown(text[start:end])} to {shown(outer)}")
        before = span
    return tuple(text[start:end] for start, end in places), tuple(tags)


def _span(where: str, text: str, item: Any) -> Span:
    if isinstance(item, dict):
        item = [item.get(name) for name in ("start", "end", "label")]
    if not (isinstance(item, list) and len(item) == 3 and isinstance(item[2], str)):
        raise InputError(
            f"{where}: an entity is {shown(str(item))}, expected start, end and label, as {EXAMPLE}"
        )
    start, end, label = item[0], item[1], item[2].strip()
    if not (type(start) is type(end) is int and 0 <= start < end <= len(text)):
        raise InputError(
            f"{where}: an entity is from {start} to {end}, but the text has the characters 0 to "
            f"{len(text)}"
        )
    if not label.strip("-"):
        raise InputError(f"{where}: {_described(text, (start, end, ''))} has no label")
    return start, end, label


def _described(text: str, span: Span) -> str:
    return f"the entity {shown(text[span[0] : span[1]])} ({span[0]} to {span[1]})"


def _from_words(
    where: str, words_name: str, words: Any, tags_name: str, tags: Any
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    for name, values in ((words_name, words), (tags_name, tags)):
        if not (isinstance(values, list) and all(isinstance(value, str) for value in values)):
            raise InputError(
                f"{where}: {shown(name)} is {shown(str(values))}, expected a list of strings"
                + (" (names of tags, not numbers)" if name == tags_name else "")
            )
    if len(words) != len(tags):
        raise InputError(
            f"{where}: {len(words)} in {shown(words_name)}, but {len(tags)} in {shown(tags_name)}"
        )
    if not words or not all(word.strip() for word in words):
        raise InputError(f"{where}: {'there are no words' if not words else 'a word is empty'}")
    return tuple(words), tuple(tags)
