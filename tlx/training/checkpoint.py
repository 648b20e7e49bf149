"""Orbax checkpoints of what the plan says can change, with what Orbax does not check added.

A checkpoint holds the trainable values, the statistics that move, the optimizer's state and, where evaluation uses others
than those of training, the estimated statistics; and in `meta` the step, the best metric so far, the data's fingerprint, the frozen weights' hash and a checksum of every leaf: Orbax loads flipped bits
without a word. A damaged checkpoint is reported and the one before it is used.
The frozen values are kept once, in `workdir/base/`.
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
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding
from orbax.checkpoint import checkpoint_managers

from tlx.errors import InputError
from tlx.files import write_json_atomic, write_text_atomic
from tlx.models.leaves import Values
from tlx.training.state import TrainState
from tlx.tuning.optimizer import evaluation_values, has_averages
from tlx.weights.files import content_hash, read_weights, write_safetensors
from tlx.weights.keymap import Origin
from tlx.weights.meta import TextPreprocess, WeightsMeta

_ORBAX_LOG = logging.getLogger("absl")


TOKENIZER = "tokenizer.json"  # in base/, of a network that reads texts

ESTIMATE, VALIDATION = "estimate", "validation"


@dataclasses.dataclass(frozen=True)
class Position:
    """How far a run has come: all that a resumed run must know beside the arrays."""

    step: int = 0  # training steps done
    best_step: int = -1  # -1: nothing was selected yet
    best_value: float = -math.inf  # of the validation metric; higher is better
    stale: int = 0  # validations since then
    phase: int = 0  # of the method: which leaves the checkpoint holds follows from it
    fingerprint: str = ""  # of the data, its order and its splits
    base: str = ""  # hash of the frozen values
    weights: str = (
        ""  # hash of the weights that training began with, as base.json has it; "": it has none
    )
    source: str = ""  # hash of the values that regularizers hold on to; "": they need none
    seconds: float = 0.0  # spent training, over all starts
    undone: str = ""  # ESTIMATE, or VALIDATION too: left to the next start, as the run had to stop


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
    """The checkpoints of one workdir; saving is asynchronous.

    Args:
      workdir: they are in `workdir/checkpoints/`.
      keep_last: how many are kept beside the best one.
      read_only: neither makes, cleans nor deletes anything, so that a run may go on meanwhile.
    """

    def __init__(self, workdir: Path, *, keep_last: int = 1, read_only: bool = False):
        self.folder = workdir.absolute() / "checkpoints"
        self._keep = _Keep(keep_last)
        # Orbax logs every save and, from its threads, tracebacks of errors that it raises later anyway.
        self._log_level = _ORBAX_LOG.level
        _ORBAX_LOG.setLevel(logging.CRITICAL)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._keep,
            cleanup_tmp_directories=not read_only,
            create=not read_only,
            read_only=read_only,
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def save(self, state: TrainState, position: Position, estimated: Values | None = None) -> None:
        """Starts saving; the arrays may be donated to the next step as soon as this returns.

        Args:
          state: to save; with None for the optimizer's, it is of values as inference uses them, and no run goes on from it.
          position: of the run.
          estimated: statistics that inference uses in place of the state's.
        """
        if position.step in self.steps():
            return
        with _disk_errors(self.folder):
            # The save before this one must not prune by the best step of this one.
            self._manager.wait_until_finished()
            self._keep.best_step = position.best_step
            values, optimizer = _parts(state)
            parts = {"values": values}
            if state.optimizer is not None:
                parts["optimizer"] = optimizer
            if estimated:
                parts["estimated"] = estimated
            if jax.default_backend() == "cpu":
                # "Copying to the host" makes a view there, which the next step's donation overwrites.
                parts = jax.tree.map(lambda x: x.copy(), parts)
            meta = dataclasses.asdict(position)
            meta["best_value"] = position.best_value if position.best_step >= 0 else None
            meta["checksums"] = {name: _checksums(part) for name, part in parts.items()}
            items = {name: ocp.args.StandardSave(part) for name, part in parts.items()}
            items["meta"] = ocp.args.JsonSave(meta)
            self._manager.save(position.step, args=ocp.args.Composite(**items), force=True)

    def replace(self, state: TrainState, position: Position, estimated: Values) -> None:
        """Saves in place of the checkpoint of that step, which is gone only once the new one is whole."""
        self.wait()
        own, staging = self.folder / str(position.step), self.folder.parent / "replacing"
        shutil.rmtree(staging, ignore_errors=True)
        with Checkpoints(staging) as others:
            others.save(state, position, estimated)
        own.rename(staging / "replaced")
        (others.folder / own.name).rename(own)
        shutil.rmtree(staging)
        self._manager.reload()
        self._keep.best_step = position.best_step

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
        self, state_of: Callable[[int], TrainState]
    ) -> tuple[TrainState, Position, list[str]] | None:
        """Reads the newest intact checkpoint.

        Args:
          state_of: returns for a phase the state's structure, shapes and sharding (shapes are enough).

        Returns:
          The state, its position, and a message for each damaged checkpoint passed over; None where there is
          no checkpoint at all.

        Raises:
          InputError: there are checkpoints, but none is intact.
        """

        def read(step: int) -> tuple[TrainState, Position]:
            meta = self._meta(step)
            state = state_of(meta["phase"])
            shapes, optimizer_shapes = _parts(state)
            found, position = self._read(
                step, meta, {"values": shapes, "optimizer": optimizer_shapes}
            )
            optimizer = _unnumbered(found["optimizer"], state.optimizer)
            values = found["values"]
            trainable = {path: values[path] for path in state.trainable}
            statistics = {path: values[path] for path in state.statistics}
            return TrainState(trainable, statistics, optimizer), position

        found = self._first_intact(self.steps()[::-1], read)
        if found is not None:
            self._keep.best_step = found[1].best_step
        return found

    def restore_values(
        self, state_of: Callable[[int], TrainState], which: str | int
    ) -> tuple[Values, Position, list[str]] | None:
        """Reads trainable values and moving statistics alone, as inference needs them: averaged and estimated.

        Args:
          state_of: as for `restore`.
          which: "last", "best": that of the best validation metric, else the last, or a step.

        Returns, raises: as `restore`; in place of a step no other is read, and the error names it. Also InputError where an
          interruption left the statistics of its averaged values to be estimated.
        """

        def read(step: int) -> tuple[Values, Position]:
            meta = self._meta(step)
            state = state_of(meta["phase"])
            shapes, numbered = _parts(state)
            wanted = {"values": shapes}
            if "optimizer" in meta["checksums"] and has_averages(state.optimizer):
                wanted["optimizer"] = numbered
            if "estimated" in meta["checksums"]:
                wanted["estimated"] = state.statistics
            found, position = self._read(step, meta, wanted)
            values = found["values"]
            if "optimizer" in found:
                optimizer = _unnumbered(found["optimizer"], state.optimizer)
                values = evaluation_values(optimizer, values)
            return {**values, **found.get("estimated", {})}, position

        if isinstance(which, int):
            return self._complete((*self._exactly(which, read), []))
        newest = self._first_intact(self.steps()[::-1], read)
        if newest is None:
            return None
        if which == "last" or newest[1].best_step in (-1, newest[1].step):
            return self._complete(newest)
        values, position, problems = newest
        try:
            values, position = read(position.best_step)
        except _DAMAGE as error:
            problems = [*problems, f"the best {self._damaged(position.best_step, error)}"]
        return self._complete((values, position, problems))

    def set_aside_after(self, step: int) -> None:
        """Moves damaged checkpoints later than the step out of the way; the run will write them again."""
        for later in [s for s in self.steps() if s > step]:
            target = self.folder.parent / "damaged"
            target.mkdir(exist_ok=True)
            shutil.move(self.folder / str(later), target / f"{later}-{secrets.token_hex(3)}")
        self._manager.reload()

    def _first_intact(
        self, steps: Sequence[int], read: Callable[[int], tuple[Any, Position]]
    ) -> tuple[Any, Position, list[str]] | None:
        problems: list[str] = []
        for step in steps:
            try:
                return *read(step), problems
            except _DAMAGE as error:
                problems.append(self._damaged(step, error))
        if problems:
            raise InputError(
                "; ".join(problems) + "; no intact checkpoint is left: use another workdir"
            )
        return None

    def _complete(
        self, found: tuple[Values, Position, list[str]]
    ) -> tuple[Values, Position, list[str]]:
        step, undone = found[1].step, found[1].undone
        if undone:
            raise InputError(
                f"checkpoint {self.folder / str(step)} was saved when the run was interrupted, before the BatchNorm statistics "
                "of its averaged values were estimated: the command that started the run does that, and goes on"
            )
        return found

    def _exactly(
        self, step: int, read: Callable[[int], tuple[Any, Position]]
    ) -> tuple[Any, Position]:
        try:
            return read(step)
        except _DAMAGE as error:
            others = [str(other) for other in self.steps() if other != step]
            raise InputError(
                f"{self._damaged(step, error)}, and no other is read in its place "
                f"(there are steps: {', '.join(others) or 'none'})"
            ) from error

    def _damaged(self, step: int, error: Exception) -> str:
        reason = " ".join(str(error).split())[:200]
        return f"checkpoint {self.folder / str(step)} is damaged ({reason})"

    def _meta(self, step: int) -> dict[str, Any]:
        found = self._manager.restore(step, args=_composite(meta=ocp.args.JsonRestore()))
        return {"phase": 0, "stale": 0} | found["meta"]

    def _read(
        self, step: int, meta: dict[str, Any], items: dict[str, Values]
    ) -> tuple[dict[str, Values], Position]:
        checksums = meta.pop("checksums")
        arguments = {
            name: ocp.args.StandardRestore(
                {
                    p: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
                    for p, x in part.items()
                }
            )
            for name, part in items.items()
        }
        found = self._manager.restore(step, args=_composite(**arguments))
        for name in items:
            if _checksums(found[name]) != checksums[name]:
                raise ValueError("a checksum does not match")
        if meta["best_value"] is None:
            meta["best_value"] = -math.inf
        return {name: found[name] for name in items}, Position(**meta)


# What orbax raises for files that are missing, cut short, or do not hold what is asked for.
_DAMAGE = (ValueError, KeyError, TypeError, FileNotFoundError)


def save_base(
    workdir: Path,
    frozen: Values,
    meta: WeightsMeta,
    facts: Mapping[str, Any],
    origin: Origin | None = None,
) -> str:
    """Writes the frozen values, the weights' meta, their origin and other facts to `workdir/base/` once.

    Returns the hash of the values.
    """
    arrays = {path: np.asarray(value) for path, value in frozen.items()}
    digest = content_hash(arrays)
    folder = workdir / "base"
    folder.mkdir(parents=True, exist_ok=True)
    if arrays:
        write_safetensors(arrays, folder / "frozen.safetensors", {})
    if origin is not None:
        stored_origin = {"table": origin.table, "dtypes": dict(origin.dtypes)}
        facts = {**facts, "origin": stored_origin}
        if origin.carried:
            write_safetensors(origin.carried, folder / "carried.safetensors", {})
    if isinstance(meta.preprocess, TextPreprocess):
        write_text_atomic(folder / TOKENIZER, meta.preprocess.content)
    stored = {"frozen_sha256": digest, "weights_meta": meta.to_json(), **facts}
    write_json_atomic(folder / "base.json", stored)
    return digest


def load_base(
    workdir: Path, frozen: Sequence[str], expected: str, sharding: NamedSharding
) -> Values:
    """Reads what `save_base` wrote, checks its hash, and places it.

    Args:
      frozen: those that are wanted; what was frozen at first may be more.
      expected: the hash that the checkpoint was made on.

    Raises:
      InputError: the folder is damaged or holds other values; names both hashes.
    """
    folder = workdir / "base"
    path = folder / "frozen.safetensors"
    arrays: Mapping[str, np.ndarray] = read_weights(path) if frozen or path.exists() else {}
    found = content_hash(arrays)
    if found != expected or not set(arrays) >= set(frozen):
        raise InputError(
            f"{folder} does not hold the frozen weights that the checkpoint was made on: expected "
            f"sha256 {expected[:16]}, found {found[:16]}"
        )
    return {path: jax.device_put(np.asarray(arrays[path], order="C"), sharding) for path in frozen}


def check_base(workdir: Path, position: Position) -> None:
    """Compares the weights that `workdir/base/` is of with those that the checkpoint was made on.

    Where nothing is frozen no value of them is left that `load_base` could check.

    Raises:
      InputError: they are others; names both hashes.
    """
    found = weights_hash(json.loads((workdir / "base" / "base.json").read_text()))
    if position.weights and found != position.weights:
        raise InputError(
            f"{workdir / 'base'} is of other weights than the checkpoint was made on: expected "
            f"sha256 {position.weights[:16]}, found {found[:16] or 'none'}"
        )


def weights_hash(facts: Mapping[str, Any]) -> str:
    """Returns the hash of the weights file that facts are of; "" where there was none."""
    return str(facts.get("weights_sha256", ""))


def load_origin(workdir: Path) -> Origin | None:
    """Reads the origin that `save_base` wrote; None where the weights came from no file."""
    folder = workdir / "base"
    stored = json.loads((folder / "base.json").read_text()).get("origin")
    if stored is None:
        return None
    path = folder / "carried.safetensors"
    return Origin.of(stored["table"], stored["dtypes"], read_weights(path) if path.exists() else {})


def load_tokenizer(workdir: Path, expected: str) -> str:
    """Reads the content of the tokenizer that `save_base` wrote.

    Raises:
      InputError: it is damaged; names both checksums.
    """
    path = workdir / "base" / TOKENIZER
    content = path.read_text("utf-8") if path.is_file() else ""
    found = hashlib.sha256(content.encode()).hexdigest()
    if found != expected:
        raise InputError(
            f"{path} is not the tokenizer that the run was trained with: expected sha256 {expected}, found {found}"
        )
    return content


def _parts(state: TrainState) -> tuple[Values, Values]:
    """Returns the values by path, and the optimizer's leaves by their number in the tree."""
    optimizer = {f"{i:05d}": leaf for i, leaf in enumerate(jax.tree.leaves(state.optimizer))}
    return {**state.trainable, **state.statistics}, optimizer


def _unnumbered(leaves: Values, optimizer: Any) -> Any:
    """Returns the optimizer's tree with the leaves that `_parts` numbered."""
    ordered = [leaves[f"{i:05d}"] for i in range(len(leaves))]
    return jax.tree.unflatten(jax.tree.structure(optimizer), ordered)


def _composite(**items: Any) -> Any:
    return ocp.args.Composite(**items)


def _checksums(arrays: Mapping[str, Any]) -> dict[str, str]:
    return {
        path: hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:16]
        for path, value in arrays.items()
    }


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Orbax raises what its threads met when it is next called, a full disk as a ValueError."""
    try:
        yield
    except Exception as error:
        for number in (errno.ENOSPC, errno.EDQUOT):
            if os.strerror(number) in str(error):
                raise OSError(number, os.strerror(number), str(folder)) from error
        raise
