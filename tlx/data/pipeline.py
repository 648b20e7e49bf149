"""From examples to batches `{inputs, targets, weight, index}` of fixed shape.

Targets are int32 [B]; float32 [B, classes] of 0 and 1 where an example may have several labels; float32 [B] of a
regression.

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

Batch = dict[str, np.ndarray]


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

    @property
    def fingerprint(self) -> str:
        """Identifies the inputs: the examples and how they are cut."""
        what = [self.examples.fingerprint, dataclasses.asdict(self.preprocess), self.size]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


class Rows(Protocol):
    """What batches are made of: a `Split`, or what stands for one."""

    @property
    def examples(self) -> Examples: ...

    def __len__(self) -> int: ...

    @property
    def held(self) -> np.ndarray | None:
        """All inputs, [views, N, ...], each pass over the data reading the next view; None where they are not in one array."""

    def rows(self, index: np.ndarray, epoch: np.ndarray) -> np.ndarray:
        """Maps indices [B], and how often the data has been gone through before each, to inputs [B, ...]."""


@dataclasses.dataclass(frozen=True)
class Places:
    """Stands for a split whose inputs are kept elsewhere: a batch has the view and the row of each."""

    split: Rows
    views: int

    @property
    def examples(self) -> Examples:
        """The split's."""
        return self.split.examples

    @property
    def held(self) -> None:
        """Nothing."""

    def __len__(self) -> int:
        return len(self.split)

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

    def index_of(step: int) -> np.ndarray:
        return indices(seed, step * batch_size, batch_size, len(split))

    length = None if stop is None else stop * batch_size
    return _batches(split, index_of, batch_size, start, length)


def evaluation_batches(split: Rows, *, batch_size: int) -> Iterator[Batch]:
    """Yields every example once, in order, the last batch padded with weight 0."""

    def index_of(step: int) -> np.ndarray:
        return np.arange(step * batch_size, min((step + 1) * batch_size, len(split)))

    return _batches(split, index_of, batch_size, 0, len(split))


def _batches(
    split: Rows,
    index_of: Callable[[int], np.ndarray],
    batch_size: int,
    start: int,
    length: int | None,  # of the sequence, in examples; None: it has no end
) -> Iterator[Batch]:
    if isinstance(split, Split) and split.in_memory is None:
        yield from _streamed(split, index_of, batch_size, start, length)
        return
    step = start
    while length is None or step * batch_size < length:
        index = index_of(step)
        epoch = (step * batch_size + np.arange(len(index))) // len(split)
        yield _batch(split, index, split.rows(index, epoch), batch_size)
        step += 1


def _batch(split: Rows, index: np.ndarray, rows: np.ndarray, batch_size: int) -> Batch:
    padding = batch_size - len(index)
    labels = split.examples.labels[index]
    is_number = labels.dtype.kind == "f"
    batch = {
        "inputs": rows,
        "targets": labels.astype(np.float32 if labels.ndim == 2 or is_number else np.int32),
        "weight": np.ones(len(index), np.float32),
        "index": index.astype(np.int32),
    }
    if padding:
        batch = {
            k: np.concatenate([v, np.zeros((padding, *v.shape[1:]), v.dtype)])
            for k, v in batch.items()
        }
    return batch


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
    index_of: Callable[[int], np.ndarray]
    batch_size: int
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: Any) -> tuple[np.int64, np.ndarray]:
        step, offset = divmod(int(position), self.batch_size)
        index = self.index_of(step)[offset]
        return index, self.split.row(int(index))


def _streamed(
    split: Split,
    index_of: Callable[[int], np.ndarray],
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
        yield _batch(split, np.asarray(index), np.asarray(rows), batch_size)
