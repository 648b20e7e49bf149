"""Source `table` of pictures: a CSV, TSV or JSONL lists them with their labels.

`data.root` is one table or a folder of them (tlx/data/table_files.py). Paths are relative to the
table's folder. The splits are those of folders: without a test split, `val` is the held-out test.
"""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tlx.config import DataConfig
from tlx.data.picture_files import PictureFiles
from tlx.data.source import Splits, given_splits
from tlx.data.table_columns import Role, find_roles
from tlx.data.table_files import SPLIT, read_tables
from tlx.data.table_labels import SEPARATOR, label_role, read_labels, several_notes
from tlx.data.table_rows import Record, Schema
from tlx.data.text_file import shown
from tlx.errors import InputError, InputFileNotFoundError
from tlx.files import printable

PATH = Role("path", ("path", "file", "filename", "image"))
_LABELS = ("label", "labels", "class", "target")
_MISSING = "no such file"


def load(config: DataConfig, name: str, training: bool = True, *, targets: str = "class") -> Splits:
    """Reads the table, and the sizes of the pictures it lists; decodes nothing.

    Class names are the labels of all splits, as numbers where all are whole numbers, else as text,
    in ascending order. Of a held-out split alone (`training` False) the other tables are read for
    their labels where they are there, but their pictures are not looked for. With
    `on_bad_image=skip`, pictures that are not there count as broken.

    Args:
      config: which data; `label_column` is the label's column where its name is none of the usual.
      name: "".
      training: False: only the held-out split.
      targets: class: labels are int32 [N]; multi_hot: uint8 [N, classes], any number of them for a
        picture; number: float32 [N], and there are no classes.

    Raises:
      InputError: names the line: what `read_tables` refuses, a picture that is listed twice, not one
        label where the task takes one, a path that is no file; no row to train on.
      InputFileNotFoundError: no such table; pictures that are not there, with their number.
    """
    del name
    roles = (PATH, label_role(_LABELS, config.label_column), SPLIT)
    header = "path,label"
    find = functools.partial(find_roles, roles=roles, header=header)
    tables = read_tables(config.root, Schema(header, find))
    root, paths = tables.root, [record.string("path") for record in tables.records]
    _check_unique(root, tables.records, paths)
    class_names, labels = read_labels(tables.records, targets, key="path")
    by_split, notes = tables.by_split(training=training)
    wanted = {
        split: [(tables.records[place], paths[place]) for place in places]
        for split, places in by_split.items()
    }
    sizes = _sizes(root, wanted, lenient=config.on_bad_image == "skip")
    parts = {
        split: PictureFiles(
            root,
            tuple(path for _, path in wanted[split]),
            sizes[split],
            labels[places],
            class_names,
        )
        for split, places in by_split.items()
    }
    if targets == "multi_hot":
        notes += several_notes({split: part.labels for split, part in parts.items()}, "picture")
    return given_splits(parts, notes, kind="split", val="val")


def _check_unique(root: Path, records: Sequence[Record], paths: Sequence[str]) -> None:
    seen: dict[str, Record] = {}
    for record, path in zip(records, paths, strict=True):
        first = seen.setdefault(os.path.normpath(os.path.join(root, path)), record)  # noqa: PTH118
        if first is not record:
            where = f"line {first.line}" if first.table == record.table else first.where
            raise InputError(
                f"{record.where}: {shown(path)} is already in {where}; a picture has one row "
                f"(several labels stand in it as cat{SEPARATOR}dog), or it would be in two splits"
            )


def _sizes(
    root: Path, wanted: Mapping[str, Sequence[tuple[Record, str]]], *, lenient: bool
) -> dict[str, np.ndarray]:
    """Returns the pictures' sizes in bytes, int64; -1 where there is no such file and that is let be."""
    sizes: dict[str, list[int]] = {}
    problems: list[tuple[Record, str, str]] = []
    for split, rows in wanted.items():
        sizes[split] = []
        for record, path in rows:
            size, problem = _size(os.path.join(root, path))  # noqa: PTH118 - many of them
            sizes[split].append(size)
            if problem and not (lenient and problem == _MISSING):
                problems.append((record, path, problem))
    if problems:
        record, path, problem = problems[0]
        kind = InputFileNotFoundError if problem == _MISSING else InputError
        count = sum(map(len, wanted.values()))
        raise kind(
            f"{record.where}: {shown(path)}: {problem} (paths are relative to {printable(root)}); "
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
