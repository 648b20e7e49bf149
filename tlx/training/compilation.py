"""How steps are compiled for the backend."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

# jaxlib's `__ynn` fusions on the CPU slow convolutions and their gradients (experiments/bench); empty: none.
_CPU = {"xla_cpu_experimental_ynn_fusion_type": ""}


def jit(function: Callable[..., Any], **options: Any) -> Any:
    """Returns `jax.jit(function, **options)` with the compiler options that suit the backend."""
    return jax.jit(function, **options, compiler_options=_compiler_options())


@functools.cache
def _compiler_options() -> dict[str, str] | None:
    if jax.default_backend() != "cpu":
        return None
    try:  # options come and go between versions of jaxlib; it says so when it compiles
        jax.jit(lambda: 0, compiler_options=_CPU).lower().compile()
    except jax.errors.JaxRuntimeError:
        return None
    return _CPU
