"""Where examples come from: one random-access interface, and the splits a run uses.

Which split is what: `train` is fitted; `val` is what selection (best checkpoint, patience) may look
at; `test` is held out and only reported. Nothing is ever selected on `test`. Evaluation needs the
held-out split only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from tlx.config import DataConfig
from tlx.data.broken_pictures import without_broken
from tlx.data.source_choice import CLASSES, check_source, loader
from tlx.data.split import Subset, drawn, few_per_class, occurring, stratified
from tlx.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

DEFAULT_TEST_FRACTION = 0.2


class Examples(Protocol):
    """Random access to the labelled examples of one split. Implementations can be pickled.

    What an example is, the protocols below say.
    """

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def labels(self) -> np.ndarray:
        """int32 [N]; uint8 [N, classes] of 0 and 1 where an example may have several labels, or of sentences which tags
        are there; or float32 [N] of a regression.

        Known without decoding a picture.
        """
        ...

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digits that identify names, sizes and labels, not where they are stored."""
        ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Returns what a report calls the example: a path, or `test[17]`."""
        ...


class PictureExamples(Examples, Protocol):
    """Labelled pictures."""

    def image(self, index: int) -> Image.Image | np.ndarray:
        """Returns the picture as RGB, upright; InputError, naming it, where it is broken.

        What has neither one nor three channels comes as uint8 [H, W, C].
        """
        ...


class TextExamples(Examples, Protocol):
    """Labelled texts, or pairs of them."""

    def text(self, index: int) -> tuple[str, ...]:
        """Returns the example's text, or the two of its pair; neither is empty."""
        ...


class TaggedExamples(Examples, Protocol):
    """Sentences with a tag for each word."""

    @property
    def words(self) -> tuple[tuple[str, ...], ...]:
        """The words of each sentence."""
        ...

    @property
    def tags(self) -> tuple[np.ndarray, ...]:
        """int32 [words] of each sentence, into the class names."""
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
    config: DataConfig,
    seed: int,
    *,
    training: bool = True,
    targets: str = "class",
    modality: str = "image",
) -> Splits:
    """Opens `config.source` and arranges its examples as training, validation and test.

    A split that the source has is used. A missing test split is carved from training with
    `test_fraction`, a missing validation split with `val_fraction`, both stratified by class where
    there are classes, and drawn with the seed. `labels_per_class` is the whole budget of labels: it
    is applied before `val_fraction`; for the source `digits` everything it does not keep is test.

    Args:
      config: which data.
      seed: of the run.
      training: False: only the held-out split is returned; the others are neither needed nor read
        where the source itself has that one.
      targets: what the task takes: class, one label for each example; multi_hot, any number of them,
        labels are [N, classes]; number, float32 [N] without classes; tags, one for each word.
      modality: what the network reads, image or text.

    Raises:
      InputError: unknown source, or one without such examples or labels; broken or inconsistent data,
        labels out of range, a split left empty.
    """
    kind, _, name = config.source.partition(":")
    check_source(config, targets, modality)
    splits = loader(kind, targets, modality)(config, name, training)
    if not training and (splits.test is not None or splits.train is None):
        splits = splits.held_out()
    _check_labels(splits, targets)
    if config.on_bad_image == "skip":
        splits = without_broken(splits, targets)
    splits = _arrange(splits, config, seed, training, targets, rest_is_test=kind == "digits")
    for split, examples in splits.given().items():
        if not len(examples):
            raise InputError(f"data source {config.source}: the {split} split has no examples")
    return splits


def given_splits(
    parts: Mapping[str, Examples], notes: Sequence[str], *, kind: str, val: str
) -> Splits:
    """Returns the splits that a user gave; without a test split, `val` is the held-out test.

    It is the only data that training did not see, and nothing is ever selected on a test split.

    Args:
      parts: train, and val, test or both; or without train the held-out one.
      notes: what the user is told.
      kind: what such a split is called, as "folder".
      val: how the user calls the validation split.
    """
    test, rest = parts.get("test"), parts.get("val")
    if "train" not in parts:
        return Splits(None, test=rest if test is None else test, notes=tuple(notes))
    if test is None and rest is not None:
        test, rest = rest, None
        notes = [
            *notes,
            f"there is no test {kind}: {val!r} is the held-out test, nothing is selected on it "
            "(selection uses data.val_fraction of training)",
        ]
    return Splits(parts["train"], rest, test, tuple(notes))


def _check_labels(splits: Splits, targets: str) -> None:
    names = splits.class_names
    for split, examples in splits.given().items():
        if examples.class_names != names:
            raise InputError(f"the {split} split's class names differ from the other splits'")
    needed = {"class": 2, "multi_hot": 1, "tags": 1}.get(targets, 0)
    if len(names) < needed:
        raise InputError(
            f"the data has {len(names)} class(es) {list(names)}; at least {needed} "
            f"{'is' if needed == 1 else 'are'} needed"
        )
    for split, examples in splits.given().items():
        if targets == "class":
            _check_range(split, examples)
        elif targets in ("multi_hot", "tags"):
            assert examples.labels.shape == (len(examples), len(names)), examples.labels.shape
            assert np.isin(examples.labels, (0, 1)).all()
        elif targets == "number":
            assert examples.labels.dtype == np.float32, examples.labels.dtype
            assert np.isfinite(examples.labels).all()


def _check_range(split: str, examples: Examples) -> None:
    labels, count = examples.labels, len(examples.class_names)
    wrong = np.flatnonzero((labels < 0) | (labels >= count))
    if len(wrong):
        raise InputError(
            f"{examples.name(int(wrong[0]))}: label {labels[wrong[0]]} is outside "
            f"0..{count - 1} ({count} classes); {len(wrong)} example(s) of the {split} split are"
        )


def _arrange(
    splits: Splits,
    config: DataConfig,
    seed: int,
    training: bool,
    targets: str,
    *,
    rest_is_test: bool,
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
        train, test = _carve(train, fraction, seed, "test", targets)
        how = "stratified by class" if targets in CLASSES else "drawn"
        notes.append(
            f"no test split given: {len(test)} examples ({fraction:g} of the data) are held out as "
            f"test, {how}, seed {seed}"
        )
    elif config.test_fraction:
        notes.append("data.test_fraction is not used: the data has a test split")
    if few and not rest_is_test:
        kept, _ = few_per_class(train.labels, few, train.class_names, seed=seed)
        train = Subset(train, kept)
    if val is None and config.val_fraction:
        train, val = _carve(train, config.val_fraction, seed, "val", targets)
    elif config.val_fraction:
        notes.append("data.val_fraction is not used: the data has a validation split")
    there = occurring(train.labels) if targets in CLASSES else set(range(len(train.class_names)))
    missing = sorted(set(range(len(train.class_names))) - there)
    if missing:
        shown = ", ".join(repr(train.class_names[label]) for label in missing[:10])
        notes.append(f"{len(missing)} class(es) have no training example: {shown}")
    arranged = dataclasses.replace(splits, train=train, val=val, test=test, notes=tuple(notes))
    return arranged if training else arranged.held_out()


def _carve(
    examples: Examples, fraction: float, seed: int, purpose: str, targets: str
) -> tuple[Subset, Subset]:
    if targets in CLASSES:
        kept, held = stratified(examples.labels, fraction, seed=seed, purpose=purpose)
        of = f" in {len(examples.class_names)} classes"
        why = " (every class keeps an example to train on)"
    else:
        kept, held = drawn(len(examples), fraction, seed=seed, purpose=purpose)
        of = why = ""
    if not len(held):
        raise InputError(
            f"config.data.{purpose}_fraction={fraction:g} of {len(examples)} training examples{of} "
            f"leaves nothing for {purpose}{why}; give a larger fraction or more examples"
        )
    return Subset(examples, kept), Subset(examples, held)
