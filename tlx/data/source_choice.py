"""Which source there is for what the network reads and what the task predicts."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from tlx.config import DataConfig, nearest
from tlx.errors import InputError

if TYPE_CHECKING:
    from tlx.data.source import Splits

CLASSES = ("class", "multi_hot", "tags")  # targets that are classes, not numbers


@dataclasses.dataclass(frozen=True)
class _Source:
    """A module with `load(config, name, training)`, which takes `targets` too where it has several kinds."""

    module: str
    targets: tuple[str, ...]


# What the network reads -> source.
_SOURCES = {
    "image": {
        "digits": _Source("tlx.data.digits", ("class",)),
        "folder": _Source("tlx.data.folder", ("class",)),
        "npz": _Source("tlx.data.npz", ("class",)),
        "table": _Source("tlx.data.table", ("class", "multi_hot", "number")),
        "tfds": _Source("tlx.data.tfds", ("class",)),
    },
    "text": {
        "table": _Source("tlx.data.text_table", ("class", "multi_hot", "number")),
        "tfds": _Source("tlx.data.tfds_texts", ("class", "number")),
        "conll": _Source("tlx.data.conll", ("tags",)),
    },
}
_CONTENTS = {"image": "pictures", "text": "texts"}
_OWN = {
    "class": "one label for each example",
    "multi_hot": "any number of labels for each example",
    "number": "a number for each example",
    "tags": "a tag for each word",
}
_ROWS = {  # of a table: its header and how rows are written
    ("image", "class"): "a header path,label and rows as a.jpg,cat",
    ("image", "multi_hot"): "a header path,labels and rows as a.jpg,cat|dog",
    ("image", "number"): "a header path,label and rows as a.jpg,3.5",
    ("text", "class"): "a header text,label and rows as a fine film,positive",
    ("text", "multi_hot"): "a header text,labels and rows as a fine film,funny|moving",
    ("text", "number"): "a header text,label and rows as a fine film,3.5",
}


def check_source(config: DataConfig, targets: str, modality: str) -> None:
    """Raises InputError where the source is not one of the modality and targets, or a field that is set is not read.

    Arguments as for `tlx.data.source.load_splits`.
    """
    kind, _, name = config.source.partition(":")
    _check_kind(config.source, kind, targets, modality)
    if name and kind != "tfds":
        raise InputError(
            f"config.data.source is {config.source!r}: only tfds takes a name after the colon; "
            "the folder or file goes into config.data.root"
        )
    columns = kind == "table" or (kind == "tfds" and modality == "text")
    of_texts = (columns and modality == "text", "texts of the sources table and tfds have")
    reading = {
        **dict.fromkeys(("train_split", "val_split", "test_split"), (kind == "tfds", "tfds has")),
        "text_column": of_texts,
        "pair_column": of_texts,
        "label_column": (columns, "tables, and texts of tfds, have"),
        "on_bad_image": (modality == "image", "pictures have"),
        "labels_per_class": (targets in CLASSES, "examples with classes have"),
    }
    for field, (is_read, who) in reading.items():
        value = getattr(config, field)
        if value != getattr(DataConfig(), field) and not is_read:
            raise InputError(
                f"config.data.{field} is {value!r}, which only {who}, not {config.source!r} with "
                f"{_OWN[targets]}"
            )


def loader(kind: str, targets: str, modality: str) -> Callable[[DataConfig, str, bool], Splits]:
    """Returns the function that opens a source: (config, what stands after the colon, training) -> splits."""
    source = _SOURCES[modality][kind]
    load = importlib.import_module(source.module).load
    return functools.partial(load, targets=targets) if len(source.targets) > 1 else load


def _check_kind(source: str, kind: str, targets: str, modality: str) -> None:
    sources = _SOURCES[modality]
    if kind not in sources:
        shown = ", ".join("tfds:NAME" if name == "tfds" else name for name in sources)
        others = [m for m, names in _SOURCES.items() if kind in names]
        why = f"; {kind} has {_CONTENTS[others[0]]}" if others else nearest(kind, sources)
        raise InputError(
            f"config.data.source is {source!r}, expected one of {shown}, which have "
            f"{_CONTENTS[modality]}, as the network reads them{why}"
        )
    if targets in sources[kind].targets:
        return
    able = [name for name, own in sources.items() if targets in own.targets]
    use = f"data.source={able[0]}" if able else ""
    if "table" in able:
        use = f"data.source=table with data.root=FILE.csv, {_ROWS[modality, targets]}"
    has = " or ".join(_OWN[own] for own in sources[kind].targets)
    raise InputError(
        f"config.data.source is {source!r}, which has {has}, but the task takes {_OWN[targets]}"
        + (f": use {use}" if use else f"; no source of {_CONTENTS[modality]} has that")
    )
