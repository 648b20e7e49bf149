"""Operations as XLA's own and as `tlx.models.formulations` writes them, on the CPU, forward and gradient.

  python experiments/bench/operations.py

Each pair is timed in turns, the best of many; the step's compiler options and memory settings are those of a run. Writes operations.md.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tlx.files import write_text_atomic
from tlx.memory import keep_freed_memory
from tlx.models.formulations import add_relu, channel_sum, convolve, window_max
from tlx.training.compilation import jit

HERE = Path(__file__).parent
SECONDS = 1.0  # of a pair's turns, at least

Function = Callable[..., jax.Array]

# Name, batch, side and channels of the map, channels of the output, side of the kernel, stride, groups.
CONVOLUTIONS = (
    ("convolution", 128, 1, 512, 512, 3, 1, 1),
    ("convolution", 128, 2, 256, 256, 3, 1, 1),
    ("convolution", 128, 2, 256, 512, 3, 2, 1),
    ("convolution", 128, 4, 128, 256, 3, 2, 1),
    ("convolution", 16, 2, 512, 512, 3, 1, 1),
    ("depthwise", 16, 112, 16, 16, 3, 1, 16),
    ("depthwise", 16, 112, 64, 64, 3, 2, 64),
    ("depthwise", 16, 56, 72, 72, 5, 2, 72),
    ("depthwise", 16, 14, 480, 480, 3, 1, 480),
    ("depthwise", 8, 56, 96, 96, 7, 1, 96),
    ("32 groups", 8, 56, 128, 128, 3, 1, 32),
    ("32 groups", 8, 14, 512, 512, 3, 1, 32),
    ("32 groups", 8, 56, 256, 256, 3, 2, 32),
)


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


def gradient(function: Function) -> Callable[..., Any]:
    """Returns what gives the gradients of all arguments; the last argument is that of the values."""
    return lambda *arguments: jax.vjp(function, *arguments[:-1])[1](arguments[-1])


def seconds(functions: list[Callable[..., Any]], *arguments: jax.Array) -> list[float]:
    """Returns the shortest time of each."""
    compiled = [jit(function) for function in functions]
    for function in compiled:
        jax.block_until_ready(function(*arguments))
    best = [float("inf")] * len(compiled)
    until = time.perf_counter() + SECONDS * len(compiled)
    while time.perf_counter() < until:
        for place, function in enumerate(compiled):
            begun = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            best[place] = min(best[place], time.perf_counter() - begun)
    return best


def lax_convolution(
    x: jax.Array, kernel: jax.Array, stride: int, pad: int, groups: int = 1
) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(pad, pad)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def lax_maximum(x: jax.Array, window: int, stride: int, pad: int) -> jax.Array:
    pads = ((0, 0), (pad, pad), (pad, pad), (0, 0))
    sizes, strides = (1, window, window, 1), (1, stride, stride, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, sizes, strides, pads)


def pairs() -> list[tuple[str, Function, Function, tuple[jax.Array, ...]]]:
    """Returns what an operation is, XLA's own way, tlx's, and its arguments."""
    found: list[tuple[str, Function, Function, tuple[jax.Array, ...]]] = []
    for name, batch, side, channels, width, size, stride, groups in CONVOLUTIONS:
        named = f"{name} {size}x{size}/{stride}, [{batch}, {side}, {side}, {channels}] to {width}"
        pad = size // 2
        ours = functools.partial(convolve, stride=stride, padding=[(pad, pad)] * 2, groups=groups)
        own = functools.partial(lax_convolution, stride=stride, pad=pad, groups=groups)
        arguments = (
            normal(batch, side, side, channels),
            normal(size, size, channels // groups, width),
        )
        found.append((named, own, ours, arguments))
    for shape, window, pad in (
        ((16, 109, 109, 96), 3, 0),
        ((16, 112, 112, 64), 3, 1),
        ((16, 27, 27, 512), 3, 0),
        ((8, 224, 224, 64), 2, 0),
    ):
        name = f"maximum {window}x{window}/2, {list(shape)}"
        own = functools.partial(lax_maximum, window=window, stride=2, pad=pad)
        ours = functools.partial(window_max, window=window, stride=2, padding=[(pad, pad)] * 2)
        found.append((name, own, ours, (normal(*shape),)))
    for shape in ((16, 56, 56, 64), (64, 32, 32, 16), (16, 14, 14, 256), (16, 54, 54, 256)):

        def plain(x: jax.Array) -> jax.Array:
            return jnp.sum(jnp.square(x), (0, 1, 2))

        def parts(x: jax.Array) -> jax.Array:
            return channel_sum(jnp.square(x))

        found.append(
            (f"sum of squares over channels, {list(shape)}", plain, parts, (normal(*shape),))
        )
    x = normal(64, 32, 32, 16)
    kernels = [0.1 * normal(3, 3, 16, 16)] * 6

    def blocks(add: Function) -> Function:
        def forward(x: jax.Array, *kernels: jax.Array) -> jax.Array:
            for kernel in kernels:
                x = add(x, lax_convolution(x, kernel, 1, 1))
            return x

        return forward

    plain_add = blocks(lambda x, y: jax.nn.relu(x + y))
    found.append(
        ("six residual convolutions, [64, 32, 32, 16]", plain_add, blocks(add_relu), (x, *kernels))
    )
    return found


def main() -> None:
    keep_freed_memory()
    lines = [
        "| operation | forward: XLA, ms | tlx, ms | ratio | with gradient: XLA, ms | tlx, ms | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, own, ours, arguments in pairs():
        forward = seconds([own, ours], *arguments)
        values = jax.eval_shape(own, *arguments)
        whole = seconds([gradient(own), gradient(ours)], *arguments, normal(*values.shape))
        cells = [f"{1e3 * a:.1f} | {1e3 * b:.1f} | {a / b:.1f}" for a, b in (forward, whole)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    lines.append(f"\njax {jax.__version__}, {jax.device_count()} device, float32.")
    write_text_atomic(HERE / "operations.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
