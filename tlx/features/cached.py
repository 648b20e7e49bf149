"""A split's pictures or texts behind the frozen prefix: computed once, or found on disk."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Callable

import jax
import numpy as np

from tlx.data import pipeline
from tlx.data.augment import Augmentation
from tlx.data.text_batches import TextSplit
from tlx.features.decide import Prefix, describe_prefix
from tlx.features.store import Store
from tlx.models.leaves import Values, is_within
from tlx.setup import Setup
from tlx.training.mesh import place_batch
from tlx.training.step import PrefixStep, make_prefix_step
from tlx.weights.files import content_hash

FORMAT = 2  # counted up when entries of before must not be used
VIEWS = 1 << 22  # folded into the run's key, far from steps


@dataclasses.dataclass(frozen=True)
class CachedSplit(pipeline.Standing):
    """What `pipeline` makes batches of, in place of a split."""

    split: pipeline.Rows
    features: np.ndarray  # [views, N, ...]; may be memory-mapped

    @property
    def held(self) -> np.ndarray:
        """The features."""
        return self.features

    def rows(self, index: np.ndarray, epoch: np.ndarray) -> np.ndarray:
        """Maps int [B] twice to [B, ...]: each pass over the data reads the next view."""
        return self.features[epoch % len(self.features), index]


@dataclasses.dataclass(frozen=True)
class CachedTokens(pipeline.Standing):
    """Likewise, where there is something for each token of a text."""

    split: TextSplit
    features: np.ndarray  # [1, tokens of all texts, D]; may be memory-mapped

    held = None

    def rows(self, index: np.ndarray, epoch: np.ndarray) -> dict[str, np.ndarray]:
        """Maps int [B] twice to the hidden states [B, T, D] and their mask [B, T], as a stage gives them."""
        places, real = self.split.places(index, epoch)
        hidden = self.features[0, places.reshape(-1)].reshape(*places.shape, -1)
        hidden = np.where(real[..., None], hidden, np.zeros((), hidden.dtype))
        return {"hidden": hidden, "mask": real.astype(np.float32)}


@dataclasses.dataclass(frozen=True)
class Cache:
    """Makes cached splits for a run's network, whose first stages have these values."""

    setup: Setup
    values: Values
    prefix: Prefix
    store: Store
    say: Callable[[str], None]

    def split(self, name: str, split: pipeline.Whole, views: int = 0) -> pipeline.Rows:
        """Returns the split behind the prefix.

        Args:
          name: for the log.
          split: of pictures or texts.
          views: how many augmented pictures stand for each; 0: itself, as it is.
        """
        facts = self._facts(split, views)
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
        count = len(split)
        if self.prefix.tokens:
            assert isinstance(split, TextSplit)
            count = int(split.encoded.offsets[-1])
        shape, dtype = (max(views, 1), count, *self.prefix.shape), self.prefix.dtype
        begun = time.perf_counter()
        what = f"cache: {name}, {describe_prefix(self.setup.model, self.prefix.stop)}"
        found = self.store.read(key, shape, dtype)
        if found is not None:
            self.say(f"{what}: found in {self.store.folder}")
            return self._standing(split, found)

        def fill(array: np.ndarray) -> None:
            self._fill(array, split, augmented=views > 0)

        written = self.store.write(key, shape, dtype, fill, {"of": facts})
        if written is None:  # the disk does not take it
            written = np.empty(shape, dtype)
            fill(written)
        self.say(f"{what}: computed in {time.perf_counter() - begun:.1f} s")
        return self._standing(split, written)

    def _standing(self, split: pipeline.Whole, array: np.ndarray) -> pipeline.Rows:
        if self.prefix.tokens:
            assert isinstance(split, TextSplit)
            return CachedTokens(split, self._held(array))
        return CachedSplit(split, self._held(array))

    def _held(self, array: np.ndarray) -> np.ndarray:
        memory = self.setup.config.cache.memory_gb * 2**30
        return np.array(array) if array.nbytes <= memory else array

    def _facts(self, split: pipeline.Whole, views: int) -> dict[str, object]:
        """Returns all that the features depend on."""
        setup, meta = self.setup, self.setup.model.meta
        drawn = [views, setup.config.seed, *setup.augmentation.names]
        return {
            "format": FORMAT,
            "network": [
                meta.architecture,
                meta.stem,
                meta.norm_epsilon,
                meta.config,
                meta.per_token,
            ],
            "values": self._digest,
            "stages": self.prefix.stop,
            "inputs": split.fingerprint,
            "compute": setup.dtype,
            "stored": self.prefix.dtype,
            "views": drawn if views else [],
            "by": f"jax {jax.__version__} on {jax.default_backend()}",
        }

    @functools.cached_property
    def _digest(self) -> str:
        stages = self.setup.model.stages[: self.prefix.stop]
        return content_hash(
            {p: np.asarray(v) for p, v in self.values.items() if is_within(p, stages)}
        )

    @functools.cached_property
    def _plain_step(self) -> PrefixStep:
        return self._step(None)

    def _step(self, augmentation: Augmentation | None) -> PrefixStep:
        setup = self.setup
        return make_prefix_step(
            setup.model, augmentation, setup.mesh, dtype=setup.dtype, start=self.prefix.stop
        )

    def _fill(self, array: np.ndarray, split: pipeline.Whole, *, augmented: bool) -> None:
        config, mesh = self.setup.config, self.setup.mesh
        batch_size = config.eval.batch_size or config.train.batch_size
        step = self._step(self.setup.augmentation) if augmented else self._plain_step
        views = jax.random.fold_in(jax.random.key(config.seed), VIEWS)
        for view in range(len(array)):
            drawn, done = jax.random.fold_in(views, view), 0
            for batch in pipeline.evaluation_batches(split, batch_size=batch_size):
                inputs = place_batch({"inputs": batch["inputs"]}, mesh)["inputs"]
                found = step(self.values, inputs, jax.random.fold_in(drawn, done))
                index = batch["index"][batch["weight"] > 0]
                if self.prefix.tokens:
                    hidden = found["hidden"] if isinstance(found, dict) else found
                    self._fill_tokens(array[view], split, index, np.asarray(hidden))
                else:
                    array[view, index] = np.asarray(found)[: len(index)].astype(array.dtype)
                done += len(index)

    def _fill_tokens(
        self, array: np.ndarray, split: pipeline.Whole, index: np.ndarray, found: np.ndarray
    ) -> None:
        """Puts hidden states [B, T, D] where the tokens of the texts stand in those of the split."""
        assert isinstance(split, TextSplit)
        places, real = split.places(index, np.zeros_like(index))
        array[places[real]] = found[: len(index)][real].astype(array.dtype)
