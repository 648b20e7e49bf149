"""Source `conll`: sentences whose words are tagged, in columns or in JSONL.

`data.root` is one file, or a folder with `train.conll`, `dev.conll` and `test.conll` (or .txt, .tsv, .bio,
.iob, .jsonl). The splits are those of folders: without a test split, `val` is the held-out test.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tlx.config import DataConfig
from tlx.data.conll_columns import read_columns
from tlx.data.conll_json import read_json
from tlx.data.source import Splits, given_splits
from tlx.data.split_files import find_split_files
from tlx.data.tagged import Sentence, as_examples
from tlx.data.text_file import read_text
from tlx.errors import InputError
from tlx.files import printable

SUFFIXES = (".conll", ".txt", ".tsv", ".bio", ".iob", ".jsonl")
EXPECTED = (
    f"a file of tagged words ({', '.join(SUFFIXES)}), or a folder with train.conll and test.conll"
)


def load(config: DataConfig, name: str, training: bool = True) -> Splits:
    """Reads the sentences of all files; those of a held-out split alone have the classes of all, too.

    The classes are the tags: O, and those of IOB2 or BIOES (see `as_examples`).

    Args:
      config: which data.
      name: "".
      training: False: only the held-out split.

    Raises:
      InputError: names the line: no UTF-8 text, what `read_columns` or `read_json` refuses, tags
        that are neither IOB2 nor BIOES; an empty file, a folder without a training split.
      InputFileNotFoundError: no such file.
    """
    del name
    files, notes = find_split_files(config.root, SUFFIXES, EXPECTED)
    parts: dict[str, Any] = {}
    parts |= as_examples({split: _read(path, notes) for split, path in files.items()})
    held_out = "test" if "test" in parts else "val"
    if held_out in parts and not training:
        notes.append(f"evaluated: {printable(files[held_out])}")
        return Splits(None, test=parts[held_out], notes=tuple(notes))
    if "train" not in parts:
        raise InputError(
            f"{printable(Path(config.root))}: no training file beside "
            f"{' and '.join(path.name for path in files.values())} (--mode=evaluate needs none)"
        )
    val = files["val"].name if "val" in files else ""
    return given_splits(parts, notes, kind="file", val=val)


def _read(path: Path, notes: list[str]) -> list[Sentence]:
    """Returns the sentences of a file; what of it is not as it was written is added to the notes."""
    text = read_text(path, "words and their tags")
    comments: list[str] = []
    widened: list[str] = []
    if path.suffix.lower() == ".jsonl":
        sentences = list(read_json(path, text, widened))
    else:
        sentences = list(read_columns(path, text, comments))
    if not sentences:
        raise InputError(f"{printable(path)} holds no tagged words")
    if comments:
        notes.append(f"{printable(path)}: {len(comments)} comments are no words, as {comments[0]}")
    if widened:
        notes.append(
            f"{len(widened)} entities begin or end inside a word and have all of it, as {widened[0]}"
        )
    return sentences
