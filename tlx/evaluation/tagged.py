"""A report's section on tagged words: a table of the types of entities, and the worst sentences."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from tlx.evaluation.entities import Entity, EntityScores
from tlx.evaluation.markdown import WORST, class_table, escape, table
from tlx.evaluation.report import Section

CURVES = ("loss", "accuracy", "f1")
LONG = 60  # words; of longer sentences the surroundings of what is wrong are shown
AROUND = 8  # words before and behind it


@dataclasses.dataclass(frozen=True)
class Mistake:
    """A sentence that was not given exactly its entities."""

    name: str  # where it comes from: a file and line
    words: Sequence[str]
    known: int  # how many of them, from the first, were read by the network
    true: Sequence[Entity]
    predicted: Sequence[Entity]
    loss: float  # mean over the words, in nats


def section(
    scores: EntityScores, mistakes: Sequence[Mistake], *, wrong: int, examples: int
) -> Section:
    """Returns the section.

    Args:
      scores: of each type.
      mistakes: the worst first; no more than 20 are shown.
      wrong: how many sentences were not given exactly their entities.
      examples: how many sentences there are.
    """
    worst = list(mistakes[:WORST])
    parts = ["No example of this split was evaluated."]
    if examples:
        parts = _type_parts(scores, wrong, examples)
    if worst:
        parts += _mistake_parts(worst, wrong)
    return Section(parts, {}, CURVES)


def marked(words: Sequence[str], entities: Sequence[Entity], keep: np.ndarray) -> str:
    """Returns the sentence with its entities as `[Empire State Building](location)`.

    Args:
      words: of the sentence.
      entities: of it.
      keep: bool [words], those that are shown; for the others in between there is an ellipsis.
    """
    begins = {start: kind for kind, start, _ in entities}
    ends = {end - 1: kind for kind, _, end in entities}
    shown = []
    for index, word in enumerate(words):
        if keep[index]:
            opening = "[" if index in begins else ""
            shown.append(f"{opening}{word}{f']({ends[index]})' if index in ends else ''}")
        elif not shown or shown[-1] != "…":
            shown.append("…")
    return " ".join(shown)


def _kept(mistake: Mistake) -> np.ndarray:
    """Returns which words to show, bool [words]: the whole entities around anything wrong, with what is beside."""
    count = len(mistake.words)
    if count <= LONG:
        return np.arange(count) < mistake.known
    keep = np.zeros(count, bool)
    for _, start, end in set(mistake.true) ^ set(mistake.predicted):
        keep[max(start - AROUND, 0) : end + AROUND] = True
    for _, start, end in (*mistake.true, *mistake.predicted):
        keep[start:end] |= keep[start:end].any()
    return keep & (np.arange(count) < mistake.known)


def _type_parts(scores: EntityScores, wrong: int, examples: int) -> list[str]:
    def row(index: int) -> tuple[str, ...]:
        quotients = (scores.precision, scores.recall, scores.f1)
        return (
            escape(scores.types[index]),
            *(f"{each[index]:.3f}" if scores.occurs[index] else "" for each in quotients),
            f"{int(scores.support[index]):,}",
            f"{int(scores.predicted[index]):,}",
        )

    header = ("type", "precision", "recall", "F1", "entities", "predicted")
    f1 = np.where(scores.occurs, scores.f1, np.nan)
    averages = [
        (name, *(f"{value:.3f}" for value in values))
        for name, values in (
            ("all entities", scores.micro()),
            ("mean of types", scores.macro()),
            ("mean weighted by entities", scores.weighted()),
        )
    ]
    return [
        f"{examples - wrong:,} of {examples:,} sentences were given exactly their entities. An "
        "entity is right where its type, its first and its last word are.",
        "### Types of entities",
        class_table(header, row, "lrrrrr", f1),
        table(("", "precision", "recall", "F1"), averages, align="lrrr"),
    ]


def _mistake_parts(worst: Sequence[Mistake], wrong: int) -> list[str]:
    which = "The sentence" if len(worst) == 1 else f"The {len(worst)} sentences"
    if wrong > len(worst):
        which += f", of {wrong:,} with a wrong entity, that have the highest loss"
    else:
        which += " with a wrong entity"
    rows = []
    for mistake in worst:
        keep = _kept(mistake)
        texts = (marked(mistake.words, found, keep) for found in (mistake.true, mistake.predicted))
        rows.append((escape(mistake.name), *map(escape, texts), f"{mistake.loss:.3g}"))
    header = ("example", "true", "predicted", "loss of a word")
    return [
        "### Worst mistakes",
        f"{which}: the entities that are there, and those that were found.",
        table(header, rows, align="lllr"),
    ]
