"""Source `table`: pictures that a CSV, TSV or JSONL lists with their labels.

`data.root` is one table, which may name each row's split in a column `split`, or a folder with
`train.csv`, `val.csv` and `test.csv` (or .tsv, .jsonl). Paths are relative to the table's folder.
The splits are those of folders: without a test split, `val` is the held-out test.
"""

from __future__ import annotations

import collections
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from tlx.config import DataConfig
from tlx.data.picture_files import SPLIT_NAMES, PictureFiles, printable
from tlx.data.source import Splits, given_splits
from tlx.data.table_rows import SEPARATOR, SUFFIXES, Row, read_rows, shown
from tlx.errors import InputError, InputFileNotFoundError

EXPECTED = (
    "a .csv, .tsv or .jsonl of path and label (and split), or a folder with train.csv and test.csv"
)

_MISSING = "no such file"


def load(
    config: DataConfig, name: str, training: bool = True, *, multi_hot: bool = False
) -> Splits:
    """Reads the table, and the sizes of the pictures it lists; decodes nothing.

    Class names are the labels of all splits, as numbers where all are whole numbers, else as text,
    in ascending order. Of a held-out split alone (`training` False) the other tables are read for
    their labels where they are there, but their pictures are not looked for. With
    `on_bad_image=skip`, pictures that are not there count as broken.

    Args:
      config: which data.
      name: "".
      training: False: only the held-out split.
      multi_hot: labels are uint8 [N, classes], any number of them for a picture; else int32 [N].

    Raises:
      InputError: names the line: what `read_rows` refuses, a picture that is listed twice, not one
        label where the task takes one, a path that is no file; no row to train on.
      InputFileNotFoundError: no such table; pictures that are not there, with their number.
    """
    del name
    tables, notes = _find(config.root)
    root = next(iter(tables)).parent
    rows = [row for table, split in tables.items() for row in _read(table, split)]
    _check_unique(root, rows)
    if not multi_hot:
        _check_one_label(rows)
    class_names = _class_names(rows)
    by_split: dict[str, list[Row]] = collections.defaultdict(list)
    for row in rows:
        by_split[row.split or "train"].append(row)
    held_out = "test" if "test" in by_split else "val"
    if held_out in by_split and not training:
        by_split = {held_out: by_split[held_out]}
        notes.append(f"evaluated: {len(by_split[held_out])} rows of the split {held_out}")
    elif "train" not in by_split:
        raise InputError(
            f"{printable(root)}: no row is of the split train, only of {' and '.join(by_split)} "
            "(--mode=evaluate needs none)"
        )
    sizes = _sizes(root, by_split, lenient=config.on_bad_image == "skip")
    parts = {
        split: PictureFiles(
            root,
            tuple(row.path for row in part),
            sizes[split],
            _label_array(part, class_names, multi_hot),
            class_names,
        )
        for split, part in by_split.items()
    }
    notes += _label_notes(parts) if multi_hot else []
    if "train" not in parts:
        return Splits(None, test=parts[held_out], notes=tuple(notes))
    return given_splits(parts, notes, kind="split", val="val")


def _find(text: str) -> tuple[dict[Path, str], list[str]]:
    """Returns the tables with the split that each one's name says, "" for a single one, and notes."""
    root = Path(text).expanduser()
    if root.is_dir() and text:
        return _in_folder(root)
    if not text or not root.exists():
        raise InputFileNotFoundError(f"config.data.root={text!r} is not there; expected {EXPECTED}")
    if not root.is_file() or root.suffix.lower() not in SUFFIXES:
        raise InputError(f"config.data.root={text!r} is no table; expected {EXPECTED}")
    return {root: ""}, []


def _in_folder(root: Path) -> tuple[dict[Path, str], list[str]]:
    try:
        entries = sorted(root.iterdir(), key=lambda path: path.name)
    except OSError as error:
        raise InputError(f"{printable(root)} cannot be read: {error.strerror}") from error
    tables = [
        p for p in entries if p.suffix.lower() in SUFFIXES and p.name[0] != "." and p.is_file()
    ]
    found: dict[str, Path] = {}
    for path in tables:
        split = SPLIT_NAMES.get(path.stem.lower())
        if split in found:
            raise InputError(
                f"{printable(root)}: both {found[split].name!r} and {path.name!r} are {split}"
            )
        if split:
            found[split] = path
    beside = [path for path in tables if path not in found.values()]
    if not found:
        hint = f"; is {printable(beside[0])} meant?" if beside else ""
        raise InputFileNotFoundError(
            f"{printable(root)} holds no train.csv, val.csv or test.csv; expected {EXPECTED}{hint}"
        )
    notes = []
    if beside:
        example = printable(Path(beside[0].name))
        notes.append(f"{printable(root)}: {len(beside)} tables are not used, as {example}")
    return {found[split]: split for split in ("train", "val", "test") if split in found}, notes


def _read(table: Path, split: str) -> Iterable[Row]:
    for row in read_rows(table):
        if split and row.split not in ("", split):
            raise InputError(f"{row.where}: the split is {row.split!r} in a table of {split!r}")
        yield Row(row.table, row.line, row.path, row.labels, split or row.split)


def _check_unique(root: Path, rows: Sequence[Row]) -> None:
    seen: dict[str, Row] = {}
    for row in rows:
        first = seen.setdefault(os.path.normpath(os.path.join(root, row.path)), row)  # noqa: PTH118
        if first is not row:
            where = f"line {first.line}" if first.table == row.table else first.where
            raise InputError(
                f"{row.where}: {shown(row.path)} is already in {where}; a picture has one row "
                f"(several labels stand in it as cat{SEPARATOR}dog), or it would be in two splits"
            )


def _check_one_label(rows: Sequence[Row]) -> None:
    for row in rows:
        if len(row.labels) > 1:
            raise InputError(
                f"{row.where}: {len(row.labels)} labels ({', '.join(map(shown, row.labels[:5]))}), "
                "but the task takes one; task=multilabel takes several"
            )
        if not row.labels:
            raise InputError(
                f"{row.where}: {shown(row.path)} has no label; that is right with task=multilabel only"
            )


def _class_names(rows: Sequence[Row]) -> tuple[str, ...]:
    names = {label for row in rows for label in row.labels}
    if all(re.fullmatch(r"[+-]?[0-9]{1,18}", name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _label_array(rows: Sequence[Row], class_names: tuple[str, ...], multi_hot: bool) -> np.ndarray:
    index = {name: label for label, name in enumerate(class_names)}
    if not multi_hot:
        return np.array([index[row.labels[0]] for row in rows], np.int32)
    hot = np.zeros((len(rows), len(class_names)), np.uint8)
    for number, row in enumerate(rows):
        hot[number, [index[label] for label in row.labels]] = 1
    return hot


def _label_notes(parts: Mapping[str, PictureFiles]) -> list[str]:
    counts = np.concatenate([part.labels.sum(axis=1, dtype=np.int64) for part in parts.values()])
    notes = []
    if counts.max() <= 1:
        notes.append(f"no picture has several labels (they are written cat{SEPARATOR}dog)")
    if not counts.all():
        notes.append(f"{int((counts == 0).sum())} of {len(counts)} pictures have no label")
    return notes


def _sizes(
    root: Path, by_split: Mapping[str, Sequence[Row]], *, lenient: bool
) -> dict[str, np.ndarray]:
    """Returns the pictures' sizes in bytes, int64; -1 where there is no such file and that is let be."""
    sizes: dict[str, list[int]] = {}
    problems: list[tuple[Row, str]] = []
    for split, rows in by_split.items():
        sizes[split] = []
        for row in rows:
            size, problem = _size(os.path.join(root, row.path))  # noqa: PTH118 - many of them
            sizes[split].append(size)
            if problem and not (lenient and problem == _MISSING):
                problems.append((row, problem))
    if problems:
        row, problem = problems[0]
        kind = InputFileNotFoundError if problem == _MISSING else InputError
        count = sum(map(len, by_split.values()))
        raise kind(
            f"{row.where}: {shown(row.path)}: {problem} (paths are relative to {printable(root)}); "
            f"{len(problems)} of {count} pictures cannot be opened"
        )
    return {split: np.array(values, np.int64) for split, values in sizes.items()}


def _size(path: str) -> tuple[int, str]:
    try:
        found = os.stat(path)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        return -1, _MISSING
    except OSError as error:
        return -1, error.strerror or "cannot be opened"
    except ValueError:  # a NUL, or half of a surrogate pair
        return -1, "not a file name"
    if stat.S_ISDIR(found.st_mode):
        return -1, "a folder, not a picture"
    if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for ever
        return -1, "not a file"
    return found.st_size, ""
