"""Orbax checkpoints of what the plan says can change, with what Orbax does not check added.

A checkpoint holds the trainable leaves, the statistics that move and the optimizer's state, and in `meta` the step, the
best metric so far, the data's fingerprint, the base weights' hash and a checksum of every leaf: Orbax loads flipped bits
without a word. A damaged checkpoint is reported and the one before it is used.
The frozen leaves are kept once, in `workdir/base/`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import logging
import math
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding
from orbax.checkpoint import checkpoint_managers

from tlx.errors import InputError
from tlx.files import write_json_atomic
from tlx.models.leaves import Values
from tlx.training.state import TrainState
from tlx.weights.files import content_hash, read_weights, write_safetensors
from tlx.weights.meta import WeightsMeta

_ORBAX_LOG = logging.getLogger("absl")


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run has come: all that a resumed run must know beside the arrays."""

    step: int = 0  # training steps done
    best_step: int = -1  # -1: nothing was selected yet
    best_value: float = -math.inf  # of the validation metric
    fingerprint: str = ""  # of the data and its order
    base: str = ""  # hash of the frozen values
    seconds: float = 0.0  # spent training, over all starts


class _Keep(checkpoint_managers.PreservationPolicy):
    """The last n and the best; orbax's own BestN forgets the metric when a run is resumed."""

    def __init__(self, last: int):
        self.last = last
        self.best_step = -1

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        del context
        first_kept = len(checkpoints) - self.last
        return [
            i >= first_kept or info.step == self.best_step for i, info in enumerate(checkpoints)
        ]


class Checkpoints:
    """The checkpoints of one workdir; saving is asynchronous."""

    def __init__(self, workdir: Path, *, keep_last: int):
        self.folder = workdir.absolute() / "checkpoints"
        self._keep = _Keep(keep_last)
        # Orbax logs every save and, from its threads, tracebacks of errors that it raises later anyway.
        self._log_level = _ORBAX_LOG.level
        _ORBAX_LOG.setLevel(logging.CRITICAL)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._keep, cleanup_tmp_directories=True, create=True
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def save(self, state: TrainState, progress: Progress) -> None:
        """Starts saving; the arrays may be donated to the next step as soon as this returns."""
        if progress.step in self._manager.all_steps():
            return
        self._keep.best_step = progress.best_step
        arrays = _flatten(state)
        if jax.default_backend() == "cpu":
            # There "copying to the host" makes a view, which the next step's donation would overwrite.
            arrays = jax.tree.map(lambda x: x.copy(), arrays)
        meta = dataclasses.asdict(progress) | {"checksums": _checksums(arrays)}
        if not math.isfinite(progress.best_value):
            meta["best_value"] = None
        with _disk_errors(self.folder):
            self._manager.save(
                progress.step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(arrays), meta=ocp.args.JsonSave(meta)
                ),
                force=True,
            )

    def wait(self) -> None:
        """Blocks until what was saved is on disk; raises what went wrong in the background."""
        with _disk_errors(self.folder):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and lets go of the folder."""
        try:
            with _disk_errors(self.folder):
                self._manager.close()
        finally:
            _ORBAX_LOG.setLevel(self._log_level)

    def steps(self) -> list[int]:
        """Returns the steps that there are checkpoints of, oldest first."""
        return sorted(self._manager.all_steps())

    def restore(
        self, state: TrainState, *, step: int | None = None
    ) -> tuple[TrainState, Progress, list[str]] | None:
        """Reads the newest intact checkpoint, or that of one step.

        Args:
          state: of the right structure, shapes and sharding (shapes are enough).

        Returns:
          The state, its progress and a message for each damaged checkpoint passed over; None where there is no
          checkpoint at all.

        Raises:
          InputError: there are checkpoints, but none is intact.
        """
        steps = [step] if step is not None else self.steps()[::-1]
        problems: list[str] = []
        for candidate in steps:
            try:
                restored, progress = self._read(state, candidate)
            except (ValueError, KeyError, TypeError, OSError, zlib.error) as error:
                reason = " ".join(str(error).split())[:200]
                problems.append(f"checkpoint {self.folder / str(candidate)} is damaged ({reason})")
                continue
            self._keep.best_step = progress.best_step
            return restored, progress, problems
        if problems:
            raise InputError(
                "; ".join(problems) + "; no intact checkpoint is left: use another workdir"
            )
        return None

    def drop_after(self, step: int) -> None:
        """Deletes checkpoints later than the step: damaged ones that the run will write again."""
        for later in [s for s in self.steps() if s > step]:
            self._manager.delete(later)

    def _read(self, state: TrainState, step: int) -> tuple[TrainState, Progress]:
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _flatten(state)
        )
        with _disk_errors(self.folder):
            found = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(shapes), meta=ocp.args.JsonRestore()
                ),
            )
        meta = dict(found["meta"])
        if _checksums(found["state"]) != meta.pop("checksums"):
            raise ValueError("a checksum does not match")
        if meta["best_value"] is None:
            meta["best_value"] = -math.inf
        leaves, structure = jax.tree.flatten(state.optimizer)
        optimizer = [found["state"]["optimizer"][f"{i:05d}"] for i in range(len(leaves))]
        trainable, statistics = found["state"]["trainable"], found["state"].get("statistics", {})
        restored = TrainState(
            {path: trainable[path] for path in state.trainable},
            {path: statistics[path] for path in state.statistics},
            jax.tree.unflatten(structure, optimizer),
        )
        return restored, Progress(**meta)


def save_base(workdir: Path, frozen: Values, meta: WeightsMeta) -> str:
    """Writes the frozen values and the weights' facts to `workdir/base/` once; returns the values' hash."""
    arrays = {path: np.asarray(value) for path, value in frozen.items()}
    digest = content_hash(arrays)
    folder = workdir / "base"
    folder.mkdir(parents=True, exist_ok=True)
    if arrays:
        write_safetensors(arrays, folder / "frozen.safetensors", {"content_hash": digest})
    facts = {"content_hash": digest, "values": len(arrays), "weights_meta": meta.to_json()}
    write_json_atomic(folder / "base.json", facts)
    return digest


def load_base(workdir: Path, frozen: Sequence[str], sharding: NamedSharding) -> tuple[Values, str]:
    """Reads what `save_base` wrote, checks its hash, and places it.

    Raises:
      InputError: the folder is damaged or holds other values.
    """
    folder = workdir / "base"
    expected = json.loads((folder / "base.json").read_text())["content_hash"]
    arrays: Mapping[str, np.ndarray] = read_weights(folder / "frozen.safetensors") if frozen else {}
    found = content_hash(arrays)
    if found != expected or set(arrays) != set(frozen):
        raise InputError(
            f"{folder} does not hold this run's frozen weights: expected sha256 {expected[:16]}, found {found[:16]}"
        )
    return {
        path: jax.device_put(np.ascontiguousarray(arrays[path]), sharding) for path in frozen
    }, found


def _flatten(state: TrainState) -> dict[str, dict[str, Any]]:
    optimizer = {f"{i:05d}": leaf for i, leaf in enumerate(jax.tree.leaves(state.optimizer))}
    parts = {"trainable": state.trainable, "statistics": state.statistics, "optimizer": optimizer}
    return {name: dict(part) for name, part in parts.items() if part}


def _checksums(arrays: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    return {
        f"{part}/{path}": hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:16]
        for part, found in arrays.items()
        for path, value in found.items()
    }


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Orbax raises what its threads met when it is next called, a full disk as a ValueError."""
    try:
        yield
    except Exception as error:
        if "No space left on device" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
        raise
