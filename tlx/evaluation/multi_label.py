"""A report's section on predictions of several labels: a table of the classes, worst mistakes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from tlx.evaluation import figures
from tlx.evaluation.markdown import WORST, class_table, escape
from tlx.evaluation.mistakes import pictured, shown_mistakes, source_cells, source_header
from tlx.evaluation.report import Section

CURVES = ("loss", "f1_micro", "mAP")
_NAMED = 10  # labels of an example in the table of mistakes
_WIDTH = 24  # characters of a caption


@dataclasses.dataclass(frozen=True)
class ClassScores:
    """What was found of each class, [C]; NaN where a quotient is not defined."""

    support: np.ndarray  # positive examples
    average_precision: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray


@dataclasses.dataclass(frozen=True)
class Mistake:
    """An example that was not given exactly its labels."""

    image: np.ndarray | None  # uint8 [H, W, 3]; None: the example is a text
    name: str  # where the example comes from
    targets: Sequence[int]  # classes
    predicted: Sequence[int]
    furthest: int  # the class whose prediction is furthest from the truth
    probability: float  # that was given to it
    loss: float
    text: str = ""


def section(
    scores: ClassScores,
    class_names: Sequence[str],
    mistakes: Sequence[Mistake],
    *,
    right: int,
    examples: int,
) -> Section:
    """Returns the section.

    Args:
      scores: of each class.
      class_names: C names.
      mistakes: the worst first; no more than 20 are shown.
      right: how many examples were given exactly their labels.
      examples: how many there are.
    """
    worst = list(mistakes[:WORST])
    parts = ["No example of this split was evaluated."]
    if examples:
        parts = _class_parts(scores, class_names, right, examples)
    if worst:
        parts += _mistake_parts(worst, class_names, examples - right)
    return Section(
        parts,
        {
            "mistakes": (lambda path: figures.mistakes(_captioned(worst, class_names), path))
            if pictured(worst)
            else None
        },
        CURVES,
    )


def _class_parts(
    scores: ClassScores, class_names: Sequence[str], right: int, examples: int
) -> list[str]:
    def row(index: int) -> tuple[str, ...]:
        quotients = (scores.average_precision, scores.precision, scores.recall, scores.f1)
        return (
            str(index),
            escape(class_names[index]),
            f"{int(scores.support[index]):,}",
            *("" if np.isnan(q[index]) else f"{q[index]:.3f}" for q in quotients),
        )

    header = ("", "class", "examples", "AP", "precision", "recall", "F1")
    without = int((scores.support == 0).sum())
    left_out = f"; {without:,} of {len(class_names):,} have none and no AP" if without else ""
    return [
        f"{right:,} of {examples:,} examples were given exactly their labels. A label is given "
        "where its probability is above 0.5; AP (average precision) looks at the order of "
        f"probabilities alone. Examples of a class are those that have its label{left_out}.",
        "### Classes",
        class_table(header, row, "rlrrrrr", scores.average_precision),
    ]


def _mistake_parts(worst: Sequence[Mistake], class_names: Sequence[str], wrong: int) -> list[str]:
    which = "The example" if len(worst) == 1 else f"The {len(worst)} examples"
    if wrong > len(worst):
        which += f", of {wrong:,} with a wrong label, that have the highest loss"
    else:
        which += " with a wrong label"

    def listed(labels: Sequence[int]) -> str:
        names = [class_names[label] for label in labels[:_NAMED]]
        return escape(", ".join(names + ["..."] * (len(labels) > _NAMED))) or "none"

    rows = [
        (
            *source_cells(m),
            listed(m.targets),
            listed(m.predicted),
            escape(class_names[m.furthest]),
            f"{m.probability:.3f}",
            f"{m.loss:.3g}",
        )
        for m in worst
    ]
    names = ("true", "predicted", "furthest off", "its probability", "loss")
    header = (*source_header(worst), *names)
    place = "below" if pictured(worst) else "beside"
    return [
        "### Worst mistakes",
        f"{which}; {place} the true labels the one whose probability is furthest from the truth.",
        *shown_mistakes(worst, header, rows, align="lllrr"),
    ]


def _captioned(
    worst: Sequence[Mistake], class_names: Sequence[str]
) -> list[tuple[np.ndarray, str, str]]:
    def name(label: int, width: int) -> str:
        return figures.drawable(class_names[label], f"class {label}", width)

    captioned = []
    for mistake in worst:
        furthest = f"{name(mistake.furthest, 18)}: {figures.percent(mistake.probability)}"
        names = [name(label, _WIDTH) for label in mistake.targets]
        assert mistake.image is not None
        captioned.append((mistake.image, f"true: {_fitting(names)}", furthest))
    return captioned


def _fitting(names: Sequence[str]) -> str:
    """Returns the names with commas, and how many more there are than fit, as `cat, dog +2`."""
    text = names[0] if names else "none"
    for index, name in enumerate(names[1:], 1):
        if len(text) + len(name) + 2 > _WIDTH:
            return f"{text} +{len(names) - index}"
        text += f", {name}"
    return text
