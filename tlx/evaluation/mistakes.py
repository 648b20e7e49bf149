"""How a report shows wrong predictions: pictures in a grid with a folded table, texts in a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from tlx.evaluation.markdown import escape, folded, shortened, table


class Source(Protocol):
    """The example behind a mistake."""

    @property
    def image(self) -> np.ndarray | None: ...

    @property
    def name(self) -> str: ...

    @property
    def text(self) -> str: ...


def pictured(mistakes: Sequence[Source]) -> bool:
    """Returns whether there is a picture of each of them, and there is one at all."""
    return bool(mistakes) and all(mistake.image is not None for mistake in mistakes)


def source_header(mistakes: Sequence[Source]) -> tuple[str, ...]:
    """Returns the header of the columns that `source_cells` fills."""
    return ("example",) if pictured(mistakes) else ("example", "text")


def source_cells(mistake: Source) -> tuple[str, ...]:
    """Returns the cells that say which example it is: its name and, where it is no picture, its text."""
    if mistake.image is not None:
        return (escape(mistake.name),)
    return escape(mistake.name), escape(shortened(mistake.text))


def shown_mistakes(
    mistakes: Sequence[Source], header: Sequence[str], rows: Sequence[Sequence[str]], align: str
) -> list[str]:
    """Returns the paragraphs that show mistakes, the worst first.

    Args:
      mistakes: all with a picture, or all without.
      header: `source_header`, and names of the columns that follow.
      rows: one for each mistake: `source_cells`, and what follows.
      align: of the columns that follow, as for `table`.
    """
    found = table(header, rows, align="l" * (len(header) - len(align)) + align)
    if not pictured(mistakes):
        return [found]
    return ["![Grid of the worst mistakes](report/mistakes.png)", folded("Their names", found)]
