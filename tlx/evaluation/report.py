"""The report of a run: report.md and its pictures, from numbers that others computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tlx.evaluation import figures
from tlx.evaluation.markdown import escape, fence, table
from tlx.files import replacing, write_text_atomic

Draw = Callable[[Path], None]  # writes a PNG


@dataclasses.dataclass(frozen=True)
class Shown:
    """An example as a report can show it."""

    index: int  # in its split
    image: np.ndarray | None  # uint8 [H, W, 3]; None: it is a text
    name: str  # where the example comes from: a file, or a split and an index
    text: str | tuple[str, ...] = (
        ""  # or its parts: the words of a tagged sentence, a pair of texts
    )

    @property
    def as_text(self) -> str:
        """The text with its parts one after the other."""
        return self.text if isinstance(self.text, str) else " / ".join(self.text)


@dataclasses.dataclass(frozen=True)
class Section:
    """What a task says about its predictions on a split."""

    parts: Sequence[str]  # paragraphs of Markdown; they show the pictures as report/NAME.png
    pictures: Mapping[str, Draw | None]  # NAME -> what draws it; None: an earlier one is deleted
    curves: Sequence[str]  # the metrics whose course over the steps is worth a picture


@dataclasses.dataclass(frozen=True)
class Report:
    """What a report is made of."""

    title: str
    command: str  # that makes the run again; "" where it was called from Python
    summary: Mapping[str, Any]  # as summary.json
    plan_table: str  # what went into it as text, in training the tuning plan; "" for an evaluation of what is there
    records: Sequence[Mapping[str, Any]]  # the lines of metrics.jsonl
    split: str  # which split the section is about
    section: Section
    choices: Sequence[Sequence[str]] = ()  # what auto decided: field, value, reason
    table_title: str = "What was trained"


def write_report(workdir: str | Path, report: Report) -> Path:
    """Writes workdir/report.md and its pictures into workdir/report/; returns report.md's path.

    Pictures come first, each file is complete or as it was: a report shows nothing absent.

    Raises:
      OSError: no space left.
    """
    workdir = Path(workdir)
    folder = workdir / "report"
    folder.mkdir(parents=True, exist_ok=True)
    metrics = report.section.curves
    pictures: dict[str, Draw | None] = {
        "curves": (lambda path: figures.curves(report.records, metrics, path))
        if figures.has_curves(report.records, metrics)
        else None,
        **report.section.pictures,
    }
    for name, draw in pictures.items():
        if draw is not None:
            with replacing(folder / f"{name}.png") as temporary:
                draw(temporary)
    path = workdir / "report.md"
    write_text_atomic(path, _markdown(report, curves=pictures["curves"] is not None))
    for name, draw in pictures.items():
        if draw is None:
            (folder / f"{name}.png").unlink(missing_ok=True)  # an earlier report's
    return path


def _markdown(report: Report, *, curves: bool) -> str:
    parts = [f"# {escape(report.title)}"]
    if report.command:
        parts += ["To run it again:", fence(report.command, "sh")]
    parts += ["## Summary", table(("", ""), _summary_rows(report.summary), align="lr")]
    if report.choices:
        rows = [tuple(map(escape, choice)) for choice in report.choices]
        parts += ["## What was chosen", table(("field", "value", "reason"), rows, align="lll")]
    if report.plan_table.strip():
        parts += [f"## {report.table_title}", fence(report.plan_table.strip("\n"), "text")]
    if curves:
        *most, last = map(escape, report.section.curves)
        metrics = f"{', '.join(most)} and {last}" if most else last
        parts += ["## Training", f"![Curves of {metrics} over the steps](report/curves.png)"]
    parts += [f"## Predictions on the {escape(report.split)} split", *report.section.parts]
    return "\n\n".join(parts) + "\n"


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
