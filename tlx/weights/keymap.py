"""Key tables: one row for each kind of tensor, read in both directions.

A row pairs a source name (torchvision's, say) with a tlx path; `{i}` stands for a number and is the same
on both sides. Its layout says how the array is rearranged, and is invertible, so that
`to_source(to_target(file)) == file`, bit for bit.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping

import numpy as np

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How an array is rearranged on the way in, and back on the way out."""

    name: str
    to_target: Callable[[np.ndarray], np.ndarray]
    to_source: Callable[[np.ndarray], np.ndarray]
    ndim: int  # of the source's array


SAME = Layout("same", lambda x: x, lambda x: x, 1)
CONV = Layout("OIHW->HWIO", lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1), 4)
LINEAR = Layout("OI->IO", lambda x: x.T, lambda x: x.T, 2)


@dataclasses.dataclass(frozen=True)
class Key:
    """One row. `target` None: the network does not use it; it is carried for the way back."""

    source: str
    target: str | None
    layout: Layout = SAME


def conv(source: str, target: str) -> Key:
    """The row of a convolution without bias."""
    return Key(f"{source}.weight", f"{target}.kernel", CONV)


def linear(source: str, target: str) -> tuple[Key, ...]:
    """The rows of a linear layer with bias."""
    return (
        Key(f"{source}.weight", f"{target}.kernel", LINEAR),
        Key(f"{source}.bias", f"{target}.bias"),
    )


def batchnorm(source: str, target: str) -> tuple[Key, ...]:
    """The rows of a BatchNorm."""
    names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    rows = [Key(f"{source}.{theirs}", f"{target}.{ours}") for theirs, ours in names.items()]
    return (*rows, Key(f"{source}.num_batches_tracked", None))


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What a key table made of a file: every source key is in exactly one of the three."""

    arrays: dict[str, np.ndarray]  # tlx path -> array in tlx layout
    names: dict[str, str]  # tlx path -> the source's name, for messages
    carried: dict[str, np.ndarray]  # buffers the network does not use, under the source's names
    unknown: tuple[str, ...]  # source keys that no row covers


@dataclasses.dataclass(frozen=True)
class KeyTable:
    """All rows of one family as one project writes it."""

    name: str
    keys: tuple[Key, ...]

    def to_target(self, arrays: Arrays) -> Conversion:
        """Renames and rearranges a file's arrays."""
        rows = [(_pattern(key.source), key) for key in self.keys]
        conversion = Conversion({}, {}, {}, ())
        unknown = []
        for name, array in arrays.items():
            match, key = next(
                ((found, key) for regex, key in rows if (found := regex.fullmatch(name))),
                (None, None),
            )
            if match is None or key is None:
                unknown.append(name)
            elif key.target is None:
                conversion.carried[name] = array
            else:
                target = key.target.format(**match.groupdict())
                # A wrong rank is left as it is: the comparison of shapes then names the key.
                fits = array.ndim == key.layout.ndim
                conversion.arrays[target] = key.layout.to_target(array) if fits else array
                conversion.names[target] = name
        return dataclasses.replace(conversion, unknown=tuple(unknown))

    def to_source(self, arrays: Arrays, carried: Arrays | None = None) -> dict[str, np.ndarray]:
        """Returns the arrays under the source's names and in its layouts.

        Raises:
          KeyError: a path that no row covers.
        """
        rows = [(_pattern(key.target), key) for key in self.keys if key.target is not None]
        source = {}
        for path, array in arrays.items():
            for regex, key in rows:
                if match := regex.fullmatch(path):
                    source[key.source.format(**match.groupdict())] = key.layout.to_source(array)
                    break
            else:
                raise KeyError(f"{path} is not in the key table {self.name}")
        return source | dict(carried or {})

    def coverage(self, names: Mapping[str, object]) -> int:
        """Returns how many of a file's names the table covers."""
        rows = [_pattern(key.source) for key in self.keys]
        return sum(any(regex.fullmatch(name) for regex in rows) for name in names)


def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", template)
    text = "".join(
        re.escape(part) if position % 2 == 0 else rf"(?P<{part}>\d+)"
        for position, part in enumerate(parts)
    )
    return re.compile(text)
