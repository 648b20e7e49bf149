"""The report of a run: report.md and its pictures, from numbers that others computed."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tlx.evaluation import figures
from tlx.files import replacing, write_text_atomic

FEW_CLASSES = 20  # up to here the confusion matrix is readable with a number in every cell
LONG_TABLE = 40  # rows; longer tables are folded
WORST = 20  # mistakes, pairs and classes shown where there are more


@dataclasses.dataclass(frozen=True)
class Mistake:
    """One wrong prediction."""

    image: np.ndarray  # uint8 [H, W, 3]
    name: str  # where the picture comes from: a file, or a split and an index
    target: str  # class names
    predicted: str
    probability: float  # of the predicted class
    loss: float


@dataclasses.dataclass(frozen=True)
class Report:
    """What a report is made of."""

    title: str
    command: str  # that makes the run again; "" where it was called from Python
    summary: Mapping[str, Any]  # as summary.json
    plan_table: str  # the tuning plan as text; "" for an evaluation without training
    records: Sequence[Mapping[str, Any]]  # the lines of metrics.jsonl
    class_names: tuple[str, ...]
    confusion: np.ndarray  # [C, C] counts, rows are the true classes
    per_class: np.ndarray  # [C] accuracy, NaN where the split has no example of a class
    mistakes: Sequence[Mistake]  # any number and order; those with the highest loss are shown
    split: str  # which split the last four are of


def write_report(workdir: str | Path, report: Report) -> Path:
    """Writes workdir/report.md and its pictures into workdir/report/; returns report.md's path.

    Pictures come first, each file is complete or as it was: a report shows nothing absent.

    Raises:
      OSError: no space left.
    """
    workdir = Path(workdir)
    folder = workdir / "report"
    folder.mkdir(parents=True, exist_ok=True)
    worst = sorted(report.mistakes, key=_loss, reverse=True)[:WORST]
    names, counts = report.class_names, report.confusion
    pictures: dict[str, Callable[[Path], None] | None] = {
        "curves": (lambda path: figures.curves(report.records, path))
        if figures.has_curves(report.records)
        else None,
        "confusion": (
            lambda path: figures.confusion(counts, names, path, cells=len(names) <= FEW_CLASSES)
        )
        if counts.sum()
        else None,
        "mistakes": (
            lambda path: figures.mistakes(
                [(m.image, m.target, m.predicted, m.probability) for m in worst], names, path
            )
        )
        if worst
        else None,
    }
    for name, draw in pictures.items():
        if draw is not None:
            with replacing(folder / f"{name}.png") as temporary:
                draw(temporary)
    shown = {name for name, draw in pictures.items() if draw is not None}
    path = workdir / "report.md"
    write_text_atomic(path, _markdown(report, worst, shown))
    for name in pictures.keys() - shown:
        (folder / f"{name}.png").unlink(missing_ok=True)  # an earlier report's
    return path


def _loss(mistake: Mistake) -> float:
    return math.inf if math.isnan(mistake.loss) else mistake.loss


def _markdown(report: Report, worst: list[Mistake], shown: set[str]) -> str:
    parts = [f"# {escape(report.title)}"]
    if report.command:
        parts += ["To run it again:", _fence(report.command, "sh")]
    parts += ["## Summary", _table(("", ""), _summary_rows(report.summary), align="lr")]
    if report.plan_table.strip():
        parts += ["## What was trained", _fence(report.plan_table.strip("\n"), "text")]
    if "curves" in shown:
        parts += ["## Training", "![Curves of loss and accuracy over the steps](report/curves.png)"]
    split, examples = escape(report.split), int(report.confusion.sum())
    parts += [f"## Predictions on the {split} split"]
    if "confusion" not in shown:
        parts += ["No example of this split was evaluated."]
    else:
        parts += _confusion_parts(report, examples)
    if worst:
        parts += _mistake_parts(worst, _wrong(report.confusion))
    return "\n\n".join(parts) + "\n"


def _confusion_parts(report: Report, examples: int) -> list[str]:
    wrong = _wrong(report.confusion)
    parts = [
        f"{examples - wrong:,} of {examples:,} examples are right. "
        "Rows are the true classes, columns the predicted ones, colours shares of a row.",
        "![Confusion matrix](report/confusion.png)",
    ]
    if len(report.class_names) > FEW_CLASSES and wrong:
        parts += ["### Most confused", _pairs_table(report)]
    return [*parts, "### Accuracy per class", _class_table(report)]


def _mistake_parts(worst: list[Mistake], wrong: int) -> list[str]:
    which = "The wrong prediction" if len(worst) == 1 else f"The {len(worst)} wrong predictions"
    of = f", of {wrong:,}," if wrong > len(worst) else ""
    rows = [
        (
            escape(m.name),
            escape(m.target),
            escape(m.predicted),
            f"{m.probability:.3f}",
            f"{m.loss:.3g}",
        )
        for m in worst
    ]
    header = ("example", "true", "predicted", "probability", "loss")
    return [
        "### Worst mistakes",
        f"{which}{of} with the highest loss, with the probability given to the wrong class."
        if len(worst) > 1 or of
        else f"{which}, with the probability given to the wrong class.",
        "![Grid of the worst mistakes](report/mistakes.png)",
        _folded("Their names", _table(header, rows, align="lllrr")),
    ]


def _wrong(confusion: np.ndarray) -> int:
    return int(confusion.sum() - np.trace(confusion))


def _pairs_table(report: Report) -> str:
    counts = np.array(report.confusion)
    np.fill_diagonal(counts, 0)
    totals = report.confusion.sum(axis=1)
    order = np.argsort(-counts, axis=None, kind="stable")[:WORST]
    rows = []
    for true, predicted in zip(*np.unravel_index(order, counts.shape), strict=True):
        if counts[true, predicted]:
            names = escape(report.class_names[true]), escape(report.class_names[predicted])
            share = counts[true, predicted] / totals[true]
            rows.append((*names, f"{int(counts[true, predicted]):,}", f"{share:.1%}"))
    return _table(("true", "predicted", "examples", "share of the true class"), rows, align="llrr")


def _class_table(report: Report) -> str:
    counts = np.array(report.confusion)
    totals = counts.sum(axis=1)
    np.fill_diagonal(counts, 0)

    def row(index: int) -> tuple[str, ...]:
        accuracy, other = report.per_class[index], int(counts[index].argmax())
        taken = f"{escape(report.class_names[other])} ({int(counts[index, other]):,})"
        return (
            str(index),
            escape(report.class_names[index]),
            f"{int(totals[index]):,}",
            "" if np.isnan(accuracy) else f"{accuracy:.3f}",
            taken if counts[index, other] else "",
        )

    header, align = ("", "class", "examples", "accuracy", "most often taken for"), "rlrrl"
    everything = _table(header, map(row, range(len(report.class_names))), align)
    if len(report.class_names) <= LONG_TABLE:
        return everything
    order = np.argsort(report.per_class, kind="stable")[:WORST]  # NaN comes last
    lowest = _table(header, (row(int(index)) for index in order), align)
    folded = _folded(f"All {len(report.class_names):,}", everything)
    return f"The {WORST} lowest:\n\n{lowest}\n\n{folded}"


def _summary_rows(summary: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, value in summary.items():
        if isinstance(value, Mapping):
            rows += _summary_rows(value, f"{prefix}{key}/")
        else:
            rows.append((escape(prefix + str(key)), _value(value)))
    return rows


def _value(value: Any) -> str:
    if hasattr(value, "item") and getattr(value, "size", 1) == 1:
        value = value.item()
    if value is None or isinstance(value, bool):
        return {None: "", True: "yes", False: "no"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.1f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_value(item) for item in value)
    return escape(str(value))


def escape(text: str) -> str:
    """Returns `text` as one line of Markdown that shows it as it is, also inside a table's cell."""
    text = " ".join(text.split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~$#])", r"\\\1", text)


def _fence(text: str, language: str) -> str:
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], align: str) -> str:
    rule = ("---:" if side == "r" else "---" for side in align)
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, tuple(rule), *rows))


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{body}\n\n</details>"
