"""Adapters read from peft's layout, as peft or `save_adapters` wrote it, and held against a model.

LoRA, DoRA and IA3 of https://github.com/huggingface/peft. Where the source has query, key and value in one tensor, one
adapter there is three here.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tlx.errors import InputError
from tlx.models.adapters import NAME, Spec, attached
from tlx.models.base import Model
from tlx.models.leaves import Leaf, leaves, values, with_values
from tlx.weights.files import content_hash, read_weights
from tlx.weights.keymap import KeyTable
from tlx.weights.meta import WeightsMeta
from tlx.weights.naming import tables_of
from tlx.weights.peft_config import (
    CONFIG,
    WEIGHTS,
    is_named,
    pattern_value,
    plain_name,
    read_config,
)
from tlx.weights.peft_modules import Place, layer_at, places_of
from tlx.weights.stored_meta import stored_meta

_ADAPTERS = re.compile(r"(.+)\.(lora_A\.weight|lora_B\.weight|lora_magnitude_vector|ia3_l)")


@dataclasses.dataclass(frozen=True)
class AdapterFiles:
    """A folder of peft's that was read, but not yet held against a model."""

    folder: Path
    config: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]  # under the source's names, without peft's prefix
    meta: (
        WeightsMeta | None
    )  # of the model that they were trained in, where `save_adapters` wrote them

    @property
    def method(self) -> str:
        """lora, dora or ia3."""
        if self.config["peft_type"] == "IA3":
            return "ia3"
        return "dora" if self.config.get("use_dora") else "lora"

    @functools.cached_property
    def content_hash(self) -> str:
        """SHA-256 over the tensors."""
        return content_hash(self.arrays)

    @functools.cached_property
    def parts(self) -> dict[str, dict[str, np.ndarray]]:
        """The adapters' tensors, by the source's module."""
        found: dict[str, dict[str, np.ndarray]] = {}
        for name, array in self.arrays.items():
            if match := _ADAPTERS.fullmatch(name):
                found.setdefault(match[1], {})[match[2]] = array
        return found

    @functools.cached_property
    def beside(self) -> dict[str, np.ndarray]:
        """What else was trained, as the head, under the source's names."""
        return {n: a for n, a in self.arrays.items() if not _ADAPTERS.fullmatch(n)}


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What the files are in a model."""

    specs: dict[str, Spec]  # a layer's path -> its adapter
    arrays: dict[str, np.ndarray]  # path -> array of the adapters
    beside: dict[str, np.ndarray]  # likewise of what else was trained; its shapes are not checked
    names: dict[str, str]  # their paths -> the source's names
    folder: Path

    def check_beside(self, found: Mapping[str, Leaf]) -> None:
        """Raises InputError where what was trained beside the adapters has no place among a model's leaves."""
        for path, array in self.beside.items():
            if path not in found or found[path].shape != array.shape:
                raise InputError(
                    f"{self.folder / WEIGHTS}: {self.names[path]} does not fit the network"
                )


def load_adapters(model: Model, folder: str | Path) -> Model:
    """Returns the model with the adapters that peft, or `save_adapters`, wrote into the folder, and its head.

    Args:
      model: plain, with the values of the weights that the adapters were trained on.
      folder: holds `adapter_model.safetensors` and `adapter_config.json`.

    Raises:
      InputFileNotFoundError: there are no such files.
      InputError: another kind of adapter, modules that the network does not have, or shapes that differ.
    """
    fitted = fit_adapters(model, open_adapters(folder))
    fitted.check_beside(leaves(model))
    copy = attached(model, fitted.specs)
    found = {
        path: jnp.asarray(array, jnp.float32)
        for path, array in (fitted.arrays | fitted.beside).items()
    }
    return with_values(copy, values(copy) | found)


def open_adapters(folder: str | Path) -> AdapterFiles:
    """Reads a folder. Raises as `load_adapters`, but for what the network does not have."""
    folder = Path(folder).expanduser()
    config = read_config(folder / CONFIG)
    arrays = {plain_name(name): array for name, array in read_weights(folder / WEIGHTS).items()}
    files = AdapterFiles(folder, config, arrays, stored_meta(folder / WEIGHTS))
    if not files.parts:
        raise InputError(f"{folder / WEIGHTS} holds no adapters")
    for name, array in arrays.items():
        if not jax.dtypes.issubdtype(array.dtype, np.floating):
            raise InputError(f"{folder / WEIGHTS}: {name} holds {array.dtype} values")
    return files


def fit_adapters(model: Model, files: AdapterFiles) -> Fitted:
    """Holds the files against a plain model, abstract or not.

    Raises:
      InputError: adapters of another architecture, modules that the network does not have, tensors missing or unknown, or shapes that differ.
    """
    if files.meta and files.meta.architecture != model.meta.architecture:
        raise InputError(
            f"{files.folder} holds adapters of {files.meta.architecture}, but the model is {model.meta.architecture}"
        )
    table, places = _fitting_table(model, files.parts, files.beside, files.folder)
    specs: dict[str, Spec] = {}
    arrays: dict[str, np.ndarray] = {}
    for source, found in files.parts.items():
        place = places[source]
        shapes = [layer_at(model, path).kernel.get_value().shape for path in place.paths]
        read = _ia3 if files.method == "ia3" else _lora
        for path, (spec, own) in zip(
            place.paths, read(source, place, shapes, found, files), strict=True
        ):
            specs[path] = spec
            arrays |= {f"{path}.{NAME}.{name}": array for name, array in own.items()}
    conversion = table.to_target(files.beside)
    if conversion.unknown:
        unknown = ", ".join(conversion.unknown[:8])
        raise InputError(f"{files.folder / WEIGHTS} holds unknown {unknown}")
    return Fitted(specs, arrays, conversion.arrays, conversion.names, files.folder)


_Read = tuple[Spec, dict[str, np.ndarray]]
_Shapes = list[tuple[int, ...]]  # of the layers' kernels


def _lora(
    source: str,
    place: Place,
    shapes: _Shapes,
    found: Mapping[str, np.ndarray],
    files: AdapterFiles,
) -> list[_Read]:
    config, is_dora = files.config, files.method == "dora"
    wanted = {"lora_A.weight", "lora_B.weight"}
    wanted |= {"lora_magnitude_vector"} if is_dora else set()
    if set(found) != wanted:
        raise InputError(f"{source} has {', '.join(found)}, expected {', '.join(sorted(wanted))}")
    a, b = found["lora_A.weight"], found["lora_B.weight"]
    rank = len(a)
    alpha = float(pattern_value(config.get("alpha_pattern"), source, config.get("lora_alpha", 8)))
    if config.get("use_rslora"):
        alpha *= rank**0.5  # its scale is alpha / sqrt(rank)
    down = a.T if len(shapes) > 1 else place.key.layout.to_target(a)[0]
    up = b.reshape(len(b), -1).T
    made, start = [], 0
    for shape in shapes:
        if down.shape != (*shape[:-1], rank) or up.shape != (rank, sum(s[-1] for s in shapes)):
            raise InputError(
                f"{source}: lora_A {list(a.shape)} and lora_B {list(b.shape)} do not fit a kernel of "
                f"{list(shape)}"
            )
        stop = start + shape[-1]
        own = {"a": down, "b": up[:, start:stop]}
        if is_dora:
            own["magnitude"] = found["lora_magnitude_vector"].reshape(-1)[start:stop]
        made.append((Spec(files.method, rank, alpha), own))
        start = stop
    return made


def _ia3(
    source: str,
    place: Place,
    shapes: _Shapes,
    found: Mapping[str, np.ndarray],
    files: AdapterFiles,
) -> list[_Read]:
    del place
    if set(found) != {"ia3_l"}:
        raise InputError(f"{source} has {', '.join(found)}, expected ia3_l")
    factor = found["ia3_l"].reshape(-1)
    inputs = is_named(source, files.config.get("feedforward_modules") or [])
    made, start = [], 0
    for shape in shapes:
        size = shape[-2] if inputs else shape[-1]
        own = factor if inputs else factor[start : start + size]
        if own.shape != (size,):
            raise InputError(
                f"{source}: ia3_l {list(found['ia3_l'].shape)} does not fit {list(shape)}"
            )
        made.append((Spec("ia3", inputs=inputs), {"factor": own}))
        start += size
    return made


def _fitting_table(
    model: Model, parts: Iterable[str], rest: Mapping[str, np.ndarray], folder: Path
) -> tuple[KeyTable, dict[str, Place]]:
    """Returns the table that knows all the adapters, and of several one that has places for what is beside them."""
    unknown: list[str] = []
    known = []
    for table in tables_of(model).values():
        places = places_of(table, model)
        unknown = [name for name in parts if name not in places]
        if not unknown:
            known.append((table, places))
    if not known:
        raise InputError(
            f"{folder / WEIGHTS} has adapters at {', '.join(unknown[:8])}, which {model.meta.architecture} does not have"
        )
    there = leaves(model)

    def misses(pair: tuple[KeyTable, dict[str, Place]]) -> tuple[int, int]:
        found = pair[0].to_target(rest)
        return len(found.unknown), sum(path not in there for path in found.arrays)

    return min(known, key=misses)
