"""A report's section on predictions of one number: predictions against targets, worst mistakes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from tlx.evaluation import figures
from tlx.evaluation.markdown import WORST
from tlx.evaluation.mistakes import pictured, shown_mistakes, source_cells, source_header
from tlx.evaluation.report import Section

CURVES = ("loss", "spearman")


@dataclasses.dataclass(frozen=True)
class Mistake:
    """One prediction that is off."""

    image: np.ndarray | None  # uint8 [H, W, 3]; None: the example is a text
    name: str  # where the example comes from: a file, or a split and an index
    text: str
    target: float
    predicted: float

    @property
    def off(self) -> float:
        """How far; what is not a number is furthest."""
        off = abs(self.predicted - self.target)
        return math.inf if math.isnan(off) else off


def section(targets: np.ndarray, predictions: np.ndarray, mistakes: Sequence[Mistake]) -> Section:
    """Returns the section.

    Args:
      targets: float [N].
      predictions: float [N].
      mistakes: any number and order; those that are furthest off are shown.
    """
    worst = sorted(mistakes, key=lambda mistake: -mistake.off)[:WORST]
    drawn = bool(np.isfinite(predictions).any())
    parts = [f"{len(targets):,} examples. The dashed line is where predictions are right."]
    if drawn:
        parts.append("![Predictions against targets](report/scatter.png)")
    if worst:
        rows = [
            (*source_cells(m), f"{m.target:.4g}", f"{m.predicted:.4g}", f"{m.off:.4g}")
            for m in worst
        ]
        header = (*source_header(worst), "true", "predicted", "absolute error")
        parts += ["### Worst mistakes", *shown_mistakes(worst, header, rows, align="rrr")]
    return Section(
        parts,
        {
            "scatter": (lambda path: figures.scatter(targets, predictions, path))
            if drawn
            else None,
            "mistakes": (lambda path: figures.mistakes(_captioned(worst), path))
            if pictured(worst)
            else None,
        },
        CURVES,
    )


def _captioned(worst: Sequence[Mistake]) -> list[tuple[np.ndarray, str, str]]:
    return [
        (m.image, f"true: {m.target:.4g}", f"pred: {m.predicted:.4g}")
        for m in worst
        if m.image is not None
    ]
