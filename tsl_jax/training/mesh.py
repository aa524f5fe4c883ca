"""The mesh of a run: the local devices in the axes (data, fsdp, tensor), see `models.sharding` for what lies where.

One device is no mesh: nothing is placed, and programs are traced as if there were no such thing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tsl_jax.models.sharding import AXES, BATCH
from tsl_jax.training.config import MeshConfig


def shape(config: MeshConfig, devices: int) -> tuple[int, int, int]:
    """Devices along (data, fsdp, tensor).

    Raises:
        ValueError: for more devices than there are, or for some that would have no work.
    """
    inner = config.fsdp * config.tensor
    data = config.data or max(1, devices // inner)
    axes = f"mesh data {config.data}, fsdp {config.fsdp}, tensor {config.tensor} on {devices} devices"
    if data * inner > devices:
        raise ValueError(f"training: {axes} needs {data * inner}; lower one of them, or give it more devices")
    if not config.data and devices % inner:
        raise ValueError(f"training: {axes} leaves some without work; let fsdp x tensor divide them, or give data")
    return data, config.fsdp, config.tensor


def make(config: MeshConfig) -> Mesh | None:
    """The mesh over the devices of this process, or None where it has one device only.

    Raises:
        ValueError: see `shape`.
    """
    devices = jax.local_devices()
    sizes = shape(config, len(devices))
    n = sizes[0] * sizes[1] * sizes[2]
    if n == 1:
        return None
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices[:n])


@contextmanager
def traced_on(mesh: Mesh | None) -> Iterator[None]:
    """Programs that are traced inside are for this mesh."""
    if mesh is None:
        yield
    else:
        with jax.set_mesh(mesh):
            yield


def batch_sharding(mesh: Mesh | None, *, stacked: bool = False) -> NamedSharding | None:
    """Where batches (B, T + 1) lie, or, stacked, (steps, B, T + 1): sequences are split over data and fsdp."""
    if mesh is None:
        return None
    return NamedSharding(mesh, PartitionSpec(None, BATCH) if stacked else PartitionSpec(BATCH))


def everywhere(mesh: Mesh | None) -> NamedSharding | None:
    """Where small arrays lie that every device has: the weights of positions."""
    return None if mesh is None else NamedSharding(mesh, PartitionSpec())


def put_everywhere(values: Any, mesh: Mesh | None) -> jax.Array:
    """A small array on every device."""
    return jax.device_put(values, everywhere(mesh))


def put(batch: Any, mesh: Mesh | None) -> jax.Array:
    """A batch, or several stacked, on its devices."""
    # With several hosts each would make its own rows only: jax.make_array_from_process_local_data goes here.
    return jax.device_put(batch, batch_sharding(mesh, stacked=batch.ndim == 3))
