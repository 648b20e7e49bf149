"""Thin layers: a parameter or two and a function.

They are made without values and hold no random state: a leaf's initial value is drawn by `tlx.models.leaves.initial_values`, only where no
weights file fills it, from the initializer that the leaf carries as metadata. Images are [B, H, W, C].
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from tlx.models import formulations
from tlx.models.formulations import (
    add_channels,
    channel_sum,
    convolve,
    project,
    scale_channels,
    window_max,
)

Size = int | tuple[int, int]  # pixels: both sides, or (height, width)
Initializer = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]

# He et al. 2015 with the fan of the output, as torchvision's ResNets are initialised.
kaiming_normal_fan_out: Initializer = jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# With the fan of the input, as torchvision's DenseNets and SqueezeNets.
kaiming_normal_fan_in: Initializer = jax.nn.initializers.variance_scaling(2.0, "fan_in", "normal")
kaiming_uniform_fan_in: Initializer = jax.nn.initializers.variance_scaling(2.0, "fan_in", "uniform")


@dataclasses.dataclass(frozen=True)
class Constant:
    """The initializer of the same number everywhere; it can be seen that it draws nothing."""

    value: float

    def __call__(self, key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return jnp.full(shape, self.value, dtype)


zeros, ones = Constant(0.0), Constant(1.0)


def uniform_fan_in(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): what `torch.nn.Linear` draws for its weight, [D, out]."""
    bound = shape[0] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def uniform_conv(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): what `torch.nn.Conv2d` draws, [kh, kw, in / groups, out]."""
    bound = math.prod(shape[:-1]) ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


@functools.cache
def uniform(bound: float) -> Initializer:
    """Returns U(-bound, bound)."""

    def draw(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return draw


@functools.cache
def truncated_normal(std: float) -> Initializer:
    """Returns N(0, std^2) cut off two standard deviations from 0."""

    def draw(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return std * jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype)

    return draw


@functools.cache
def normal(std: float) -> Initializer:
    """Returns N(0, std^2)."""
    return jax.nn.initializers.normal(std)


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def parameter(shape: tuple[int, ...], init: Initializer) -> nnx.Param[jax.Array]:
    """Returns a float32 parameter that has a shape, no value yet, and knows how to draw its initial one."""
    return nnx.Param(jax.ShapeDtypeStruct(shape, jnp.float32), init=init)


def statistic(shape: tuple[int, ...], init: Initializer) -> nnx.BatchStat[jax.Array]:
    """Returns a float32 running statistic: it changes in training but is not differentiated."""
    return nnx.BatchStat(jax.ShapeDtypeStruct(shape, jnp.float32), init=init)


class Layer(nnx.Module):
    """Base of what multiplies by a kernel and adds a bias, the places where an adapter can sit.

    Attributes:
      kernel: its last axis is that of the outputs.
      bias: [out], or None.
      adapter: called as `adapter(layer, x)` instead of the layer itself; None: there is none.
    """

    kernel: nnx.Param[jax.Array]
    bias: nnx.Param[jax.Array] | None
    adapter: Any = None

    def project(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """Returns what the layer gives for a kernel of its own shape, but for the number of outputs."""
        raise NotImplementedError

    def plain(self, x: jax.Array) -> jax.Array:
        """Returns what the layer gives without an adapter."""
        return self.with_bias(self.project(x, self.kernel[...]))

    def with_bias(self, y: jax.Array) -> jax.Array:
        """Adds the bias where there is one."""
        return y if self.bias is None else add_channels(y, self.bias[...].astype(y.dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps the layer's inputs to its outputs, in the input's dtype."""
        return self.plain(x) if self.adapter is None else self.adapter(self, x)


class Conv(Layer):
    """2-D convolution with explicit padding, as PyTorch's.

    `padding` is pixels on both sides, or "same": as TensorFlow pads, the odd pixel at the end. Sizes are
    one number or (height, width). `kernel` is [kh, kw, in / groups, out]; computes in the input's dtype.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Size,
        *,
        stride: int = 1,
        padding: Size | str = 0,
        groups: int = 1,
        bias: bool = False,
        init: Initializer = kaiming_normal_fan_out,
        bias_init: Initializer = zeros,
    ):
        self.stride, self.groups = stride, groups
        self.padding = padding if isinstance(padding, str) else _pair(padding)
        self.kernel = parameter((*_pair(kernel_size), in_features // groups, out_features), init)
        self.bias = parameter((out_features,), bias_init) if bias else None

    def project(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """Maps [B, H, W, in] to [B, H', W', out]."""
        height, width = self.padding if isinstance(self.padding, tuple) else (0, 0)
        edges = [(height, height), (width, width)]
        return convolve(
            x,
            kernel.astype(x.dtype),
            stride=self.stride,
            padding=edges if isinstance(self.padding, tuple) else "SAME",
            groups=self.groups,
        )


class Linear(Layer):
    """x @ kernel + bias, with `kernel` [in, out]."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        init: Initializer = uniform_fan_in,
        bias_init: Initializer = zeros,
    ):
        self.kernel = parameter((in_features, out_features), init)
        self.bias = parameter((out_features,), bias_init) if bias else None

    def project(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """Maps [..., in] to [..., out]."""
        return project(x, kernel.astype(x.dtype))


class BatchNorm(nnx.Module):
    """Batch normalisation over all axes but the last, with PyTorch's conventions.

    The running variance is the unbiased one and moves by `momentum` (Ioffe & Szegedy 2015; PyTorch's
    `new = 0.9 * old + 0.1 * batch`). `use_running_average` is static; the tuning plan sets it for each
    BatchNorm. Statistics and normalisation are computed in float32 whatever the input's dtype. On a mesh the batch
    statistics are those of the global batch.
    """

    def __init__(self, features: int, *, momentum: float = 0.1, epsilon: float = 1e-5):
        self.momentum, self.epsilon = momentum, epsilon
        self.use_running_average = True
        self.scale = parameter((features,), ones)
        self.bias = parameter((features,), zeros)
        self.mean = statistic((features,), zeros)
        self.var = statistic((features,), ones)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., C] to [..., C]; in training mode also moves `mean` and `var`."""
        if self.use_running_average:
            mean, var = self.mean[...], self.var[...]
        else:
            mean, var = self._batch_statistics(x)
        scale = self.scale[...] * lax.rsqrt(var + self.epsilon)
        if x.dtype == jnp.float32:
            return scale_channels(x, scale, self.bias[...], mean)
        shift = self.bias[...] - mean * scale
        return (x.astype(jnp.float32) * scale + shift).astype(x.dtype)

    def _batch_statistics(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = x.astype(jnp.float32)
        count = x.size // x.shape[-1]
        mean = channel_sum(x) / count
        # The mean's own gradient through the variance is zero.
        var = channel_sum(jnp.square(x - lax.stop_gradient(mean))) / count
        unbiased = var * (count / max(count - 1, 1))
        keep = 1.0 - self.momentum
        self.mean[...] = keep * self.mean[...] + self.momentum * lax.stop_gradient(mean)
        self.var[...] = keep * self.var[...] + self.momentum * lax.stop_gradient(unbiased)
        return mean, var


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis (Ba et al. 2016), in float32 whatever the input's dtype."""

    def __init__(self, features: int, *, epsilon: float = 1e-6, bias: bool = True):
        self.epsilon = epsilon
        self.scale = parameter((features,), ones)
        self.bias = parameter((features,), zeros) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., C] to [..., C]."""
        wide = x.astype(jnp.float32)
        mean = jnp.mean(wide, -1, keepdims=True)
        centred = wide - mean
        var = jnp.mean(jnp.square(centred), -1, keepdims=True)
        normal = centred * lax.rsqrt(var + self.epsilon)
        scale = self.scale[...]
        bias = jnp.zeros_like(scale) if self.bias is None else self.bias[...]
        return scale_channels(normal, scale, bias).astype(x.dtype)


def layer_scale(x: jax.Array, scale: nnx.Param[jax.Array]) -> jax.Array:
    """Multiplies the channels of [..., C] by a scale [C], in the dtype of x (Touvron et al. 2021, arXiv:2103.17239)."""
    factor = scale[...].astype(x.dtype)
    return scale_channels(x, factor, jnp.zeros_like(factor))


def subkeys(key: jax.Array | None, count: int) -> Sequence[jax.Array | None]:
    """Returns `count` independent keys, or as many None: nothing is random then."""
    return [None] * count if key is None else [jax.random.fold_in(key, i) for i in range(count)]


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Sets each value to zero with probability `rate` and scales the rest up (Srivastava et al. 2014).

    Each value is drawn with 16 random bits: the probability is the nearest multiple of 2^-16.
    """
    if key is None or rate <= 0:
        return x
    keep = formulations.random_bits16(key, x.shape) >= round(rate * 2**16)
    return jnp.where(keep, x / jnp.asarray(1 - rate, x.dtype), 0)


def drop_path(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Sets the whole residual branch of an example to zero with probability `rate`, scales the rest up.

    Stochastic depth (Huang et al. 2016) by example, as torchvision's "row" mode and timm's DropPath.
    """
    if key is None or rate <= 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, (x.shape[0],) + (1,) * (x.ndim - 1))
    return jnp.where(keep, x / jnp.asarray(1 - rate, x.dtype), 0)


def gelu(x: jax.Array) -> jax.Array:
    """x * Phi(x), exactly (not the tanh approximation)."""
    return formulations.gelu(x)


def max_pool(
    x: jax.Array, window: int, *, stride: int, padding: int = 0, ceil_mode: bool = False
) -> jax.Array:
    """Maximum over windows of [B, H, W, C], padded with -inf as PyTorch's `MaxPool2d` does.

    With `ceil_mode` a last window that reaches over the edge counts too, if it starts inside.
    """
    pads = [
        (padding, padding + (_overhang(n, window, stride, padding) if ceil_mode else 0))
        for n in x.shape[1:3]
    ]
    return window_max(x, window, stride=stride, padding=pads)


def average_pool(
    x: jax.Array,
    window: int,
    *,
    stride: int,
    padding: int = 0,
    ceil_mode: bool = False,
    count_padding: bool = True,
) -> jax.Array:
    """Mean over windows of [B, H, W, C], as PyTorch's `AvgPool2d`; sums are taken in float32.

    Args:
      x: the map.
      window: pixels, both sides.
      stride: pixels.
      padding: zeros on all sides.
      ceil_mode: a last window that reaches over the edge counts too, if it starts inside.
      count_padding: whether zeros of the padding count in the divisor (what reaches over never does).
    """
    over = [_overhang(n, window, stride, padding) if ceil_mode else 0 for n in x.shape[1:3]]

    def sums(values: jax.Array, pads: Sequence[tuple[int, int]]) -> jax.Array:
        return lax.reduce_window(
            values.astype(jnp.float32),
            0.0,
            lax.add,
            (1, window, window, 1),
            (1, stride, stride, 1),
            ((0, 0), *pads, (0, 0)),
        )

    total = sums(x, [(padding, padding + o) for o in over])
    counted = jnp.ones((1, *x.shape[1:3], 1), jnp.float32)
    pads = [(padding, padding + o) for o in over]
    if count_padding:
        counted = jnp.pad(counted, ((0, 0), *[(padding, padding)] * 2, (0, 0)), constant_values=1)
        pads = [(0, o) for o in over]
    return (total / sums(counted, pads)).astype(x.dtype)


def adaptive_average_pool(x: jax.Array, size: int) -> jax.Array:
    """Maps [B, H, W, C] to [B, size, size, C] as PyTorch's `AdaptiveAvgPool2d` does.

    Output i is the mean of inputs floor(i n / size) to ceil((i + 1) n / size); taken in float32.
    """

    def matrix(n: int) -> np.ndarray:
        rows = np.zeros((size, n), np.float32)
        for i in range(size):
            first, last = i * n // size, -(-(i + 1) * n // size)
            rows[i, first:last] = 1 / (last - first)
        return rows

    height, width = x.shape[1:3]
    if (height, width) == (size, size):
        return x
    y = jnp.einsum("ph,bhwc->bpwc", matrix(height), x.astype(jnp.float32))
    return jnp.einsum("qw,bpwc->bpqc", matrix(width), y).astype(x.dtype)


def _overhang(length: int, window: int, stride: int, padding: int) -> int:
    """Returns the pixels by which the last window of ceil mode reaches over the padded edge."""
    padded = length + 2 * padding
    count = -(-(padded - window) // stride) + 1
    if (count - 1) * stride >= length + padding:  # it would start in the padding
        count -= 1
    return max((count - 1) * stride + window - padded, 0)


def global_average_pool(x: jax.Array) -> jax.Array:
    """Maps [B, H, W, C] to [B, C]; the mean is taken in float32."""
    return jnp.mean(x, (1, 2), dtype=jnp.float32).astype(x.dtype)


def chain(
    x: jax.Array, modules: Sequence[Callable[..., jax.Array]], key: jax.Array | None
) -> jax.Array:
    """Applies the modules one after the other, each as `module(x, key)` with a key of its own."""
    for module, module_key in zip(modules, subkeys(key, len(modules)), strict=True):
        x = module(x, module_key)
    return x
