"""Adapters in peft's layout: `adapter_model.safetensors` and `adapter_config.json`, under the source's names.

LoRA, DoRA and IA3 of https://github.com/huggingface/peft. Where the source has query, key and value in one tensor, three
adapters here are one there: side by side in a matrix of their common rank, or of its own where they read the input alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from tlx import models
from tlx.config import check_choice
from tlx.errors import InputError
from tlx.files import write_json_atomic
from tlx.models.adapters import IA3, Bottleneck, DoRA, LoRA, adapted_layers
from tlx.models.base import Model
from tlx.models.layers import Layer
from tlx.models.leaves import is_within, values, with_values
from tlx.weights.files import read_weights, write_safetensors
from tlx.weights.keymap import Key, KeyTable
from tlx.weights.load import listing
from tlx.weights.peft_config import (
    PREFIX,
    alternatives,
    exactly,
    is_named,
    pattern_value,
    plain_name,
    read_config,
)

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PARTS = r"lora_A\.weight|lora_B\.weight|lora_magnitude_vector|ia3_l"


class _Place(NamedTuple):
    """A module of the source, and the layers here that it is."""

    key: Key  # of its weight
    paths: tuple[str, ...]


def save_adapters(model: Model, folder: str | Path, *, names: str = "") -> None:
    """Writes the model's adapters and its head so that peft opens them on the source's own network.

    Args:
      model: with values, and adapters of one kind.
      folder: is made where it is not there.
      names: the project whose names are used; "": that of the file which the weights came from, or another
        where that has no modules of these layers.

    Raises:
      InputError: no adapters, bottlenecks, or layers that are no modules in the source.
    """
    layers = dict(adapted_layers(model))
    kinds = {type(layer.adapter) for layer in layers.values()}
    if len(kinds) != 1 or Bottleneck in kinds:
        found = ", ".join(sorted(kind.__name__ for kind in kinds)) or "none"
        raise InputError(f"peft's layout holds LoRA, DoRA or IA3 adapters; the model has {found}")
    tables = _tables(model)
    if names:
        check_choice("names", names, tuple(tables))
    first = [model.origin.table] if model.origin else []
    for chosen in [names] if names else dict.fromkeys((*first, *tables)):
        places = _places(tables[chosen], model)
        lost = set(layers) - {path for place in places.values() for path in place.paths}
        if not lost:
            break
    else:
        raise InputError(
            f"{listing(sorted(lost))}: no modules of their own in the {chosen} network"
        )
    arrays: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    inputs = []
    for source, place in places.items():
        own = [layers.get(path) for path in place.paths]
        if not any(own):
            continue
        every = [_layer_at(model, path) for path in place.paths]
        if kinds == {IA3}:
            stored, is_input = _ia3_to_source(source, place, every)
            if is_input:
                inputs.append(source)
        else:
            stored, ranks[source], alphas[source] = _lora_to_source(place, every)
        arrays |= {f"{PREFIX}{source}.{name}": array for name, array in stored.items()}
    head = {p: np.asarray(v) for p, v in values(model).items() if is_within(p, model.classifiers)}
    head = tables[chosen].to_source(head, {})
    arrays |= {f"{PREFIX}{name}": np.asarray(array) for name, array in head.items()}
    targets = [source for source in places if any(path in layers for path in places[source].paths)]
    config: dict[str, Any] = {
        "base_model_name_or_path": model.meta.base or None,
        "inference_mode": True,
        "modules_to_save": sorted({name.rpartition(".")[0] for name in head}) or None,
        "target_modules": alternatives(targets),
        "task_type": None,
    }
    if kinds == {IA3}:
        config |= {
            "peft_type": "IA3",
            "feedforward_modules": alternatives(inputs) if inputs else [],
        }
    else:
        rank, alpha = min(ranks.values()), min(alphas.values())
        config |= {
            "peft_type": "LORA",
            "r": rank,
            "lora_alpha": alpha,
            "rank_pattern": {exactly(name): r for name, r in ranks.items() if r != rank},
            "alpha_pattern": {exactly(name): a for name, a in alphas.items() if a != alpha},
            "use_dora": kinds == {DoRA},
            "bias": "none",
            "lora_dropout": 0.0,
            "fan_in_fan_out": False,
        }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(arrays, folder / WEIGHTS, {"format": "pt"})
    write_json_atomic(folder / CONFIG, config)


def load_adapters(model: Model, folder: str | Path) -> Model:
    """Returns the model with the adapters that peft, or `save_adapters`, wrote into the folder, and its head.

    Args:
      model: plain, with the values of the weights that the adapters were trained on.
      folder: holds `adapter_model.safetensors` and `adapter_config.json`.

    Raises:
      InputFileNotFoundError: there are no such files.
      InputError: another kind of adapter, modules that the network does not have, or shapes that differ.
    """
    folder = Path(folder)
    config = read_config(folder / CONFIG)
    arrays = {plain_name(name): array for name, array in read_weights(folder / WEIGHTS).items()}
    parts: dict[str, dict[str, np.ndarray]] = {}
    rest: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if match := re.fullmatch(rf"(.+)\.({_PARTS})", name):
            parts.setdefault(match[1], {})[match[2]] = array
        else:
            rest[name] = array
    if not parts:
        raise InputError(f"{folder / WEIGHTS} holds no adapters")
    table, places = _fitting_table(model, parts, rest, folder)
    copy = nnx.merge(*nnx.split(model))
    for source, found in parts.items():
        place = places[source]
        made = (
            _ia3(source, place, copy, found, config)
            if config["peft_type"] == "IA3"
            else _lora(source, place, copy, found, config)
        )
        for path, adapter in zip(place.paths, made, strict=True):
            _layer_at(copy, path).adapter = adapter
    own = values(copy)
    conversion = table.to_target(rest)
    for path, array in conversion.arrays.items():
        if path not in own or own[path].shape != array.shape:
            raise InputError(
                f"{folder / WEIGHTS}: {conversion.names[path]} does not fit the network"
            )
    if conversion.unknown:
        raise InputError(f"{folder / WEIGHTS} holds unknown {', '.join(conversion.unknown[:8])}")
    replaced = {
        path: jnp.asarray(array, own[path].dtype) for path, array in conversion.arrays.items()
    }
    return with_values(copy, own | replaced)


def _lora_to_source(place: _Place, layers: list[Layer]) -> tuple[dict[str, np.ndarray], int, float]:
    """Returns the stored tensors, the rank and alpha of a source's module."""
    outs = [layer.kernel.get_value().shape[-1] for layer in layers]
    pairs = [
        (np.asarray(layer.adapter.a[...]), np.asarray(layer.adapter.b[...]))
        if layer.adapter is not None
        else None
        for layer in layers
    ]
    (given, *_) = [layer.adapter for layer in layers if layer.adapter is not None]
    known = [pair for pair in pairs if pair is not None]
    if all(np.array_equal(a, known[0][0]) for a, _ in known):
        a, rank = known[0][0], given.rank
        b = np.zeros((rank, sum(outs)), np.float32)
        rows = [0] * len(layers)
    else:
        a = np.concatenate([pair[0] for pair in known], axis=-1)
        rank = a.shape[-1]
        b = np.zeros((rank, sum(outs)), np.float32)
        rows, at = [], 0
        for pair in pairs:
            rows.append(at)
            at += 0 if pair is None else len(pair[1])
    start = 0
    for pair, row, out in zip(pairs, rows, outs, strict=True):
        if pair is not None:
            b[row : row + len(pair[1]), start : start + out] = pair[1]
        start += out
    is_conv = place.key.layout.ndim == 4
    stored = {
        "lora_A.weight": a.T if len(place.paths) > 1 else place.key.layout.to_source(a),
        "lora_B.weight": b.T[:, :, None, None] if is_conv else b.T,
    }
    if isinstance(given, DoRA):
        magnitude = np.concatenate([_magnitude(layer) for layer in layers])
        stored["lora_magnitude_vector"] = magnitude[None, :, None, None] if is_conv else magnitude
    return stored, rank, given.scale * rank


def _magnitude(layer: Layer) -> np.ndarray:
    if layer.adapter is not None:
        return np.asarray(layer.adapter.magnitude[...])
    kernel = np.asarray(layer.kernel[...], np.float64)
    return np.sqrt(np.square(kernel).sum(tuple(range(kernel.ndim - 1)))).astype(np.float32)


def _ia3_to_source(
    source: str, place: _Place, layers: list[Layer]
) -> tuple[dict[str, np.ndarray], bool]:
    (given, *_) = [layer.adapter for layer in layers if layer.adapter is not None]
    if given.inputs:
        factors = [layer.adapter and np.asarray(layer.adapter.factor[...]) for layer in layers]
        if any(factor is None or not np.array_equal(factor, factors[0]) for factor in factors):
            raise InputError(
                f"{source} is one module in the source: its inputs need one factor each"
            )
        factor = factors[0]
    else:
        parts = [
            np.ones(layer.kernel.get_value().shape[-1], np.float32)
            if layer.adapter is None
            else np.asarray(layer.adapter.factor[...])
            for layer in layers
        ]
        factor = np.concatenate(parts)
    if place.key.layout.ndim == 4:
        shaped = factor[None, :, None, None]
    else:
        shaped = factor[None] if given.inputs else factor[:, None]
    return {"ia3_l": shaped}, given.inputs


def _lora(
    source: str,
    place: _Place,
    model: Model,
    found: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
) -> list[LoRA]:
    wanted = {"lora_A.weight", "lora_B.weight"}
    is_dora = bool(config.get("use_dora"))
    wanted |= {"lora_magnitude_vector"} if is_dora else set()
    if set(found) != wanted:
        raise InputError(f"{source} has {', '.join(found)}, expected {', '.join(sorted(wanted))}")
    a, b = found["lora_A.weight"], found["lora_B.weight"]
    rank = len(a)
    alpha = float(pattern_value(config.get("alpha_pattern"), source, config.get("lora_alpha", 8)))
    if config.get("use_rslora"):
        alpha *= rank**0.5  # its scale is alpha / sqrt(rank)
    layers = [_layer_at(model, path) for path in place.paths]
    shapes = [layer.kernel.get_value().shape for layer in layers]
    down = a.T if len(layers) > 1 else place.key.layout.to_target(a)[0]
    up = b.reshape(len(b), -1).T
    magnitude = found["lora_magnitude_vector"].reshape(-1) if is_dora else None
    made, start = [], 0
    for shape in shapes:
        if down.shape != (*shape[:-1], rank) or up.shape != (rank, sum(s[-1] for s in shapes)):
            raise InputError(
                f"{source}: lora_A {list(a.shape)} and lora_B {list(b.shape)} do not fit a kernel of "
                f"{list(shape)}"
            )
        stop = start + shape[-1]
        adapter = (DoRA if is_dora else LoRA)(shape, rank=rank, alpha=alpha)
        adapter.a.set_value(jnp.asarray(down, jnp.float32))
        adapter.b.set_value(jnp.asarray(up[:, start:stop], jnp.float32))
        if magnitude is not None and isinstance(adapter, DoRA):
            adapter.magnitude.set_value(jnp.asarray(magnitude[start:stop], jnp.float32))
        made.append(adapter)
        start = stop
    return made


def _ia3(
    source: str,
    place: _Place,
    model: Model,
    found: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
) -> list[IA3]:
    if set(found) != {"ia3_l"}:
        raise InputError(f"{source} has {', '.join(found)}, expected ia3_l")
    factor = found["ia3_l"].reshape(-1)
    inputs = is_named(source, config.get("feedforward_modules") or [])
    made, start = [], 0
    for path in place.paths:
        shape = _layer_at(model, path).kernel.get_value().shape
        adapter = IA3(shape, inputs=inputs)
        (size,) = adapter.factor.get_value().shape
        own = factor if inputs else factor[start : start + size]
        if own.shape != (size,):
            raise InputError(
                f"{source}: ia3_l {list(found['ia3_l'].shape)} does not fit {list(shape)}"
            )
        adapter.factor.set_value(jnp.asarray(own, jnp.float32))
        made.append(adapter)
        start += size
    return made


def _tables(model: Model) -> dict[str, KeyTable]:
    name = model.meta.architecture
    return {table.name: table for table in models.family(name).key_tables(name)}


def _places(table: KeyTable, model: Model) -> dict[str, _Place]:
    """Returns the source's modules that are layers here, by their names."""
    found: dict[str, _Place] = {}
    for path, module in nnx.iter_modules(model):
        if isinstance(module, Layer):
            row = table.row(".".join(map(str, path)) + ".kernel")
            if row is not None and row[0].endswith(".weight"):
                source, key, targets = row
                paths = tuple(target.removesuffix(".kernel") for target in targets)
                found[source.removesuffix(".weight")] = _Place(key, paths)
    return found


def _fitting_table(
    model: Model, parts: Iterable[str], rest: Mapping[str, np.ndarray], folder: Path
) -> tuple[KeyTable, dict[str, _Place]]:
    """Returns the table that knows all the adapters, and of several one that knows what is beside them."""
    unknown: list[str] = []
    known = []
    for table in _tables(model).values():
        places = _places(table, model)
        unknown = [name for name in parts if name not in places]
        if not unknown:
            known.append((table, places))
    if not known:
        raise InputError(
            f"{folder / WEIGHTS} has adapters at {', '.join(unknown[:8])}, which {model.meta.architecture} does not have"
        )
    return min(known, key=lambda pair: len(pair[0].to_target(rest).unknown))


def _layer_at(model: Model, path: str) -> Layer:
    module: Any = model
    for part in path.split("."):
        module = module[int(part)] if part.isdecimal() else getattr(module, part)
    return module
