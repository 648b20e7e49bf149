import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import jax, jax.numpy as jnp
from tlx.memory import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
step = jax.jit(lambda x: jnp.sum(jnp.sort(x * 2.0, 0) @ x))
x = jnp.ones((3000, 3000))
for _ in range(2):
    step(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_is_not_cleared_anew_in_each_step():
    def faults(how):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    kept, returned = faults("keep"), faults("return")
    assert returned > 5 * 3000 * 3000 * 4 / 4096  # an array of its own in each step, in pages
    assert kept < 0.05 * returned
