"""The mesh of a run: the devices of all its processes in the axes (data, fsdp, tensor), see `models.sharding`.

One device is no mesh: nothing is placed, and programs are traced as if there were no such thing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tsl_jax.models.sharding import AXES, BATCH
from tsl_jax.training import hosts
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
    if hosts.count() > 1 and data * inner < devices:
        raise ValueError(f"training: {axes} of {hosts.count()} processes leaves some without work; leave out mesh.data")
    return data, config.fsdp, config.tensor


def make(config: MeshConfig) -> Mesh | None:
    """The mesh over the devices of the run's processes, or None where there is one device only.

    Raises:
        ValueError: see `shape`.
    """
    devices = jax.devices()
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
    sharding = everywhere(mesh)
    if hosts.count() == 1 or sharding is None:
        return jax.device_put(values, sharding)
    values = np.asarray(values)  # device_put would ask all processes whether they have the same
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def put(batch: np.ndarray, mesh: Mesh | None) -> jax.Array:
    """A batch, or several stacked, on its devices."""
    return put_rows(batch.shape, lambda first, after: batch[..., first:after, :], mesh)


def put_rows(shape: tuple[int, ...], make: Callable[[int, int], np.ndarray], mesh: Mesh | None) -> jax.Array:
    """The same of a batch of which each process makes the rows that its own devices need.

    Args:
        shape: of the whole, (B, T + 1) or (steps, B, T + 1). make: gives its rows first .. after - 1, of all steps.
    """
    sharding = batch_sharding(mesh, stacked=len(shape) == 3)
    if hosts.count() == 1 or sharding is None:
        return jax.device_put(make(0, shape[-2]), sharding)
    indices = [index for index in sharding.addressable_devices_indices_map(shape).values() if index is not None]
    places = {index[-2].indices(shape[-2])[:2] for index in indices}
    begin = min(first for first, _ in places)
    own = make(begin, max(after for _, after in places))

    def part(index: Any) -> np.ndarray:
        first, after, _ = index[-2].indices(shape[-2])
        return own[..., first - begin : after - begin, :]

    return jax.make_array_from_callback(shape, sharding, part)
