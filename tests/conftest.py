"""Markers: `parity` needs torch and the peers, `shared` needs the real data named by TLX_SHARED."""

import importlib.util
import os
from pathlib import Path

import pytest

if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # torch's threads wait busily, and so take the other workers' time
    os.environ.setdefault("OMP_NUM_THREADS", "1")

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
