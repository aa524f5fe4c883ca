"""Several laws on every curve of a file: one row a curve and law, by `diagnostics.compare_laws`, and what they say.

Shards keep one row a curve, whose columns are called LAW.NAME, so that they are continued, checked and put together as
those of one law are; `_spread` makes a row a curve and law of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from tsl_jax import laws as named_laws
from tsl_jax.curve_tables.job import (
    Progress,
    TableSummary,
    check_files,
    check_output,
    check_request,
    make_table,
)
from tsl_jax.curve_tables.sources import open_source
from tsl_jax.curve_tables.worker import ENDS, ShardTask, covariates, fit_values, fitted_range, law_named
from tsl_jax.diagnostics import compare_laws
from tsl_jax.diagnostics.law_comparison import BLOCKS
from tsl_jax.fitting.status import USABLE
from tsl_jax.laws import Law

SHARD_BYTES = 1 << 22  # of the source: each of its curves is fitted dozens of times, so progress is seen in between
CRITERIA = ("sse", "r2", "relative_error", "aic", "bic", "weight", "held_out")
READ = ("curve", "law", "status", "sse", "relative_error", "aic", "bic", "weight", "held_out")
FITS_PER_LAW = BLOCKS - 1  # one of all points, and one for each block but the first and the last


@dataclass(frozen=True)
class LawComparer:
    """Compares laws on curves that share their x."""

    members: tuple[Law | str, ...]
    dtype: str | None = None

    @property
    def laws(self) -> tuple[Law, ...]:
        """The laws."""
        return tuple(map(law_named, self.members))

    def names(self) -> list[str]:
        """LAW.NAME for each law, the range that was fitted, and the best status."""
        own = [f"{law.name}.{name}" for law in self.laws for name in (*_param_names(law), *CRITERIA, "status")]
        return [*own, *self._range_names(), "status"]

    def _range_names(self) -> list[str]:
        return [f"{name}_{end}" for name in self.laws[0].covariates for end in ENDS]

    def __call__(self, y: np.ndarray, x: Any, weights: np.ndarray | None) -> dict[str, np.ndarray]:
        """The columns of y (curve, point)."""
        if weights is not None:  # a lattice may go on where no curve has a point
            seen = (weights > 0).any(axis=0)
            y, x, weights = y[:, seen], x[seen], weights[:, seen]
        comparison = compare_laws(y, self.laws, x=covariates(self.laws[0], x), weights=weights)
        rows, count = comparison.per_curve(), len(self.laws)
        ends = fitted_range(x, weights)
        columns: dict[str, np.ndarray] = {}
        for k, (name, fit) in enumerate(comparison.fits.items()):
            of_fit = fit_values(fit.law, fit, fit.stderr, fit.r2, ends)
            of_comparison = {key: rows[key].to_numpy()[k::count] for key in CRITERIA if key not in of_fit}
            of_fit = {key: of_fit[key] for key in (*_param_names(fit.law), "sse", "r2", "status")}
            columns |= {f"{name}.{key}": values for key, values in (of_fit | of_comparison).items()}
        statuses = np.stack([columns[f"{name}.status"] for name in comparison.fits])
        columns |= {name: np.broadcast_to(end, len(y)) for name, end in zip(self._range_names(), ends, strict=True)}
        return columns | {"status": statuses.min(axis=0)}


def compare_table(
    laws: Sequence[Law],
    source: Path | str,
    out: Path | str,
    *,
    x: Path | str | Mapping[str, str] | None = None,
    curve: str | None = None,
    y: str | None = None,
    weight: str | None = None,
    strict: bool = False,
    executor: Executor | None = None,
    progress: Progress | None = None,
    metadata: Mapping[str, str] | None = None,
    version: str = "",
    shard_bytes: int = SHARD_BYTES,
) -> TableSummary:
    """Compare laws on every curve of a file by `tsl.compare_laws`, and write one row a curve and law.

    Columns: curve; law; the parameters of all laws with their standard errors, null where they are another law's; sse,
    r2, relative_error, aic, bic, weight and held_out as in `LawComparison.per_curve`; the range of x; status. A killed
    call is continued, and malformed rows are treated, as `fit_table` has it; the summary counts the best status of each
    curve.

    Args:
        laws: two or more, over the same covariates. The other arguments are those of `fit_table`.

    Raises:
        ValueError: for fewer than two laws, those that read different covariates, and as `fit_table`.
    """
    out = Path(out).absolute()
    check_output(out)
    for law in laws:
        check_request(law, "auto", None, None, shard_bytes)
    names = [law.name for law in laws]
    if len(laws) < 2 or len(set(names)) < len(names):
        raise ValueError(f"fit: a comparison needs two or more laws of different names, found {', '.join(names)}")
    if len({law.covariates if len(law.covariates) > 1 else () for law in laws}) > 1:
        read = "; ".join(f"{law.name} reads {', '.join(law.covariates)}" for law in laws)
        raise ValueError(f"fit: laws that are compared must read the same covariates, found {read}")
    opened = open_source(Path(source), x, curve, y, weight, laws[0].covariates)
    for law in laws:
        check_files(law, opened, out, x)
    members = tuple(law.name if named_laws.BY_NAME.get(law.name) is law else law for law in laws)
    request = {"laws": names, "formulas": [law.formula for law in laws], "blocks": BLOCKS, "version": version}
    comparer = LawComparer(members)
    return make_table(
        ShardTask(opened, comparer),
        request,
        out,
        strict=strict,
        executor=executor,
        progress=progress,
        metadata=metadata,
        shard_bytes=shard_bytes,
        spread=lambda table: _spread(comparer.laws, table),
    )


def read_comparison(path: Path, laws: Sequence[Law]) -> pd.DataFrame:
    """The rows of such a table as `LawComparison.per_curve` has them, about 100 bytes each."""
    if path.suffix == ".csv":
        rows = pd.read_csv(path, usecols=list(READ), dtype={"curve": str, "law": "category", "status": "category"})
    else:
        rows = pyarrow.parquet.read_table(path, columns=list(READ)).to_pandas()
    usable = rows["status"].isin([status.short for status in USABLE])
    parameters = {law.name: len(law.raw_params) for law in laws}
    counted = [parameters[name] for name in rows["law"]]
    curve = np.arange(len(rows)) // len(laws)  # the laws of a curve stand together; names may be of any kind
    return rows.assign(curve=curve, usable=usable, parameters=counted, law=rows["law"].astype(str))


def _param_names(law: Law) -> list[str]:
    return [*law.params, *(f"{name}_stderr" for name in law.params)]


def _spread(laws: Sequence[Law], table: pa.Table) -> pa.Table:
    """A row a curve and law of a table with a row a curve."""
    curves, count = len(table), len(laws)
    whole = table["status"].to_numpy()

    def stacked(name: str) -> np.ndarray:
        """Column LAW.name of each law (curve, law), NaN where a law has none."""
        columns = [f"{law.name}.{name}" for law in laws]
        missing = np.full(curves, np.nan)
        return np.stack(
            [table[column].to_numpy().astype(float) if column in table.column_names else missing for column in columns],
            axis=1,
        )

    place = pa.array(np.repeat(np.arange(curves), count))
    arrays: dict[str, Any] = {"curve": table["curve"].combine_chunks().take(place)}
    arrays["law"] = pa.array(np.tile([law.name for law in laws], curves), pa.string())
    for name in (*dict.fromkeys(name for law in laws for name in _param_names(law)), *CRITERIA):
        values = stacked(name).ravel()
        arrays[name] = pa.array(values, pa.float64(), mask=np.isnan(values))
    ends = table.column_names[-1 - 2 * len(laws[0].covariates) : -1]  # under the names of the columns that x is
    arrays |= {name: table[name].combine_chunks().take(place) for name in ends}
    status = stacked("status")
    status = np.where(np.isnan(status), whole[:, None], status).astype(np.int8)
    return pa.table(arrays | {"status": pa.array(status.ravel())})
