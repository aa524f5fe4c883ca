"""Files of curves by the million, by suffix: a `.npy` matrix, read here, or a long table (`long_table.py`).

A source is a small picklable description, never the data: the process that fits a shard opens the file itself, on this
machine or another that sees the same path. Shards follow from sizes alone, without reading the data, so that they are
the same in every call: rows of a `.npy`, row groups of a Parquet file, bytes of a CSV.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tsl_jax.curve_tables.columns import Columns
from tsl_jax.curve_tables.long_table import LongCsv, LongParquet, open_csv, open_parquet
from tsl_jax.curve_tables.shards import SHARD_BYTES, Shard, file_identity, size_in_words

SHARD_CURVES = 1 << 17  # of a matrix with short curves: their results take more room than they do


def open_source(
    path: Path,
    x: Path | str | Mapping[str, str] | None = None,
    curve: str | None = None,
    y: str | None = None,
    weight: str | None = None,
    covariates: tuple[str, ...] = ("x",),
) -> Source:
    """The source in a file, by its suffix.

    Args:
        x: for a `.npy` of curves a `.npy` with the covariate at each position, default 1 to n; for a table the name
            of the column with the covariate, default x. For several covariates a mapping of these to columns, default
            those of their names.
        curve, y, weight: names of a table's columns, default curve, y, and weight where it is there. Without a column
            for the curve all rows are one, where there are several covariates.
        covariates: what the law reads.

    Raises:
        FileNotFoundError: no such file. ValueError: a file that holds no curves, with what is wrong and how to fix it.
    """
    path = path.absolute()  # a worker may run in another folder
    if not path.exists():
        raise FileNotFoundError(f"fit: no file {path}; expected .npy, .csv or .parquet, or a run's folder")
    if path.suffix == ".npy":
        if curve or y or weight:
            named = "--curve, --y and --weight name columns of a .csv or .parquet"
            raise ValueError(f"fit: {named}; {path.name} has none, leave them out")
        if len(covariates) > 1 or isinstance(x, Mapping):
            table = "give a .csv or .parquet with a column for each of them"
            raise ValueError(f"fit: a law of {', '.join(covariates)} needs a table, found {path.name}; {table}")
        return _open_matrix(path, None if x is None else Path(x))
    if len(covariates) > 1:
        given = x if isinstance(x, Mapping) else {}
        if (x is not None and not isinstance(x, Mapping)) or not set(given) <= set(covariates):
            wanted = f"x must map some of {', '.join(covariates)}, which the law reads, to columns"
            raise ValueError(f"fit: {wanted}, found {x!r}")
        names = tuple(given.get(name, name) for name in covariates)
        columns = Columns(curve, names, y or "y", weight, covariates)
    else:
        columns = Columns(curve or "curve", ("x" if x is None else str(x),), y or "y", weight)
    if path.suffix == ".csv":
        return open_csv(path, columns)
    if path.suffix == ".parquet":
        return open_parquet(path, columns)
    raise ValueError(f"fit: cannot read {path.name}; expected .npy, .csv or .parquet, or a run's folder")


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
        return f"{self.path.name}: {curves:,} curves of {points:,} points, {self.dtype}, {size_in_words(size)}"

    def identity(self) -> dict[str, Any]:
        x = None if self.x is None else hashlib.sha256(np.asarray(self.x).tobytes()).hexdigest()[:16]
        return file_identity(self.path) | {"x": x}

    def covariate(self) -> np.ndarray:
        """x (point,)."""
        return np.arange(1.0, self.shape[1] + 1) if self.x is None else np.asarray(self.x)

    def read(self, shards: list[Shard]) -> Iterator[np.ndarray]:
        """The curves of each shard, in turn in one of two buffers: good until the one after the next is asked for.

        Copying from the system's cache into memory that is already there costs less than mapping the file, where each
        page of 4 kB has its fault, and the next shard can be read while this one is fitted.
        """
        values = _map_array(self.path)
        if not (values.dtype in (np.float32, np.float64) and values.dtype.isnative and values.flags.c_contiguous):
            for shard in shards:  # copied into a float type and an order that everything computes on
                rows = values[shard.first : shard.end]
                kind = rows.dtype if rows.dtype.kind == "f" and rows.dtype.itemsize in (4, 8) else np.dtype(float)
                kind = np.dtype(np.float32) if rows.dtype == np.float16 else kind.newbyteorder("=")
                yield np.ascontiguousarray(rows, kind)
            return
        row_bytes = values.strides[0]
        # Anonymous maps begin on page boundaries and may be of huge pages.
        buffers = [mmap.mmap(-1, max(map(len, shards)) * row_bytes) for _ in shards[:2]]
        for buffer in buffers:
            if hasattr(mmap, "MADV_HUGEPAGE"):
                with contextlib.suppress(OSError):
                    buffer.madvise(mmap.MADV_HUGEPAGE)
        with open(self.path, "rb", buffering=0) as file:
            for k, shard in enumerate(shards):
                part = memoryview(buffers[k % 2])[: len(shard) * row_bytes]
                file.seek(values.offset + shard.first * row_bytes)  # pyright: ignore[reportAttributeAccessIssue]
                unread = part
                while len(unread):
                    count = file.readinto(unread)
                    if not count:
                        raise OSError(f"fit: {self.path} became shorter while it was read")
                    unread = unread[count:]
                yield np.frombuffer(part, values.dtype).reshape(-1, self.shape[1])


Source = Matrix | LongParquet | LongCsv


def _open_matrix(path: Path, x: Path | None) -> Matrix:
    """The source in a `.npy`, and in another one its covariate, once both are known to be numbers that fit."""
    values = _map_array(path)
    found = f"{values.dtype} of shape {values.shape}"
    if values.ndim != 2 or values.dtype.kind not in "fiu":
        raise ValueError(f"fit: {path} holds {found}; expected numbers (curves, positions)")
    if 0 in values.shape:
        raise ValueError(f"fit: {path} holds no curves, its shape is {values.shape}; expected (curves, positions)")
    curves, points = values.shape
    if x is None:
        return Matrix(path, (curves, points), str(values.dtype))
    if not x.exists():
        raise FileNotFoundError(f"fit: no file {x}; expected --x to name a .npy of one number a point")
    covariate = _map_array(x)
    if covariate.shape != (points,) or covariate.dtype.kind not in "fiu":
        found = f"{covariate.dtype} of shape {covariate.shape}"
        raise ValueError(f"fit: {x} holds {found}; expected x as {points} numbers, one a point")
    if not np.isfinite(covariate).all():
        raise ValueError(f"fit: {x} holds NaN or infinity; expected a finite x at every point")
    return Matrix(path, (curves, points), str(values.dtype), tuple(map(float, covariate)))


def _map_array(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise
    except Exception as error:  # a header may say anything, and damage shows as whatever meets it raises
        if "empty" in str(error):  # an array without elements is sound, but cannot be mapped
            return np.load(path, allow_pickle=False)
        reason = "it holds Python objects" if "pickle" in str(error) else f"{error!s:.200}"
        raise ValueError(f"fit: {path} is not a .npy array of numbers ({reason})") from None
