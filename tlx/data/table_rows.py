"""The rows of an image table: CSV, TSV or JSONL, to paths, labels and splits, each with its line."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tlx.config import nearest
from tlx.data.picture_files import SPLIT_NAMES, printable
from tlx.errors import InputError

SUFFIXES = (".csv", ".tsv", ".jsonl")
SEPARATOR = "|"  # between the labels of one picture in a CSV; the others may delimit its columns

# What a column may be called, without regard to case, spaces and underscores.
_COLUMNS = {
    "path": ("path", "file", "filename", "image"),
    "label": ("label", "labels", "class", "target"),
    "split": ("split",),
}
_NEEDED = ("path", "label")
_DELIMITERS = (",", "\t", ";")
_SHOWN = 80  # characters of a value in an error


@dataclasses.dataclass(frozen=True)
class Row:
    """One picture of a table."""

    table: Path
    line: int  # where the row begins; the first line is 1
    path: str  # as it is written
    labels: tuple[str, ...]
    split: str  # train, val or test; "" where the table has no such column

    @property
    def where(self) -> str:
        """What an error begins with."""
        return _where(self.table, self.line)


def read_rows(table: Path) -> list[Row]:
    """Reads a whole table.

    A CSV has a header line; its delimiter is whichever of comma, tab and semicolon makes the header
    name a path and a label. Quotes are as in RFC 4180, spaces after a delimiter and around a label
    are dropped, several labels stand in one field, as `cat|dog`. A JSONL has one object on each
    line, the labels as a string, a whole number or a list of them. Blank lines are passed over, as
    are columns of other names.

    Raises:
      InputError: names the line: not UTF-8, broken quotes or JSON, a row of another length than the
        header, no such columns, an empty path, a label that is empty, twice in a row or no text, an
        unknown split; or there are no rows.
    """
    text = _text(table)
    rows = list(_from_json(table, text) if table.suffix.lower() == ".jsonl" else _csv(table, text))
    if not rows:
        raise InputError(f"{printable(table)} holds no rows")
    return rows


def shown(text: str) -> str:
    """Returns a value of the table as an error shows it: in quotes, on one line, not too long."""
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")


def _where(table: Path, line: int) -> str:
    return f"{printable(table)} line {line}"


def _text(table: Path) -> str:
    try:
        data = table.read_bytes()
    except OSError as error:
        raise InputError(f"{printable(table)} cannot be read: {error.strerror}") from error
    if not data.strip():
        raise InputError(f"{printable(table)} is empty; expected a table of path and label")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"{printable(table)} is UTF-16; save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        where = _where(table, data.count(b"\n", 0, error.start) + 1)
        raise InputError(
            f"{where}: byte 0x{data[error.start]:02x} is not UTF-8; save the table as UTF-8"
        ) from error
    if "\0" in text:
        where = _where(table, text.count("\n", 0, text.index("\0")) + 1)
        raise InputError(f"{where}: a NUL byte; this is no text, or a damaged one")
    return text


def _csv(table: Path, text: str) -> Iterator[Row]:
    headers = {delimiter: _header(text, delimiter) for delimiter in _DELIMITERS}
    delimiter = max(_DELIMITERS, key=lambda d: (_named(headers[d]), len(headers[d])))
    columns: tuple[str, ...] | None = None
    roles: dict[str, int] = {}
    reader = _reader(text, delimiter)
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise InputError(
                f"{_where(table, line)}: {error} (a quote that opens here must close before a "
                "delimiter or the end of the line; quotes inside are doubled)"
            ) from error
        if fields is None:
            return
        if not fields:
            continue
        if columns is None:
            columns = tuple(fields)
            roles = _roles(_where(table, line), columns)
            continue
        if len(fields) != len(columns):
            raise InputError(
                f"{_where(table, line)}: {len(fields)} fields, but the header has {len(columns)} "
                "(a field with the delimiter in it needs quotes)"
            )
        yield _row(table, line, {role: fields[index] for role, index in roles.items()})


def _reader(text: str, delimiter: str) -> Any:
    # newline="" leaves line ends inside quotes as they are.
    lines = io.StringIO(text, newline="")
    return csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)


def _header(text: str, delimiter: str) -> tuple[str, ...]:
    try:
        return tuple(next((fields for fields in _reader(text, delimiter) if fields), ()))
    except csv.Error:  # read again with the chosen delimiter, the error says where
        return ()


def _named(columns: Sequence[str]) -> int:
    plain = set(map(_plain, columns))
    return sum(not plain.isdisjoint(_COLUMNS[role]) for role in _NEEDED)


def _plain(column: str) -> str:
    return re.sub(r"[\s_]+", "", column).casefold()


def _from_json(table: Path, text: str) -> Iterator[Row]:
    first: tuple[int, dict[str, str]] | None = None
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        where = _where(table, line)
        try:
            record = json.loads(content, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: not one JSON object: {shown(str(error))}") from error
        if not isinstance(record, dict):
            raise InputError(f'{where}: expected an object, as {{"path": "a.jpg", "label": "cat"}}')
        columns = tuple(record)
        names = {role: columns[index] for role, index in _roles(where, columns).items()}
        first = first or (line, names)
        if names != first[1]:
            here, there = (", ".join(map(shown, n.values())) for n in (names, first[1]))
            raise InputError(f"{where} has {here}, but line {first[0]} has {there}")
        yield _row(table, line, {role: record[name] for role, name in names.items()})


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError("a key is there twice")
    return record


def _roles(where: str, columns: tuple[str, ...]) -> dict[str, int]:
    try:
        return _roles_of(columns)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


@functools.lru_cache(maxsize=64)  # objects of a JSONL have the same keys again and again
def _roles_of(columns: tuple[str, ...]) -> dict[str, int]:
    roles: dict[str, int] = {}
    for role, names in _COLUMNS.items():
        found = [index for index, column in enumerate(columns) if _plain(column) in names]
        if len(found) > 1:
            both = " and ".join(shown(columns[index]) for index in found)
            raise InputError(f"columns {both} could both be the {role}; rename one")
        if found:
            roles[role] = found[0]
        elif role in _NEEDED:
            there = ", ".join(map(shown, columns[:10])) + (", ..." if len(columns) > 10 else "")
            raise InputError(
                f"no column for the {role} (one of {', '.join(names)}); the columns are "
                f"{there or 'none'} (a CSV begins with a header line, as path,label)"
            )
    return roles


def _row(table: Path, line: int, values: dict[str, Any]) -> Row:
    where = _where(table, line)
    path = values["path"]
    if not isinstance(path, str):
        raise InputError(f"{where}: the path is {shown(str(path))}, expected a string")
    if not path.strip():
        raise InputError(f"{where}: the path is empty")
    labels = _labels(where, values["label"], split=table.suffix.lower() != ".jsonl")
    if "split" not in values:
        return Row(table, line, path, labels, "")
    name = str(values["split"]).strip()
    if name.lower() not in SPLIT_NAMES:
        raise InputError(
            f"{where}: the split is {shown(name)}, expected train, val or test"
            f"{nearest(name[:_SHOWN], SPLIT_NAMES)}"
        )
    return Row(table, line, path, labels, SPLIT_NAMES[name.lower()])


def _labels(where: str, value: Any, *, split: bool) -> tuple[str, ...]:
    if isinstance(value, str):
        value = value.split(SEPARATOR) if split else [value]
        value = [] if len(value) == 1 and not value[0].strip() else value
    elif not isinstance(value, list):
        value = [value]
    labels = tuple(_label(where, item) for item in value)
    if len(set(labels)) != len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise InputError(f"{where}: label {shown(twice)} is there twice")
    return labels


def _label(where: str, value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise InputError(
            f"{where}: label {shown(json.dumps(value))} is neither a string nor a whole number"
        )
    label = value.strip()
    if not label:
        raise InputError(f"{where}: one of the labels is empty")
    if not _is_text(label):
        raise InputError(f"{where}: label {shown(label)} has a character that is no text")
    return label


@functools.lru_cache(maxsize=65536)  # tables have many rows of few labels
def _is_text(label: str) -> bool:
    """Whether a label is without control characters and halves of surrogate pairs."""
    return not any(unicodedata.category(character) in ("Cc", "Cs") for character in label)
