"""Thin layers: a parameter or two and a function.

They hold no random state: a leaf's initial value is drawn by `tlx.models.leaves.initial_values`, only where no
weights file fills it, from the initializer that the leaf carries as metadata. Images are [B, H, W, C].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

Initializer = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]

# He et al. 2015 with the fan of the output, as torchvision's ResNets are initialised.
kaiming_normal_fan_out: Initializer = jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal")
zeros: Initializer = jax.nn.initializers.zeros
ones: Initializer = jax.nn.initializers.ones


def uniform_fan_in(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): what `torch.nn.Linear` draws for its weight, [D, out]."""
    bound = shape[0] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def parameter(shape: tuple[int, ...], init: Initializer) -> nnx.Param[jax.Array]:
    """Returns a float32 parameter that knows how to draw its own initial value."""
    return nnx.Param(jnp.zeros(shape, jnp.float32), init=init)


def statistic(shape: tuple[int, ...], init: Initializer) -> nnx.BatchStat[jax.Array]:
    """Returns a float32 running statistic: it changes in training but is not differentiated."""
    return nnx.BatchStat(jnp.zeros(shape, jnp.float32), init=init)


class Conv(nnx.Module):
    """2-D convolution with explicit symmetric padding, as PyTorch's (not "SAME").

    `kernel` is [kh, kw, in / groups, out]; computes in the input's dtype.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        bias: bool = False,
        init: Initializer = kaiming_normal_fan_out,
    ):
        self.stride, self.padding, self.groups = stride, padding, groups
        self.kernel = parameter(
            (kernel_size, kernel_size, in_features // groups, out_features), init
        )
        self.bias = parameter((out_features,), zeros) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, in] to [B, H', W', out]."""
        y = lax.conv_general_dilated(
            x,
            self.kernel[...].astype(x.dtype),
            window_strides=(self.stride, self.stride),
            padding=((self.padding, self.padding), (self.padding, self.padding)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=self.groups,
        )
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class Linear(nnx.Module):
    """x @ kernel + bias, with `kernel` [in, out]."""

    def __init__(self, in_features: int, out_features: int, *, init: Initializer = uniform_fan_in):
        self.kernel = parameter((in_features, out_features), init)
        self.bias = parameter((out_features,), zeros)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., in] to [..., out]."""
        return x @ self.kernel[...].astype(x.dtype) + self.bias[...].astype(x.dtype)


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
            return (x - mean) * scale + self.bias[...]
        shift = self.bias[...] - mean * scale
        return (x.astype(jnp.float32) * scale + shift).astype(x.dtype)

    def _batch_statistics(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        axes = tuple(range(x.ndim - 1))
        x = x.astype(jnp.float32)
        mean = jnp.mean(x, axes)
        var = jnp.mean(jnp.square(x - mean), axes)
        count = x.size // x.shape[-1]
        unbiased = var * (count / max(count - 1, 1))
        keep = 1.0 - self.momentum
        self.mean[...] = keep * self.mean[...] + self.momentum * lax.stop_gradient(mean)
        self.var[...] = keep * self.var[...] + self.momentum * lax.stop_gradient(unbiased)
        return mean, var


def max_pool(x: jax.Array, window: int, *, stride: int, padding: int = 0) -> jax.Array:
    """Maximum over windows of [B, H, W, C], padded with -inf as PyTorch's `MaxPool2d` does."""
    pad = (padding, padding)
    return lax.reduce_window(
        x,
        -jnp.inf,
        lax.max,
        (1, window, window, 1),
        (1, stride, stride, 1),
        ((0, 0), pad, pad, (0, 0)),
    )


def global_average_pool(x: jax.Array) -> jax.Array:
    """Maps [B, H, W, C] to [B, C]; the mean is taken in float32."""
    return jnp.mean(x, (1, 2), dtype=jnp.float32).astype(x.dtype)


def chain(x: jax.Array, modules: Sequence[Callable[[jax.Array], jax.Array]]) -> jax.Array:
    """Applies the modules one after the other."""
    for module in modules:
        x = module(x)
    return x
