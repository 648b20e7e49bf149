"""The pictures of a report, drawn without pyplot so that nothing global changes."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.font_manager
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.layout_engine import ConstrainedLayoutEngine

from tlx.config import sign_of

TRAIN, VALIDATION, RIGHT, WRONG = "#4878a8", "#d1603d", "#2f7d4f", "#b3261e"
FONT = "DejaVu Sans"  # matplotlib brings it
STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": FONT,
    "font.size": 10,
    "grid.alpha": 0.3,
    "text.usetex": False,
}
COLUMNS = 5  # of the grid of mistakes


def has_curves(records: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> bool:
    """Returns whether the records hold anything that `curves` draws."""
    names = (f"{split}/{metric}" for metric in metrics for split in ("train", "val"))
    return any(_series(records, name)[0] for name in names)


def curves(records: Sequence[Mapping[str, Any]], metrics: Sequence[str], path: Path) -> None:
    """Draws metrics of training and validation over the steps, the learning rate below.

    Args:
      records: `step` and values as `train/loss`, `val/accuracy`, `train/lr`; None leaves a gap.
      metrics: as loss, of which less is better, and accuracy, of which more is and 1 is the most; those without a
        record are left out.
      path: the PNG to write.
    """
    metrics = [m for m in metrics if has_curves(records, (m,))]
    rates = _series(records, "train/lr")
    with matplotlib.rc_context(STYLE):
        heights = (3.4, 1.0) if rates[0] else (3.4,)
        figure = Figure(figsize=(5.2 * len(metrics), sum(heights) + 0.4), layout="constrained")
        grid = figure.add_gridspec(len(heights), len(metrics), height_ratios=heights)
        for column, metric in enumerate(metrics):
            top = figure.add_subplot(grid[0, column])
            _curve(top, records, metric)
            if rates[0]:
                below = figure.add_subplot(grid[1, column], sharex=top)
                below.plot(*rates, color="#666666", linewidth=1.2, marker=_marker(rates[0]))
                below.set_ylim(bottom=0)
                below.set_ylabel("learning\nrate" if column == 0 else "")
                below.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
                top.tick_params(labelbottom=False)
            figure.axes[-1].set_xlabel("step")
        figure.savefig(path, dpi=130)


def range_test(
    rates: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float] | np.ndarray,
    suggestion: float,
    path: Path,
) -> None:
    """Draws the losses of a learning-rate range test, and the rate that follows from them (nan: none)."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.8), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(rates, losses, color=TRAIN, alpha=0.35, linewidth=1.0, label="loss")
        axes.plot(rates, smoothed, color=TRAIN, linewidth=1.8, label="smoothed")
        if np.isfinite(suggestion):
            axes.axvline(suggestion, color=VALIDATION, linewidth=1.2, label=f"{suggestion:.2g}")
        axes.set_xscale("log")
        highest = max(losses[0], float(np.max(smoothed[: len(smoothed) // 2 + 1])))
        axes.set_ylim(min(0.0, min(losses)), 1.2 * highest)
        axes.set_xlabel("learning rate")
        axes.set_ylabel("training loss")
        axes.legend(frameon=False)
        figure.savefig(path, dpi=130)


def _curve(axes: Axes, records: Sequence[Mapping[str, Any]], metric: str) -> None:
    best = max if sign_of(metric) > 0 else min
    for split, label, color in (("train", "training", TRAIN), ("val", "validation", VALIDATION)):
        steps, values = _series(records, f"{split}/{metric}")
        finite = [
            (value, step) for step, value in zip(steps, values, strict=True) if np.isfinite(value)
        ]
        if not steps:
            continue
        if split == "val" and finite:
            value = best(finite)[0]
            step = min(s for v, s in finite if v == value)
            label += f", best {value:.4g} at step {step:,}"
            axes.plot([step], [value], "o", color=color, markersize=9, fillstyle="none")
        marker = "o" if split == "val" and len(steps) <= 50 else _marker(steps)
        axes.plot(
            steps, values, color=color, label=label, linewidth=1.6, marker=marker, markersize=4
        )
    axes.set_title(metric)
    axes.legend(fontsize=9, framealpha=0.8)
    if sign_of(metric) > 0:
        axes.set_ylim(top=min(1.02, axes.get_ylim()[1]))


def _series(records: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    found = [
        (r["step"], np.nan if r[name] is None else float(r[name])) for r in records if name in r
    ]
    return [step for step, _ in found], [value for _, value in found]


def _marker(steps: Sequence[int]) -> str:
    return "o" if len(steps) == 1 else ""


def confusion(counts: np.ndarray, names: Sequence[str], path: Path, *, cells: bool) -> None:
    """Draws a confusion matrix, coloured by the share of each row.

    Args:
      counts: [C, C], rows are the true classes.
      names: C class names.
      path: the PNG to write.
      cells: whether to name the classes and write counts into cells; else class numbers only.
    """
    totals = counts.sum(axis=1, keepdims=True)
    share = counts / np.maximum(totals, 1)
    labels = [drawable(name, f"class {index}", 22) for index, name in enumerate(names)]
    side = max(3.2, 0.48 * len(names)) if cells else 6.8  # inches, of the matrix
    longest = 0.09 * max(map(len, labels))  # inches
    flat = longest < 0.9 * side / len(names)
    margin = (longest, 0.0 if flat else longest) if cells else (0.0, 0.0)
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(
            figsize=(side + margin[0] + 2.2, side + margin[1] + 0.9), layout="constrained"
        )
        axes = figure.add_subplot()
        # Square root: in a good matrix all that is interesting is far below the diagonal's 1.
        image = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
        bar = figure.colorbar(image, ax=axes, shrink=0.7, label="share of the true class")
        bar.set_ticks([0, 0.05, 0.2, 0.4, 0.6, 0.8, 1])
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        if cells:
            ticks = range(len(names))
            axes.set_xticks(ticks, labels, rotation=0 if flat else 90)
            axes.set_yticks(ticks, labels)
            axes.tick_params(length=0)
            _cell_counts(axes, counts, share)
        # At least one pixel for a class, or single cells vanish between two of them.
        figure.savefig(path, dpi=130 if cells else min(400, max(130, len(names) / 5)))


def _cell_counts(axes: Axes, counts: np.ndarray, share: np.ndarray) -> None:
    for row, column in zip(*np.nonzero(counts), strict=True):
        count = int(counts[row, column])
        text = f"{count}" if count < 10_000 else f"{count / 1000:.0f}k"
        axes.text(
            column,
            row,
            text,
            ha="center",
            va="center",
            fontsize=8,
            color="white" if share[row, column] > 0.4 else "#222222",
        )


def mistakes(examples: Sequence[tuple[np.ndarray, str, str]], path: Path) -> None:
    """Draws pictures in a grid, each with a line about what is right and one about what is wrong.

    Args:
      examples: (image uint8 [H, W, 3], the upper line, the lower line), lines that `drawable` made.
      path: the PNG to write.
    """
    columns = min(COLUMNS, len(examples))
    rows = -(-len(examples) // columns)
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.3 * columns + 0.2, 2.8 * rows + 0.2), layout=layout)
        for index, (image, upper, lower) in enumerate(examples):
            axes = figure.add_subplot(rows, columns, index + 1)
            # Tiny pictures keep their pixels; large ones are averaged down.
            tiny = max(image.shape[:2]) <= 96
            axes.imshow(image, interpolation="nearest" if tiny else "antialiased")
            axes.set_axis_off()
            axes.set_title(upper, fontsize=9, color=RIGHT, pad=17)
            axes.annotate(
                lower,
                xy=(0.5, 1.0),
                xycoords="axes fraction",
                xytext=(0, 5),
                textcoords="offset points",
                ha="center",
                fontsize=9,
                color=WRONG,
            )
        figure.savefig(path, dpi=110)


def scatter(targets: np.ndarray, predictions: np.ndarray, path: Path) -> None:
    """Draws predictions over targets, float [N] each, and the line on which they are equal."""
    finite = np.isfinite(predictions)
    targets, predictions = targets[finite], predictions[finite]
    low = min(float(targets.min()), float(predictions.min()))
    high = max(float(targets.max()), float(predictions.max()))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 4.8), layout="constrained")
        axes = figure.add_subplot()
        size, alpha = (14, 0.6) if len(targets) < 2000 else (4, 0.25)
        axes.scatter(targets, predictions, s=size, alpha=alpha, color=TRAIN, linewidths=0)
        axes.plot([low, high], [low, high], color=VALIDATION, linestyle="--", linewidth=1.2)
        axes.set_xlabel("true")
        axes.set_ylabel("predicted")
        figure.savefig(path, dpi=130)


def percent(probability: float) -> str:
    """Returns 0% to 99%, and >99% where rounding would make it certain."""
    return f"{probability:.0%}" if probability < 0.995 else ">99%"


@functools.cache
def _glyphs() -> frozenset[int]:
    font = matplotlib.font_manager.findfont(FONT)
    return frozenset(FT2Font(font).get_charmap())


def drawable(text: str, otherwise: str, width: int) -> str:
    """Returns `text` in one line of at most `width` characters that the pictures' font can show.

    Characters that it lacks are left out; where none remain, returns `otherwise`. Dollar signs are
    escaped, or they would start a formula.
    """
    text = " ".join(unicodedata.normalize("NFC", text).split())
    shown = " ".join("".join(c for c in text if ord(c) in _glyphs()).split())
    if not any(c.isalnum() for c in shown):
        shown = text if text and all(ord(c) in _glyphs() for c in text) else otherwise
    if len(shown) > width:
        shown = shown[: width - 1].rstrip() + "…"
    return shown.replace("$", r"\$")
