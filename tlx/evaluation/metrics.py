"""Exact metrics: every example counts once, sums are taken in float64 on the host."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np

from tlx.tasks.classification import TOP_K

Outcomes = dict[str, np.ndarray]  # per example, in the split's order


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a split's evaluation found."""

    targets: np.ndarray  # int [N]
    outcomes: Outcomes
    num_classes: int

    @property
    def correct(self) -> int:
        """How many predictions were right."""
        return int((self.outcomes["prediction"] == self.targets).sum())

    def summary(self) -> dict[str, float | int]:
        """Returns loss (nats), accuracy, top5_accuracy (more than 5 classes), correct, examples."""
        count = len(self.targets)
        found: dict[str, float | int] = {
            "loss": float(self.outcomes["loss"].astype(np.float64).mean()),
            "accuracy": self.correct / count,
            "correct": self.correct,
            "examples": count,
        }
        if self.num_classes > TOP_K:
            found["top5_accuracy"] = float(self.outcomes["top5"].astype(np.float64).mean())
        return found

    def confusion(self) -> np.ndarray:
        """Returns int [C, C]: rows are the true classes, columns the predicted ones."""
        pairs = self.targets.astype(np.int64) * self.num_classes + self.outcomes["prediction"]
        counts = np.bincount(pairs, minlength=self.num_classes**2)
        return counts.reshape(self.num_classes, self.num_classes)

    def per_class_accuracy(self) -> np.ndarray:
        """Returns float [C]; nan for a class without examples."""
        confusion = self.confusion()
        total = confusion.sum(axis=1)
        return np.where(total > 0, np.diag(confusion) / np.maximum(total, 1), np.nan)

    def worst(self, limit: int) -> np.ndarray:
        """Returns the indices of the wrong predictions with the highest loss."""
        wrong = np.flatnonzero(self.outcomes["prediction"] != self.targets)
        order = np.argsort(-self.outcomes["loss"][wrong], kind="stable")
        return wrong[order][:limit]


def collect(
    batches: Iterable[dict[str, np.ndarray]],
    evaluate: Callable[[dict[str, np.ndarray]], Outcomes],
    num_classes: int,
) -> Evaluation:
    """Evaluates batch by batch and drops the padding."""
    targets: list[np.ndarray] = []
    parts: list[Outcomes] = []
    for batch in batches:
        real = batch["weight"] > 0
        targets.append(batch["targets"][real])
        parts.append({name: np.asarray(value)[real] for name, value in evaluate(batch).items()})
    outcomes = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Evaluation(np.concatenate(targets), outcomes, num_classes)
