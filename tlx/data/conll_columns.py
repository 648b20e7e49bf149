"""Tagged sentences in columns, as CoNLL's shared tasks had them: a word a line, its tag last."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

from tlx.data.tagged import Sentence
from tlx.data.text_file import at_line, shown
from tlx.errors import InputError

DOCUMENT = "-DOCSTART-"

# What CoNLL-U writes before a sentence. A word that is # has a tag beside it.
_KEY = re.compile(r"#\s*(?:[\w.:-]+\s*=|newdoc\b|newpar\b)")
_SPACES = " \t\r\f\v"  # a no-break space can be a word


@dataclasses.dataclass
class _Columns:
    """How many columns a file has, and where that was seen."""

    count: int = 0
    line: int = 0


def read_columns(path: Path, text: str, comments: list[str]) -> Iterator[Sentence]:
    """Yields the sentences of a file of columns.

    Columns are separated by tabs where a line has one, else by spaces; the first is the word, the last
    its tag. Sentences end at lines without anything but white space, and at -DOCSTART- lines, which
    are no words. A line that begins with # and has no tab is a comment if it has one column or
    is as `# text = ...`; it is added to `comments`.

    Raises:
      InputError: names the line: one column, another number of them than before, no word or no tag.
    """
    columns = _Columns()
    words: list[tuple[int, str, str]] = []
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip() or content.startswith(DOCUMENT):
            if words:
                yield _sentence(path, words)
            words = []
        elif _is_comment(content):
            comments.append(f"line {line} {shown(content.strip())}")
        else:
            words.append((line, *_word(path, line, content, columns)))
    if words:
        yield _sentence(path, words)


def _is_comment(content: str) -> bool:
    if not content.startswith("#") or "\t" in content:
        return False
    return len(content.split()) == 1 or _KEY.match(content) is not None


def _word(path: Path, line: int, content: str, columns: _Columns) -> tuple[str, str]:
    content = content.rstrip("\r")
    if "\t" in content:
        fields = [field.strip(_SPACES) for field in content.split("\t")]
    else:
        fields = [field for field in re.split(f"[{_SPACES}]+", content) if field]
    where = at_line(path, line)
    if len(fields) == 1:
        raise InputError(
            f"{where}: one column, {shown(fields[0])}; expected a word and its tag, separated by a "
            "tab or spaces"
        )
    if columns.line and len(fields) != columns.count:
        raise InputError(
            f"{where}: {len(fields)} columns, but line {columns.line} has {columns.count}"
        )
    if not columns.line:
        columns.count, columns.line = len(fields), line
    for name, field in (("word (the first column)", fields[0]), ("tag (the last one)", fields[-1])):
        if not field:
            raise InputError(f"{where}: there is no {name}")
    return fields[0], fields[-1]


def _sentence(path: Path, words: list[tuple[int, str, str]]) -> Sentence:
    lines, texts, tags = zip(*words, strict=True)
    return Sentence(path, lines, texts, tags)
