"""Precision, recall and F1 of entities, by seqeval's strict definition.

An entity is right where type, first and last word are. Tags that break the rules of their scheme make no
entity: in IOB2 one begins with B- and goes on over I- of its type, whatever follows; an I- that continues none
is outside. In IOBES it also has to end, in E- of its type, or to be one S-. That is
`seqeval.metrics.classification_report(mode="strict", scheme=IOB2 or IOBES, zero_division=0)`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from tlx.data.tag_scheme import IOBES, continues, is_open, scheme_of, split_tag

Entity = tuple[str, int, int]  # type, first word, the word after the last


class Tags:
    """What the tags of a data set mean.

    Tables have an entry more than there are tags: -1, which is no tag, is outside of entities.
    """

    def __init__(self, class_names: Sequence[str], scheme: str = ""):
        """Args: the tags, and IOB2 or IOBES; "": which of them the tags tell."""
        pairs = [*map(split_tag, class_names), ("O", "")]
        self.types = tuple(sorted({kind or "_" for prefix, kind in pairs if prefix != "O"}))
        prefixes = [prefix for prefix, _ in pairs]
        self.type_of = np.array([self._number(*pair) for pair in pairs], np.int64)
        self.begins = np.array([prefix in ("B", "S") for prefix in prefixes])
        self.continues = np.array([continues(prefix) for prefix in prefixes])
        self.is_open = np.array([is_open(prefix) for prefix in prefixes])
        self.may_be_last = np.array([prefix in ("E", "S") for prefix in prefixes])
        if (scheme or scheme_of(class_names)) != IOBES:
            self.may_be_last |= self.is_open

    def _number(self, prefix: str, kind: str) -> int:
        return -1 if prefix == "O" else self.types.index(kind or "_")


@dataclasses.dataclass(frozen=True)
class Found:
    """Entities of a row of words: what begins at each of them."""

    type_of: np.ndarray  # int [words], -1: none begins here
    end: np.ndarray  # int [words], the word after the last of the entity, if one begins here

    def same(self, other: Found) -> np.ndarray:
        """Returns bool [words]: where an entity begins that the other has too."""
        return (self.type_of >= 0) & (self.type_of == other.type_of) & (self.end == other.end)

    def listed(self, types: Sequence[str]) -> list[Entity]:
        """Returns the entities in their order."""
        starts = np.flatnonzero(self.type_of >= 0).tolist()
        return [(types[self.type_of[start]], start, int(self.end[start])) for start in starts]


def find(indices: np.ndarray, tags: Tags) -> Found:
    """Returns the entities of words, int [words], each the index of a tag; -1 belongs to none and parts sentences."""
    count = len(indices)
    type_of = tags.type_of[indices]
    inside = np.zeros(count + 1, bool)
    inside[1:-1] = (
        tags.continues[indices[1:]] & tags.is_open[indices[:-1]] & (type_of[1:] == type_of[:-1])
    )
    # From each word, the first one behind it that does not continue what is before it.
    stops = np.where(inside, count, np.arange(count + 1))
    end = np.minimum.accumulate(stops[::-1])[::-1][1:]
    valid = tags.begins[indices] & tags.may_be_last[indices[end - 1]]
    return Found(np.where(valid, type_of, -1), end)


def entities(tags: Sequence[str], scheme: str) -> list[Entity]:
    """Returns the entities of a sentence's tags as (type, first word, word after the last)."""
    names = sorted(set(tags))
    indices = np.array([names.index(tag) for tag in tags], np.int64)
    table = Tags(names, scheme)
    return find(indices, table).listed(table.types)


@dataclasses.dataclass(frozen=True)
class EntityScores:
    """Counts of entities by type, int [types] each, and what follows from them. 0 / 0 is 0."""

    types: tuple[str, ...]
    right: np.ndarray
    predicted: np.ndarray
    support: np.ndarray  # true ones

    @property
    def precision(self) -> np.ndarray:
        """Float [types]."""
        return _quotient(self.right, self.predicted)

    @property
    def recall(self) -> np.ndarray:
        """Float [types]."""
        return _quotient(self.right, self.support)

    @property
    def f1(self) -> np.ndarray:
        """Float [types]."""
        return _quotient(2 * self.right, self.predicted + self.support)

    @property
    def occurs(self) -> np.ndarray:
        """Bool [types]: which types there are, true or predicted."""
        return (self.predicted + self.support) > 0

    def micro(self) -> tuple[float, float, float]:
        """Returns precision, recall and F1 over all entities."""
        whole = [np.array([part.sum()]) for part in (self.right, self.predicted, self.support)]
        total = EntityScores(("all",), *whole)
        return float(total.precision[0]), float(total.recall[0]), float(total.f1[0])

    def macro(self) -> tuple[float, float, float]:
        """Returns the means of the types' precision, recall and F1, over types that occur."""
        return self._mean(self.occurs.astype(np.float64))

    def weighted(self) -> tuple[float, float, float]:
        """Returns the means of the types' precision, recall and F1, each weighing as much as it has entities."""
        return self._mean(self.support.astype(np.float64))

    def _mean(self, weights: np.ndarray) -> tuple[float, float, float]:
        total = max(weights.sum(), 1.0)
        precision, recall, f1 = (
            float((each * weights).sum() / total) for each in (self.precision, self.recall, self.f1)
        )
        return precision, recall, f1


def score(true: Found, predicted: Found, types: tuple[str, ...]) -> EntityScores:
    """Returns the scores of predicted entities, found among the same words as the true ones."""

    def counts(of: np.ndarray) -> np.ndarray:
        return np.bincount(of, minlength=len(types))

    return EntityScores(
        types,
        right=counts(true.type_of[true.same(predicted)]),
        predicted=counts(predicted.type_of[predicted.type_of >= 0]),
        support=counts(true.type_of[true.type_of >= 0]),
    )


def _quotient(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.where(denominator > 0, numerator / np.maximum(denominator, 1), 0.0)
