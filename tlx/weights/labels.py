"""Names of classes that many sets of weights share."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

_IMAGENET1K = Path(__file__).parent / "imagenet1k.json"


@dataclasses.dataclass(frozen=True)
class Labels:
    """The classes of a data set, in the order of a classifier's outputs."""

    names: tuple[str, ...]
    synsets: tuple[str, ...]  # WordNet ids, as n01440764


@functools.cache
def imagenet1k() -> Labels:
    """Returns the 1000 classes of ImageNet-1k (ILSVRC 2012), in the order of their WordNet ids.

    The names are torchvision's, each of them once ("crane" is the machine, "crane bird" the bird).
    """
    rows = json.loads(_IMAGENET1K.read_text(encoding="utf-8"))
    synsets, names = zip(*rows, strict=True)
    return Labels(names=names, synsets=synsets)
