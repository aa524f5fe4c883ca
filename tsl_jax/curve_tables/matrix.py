"""Curves in the rows of a `.npy` file, read into memory that is there already, the next shard while one is fitted."""

from __future__ import annotations

import contextlib
import hashlib
import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any

import numpy as np

from tsl_jax.curve_tables.shards import SHARD_BYTES, SHARD_CURVES, Shard, identity, in_words


@dataclass(frozen=True)
class Matrix:
    """Curves (curve, position) of a `.npy` file; `x` is the covariate, 1 to n unless read from a file of its own."""

    path: Path
    shape: tuple[int, int]
    dtype: str
    x: tuple[float, ...] | None = None

    def shards(self, shard_bytes: int = SHARD_BYTES) -> list[Shard]:
        """Equal numbers of rows, a power of two, so that every shard but the last has one shape."""
        curves, points = self.shape
        rows = max(1, min(SHARD_CURVES, shard_bytes // (points * np.dtype(self.dtype).itemsize)))
        rows = 1 << (rows.bit_length() - 1)
        return [Shard(k, first, min(first + rows, curves)) for k, first in enumerate(range(0, curves, rows))]

    def describe(self) -> str:
        curves, points = self.shape
        size = curves * points * np.dtype(self.dtype).itemsize
        return f"{self.path.name}: {curves:,} curves of {points:,} points, {self.dtype}, {in_words(size)}"

    def identity(self) -> dict[str, Any]:
        x = None if self.x is None else hashlib.sha256(np.asarray(self.x).tobytes()).hexdigest()[:16]
        return identity(self.path) | {"x": x}

    def covariate(self) -> np.ndarray:
        """x (point,)."""
        return np.arange(1.0, self.shape[1] + 1) if self.x is None else np.asarray(self.x)

    def read(self, shards: list[Shard]) -> Iterator[np.ndarray]:
        """The curves of each shard, in turn in one of two buffers: good until the one after the next is asked for.

        Copying from the system's cache into memory that is already there costs less than mapping the file, where each
        page of 4 kB has its fault, and the next shard can be read while this one is fitted.
        """
        values = _mapped(self.path)
        if not (values.dtype in (np.float32, np.float64) and values.dtype.isnative and values.flags.c_contiguous):
            for shard in shards:
                yield _computable(values[shard.first : shard.end])
            return
        row = values.strides[0]
        buffers = [_buffer(max((_.end - _.first for _ in shards), default=0) * row) for _ in shards[:2]]
        with open(self.path, "rb", buffering=0) as file:
            for k, shard in enumerate(shards):
                part = memoryview(buffers[k % 2])[: (shard.end - shard.first) * row]
                file.seek(values.offset + shard.first * row)  # pyright: ignore[reportAttributeAccessIssue]
                _fill(file, part)
                yield np.frombuffer(part, values.dtype).reshape(-1, self.shape[1])


def open_matrix(path: Path, x: Path | None) -> Matrix:
    """The source in a `.npy`, and in another one its covariate.

    Raises:
        FileNotFoundError: no file of x. ValueError: no numbers (curves, positions), or an x that does not fit them.
    """
    values = _mapped(path)
    if values.ndim != 2 or values.dtype.kind not in "fiu":
        raise ValueError(
            f"fit: {path} holds {values.dtype} of shape {values.shape}; expected numbers (curves, positions)"
        )
    if 0 in values.shape:
        raise ValueError(f"fit: {path} holds no curves, its shape is {values.shape}; expected (curves, positions)")
    curves, points = values.shape
    return Matrix(path, (curves, points), str(values.dtype), None if x is None else _read_x(x, points))


def _computable(values: np.ndarray) -> np.ndarray:
    """A copy in a float type and an order that everything computes on."""
    kind = values.dtype if values.dtype.kind == "f" and values.dtype.itemsize in (4, 8) else np.dtype(float)
    return np.ascontiguousarray(values, np.float32 if values.dtype == np.float16 else kind.newbyteorder("="))


def _buffer(size: int) -> mmap.mmap:
    """Memory on page boundaries, in huge pages where there are any."""
    buffer = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            buffer.madvise(mmap.MADV_HUGEPAGE)
    return buffer


def _fill(file: RawIOBase, part: memoryview) -> None:
    while len(part):
        count = file.readinto(part)
        if not count:
            raise OSError(f"fit: {file.name} became shorter while it was read")  # pyright: ignore[reportAttributeAccessIssue]
        part = part[count:]


def _read_x(path: Path, points: int) -> tuple[float, ...]:
    if not path.exists():
        raise FileNotFoundError(f"fit: no file {path}; expected --x to name a .npy of one number a point")
    values = _mapped(path)
    if values.shape != (points,) or values.dtype.kind not in "fiu":
        raise ValueError(
            f"fit: {path} holds {values.dtype} of shape {values.shape}; expected x as {points} numbers, one a point"
        )
    found = tuple(float(value) for value in values)
    if not all(map(math.isfinite, found)):
        raise ValueError(f"fit: {path} holds NaN or infinity; expected a finite x at every point")
    return found


def _mapped(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        if "empty" in str(error):  # an array without elements is sound, but cannot be mapped
            return np.load(path, allow_pickle=False)
        raise ValueError(f"fit: {path} is not a .npy array of numbers ({error})") from None
