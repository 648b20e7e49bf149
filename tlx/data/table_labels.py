"""The labels of a table's records: names of classes, one or several for each, or numbers."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tlx.config import nearest
from tlx.data.table_columns import Role, listed
from tlx.data.table_rows import Record
from tlx.data.text_file import shown
from tlx.errors import InputError

SEPARATOR = "|"  # between the labels of one example in a CSV; the others may delimit its columns

_LARGEST = float(np.finfo(np.float32).max)


def label_role(names: Sequence[str], column: str) -> Role:
    """Returns the role of the label's column, of usual names unless the config gives one."""
    return Role("label", tuple(names), column=column, field="label_column")


def labels_of(record: Record) -> tuple[str, ...]:
    """Returns the labels of one record: in a CSV as `cat|dog`, in a JSONL a string, whole number or list of them.

    Raises:
      InputError: a label that is empty, no text, or there twice.
    """
    value = record.values["label"]
    if isinstance(value, str):
        value = [value] if record.is_json else value.split(SEPARATOR)
        value = [] if len(value) == 1 and not value[0].strip() else value
    elif not isinstance(value, list):
        value = [value]
    labels = tuple(_label(record.where, item) for item in value)
    if len(set(labels)) != len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise InputError(f"{record.where}: label {shown(twice)} is there twice")
    return labels


def number_of(record: Record) -> float:
    """Returns the number that a record's label is. Raises InputError where it is none that float32 holds."""
    value = record.values["label"]
    number = math.nan
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            number = math.nan if "_" in str(value) else float(value)
    if not abs(number) <= _LARGEST:
        text = value if isinstance(value, str) else json.dumps(value)
        what = f"{shown(text)} is not a finite number" if text.strip() else "is empty"
        raise InputError(f"{record.where}: label {what}; the task predicts numbers, as 3.5")
    return number


def read_labels(
    records: Sequence[Record], targets: str, *, key: str, closed: bool = False
) -> tuple[tuple[str, ...], np.ndarray]:
    """Returns the names of the classes and the labels of all records.

    Names are in ascending order: of numbers where all are whole numbers, else of text.

    Args:
      records: of all splits.
      targets: class: labels are int32 [N]; multi_hot: uint8 [N, classes] of 0 and 1; number: float32 [N], without
        classes.
      key: the role that names an example in an error.
      closed: the classes are those of training where there are such records, and no other split may have more.

    Raises:
      InputError: names the line: not one label where there must be one, a label that is empty, there twice or no
        text, one that training does not have, or no finite number.
    """
    if targets == "number":
        return (), np.array([number_of(record) for record in records], np.float32)
    labels = [labels_of(record) for record in records]
    if targets == "class":
        _check_one_label(records, labels, key)
    known = labels
    if closed:
        training = [record.split in ("", "train") for record in records]
        known = [own for own, there in zip(labels, training, strict=True) if there] or labels
    class_names = _class_names(known)
    index = {name: label for label, name in enumerate(class_names)}
    if closed:
        _check_known(records, labels, class_names)
    if targets == "class":
        return class_names, np.array([index[own[0]] for own in labels], np.int32)
    hot = np.zeros((len(labels), len(class_names)), np.uint8)
    for number, own in enumerate(labels):
        hot[number, [index[label] for label in own]] = 1
    return class_names, hot


def several_notes(parts: Mapping[str, np.ndarray], what: str) -> list[str]:
    """Returns what the user should know of labels [N, classes] of the splits; `what` is one example."""
    counts = np.concatenate([labels.sum(axis=1, dtype=np.int64) for labels in parts.values()])
    notes = []
    if counts.max() <= 1:
        notes.append(f"no {what} has several labels (they are written cat{SEPARATOR}dog)")
    if not counts.all():
        notes.append(f"{int((counts == 0).sum())} of {len(counts)} {what}s have no label")
    return notes


def _check_one_label(
    records: Sequence[Record], labels: Sequence[tuple[str, ...]], key: str
) -> None:
    for record, own in zip(records, labels, strict=True):
        if len(own) > 1:
            raise InputError(
                f"{record.where}: {len(own)} labels ({', '.join(map(shown, own[:5]))}), "
                "but the task takes one; task=multilabel takes several"
            )
        if not own:
            raise InputError(
                f"{record.where}: {shown(record.string(key))} has no label; that is right with "
                "task=multilabel only"
            )


def _check_known(
    records: Sequence[Record], labels: Sequence[tuple[str, ...]], class_names: tuple[str, ...]
) -> None:
    known = set(class_names)
    for record, own in zip(records, labels, strict=True):
        for label in own:
            if label not in known:
                withheld = "; -1 often stands for labels that were withheld: evaluate another split"
                hint = withheld if label == "-1" else nearest(label, class_names)
                raise InputError(
                    f"{record.where}: label {shown(label)} is none of training's, which are "
                    f"{listed(class_names)}{hint}"
                )


def _class_names(labels: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    names = {label for own in labels for label in own}
    if all(re.fullmatch(r"[+-]?[0-9]{1,18}", name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _label(where: str, value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise InputError(
            f"{where}: label {shown(json.dumps(value))} is neither a string nor a whole number"
        )
    label = value.strip()
    if not label:
        raise InputError(f"{where}: one of the labels is empty")
    if not _is_text(label):
        raise InputError(f"{where}: label {shown(label)} has a character that is no text")
    return label


@functools.lru_cache(maxsize=65536)  # tables have many rows of few labels
def _is_text(label: str) -> bool:
    """Whether a label is without control characters and halves of surrogate pairs."""
    return not any(unicodedata.category(character) in ("Cc", "Cs") for character in label)
