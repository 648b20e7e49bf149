"""Picture files as examples, whatever says which they are and what is on them: folders or a table."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
from PIL import Image

from tlx.data.image import decode
from tlx.data.split import digest
from tlx.files import printable

# What people call their splits, in lower case.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


@dataclasses.dataclass(frozen=True)
class PictureFiles:
    """Picture files, decoded when asked for; itself `PictureExamples`."""

    root: Path  # of the split
    files: tuple[str, ...]  # relative to root, with forward slashes, or absolute
    sizes: np.ndarray  # int64 [N], bytes
    labels: np.ndarray  # int32 [N], uint8 [N, classes] of 0 and 1, or float32 [N]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.files)

    def image(self, index: int) -> Image.Image:
        return decode(self.root / self.files[index], name=self.name(index))

    def name(self, index: int) -> str:
        return printable(self.root / self.files[index])

    @functools.cached_property
    def fingerprint(self) -> str:
        names = "\0".join((*self.class_names, "", *self.files)).encode("utf-8", "surrogateescape")
        kind = "<f4" if self.labels.dtype.kind == "f" else "<i4"
        numbers = self.sizes.astype("<i8").tobytes() + self.labels.astype(kind).tobytes()
        return digest((names, numbers))
