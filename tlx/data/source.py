"""Where examples come from: one random-access interface, and the splits a run uses.

Which split is what: `train` is fitted; `val` is what selection (best checkpoint, patience) may look
at; `test` is held out and only reported. Nothing is ever selected on `test`. Evaluation needs the
held-out split only.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tlx.config import DataConfig, nearest
from tlx.data.split import Subset, few_per_class, occurring, stratified
from tlx.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

DEFAULT_TEST_FRACTION = 0.2


class Examples(Protocol):
    """Random access to the labelled pictures of one split. Implementations can be pickled."""

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def labels(self) -> np.ndarray:
        """int32 [N], or uint8 [N, classes] of 0 and 1 where an example may have several labels.

        Known without decoding a picture.
        """
        ...

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digits that identify names, sizes and labels, not where they are stored."""
        ...

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image | np.ndarray:
        """Returns the picture as RGB, upright; InputError, naming it, where it is broken.

        What has neither one nor three channels comes as uint8 [H, W, C].
        """
        ...

    def name(self, index: int) -> str:
        """Returns what a report calls the example: a path, or `test[17]`."""
        ...


@dataclasses.dataclass(frozen=True)
class Splits:
    """The examples a run uses; a split is None where there is none, `train` only in evaluation."""

    train: Examples | None
    val: Examples | None = None
    test: Examples | None = None
    notes: tuple[
        str, ...
    ] = ()  # what the user should be told once: files passed over, defaults used
    skipped: tuple[str, ...] = ()  # broken pictures left out, with the reason (on_bad_image=skip)
    numbered: bool = False  # the classes have no names there: they are called by their numbers

    def given(self) -> dict[str, Examples]:
        """Returns the splits that exist, by name."""
        named = {"train": self.train, "val": self.val, "test": self.test}
        return {name: examples for name, examples in named.items() if examples is not None}

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes' names, the same in all splits."""
        return next(iter(self.given().values())).class_names

    def held_out(self) -> Splits:
        """Returns only the split that results are reported on: test, else validation."""
        return dataclasses.replace(self, train=None, val=None if self.test else self.val)


def load_splits(
    config: DataConfig, seed: int, *, training: bool = True, multi_hot: bool = False
) -> Splits:
    """Opens `config.source` and arranges its examples as training, validation and test.

    A split that the source has is used. A missing test split is carved from training with
    `test_fraction`, a missing validation split with `val_fraction`, both stratified by class and
    drawn with the seed. `labels_per_class` is the whole budget of labels: it is applied before
    `val_fraction`; for the source `digits` everything it does not keep is test.

    Args:
      config: which data.
      seed: of the run.
      training: False: only the held-out split is returned; the others are neither needed nor read
        where the source itself has that one.
      multi_hot: the task takes several labels for each example, or none: labels are [N, classes].

    Raises:
      InputError: unknown source, or one without several labels; broken or inconsistent data, labels
        out of range, a split left empty.
    """
    kind, _, name = config.source.partition(":")
    sources = _sources(multi_hot)
    if kind not in sources:
        raise InputError(
            f"config.data.source is {config.source!r}, expected one of conll, digits, folder, "
            "npz, table, tfds:NAME"
            f"{nearest(kind, sources)}"
        )
    if multi_hot and kind != "table":
        raise InputError(
            f"config.data.source is {config.source!r}, which has one label for each example, but the "
            "task takes several: use data.source=table with data.root=FILE.csv, a header path,labels "
            "and rows as a.jpg,cat|dog"
        )
    if kind != "tfds":
        _refuse_tfds_fields(config, name)
    splits = sources[kind](config, name, training)
    if not training and (splits.test is not None or splits.train is None):
        splits = splits.held_out()
    _check_labels(splits)
    if config.on_bad_image == "skip":
        splits = _without_broken(splits)
    splits = _arrange(splits, config, seed, training, rest_is_test=kind == "digits")
    for split, examples in splits.given().items():
        if not len(examples):
            raise InputError(f"data source {config.source}: the {split} split has no examples")
    return splits


def _sources(multi_hot: bool) -> dict[str, Callable[[DataConfig, str, bool], Splits]]:
    # Imported here, because each of these modules needs Splits.
    from tlx.data import conll, digits, folder, npz, table, tfds

    return {
        "conll": conll.load,
        "digits": digits.load,
        "folder": folder.load,
        "npz": npz.load,
        "table": functools.partial(table.load, multi_hot=multi_hot),
        "tfds": tfds.load,
    }


def given_splits(
    parts: Mapping[str, Examples], notes: Sequence[str], *, kind: str, val: str
) -> Splits:
    """Returns the splits that a user gave; without a test split, `val` is the held-out test.

    It is the only data that training did not see, and nothing is ever selected on a test split.

    Args:
      parts: train, and val, test or both.
      notes: what the user is told.
      kind: what such a split is called, as "folder".
      val: how the user calls the validation split.
    """
    test, rest = parts.get("test"), parts.get("val")
    if test is None and rest is not None:
        test, rest = rest, None
        notes = [
            *notes,
            f"there is no test {kind}: {val!r} is the held-out test, nothing is selected on it "
            "(selection uses data.val_fraction of training)",
        ]
    return Splits(parts["train"], rest, test, tuple(notes))


def _refuse_tfds_fields(config: DataConfig, name: str) -> None:
    if name:
        raise InputError(
            f"config.data.source is {config.source!r}: only tfds takes a name after the colon; "
            "the folder or file goes into config.data.root"
        )
    for field in ("train_split", "val_split", "test_split"):
        if getattr(config, field) != getattr(DataConfig(), field):
            raise InputError(
                f"config.data.{field} is {getattr(config, field)!r}, but only tfds sources have "
                f"split expressions, not {config.source!r}"
            )


def _check_labels(splits: Splits) -> None:
    names = splits.class_names
    multi_hot = next(iter(splits.given().values())).labels.ndim == 2
    needed = 1 if multi_hot else 2
    if len(names) < needed:
        raise InputError(
            f"the data has {len(names)} class(es) {list(names)}; at least {needed} "
            f"{'is' if multi_hot else 'are'} needed"
        )
    for split, examples in splits.given().items():
        if examples.class_names != names:
            raise InputError(f"the {split} split's class names differ from the other splits'")
        if multi_hot:
            assert examples.labels.shape == (len(examples), len(names)), examples.labels.shape
            assert np.isin(examples.labels, (0, 1)).all()
            continue
        wrong = np.flatnonzero((examples.labels < 0) | (examples.labels >= len(names)))
        if len(wrong):
            raise InputError(
                f"{examples.name(int(wrong[0]))}: label {examples.labels[wrong[0]]} is outside "
                f"0..{len(names) - 1} ({len(names)} classes); {len(wrong)} example(s) of the "
                f"{split} "
                "split are"
            )


def _arrange(
    splits: Splits, config: DataConfig, seed: int, training: bool, *, rest_is_test: bool
) -> Splits:
    train, val, test = splits.train, splits.val, splits.test
    if train is None:
        return splits
    notes = list(splits.notes)
    few = config.labels_per_class
    if few and rest_is_test:
        kept, rest = few_per_class(train.labels, few, train.class_names, seed=seed)
        if config.test_fraction:
            notes.append("data.test_fraction is not used: labels_per_class leaves the rest as test")
        train, test = Subset(train, kept), Subset(train, rest)
    elif test is None and config.test_fraction == 1:
        if training:
            raise InputError(
                "data.test_fraction=1 holds out all examples, which leaves none to train on "
                "(--mode=evaluate evaluates)"
            )
        notes.append(f"all {len(train)} examples are evaluated (data.test_fraction=1)")
        return dataclasses.replace(splits, train=None, val=None, test=train, notes=tuple(notes))
    elif test is None:
        fraction = config.test_fraction or DEFAULT_TEST_FRACTION
        train, test = _carve(train, fraction, seed, "test")
        notes.append(
            f"no test split given: {len(test)} examples ({fraction:g} of the data) are held out as "
            f"test, stratified by class, seed {seed}"
        )
    elif config.test_fraction:
        notes.append("data.test_fraction is not used: the data has a test split")
    if few and not rest_is_test:
        kept, _ = few_per_class(train.labels, few, train.class_names, seed=seed)
        train = Subset(train, kept)
    if val is None and config.val_fraction:
        train, val = _carve(train, config.val_fraction, seed, "val")
    elif config.val_fraction:
        notes.append("data.val_fraction is not used: the data has a validation split")
    missing = sorted(set(range(len(train.class_names))) - occurring(train.labels))
    if missing:
        shown = ", ".join(repr(train.class_names[label]) for label in missing[:10])
        notes.append(f"{len(missing)} class(es) have no training example: {shown}")
    arranged = dataclasses.replace(splits, train=train, val=val, test=test, notes=tuple(notes))
    return arranged if training else arranged.held_out()


def _carve(examples: Examples, fraction: float, seed: int, purpose: str) -> tuple[Subset, Subset]:
    kept, held = stratified(examples.labels, fraction, seed=seed, purpose=purpose)
    if not len(held):
        raise InputError(
            f"config.data.{purpose}_fraction={fraction:g} of {len(examples)} training examples in "
            f"{len(examples.class_names)} classes leaves nothing for {purpose} (every class keeps "
            "an "
            "example to train on); give a larger fraction or more examples"
        )
    return Subset(examples, kept), Subset(examples, held)


def _without_broken(splits: Splits) -> Splits:
    skipped: list[str] = []
    good: dict[str, Any] = {}
    for split, examples in splits.given().items():
        reasons = broken_images(examples)
        skipped += reasons.values()
        keep = np.setdiff1d(np.arange(len(examples)), list(reasons))
        lost = sorted(occurring(examples.labels) - occurring(examples.labels[keep]))
        if lost:
            raise InputError(
                f"every picture of class {examples.class_names[lost[0]]!r} in the {split} split is "
                f"broken, the first: {next(iter(reasons.values()))}"
            )
        good[split] = Subset(examples, keep) if reasons else examples
    return dataclasses.replace(splits, **good, skipped=tuple(skipped))


def broken_images(examples: Examples) -> dict[int, str]:
    """Decodes every picture, in threads, and returns index -> what is wrong for those that fail."""

    def problem(index: int) -> str:
        try:
            examples.image(index)
        except InputError as error:
            return str(error)
        return ""

    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        problems = list(pool.map(problem, range(len(examples))))
    return {index: text for index, text in enumerate(problems) if text}
