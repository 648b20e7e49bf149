"""What lies beside a vocabulary: reading the small files of a tokenizer, and the settings in them."""

from __future__ import annotations

import dataclasses
import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tlx.config import nearest
from tlx.errors import InputError, InputFileNotFoundError
from tlx.files import printable

CONFIG = "tokenizer_config.json"
_SPECIAL = "special_tokens_map.json"
_ADDED = "added_tokens.json"
FILES = (CONFIG, _SPECIAL, _ADDED)  # read where they are there
_LARGEST = 256 * 2**20  # bytes of a file
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of a folder; a file that is not there says nothing."""

    folder: Path
    config: Mapping[str, Any]  # tokenizer_config.json
    special: Mapping[str, Any]  # special_tokens_map.json
    added: Mapping[str, Any]  # added_tokens.json: token -> id

    @classmethod
    def read(cls, folder: Path) -> Settings:
        """Raises InputError: names the file that is damaged."""
        files = (read_object(folder / name) for name in FILES)
        return cls(folder, *files)

    def flag(self, name: str, default: bool | None) -> bool | None:
        """Returns a switch of the tokenizer. Raises InputError: it is neither true nor false."""
        value = self.config.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise InputError(f"{self._where(CONFIG)}: {name} is {value!r}, expected true or false")
        return value

    def token(self, role: str, default: str) -> dict[str, Any]:
        """Returns the token of a role, as cls_token, in the form of a `tokenizer.json` without its id.

        Raises:
          InputError: it is no token.
        """
        for name, values in ((CONFIG, self.config), (_SPECIAL, self.special)):
            if values.get(role) is not None:
                return _token(values[role], f"{self._where(name)}: {role}", special=True)
        return _token(default, role, special=True)

    def tokens_beside(self) -> list[tuple[int, dict[str, Any]]]:
        """Returns ids and tokens that the settings name by their ids.

        Raises:
          InputError: one of them is no token or has no id.
        """
        listed = self.config.get("added_tokens_decoder") or {}
        where = f"{self._where(CONFIG)}: added_tokens_decoder"
        if not isinstance(listed, dict):
            raise InputError(f"{where} is no object of ids and tokens")
        found = {
            _id(index, where): _token(value, f"{where} {index}", special=False)
            for index, value in listed.items()
        }
        for content, index in self.added.items():
            where = f"{self._where(_ADDED)}: {content!r}"
            found.setdefault(_id(index, where), _token(content, where, special=False))
        return sorted(found.items())

    def _where(self, name: str) -> str:
        return printable(self.folder / name)


def with_ids(
    vocabulary: Mapping[str, int], tokens: list[dict[str, Any]], settings: Settings, where: str
) -> list[dict[str, Any]]:
    """Returns the added tokens of a `tokenizer.json`, sorted by id.

    Args:
      vocabulary: token -> id.
      tokens: special tokens; those that the vocabulary lacks get the ids after it.
      settings: may add further tokens.
      where: what errors call the vocabulary.

    Raises:
      InputError: the settings give a token another id than the vocabulary, or leave a gap after it.
    """
    beside = settings.tokens_beside()
    named = {token["content"]: index for index, token in beside}
    if len(named) != len(beside):
        raise InputError(f"{where}: {CONFIG} or {_ADDED} beside it give one token two ids")
    end = 1 + max([*vocabulary.values(), *named.values()])
    for token in tokens:
        if token["content"] not in vocabulary and token["content"] not in named:
            beside.append((end, token))
            end += 1
    known = {index: token for token, index in vocabulary.items()}
    special = {token["content"] for token in tokens if token["special"]}
    entries = {vocabulary[t["content"]]: t for t in tokens if t["content"] in vocabulary}
    for index, token in beside:
        content = token["content"]
        if vocabulary.get(content, index) != index or known.get(index, content) != content:
            raise InputError(f"{where}: {content!r} has another id than {index}, its id beside it")
        entries[index] = {**token, "special": token["special"] or content in special}
    for index in range(1 + max(known), end):
        if index not in entries:
            raise InputError(f"{where}: nothing says what token {index}, after its end, is")
    return [{"id": index, **entries[index]} for index in sorted(entries)]


def required(vocabulary: Mapping[str, int], token: str, role: str, where: str) -> int:
    """Returns the id of a special token. Raises InputError: the vocabulary lacks it."""
    if token not in vocabulary:
        raise InputError(
            f"{where}: the vocabulary has no {token!r}, which is the {role} ({CONFIG} may name "
            f"another){nearest(token, list(vocabulary)[:1000])}"
        )
    return vocabulary[token]


def read_bytes(path: Path) -> bytes:
    """Returns a whole file.

    Raises:
      InputError: it cannot be read, is too large, or no file.
      InputFileNotFoundError: it is not there.
    """
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise InputError(f"{printable(path)} is not a file")
        if facts.st_size > _LARGEST:
            raise InputError(
                f"{printable(path)} has {facts.st_size / 2**20:.0f} MiB, more than the "
                f"{_LARGEST >> 20} MiB that a tokenizer may have"
            )
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputFileNotFoundError(f"{printable(path)} is not there") from error
    except OSError as error:
        raise InputError(f"{printable(path)} cannot be read: {error.strerror}") from error


def read_text(path: Path) -> str:
    """Returns a whole text file. Raises as `read_bytes`, and InputError: it is not UTF-8."""
    data = read_bytes(path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{printable(path)} line {line}: byte 0x{data[error.start]:02x} is not UTF-8"
        ) from error


def read_object(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file; an empty one if there is no such file.

    Raises:
      InputError: the file is damaged or holds no object.
    """
    if not path.exists():
        return {}
    value = parse_json(read_text(path), printable(path))
    if not isinstance(value, dict):
        raise InputError(f"{printable(path)}: expected an object of names and values")
    return value


def parse_json(text: str, where: str) -> Any:
    """Returns what JSON says. Raises InputError: it is none, or says one name twice."""
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"{twice[:80]!r} is there twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _token(value: Any, where: str, *, special: bool) -> dict[str, Any]:
    facts = value if isinstance(value, dict) else {"content": value}
    content = facts.get("content")
    flags = {name: facts.get(name, name == "special" and special) for name in _FLAGS}
    if not isinstance(content, str) or not content:
        raise InputError(f"{where} is no token")
    if not all(isinstance(flag, bool) for flag in flags.values()):
        raise InputError(f"{where}: {', '.join(_FLAGS)} are true or false")
    return {"content": content, **flags, "special": flags["special"] or special}


def _id(value: Any, where: str) -> int:
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        value = int(value[:20])
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise InputError(f"{where}: {str(value)[:80]!r} is no id of a token")
    return value
