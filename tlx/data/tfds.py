"""Source `tfds:NAME[/CONFIG][:VERSION]`: data sets of TensorFlow Datasets.

A prepared data set (array_record files) is read without TensorFlow and without network. One that is
not prepared is prepared, where TensorFlow is installed and the network is there.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tlx.config import DataConfig
from tlx.data.image import decode, upright_rgb
from tlx.data.source import Splits
from tlx.data.split import digest
from tlx.data.tfds_prepare import Wanted, find_prepared, one_line, parse, prepare, tfds_module
from tlx.errors import InputError, InputFileNotFoundError

_CHUNK = 1000  # records read at once when labels are collected


class TfdsExamples:
    """One split of a prepared data set, decoded when asked for; itself an `Examples`."""

    def __init__(self, directory: Path, split: str, title: str):
        self._directory = directory  # of the prepared version
        self._split = split
        self._title = title
        self.class_names = tuple(map(printable, self._reader.features["label"].names))

    def __len__(self) -> int:
        return len(self._reader.records)

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """int32 [N]; one pass over the records that decodes no picture (1 s for 60,000)."""
        parse_label = _parser(self._reader.features, "label")
        values = np.empty(len(self), np.int32)
        for start in range(0, len(self), _CHUNK):
            keys = range(start, min(start + _CHUNK, len(self)))
            with self._damage_named(start):
                records = self._reader.records.__getitems__(keys)
            for key, record in zip(keys, records, strict=True):
                with self._damage_named(key):
                    values[key] = parse_label(record)
        return values

    def image(self, index: int) -> Image.Image:
        with self._damage_named(index):
            value = self._reader.parse_image(self._reader.records[index])
        if isinstance(value, bytes):
            return decode(value, name=self.name(index))
        pixels = np.asarray(value)
        if pixels.ndim == 3 and pixels.shape[-1] == 1:
            pixels = pixels[..., 0]
        return upright_rgb(Image.fromarray(pixels))

    def name(self, index: int) -> str:
        return f"{self._title}[{index}]"

    @functools.cached_property
    def fingerprint(self) -> str:
        info = self._reader.builder.info
        facts = [info.full_name, self._split, *self.class_names]
        facts += [str(split.num_bytes) for _, split in sorted(info.splits.items())]
        return digest(("\0".join(facts).encode(), self.labels.astype("<i4").tobytes()))

    @contextlib.contextmanager
    def _damage_named(self, index: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the readers' errors are of many types; a cut file reads as b""
            raise InputError(
                f"{self.name(index)}: damaged record in {self._directory} ({one_line(error)}); "
                "copy or "
                "prepare the data set again"
            ) from error

    @functools.cached_property
    def _reader(self) -> _Reader:
        return _Reader(self._directory, self._split)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_reader"}


class _Reader:
    """The open files of one split, and how its records are parsed."""

    def __init__(self, directory: Path, split: str):
        self.builder = open_builder(directory)
        self.features = self.builder.info.features
        method = tfds_module().decode.DeserializeMethod.RAW_BYTES
        self.records = self.builder.as_data_source(split, deserialize_method=method)
        self.parse_image = _parser(self.features, "image")


def load(config: DataConfig, name: str, training: bool = True) -> Splits:
    """Opens a prepared data set, or prepares it where that is possible.

    Looked for in `config.root`, else in the environment variable TFDS_DATA_DIR, else in tfds's own
    default folder. `train_split`, `val_split` and `test_split` are tfds split expressions;
    `test_split` may be "" where `test_fraction` is to be held out instead. Where the data set has
    no test split, or one without labels (as imagenet2012), its validation split is the held-out
    test. Evaluation (`training` False) opens the held-out split only, where there is one.

    Raises:
      InputError: not a data set's name, no `image` and `label` features, another file format than
        array_record, an unknown split, splits that share examples, or preparing failed.
      InputFileNotFoundError: the data set is not prepared, and cannot be here; says what to do.
    """
    wanted = parse(name, config.root)
    directory = find_prepared(wanted)
    if directory is None:
        directory = prepare(wanted)
    builder = open_builder(directory)
    _check_features(builder, wanted)
    expressions, notes = _expressions(config, builder, directory)
    if not training and "test" in expressions:
        expressions = {"test": expressions["test"]}
    elif "train" not in expressions and (training or "val" not in expressions):
        raise InputError("config.data.train_split is empty; the usual split is 'train'")
    for split, text in expressions.items():
        _check_split(builder, wanted, f"{split}_split", text)
    _check_overlap(builder, expressions)
    parts = {
        split: TfdsExamples(directory, text, f"{wanted.name}/{text}")
        for split, text in expressions.items()
    }
    notes = (f"{wanted}: {builder.info.full_name} in {directory}", *notes)
    return Splits(parts.get("train"), parts.get("val"), parts.get("test"), notes)


def _expressions(
    config: DataConfig, builder: Any, directory: Path
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Returns the split expression of each split that is wanted, and what the user should know."""
    given = {"train": config.train_split, "val": config.val_split, "test": config.test_split}
    there = builder.info.splits
    notes: tuple[str, ...] = ()
    if config.test_split == DataConfig().test_split:  # its default, not the user's wish
        labelled = "test" in there and _is_labelled(directory)
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


def _is_labelled(directory: Path) -> bool:
    """Whether the test split's first example has a label (tfds writes -1 where it was withheld)."""
    try:
        reader = _Reader(directory, "test")
        return _parser(reader.features, "label")(reader.records[0]) >= 0
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
            "only "
            "array_record can be read at random and without TensorFlow; prepare it again with "
            "download_and_prepare(file_format='array_record') in another folder (config.data.root)"
        )
    return builder


def printable(text: Any) -> str:
    """Returns a class name as text."""
    return text.decode("utf-8", "backslashreplace") if isinstance(text, bytes) else str(text)


def _parser(features: Any, key: str) -> Any:
    """Returns record -> value of one feature; pictures that are files stay encoded."""
    tfds = tfds_module()
    only = tfds.features.FeaturesDict({key: features[key]})
    encoded = isinstance(features[key], tfds.features.Image)
    decoders = {key: tfds.decode.SkipDecoding()} if encoded else None
    return lambda record: only.deserialize_example_np(record, decoders=decoders)[key]


def _check_features(builder: Any, wanted: Wanted) -> None:
    tfds, features = tfds_module(), builder.info.features
    listed = ", ".join(f"{key} ({type(features[key]).__name__})" for key in features)
    if "image" not in features or "label" not in features:
        raise InputError(f"{wanted} has no features 'image' and 'label', but: {listed}")
    image, label = features["image"], features["label"]
    if not isinstance(label, tfds.features.ClassLabel):
        raise InputError(f"{wanted}: its label is not a class label: {listed}")
    is_file = isinstance(image, tfds.features.Image) and image.np_dtype in (
        np.uint8,
        np.uint16,
    )
    is_array = (
        type(image) is tfds.features.Tensor
        and image.np_dtype == np.uint8
        and (len(image.shape) == 2 or (len(image.shape) == 3 and image.shape[-1] in (1, 3)))
    )
    if not is_file and not is_array:
        raise InputError(
            f"{wanted}: its image is {type(image).__name__} {image.shape} of {image.np_dtype}, "
            "expected "
            "a picture of 8 bits"
        )


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
