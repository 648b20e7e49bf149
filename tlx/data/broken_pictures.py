"""Which pictures are broken, found by decoding all of them."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from tlx.data.source_choice import CLASSES
from tlx.data.split import Subset, occurring
from tlx.errors import InputError

if TYPE_CHECKING:
    from tlx.data.source import Examples, PictureExamples, Splits


def without_broken(splits: Splits, targets: str) -> Splits:
    """Returns the splits without the pictures that cannot be decoded, which are in `skipped`.

    Raises:
      InputError: nothing of a class is left.
    """
    skipped: list[str] = []
    good: dict[str, Any] = {}
    for split, examples in splits.given().items():
        reasons = broken_images(examples)
        skipped += reasons.values()
        keep = np.setdiff1d(np.arange(len(examples)), list(reasons))
        lost = sorted(occurring(examples.labels) - occurring(examples.labels[keep]))
        if lost and targets in CLASSES:
            raise InputError(
                f"every picture of class {examples.class_names[lost[0]]!r} in the {split} split is "
                f"broken, the first: {next(iter(reasons.values()))}"
            )
        good[split] = Subset(examples, keep) if reasons else examples
    return dataclasses.replace(splits, **good, skipped=tuple(skipped))


def broken_images(examples: Examples) -> dict[int, str]:
    """Decodes every picture, in threads, and returns index -> what is wrong for those that fail."""
    pictures = cast("PictureExamples", examples)

    def problem(index: int) -> str:
        try:
            pictures.image(index)
        except InputError as error:
            return str(error)
        return ""

    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        problems = list(pool.map(problem, range(len(examples))))
    return {index: text for index, text in enumerate(problems) if text}
