"""Curves from files, fitted, one row a curve.

Input: `.npy` of (curves, positions), or a long table `curve,x,y[,weight]` as `.csv` or `.parquet`. Curves of a long
table that share their x are fitted together; the others on their own. Output: Parquet (or `.csv`) with `curve`, the
parameters in published order, `<param>_stderr` for each, `sse`, `r2` and `status` by its short name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from tsl_jax.fitting.fit import fit
from tsl_jax.fitting.result import Fit
from tsl_jax.fitting.status import Status
from tsl_jax.laws import Law

COLUMNS = ("curve", "x", "y")


def rows(result: Fit) -> pd.DataFrame:
    """One row a curve of a fit; `curve` is the coordinate of its dimension, or its labels joined by "/"."""
    flat = result.status.values.ravel()
    table: dict[str, Any] = {"curve": _labels(result.status)}
    for suffix, values in (("", result.params), ("_stderr", result.stderr)):
        for k, name in enumerate(result.law.params):
            table[f"{name}{suffix}"] = values.values.reshape(-1, len(result.law.params))[:, k]
    table |= {"sse": result.sse.values.ravel(), "r2": result.r2.values.ravel()}
    return pd.DataFrame(table | {"status": [Status(value).short for value in flat]})


def fit_file(law: Law, path: Path, *, method: str = "auto", dtype: str | None = None) -> pd.DataFrame:
    """Fit every curve of a file; `rows` of the result, in the order of the file.

    Raises:
        FileNotFoundError: no such file. ValueError: a file that holds no curves, with the place of what is wrong.
    """
    if len(law.covariates) > 1:
        raise ValueError(f"fit: {law.name} reads several covariates {law.covariates}; use tsl_jax.fit from Python")
    if not path.exists():
        raise FileNotFoundError(f"fit: no file {path}; expected .npy, .csv or .parquet, or a run's folder")
    if path.suffix == ".npy":
        return rows(fit(law, *_matrix(path), method=method, dtype=dtype))
    if path.suffix in (".csv", ".parquet"):
        return _fit_long(law, _long(path), method, dtype)
    raise ValueError(f"fit: cannot read {path.name}; expected .npy, .csv or .parquet, or a run's folder")


def write(table: pd.DataFrame, path: Path, metadata: dict[str, str]) -> None:
    """Write the rows as `.parquet`, or `.csv`, whole or not at all; Parquet carries the metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    if path.suffix == ".csv":
        table.to_csv(temporary, index=False)
    else:
        import pyarrow
        import pyarrow.parquet

        arrow = pyarrow.Table.from_pandas(table, preserve_index=False)
        arrow = arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), **metadata})
        pyarrow.parquet.write_table(arrow, temporary)
    temporary.replace(path)


def check_output(path: Path) -> None:
    """Say no to a file that could not be written, before any long work."""
    if path.suffix not in (".parquet", ".csv"):
        raise ValueError(f"fit: --out must end in .parquet or .csv, found {path}")


def _labels(status: xr.DataArray) -> list[Any]:
    if status.ndim == 0:
        return [0]
    stacked = status.stack(_curve=status.dims)["_curve"].values
    if status.ndim == 1:
        (dim,) = status.dims
        return status[dim].values.tolist() if dim in status.coords else list(range(status.size))
    return ["/".join(str(part) for part in label) for label in stacked]


def _matrix(path: Path) -> tuple[xr.DataArray, str]:
    """Curves (curve, position), positions from 1."""
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"fit: {path} is not a .npy array of numbers ({error})") from None
    if values.ndim != 2 or values.dtype.kind not in "fiu":
        raise ValueError(
            f"fit: {path} holds {values.dtype} of shape {values.shape}; expected numbers (curves, positions)"
        )
    return xr.DataArray(values, {"x": np.arange(1, values.shape[1] + 1)}, ("curve", "x")), "x"


def _long(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    except (ValueError, OSError) as error:  # pandas' and pyarrow's own errors are both
        raise ValueError(f"fit: {path} cannot be read as a table ({error})") from None
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise ValueError(f"fit: {path} lacks the columns {missing}; it has {list(table)}, expected curve,x,y[,weight]")
    for name in [c for c in ("x", "y", "weight") if c in table]:
        numbers = np.asarray(pd.to_numeric(table[name], errors="coerce"), float)
        broken = np.flatnonzero(np.isnan(numbers) & ~np.asarray(pd.isna(table[name])))
        if len(broken):
            where = f"row {broken[0] + 1} (curve {table.curve.iloc[broken[0]]})"
            raise ValueError(f"fit: {path}, {where}: {name} is {table[name].iloc[broken[0]]!r}, not a number")
        table[name] = numbers
    if not len(table):
        raise ValueError(f"fit: {path} holds no rows")
    return table


def _fit_long(law: Law, table: pd.DataFrame, method: str, dtype: str | None) -> pd.DataFrame:
    """Fit the curves of a long table, those with the same x together."""
    groups: dict[bytes, list[Any]] = {}
    curves = dict(iter(table.groupby("curve", sort=False)))
    for name, part in curves.items():
        groups.setdefault(np.asarray(part.x, float).tobytes(), []).append(name)
    parts = []
    for names in groups.values():
        x = np.asarray(curves[names[0]].x, float)
        y = np.stack([np.asarray(curves[name].y, float) for name in names])
        w = np.stack([np.asarray(curves[name].weight, float) for name in names]) if "weight" in table else None
        labelled = xr.DataArray(y, {"curve": names, "x": x}, ("curve", "x"))
        parts.append(rows(fit(law, labelled, over="x", weights=w, method=method, dtype=dtype)))
    order = {name: k for k, name in enumerate(curves)}
    return pd.concat(parts).sort_values("curve", key=lambda c: c.map(order)).reset_index(drop=True)
