"""From batches to the evaluation of a split: padding is dropped, every example counts once."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

Batch = dict[str, np.ndarray]
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
    return np.concatenate(targets), {
        name: np.concatenate([part[name] for part in parts]) for name in parts[0]
    }
