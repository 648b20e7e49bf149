"""Labelled texts, or pairs of texts, in memory."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from tlx.data.split import digest


@dataclasses.dataclass(frozen=True)
class Texts:
    """One text for each example, or a pair; itself `TextExamples`."""

    first: tuple[str, ...]
    second: tuple[str, ...] | None  # of pairs
    labels: np.ndarray  # int32 [N], uint8 [N, classes] of 0 and 1, or float32 [N] of a regression
    class_names: tuple[str, ...]  # of a regression: ()
    title: str  # the examples are called title[0], title[1], ...
    lines: np.ndarray | None = None  # int64 [N]; title line 2, ... where they have lines

    def __len__(self) -> int:
        return len(self.first)

    def text(self, index: int) -> tuple[str, ...]:
        """Returns the example's text, or the two of its pair."""
        if self.second is None:
            return (self.first[index],)
        return self.first[index], self.second[index]

    def name(self, index: int) -> str:
        if self.lines is None:
            return f"{self.title}[{index}]"
        return f"{self.title} line {self.lines[index]}"

    @functools.cached_property
    def fingerprint(self) -> str:
        texts = (*self.class_names, "", *self.first, "", *(self.second or ()))
        kind = "<f4" if self.labels.dtype.kind == "f" else "<i4"
        return digest([*(text.encode() for text in texts), self.labels.astype(kind).tobytes()])
