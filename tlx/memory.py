"""What the process does with memory that is freed."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
# One heap, as those of further threads are bounded; nothing in mappings of its own, which are unmapped when freed; and the
# heap never shrinks.
_SETTINGS = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1))
# Where Linux shows accelerators: NVIDIA's, AMD's, and TPUs.
_ACCELERATORS = ("nvidia[0-9]*", "kfd", "accel[0-9]*", "vfio/[0-9]*")


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory for the next allocation; to be called before there are threads.

    A step on the CPU allocates its temporary arrays anew each time. Returned to the kernel in between, hundreds of megabytes are
    cleared again page by page: 20 % of a step of SqueezeNet's. Kept, the process stays as large as it was at its largest. Does
    nothing where the C library is another one, and where there is an accelerator to compute on.
    """
    if not sys.platform.startswith("linux") or _accelerated():
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in _SETTINGS:
            mallopt(parameter, value)


def _accelerated() -> bool:
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return False
    return any(any(Path("/dev").glob(pattern)) for pattern in _ACCELERATORS)
