"""A report's section on predictions of one label: confusion matrix, accuracies, worst mistakes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from tlx.evaluation import figures
from tlx.evaluation.markdown import WORST, class_table, escape, table
from tlx.evaluation.mistakes import pictured, shown_mistakes, source_cells, source_header
from tlx.evaluation.report import Section

FEW_CLASSES = 20  # up to here the confusion matrix is readable with a number in every cell
CURVES = ("loss", "accuracy")


@dataclasses.dataclass(frozen=True)
class Mistake:
    """One wrong prediction."""

    image: np.ndarray | None  # uint8 [H, W, 3]; None: the example is a text
    name: str  # where the example comes from: a file, or a split and an index
    target: str  # class names
    predicted: str
    probability: float  # of the predicted class
    loss: float
    text: str = ""


def section(
    confusion: np.ndarray,
    per_class: np.ndarray,
    class_names: Sequence[str],
    mistakes: Sequence[Mistake],
) -> Section:
    """Returns the section.

    Args:
      confusion: int [C, C] counts, rows are the true classes.
      per_class: float [C] accuracy, NaN where the split has no example of a class.
      class_names: C names.
      mistakes: any number and order; those with the highest loss are shown.
    """
    worst = sorted(mistakes, key=_loss, reverse=True)[:WORST]
    cells = len(class_names) <= FEW_CLASSES
    parts = ["No example of this split was evaluated."]
    if confusion.sum():
        parts = _confusion_parts(confusion, per_class, class_names)
    if worst:
        parts += _mistake_parts(worst, _wrong(confusion))
    return Section(
        parts,
        {
            "confusion": (lambda path: figures.confusion(confusion, class_names, path, cells=cells))
            if confusion.sum()
            else None,
            "mistakes": (lambda path: figures.mistakes(_captioned(worst, class_names), path))
            if pictured(worst)
            else None,
        },
        CURVES,
    )


def _loss(mistake: Mistake) -> float:
    return math.inf if math.isnan(mistake.loss) else mistake.loss


def _captioned(
    worst: Sequence[Mistake], class_names: Sequence[str]
) -> list[tuple[np.ndarray, str, str]]:
    numbers = {name: f"class {index}" for index, name in enumerate(class_names)}
    captioned = []
    for mistake in worst:
        true = figures.drawable(mistake.target, numbers.get(mistake.target, "?"), 24)
        guess = figures.drawable(mistake.predicted, numbers.get(mistake.predicted, "?"), 18)
        lower = f"pred: {guess}, {figures.percent(mistake.probability)}"
        assert mistake.image is not None
        captioned.append((mistake.image, f"true: {true}", lower))
    return captioned


def _confusion_parts(
    confusion: np.ndarray, per_class: np.ndarray, class_names: Sequence[str]
) -> list[str]:
    examples, wrong = int(confusion.sum()), _wrong(confusion)
    parts = [
        f"{examples - wrong:,} of {examples:,} examples are right. "
        "Rows are the true classes, columns the predicted ones, colours shares of a row.",
        "![Confusion matrix](report/confusion.png)",
    ]
    if len(class_names) > FEW_CLASSES and wrong:
        parts += ["### Most confused", _pairs_table(confusion, class_names)]
    return [*parts, "### Accuracy per class", _class_table(confusion, per_class, class_names)]


def _mistake_parts(worst: list[Mistake], wrong: int) -> list[str]:
    which = "The wrong prediction" if len(worst) == 1 else f"The {len(worst)} wrong predictions"
    of = f", of {wrong:,}," if wrong > len(worst) else ""
    rows = [
        (
            *source_cells(m),
            escape(m.target),
            escape(m.predicted),
            f"{m.probability:.3f}",
            f"{m.loss:.3g}",
        )
        for m in worst
    ]
    header = (*source_header(worst), "true", "predicted", "probability", "loss")
    return [
        "### Worst mistakes",
        f"{which}{of} with the highest loss, with the probability given to the wrong class."
        if len(worst) > 1 or of
        else f"{which}, with the probability given to the wrong class.",
        *shown_mistakes(worst, header, rows, align="llrr"),
    ]


def _wrong(confusion: np.ndarray) -> int:
    return int(confusion.sum() - np.trace(confusion))


def _pairs_table(confusion: np.ndarray, class_names: Sequence[str]) -> str:
    counts = np.array(confusion)
    np.fill_diagonal(counts, 0)
    totals = confusion.sum(axis=1)
    order = np.argsort(-counts, axis=None, kind="stable")[:WORST]
    rows = []
    for true, predicted in zip(*np.unravel_index(order, counts.shape), strict=True):
        if counts[true, predicted]:
            names = escape(class_names[true]), escape(class_names[predicted])
            share = counts[true, predicted] / totals[true]
            rows.append((*names, f"{int(counts[true, predicted]):,}", f"{share:.1%}"))
    return table(("true", "predicted", "examples", "share of the true class"), rows, align="llrr")


def _class_table(confusion: np.ndarray, per_class: np.ndarray, class_names: Sequence[str]) -> str:
    counts = np.array(confusion)
    totals = counts.sum(axis=1)
    np.fill_diagonal(counts, 0)

    def row(index: int) -> tuple[str, ...]:
        accuracy, other = per_class[index], int(counts[index].argmax())
        taken = f"{escape(class_names[other])} ({int(counts[index, other]):,})"
        return (
            str(index),
            escape(class_names[index]),
            f"{int(totals[index]):,}",
            "" if np.isnan(accuracy) else f"{accuracy:.3f}",
            taken if counts[index, other] else "",
        )

    header = ("", "class", "examples", "accuracy", "most often taken for")
    return class_table(header, row, "rlrrl", per_class)
