"""Any number of curves through one compiled program: blocks of a fixed shape, over all devices and cores.

The last block is filled up with its last curve, and no block has a single row (another matrix path), so the result
of a curve is bit for bit the same in any batch, order and block, on any number of devices of one kind. Each worker
keeps one aligned buffer: a fresh copy of the data would cost as much as the fit.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from queue import SimpleQueue
from threading import Lock
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tsl_jax.fitting.solver import CurveFits, PreparedFit, solve_curves, solve_weighted

ROWS_GENERAL = 8  # curves that the general solvers take at once; each repeats until the slowest is done
ROWS = 256  # curves in one product of the compressed solver: 1 MB at 1,024 points stays in the cache
ROWS_WEIGHTED = 128  # with weights of their own, which take as much room again
ROWS_ELSEWHERE = 4096  # on accelerators
ENTRIES = 1024  # points beyond which rows are fewer
GROUP = 8  # products in one call, unless there are few curves
ALIGNED = 64  # bytes: XLA reads such memory where it lies


def run(prepared: PreparedFit, y: np.ndarray, weights: np.ndarray | None) -> CurveFits:
    """Fit y (curve, point), whose points may be fewer than those prepared (which then have weight zero).

    Args:
        weights: (curve, point), or None for those of `prepared`.
    """
    if weights is None or prepared.tables is None:
        return CurveFits(*_run(prepared, y, weights))
    *numbers, sure = _run(prepared, y, weights)
    unsure = np.flatnonzero(~sure)
    if len(unsure):  # what the tables do not settle
        general = CurveFits(*_run(replace(prepared, tables=None), y[unsure], weights[unsure]))
        for whole, part in zip(numbers, general, strict=True):
            whole[unsure] = part
    return CurveFits(*numbers)


def _run(prepared: PreparedFit, y: np.ndarray, weights: np.ndarray | None) -> list[np.ndarray]:
    """The arrays of `CurveFits`; where curves with weights of their own go through tables, also which are sure."""
    devices = jax.local_devices()
    platform = devices[0].platform
    # Curves in a product depend on what is prepared alone, so that results do not depend on the batch.
    if prepared.tables is None:
        rows = ROWS_GENERAL
    else:
        most = ROWS_ELSEWHERE if platform != "cpu" else ROWS if weights is None else ROWS_WEIGHTED
        rows = max(8, most * ENTRIES // max(len(prepared.weights), ENTRIES))
    # Levenberg-Marquardt takes milliseconds a curve and many seconds to compile: one program serves any number.
    group = 1 if len(y) <= GROUP * rows // 2 or prepared.solver == "lm" else GROUP
    size = group * rows
    starts = range(0, len(y), size)
    workers = min(_most_workers(), len(starts))
    idle: SimpleQueue[_Worker] = SimpleQueue()
    for k in range(workers):
        idle.put(_Worker(prepared, (group, rows), weights is not None, devices[k % len(devices)]))
    out: list[np.ndarray] = []
    allocating = Lock()
    x64 = jnp.asarray(0.0).dtype == np.float64

    def solve_block(start: int) -> None:
        worker = idle.get()
        try:
            with jax.enable_x64(x64):  # jax's precision mode belongs to a thread
                block = worker.solve(
                    y[start : start + size], None if weights is None else weights[start : start + size]
                )
        finally:
            idle.put(worker)
        with allocating:
            if not out:
                out.extend(np.empty((len(y), *part.shape[1:]), part.dtype) for part in block)
        stop = min(start + size, len(y))
        for whole, part in zip(out, block, strict=True):
            whole[start:stop] = part[: stop - start]

    rest = starts
    log_bounds = prepared.log_bounds
    program = (jax.tree.structure(prepared), group, rows, len(prepared.weights), str(log_bounds.dtype), weights is None)
    if workers == 1 or program not in _compiled:
        solve_block(starts[0])  # alone, so that it is compiled once
        _compiled.add(program)
        rest = starts[1:]
    if workers == 1:
        for start in rest:
            solve_block(start)
    else:
        list(_pool().map(solve_block, rest))
    return out


_compiled: set[Any] = set()  # programs that are: nothing breaks if this is wrong


@lru_cache(maxsize=1)
def _most_workers() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # One more than can work: while it copies data in, the others compute.
    return max(jax.local_device_count(), cores) + (cores > 1)


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_most_workers(), thread_name_prefix="tsl_jax")


class _Worker:
    """A buffer of a fixed shape, and the device that reads it."""

    def __init__(self, prepared: PreparedFit, shape: tuple[int, int], own: bool, device: Any):
        points = len(prepared.weights)
        self.device = device
        self.prepared = prepared if device == jax.local_devices()[0] else jax.device_put(prepared, device)
        dtype = np.asarray(prepared.log_bounds).dtype
        self.shape = (*shape, points)
        self.y = _aligned((shape[0] * shape[1], points), dtype)
        self.own = _aligned(self.y.shape, dtype) if own else None

    def solve(self, y: np.ndarray, weights: np.ndarray | None) -> list[np.ndarray]:
        block = y
        # XLA can read rows where they lie if they are laid out as its buffer is, as in most memory-mapped files.
        alike = y.shape == self.y.shape and y.dtype == self.y.dtype and y.flags.c_contiguous
        if not (alike and y.ctypes.data % ALIGNED == 0):
            _fill(self.y, y)
            block = self.y
        arguments = [self.prepared, jax.device_put(block.reshape(self.shape), self.device)]
        if weights is not None and self.own is not None:
            _fill(self.own, weights)
            arguments.append(jax.device_put(self.own.reshape(self.shape), self.device))
        fits = _program(self.device.platform)(*arguments)
        return [np.asarray(a).reshape(len(self.y), *a.shape[2:]) for a in fits]


def _fill(buffer: Any, values: np.ndarray) -> None:
    """Copy the rows in; those that are missing are the last one again, points that are missing zero."""
    n = values.shape[1]
    with np.errstate(over="ignore"):  # beyond float32 is infinite: the curve gets a status, not a warning
        np.copyto(buffer[: len(values), :n], values, casting="unsafe")
    buffer[len(values) :, :n] = values[-1]


def _aligned(shape: tuple[int, int], dtype: Any) -> np.ndarray:
    """Zeros whose first byte lies at a multiple of ALIGNED."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + ALIGNED, np.uint8)
    start = -raw.ctypes.data % ALIGNED
    return raw[start : start + size].view(dtype).reshape(shape)


def _solve_group(prepared: PreparedFit, y: jax.Array, weights: jax.Array | None = None) -> tuple[jax.Array, ...]:
    """Every product of a group in turn: y (product, curve, point)."""
    if weights is None:
        return jax.lax.map(lambda rows: solve_curves(prepared, rows), y)
    if prepared.tables is None:
        return jax.lax.map(lambda pair: solve_curves(prepared, *pair), (y, weights))
    fits, sure = jax.lax.map(lambda pair: solve_weighted(prepared, *pair), (y, weights))
    return *fits, sure


@lru_cache
def _program(platform: str) -> Any:
    """`_solve_group`, compiled for one core on CPU: workers share the cores, and operations this small would wait."""
    alone = {"xla_cpu_multi_thread_eigen": False} if platform == "cpu" else None
    return jax.jit(_solve_group, compiler_options=alone)
