"""The source network's values beside those that training changes, for the regularizers that hold on to them.

A checkpoint holds the changed values and `workdir/base/frozen.safetensors` those that are frozen in the first phase. The first
values of what that phase changes are in `workdir/base/source.safetensors`, and which were drawn is in `source.json`. Both are
written once, before the first step, and only where a regularizer needs them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from tlx.errors import InputError
from tlx.files import write_json_atomic
from tlx.models.leaves import Values
from tlx.pretrained import Source
from tlx.training.checkpoint import Position, load_base
from tlx.training.state import TrainState, all_values
from tlx.tuning.phases import Phase
from tlx.tuning.regularizers import FROM_SOURCE, Reference, Regularizer, needed
from tlx.weights.files import content_hash, read_weights, write_safetensors


def start_reference(
    workdir: Path,
    weights: Source,
    phases: Sequence[Phase],
    regularizers: Sequence[Regularizer],
    state: TrainState,
    frozen: Values,
    position: Position,
) -> tuple[Reference, Position]:
    """Returns the source's values, on the devices, and the position with their hash.

    At the first step they are those that training starts from, copied where the step will donate them, and are written
    to the workdir; later they are read from there. What is frozen is shared with `frozen`.

    Raises:
      InputError: the workdir does not hold what the checkpoint was trained with.
    """
    if not any(one.name in FROM_SOURCE for one in regularizers):
        return Reference(), position
    if position.step:
        sharding = next(iter(state.trainable.values())).sharding
        return _load(workdir, frozen, position, sharding), position
    loaded = weights.loaded.arrays if weights.loaded else {}
    plans = [phase.plan for phase in phases]
    paths = needed(regularizers, plans, weights.model.stages, loaded)
    values = all_values(state, frozen)
    found = {path: values[path] if path in frozen else values[path].copy() for path in paths}
    reference = Reference(found, frozenset(path for path in paths if path not in loaded))
    digest = _save(workdir, reference, frozen)
    return reference, dataclasses.replace(position, source=digest)


def _save(workdir: Path, reference: Reference, frozen: Values) -> str:
    values, folder = reference.values, workdir / "base"
    arrays = {path: np.asarray(value) for path, value in values.items() if path not in frozen}
    facts = {"values": list(values), "drawn": sorted(reference.drawn)}
    if arrays:
        write_safetensors(arrays, folder / "source.safetensors", {})
    write_json_atomic(folder / "source.json", facts)
    return _digest(arrays, facts)


def _load(workdir: Path, frozen: Values, position: Position, sharding: NamedSharding) -> Reference:
    folder = workdir / "base"
    path, facts = folder / "source.safetensors", {}
    if (folder / "source.json").is_file():
        facts = json.loads((folder / "source.json").read_text())
    arrays: Mapping[str, np.ndarray] = read_weights(path) if path.exists() else {}
    if (found := _digest(arrays, facts)) != position.source:
        raise InputError(
            f"{folder} does not hold the source's values that the checkpoint was trained with: expected "
            f"sha256 {position.source[:16]}, found {found[:16]}"
        )
    # What was frozen at first and no longer is.
    others = [p for p in facts["values"] if p not in arrays and p not in frozen]
    known = {**frozen, **load_base(workdir, others, position.base, sharding)}
    known |= {p: jax.device_put(np.asarray(a, order="C"), sharding) for p, a in arrays.items()}
    return Reference({p: known[p] for p in facts["values"]}, frozenset(facts["drawn"]))


def _digest(arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> str:
    text = json.dumps([content_hash(arrays), facts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
