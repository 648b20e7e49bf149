"""From batches to the outcomes of a split's examples: padding is dropped, every example counts once."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from tlx.data import pipeline
from tlx.data.pipeline import Batch

Outcomes = dict[str, np.ndarray]  # per example
AHEAD = 2  # batches that a device may have in hand while the next one is made


def collect(
    batches: Iterable[Batch], evaluate: Callable[[Batch], Mapping[str, Any]]
) -> tuple[np.ndarray, Outcomes]:
    """Returns the targets and the outcomes of all examples of weight above 0, in order.

    Args:
      batches: of the split.
      evaluate: may return arrays that a device still computes; they are waited for while it has the next ones to do.
    """
    targets: list[np.ndarray] = []
    parts: list[Outcomes] = []
    waiting: collections.deque[tuple[np.ndarray, Mapping[str, Any]]] = collections.deque()

    def take() -> None:
        real, found = waiting.popleft()
        parts.append({name: np.asarray(value)[real] for name, value in found.items()})

    for batch in batches:
        real = batch["weight"] > 0
        targets.append(batch["targets"][real])
        waiting.append((real, evaluate(batch)))
        if len(waiting) > AHEAD:
            take()
    while waiting:
        take()
    return _joined(targets), {name: _joined([part[name] for part in parts]) for name in parts[0]}


def collect_split(
    split: pipeline.Rows, evaluate: Callable[[Batch], Mapping[str, Any]], batch_size: int
) -> tuple[np.ndarray, Outcomes]:
    """Returns the targets and the outcomes of a split's examples, in their order; `evaluate` as for `collect`."""
    batches = pipeline.evaluation_batches(split, batch_size=batch_size)
    return split.by_example(*collect(batches, evaluate))


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """Returns the parts one after the other; of [B, T] with several T the shorter ones are filled up with 0."""
    if parts[0].ndim != 2 or len({part.shape[1] for part in parts}) == 1:
        return np.concatenate(parts)
    longest = max(part.shape[1] for part in parts)
    return np.concatenate([np.pad(part, ((0, 0), (0, longest - part.shape[1]))) for part in parts])
