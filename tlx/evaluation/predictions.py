"""Predictions of new inputs as records: what the tasks say of each, and the files they are written to."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tlx.config import nearest
from tlx.data.table_labels import SEPARATOR
from tlx.errors import InputError, InputFileNotFoundError
from tlx.files import plain, printable, replacing

SUFFIXES = (".jsonl", ".csv")
FEW = 20  # classes; of more, not all probabilities are in a record

Record = dict[str, Any]


def number(value: Any) -> float | None:
    """Returns the value with as many digits as tell it from other float32; None where it is not finite."""
    return float(str(np.float32(value))) if math.isfinite(value) else None


def by_class(
    class_names: Sequence[str], probabilities: np.ndarray, chosen: np.ndarray
) -> dict[str, float | None]:
    """Returns class -> probability: of few classes all, else those that are chosen.

    Args:
      class_names: of all classes.
      probabilities: float [C].
      chosen: bool [C].
    """
    every = len(class_names) <= FEW
    rows = zip(class_names, probabilities, chosen, strict=True)
    return {name: number(value) for name, value, own in rows if every or own}


def check_output(path: Path, source: str = "") -> None:
    """Checks a name for the records' file before there are any.

    Args:
      path: of the file.
      source: the file that the inputs are read from; "": none.

    Raises:
      InputError, InputFileNotFoundError: it has no suffix of SUFFIXES, its folder is not there, or it is the inputs' file.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        hint = nearest(suffix, SUFFIXES) if suffix else ""
        raise InputError(f"the output {printable(path)} is neither a .jsonl nor a .csv{hint}")
    if path.is_dir():
        raise InputError(f"the output {printable(path)} is a folder; expected a file")
    if not path.parent.is_dir():
        raise InputFileNotFoundError(
            f"the output {printable(path)}: there is no folder {printable(path.parent)}"
        )
    if source and path.exists() and Path(source).exists() and path.samefile(source):
        raise InputError(f"the output {printable(path)} is the input; give it another name")


def write_predictions(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Writes the records, a line each, to a .jsonl, or as the rows of a .csv; the file is complete or as it was.

    In a CSV a mapping has a column for each of its keys, as `probabilities.cat`, labels are written `cat|dog`, other
    lists are JSON. Columns are those of all records in the order in which they first come.

    Raises:
      OSError: no space left.
    """
    write = _write_csv if path.suffix.lower() == ".csv" else _write_jsonl
    with replacing(path) as temporary:
        write(temporary, records)


def _write_jsonl(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
        for record in records:
            file.write(json.dumps(plain(record), ensure_ascii=False) + "\n")


def _write_csv(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    rows = [_flat(record) for record in records]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            row |= {f"{name}.{key}": _cell(inner) for key, inner in value.items()}
        elif name == "prediction" and isinstance(value, list):
            row[name] = SEPARATOR.join(value)
        else:
            row[name] = _cell(value)
    return row


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, (str, int, float)):
        return value
    return json.dumps(plain(value), ensure_ascii=False)
