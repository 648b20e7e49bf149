"""Key tables: one row for each kind of tensor, read in both directions.

A row pairs a source name (torchvision's, say) with a tlx path; `{i}` stands for a number and is the same
on both sides. Its layout says how the array is rearranged, and is invertible, so that
`to_source(to_target(file)) == file`, bit for bit. A row may pair one source tensor with several paths, as
fused query, key and value.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How an array is rearranged on the way in, and back on the way out.

    `to_target` returns one array for each of the row's targets, `to_source` takes as many.
    """

    name: str
    to_target: Callable[[np.ndarray], Sequence[np.ndarray]]
    to_source: Callable[..., np.ndarray]
    ndim: int  # of the source's array


SAME = Layout("same", lambda x: (x,), lambda x: x, 1)
CONV = Layout(
    "OIHW->HWIO", lambda x: (x.transpose(2, 3, 1, 0),), lambda x: x.transpose(3, 2, 0, 1), 4
)
LINEAR = Layout("OI->IO", lambda x: (x.T,), lambda x: x.T, 2)
# A 1x1 convolution that tlx has as a linear layer, [out, in, 1, 1] -> [in, out].
CONV_AS_LINEAR = Layout(
    "OI11->IO", lambda x: (x[:, :, 0, 0].T,), lambda x: x.T[:, :, None, None], 4
)
# A linear layer that tlx has as a 1x1 convolution, [out, in] -> [1, 1, in, out].
LINEAR_AS_CONV = Layout("OI->11IO", lambda x: (x.T[None, None],), lambda x: x[0, 0].T, 2)
# Query, key and value one below the other, as in torch's in_proj_weight and timm's qkv.
QKV_KERNEL = Layout(
    "(3O)I->3 IO",
    lambda x: tuple(part.T for part in np.split(x, 3)),
    lambda *parts: np.concatenate([part.T for part in parts]),
    2,
)
QKV_BIAS = Layout("(3O)->3 O", lambda x: np.split(x, 3), lambda *parts: np.concatenate(parts), 1)


def same(ndim: int) -> Layout:
    """Returns the layout of an array of that rank which is not rearranged."""
    return dataclasses.replace(SAME, ndim=ndim)


def reshape(name: str, ndim: int, to_target: Any, to_source: Any) -> Layout:
    """Returns a one-to-one layout made of two inverse functions."""
    return Layout(name, lambda x: (to_target(x),), to_source, ndim)


@dataclasses.dataclass(frozen=True)
class Key:
    """One row. No `targets`: the network does not use it; it is carried for the way back.

    Where there is nothing to carry (the weights came from no file), an unused buffer is made by `default`,
    once for each path that matches `beside`.
    """

    source: str
    targets: tuple[str, ...]
    layout: Layout = SAME
    beside: str = ""
    default: Callable[[], np.ndarray] | None = None


def value(source: str, target: str, layout: Layout = SAME) -> Key:
    """The row of one array."""
    return Key(source, (target,), layout)


def conv(source: str, target: str) -> Key:
    """The row of a convolution without bias."""
    return value(f"{source}.weight", f"{target}.kernel", CONV)


def conv_bias(source: str, target: str) -> tuple[Key, ...]:
    """The rows of a convolution with bias."""
    return (conv(source, target), value(f"{source}.bias", f"{target}.bias"))


def linear(source: str, target: str, layout: Layout = LINEAR) -> tuple[Key, ...]:
    """The rows of a linear layer with bias."""
    return (
        value(f"{source}.weight", f"{target}.kernel", layout),
        value(f"{source}.bias", f"{target}.bias"),
    )


def norm(source: str, target: str) -> tuple[Key, ...]:
    """The rows of a LayerNorm."""
    return (
        value(f"{source}.weight", f"{target}.scale"),
        value(f"{source}.bias", f"{target}.bias"),
    )


def batchnorm(source: str, target: str) -> tuple[Key, ...]:
    """The rows of a BatchNorm."""
    return (
        *norm(source, target),
        value(f"{source}.running_mean", f"{target}.mean"),
        value(f"{source}.running_var", f"{target}.var"),
        Key(
            f"{source}.num_batches_tracked",
            (),
            beside=f"{target}.mean",
            default=lambda: np.zeros((), np.int64),
        ),
    )


def fused_qkv(source_kernel: str, source_bias: str, target: str) -> tuple[Key, ...]:
    """The rows of a projection to query, key and value in one tensor; the bias "" where it has none."""
    parts = [f"{target}.{part}" for part in ("query", "key", "value")]
    rows = [Key(source_kernel, tuple(f"{part}.kernel" for part in parts), QKV_KERNEL)]
    if source_bias:
        rows.append(Key(source_bias, tuple(f"{part}.bias" for part in parts), QKV_BIAS))
    return tuple(rows)


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a file has besides the network's values: all that is needed to write it again.

    Equal and hashed by what it holds, so that it can be a static part of a model.
    """

    table: str  # the name of its key table
    dtypes: tuple[tuple[str, str], ...] = ()  # source name -> type, where it is not float32
    carried: Arrays = dataclasses.field(default_factory=dict, compare=False)
    digest: str = ""  # of `carried`

    @classmethod
    def of(cls, table: str, dtypes: Mapping[str, str], carried: Arrays) -> Origin:
        """Returns the origin with its digest."""
        digest = hashlib.sha256()
        for name in sorted(carried):
            array = np.ascontiguousarray(carried[name])
            digest.update(f"{name} {array.dtype} {array.shape} ".encode() + array.tobytes())
        kept = {name: np.array(array) for name, array in carried.items()}
        return cls(table, tuple(sorted(dtypes.items())), kept, digest.hexdigest())


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What a key table made of a file: every source key is in exactly one of the four."""

    arrays: dict[str, np.ndarray]  # tlx path -> array in tlx layout
    names: dict[str, str]  # tlx path -> the source's name, for messages
    carried: dict[str, np.ndarray]  # buffers the network does not use, under the source's names
    unknown: tuple[str, ...]  # source keys that no row covers
    dropped: tuple[str, ...] = ()  # those of parts that no network here has


@dataclasses.dataclass(frozen=True)
class KeyTable:
    """All rows of one family as one project writes it.

    `absent` are regexes of tlx paths which that project's files do not have, as the auxiliary head: these
    values are drawn afresh on the way in and left out on the way back. `norm_epsilon` is that of the project's
    networks where it is not ours, else 0. `required`: a file without that entry is not of this table. `dropped` are regexes of
    the source's names which are of parts that no network here has, as heads of pretraining: they are left out by name.
    """

    name: str
    keys: tuple[Key, ...]
    absent: tuple[str, ...] = ()
    norm_epsilon: float = 0.0
    required: str = ""
    dropped: tuple[str, ...] = ()

    def to_target(self, arrays: Arrays) -> Conversion:
        """Renames and rearranges a file's arrays."""
        conversion = Conversion({}, {}, {}, ())
        unknown: list[str] = []
        dropped: list[str] = []
        for name, array in arrays.items():
            found = self._by_source.find(name)
            if found is None:
                (dropped if self._drops(name) else unknown).append(name)
                continue
            key, numbers = found
            if not key.targets:
                conversion.carried[name] = array
                continue
            targets = [target.format(**numbers) for target in key.targets]
            # What cannot be rearranged is left as it is: the comparison of shapes then names the key.
            parts: Sequence[np.ndarray] = [array] * len(targets)
            if array.ndim == key.layout.ndim:
                with contextlib.suppress(ValueError):
                    parts = key.layout.to_target(array)
            for target, part in zip(targets, parts, strict=True):
                conversion.arrays[target] = part
                conversion.names[target] = name
        return dataclasses.replace(conversion, unknown=tuple(unknown), dropped=tuple(dropped))

    def to_source(self, arrays: Arrays, carried: Arrays | None = None) -> dict[str, np.ndarray]:
        """Returns the arrays under the source's names and in its layouts.

        Unused buffers are exactly those of `carried`; None: the weights came from no file, and each has its default.

        Raises:
          KeyError: a path that no row covers.
        """
        source: dict[str, np.ndarray] = {}
        for path in arrays:
            found = self._by_target.find(path)
            if found is not None:
                key, numbers = found
                parts = [arrays[target.format(**numbers)] for target in key.targets]
                source.setdefault(key.source.format(**numbers), key.layout.to_source(*parts))
            elif not self.lacks(path):
                raise KeyError(f"{path} is not in the key table {self.name}")
            for key, numbers in self._by_neighbour.find_all(path) if carried is None else ():
                if key.default is not None:
                    source[key.source.format(**numbers)] = key.default()
        return source | dict(carried or {})

    def row(self, path: str) -> tuple[str, Key, tuple[str, ...]] | None:
        """Returns the source's name for a path, its row and all paths of that row; None: there is none."""
        found = self._by_target.find(path)
        if found is None:
            return None
        key, numbers = found
        targets = tuple(target.format(**numbers) for target in key.targets)
        return key.source.format(**numbers), key, targets

    def lacks(self, path: str) -> bool:
        """Returns whether this project's files do not have the value at all."""
        return any(re.fullmatch(pattern, path) for pattern in self.absent)

    def coverage(self, names: Iterable[str]) -> int:
        """Returns how many of a file's names the table covers; none where it lacks the required one."""
        names = set(names)
        if self.required and self.required not in names:
            return 0
        return sum(self._by_source.find(name) is not None or self._drops(name) for name in names)

    def _drops(self, name: str) -> bool:
        return any(re.fullmatch(pattern, name) for pattern in self.dropped)

    @functools.cached_property
    def _by_source(self) -> _Index:
        return _Index([(key.source, key) for key in self.keys])

    @functools.cached_property
    def _by_target(self) -> _Index:
        return _Index([(target, key) for key in self.keys for target in key.targets])

    @functools.cached_property
    def _by_neighbour(self) -> _Index:
        return _Index([(key.beside, key) for key in self.keys if key.beside])


class _Index:
    """Finds the rows for a name: literal templates by a dict, those with numbers by their regex."""

    def __init__(self, rows: Sequence[tuple[str, Key]]):
        self.literal: dict[str, list[Key]] = {}
        self.patterns: list[tuple[re.Pattern[str], Key]] = []
        for template, key in rows:
            if "{" in template:
                self.patterns.append((_pattern(template), key))
            else:
                self.literal.setdefault(template, []).append(key)

    def find_all(self, name: str) -> Iterable[tuple[Key, dict[str, str]]]:
        for key in self.literal.get(name, ()):
            yield key, {}
        for regex, key in self.patterns:
            if match := regex.fullmatch(name):
                yield key, match.groupdict()

    def find(self, name: str) -> tuple[Key, dict[str, str]] | None:
        return next(iter(self.find_all(name)), None)


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", template)
    seen: set[str] = set()
    text = ""
    for position, part in enumerate(parts):
        if position % 2 == 0:
            text += re.escape(part)
        else:
            text += rf"(?P={part})" if part in seen else rf"(?P<{part}>\d+)"
            seen.add(part)
    return re.compile(text)
