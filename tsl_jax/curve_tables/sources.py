"""Where curves by the million come from: a file, by its suffix."""

from __future__ import annotations

from pathlib import Path

from tsl_jax.curve_tables.long_tables import open_csv, open_parquet
from tsl_jax.curve_tables.matrix import open_matrix
from tsl_jax.curve_tables.shards import Source


def open_source(path: Path, x: Path | None = None) -> Source:
    """The source in a file, by its suffix.

    Raises:
        FileNotFoundError: no such file. ValueError: a file that holds no curves, with what is wrong and the mend.
    """
    path = path.absolute()  # a worker may stand in another folder
    if not path.exists():
        raise FileNotFoundError(f"fit: no file {path}; expected .npy, .csv or .parquet, or a run's folder")
    if path.suffix == ".npy":
        return open_matrix(path, x)
    if x is not None:
        raise ValueError(f"fit: --x belongs to a .npy file; {path.name} is a long table, which has a column x")
    if path.suffix == ".csv":
        return open_csv(path)
    if path.suffix == ".parquet":
        return open_parquet(path)
    raise ValueError(f"fit: cannot read {path.name}; expected .npy, .csv or .parquet, or a run's folder")
