"""New pictures, without labels, to be predicted: a file, a folder, or a table of them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tlx.config import DataConfig
from tlx.data.broken_pictures import broken_images
from tlx.data.folder import is_picture, pictures_below, size_of
from tlx.data.new_texts import Facts, NewInputs, facts_of
from tlx.data.picture_files import PictureFiles
from tlx.data.split import Subset
from tlx.data.table import PATH
from tlx.data.table_columns import find_roles
from tlx.data.table_rows import SUFFIXES, Schema, read_records
from tlx.errors import InputError
from tlx.files import printable


def read_pictures(path: Path, config: DataConfig, class_names: Sequence[str]) -> NewInputs:
    """Returns the picture that a file is, those below a folder in the order of their paths, or those that a table lists.

    Args:
      path: of a picture, a folder, or a .csv, .tsv or .jsonl with a column as the source `table` has for paths, which are
        relative to its folder.
      config: with on_bad_image=skip, broken pictures are left out and named in the notes.
      class_names: of the run.

    Raises:
      InputError: a folder without pictures, a table without their column, a file that is no picture.
    """
    if path.is_dir():
        found, other = pictures_below(path)
        if not found:
            detail = f" (but {len(other)} other files)" if other else ""
            raise InputError(f"{printable(path)} has no pictures{detail}")
        notes = [f"{printable(path)}: {len(other)} files are not pictures"] if other else []
        files = [each.relative_to(path).as_posix() for each in found]
        facts: list[Facts] = [{"path": printable(path / file)} for file in files]
        return _inputs(path, files, facts, config, class_names, notes)
    if path.suffix.lower() in SUFFIXES:
        find = functools.partial(find_roles, roles=(PATH,), header="path")
        records = read_records(path, Schema("path", find, whole=True))
        files = [record.string("path") for record in records]
        return _inputs(path.parent, files, list(map(facts_of, records)), config, class_names)
    if not is_picture(path):
        raise InputError(
            f"{printable(path)} is no picture; expected one, a folder of them, or a table of their paths ({', '.join(SUFFIXES)})"
        )
    return given_pictures([path], config, class_names)


def given_pictures(
    inputs: Sequence[Any], config: DataConfig, class_names: Sequence[str]
) -> NewInputs:
    """Returns the pictures whose paths are in a sequence. Raises InputError where something is no path."""
    if not inputs:
        raise InputError("there are no inputs")
    for index, item in enumerate(inputs):
        if not isinstance(item, (str, Path)):
            raise InputError(f"inputs[{index}] is a {type(item).__name__}, expected a path")
    files = [Path(item).as_posix() for item in inputs]
    return _inputs(
        Path(), files, [{"path": printable(Path(file))} for file in files], config, class_names
    )


def _inputs(
    root: Path,
    files: Sequence[str],
    facts: Sequence[Facts],
    config: DataConfig,
    class_names: Sequence[str],
    notes: Sequence[str] = (),
) -> NewInputs:
    sizes = np.array([size_of(root / file) for file in files], np.int64)
    labels = np.zeros(len(files), np.int32)
    pictures = PictureFiles(root, tuple(files), sizes, labels, tuple(class_names))
    reasons = broken_images(pictures) if config.on_bad_image == "skip" else {}
    if not reasons:
        return NewInputs(pictures, facts, tuple(notes))
    keep = np.setdiff1d(np.arange(len(files)), list(reasons))
    if not len(keep):
        raise InputError(f"every picture is broken, the first: {next(iter(reasons.values()))}")
    left_out = (f"skipped: {reason}" for reason in reasons.values())
    return NewInputs(Subset(pictures, keep), [facts[i] for i in keep], (*notes, *left_out))
