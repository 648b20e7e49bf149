"""The device mesh: one `data` axis over all devices; values replicated, batches split."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tlx.errors import InputError


def make_mesh() -> Mesh:
    """Returns the mesh of all devices of all processes."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
    """Each device holds its share of the rows."""
    return NamedSharding(mesh, PartitionSpec("data"))


def split_batches(mesh: Mesh) -> NamedSharding:
    """Each device holds its share of the rows of every batch, [steps, B, ...]."""
    return NamedSharding(mesh, PartitionSpec(None, "data"))


def check_batch_size(name: str, batch_size: int, mesh: Mesh, parts: int = 1) -> None:
    """Raises InputError where the global batch does not divide by the devices, or each of its parts does not."""
    shares = mesh.size * parts
    if batch_size % shares:
        each = f"in {parts} parts (train.accumulate) " if parts > 1 else ""
        raise InputError(
            f"{name} is {batch_size}, which {mesh.size} devices cannot share evenly {each}".rstrip()
            + f"; use a multiple of {shares}, as {max(batch_size // shares, 1) * shares}"
        )


def place_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, Any]:
    """Puts a global batch on the devices, each its share of the rows."""
    return jax.device_put(batch, split_batch(mesh))


def place_batches(batches: dict[str, np.ndarray], mesh: Mesh) -> dict[str, Any]:
    """Puts several global batches, [steps, B, ...], on the devices, each its share of the rows of every one."""
    return jax.device_put(batches, split_batches(mesh))
