"""What predictions of one class each are worth, from counts of the classes alone."""

from __future__ import annotations

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class ClassCounts:
    """How often each class is there, is predicted, and both, int64 [C] each."""

    there: np.ndarray
    predicted: np.ndarray
    both: np.ndarray

    @classmethod
    def of(cls, targets: np.ndarray, predictions: np.ndarray, num_classes: int) -> ClassCounts:
        """Counts classes, int [N] and int [N]."""
        right = targets[predictions == targets]
        counts = (
            np.bincount(part, minlength=num_classes) for part in (targets, predictions, right)
        )
        return cls(*counts)

    def f1(self) -> np.ndarray:
        """Returns the F1 of each class, float64 [C]; NaN for one that is not there and never predicted."""
        total = self.there + self.predicted
        return np.where(total > 0, 2.0 * self.both / np.maximum(total, 1), np.nan)

    def macro_f1(self) -> float:
        """Returns the mean over the classes whose F1 is defined, as `sklearn.metrics.f1_score(average="macro")`."""
        return float(np.nanmean(self.f1()))

    def matthews(self) -> float:
        """Returns Matthews's correlation coefficient of any number of classes; 0 where one side is constant.

        Gorodkin 2004, "Comparing two K-category assignments by a K-category correlation coefficient",
        as `sklearn.metrics.matthews_corrcoef`.
        """
        there, predicted = self.there.tolist(), self.predicted.tolist()  # whole numbers of any size
        count, right = sum(there), int(self.both.sum())
        covariance = right * count - sum(a * b for a, b in zip(there, predicted, strict=True))
        spread = (count**2 - sum(a * a for a in there)) * (count**2 - sum(b * b for b in predicted))
        return covariance / math.sqrt(spread) if spread else 0.0
