"""The rows of a table, CSV, TSV or JSONL: each a record of what its columns are for, with its line."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import io
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tlx.data.text_file import at_line, json_objects, read_text, shown
from tlx.errors import InputError
from tlx.files import printable

SUFFIXES = (".csv", ".tsv", ".jsonl")

_DELIMITERS = (",", "\t", ";")
_LONGEST = 131_072  # characters of a field that is no text: more means that a quote never closed


@dataclasses.dataclass(frozen=True)
class Record:
    """One row of a table."""

    table: Path
    line: int  # where the row begins; the first line is 1
    values: Mapping[str, Any]  # by role: strings, in a JSONL whatever JSON has
    split: str = ""  # train, val or test; "" where nothing says it
    row: tuple[tuple[str, Any], ...] = ()  # all columns and what is in them, with `Schema.whole`

    @property
    def where(self) -> str:
        """What an error begins with."""
        return at_line(self.table, self.line)

    @property
    def is_json(self) -> bool:
        """Whether its values have types of their own."""
        return self.table.suffix.lower() == ".jsonl"

    def string(self, role: str) -> str:
        """Returns a value that must be text, as it is written. Raises InputError where it is not, or is empty."""
        value = self.values[role]
        if not isinstance(value, str):
            raise InputError(f"{self.where}: the {role} is {shown(str(value))}, expected a string")
        if not value.strip():
            raise InputError(f"{self.where}: the {role} is empty")
        return value


@dataclasses.dataclass(frozen=True)
class Schema:
    """What is looked for in a table."""

    header: str  # an example of one, for errors: path,label
    find: Callable[[tuple[str, ...]], dict[str, int]]  # columns -> role -> index; or InputError
    texts: bool = False  # fields may be long, and in a TSV have quotes that mean nothing
    whole: bool = False  # records have all columns, not only those that are looked for


def read_records(table: Path, schema: Schema) -> list[Record]:
    """Reads a whole table.

    A CSV has a header line; its delimiter is whichever of comma, tab and semicolon makes the header
    one in which the schema finds its columns. Quotes are as in RFC 4180, spaces after a delimiter
    are dropped. A JSONL has one object on each line. Blank lines are passed over, as are columns
    that the schema does not look for.

    Where the schema is of texts, the quotes of a .tsv are often part of the texts (GLUE's are
    written so). They are taken literally if each line then has as many fields as the header,
    unless quoting shows: the header has it, or all fields that begin with a quote are quoted as in
    RFC 4180 and one has a doubled quote inside.

    Raises:
      InputError: names the line: not UTF-8, broken quotes or JSON, a row of another length than the
        header, no such columns; or there are no rows.
    """
    expected = " and ".join(schema.header.split(","))
    text = read_text(table, f"a table of {expected}")
    read = _from_json if table.suffix.lower() == ".jsonl" else _from_csv
    with _field_limit(len(text) + 1 if schema.texts else _LONGEST):
        records = list(read(table, text, schema))
    if not records:
        raise InputError(f"{printable(table)} holds no rows")
    return records


@contextlib.contextmanager
def _field_limit(characters: int) -> Iterator[None]:
    before = csv.field_size_limit(characters)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _from_csv(table: Path, text: str, schema: Schema) -> Iterator[Record]:
    delimiter = _delimiter(text, schema)
    literal = schema.texts and table.suffix.lower() == ".tsv" and delimiter == "\t"
    rows = _literal_rows(text) if literal and _is_literal(text) else None
    columns: tuple[str, ...] | None = None
    roles: dict[str, int] = {}
    for line, fields in _quoted_rows(table, text, delimiter) if rows is None else rows:
        if columns is None:
            columns = tuple(fields)
            roles = _found(at_line(table, line), columns, schema.find)
            continue
        if len(fields) != len(columns):
            raise InputError(
                f"{at_line(table, line)}: {len(fields)} fields, but the header has {len(columns)} "
                "(a field with the delimiter in it needs quotes)"
            )
        values = {role: fields[index] for role, index in roles.items()}
        row = tuple(zip(columns, fields, strict=True)) if schema.whole else ()
        yield Record(table, line, values, row=row)


def _quoted_rows(table: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    reader = _reader(text, delimiter)
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise InputError(
                f"{at_line(table, line)}: {error} (a quote that opens here must close before a "
                "delimiter or the end of the line; quotes inside are doubled)"
            ) from error
        if fields is None:
            return
        if fields:
            yield line, fields


def _literal_rows(text: str) -> Iterator[tuple[int, list[str]]]:
    # Not str.splitlines, which also splits at characters that a text may have.
    for line, content in enumerate(text.split("\n"), 1):
        content = content.removesuffix("\r")
        if content:
            yield line, content.split("\t")


def _is_literal(text: str) -> bool:
    """Whether quotes are part of the texts of a TSV; see `read_records`."""
    _, header = next(_literal_rows(text.lstrip("\r\n")))
    if '"' in [field[:1] for field in header] or re.search(r"\r(?!\n|\Z)", text):
        return False
    well_formed, doubled = True, False
    for _, fields in _literal_rows(text):
        if len(fields) != len(header):
            return False
        for field in fields:
            if field[:1] == '"':
                well_formed = well_formed and bool(re.fullmatch(r'"(?:[^"]|"")*"', field))
                doubled = doubled or '""' in field[1:-1]
    return not (well_formed and doubled)


def _delimiter(text: str, schema: Schema) -> str:
    """Returns that with which the schema finds its columns in the header; else that with most fields."""
    headers = {delimiter: _header(text, delimiter) for delimiter in _DELIMITERS}

    def fits(columns: tuple[str, ...]) -> bool:
        try:
            schema.find(columns)
        except InputError:
            return False
        return True

    return max(_DELIMITERS, key=lambda d: (fits(headers[d]), len(headers[d])))


def _reader(text: str, delimiter: str) -> Any:
    # newline="" leaves line ends inside quotes as they are.
    lines = io.StringIO(text, newline="")
    return csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)


def _header(text: str, delimiter: str) -> tuple[str, ...]:
    try:
        return tuple(next((fields for fields in _reader(text, delimiter) if fields), ()))
    except csv.Error:  # read again with the chosen delimiter, the error says where
        return ()


def _from_json(table: Path, text: str, schema: Schema) -> Iterator[Record]:
    find = functools.lru_cache(maxsize=64)(
        schema.find
    )  # objects have the same keys again and again
    first: tuple[int, dict[str, str]] | None = None
    keys = ", ".join(f'"{key}": "..."' for key in schema.header.split(","))
    for line, record in json_objects(table, text, f"{{{keys}}}"):
        where = at_line(table, line)
        columns = tuple(record)
        names = {role: columns[i] for role, i in _found(where, columns, find).items()}
        first = first or (line, names)
        if names != first[1]:
            here, there = (", ".join(map(shown, n.values())) for n in (names, first[1]))
            raise InputError(f"{where} has {here}, but line {first[0]} has {there}")
        values = {role: record[name] for role, name in names.items()}
        yield Record(table, line, values, row=tuple(record.items()) if schema.whole else ())


def _found(
    where: str, columns: tuple[str, ...], find: Callable[[tuple[str, ...]], dict[str, int]]
) -> dict[str, int]:
    try:
        return find(columns)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
