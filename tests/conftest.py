"""Markers: `parity` needs torch and the peers, `shared` needs the real data named by TLX_SHARED."""

import atexit
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # torch's threads wait busily, and so take the other workers' time.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
elif "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # What one test or process compiled need not be compiled again by the next.
    compiled = tempfile.mkdtemp(prefix="tlx-compiled-")
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

# Most of the tests' time is XLA's, and two fifths of that its compiler's passes over the CPU's code, which change how fast tiny
# networks run and not what comes out.
OPTIMIZATION = "--xla_backend_optimization_level"
if OPTIMIZATION not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {OPTIMIZATION}=0".strip()

if "TLX_CACHE" not in os.environ:
    kept = tempfile.mkdtemp(prefix="tlx-cache-")
    atexit.register(shutil.rmtree, kept, ignore_errors=True)
    os.environ["TLX_CACHE"] = kept

HAVE_TORCH = importlib.util.find_spec("torch") is not None
SHARED = os.environ.get("TLX_SHARED", "")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("parity") and not HAVE_TORCH:
            item.add_marker(pytest.mark.skip(reason="needs the parity extra (torch)"))
        if item.get_closest_marker("shared") and not Path(SHARED or "/nonexistent").is_dir():
            item.add_marker(pytest.mark.skip(reason="needs real data: set TLX_SHARED"))


@pytest.fixture
def shared() -> Path:
    """The folder with data/ and weights/ that TLX_SHARED names."""
    return Path(SHARED)
