"""Small trainable parts that sit at a layer whose own values stay as they are.

Each is called as `adapter(layer, x)` in place of the layer, and changes nothing at initialisation. LoRA, DoRA and IA3 can be
merged into the layer's kernel; a bottleneck cannot.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tlx.errors import InputError
from tlx.models.base import Model
from tlx.models.formulations import add_channels, project
from tlx.models.layers import Layer, gelu, ones, parameter, uniform_conv, zeros
from tlx.models.leaves import Values, values, with_values

NAME = "adapter"  # of the attribute of a layer; the part of a path that says it is an adapter's

Pair = tuple[np.ndarray, np.ndarray | None]  # a layer's kernel and bias


class LoRA(nnx.Module):
    """Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685): kernel + scale * a b, never formed in training.

    `a` is a kernel of the layer's kind with `rank` outputs (drawn as PyTorch's layers are), `b` is [rank, out] and zero at
    first, as in peft. For a convolution `b` is a 1x1 one.
    """

    def __init__(self, shape: tuple[int, ...], *, rank: int, alpha: float):
        """Makes the adapter for a kernel of that shape; the update is multiplied by alpha / rank."""
        self.rank, self.alpha = rank, alpha
        self.a = parameter((*shape[:-1], rank), uniform_conv)
        self.b = parameter((rank, shape[-1]), zeros)

    @property
    def scale(self) -> float:
        """What the product of `a` and `b` is multiplied by."""
        return self.alpha / self.rank

    def __call__(self, layer: Layer, x: jax.Array) -> jax.Array:
        """Maps the layer's inputs to its outputs."""
        return layer.plain(x) + self.branch(layer, x)

    def branch(self, layer: Layer, x: jax.Array) -> jax.Array:
        """Returns what the update adds to the outputs."""
        low = layer.project(x, self.a[...])
        return self.scale * project(low, self.b[...].astype(low.dtype))

    def merged(self, kernel: np.ndarray, bias: np.ndarray | None) -> Pair:
        """Returns the kernel and bias of a plain layer that gives the same."""
        return self.updated(kernel).astype(kernel.dtype), bias

    def updated(self, kernel: np.ndarray) -> np.ndarray:
        """Returns kernel + scale * a b, in float64."""
        a, b = (np.asarray(part[...], np.float64) for part in (self.a, self.b))
        return kernel + self.scale * (a.reshape(-1, self.rank) @ b).reshape(kernel.shape)


class DoRA(LoRA):
    """Weight-decomposed LoRA (Liu et al. 2024, arXiv:2402.09353): each output has its own magnitude beside.

    `magnitude` is [out], at first the norms of the kernel's columns: see `initial_magnitudes`. The norm that the columns are
    divided by is a constant to the gradient, as in section 4.3 of the paper and in peft.
    """

    def __init__(self, shape: tuple[int, ...], *, rank: int, alpha: float):
        super().__init__(shape, rank=rank, alpha=alpha)
        self.magnitude = parameter((shape[-1],), ones)

    def __call__(self, layer: Layer, x: jax.Array) -> jax.Array:
        """Maps the layer's inputs to its outputs."""
        kernel = layer.kernel[...]
        update = (self.a[...].reshape(-1, self.rank) @ self.b[...]).reshape(kernel.shape)
        norms = jax.lax.stop_gradient(column_norms(kernel + self.scale * update))
        y = layer.project(x, kernel) + self.branch(layer, x)
        magnitude = self.magnitude[...]
        # A column of nothing has no direction: it stays as it is until the update gives it one.
        ratio = jnp.where(norms > 0, magnitude / jnp.where(norms > 0, norms, 1.0), 1.0)
        return layer.with_bias(y * ratio.astype(y.dtype))

    def merged(self, kernel: np.ndarray, bias: np.ndarray | None) -> Pair:
        updated = self.updated(kernel)
        norms = np.sqrt(np.square(updated).sum(tuple(range(updated.ndim - 1))))
        magnitude = np.asarray(self.magnitude[...], np.float64)
        ratio = np.where(norms > 0, magnitude / np.where(norms > 0, norms, 1.0), 1.0)
        return (updated * ratio).astype(kernel.dtype), bias


class IA3(nnx.Module):
    """A factor for each output, or for each input, of a layer (IA3: Liu et al. 2022, arXiv:2205.05638)."""

    def __init__(self, shape: tuple[int, ...], *, inputs: bool):
        """Makes the adapter for a kernel of that shape; `inputs`: its inputs are multiplied."""
        self.inputs = inputs
        self.factor = parameter((shape[-2] if inputs else shape[-1],), ones)

    def __call__(self, layer: Layer, x: jax.Array) -> jax.Array:
        """Maps the layer's inputs to its outputs."""
        factor = self.factor[...].astype(x.dtype)
        return layer.plain(x * factor) if self.inputs else layer.plain(x) * factor

    def merged(self, kernel: np.ndarray, bias: np.ndarray | None) -> Pair:
        """Returns the kernel and bias of a plain layer that gives the same."""
        factor = np.asarray(self.factor[...])
        if self.inputs:
            return kernel * factor[:, None], bias
        return kernel * factor, None if bias is None else bias * factor


class Bottleneck(nnx.Module):
    """y + up(gelu(down(y))) after the layer (Houlsby et al. 2019, arXiv:1902.00751), with `up` zero at first.

    After a convolution both are 1x1, as in residual adapters (Rebuffi et al. 2017, arXiv:1705.08045).
    """

    def __init__(self, shape: tuple[int, ...], *, width: int):
        """Makes the adapter for a kernel of that shape."""
        out = shape[-1]
        self.down, self.down_bias = (
            parameter((out, width), uniform_conv),
            parameter((width,), zeros),
        )
        self.up, self.up_bias = parameter((width, out), zeros), parameter((out,), zeros)

    def __call__(self, layer: Layer, x: jax.Array) -> jax.Array:
        """Maps the layer's inputs to its outputs."""
        y = layer.plain(x)
        parts = (self.down, self.down_bias, self.up, self.up_bias)
        down, down_bias, up, up_bias = (part[...].astype(y.dtype) for part in parts)
        inner = gelu(add_channels(project(y, down), down_bias))
        return y + add_channels(project(inner, up), up_bias)


class Spec(NamedTuple):
    """Which adapter a layer has."""

    method: str  # lora | dora | ia3 | bottleneck
    rank: int = 0  # lora, dora; of a bottleneck its width
    alpha: float = 0.0  # lora, dora
    inputs: bool = False  # ia3

    @staticmethod
    def of(adapter: Any) -> Spec:
        """Returns what a layer's adapter was made from."""
        match adapter:
            case LoRA():
                return Spec(type(adapter).__name__.lower(), adapter.rank, adapter.alpha)
            case IA3():
                return Spec("ia3", inputs=adapter.inputs)
            case _:
                return Spec("bottleneck", adapter.up.get_value().shape[0])

    def make(self, shape: tuple[int, ...]) -> Any:
        """Returns the adapter of a layer whose kernel has that shape."""
        match self.method:
            case "lora":
                return LoRA(shape, rank=self.rank, alpha=self.alpha)
            case "dora":
                return DoRA(shape, rank=self.rank, alpha=self.alpha)
            case "ia3":
                return IA3(shape, inputs=self.inputs)
            case "bottleneck":
                return Bottleneck(shape, width=self.rank)
        raise AssertionError(self.method)


def attached(model: Model, specs: Mapping[str, Spec]) -> Model:
    """Returns the (abstract) model with an adapter at each of the layers, which are given by their paths."""
    copy = nnx.merge(*nnx.split(model))
    for path, module in list(nnx.iter_modules(copy)):
        spec = specs.get(".".join(map(str, path)))
        if spec is not None and isinstance(module, Layer):
            module.adapter = spec.make(module.kernel.get_value().shape)
    return copy


def specs_of(model: Model) -> dict[str, Spec]:
    """Returns which layers have an adapter, and which."""
    return {path: Spec.of(layer.adapter) for path, layer in adapted_layers(model)}


def column_norms(kernel: Any) -> Any:
    """Returns the norm of each output's weights, [out]; the squares of small ones do not vanish."""
    axes = tuple(range(kernel.ndim - 1))
    largest = jnp.max(jnp.abs(kernel), axes)
    safe = jnp.where(largest > 0, largest, 1.0)
    return largest * jnp.sqrt(jnp.sum(jnp.square(kernel / safe), axes))


def initial_magnitudes(found: Values) -> Values:
    """Returns DoRA's magnitudes for the kernels that they belong to."""
    end = f".{NAME}.magnitude"
    kernels = {path: path.removesuffix(end) + ".kernel" for path in found if path.endswith(end)}
    return {path: column_norms(found[kernel]) for path, kernel in kernels.items()}


def adapted_layers(model: Model) -> Iterator[tuple[str, Layer]]:
    """Yields the path of every layer that has an adapter, and the layer."""
    for path, module in nnx.iter_modules(model):
        if isinstance(module, Layer) and module.adapter is not None:
            yield ".".join(map(str, path)), module


def merged(model: Model) -> Model:
    """Returns a model of plain layers that gives the same.

    Raises:
      InputError: a bottleneck cannot be merged.
    """
    copy = nnx.merge(*nnx.split(model))  # its variables are the model's own
    found = values(model)
    for path, layer in list(adapted_layers(copy)):
        if isinstance(layer.adapter, Bottleneck):
            raise InputError(
                f"{path} has a bottleneck adapter, which no plain layer is equal to: only networks without can be "
                "written under their source's names"
            )
        bias = None if layer.bias is None else np.asarray(layer.bias[...])
        kernel, bias = layer.adapter.merged(np.asarray(layer.kernel[...]), bias)
        found[f"{path}.kernel"] = jnp.asarray(kernel)
        if bias is not None:
            found[f"{path}.bias"] = jnp.asarray(bias)
        layer.adapter = None
    return with_values(copy, found)
