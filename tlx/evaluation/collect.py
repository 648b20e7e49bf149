"""From batches to the evaluation of a split: padding is dropped, every example counts once."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

Batch = dict[str, np.ndarray]
Outcomes = dict[str, np.ndarray]  # per example


def collect(
    batches: Iterable[Batch], evaluate: Callable[[Batch], Outcomes]
) -> tuple[np.ndarray, Outcomes]:
    """Returns the targets and the outcomes of all examples of weight above 0, in order."""
    targets: list[np.ndarray] = []
    parts: list[Outcomes] = []
    for batch in batches:
        real = batch["weight"] > 0
        targets.append(batch["targets"][real])
        parts.append({name: np.asarray(value)[real] for name, value in evaluate(batch).items()})
    return np.concatenate(targets), {
        name: np.concatenate([part[name] for part in parts]) for name in parts[0]
    }
