"""How convolutions, pooling and sums over channels are written for the backend.

Every formulation has the same values and gradients but for rounding. Accelerators get XLA's own operations. On the CPU some of these
are slow; experiments/bench/operations.md has them beside what is used instead:

* A convolution whose output is 2x2 pixels or fewer.
* A convolution of each channel by itself (depthwise), or of groups of channels.
* The gradient of a maximum over windows.
* The gradient of a matrix product for the matrix.
* A sum over all axes but the last, and over all values of a large array.

Gradients are written out, for reverse mode alone.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.random import threefry2x32_p

Pads = Sequence[tuple[int, int]]  # before and after, of height and width

FEW_PIXELS = 4  # of a convolution's output, height times width
FEW_PLACES = 25  # of its kernel, likewise: each is an operation of its own
DEPTHWISE_PLACES = 49  # of a kernel for each channel, likewise
GROUP_CHANNELS = 16  # below which a convolution of a group is slower than one of several groups, with zeros between
PARTS = 8  # of a sum


def convolve(
    x: jax.Array, kernel: jax.Array, *, stride: int, padding: Pads | str, groups: int
) -> jax.Array:
    """Maps [B, H, W, in] to [B, H', W', out].

    Args:
      x: the map.
      kernel: [kh, kw, in / groups, out], of the same dtype.
      stride: pixels.
      padding: zeros around the map, or "SAME": as TensorFlow pads.
      groups: of channels that are convolved apart.
    """
    sizes, places = kernel.shape[:2], math.prod(kernel.shape[:2])
    given = (
        lax.padtype_to_pads(x.shape[1:3], sizes, (stride, stride), padding)
        if isinstance(padding, str)
        else padding
    )
    pads = tuple((int(before), int(after)) for before, after in given)
    pixels = math.prod(_output_size(x, sizes, stride, pads))
    if _on_cpu() and pixels:
        if groups == 1 and pixels <= FEW_PIXELS and 1 < places <= FEW_PLACES:
            return _convolve_few(x, kernel, stride, pads)
        if 1 < groups == x.shape[-1] == kernel.shape[-1] and places <= DEPTHWISE_PLACES:
            return _convolve_depthwise(x, kernel, stride, pads)
        if groups > 1:
            return _convolve_groups(x, kernel, stride, pads, groups)
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _convolve_few(x: jax.Array, kernel: jax.Array, stride: int, padding: Pads) -> jax.Array:
    """Returns the convolution as one matrix product; places of the kernel that meet only padding are left out."""
    sizes = kernel.shape[:2]
    height, width = _output_size(x, sizes, stride, padding)

    def meets(at: int, count: int, length: int, before: int) -> bool:
        return any(0 <= at - before + step * stride < length for step in range(count))

    used = [
        (row, column)
        for row in range(sizes[0])
        for column in range(sizes[1])
        if meets(row, height, x.shape[1], padding[0][0])
        and meets(column, width, x.shape[2], padding[1][0])
    ]
    windows = dict(_windows(x, sizes, stride, padding, 0))
    patches = jnp.concatenate([windows[place] for place in used], -1)
    return patches @ jnp.concatenate([kernel[place] for place in used], 0)


def _convolve_groups(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Pads, groups: int
) -> jax.Array:
    """Returns the convolution as ordinary ones, each of as many groups as have GROUP_CHANNELS."""
    inner, outer = kernel.shape[2], kernel.shape[3] // groups
    enough = (n for n in range(1, groups) if groups % n == 0 and n * inner >= GROUP_CHANNELS)
    together = next(enough, groups)
    diagonal = jnp.eye(together, dtype=kernel.dtype)[:, None, :, None]
    parts = []
    for first in range(0, groups, together):
        own = kernel[..., first * outer : (first + together) * outer]
        blocks = own.reshape(*own.shape[:2], 1, inner, together, outer) * diagonal
        parts.append(
            convolve(
                x[..., first * inner : (first + together) * inner],
                blocks.reshape(*own.shape[:2], together * inner, together * outer),
                stride=stride,
                padding=padding,
                groups=1,
            )
        )
    return jnp.concatenate(parts, -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve_depthwise(x: jax.Array, kernel: jax.Array, stride: int, padding: Pads) -> jax.Array:
    """Returns the convolution as a sum over the places of the kernel, [kh, kw, 1, C]."""
    return _weighted(_padded(x, [(*pads, 0) for pads in padding]), kernel, stride)


def _convolve_depthwise_forward(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Pads
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve_depthwise(x, kernel, stride, padding), (x, kernel)


def _convolve_depthwise_backward(
    stride: int, padding: Pads, kept: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    edges = []
    for axis in range(2):
        before = kernel.shape[axis] - 1 - padding[axis][0]
        length = (gradient.shape[1 + axis] - 1) * stride + 1
        after = x.shape[1 + axis] + kernel.shape[axis] - 1 - before - length
        edges.append((before, after, stride - 1))
    spread = _padded(gradient, edges)
    of_x = _weighted(spread, kernel[::-1, ::-1], 1)
    if all(before >= 0 and after >= 0 for before, after, _ in edges):
        # All of it is in there, and stored: what made it is not computed anew for each place.
        rows, columns = (
            slice(before, length - after, stride)
            for (before, after, _), length in zip(edges, spread.shape[1:3], strict=True)
        )
        gradient = spread[:, rows, columns]
    padded = _padded(x, [(*pads, 0) for pads in padding])
    windows = _windows(padded, kernel.shape[:2], stride, [(0, 0)] * 2, 0)
    of_kernel = [channel_sum((values * gradient).astype(jnp.float32)) for _, values in windows]
    return of_x, jnp.stack(of_kernel).reshape(kernel.shape).astype(kernel.dtype)


def _padded(x: jax.Array, edges: Sequence[tuple[int, int, int]]) -> jax.Array:
    """Returns the map with zeros before, after and between its rows and its columns."""
    whole = ((0, 0, 0), *edges, (0, 0, 0))
    return stored(lambda part: lax.pad(part, jnp.zeros((), part.dtype), whole), x)


def _weighted(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Returns for each window of [B, H, W, C] the sum of its places, weighted by [kh, kw, 1, C]."""
    windows = _windows(x, kernel.shape[:2], stride, [(0, 0)] * 2, 0)
    parts = [values.astype(jnp.float32) * kernel[at] for at, values in windows]
    return functools.reduce(jnp.add, parts).astype(x.dtype)


_convolve_depthwise.defvjp(_convolve_depthwise_forward, _convolve_depthwise_backward)


def window_max(x: jax.Array, window: int, *, stride: int, padding: Pads) -> jax.Array:
    """Returns the maximum over windows of [B, H, W, C], padded with -inf.

    Of equal values the gradient goes to the first, row by row, as in PyTorch (of padding alone: to the padding); NaN is
    passed on.
    """
    if not _on_cpu() or 0 in _output_size(x, (window, window), stride, padding):
        pads = ((0, 0), *padding, (0, 0))
        sizes, strides = (1, window, window, 1), (1, stride, stride, 1)
        return lax.reduce_window(x, -jnp.inf, lax.max, sizes, strides, pads)
    return _window_max(x, window, stride, tuple(padding))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _window_max(x: jax.Array, window: int, stride: int, padding: Pads) -> jax.Array:
    return _largest(x, window, stride, padding)[0]


def _largest(x: jax.Array, window: int, stride: int, padding: Pads) -> tuple[jax.Array, jax.Array]:
    """Returns the maximum of each window, and the number of its place in it."""
    (_, value), *others = _windows(x, (window, window), stride, padding, -jnp.inf)
    number = jnp.uint8 if window * window <= 256 else jnp.int32
    place = jnp.zeros(value.shape, number)
    for i, (_, other) in enumerate(others, 1):
        larger = (other > value) | jnp.isnan(other)
        value = jnp.where(larger, other, value)
        place = jnp.where(larger, number(i), place)
    return value, place


def _window_max_forward(
    x: jax.Array, window: int, stride: int, padding: Pads
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    value, place = _largest(x, window, stride, padding)
    return value, (place, _shape_of(x))


def _window_max_backward(
    window: int, stride: int, padding: Pads, kept: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array]:
    place, shape = kept
    spread = functools.partial(_spread, window, stride, padding, shape.shape[2:4])
    return (stored(spread, place, gradient),)


def _spread(
    window: int,
    stride: int,
    padding: Pads,
    size: Sequence[int],
    place: jax.Array,
    gradient: jax.Array,
) -> jax.Array:
    """Returns the gradient of a map of this size: each value of [B, H', W', C] where its maximum was."""
    zero = jnp.zeros((), gradient.dtype)
    total = zero
    for number in range(window * window):
        edges = []
        at = divmod(number, window)
        for axis in range(2):
            before = at[axis] - padding[axis][0]
            last = before + (gradient.shape[1 + axis] - 1) * stride
            edges.append((before, size[axis] - 1 - last, stride - 1))
        part = jnp.where(place == number, gradient, zero)
        total = total + lax.pad(part, zero, ((0, 0, 0), *edges, (0, 0, 0)))
    return total


_window_max.defvjp(_window_max_forward, _window_max_backward)


def stored(function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """Returns what `function`, which treats the examples of a batch alike, makes of the arrays; it is computed once.

    XLA's fusions on the CPU would compute it anew in each operation that reads it, at times through a whole chain
    of residual blocks and in the strided order of a transposition. A concatenation they leave alone.
    """
    half = len(arrays[0]) // 2
    if not half or not _on_one_cpu():
        return function(*arrays)
    parts = [[array[:half] for array in arrays], [array[half:] for array in arrays]]
    return jnp.concatenate([function(*part) for part in parts])


def project(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Maps [..., in] to [..., out] by a kernel [in, out] of the same dtype."""
    return _project(x, kernel) if _on_cpu() else x @ kernel


@jax.custom_vjp
def _project(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return x @ kernel


def _project_backward(
    kept: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    # JAX's own takes the second product the other way round, and transposes what comes of it.
    every = tuple(range(x.ndim - 1))
    return gradient @ kernel.T, lax.dot_general(x, gradient, ((every, every), ((), ())))


_project.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _project_backward)


@jax.custom_vjp
def fork(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns x for a residual branch, and x for what the branch is added to; their gradients are added once, and stored."""
    return x, x


fork.defvjp(lambda x: ((x, x), None), lambda _, gradients: (stored(jnp.add, *gradients),))


@jax.custom_vjp
def add_relu(x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns max(x + y, 0)."""
    return stored(_add_relu, x, y)


def _add_relu(x: jax.Array, y: jax.Array) -> jax.Array:
    return jax.nn.relu(x + y)


def _add_relu_forward(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    total = stored(_add_relu, x, y)
    return total, total


def _add_relu_backward(total: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    gradient = jnp.where(total > 0, gradient, jnp.zeros((), gradient.dtype))
    return gradient, gradient


add_relu.defvjp(_add_relu_forward, _add_relu_backward)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """Returns x * Phi(x), Phi of the normal distribution by erf, in float32."""
    return stored(_gelu, x)


def _gelu(x: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    return (wide * _normal_cdf(wide)).astype(x.dtype)


def _normal_cdf(x: jax.Array) -> jax.Array:
    return 0.5 * (1.0 + lax.erf(math.sqrt(0.5) * x))


def _gelu_gradient(x: jax.Array, gradient: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * jnp.square(wide)) / math.sqrt(2.0 * math.pi)
    return (gradient * (_normal_cdf(wide) + wide * density)).astype(x.dtype)


gelu.defvjp(
    lambda x: (gelu(x), x),
    lambda x, gradient: (stored(_gelu_gradient, x, gradient),),
)


@jax.custom_vjp
def channel_sum(x: jax.Array) -> jax.Array:
    """Returns the sum of [..., C] over all axes but the last: [C]."""
    return _channel_sum(x)


def _channel_sum(x: jax.Array) -> jax.Array:
    length = math.prod(x.shape[:-1]) // PARTS
    if length < PARTS or not _on_one_cpu():
        return jnp.sum(x, tuple(range(x.ndim - 1)))
    rows = x.reshape(-1, x.shape[-1])
    total = rows[:length]
    for start in range(length, PARTS * length, length):
        total = total + rows[start : start + length]
    return jnp.sum(total, 0) + jnp.sum(rows[PARTS * length :], 0)


def _channel_sum_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _channel_sum(x), _shape_of(x)


def _channel_sum_backward(shape: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    return (jnp.broadcast_to(gradient, shape.shape[1:]),)


channel_sum.defvjp(_channel_sum_forward, _channel_sum_backward)


def random_bits16(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns random int32 [..., C] from 0 to 2^16 - 1.

    Of a block of Threefry (Salmon et al. 2011), 64 bits, four numbers are made; `jax.random.bits` makes one. They are the same on
    any number of devices.
    """
    words = jax.random.key_data(key)
    if words.shape != (2,):  # not Threefry's
        return jax.random.bits(key, shape, jnp.uint16).astype(jnp.int32)
    last = shape[-1]
    blocks = (*shape[:-1], -(-last // 4))
    count = jnp.zeros(blocks, jnp.uint32)
    for axis in range(len(blocks)):  # so that each device can count its own
        stride = jnp.uint32(math.prod(blocks[axis + 1 :]))
        count += stride * lax.broadcasted_iota(jnp.uint32, blocks, axis)
    words = threefry2x32_p.bind(*words, jnp.zeros_like(count), count)
    halves = [half for word in words for half in (word & 0xFFFF, word >> 16)]
    return jnp.concatenate(halves, -1)[..., :last].astype(jnp.int32)


def global_norm(tree: Any) -> jax.Array:
    """Returns the square root of the sum of the squares of all values in the arrays of a tree."""
    squares = [jnp.sum(_channel_sum(jnp.square(array))) for array in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares, jnp.zeros(())))


@jax.custom_vjp
def add_channels(x: jax.Array, shift: jax.Array) -> jax.Array:
    """Returns x + shift, of [..., C] and [C]."""
    return x + shift


add_channels.defvjp(
    lambda x, shift: (x + shift, None),
    lambda _, gradient: (gradient, channel_sum(gradient)),
)


def scale_channels(
    x: jax.Array, scale: jax.Array, shift: jax.Array, center: jax.Array | None = None
) -> jax.Array:
    """Returns (x - center) * scale + shift, of [..., C] and up to three of [C]."""
    center = jnp.zeros_like(shift) if center is None else center
    dtype = jnp.result_type(x, center, scale, shift)
    return _scale_channels(*(array.astype(dtype) for array in (x, center, scale, shift)))


@jax.custom_vjp
def _scale_channels(
    x: jax.Array, center: jax.Array, scale: jax.Array, shift: jax.Array
) -> jax.Array:
    return (x - center) * scale + shift


def _scale_channels_forward(
    x: jax.Array, center: jax.Array, scale: jax.Array, shift: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    return (x - center) * scale + shift, (x, center, scale)


def _scale_channels_backward(
    kept: tuple[jax.Array, jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    x, center, scale = kept
    total = channel_sum(gradient)
    return gradient * scale, -scale * total, channel_sum(gradient * (x - center)), total


_scale_channels.defvjp(_scale_channels_forward, _scale_channels_backward)


def _windows(
    x: jax.Array, sizes: Sequence[int], stride: int, padding: Pads, fill: float
) -> Iterator[tuple[tuple[int, int], jax.Array]]:
    """Yields each place in a window, row by row, and the values there: [B, H', W', C]."""
    height, width = _output_size(x, sizes, stride, padding)
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=fill)
    for top in range(sizes[0]):
        for left in range(sizes[1]):
            rows = slice(top, top + (height - 1) * stride + 1, stride)
            columns = slice(left, left + (width - 1) * stride + 1, stride)
            yield (top, left), x[:, rows, columns]


def _output_size(x: jax.Array, sizes: Sequence[int], stride: int, padding: Pads) -> tuple[int, int]:
    height, width = (
        max((length + sum(pads) - size) // stride + 1, 0)
        for length, size, pads in zip(x.shape[1:3], sizes, padding, strict=True)
    )
    return height, width


def _shape_of(x: jax.Array) -> jax.Array:
    """Returns an array without elements whose shape [0, ...] says that of x: what is kept for a gradient are arrays."""
    return jnp.empty((0, *x.shape))


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _on_one_cpu() -> bool:
    """Whether a batch is on one device; cutting up one that is shared out would move it between them."""
    return _on_cpu() and jax.device_count() == 1
