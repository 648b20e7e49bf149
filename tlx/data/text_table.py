"""Source `table` of texts: a CSV, TSV or JSONL of texts, or pairs of texts, with their labels.

`data.root` is one table or a folder of them (tlx/data/table_files.py). The splits are those of
folders: without a test split, `val` is the held-out test.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tlx.config import DataConfig
from tlx.data.source import Splits, given_splits
from tlx.data.table_files import Tables, read_tables
from tlx.data.table_labels import read_labels, several_notes
from tlx.data.table_rows import Record, Schema
from tlx.data.text_columns import header_of, text_finder
from tlx.data.text_file import check_text
from tlx.data.texts import Texts
from tlx.errors import InputError
from tlx.files import printable


def load(config: DataConfig, name: str, training: bool = True, *, targets: str = "class") -> Splits:
    """Reads the tables' texts and labels.

    Class names are training's labels, as numbers where all are whole numbers, else as text, in
    ascending order; without training rows those that are there. A text may be there several times.

    Args:
      config: which data; `text_column`, `pair_column` and `label_column` where names are none of
        the usual ones.
      name: "".
      training: False: only the held-out split; the others are read for their labels where they are
        there.
      targets: class: labels are int32 [N]; multi_hot: uint8 [N, classes]; number: float32 [N], and
        there are no classes.

    Raises:
      InputError: names the line: what `read_tables` and `read_labels` refuse, a text that is empty
        or no text; no row to train on.
      InputFileNotFoundError: no such table.
    """
    del name
    schema = text_schema(config, targets)
    tables = read_tables(config.root, schema)
    class_names, labels = read_labels(tables.records, targets, key="text", closed=True)
    by_split, notes = tables.by_split(training=training)
    pairs = _are_pairs(tables)
    parts = {
        split: _texts([tables.records[place] for place in places], labels[places], class_names)
        for split, places in by_split.items()
    }
    if pairs:
        notes.insert(
            0, "each example is a pair of texts (data.text_column alone takes one of them)"
        )
    if targets == "multi_hot":
        notes += several_notes({split: part.labels for split, part in parts.items()}, "text")
    return given_splits(parts, notes, kind="split", val="val")


def text_schema(config: DataConfig, targets: str | None) -> Schema:
    """Returns what is looked for in a table of texts; arguments as for `text_finder`."""
    return Schema(header_of(config, targets), text_finder(config, targets), texts=True)


def texts_of(record: Record) -> tuple[str, ...]:
    """Returns a record's text, or the two of its pair. Raises InputError, naming the line, for what is no text."""
    texts = [record.string(role) for role in ("text", "pair") if role in record.values]
    for text in texts:
        if record.is_json:  # else the file was read as text
            check_text(record.where, text)
    return tuple(texts)


def _texts(records: list[Record], labels: np.ndarray, class_names: tuple[str, ...]) -> Texts:
    first, *second = zip(*map(texts_of, records), strict=True)
    lines = np.array([record.line for record in records], np.int64)
    title = printable(Path(records[0].table.name))
    return Texts(first, second[0] if second else None, labels, class_names, title, lines)


def _are_pairs(tables: Tables) -> bool:
    """Whether examples are pairs. Raises InputError where one table has pairs and another has not."""
    first = tables.records[0]
    for record in tables.records:
        if ("pair" in record.values) != ("pair" in first.values):
            one, other = (first, record) if "pair" in first.values else (record, first)
            raise InputError(
                f"{printable(tables.root)}: {printable(Path(one.table.name))} has pairs of texts, "
                f"{printable(Path(other.table.name))} has not"
            )
    return "pair" in first.values
