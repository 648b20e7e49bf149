"""The tokenizer of a model's folder as the text of a `tokenizer.json`, made from vocabulary files where there is none."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tlx.config import nearest
from tlx.errors import InputError, InputFileNotFoundError
from tlx.files import printable
from tlx.tokens import builders
from tlx.tokens.sentencepiece import parse_sentencepiece
from tlx.tokens.settings import (
    CONFIG,
    Settings,
    parse_json,
    read_bytes,
    read_object,
    read_text,
)

WHOLE = "tokenizer.json"
_LINES, _WORDS, _MERGES = "vocab.txt", "vocab.json", "merges.txt"
_DEBERTA, _XLM_ROBERTA = "spm.model", "sentencepiece.bpe.model"
# What a tokenizer is made of where there is no tokenizer.json, with the settings beside it; the first that is there.
VOCABULARIES = ((_LINES,), (_WORDS, _MERGES), (_DEBERTA,), (_XLM_ROBERTA,))
# Classes of transformers that say nothing about a tokenizer.
_GENERAL = ("", "PreTrained", "TokenizersBackend")


def read_folder(folder: Path) -> tuple[str, str]:
    """Returns the text of a folder's `tokenizer.json`, or one made from its vocabulary, and its file's name.

    Without `tokenizer.json` the family is what `tokenizer_class` in tokenizer_config.json says, else
    `model_type` in config.json, else what the names of the files say:

      BERT, DistilBERT, ELECTRA: vocab.txt, one token a line (do_lower_case, strip_accents and
        tokenize_chinese_chars as in tokenizer_config.json, or transformers' defaults)
      RoBERTa: vocab.json and merges.txt (add_prefix_space)
      DeBERTa-v2 and -v3: spm.model (do_lower_case, split_by_punct)
      XLM-RoBERTa: sentencepiece.bpe.model

    Raises:
      InputError: names the file: damaged, too large, of another family, lacking special tokens.
      InputFileNotFoundError: no such folder, or no tokenizer in it.
    """
    if not folder.is_dir():
        raise InputFileNotFoundError(f"no folder {printable(folder)} to read a tokenizer from")
    whole = folder / WHOLE
    if os.path.lexists(whole):  # a broken link is an error, not a reason to look further
        return read_text(whole), printable(whole)
    settings = Settings.read(folder)
    family = _family(folder, settings)
    build, main = _BUILDERS[family]
    if not os.path.lexists(folder / main):
        raise InputFileNotFoundError(
            f"no tokenizer: {printable(folder / main)}, of which one for {family} is made, is not there, nor is {WHOLE}"
        )
    where = printable(folder / main)
    return json.dumps(build(folder, settings, where)), where


def _family(folder: Path, settings: Settings) -> str:
    name = settings.config.get("tokenizer_class")
    source = f"{printable(folder / CONFIG)}: tokenizer_class"
    plain = str(name or "").removesuffix("Fast").removesuffix("Tokenizer")
    if plain in _GENERAL:
        name = read_object(folder / "config.json").get("model_type")
        source = f"{printable(folder / 'config.json')}: model_type"
        plain = str(name or "")
    if plain:
        family = plain.lower().replace("-", "").replace("_", "")
        if family not in _BUILDERS:
            raise InputError(
                f"{source} is {str(name)[:80]!r}: its tokenizer is read from {WHOLE} only, which "
                f"is not there (from other files: {', '.join(_BUILDERS)})"
                f"{nearest(family[:80], _BUILDERS)}"
            )
        return family
    if (folder / _LINES).exists():
        return "bert"
    if (folder / _WORDS).exists() and (folder / _MERGES).exists():
        return "roberta"
    raise InputFileNotFoundError(
        f"no tokenizer in {printable(folder)}: neither {WHOLE} nor {_LINES} nor {_WORDS} with "
        f"{_MERGES}, and no {CONFIG} or config.json says what else to look for"
    )


def _word_piece(folder: Path, settings: Settings, where: str) -> dict[str, Any]:
    return builders.word_piece(_line_vocabulary(folder / _LINES), settings, where)


def _byte_pairs(folder: Path, settings: Settings, where: str) -> dict[str, Any]:
    vocabulary = _json_vocabulary(folder / _WORDS)
    merges = _merges(folder / _MERGES, vocabulary)
    return builders.byte_pairs(vocabulary, merges, settings, where)


def _deberta(folder: Path, settings: Settings, where: str) -> dict[str, Any]:
    model = parse_sentencepiece(read_bytes(folder / _DEBERTA), where)
    return builders.deberta(model, settings, where)


def _xlm_roberta(folder: Path, settings: Settings, where: str) -> dict[str, Any]:
    model = parse_sentencepiece(read_bytes(folder / _XLM_ROBERTA), where)
    return builders.xlm_roberta(model, settings, where)


# Family -> how its tokenizer is made, and the file that its errors name.
_BUILDERS: dict[str, tuple[Callable[[Path, Settings, str], dict[str, Any]], str]] = {
    "bert": (_word_piece, _LINES),
    "distilbert": (_word_piece, _LINES),
    "electra": (_word_piece, _LINES),
    "roberta": (_byte_pairs, _WORDS),
    "xlmroberta": (_xlm_roberta, _XLM_ROBERTA),
    "debertav2": (_deberta, _DEBERTA),
}


def _line_vocabulary(path: Path) -> dict[str, int]:
    # Only line feeds end a line: other separators of lines can be tokens.
    lines = read_text(path).split("\n")
    if not lines[-1]:
        del lines[-1]
    vocabulary: dict[str, int] = {}
    for index, line in enumerate(lines):
        token = line.removesuffix("\r")
        if vocabulary.setdefault(token, index) != index:
            raise InputError(
                f"{printable(path)} line {index + 1}: {token!r} is also on line "
                f"{vocabulary[token] + 1}; ids would be ambiguous"
            )
    if not vocabulary:
        raise InputError(f"{printable(path)} is empty; expected one token on each line")
    return vocabulary


def _json_vocabulary(path: Path) -> dict[str, int]:
    value = parse_json(read_text(path), printable(path))
    if not isinstance(value, dict) or not value:
        raise InputError(f"{printable(path)}: expected an object of tokens and their ids")
    seen: dict[int, str] = {}
    for token, index in value.items():
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < 2**31:
            raise InputError(f"{printable(path)}: the id of {token!r} is {str(index)[:80]!r}")
        if seen.setdefault(index, token) != token:
            raise InputError(f"{printable(path)}: {token!r} and {seen[index]!r} are both {index}")
    return value


def _merges(path: Path, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    merges = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        line = line.removesuffix("\r")
        if not line or line.startswith("#version"):
            continue
        left, _, right = line.partition(" ")
        if not left or not right or " " in right:
            raise InputError(
                f"{printable(path)} line {number}: expected two parts of a token with a space "
                f"between them, found {line[:80]!r}"
            )
        for token in (left, right, left + right):
            if token not in vocabulary:
                raise InputError(
                    f"{printable(path)} line {number}: {token[:80]!r} is not in {_WORDS}"
                )
        merges.append((left, right))
    return merges
