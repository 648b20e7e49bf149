"""Carving one set of examples into several, by class and by seed, without looking at an example.

Labels are int [N], one class for each example, or uint8 [N, classes] of 0 and 1, any number of them;
what has no classes is drawn by the seed alone.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import heapq
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tlx.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

    from tlx.data.source import Examples


class View:
    """Examples that are others', in another place: what an example is made of is forwarded, whatever it is."""

    examples: Any  # of one of the kinds in tlx.data.source

    def __len__(self) -> int:
        raise NotImplementedError

    def at(self, index: int) -> int:
        """Returns the place among the others."""
        raise NotImplementedError

    def name(self, index: int) -> str:
        return self.examples.name(self.at(index))

    def image(self, index: int) -> Image.Image | np.ndarray:
        return self.examples.image(self.at(index))

    def text(self, index: int) -> tuple[str, ...]:
        return self.examples.text(self.at(index))

    @functools.cached_property
    def words(self) -> tuple[tuple[str, ...], ...]:
        return tuple(self.examples.words[self.at(index)] for index in range(len(self)))

    @functools.cached_property
    def tags(self) -> tuple[np.ndarray, ...]:
        return tuple(self.examples.tags[self.at(index)] for index in range(len(self)))


@dataclasses.dataclass(frozen=True)
class Subset(View):
    """The examples at `indices`, in that order; itself an `Examples`, of the same kind."""

    examples: Examples
    indices: np.ndarray  # int64 [N]

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.examples.class_names

    @functools.cached_property
    def labels(self) -> np.ndarray:
        return self.examples.labels[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def at(self, index: int) -> int:
        return int(self.indices[index])

    @functools.cached_property
    def fingerprint(self) -> str:
        parts = (
            self.examples.fingerprint.encode(),
            self.indices.astype("<i8").tobytes(),
        )
        return digest(parts)


def digest(parts: Sequence[bytes]) -> str:
    """Returns 16 hexadecimal digits of a sha256 over the parts and their lengths."""
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "little"))
        total.update(part)
    return total.hexdigest()[:16]


def stratified(
    labels: np.ndarray, fraction: float, *, seed: int, purpose: str
) -> tuple[np.ndarray, np.ndarray]:
    """Splits examples so that each class has about the same share on either side.

    Args:
      labels: int [N], or uint8 [N, classes].
      fraction: of the examples that are held out, in [0, 1).
      seed: of the run.
      purpose: `test` or `val`: two purposes draw independently with one seed.

    Returns:
      The indices kept and those held out, both int64 and ascending. round(N * fraction) examples
      are held out, shared among the classes by largest remainder, but fewer where a class would
      lose its last example. Where examples have several labels, iterative stratification shares
      them out, and the number held out is not always exactly that. The draw is the same on every
      machine and with every numpy.
    """
    if labels.ndim == 2:
        held_out = _iterative(labels > 0, fraction, seed, purpose)
        return np.flatnonzero(~held_out), np.flatnonzero(held_out)
    order = shuffled(len(labels), seed, purpose)
    classes, counts = np.unique(labels, return_counts=True)
    quota = _quotas(counts, fraction, shuffled(len(classes), seed, purpose + ":remainders"))
    held = [
        order[labels[order] == value][:count] for value, count in zip(classes, quota, strict=True)
    ]
    out = np.sort(np.concatenate(held)) if held else np.zeros(0, np.int64)
    return np.setdiff1d(np.arange(len(labels)), out), out


def drawn(count: int, fraction: float, *, seed: int, purpose: str) -> tuple[np.ndarray, np.ndarray]:
    """Splits `count` examples that have no classes; arguments and what is returned as for `stratified`."""
    return stratified(np.zeros(count, np.int32), fraction, seed=seed, purpose=purpose)


def few_per_class(
    labels: np.ndarray, count: int, class_names: Sequence[str], *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws `count` examples of every class.

    Args:
      labels: int [N], or uint8 [N, classes]: every class then has at least `count`, as an example
        that is drawn for one class is one of its other classes too; examples without a label are
        not drawn.
      count: how many.
      class_names: of all classes.
      seed: of the run.

    Returns:
      The indices drawn and all the others, both int64 and ascending. With one seed, the draw for a
      smaller count is part of the draw for a larger one.

    Raises:
      InputError: a class has fewer examples; it is named.
    """
    order = shuffled(len(labels), seed, "labels_per_class")
    drawn = []
    for label, name in enumerate(class_names):
        has = labels[:, label] > 0 if labels.ndim == 2 else labels == label
        members = order[has[order]]
        if len(members) < count:
            raise InputError(
                f"config.data.labels_per_class is {count}, but class {name!r} has only "
                f"{len(members)} training examples"
            )
        drawn.append(members[:count])
    kept = np.unique(np.concatenate(drawn))
    return kept, np.setdiff1d(np.arange(len(labels)), kept)


def occurring(labels: np.ndarray) -> set[int]:
    """Returns the classes that at least one example has."""
    found = np.flatnonzero(labels.any(axis=0)) if labels.ndim == 2 else np.unique(labels)
    return set(found.tolist())


def _quotas(counts: np.ndarray, fraction: float, tie_order: np.ndarray) -> np.ndarray:
    exact = counts * fraction
    quota = np.minimum(np.floor(exact + 1e-9).astype(np.int64), counts - 1)
    left = int(np.floor(counts.sum() * fraction + 0.5)) - int(quota.sum())
    remainder = np.round(exact - quota, 9)
    for index in sorted(tie_order, key=lambda i: -remainder[i]):
        if left > 0 and quota[index] < counts[index] - 1:
            quota[index] += 1
            left -= 1
    return quota


def shuffled(count: int, seed: int, purpose: str) -> np.ndarray:
    """Returns a permutation, int64 [count], that depends on the seed and the purpose alone.

    It is the same on every machine and with every numpy: raw words of a bit generator are stable across
    versions, Generator's methods are not.
    """
    bits = np.random.Philox(np.random.SeedSequence([seed, zlib.crc32(purpose.encode())]))
    return np.argsort(np.atleast_1d(bits.random_raw(count)), kind="stable").astype(np.int64)


_EPSILON = 1e-9  # needs are sums of fractions: below this two are the same


def _iterative(hot: np.ndarray, fraction: float, seed: int, purpose: str) -> np.ndarray:
    """Returns which examples are held out, bool [N], for labels as bool [N, classes].

    Iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011, algorithm 1) for two sides: the
    examples of the rarest label go first, each to the side that lacks more of that label. Beyond
    the algorithm, every label keeps an example, and where rare labels, each too few for a whole
    example, leave the held-out side short, it is filled.
    """
    count, classes = hot.shape
    order = shuffled(count, seed, purpose)
    ties = shuffled(classes, seed, purpose + ":labels")
    own = [np.flatnonzero(row) for row in hot]
    left, kept = hot.sum(axis=0), np.zeros(classes, np.int64)
    lack = (
        left * fraction
    )  # of each label, on the held-out side; negative: it has more than its share
    room = count * fraction
    held, undecided = np.zeros(count, bool), np.ones(count, bool)
    while left.any():
        label = min(np.flatnonzero(left), key=lambda i: (left[i], ties[i]))
        for example in order[(hot[:, label] & undecided)[order]]:
            has = own[example]
            # Both sides together lack what is left: one lacks more where it lacks over half of that.
            lead = 2 * lack[label] - left[label]
            if abs(lead) < _EPSILON:
                lead = 2 * room - undecided.sum()
            held[example] = lead > _EPSILON and (kept[has] + left[has] > 1).all()
            undecided[example] = False
            left[has] -= 1
            if held[example]:
                lack[has] -= 1
                room -= 1
            else:
                kept[has] += 1
    missing = max(int(np.floor(count * fraction + 0.5)) - int(held.sum()), 0)
    unlabelled = order[undecided[order]][:missing]
    held[unlabelled] = True
    _fill(hot, held, lack, kept, missing - len(unlabelled), order)
    return held


def _fill(
    hot: np.ndarray,
    held: np.ndarray,
    lack: np.ndarray,
    kept: np.ndarray,
    missing: int,
    order: np.ndarray,
) -> None:
    """Holds out `missing` examples more, always the one that brings labels closest to their share."""

    def loss(example: int) -> float:
        # How much the sum of squares of what labels lack grows; rounded, as sums differ by machine.
        return round(float((1 - 2 * lack[hot[example]]).sum()), 9)

    candidates = enumerate(order[~held[order]].tolist()) if missing else ()
    heap = [(loss(example), rank, example) for rank, example in candidates]
    heapq.heapify(heap)
    while missing and heap:
        before, rank, example = heapq.heappop(heap)
        if (kept[hot[example]] < 2).any():
            continue
        # Losses only grow: one that has not grown since it was the least of all still is.
        now = loss(example)
        if now > before:
            heapq.heappush(heap, (now, rank, example))
            continue
        held[example] = True
        lack[hot[example]] -= 1
        kept[hot[example]] -= 1
        missing -= 1
