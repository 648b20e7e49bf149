"""A model with its values: from a file, from the seed, or both; and back to a file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tlx import models
from tlx.errors import InputError
from tlx.models.base import Model
from tlx.models.leaves import Leaf, Values, initial_values, leaves, values, with_values
from tlx.weights.files import write_safetensors
from tlx.weights.load import Loaded, WeightsFile, fill, listing, open_weights
from tlx.weights.meta import WeightsMeta


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a model's values come from, decided and checked, before anything is placed on a device."""

    model: Model  # abstract: shapes in place of values
    file: WeightsFile | None
    loaded: Loaded | None

    @property
    def leaves(self) -> dict[str, Leaf]:
        """Every parameter and statistic of the model."""
        return leaves(self.model)

    def place(self, seed: int, sharding: Any = None) -> Values:
        """Returns all values on the devices: the file's, and the rest drawn from the seed."""
        found = self.leaves
        loaded = self.loaded.arrays if self.loaded else {}
        placed = {
            path: jax.device_put(np.ascontiguousarray(array, found[path].dtype), sharding)
            for path, array in loaded.items()
        }
        fresh = initial_values(
            found, [path for path in found if path not in placed], seed, sharding
        )
        return {path: placed[path] if path in placed else fresh[path] for path in found}

    def facts(self) -> dict[str, str]:
        """Returns where the values come from, for the summary."""
        if self.file is None:
            return {"weights": "none"}
        return {"weights": str(self.file.path), "weights_sha256": self.file.content_hash}

    def describe(self) -> list[str]:
        """Returns lines for the log: what was loaded, dropped and initialised, by name."""
        if self.file is None or self.loaded is None:
            return [
                f"{self.model.meta.architecture}: all {len(self.leaves)} values drawn from the seed"
            ]
        lines = [
            f"weights: {self.file.path} ({self.file.meta_origin}; {self.file.table.name} names, "
            f"content sha256 {self.file.content_hash[:16]}): {len(self.loaded.arrays)} values loaded"
        ]
        if self.loaded.dropped:
            lines.append(f"dropped from the file: {listing(self.loaded.dropped)}")
        if self.loaded.fresh:
            lines.append(f"initialised afresh: {listing(self.loaded.fresh)}")
        return lines


def source(
    name: str,
    weights: str = "none",
    *,
    file: WeightsFile | None = None,
    class_names: Sequence[str] | None = None,
    num_classes: int | None = None,
    head: str = "auto",
    missing_ok: Sequence[str] = (),
    meta: WeightsMeta | None = None,
) -> Source:
    """Decides the head and holds the weights against the model.

    Args:
      name: the model's name, or `name.tag`.
      weights: a tag, a path, or "none".
      file: the weights where they were opened already; `weights` is then not read.
      class_names: of the data. With head="auto" the file's head is kept if its names are these.
      num_classes: None: as the file or the architecture has it; 0: no head.
      head: auto, keep or new.
      missing_ok: what the file may lack.
      meta: put on the model in place of the weights' own (as with overridden preprocessing).

    Raises:
      InputError: as `tlx.weights.load.fill`, and where head="keep" does not fit the data.
    """
    if file is None and weights != "none":
        file = open_weights(name, weights)
    base = meta or (file.meta if file else models.family(name).default_meta(name))
    own_classes = (file.num_classes if file else 0) or base.num_classes
    if num_classes is None:
        num_classes = len(class_names) if class_names is not None else own_classes
    new_head = _new_head(head, file, class_names, num_classes)
    names = tuple(class_names) if class_names is not None else ()
    if not names and num_classes == own_classes and not new_head:
        names = base.class_names
    base = dataclasses.replace(base, num_classes=num_classes, class_names=names)
    model = models.abstract_model(name, num_classes=num_classes, meta=base)
    loaded = fill(leaves(model), file, missing_ok=missing_ok, new_head=new_head) if file else None
    return Source(model, file, loaded)


def create_model(
    name: str,
    *,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    seed: int = 0,
    missing_ok: Sequence[str] = (),
    dtype: str = "float32",
) -> Model:
    """Returns a model in inference mode: `model(x) -> logits`, `model.features(x)`, `model.stages`.

    Args:
      name: as `tlx.list_models()` shows it, or `name.tag` for a known set of weights.
      weights: a tag (`tv_in1k`), a path (`.pth`, `.th`, `.safetensors`), or None: drawn from the seed.
      num_classes: None: as in the weights; 0: no head, logits are the features; else a new head where
        the weights have another number of classes.
      seed: of the values that no file fills.
      missing_ok: modules or regexes of values that the file may lack.
      dtype: compute type, "float32" or "bfloat16".

    Raises:
      InputError, InputFileNotFoundError: see `tlx.weights.load`.
    """
    if "." in name and weights is None:
        name, weights = name.split(".", 1)
    models.family(name)
    file = open_weights(name, str(weights)) if weights not in (None, "none") else None
    new = num_classes is not None and file is not None and num_classes not in (0, file.num_classes)
    found = source(
        name,
        file=file,
        num_classes=num_classes,
        head="new" if new else "auto",
        missing_ok=missing_ok,
    )
    model = with_values(found.model, found.place(seed))
    model.dtype = dtype
    return model


def save_weights(model: Model, path: str | Path) -> None:
    """Writes `.safetensors` with the source's own names and layouts, and the meta in its header.

    BatchNorm's `num_batches_tracked`, which tlx does not use, is written as 0.
    """
    meta: WeightsMeta = model.meta
    table = models.family(meta.architecture).key_tables(meta.architecture)[0]
    arrays = {name: np.asarray(value) for name, value in values(model).items()}
    tracked = {
        f"{name.removesuffix('running_mean')}num_batches_tracked": np.zeros((), np.int64)
        for name in table.to_source(arrays)
        if name.endswith(".running_mean")
    }
    stored = {name: np.ascontiguousarray(a) for name, a in table.to_source(arrays, tracked).items()}
    write_safetensors(stored, Path(path), {"tlx_meta": json.dumps(meta.to_json()), "format": "pt"})


def parameter_count(model: Model) -> int:
    """Returns the number of parameters (running statistics are none)."""
    return sum(int(np.prod(leaf.shape)) for leaf in leaves(model).values() if leaf.is_parameter)


def _new_head(
    head: str, file: WeightsFile | None, class_names: Sequence[str] | None, num_classes: int
) -> bool:
    if head == "new" or file is None:
        return True
    own = file.num_classes
    if head == "keep":
        if own != num_classes:
            raise InputError(
                f"model.head=keep, but {file.path} has a head of {own} classes and the data has {num_classes}"
            )
        return False
    if class_names is None:
        return False
    return own != num_classes or tuple(class_names) != file.meta.class_names
