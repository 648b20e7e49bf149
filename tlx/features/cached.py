"""A split's pictures as the frozen prefix sees them: computed once, or found on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from tlx.data import pipeline
from tlx.data.augment import Augmentation
from tlx.data.source import Examples
from tlx.features.decide import Prefix, describe_prefix
from tlx.features.store import Store
from tlx.models.base import Model
from tlx.models.leaves import Values, is_within
from tlx.training.mesh import place_batch
from tlx.training.step import make_prefix_step
from tlx.weights.files import content_hash

FORMAT = 1  # counted up when entries of before must not be used
VIEWS = 1 << 22  # folded into the run's key, far from steps


@dataclasses.dataclass(frozen=True)
class CachedSplit:
    """What `pipeline` makes batches of, in place of its `Split`."""

    examples: Examples
    in_memory: np.ndarray  # [views, N, ...]; may be memory-mapped

    def __len__(self) -> int:
        return len(self.examples)

    def rows(self, index: np.ndarray, epoch: np.ndarray) -> np.ndarray:
        """Maps int [B] twice to [B, ...]: each pass over the data reads the next view."""
        return self.in_memory[epoch % len(self.in_memory), index]


@dataclasses.dataclass(frozen=True)
class Cache:
    """Makes cached splits for one network and one run's data."""

    model: Model  # abstract
    values: Values
    mesh: Mesh
    dtype: str
    seed: int
    batch_size: int
    store: Store
    memory: float  # bytes
    say: Callable[[str], None]

    def split(
        self,
        name: str,
        split: pipeline.Split,
        prefix: Prefix,
        *,
        views: int = 0,
        augmentation: Augmentation | None = None,
    ) -> CachedSplit:
        """Returns the split behind the prefix.

        Args:
          name: for the log.
          split: of pictures.
          prefix: of the model.
          views: how many augmented pictures stand for each; 0: itself, as it is.
          augmentation: what draws them.
        """
        facts = self._facts(split, prefix, views, augmentation)
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
        shape = (max(views, 1), len(split), *prefix.shape)
        begun = time.perf_counter()
        what = f"cache: {name}, {describe_prefix(self.model, prefix.stop)}"
        found = self.store.read(key, shape, prefix.dtype)
        if found is not None:
            self.say(f"{what}: found in {self.store.folder}")
            return CachedSplit(split.examples, self._held(found))

        def fill(array: np.ndarray) -> None:
            self._fill(array, split, prefix, augmentation if views else None)

        written = self.store.write(key, shape, prefix.dtype, fill, {"of": facts})
        if written is None:  # the disk does not take it
            written = np.empty(shape, prefix.dtype)
            fill(written)
        self.say(f"{what}: computed in {time.perf_counter() - begun:.1f} s")
        return CachedSplit(split.examples, self._held(written))

    def _held(self, array: np.ndarray) -> np.ndarray:
        return np.array(array) if array.nbytes <= self.memory else array

    def _facts(
        self,
        split: pipeline.Split,
        prefix: Prefix,
        views: int,
        augmentation: Augmentation | None,
    ) -> dict[str, object]:
        """Returns all that the features depend on."""
        stages, meta = self.model.stages[: prefix.stop], self.model.meta
        used = {p: np.asarray(v) for p, v in self.values.items() if is_within(p, stages)}
        return {
            "format": FORMAT,
            "network": [meta.architecture, meta.stem, meta.norm_epsilon],
            "values": content_hash(used),
            "stages": prefix.stop,
            "pictures": split.fingerprint,
            "compute": self.dtype,
            "stored": prefix.dtype,
            "views": [views, self.seed, *augmentation.names] if views and augmentation else [],
            "by": f"jax {jax.__version__} on {jax.default_backend()}",
        }

    def _fill(
        self,
        array: np.ndarray,
        split: pipeline.Split,
        prefix: Prefix,
        augmentation: Augmentation | None,
    ) -> None:
        step = make_prefix_step(
            self.model, augmentation, self.mesh, dtype=self.dtype, start=prefix.stop
        )
        for view in range(len(array)):
            drawn = jax.random.fold_in(jax.random.fold_in(jax.random.key(self.seed), VIEWS), view)
            done = 0
            for batch in pipeline.evaluation_batches(split, batch_size=self.batch_size):
                inputs = place_batch({"inputs": batch["inputs"]}, self.mesh)["inputs"]
                found = np.asarray(step(self.values, inputs, jax.random.fold_in(drawn, done)))
                count = min(self.batch_size, len(split) - done)
                array[view, done : done + count] = found[:count].astype(array.dtype)
                done += count
