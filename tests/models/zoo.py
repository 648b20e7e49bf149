"""Holding a model against its original: the same random weights and pictures through both.

A family's test file says how each original is built and which of its modules are the stages.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from tests.models.reference import images, random_arrays
from tlx.models import abstract_model, default_meta, family
from tlx.models.leaves import Values, leaves, with_values
from tlx.pretrained import parameter_count, save_weights
from tlx.weights.files import read_weights, write_safetensors
from tlx.weights.keymap import KeyTable
from tlx.weights.load import WeightsFile, fill

TOLERANCE = 1e-5  # of the largest magnitude


@dataclasses.dataclass(frozen=True)
class Original:
    """A network of torchvision, timm or transformers, and what corresponds to what in it."""

    build: Callable[[], Any]  # the module, random weights, any mode
    table: str  # the key table that its names are of
    # tlx stage -> name of the module whose output it is; or a function of (module, NCHW picture) that
    # returns the outputs by stage.
    stages: Mapping[str, str] | Callable[[Any, Any], dict[str, Any]]
    features: Callable[[Any, Any], Any]  # (module, NCHW picture) -> [B, D]
    call: Callable[[Any, Any], Any] = lambda module, x: module(x)  # -> logits
    # What is made of random values where float32 would differ too much from float64 with them.
    values: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] = lambda arrays: arrays


def table_of(name: str, project: str) -> KeyTable:
    """The family's key table of that name."""
    (found,) = [t for t in family(name).key_tables(name) if t.name == project]
    return found


@functools.cache
def built(name: str) -> Any:
    """The abstract model with the architecture's own number of classes."""
    return abstract_model(name, num_classes=default_meta(name).num_classes)


def torch_with(original: Original, arrays: Mapping[str, np.ndarray] | None = None) -> Any:
    """The original in inference mode with the arrays, or random ones, in place of its own values."""
    import torch

    module = undrawn(original.build).eval()
    if arrays is None:
        arrays = original.values(random_values(module))
    module.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in arrays.items()})
    return module


def undrawn(build: Callable[[], Any]) -> Any:
    """Returns torch's module without the minutes that drawing its initial values takes; all are replaced."""
    import torch

    with pytest.MonkeyPatch.context() as patch:
        for owner, names in (
            (torch.Tensor, ("normal_", "uniform_", "erfinv_")),
            (torch.nn.init, ("trunc_normal_", "_no_grad_trunc_normal_")),  # they draw until it fits
        ):
            for name in names:
                patch.setattr(owner, name, lambda values, *_args, **_kwargs: values)
        return build()


def random_values(module: Any) -> dict[str, np.ndarray]:
    """Arrays for a state dict; buffers of whole numbers stay what they are."""
    state = module.state_dict()
    drawn = random_arrays({key: tuple(v.shape) for key, v in state.items()})
    return {
        key: drawn[key] if v.is_floating_point() or "num_batches" in key else v.numpy()
        for key, v in state.items()
    }


def tlx_with(name: str, table: str, arrays: Mapping[str, np.ndarray]) -> Any:
    """The tlx model with a source's arrays."""
    model = built(name)
    found = leaves(model)
    conversion = table_of(name, table).to_target(arrays)
    assert conversion.unknown == ()
    filled: Values = {p: np.zeros(leaf.shape, np.float32) for p, leaf in found.items()}
    missing = [p for p in found if p not in conversion.arrays]
    assert all(table_of(name, table).lacks(p) for p in missing), missing
    return with_values(model, filled | conversion.arrays)


def tlx_drawn(name: str, original: Original) -> Any:
    """The tlx model with random values that torch is not needed for, and no file behind them."""
    table = table_of(name, original.table)
    zeros = {p: np.broadcast_to(np.float32(0), x.shape) for p, x in leaves(built(name)).items()}
    names = table.to_source(zeros)
    drawn = random_arrays({key: array.shape for key, array in names.items()})
    arrays = {key: drawn[key] if a.dtype == np.float32 else a for key, a in names.items()}
    return tlx_with(name, table.name, original.values(arrays))


def outputs_of_tlx(model: Any, x: np.ndarray) -> dict[str, np.ndarray]:
    """Every stage's output, features and logits."""
    graphdef, state = nnx.split(model)
    return jax.device_get(_forward(graphdef)(state, x))


@functools.lru_cache(maxsize=1)  # all tables of a model lead to the same network
def _forward(graphdef: Any) -> Any:
    def forward(state: Any, x: jax.Array) -> dict[str, jax.Array]:
        network = nnx.merge(graphdef, state)
        found, carry = {}, x
        for index, stage in enumerate(network.stages):
            carry = network.run(carry, index, index + 1)
            found[stage] = carry
        return found | {"features": network.features(x), "logits": network(x)}

    return jax.jit(forward, compiler_options={"xla_backend_optimization_level": 0})


def outputs_of_torch(original: Original, module: Any, x: np.ndarray) -> dict[str, np.ndarray]:
    """The same from the original, maps as [B, H, W, C]."""
    import torch

    nchw = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    found: dict[str, Any] = {}
    with torch.no_grad():
        if callable(original.stages):
            found = dict(original.stages(module, nchw))
            logits = original.call(module, nchw)
        else:
            hooks = [
                module.get_submodule(theirs).register_forward_hook(
                    lambda _m, _i, y, s=stage: found.update({s: y.clone()})
                )
                for stage, theirs in original.stages.items()
            ]
            logits = original.call(module, nchw)
            for hook in hooks:
                hook.remove()
            found = {
                stage: y.permute(0, 2, 3, 1) if y.ndim == 4 else y for stage, y in found.items()
            }
        found |= {"features": original.features(module, nchw), "logits": logits}
    return {key: y.numpy() for key, y in found.items()}


def check_parity(
    name: str, original: Original, size: tuple[int, int], *, tolerance: float = TOLERANCE
) -> None:
    """Compares every stage, the pooled features and the logits on one picture of (height, width)."""
    module = torch_with(original)
    arrays = {key: v.numpy() for key, v in module.state_dict().items()}
    x = images(1, *size)
    ours = outputs_of_tlx(tlx_with(name, original.table, arrays), x)
    theirs = outputs_of_torch(original, module, x)
    model = built(name)
    names = original.stages if isinstance(original.stages, Mapping) else theirs
    assert {*names} - {"features", "logits"} == set(model.stages), "every stage is compared"
    for key, expected in theirs.items():
        assert ours[key].shape == expected.shape, (key, ours[key].shape, expected.shape)
        assert np.isfinite(expected).all()
        assert expected.std() > 1e-6 * np.abs(expected).max(), f"{key} says nothing"
        error = np.abs(ours[key] - expected).max() / np.abs(expected).max()
        assert error <= tolerance, f"{key}: {error:.2e} of the largest magnitude"


def check_round_trip(name: str, original: Original, folder: Any) -> None:
    """Holds `export(import(file))` against the file, tensor for tensor, and loads it strictly in torch."""
    import torch

    module = undrawn(original.build)
    arrays = random_values(module)
    table = table_of(name, original.table)
    path = folder / "original.safetensors"
    write_safetensors(arrays, path, {"format": "pt"})
    stored = read_weights(path)
    meta = default_meta(name)
    file = WeightsFile(path, meta, "", table, table.to_target(stored), stored)
    model = abstract_model(name, num_classes=meta.num_classes)
    loaded = fill(model, file)
    assert loaded.dropped == ()
    zeros = {p: np.zeros(leaf.shape, np.float32) for p, leaf in leaves(model).items()}
    model.origin = file.origin
    back_path = folder / "back.safetensors"
    save_weights(with_values(model, zeros | loaded.arrays), back_path)
    back = read_weights(back_path)
    assert back.keys() == arrays.keys()
    for key, array in arrays.items():
        assert back[key].dtype == array.dtype, key
        assert back[key].tobytes() == np.ascontiguousarray(array).tobytes(), key
    module.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in back.items()}, strict=True)


def check_fine_tuned_export(name: str, original: Original, folder: Any, size: Any) -> None:
    """A model of tlx's own values, no file behind it: opens strictly in torch, with the same logits."""
    import torch

    model = tlx_drawn(name, original)
    save_weights(model, folder / "tlx.safetensors", names=original.table)
    state = read_weights(folder / "tlx.safetensors")
    module = undrawn(original.build).eval()
    module.load_state_dict(
        {k: torch.from_numpy(np.array(v)) for k, v in state.items()}, strict=True
    )
    x = images(1, *size)
    with torch.no_grad():
        nchw = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
        expected = original.call(module, nchw).numpy()
    ours = outputs_of_tlx(model, x)["logits"]
    assert np.abs(ours - expected).max() <= TOLERANCE * np.abs(expected).max()


def check_parameter_count(name: str, published: int) -> None:
    """The model has as many parameters as its authors say."""
    assert parameter_count(built(name)) == published
