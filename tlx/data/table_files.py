"""Which tables a root has, and the records of each split: of pictures and of texts alike.

A root is one table, which may name each row's split in a column `split`, or a folder with
`train.csv`, `val.csv` (or dev) and `test.csv` (or .tsv, .jsonl).
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tlx.config import nearest
from tlx.data.picture_files import SPLIT_NAMES
from tlx.data.split_files import find_split_files
from tlx.data.table_columns import Role
from tlx.data.table_rows import SUFFIXES, Record, Schema, read_records
from tlx.data.text_file import shown
from tlx.errors import InputError
from tlx.files import printable

SPLIT = Role("split", ("split",), needed=False)


@dataclasses.dataclass(frozen=True)
class Tables:
    """The records of a root."""

    root: Path  # the tables' folder
    records: tuple[Record, ...]  # of all splits
    notes: tuple[str, ...]

    def by_split(self, *, training: bool) -> tuple[dict[str, np.ndarray], list[str]]:
        """Returns the places among the records, int64, of each split that is wanted, and notes.

        Records that say no split are of train.

        Without training that is the held-out split, where there is one.

        Raises:
          InputError: no row is of train where one is needed.
        """
        places: dict[str, list[int]] = collections.defaultdict(list)
        for place, record in enumerate(self.records):
            places[record.split or "train"].append(place)
        found = {split: np.array(own, np.int64) for split, own in places.items()}
        held_out = "test" if "test" in found else "val"
        notes = list(self.notes)
        if held_out in found and not training:
            notes.append(f"evaluated: {len(found[held_out])} rows of the split {held_out}")
            return {held_out: found[held_out]}, notes
        if "train" not in found:
            raise InputError(
                f"{printable(self.root)}: no row is of the split train, only of "
                f"{' and '.join(found)} (--mode=evaluate needs none)"
            )
        return found, notes


def read_tables(text: str, schema: Schema) -> Tables:
    """Reads all tables of `config.data.root`.

    Raises:
      InputError: what `read_records` refuses, an unknown split, two tables of one split, or a row of another
        split than its table.
      InputFileNotFoundError: no such table.
    """
    expected = (
        f"a .csv, .tsv or .jsonl of {' and '.join(schema.header.split(','))} (and split), or a "
        "folder with train.csv and test.csv"
    )
    found, notes = find_split_files(text, SUFFIXES, expected, "table")
    if Path(text).expanduser().is_file():  # a column may say the splits of a single one
        found = {"": next(iter(found.values()))}
    records = [record for split, table in found.items() for record in _read(table, split, schema)]
    return Tables(next(iter(found.values())).parent, tuple(records), tuple(notes))


def _read(table: Path, split: str, schema: Schema) -> Iterator[Record]:
    for record in read_records(table, schema):
        own = _split(record)
        if split and own not in ("", split):
            raise InputError(f"{record.where}: the split is {own!r} in a table of {split!r}")
        yield dataclasses.replace(record, split=split or own)


def _split(record: Record) -> str:
    if "split" not in record.values:
        return ""
    name = str(record.values["split"]).strip()
    if name.lower() not in SPLIT_NAMES:
        raise InputError(
            f"{record.where}: the split is {shown(name)}, expected train, val or test"
            f"{nearest(name[:80], SPLIT_NAMES)}"
        )
    return SPLIT_NAMES[name.lower()]
