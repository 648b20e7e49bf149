"""Source `tfds:NAME[/CONFIG][:VERSION]` of texts, as imdb_reviews or glue/sst2, read into memory.

Features are found by their names as the columns of a table are: text and label, sentence1 and
sentence2, premise and hypothesis (tlx/data/text_columns.py).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from tlx.config import DataConfig
from tlx.data.source import Splits
from tlx.data.text_columns import text_finder
from tlx.data.texts import Texts
from tlx.data.tfds_prepare import Wanted, tfds_module
from tlx.data.tfds_reader import Records, open_splits, printable
from tlx.errors import InputError


def load(config: DataConfig, name: str, training: bool = True, *, targets: str = "class") -> Splits:
    """Opens a prepared data set of texts; arguments as for `open_splits`.

    Args:
      config: which data; `text_column`, `pair_column` and `label_column` name features where they
        have none of the usual names.
      name: NAME[/CONFIG][:VERSION].
      training: False: only the held-out split.
      targets: class, of a class label, or number, of one number.

    Raises:
      InputError: as `open_splits`, and where features are not there, or a record has no text, bytes
        that are not UTF-8, no label (GLUE's test splits) or no finite number.
      InputFileNotFoundError: as `open_splits`.
    """
    find = functools.partial(_find, config=config, targets=targets)
    opened = open_splits(config, name, training, lambda *given: find(*given).label)
    features = find(opened.features, opened.wanted)
    parts = {split: _read(opened.records(split), features) for split in opened.expressions}
    return Splits(parts.get("train"), parts.get("val"), parts.get("test"), opened.notes)


@dataclasses.dataclass(frozen=True)
class _Features:
    """The names of those that are read."""

    texts: tuple[str, ...]  # one, or the two of a pair
    label: str
    class_names: tuple[str, ...]  # of numbers: ()


def _find(features: Any, wanted: Wanted, *, config: DataConfig, targets: str) -> _Features:
    tfds = tfds_module()
    listed = ", ".join(f"{key} ({type(features[key]).__name__})" for key in features)
    keys = tuple(features)
    try:
        found = text_finder(config, targets)(keys)
    except InputError as error:
        raise InputError(f"{wanted}: {error}; its features: {listed}") from None
    texts = tuple(keys[found[role]] for role in ("text", "pair") if role in found)
    for key in texts:
        if not isinstance(features[key], tfds.features.Text):
            raise InputError(f"{wanted}: its {key} is not a text: {listed}")
    key = keys[found["label"]]
    label = features[key]
    is_class = isinstance(label, tfds.features.ClassLabel)
    if targets == "class" and is_class:
        return _Features(texts, key, tuple(map(printable, label.names)))
    is_number = not is_class and label.shape == () and np.dtype(label.np_dtype).kind in "iuf"
    if targets == "number" and is_number:
        return _Features(texts, key, ())
    expected = "a class label" if targets == "class" else "a number"
    other = "; task=regression predicts numbers" if targets == "class" and is_number else ""
    raise InputError(f"{wanted}: its {key} is not {expected}: {listed}{other}")


def _read(records: Records, features: _Features) -> Texts:
    columns: list[list[str]] = [[] for _ in features.texts]
    labels = np.zeros(len(records), np.int32 if features.class_names else np.float32)
    for index, (label, *texts) in enumerate(records.values(features.label, *features.texts)):
        for column, key, text in zip(columns, features.texts, texts, strict=True):
            column.append(_text(records, index, key, text))
        if not np.isfinite(label):
            raise InputError(
                f"{records.name(index)}: {features.label} is {label}, no finite number"
            )
        labels[index] = label
    withheld = labels == -1
    if withheld.all() or (features.class_names and withheld.any()):
        splits = ", ".join(records.builder.info.splits)
        raise InputError(
            f"{records.name(int(withheld.argmax()))} has no label (-1), as in test splits whose labels are "
            f"withheld: use another split, as data.test_split=validation (there are: {splits})"
        )
    first, *second = map(tuple, columns)
    title = records.title
    return Texts(first, second[0] if second else None, labels, features.class_names, title)


def _text(records: Records, index: int, key: str, value: Any) -> str:
    try:
        text = value.decode() if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError as error:
        raise InputError(f"{records.name(index)}: {key} is not UTF-8 ({error.reason})") from error
    if not text.strip():
        raise InputError(f"{records.name(index)}: {key} is empty")
    return text
