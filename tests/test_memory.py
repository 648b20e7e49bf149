import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import resource, sys
import jax, jax.numpy as jnp
from tlx.memory import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
# The doubled array is read by two products, so that it is stored.
step = jax.jit(lambda x: jnp.sum((x * 2.0) @ x[:, :4]) + jnp.sum((x * 2.0).T @ x[:, :4]))
x = jnp.ones((3000, 3000))
for _ in range(40):  # until the heap has grown to what it needs
    step(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
@pytest.mark.skipif(
    HUGE.is_file() and "[always]" in HUGE.read_text(), reason="pages are huge, and few"
)
def test_freed_memory_is_not_cleared_anew_in_each_step():
    def faults(how):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, how],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        return int(done.stdout)

    kept, returned = faults("keep"), faults("return")
    assert returned > 20 * 3000 * 3000 * 4 / 4096  # an array of its own in each step, in pages
    assert kept < 0.1 * returned
