"""Many kept runs in one Parquet file, a row a run: for a repository, or for others to read with any tool.

    run, manifest, header           its name; how it was made, and its splits and attributes, both as JSON
    tokens, step, lr                (checkpoint,)
    loss_sum, count, loss_additive  (split, checkpoint, position): losses keep every bit, loss = loss_sum / count, the
                                    additive estimate seven digits
    cluster_sum, cluster_count      (split, kept checkpoint, cluster, position), sums to five digits: for errors, and
                                    losses on parts of the documents to 1e-4 nats

Arrays are flattened, in C order. Floats are split by byte before they are compressed: exponents and the first bits of
neighbouring losses hardly differ, so that a loss takes four bytes of the file and not eight.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from tsl_jax.atomic_write import write_atomically
from tsl_jax.surface import DIMENSIONS, validate_surface, with_losses

TEXT, AXES = ("run", "manifest", "header"), ("tokens", "step", "lr")
LOSSES, CLUSTERS = ("loss_sum", "count", "loss_additive"), ("cluster_sum", "cluster_count")
BY_CLUSTER = ("split", "tokens", "cluster", "position")
CLUSTER_BITS, ADDITIVE_BITS = 16, 24  # of a sum by cluster, and of the additive estimate: bytes of zeros take no room


def write_archive(
    file: Path,
    runs: Mapping[str, tuple[xr.Dataset, Mapping[str, Any]]],
    clusters: slice | None = slice(None),
    additive: bool = True,
) -> None:
    """Write runs, name -> (surface of a run, manifest), to one file, whole or not at all.

    Args:
        clusters: the last checkpoints whose sums by cluster are kept, which errors and covariances need; None: of none.
        additive: whether the additive estimate is kept.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = []
    for name, (surface, manifest) in runs.items():
        header = {"split": surface.split.values.tolist(), "position": surface.sizes["position"]}
        header["attrs"] = {key: value for key, value in surface.attrs.items() if key != "header"}
        row = {"run": name, "manifest": json.dumps(manifest)} | {axis: surface[axis].values for axis in AXES}
        for variable in LOSSES if additive else LOSSES[:2]:
            values = surface[variable].transpose(*DIMENSIONS).values.ravel()
            row[variable] = _to_bits(values, ADDITIVE_BITS) if variable == "loss_additive" else values
        if clusters is not None:
            header["cluster"], last = surface.sizes["cluster"], surface.isel(tokens=clusters)
            sums, counts = (last[variable].transpose(*BY_CLUSTER).values.ravel() for variable in CLUSTERS)
            row |= {"cluster_sum": _to_bits(sums, CLUSTER_BITS), "cluster_count": counts}
        rows.append(row | {"header": json.dumps(header)})
    number = {"tokens": pa.int64(), "step": pa.int64(), "cluster_sum": pa.float32()}
    types = dict.fromkeys(TEXT, pa.string())
    types |= {name: pa.list_(number.get(name, pa.float64())) for name in (*AXES, *LOSSES, *CLUSTERS)}
    table = pa.table({name: pa.array([row.get(name) for row in rows], kind) for name, kind in types.items()})
    by_byte = {f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in ("lr", *LOSSES, *CLUSTERS)}
    options = {"compression": "zstd", "compression_level": 19, "use_dictionary": False, "write_statistics": False}
    write_atomically(file, lambda handle: pq.write_table(table, handle, column_encoding=by_byte, **options))


def _to_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """Values rounded to so many binary digits."""
    part, power = np.frexp(values)
    return np.ldexp(np.round(part * 2.0**bits) / 2.0**bits, power)


def read_manifests(file: Path) -> dict[str, dict[str, Any]]:
    """Name -> how the run was made; no loss is read."""
    table = _read(file, ["run", "manifest"])
    return {run: json.loads(text) for run, text in zip(*table.to_pydict().values(), strict=True)}


def read_archive(file: Path, names: Iterable[str] | None = None) -> dict[str, xr.Dataset]:
    """Name -> surface of the runs of an archive, or of some; cluster sums are NaN where they were not kept.

    Raises:
        ValueError: for a file that is no archive, or damaged; for a name that it does not have.
    """
    table, surfaces = _read(file, [*TEXT, *AXES, *LOSSES, *CLUSTERS]), {}
    rows = {name: k for k, name in enumerate(table["run"].to_pylist())}
    for name in rows if names is None else names:
        if name not in rows:
            raise ValueError(f"archive: {file} has no run {name!r}; it has {', '.join(list(rows)[:8])}, ...")
        values = {column: table[column][rows[name]] for column in (*AXES, *LOSSES, *CLUSTERS)}
        arrays = {column: value.values.to_numpy() for column, value in values.items() if value.is_valid}
        surfaces[name] = _surface(json.loads(table["header"][rows[name]].as_py()), arrays)
    return surfaces


def _read(file: Path, columns: list[str]) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(file, columns=columns).select(columns)
    except (pa.ArrowInvalid, KeyError) as error:
        problem = f"archive: {file} is no archive of runs, or damaged ({error})"
        raise ValueError(f"{problem}; restore it from a copy. tsl.read_table reads other tables of losses") from None


def _surface(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> xr.Dataset:
    shape = (len(header["split"]), len(arrays["tokens"]), header["position"])
    variables: dict[str, Any] = {name: (DIMENSIONS, arrays[name].reshape(shape)) for name in LOSSES if name in arrays}
    for name in CLUSTERS if "cluster" in header else ():
        sums = arrays[name].astype(float).reshape(shape[0], -1, header["cluster"], shape[2])
        missing = ((0, 0), (shape[1] - sums.shape[1], 0), (0, 0), (0, 0))
        variables[name] = BY_CLUSTER, np.pad(sums, missing, constant_values=np.nan)
    coordinates = {"split": header["split"], "tokens": arrays["tokens"], "position": np.arange(1, shape[2] + 1)}
    coordinates |= {name: ("tokens", arrays[name]) for name in AXES[1:]}
    return validate_surface(with_losses(xr.Dataset(variables, coordinates, header["attrs"])))
