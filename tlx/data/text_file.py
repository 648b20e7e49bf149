"""Text files of data: read whole, and refused with the line where they are no UTF-8 text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tlx.errors import InputError
from tlx.files import printable

_NO_TEXT = re.compile("[\0\ud800-\udfff]")
_SHOWN = 80  # characters of a value in an error


def shown(text: str) -> str:
    """Returns a value of a file as an error shows it: in quotes, on one line, not too long."""
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")


def check_text(where: str, text: str) -> None:
    """Raises InputError, which begins with `where`, for a string that a file of text could not hold."""
    if _NO_TEXT.search(text):
        raise InputError(
            f"{where}: {shown(text)} has a NUL or half of a surrogate pair, which is no text"
        )


def at_line(path: Path, line: int) -> str:
    """Returns what an error about a line begins with; the first line is 1."""
    return f"{printable(path)} line {line}"


def read_text(path: Path, expected: str) -> str:
    """Returns the file's text, without a byte order mark.

    Args:
      path: the file.
      expected: what should have been in an empty one, for its error.

    Raises:
      InputError: names the line: not UTF-8, a NUL byte; or the file is empty or cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{printable(path)} cannot be read: {error.strerror}") from error
    return decoded(path, data, expected)


def decoded(path: Path, data: bytes, expected: str) -> str:
    """Returns the text that a file's content is; arguments and errors as for `read_text`."""
    if not data.removeprefix(b"\xef\xbb\xbf").strip():
        raise InputError(f"{printable(path)} is empty; expected {expected}")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"{printable(path)} is UTF-16; save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        where = at_line(path, data.count(b"\n", 0, error.start) + 1)
        raise InputError(
            f"{where}: byte 0x{data[error.start]:02x} is not UTF-8, it may be latin-1 (ISO-8859-1 or "
            "Windows-1252); save the file as UTF-8 (iconv -f WINDOWS-1252 -t UTF-8)"
        ) from error
    if "\0" in text:
        where = at_line(path, text.count("\n", 0, text.index("\0")) + 1)
        raise InputError(f"{where}: a NUL byte; this is no text, or a damaged one")
    return text


def json_objects(path: Path, text: str, example: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields each line's number and its object; blank lines are passed over.

    Raises:
      InputError: names the line that is not one JSON object, or has a key twice; it shows `example`.
    """
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            record = json.loads(content, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{at_line(path, line)}: not one JSON object: {shown(str(error))}"
            ) from error
        if not isinstance(record, dict):
            raise InputError(f"{at_line(path, line)}: expected an object, as {example}")
        yield line, record


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError("a key is there twice")
    return record
