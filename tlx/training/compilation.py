"""How steps are compiled for the backend, and where what was compiled is kept."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jaxlib
import numpy as np

from tlx.weights.cache import cache_dir

# jaxlib's `__ynn` fusions on the CPU slow convolutions and their gradients; empty: none.
_CPU = {"xla_cpu_experimental_ynn_fusion_type": ""}
_WORTH_KEEPING = 0.3  # seconds of compilation


def jit(function: Callable[..., Any], **options: Any) -> Any:
    """Returns `jax.jit(function, **options)` with the compiler options that suit the backend."""
    return jax.jit(function, **options, compiler_options=_compiler_options())


def operations(function: Callable[..., Any], *arguments: Any) -> float:
    """Returns XLA's count of the floating-point operations of a call: the second of `shapes_and_operations`."""
    return shapes_and_operations(function, *arguments)[1]


def shapes_and_operations(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """Returns shapes and types of what a call returns, and XLA's count of its operations before it is optimised.

    Args:
      function: to be counted; it is not run.
      arguments: shapes and types, or arrays.
    """
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), arguments)
    try:  # other backends do not count what is not compiled
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # jax was told to use no CPU
        lowered = jax.jit(function).lower(*shapes)
        counts = lowered.compile().cost_analysis()
    else:
        with jax.default_device(device):
            lowered = jax.jit(function).lower(*shapes)
            counts = lowered.cost_analysis()
    return lowered.out_info, float((counts or {}).get("flops", 0.0))


@functools.cache
def _compiler_options() -> dict[str, str] | None:
    if jax.default_backend() != "cpu":
        return None
    try:  # options come and go between versions of jaxlib; it says so when it compiles
        jax.jit(lambda: 0, compiler_options=_CPU).lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return None
    return _CPU


def keep_compiled() -> Path | None:
    """Has jax keep compiled steps on disk, for later processes of the same versions on such a machine.

    They are code that will be run: the folder, `compiled/` in that of downloads, must be the user's own and closed to others.
    Returns it; None, and nothing is kept, where it cannot be so, or where jax has been told a folder already.
    """
    if jax.config.jax_compilation_cache_dir:
        return None
    folder = cache_dir() / "compiled" / _machine()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for each in (folder.parent, folder):
            facts = each.stat()
            if facts.st_uid != os.getuid() or stat.S_IMODE(facts.st_mode) & 0o022:
                return None
            each.chmod(0o700)
    except (OSError, AttributeError):  # no os.getuid: not a POSIX system
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTH_KEEPING)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder


def _machine() -> str:
    """Returns a name for what compiled code depends on: versions, and the instructions of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    facts = f"{platform.machine()} {platform.processor()} {flags}"
    digest = hashlib.sha256(facts.encode()).hexdigest()[:8]
    return f"jax-{jax.__version__}-jaxlib-{jaxlib.__version__}-{digest}"
