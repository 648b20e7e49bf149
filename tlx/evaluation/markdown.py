"""Markdown that shows any text as it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np

LONG_TABLE = 40  # rows; longer tables are folded
WORST = 20  # rows shown of what is sorted by how bad it is
LONG_TEXT = 400  # characters; of longer ones a table shows the beginning


def escape(text: str) -> str:
    """Returns `text` as one line of Markdown that shows it as it is, also inside a table's cell."""
    text = " ".join(text.split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~$#])", r"\\\1", text)


def shortened(text: str) -> str:
    """Returns the text, or the beginning of a long one with an ellipsis."""
    return text if len(text) <= LONG_TEXT else text[:LONG_TEXT].rstrip() + "…"


def fence(text: str, language: str) -> str:
    """Returns `text` as a block of code that nothing in it can end."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    ticks = "`" * max(3, longest + 1)
    return f"{ticks}{language}\n{text}\n{ticks}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], align: str) -> str:
    """Returns a table; `align` has an l or r for each column, cells are Markdown already."""
    rule = ("---:" if side == "r" else "---" for side in align)
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, tuple(rule), *rows))


def folded(title: str, body: str) -> str:
    """Returns `body` behind a title that opens it."""
    return f"<details><summary>{title}</summary>\n\n{body}\n\n</details>"


def class_table(
    header: Sequence[str],
    row: Callable[[int], Sequence[str]],
    align: str,
    score: np.ndarray,
) -> str:
    """Returns a table of all classes; of many, the lowest first and all of them folded.

    Args:
      header: of the columns.
      row: class index -> cells.
      align: as for `table`.
      score: float [C] by which classes are low or high; NaN is not low.
    """
    everything = table(header, map(row, range(len(score))), align)
    if len(score) <= LONG_TABLE:
        return everything
    order = np.argsort(score, kind="stable")[:WORST]  # NaN comes last
    lowest = table(header, (row(int(index)) for index in order), align)
    return f"The {WORST} lowest:\n\n{lowest}\n\n{folded(f'All {len(score):,}', everything)}"
