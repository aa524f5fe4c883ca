"""Where curves by the million come from: a file, named by its path, and the shards that it falls into.

A source is a small picklable description, never the data: whoever fits a shard opens the file himself, on this machine
or another that sees the same path. Shards follow from sizes alone, without reading the data, so that they are the same
in every call: rows of a `.npy`, row groups of a Parquet file, bytes of a CSV.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any, Protocol

import numpy as np

SHARD_BYTES = 1 << 27  # of the source: the unit that is fitted in memory, and that a kill can cost
SHARD_CURVES = 1 << 17  # short curves: their results take more room than they do
DIGEST_BYTES = 1 << 16  # read at each end of a file to tell it from another of the same size and time


@dataclass(frozen=True)
class Shard:
    """A part of a source, from `first` to before `end`, in the source's own unit; `number` counts from 0."""

    number: int
    first: int
    end: int


class Source(Protocol):
    """What `fit_table` asks of a file of curves."""

    @property
    def path(self) -> Path: ...

    def shards(self, shard_bytes: int) -> list[Shard]:
        """The whole file, in order."""
        ...

    def describe(self) -> str:
        """Its size in one line, before any work."""
        ...

    def identity(self) -> dict[str, Any]:
        """What tells this file from a changed one."""
        ...


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


def open_source(path: Path, x: Path | None = None) -> Source:
    """The source in a file, by its suffix.

    Raises:
        FileNotFoundError: no such file. ValueError: a file that holds no curves, with what is wrong and the mend.
    """
    from tsl_jax.fitting.long_tables import open_csv, open_parquet

    path = path.absolute()  # a worker may stand in another folder
    if not path.exists():
        raise FileNotFoundError(f"fit: no file {path}; expected .npy, .csv or .parquet, or a run's folder")
    if path.suffix == ".npy":
        return _open_matrix(path, x)
    if x is not None:
        raise ValueError(f"fit: --x belongs to a .npy file; {path.name} is a long table, which has a column x")
    if path.suffix == ".csv":
        return open_csv(path)
    if path.suffix == ".parquet":
        return open_parquet(path)
    raise ValueError(f"fit: cannot read {path.name}; expected .npy, .csv or .parquet, or a run's folder")


def in_words(size: float) -> str:
    """A number of bytes, for people."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.4g} GB"


def identity(path: Path) -> dict[str, Any]:
    """Path, size, time and a digest of both ends of a file: enough to notice that it was replaced."""
    found = path.stat()
    with open(path, "rb") as file:
        digest = hashlib.sha256(file.read(DIGEST_BYTES))
        file.seek(max(0, found.st_size - DIGEST_BYTES))
        digest.update(file.read())
    return {
        "source": str(path),
        "size": found.st_size,
        "mtime_ns": found.st_mtime_ns,
        "digest": digest.hexdigest()[:16],
    }


def _open_matrix(path: Path, x: Path | None) -> Matrix:
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
