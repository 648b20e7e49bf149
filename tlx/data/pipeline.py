"""From examples to batches `{inputs, targets, weight, index}` of fixed shape.

Inputs are uint8 pictures [B, S, S, C], or for texts a dict of int32 [B, T] (tlx/data/text_batches.py). Targets are int32 [B];
float32 [B, classes] of 0 and 1 where an example may have several labels; float32 [B] of a regression; int32 [B, T] for tagged
words.

Training follows the sequence of `tlx.data.order`; evaluation goes once through a split and pads its last batch
with rows of weight 0. Data that fits is decoded once into memory; the rest is decoded by grain as it is needed. Both give the
same batches.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, cast

import numpy as np

from tlx.config import DataConfig
from tlx.data.order import indices
from tlx.data.preprocess import canvas
from tlx.data.source import Examples, PictureExamples
from tlx.errors import InputError
from tlx.weights.meta import ImagePreprocess

Batch = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Split:
    """One split, ready to be batched: its examples as uint8 canvases of one size."""

    examples: Examples
    preprocess: ImagePreprocess
    size: int  # pixels, side of the canvas
    in_memory: np.ndarray | None  # uint8 [N, S, S, C], or None: decoded as needed
    workers: int = 0

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def held(self) -> np.ndarray | None:
        """The pictures as uint8 [1, N, S, S, C]; None where they are decoded as needed."""
        return None if self.in_memory is None else self.in_memory[None]

    def rows(self, index: np.ndarray, epoch: np.ndarray) -> np.ndarray:
        """Maps int [B] to uint8 [B, S, S, C], which are the same in every epoch."""
        if self.in_memory is not None:
            return self.in_memory[index]
        return np.stack([self.row(int(i)) for i in index])

    def row(self, index: int) -> np.ndarray:
        """Decodes one example: uint8 [S, S, C]. Raises InputError, naming it, where it cannot."""
        picture = cast(PictureExamples, self.examples).image(index)
        try:
            return canvas(picture, self.preprocess, size=self.size)
        except InputError as error:
            raise InputError(f"{self.examples.name(index)}: {error}") from error

    def targets(self, index: np.ndarray, epoch: np.ndarray) -> np.ndarray:
        """Maps int [B] twice to the labels: int32 [B], or float32 [B, classes]; float32 [B] of a regression."""
        return as_targets(self.examples.labels[index])

    @property
    def evaluated(self) -> tuple[np.ndarray, np.ndarray]:
        """Index and pass of every example, int [N] each, in order."""
        return np.arange(len(self)), np.zeros(len(self), np.int64)

    def by_example(
        self, targets: np.ndarray, outcomes: dict[str, np.ndarray]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Returns both as they are: evaluation is in the examples' order."""
        return targets, outcomes

    def notes(self, name: str) -> list[str]:
        """Returns nothing: pictures are cut as their preprocessing says."""
        del name
        return []

    @property
    def fingerprint(self) -> str:
        """Identifies the inputs: the examples and how they are cut."""
        what = [self.examples.fingerprint, dataclasses.asdict(self.preprocess), self.size]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def as_targets(labels: np.ndarray) -> np.ndarray:
    """Returns labels as batches have them: int32 of classes, else float32."""
    return labels.astype(np.int32 if labels.dtype.kind == "i" else np.float32)


class Rows(Protocol):
    """What batches are made of: a `Split` of pictures, one of texts, or what stands for one."""

    @property
    def examples(self) -> Any: ...

    def __len__(self) -> int: ...

    @property
    def held(self) -> np.ndarray | None:
        """All inputs, [views, N, ...], each pass over the data reading the next view; None where they are not in one array."""

    def rows(self, index: np.ndarray, epoch: np.ndarray) -> Any:
        """Maps indices [B], and how often the data has been gone through before each, to inputs [B, ...]."""

    def targets(self, index: np.ndarray, epoch: np.ndarray) -> np.ndarray:
        """Maps the same to targets [B, ...]."""
        ...

    @property
    def evaluated(self) -> tuple[np.ndarray, np.ndarray]:
        """What evaluation reads, in its order: index and pass, int [M] each."""
        ...

    def by_example(
        self, targets: np.ndarray, outcomes: dict[str, np.ndarray]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Returns the targets and outcomes that evaluation found, [M, ...], as those of the examples, [N, ...]."""
        ...


class Whole(Rows, Protocol):
    """A split that nothing stands for: inputs as the network's first stage reads them."""

    @property
    def fingerprint(self) -> str: ...

    @property
    def in_memory(self) -> np.ndarray | None: ...

    def notes(self, name: str) -> list[str]:
        """Returns lines for the log on what the network does not see of the split of that name."""
        ...


class Standing:
    """Base of what stands for a split, whose inputs alone are others."""

    split: Rows

    @property
    def examples(self) -> Any:
        """The split's."""
        return self.split.examples

    def __len__(self) -> int:
        return len(self.split)

    def targets(self, index: np.ndarray, epoch: np.ndarray) -> np.ndarray:
        """The split's."""
        return self.split.targets(index, epoch)

    @property
    def evaluated(self) -> tuple[np.ndarray, np.ndarray]:
        """The split's."""
        return self.split.evaluated

    def by_example(
        self, targets: np.ndarray, outcomes: dict[str, np.ndarray]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The split's."""
        return self.split.by_example(targets, outcomes)


@dataclasses.dataclass(frozen=True)
class Places(Standing):
    """Stands for a split whose inputs are kept elsewhere: a batch has the view and the row of each."""

    split: Rows
    views: int

    @property
    def held(self) -> None:
        """Nothing."""

    def rows(self, index: np.ndarray, epoch: np.ndarray) -> np.ndarray:
        """Maps int [B] twice to int32 [B, 2]."""
        return np.stack([epoch % self.views, index], -1).astype(np.int32)


def make_splits(
    wanted: Mapping[str, tuple[Examples, int]], preprocess: ImagePreprocess, config: DataConfig
) -> dict[str, Split]:
    """Decodes the splits into memory where the config allows, else prepares to stream them.

    Args:
      wanted: name -> the examples and the side of their canvas in pixels.
      preprocess: how pictures are resized and cut.
      config: `storage` auto keeps the splits in memory if all of them together are within `memory_gb`.

    Raises:
      InputError: a broken picture among those decoded here, or channels that the network does not take.
    """
    total = sum(len(e) * size * size * preprocess.channels for e, size in wanted.values())
    fits = config.storage == "auto" and total <= config.memory_gb * 2**30
    splits = {
        name: Split(examples, preprocess, size, None, config.workers)
        for name, (examples, size) in wanted.items()
    }
    if config.storage != "memory" and not fits:
        # Pictures that the network cannot take are found before anything is written.
        for split in splits.values():
            split.row(0)
        return splits
    return {
        name: dataclasses.replace(split, in_memory=_decode_all(split))
        for name, split in splits.items()
    }


def training_batches(
    split: Rows, *, seed: int, batch_size: int, start: int, stop: int | None = None
) -> Iterator[Batch]:
    """Yields batch `start`, `start + 1`, ... of the endless sequence, up to but without `stop` where there is one."""

    def index_of(step: int) -> tuple[np.ndarray, np.ndarray]:
        first = step * batch_size
        epoch = (first + np.arange(batch_size)) // len(split)
        return indices(seed, first, batch_size, len(split)), epoch

    length = None if stop is None else stop * batch_size
    return _batches(split, index_of, batch_size, start, length)


def evaluation_batches(split: Rows, *, batch_size: int) -> Iterator[Batch]:
    """Yields all that evaluation reads once, in its order, the last batch padded with weight 0."""
    index, epoch = split.evaluated

    def index_of(step: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = slice(step * batch_size, (step + 1) * batch_size)
        return index[chosen], epoch[chosen]

    return _batches(split, index_of, batch_size, 0, len(index))


Order = Callable[[int], tuple[np.ndarray, np.ndarray]]  # of a batch's number: index and pass


def _batches(
    split: Rows,
    index_of: Order,
    batch_size: int,
    start: int,
    length: int | None,  # of the sequence, in examples; None: it has no end
) -> Iterator[Batch]:
    if isinstance(split, Split) and split.in_memory is None:
        yield from _streamed(split, index_of, batch_size, start, length)
        return
    step = start
    while length is None or step * batch_size < length:
        index, epoch = index_of(step)
        yield _batch(split, index, epoch, split.rows(index, epoch), batch_size)
        step += 1


def _batch(split: Rows, index: np.ndarray, epoch: np.ndarray, rows: Any, batch_size: int) -> Batch:
    padding = batch_size - len(index)
    batch = {
        "inputs": rows,
        "targets": split.targets(index, epoch),
        "weight": np.ones(len(index), np.float32),
        "index": index.astype(np.int32),
    }
    return _padded(batch, padding) if padding else batch


def _padded(rows: Any, padding: int) -> Any:
    """Returns arrays [B, ...], or a dict of them, with so many rows of zeros more."""
    if isinstance(rows, dict):
        return {name: _padded(own, padding) for name, own in rows.items()}
    return np.concatenate([rows, np.zeros((padding, *rows.shape[1:]), rows.dtype)])


def _decode_all(split: Split) -> np.ndarray:
    rows = np.empty((len(split), split.size, split.size, split.preprocess.channels), np.uint8)

    def decode(index: int) -> None:
        rows[index] = split.row(index)

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for _ in pool.map(decode, range(len(split)), chunksize=64):
            pass
    return rows


@dataclasses.dataclass(frozen=True)
class _StreamedRows:
    """What grain reads from: entry p is row `p % batch_size` of batch `p // batch_size`."""

    split: Split
    index_of: Order
    batch_size: int
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: Any) -> tuple[np.int64, np.ndarray]:
        step, offset = divmod(int(position), self.batch_size)
        index = self.index_of(step)[0][offset]
        return index, self.split.row(int(index))


def _streamed(
    split: Split,
    index_of: Order,
    batch_size: int,
    start: int,
    length: int | None,
) -> Iterator[Batch]:
    import grain

    source = _StreamedRows(split, index_of, batch_size, 2**40 if length is None else length)
    # Batched before it becomes an iterator: worker processes then take turns by whole batches.
    dataset = grain.MapDataset.source(source)[start * batch_size :].batch(
        batch_size, drop_remainder=False
    )
    # Threads decode ahead; PIL releases the interpreter's lock.
    threads = max(os.cpu_count() or 1, 2)
    stream = dataset.to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    )
    if split.workers:
        from absl import flags

        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain's worker processes insist on it
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=split.workers))
    for index, rows in stream:
        index = np.asarray(index)
        yield _batch(split, index, np.zeros_like(index), np.asarray(rows), batch_size)
