"""Which of a network's own classes the data's classes are.

Two data sets may be about the same classes under other names: folders are called by WordNet ids
where the weights say "tench", or only a few of a network's classes occur. Nothing is guessed here:
names are compared without regard to case, spaces, hyphens and underscores, and in no other way.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tlx.config import nearest
from tlx.data.split import View, digest
from tlx.errors import InputError
from tlx.weights.labels import imagenet1k
from tlx.weights.meta import WeightsMeta

if TYPE_CHECKING:
    from tlx.data.source import Splits

AUTO = "auto"


def resolve_subset(
    spec: Sequence[str], data_classes: Sequence[str], meta: WeightsMeta
) -> tuple[int, ...]:
    """Returns for each class of the data the index of the network's class that it is.

    Args:
      spec: `data.class_subset`. One entry for each class of the data, in the data's order: an
        index, a name or a WordNet id of the network; or as many `DATACLASS=CLASS`, in any order;
        or ("auto",): the network's classes of the same names or WordNet ids. (): () is returned.
      data_classes: the names of the data's classes.
      meta: of the weights.

    Raises:
      InputError: no such class (with the nearest), a name that several classes have, an index out
        of range, one class twice, or not one entry for each class of the data.
    """
    if not spec:
        return ()
    known = _Classes(meta)
    if tuple(spec) == (AUTO,):
        found = tuple(known.named(name, _HINT_AUTO) for name in data_classes)
    else:
        entries = _in_data_order(spec, data_classes)
        found = tuple(known.find(entry) for entry in entries)
    index, times = collections.Counter(found).most_common(1)[0] if found else (0, 0)
    if times > 1:
        same = [name for name, other in zip(data_classes, found, strict=True) if other == index]
        raise InputError(
            f"data.class_subset: {_shown(same)} are all {known.describe(index)}; each class of the "
            "data needs its own"
        )
    return found


def subset_hint(data_classes: Sequence[str], meta: WeightsMeta) -> str:
    """Returns "; ..." advising data.class_subset=auto where it would work, else ""."""
    try:
        found = resolve_subset((AUTO,), data_classes, meta)
    except InputError:
        return ""
    own = "all" if len(found) == meta.num_classes else f"{len(found)} of the {meta.num_classes}"
    return (
        f"; the data's classes are {own} classes of the weights: data.class_subset=auto judges by "
        "those alone"
    )


def in_network_order(splits: Splits, meta: WeightsMeta) -> Splits:
    """Returns the splits under the network's class names and in its order of classes.

    That is where the data's classes are exactly the network's, by their names or WordNet ids; of tagged words, where they are
    some of the network's tags. Anything else is returned as it is.
    """
    names, synsets = splits.class_names, network_synsets(meta)
    if not names or names == meta.class_names:  # a regression has none
        return splits
    own = meta.class_names
    if sorted(names) == sorted(synsets):
        own = synsets
    elif sorted(names) != sorted(own) and not (meta.per_token and {*names} < {*own}):
        return splits
    position = {name: index for index, name in enumerate(own)}
    order = np.array([position[name] for name in names], np.int32)
    renamed: dict[str, Any] = {
        split: Renamed(examples, order, meta.class_names)
        for split, examples in splits.given().items()
    }
    return dataclasses.replace(splits, **renamed)


def network_synsets(meta: WeightsMeta) -> tuple[str, ...]:
    """Returns the WordNet ids of the network's classes, () where they are not known."""
    if meta.class_names == imagenet1k().names:
        return imagenet1k().synsets
    return ()


@dataclasses.dataclass(frozen=True)
class Renamed(View):
    """The same examples with other class names in another order; itself an `Examples`, of the same kind."""

    examples: Any  # of one of the kinds in tlx.data.source
    order: np.ndarray  # int32 [old classes]: the new label of each
    class_names: tuple[str, ...]

    @functools.cached_property
    def labels(self) -> np.ndarray:
        labels = self.examples.labels
        if labels.ndim == 1:
            return self.order[labels]
        found = np.zeros((len(labels), len(self.class_names)), labels.dtype)
        found[:, self.order] = labels
        return found

    def __len__(self) -> int:
        return len(self.examples)

    @functools.cached_property
    def tags(self) -> tuple[np.ndarray, ...]:
        return tuple(self.order[tags] for tags in self.examples.tags)

    def at(self, index: int) -> int:
        return index

    @functools.cached_property
    def fingerprint(self) -> str:
        facts = "\0".join((self.examples.fingerprint, *self.class_names)).encode()
        return digest((facts, self.order.astype("<i4").tobytes()))


_HINT_AUTO = "; say which: data.class_subset=DATACLASS=CLASS,... with an index, name or WordNet id"


class _Classes:
    """A network's classes, to be found by index, name or WordNet id."""

    def __init__(self, meta: WeightsMeta):
        self.names = meta.class_names
        self.count = meta.num_classes or len(meta.class_names)
        self.synsets = network_synsets(meta)
        self.by_name: dict[str, list[int]] = {}
        for index, name in enumerate(self.names):
            self.by_name.setdefault(_plain(name), []).append(index)
        for index, synset in enumerate(self.synsets):
            self.by_name.setdefault(synset, []).append(index)

    def find(self, text: str) -> int:
        """Returns the class that an index, a name or a WordNet id means."""
        digits = text.removeprefix("-").isdecimal()
        named = text in self.names  # digits can be names too, as those of handwritten digits
        if digits and not named:
            if not 0 <= int(text) < self.count:
                raise InputError(
                    f"data.class_subset: {text} is outside 0..{self.count - 1}, the classes of the "
                    "weights"
                )
            return int(text)
        index = self.named(text, "")
        if digits and int(text) != index:
            raise InputError(
                f"data.class_subset: {text!r} is the name of class {index} and the index of "
                f"another; rename the data's classes and use data.class_subset={AUTO}"
            )
        return index

    def named(self, text: str, hint: str) -> int:
        """Returns the class of a name or WordNet id; `hint` ends the error where there is none."""
        if not self.names:
            raise InputError(
                f"data.class_subset: {text!r}: the weights do not name their classes; give indices "
                f"(0..{self.count - 1})"
            )
        found = self.by_name.get(_plain(text), [])
        if len(found) > 1:  # exactly as it is written, one of them may be meant
            found = [index for index in found if self.names[index] == text] or found
        if len(found) == 1:
            return found[0]
        if not found:
            candidates = self.synsets if re.fullmatch(r"n\d+", text) else self.names
            raise InputError(
                f"data.class_subset: the weights have no class {text!r}"
                f"{nearest(text, candidates)}{hint}"
            )
        raise InputError(
            f"data.class_subset: {text!r} is the name of {len(found)} classes of the weights, "
            f"{' and '.join(map(self.describe, found))}; give the index"
        )

    def describe(self, index: int) -> str:
        """Returns what an error calls a class: its index and, where known, name and WordNet id."""
        facts = [part[index] for part in (self.names, self.synsets) if part]
        return f"class {index}" + (f" ({', '.join(facts)})" if facts else "")


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _in_data_order(spec: Sequence[str], data_classes: Sequence[str]) -> list[str]:
    pairs = [entry.rpartition("=") for entry in spec]
    if not any(equals for _, equals, _ in pairs):
        if len(spec) != len(data_classes):
            raise InputError(_wrong_count(spec, data_classes))
        return list(spec)
    given: dict[str, str] = {}
    for name, equals, chosen in pairs:
        name, chosen = name.strip(), chosen.strip()
        if not (equals and name and chosen):
            raise InputError(
                f"data.class_subset: {chosen or name!r} is not DATACLASS=CLASS, as other entries are"
            )
        if name not in data_classes:
            raise InputError(
                f"data.class_subset: the data has no class {name!r}{nearest(name, data_classes)} "
                f"(there are: {_shown(data_classes)})"
            )
        if name in given:
            raise InputError(f"data.class_subset names the data's class {name!r} twice")
        given[name] = chosen
    missing = [name for name in data_classes if name not in given]
    if missing:
        raise InputError(
            f"data.class_subset does not say which class of the weights these of the data are: "
            f"{_shown(missing)}"
        )
    return [given[name] for name in data_classes]


def _wrong_count(spec: Sequence[str], data_classes: Sequence[str]) -> str:
    return (
        f"data.class_subset has {len(spec)} entries, but the data has {len(data_classes)} classes "
        f"({_shown(data_classes)}): give one for each in this order, or DATACLASS=CLASS, or {AUTO}"
    )


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
