"""Reading the records of a prepared TensorFlow Datasets set, whatever they hold.

A prepared data set (array_record files) is read without TensorFlow and without network. One that is
not prepared is prepared, where TensorFlow is installed and the network is there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tlx.config import DataConfig
from tlx.data.tfds_prepare import Wanted, find_prepared, one_line, parse, prepare, tfds_module
from tlx.errors import InputError, InputFileNotFoundError

_CHUNK = 1000  # records read at once when all are
_LOOKED_AT = 16  # records of a test split whose labels say whether it has any


@dataclasses.dataclass(frozen=True)
class Opened:
    """A prepared data set, and the splits of it that are wanted."""

    wanted: Wanted
    directory: Path  # of the prepared version
    builder: Any
    expressions: Mapping[str, str]  # train, val, test -> split expression
    notes: tuple[str, ...]

    @property
    def features(self) -> Any:
        """What its records hold."""
        return self.builder.info.features

    def records(self, split: str) -> Records:
        """Returns the records of train, val or test."""
        text, wanted = self.expressions[split], self.wanted
        title = "/".join(part for part in (wanted.name, wanted.config, text) if part)
        return Records(self.directory, text, title)


class Records:
    """The records of one split, parsed when asked for. Can be pickled."""

    def __init__(self, directory: Path, split: str, title: str):
        self._directory = directory
        self.split = split  # an expression
        self.title = title

    def __len__(self) -> int:
        return len(self._source)

    @property
    def features(self) -> Any:
        """What they hold."""
        return self.builder.info.features

    def name(self, index: int) -> str:
        """Returns what a report calls a record."""
        return f"{self.title}[{index}]"

    def value(self, index: int, key: str) -> Any:
        """Returns one feature of a record; pictures that are files stay encoded. InputError where it is damaged."""
        with self._damage_named(index):
            return self._parser((key,))(self._source[index])[key]

    def values(self, *keys: str) -> Iterator[tuple[Any, ...]]:
        """Yields those features of all records, in order; nothing else is decoded (1 s for 60,000)."""
        parse_record = self._parser(keys)
        for start in range(0, len(self), _CHUNK):
            places = range(start, min(start + _CHUNK, len(self)))
            with self._damage_named(start):
                records = self._source.__getitems__(places)
            for place, record in zip(places, records, strict=True):
                with self._damage_named(place):
                    found = parse_record(record)
                yield tuple(found[key] for key in keys)

    @functools.cached_property
    def builder(self) -> Any:
        """tfds's builder of the data set."""
        return open_builder(self._directory)

    @functools.cached_property
    def _source(self) -> Any:
        method = tfds_module().decode.DeserializeMethod.RAW_BYTES
        return self.builder.as_data_source(self.split, deserialize_method=method)

    @functools.cached_property
    def _parsers(self) -> dict[tuple[str, ...], Any]:
        return {}

    def _parser(self, keys: tuple[str, ...]) -> Any:
        if keys not in self._parsers:
            self._parsers[keys] = _parser(self.features, keys)
        return self._parsers[keys]

    @contextlib.contextmanager
    def _damage_named(self, index: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the readers' errors are of many types; a cut file reads as b""
            raise InputError(
                f"{self.name(index)}: damaged record in {self._directory} ({one_line(error)}); "
                "copy or prepare the data set again"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        names = ("_directory", "split", "title")
        return {name: self.__dict__[name] for name in names}


def open_splits(
    config: DataConfig, name: str, training: bool, choose: Callable[[Any, Wanted], str]
) -> Opened:
    """Opens a prepared data set, or prepares it where that is possible.

    Looked for in `config.root`, else in the environment variable TFDS_DATA_DIR, else in tfds's own
    default folder. `train_split`, `val_split` and `test_split` are tfds split expressions;
    `test_split` may be "" where `test_fraction` is to be held out instead. Where the data set has
    no test split, or one without labels (as imagenet2012 and GLUE), its validation split is the
    held-out test. Evaluation (`training` False) opens the held-out split only, where there is one.

    Args:
      config: which data.
      name: NAME[/CONFIG][:VERSION].
      training: False: only the held-out split.
      choose: features and what was asked for -> the label's feature; raises InputError where they do not fit.

    Raises:
      InputError: not a data set's name, features that do not fit, another file format than
        array_record, an unknown split, splits that share examples, or preparing failed.
      InputFileNotFoundError: the data set is not prepared, and cannot be here; says what to do.
    """
    wanted = parse(name, config.root)
    directory = find_prepared(wanted)
    if directory is None:
        directory = prepare(wanted)
    builder = open_builder(directory)
    label = choose(builder.info.features, wanted)
    expressions, notes = _expressions(config, builder, directory, label)
    if not training and "test" in expressions:
        expressions = {"test": expressions["test"]}
    elif "train" not in expressions and (training or "val" not in expressions):
        raise InputError("config.data.train_split is empty; the usual split is 'train'")
    for split, text in expressions.items():
        _check_split(builder, wanted, f"{split}_split", text)
    _check_overlap(builder, expressions)
    notes = (f"{wanted}: {builder.info.full_name} in {directory}", *notes)
    return Opened(wanted, directory, builder, expressions, notes)


def _expressions(
    config: DataConfig, builder: Any, directory: Path, label: str
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Returns the split expression of each split that is wanted, and what the user should know."""
    given = {"train": config.train_split, "val": config.val_split, "test": config.test_split}
    there = builder.info.splits
    notes: tuple[str, ...] = ()
    if config.test_split == DataConfig().test_split:  # its default, not the user's wish
        labelled = "test" in there and _is_labelled(directory, label)
        if not labelled and "validation" in there and not config.val_split:
            given["test"] = "validation"
            why = "has no labels" if "test" in there else "does not exist"
            notes = (
                f"the split 'test' {why}: 'validation' is the held-out test, nothing is selected "
                "on it (selection uses data.val_fraction of training)",
            )
        elif "test" not in there and config.test_fraction:
            given["test"] = ""
    return {split: text for split, text in given.items() if text}, notes


def _is_labelled(directory: Path, label: str) -> bool:
    """Whether the test split's first examples have labels (tfds writes -1 where they were withheld)."""
    records = Records(directory, "test", "")
    try:
        first = range(min(len(records), _LOOKED_AT))
        return any(records.value(index, label) != -1 for index in first)
    except Exception:  # noqa: BLE001 - damage is named when the split is read
        return True


def open_builder(directory: Path) -> Any:
    """Returns the tfds builder of a prepared folder; InputError where it cannot be read."""
    try:
        builder = tfds_module().builder_from_directory(directory)
        formats = {form.value for form in builder.info.available_file_formats()}
    except Exception as error:  # a damaged description fails in protobuf, json or tfds alike
        raise InputError(f"{directory}: damaged tfds data set: {one_line(error)}") from error
    if "array_record" not in formats:
        raise InputError(
            f"{directory} is prepared as {', '.join(sorted(formats)) or 'an unknown format'}, but "
            "only array_record can be read at random and without TensorFlow; prepare it again with "
            "download_and_prepare(file_format='array_record') in another folder (config.data.root)"
        )
    return builder


def printable(text: Any) -> str:
    """Returns a class name as text."""
    return text.decode("utf-8", "backslashreplace") if isinstance(text, bytes) else str(text)


def _parser(features: Any, keys: tuple[str, ...]) -> Any:
    """Returns record -> feature -> value; pictures that are files stay encoded."""
    tfds = tfds_module()
    only = tfds.features.FeaturesDict({key: features[key] for key in keys})
    decoders = {
        key: tfds.decode.SkipDecoding()
        for key in keys
        if isinstance(features[key], tfds.features.Image)
    }
    return lambda record: only.deserialize_example_np(record, decoders=decoders or None)


def _check_split(builder: Any, wanted: Wanted, field: str, text: str) -> None:
    there = ", ".join(builder.info.splits)
    try:
        count = builder.info.splits[text].num_examples
    except Exception as error:  # tfds raises KeyError, ValueError and others for its expressions
        hint = (
            "; data.test_fraction=0.2 holds out a part of training" if field == "test_split" else ""
        )
        raise InputError(
            f"{wanted}: config.data.{field} is {text!r}, but the splits are: {there}{hint}"
        ) from error
    if not count:
        raise InputError(
            f"{wanted}: config.data.{field}={text!r} has no examples (splits: {there})"
        )
    parts = [Path(part.filename) for part in builder.info.splits[text].file_instructions]
    missing = [path for path in parts if not path.is_file()]
    if missing:
        raise InputFileNotFoundError(
            f"{wanted}: the split {text!r} is incomplete, {len(missing)} of {len(parts)} files are "
            f"missing, as {missing[0]}"
        )


def _check_overlap(builder: Any, expressions: dict[str, str]) -> None:
    by_file: dict[str, list[tuple[int, int, str]]] = {}
    for split, text in expressions.items():
        for part in builder.info.splits[text].file_instructions:
            stop = part.skip + part.take if part.take >= 0 else part.examples_in_shard
            by_file.setdefault(str(part.filename), []).append((part.skip, stop, split))
    for ranges in by_file.values():
        for (start, stop, one), (begin, end, other) in itertools.combinations(ranges, 2):
            if one != other and max(start, begin) < min(stop, end):
                raise InputError(
                    f"config.data.{one}_split={expressions[one]!r} and {other}_split="
                    f"{expressions[other]!r} share examples; each must hold its own"
                )
