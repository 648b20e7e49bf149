"""Adapters written in peft's layout: `adapter_model.safetensors` and `adapter_config.json`, under the source's names.

LoRA, DoRA and IA3 of https://github.com/huggingface/peft. Where the source has query, key and value in one tensor, three
adapters here are one there: side by side in a matrix of their common rank, or of its own where they read the input alike.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tlx.errors import InputError
from tlx.files import write_json_atomic
from tlx.models.adapters import IA3, Bottleneck, DoRA, adapted_layers
from tlx.models.base import Model
from tlx.models.layers import Layer
from tlx.models.leaves import is_within, values
from tlx.weights.files import write_safetensors
from tlx.weights.keymap import KeyTable
from tlx.weights.load import listing
from tlx.weights.meta import TextPreprocess
from tlx.weights.naming import tables_to_write
from tlx.weights.peft_config import CONFIG, PREFIX, WEIGHTS, alternatives, exactly
from tlx.weights.peft_modules import Place, layer_at, places_of
from tlx.weights.stored_meta import KEY as META


def save_adapters(model: Model, folder: str | Path, *, names: str = "") -> None:
    """Writes the model's adapters and its head so that peft opens them on the source's own network.

    The model's meta is in the header of the tensors: `model.adapters` knows the head's classes by it.

    Args:
      model: with values, and adapters of one kind.
      folder: is made where it is not there.
      names: the project whose names are used; "": that of the file which the weights came from, or another
        where that has no modules of these layers, or no names for the head.

    Raises:
      InputError: no adapters, bottlenecks, or layers that are no modules in the source.
    """
    layers = dict(adapted_layers(model))
    kinds = {type(layer.adapter) for layer in layers.values()}
    if len(kinds) != 1 or Bottleneck in kinds:
        found = ", ".join(sorted(kind.__name__ for kind in kinds)) or "none"
        raise InputError(f"peft's layout holds LoRA, DoRA or IA3 adapters; the model has {found}")
    for table in tables_to_write(model, names):
        places = places_of(table, model)
        lost = set(layers) - {path for place in places.values() for path in place.paths}
        if not lost:
            break
    else:
        raise InputError(
            f"{listing(sorted(lost))}: no modules of their own in the {table.name} network"
        )
    arrays: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    inputs = []
    for source, place in places.items():
        own = [layers.get(path) for path in place.paths]
        if not any(own):
            continue
        every = [layer_at(model, path) for path in place.paths]
        if kinds == {IA3}:
            stored, is_input = _ia3_to_source(source, place, every)
            if is_input:
                inputs.append(source)
        else:
            stored, ranks[source], alphas[source] = _lora_to_source(place, every)
        arrays |= {f"{PREFIX}{source}.{name}": array for name, array in stored.items()}
    trained = ("head", *model.classifiers)
    head = {p: np.asarray(v) for p, v in values(model).items() if is_within(p, trained)}
    head = table.to_source(head, {})
    arrays |= {f"{PREFIX}{name}": np.asarray(array) for name, array in head.items()}
    targets = [source for source in places if any(path in layers for path in places[source].paths)]
    config: dict[str, Any] = {
        "base_model_name_or_path": model.meta.base or None,
        "inference_mode": True,
        "modules_to_save": _modules(table, model, head) or None,
        "target_modules": alternatives(targets),
        "task_type": _task_type(model),
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
    meta = json.dumps(model.meta.derived().to_json())
    write_safetensors(arrays, folder / WEIGHTS, {META: meta, "format": "pt"})
    write_json_atomic(folder / CONFIG, config)


def _modules(table: KeyTable, model: Model, head: Iterable[str]) -> list[str]:
    """Returns the source's modules that hold the head's values, those of one parent as that, where all it has is theirs.

    peft saves a classifier of several layers as one module, whether it is named or not.
    """
    rows = (table.row(path) for path in values(model))
    others = {row[0] for row in rows if row is not None} - set(head)
    found: set[str] = set()
    modules = {name.rpartition(".")[0] for name in head}
    for module in modules:
        parent = module.rpartition(".")[0]
        siblings = [other for other in modules if other.startswith(f"{parent}.")]
        is_whole = not any(name.startswith(f"{parent}.") for name in others)
        found.add(parent if parent and len(siblings) > 1 and is_whole else module)
    return sorted(found)


def _task_type(model: Model) -> str | None:
    """Returns which of peft's models puts itself around the source's network."""
    if not isinstance(model.meta.preprocess, TextPreprocess) or not model.num_classes:
        return None
    return "TOKEN_CLS" if model.meta.per_token else "SEQ_CLS"


def _lora_to_source(place: Place, layers: list[Layer]) -> tuple[dict[str, np.ndarray], int, float]:
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
    source: str, place: Place, layers: list[Layer]
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
