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


def check_batch_size(name: str, batch_size: int, mesh: Mesh) -> None:
    """Raises InputError where the global batch does not divide by the devices."""
    if batch_size % mesh.size:
        raise InputError(
            f"{name} is {batch_size}, which {mesh.size} devices cannot share evenly; "
            f"use a multiple of {mesh.size}, as {max(batch_size // mesh.size, 1) * mesh.size}"
        )


def place_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, Any]:
    """Puts a global batch on the devices, each its share of the rows."""
    return jax.device_put(batch, split_batch(mesh))
