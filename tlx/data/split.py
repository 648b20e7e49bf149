"""Carving one set of examples into several, by class and by seed, without looking at a picture."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tlx.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

    from tlx.data.source import Examples


@dataclasses.dataclass(frozen=True)
class Subset:
    """The examples at `indices`, in that order; itself an `Examples`."""

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

    def image(self, index: int) -> Image.Image | np.ndarray:
        return self.examples.image(int(self.indices[index]))

    def name(self, index: int) -> str:
        return self.examples.name(int(self.indices[index]))

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
      labels: int [N].
      fraction: of the examples that are held out, in [0, 1).
      seed: of the run.
      purpose: `test` or `val`: two purposes draw independently with one seed.

    Returns:
      The indices kept and those held out, both int64 and ascending. round(N * fraction) examples
      are held out, shared among the classes by largest remainder, but fewer where a class would
      lose its last example. The draw is the same on every machine and with every numpy.
    """
    order = shuffled(len(labels), seed, purpose)
    classes, counts = np.unique(labels, return_counts=True)
    quota = _quotas(counts, fraction, shuffled(len(classes), seed, purpose + ":remainders"))
    held = [
        order[labels[order] == value][:count] for value, count in zip(classes, quota, strict=True)
    ]
    out = np.sort(np.concatenate(held)) if held else np.zeros(0, np.int64)
    return np.setdiff1d(np.arange(len(labels)), out), out


def few_per_class(
    labels: np.ndarray, count: int, class_names: Sequence[str], *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws `count` examples of every class.

    Returns:
      The indices drawn and all the others, both int64 and ascending. With one seed, the draw for a
      smaller count is part of the draw for a larger one.

    Raises:
      InputError: a class has fewer examples; it is named.
    """
    order = shuffled(len(labels), seed, "labels_per_class")
    drawn = []
    for label, name in enumerate(class_names):
        members = order[labels[order] == label]
        if len(members) < count:
            raise InputError(
                f"config.data.labels_per_class is {count}, but class {name!r} has only "
                f"{len(members)} training examples"
            )
        drawn.append(members[:count])
    kept = np.sort(np.concatenate(drawn))
    return kept, np.setdiff1d(np.arange(len(labels)), kept)


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
