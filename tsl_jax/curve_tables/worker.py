"""One shard of a source, fitted: from a small picklable description of the task to the rows of the table.

This runs where the work is done: in this process, or on an executor's worker, which opens the file itself. A curve with
a malformed row, or one that the law cannot be fitted to, keeps its row, with no values and status `non_finite`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from tsl_jax import laws
from tsl_jax.curve_tables import curve_blocks
from tsl_jax.curve_tables.long_table import LongCsv, LongParquet, chunks
from tsl_jax.curve_tables.shards import MalformedRow, Shard, ShardResult
from tsl_jax.curve_tables.sources import Matrix, Source
from tsl_jax.fitting.bounds import Limits
from tsl_jax.fitting.fit_law import errors_and_r2, fit, fit_rows
from tsl_jax.fitting.result import Fit
from tsl_jax.fitting.solver import CurveFits, prepare
from tsl_jax.fitting.status import Status
from tsl_jax.laws import Law

T = TypeVar("T")
ROW_COLUMN = "_row"  # a column of shards of long tables: the first row of each curve
ENDS = ("low", "high")  # of the range that was fitted
MAX_LISTED = 10_000  # malformed rows of a shard that are listed one by one; the others are counted


@dataclass(frozen=True)
class ShardTask:
    """What to do with a shard; picklable if the law is one of tsl_jax.laws, or made of functions of a module."""

    source: Source
    law: Law | str  # by name where it has one: functions need not travel
    method: str
    dtype: str | None
    coef_limits: Limits

    def __call__(self, shard: Shard) -> ShardResult:
        """Fit the curves of one shard."""
        return next(self.fit_all([shard]))

    def fit_all(self, shards: list[Shard]) -> Iterator[ShardResult]:
        """Fit the curves of each shard, while the next ones are read."""
        law = laws.BY_NAME[self.law] if isinstance(self.law, str) else self.law
        if isinstance(self.source, Matrix):
            x = self.source.covariate()
            for shard, y in zip(shards, _read_ahead(self.source.read(shards)), strict=True):
                names = pa.array(np.arange(shard.first, shard.end))
                values = fit_values(law, *self._fit_rows(law, y, x), fitted_range(x))
                yield ShardResult(fit_columns(law, names, values, self.dtype), len(y))
        else:
            for shard in shards:
                yield self._fit_long(law, self.source, shard)

    def _fit_long(self, law: Law, source: LongParquet | LongCsv, shard: Shard) -> ShardResult:
        tables: list[pa.Table] = []
        malformed: list[MalformedRow] = []
        x_name = None if source.columns.x == "x" else source.columns.x
        left_out: Counter[str] = Counter()
        count = rows = 0
        for block in _read_ahead(curve_blocks.blocks(chunks(source, shard))):
            rows = block.row + len(block.rows)
            at_zero = bool(np.any(block.rows.x == 0)) and not _has_value_at_zero(law)
            fitted = block.fitted(without_zero=at_zero)
            left_out[f"{source.columns.y} is missing"] += fitted.missing
            left_out[f"{source.columns.x} is 0 (the law {law.name} has no value there)"] += fitted.zeros
            values, refused = self._fit_block(law, block, fitted)
            table = fit_columns(law, block.names, values, self.dtype, x_name)
            tables.append(table.append_column(ROW_COLUMN, pa.array(block.starts[:-1] + block.row)))
            problems = block.rows.problems | refused
            count += len(problems)
            for row in sorted(problems)[: max(0, MAX_LISTED - len(malformed))]:
                malformed.append(MalformedRow(row + block.row, str(block.rows.curve[row].as_py()), problems[row]))
        whole = pa.concat_tables(tables) if tables else pa.table({})
        return ShardResult(whole, rows, malformed, count, dict(+left_out))

    def _fit_block(
        self, law: Law, block: curve_blocks.CurveBlock, fitted: curve_blocks.FittedPoints
    ) -> tuple[dict[str, np.ndarray], dict[int, str]]:
        """Values of every curve of a block, and what the law refused, by the first row of the curve."""
        curves = len(block.starts) - 1
        values = {name: np.full(curves, np.nan) for name in _value_names(law)}
        values["status"] = np.full(curves, Status.NON_FINITE, np.int8)
        values["status"][block.sound()] = Status.TOO_FEW_POINTS  # until they are fitted: all points may be left out
        refused: dict[int, str] = {}
        for group in curve_blocks.groups(fitted):
            try:
                fits = self._fit_rows(law, group.y, group.x, group.weights)
            except ValueError as error:  # about this x: the law may have no value there
                refused |= {int(block.starts[k]): str(error) for k in group.curves}
                values["status"][group.curves] = Status.NON_FINITE
                continue
            ends = fitted_range(group.x, group.weights)
            for name, of_group in fit_values(law, *fits, ends).items():
                values[name][group.curves] = of_group
        return values, refused

    def _fit_rows(
        self, law: Law, y: np.ndarray, x: np.ndarray, weights: Any = None
    ) -> tuple[CurveFits | Fit, Any, Any]:
        """The fits of y (curve, point), their standard errors and R2."""
        options = {"x": x, "weights": weights, "method": self.method, "dtype": self.dtype}
        if self.coef_limits:
            result = fit(law, y, **options, coef_limits=self.coef_limits)
            return result, result.stderr, result.r2
        fits = fit_rows(law, y, **options)
        return fits, *errors_and_r2(fits)


@lru_cache(maxsize=8)
def _has_value_at_zero(law: Law) -> bool:
    """Whether the law can be fitted to points at x = 0; powers and logarithms of x cannot."""
    with jax.enable_x64(True):
        try:
            prepare(law, jnp.arange(32.0))
        except ValueError:
            return False
    return True


def fit_values(law: Law, fits: CurveFits | Fit, stderr: Any, r2: Any, ends: Sequence[Any]) -> dict[str, np.ndarray]:
    """The columns of fits, bare or labelled, after `curve`, in the order of the table; each (curve,).

    Args:
        ends: least and largest value of each covariate that was fitted, (curve,) or one for all.
    """
    params, errors = (np.asarray(array).reshape(-1, len(law.params)).T for array in (fits.params, stderr))
    sse, r2, status = (np.asarray(array).ravel() for array in (fits.sse, r2, fits.status))
    ranges = [np.broadcast_to(np.asarray(end, float), sse.shape) for end in ends]
    return dict(zip(_value_names(law), [*params, *errors, sse, r2, *ranges, status], strict=True))


def fitted_range(x: np.ndarray, weights: np.ndarray | None = None) -> list[Any]:
    """Least and largest x of positive weight, for all curves or for each."""
    if weights is None:
        return [np.min(x), np.max(x)]
    used = np.asarray(weights) > 0
    ends = np.where(used, x, np.inf).min(axis=-1), np.where(used, x, -np.inf).max(axis=-1)
    return [np.where(used.any(axis=-1), end, np.nan) for end in ends]


def fit_columns(
    law: Law, names: pa.Array, values: dict[str, np.ndarray], dtype: str | None, x_name: str | None = None
) -> pa.Table:
    """The table of some curves; NaN becomes null, and the status stays a number until the table is put together.

    Args:
        x_name: of the column that was the law's covariate, where the range has its name.
    """
    kind = pa.float32() if dtype == "float32" else pa.float64()
    arrays: dict[str, pa.Array] = {"curve": names}
    named = {f"{law.covariates[0]}_{end}": f"{x_name}_{end}" for end in ENDS} if x_name else {}
    for name in _value_names(law)[:-1]:
        column = np.ascontiguousarray(values[name], kind.to_pandas_dtype())
        missing = np.isnan(column)
        arrays[named.get(name, name)] = pa.array(column, kind, mask=missing if missing.any() else None)
    return pa.table(arrays | {"status": pa.array(values["status"].astype(np.int8))})


def _value_names(law: Law) -> list[str]:
    ranges = (f"{name}_{end}" for name in law.covariates for end in ENDS)
    return [*law.params, *(f"{name}_stderr" for name in law.params), "sse", "r2", *ranges, "status"]


def _read_ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, the next one made in a thread while this one is used."""
    with ThreadPoolExecutor(1) as reader:
        pending = reader.submit(next, items, None)
        while (item := pending.result()) is not None:
            pending = reader.submit(next, items, None)
            yield item
