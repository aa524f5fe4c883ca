"""One shard of a source, fitted: from a small picklable description of the task to the rows of the table.

This runs where the work is done: in this process, or on an executor's worker, which opens the file itself. A curve with
a malformed row, or one that the law cannot be fitted to, keeps its row, with no values and status `non_finite`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol, TypeVar

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


class Fitter(Protocol):
    """Fits curves that share their x; picklable if its laws are of tsl_jax.laws, or made of functions of a module."""

    @property
    def laws(self) -> tuple[Law, ...]:
        """The laws that are fitted, which read the same covariates."""
        ...

    @property
    def dtype(self) -> str | None:
        """Of the numbers."""
        ...

    def names(self) -> list[str]:
        """The columns of numbers that a curve gets, then status."""
        ...

    def __call__(self, y: np.ndarray, x: Any, weights: np.ndarray | None) -> dict[str, np.ndarray]:
        """These columns, each (curve,), of y (curve, point)."""
        ...


@dataclass(frozen=True)
class LawFitter:
    """Fits one law: its parameters, their errors, and how well it fits."""

    law: Law | str  # by name where it has one: functions need not travel
    method: str
    dtype: str | None
    coef_limits: Limits
    loss: str = "squares"
    delta: float | None = None
    starts: int | None = None

    @property
    def laws(self) -> tuple[Law, ...]:
        """The one law, with so many starts."""
        law = law_named(self.law)
        return (law if self.starts is None else replace(law, starts=self.starts),)

    def names(self) -> list[str]:
        """Parameters, errors, sse, r2, the range that was fitted, status."""
        return _value_names(*self.laws)

    def __call__(self, y: np.ndarray, x: Any, weights: np.ndarray | None) -> dict[str, np.ndarray]:
        """The columns of y (curve, point)."""
        (law,) = self.laws
        options = {"weights": weights, "method": self.method, "dtype": self.dtype}
        ends, at = fitted_range(x, weights), covariates(law, x)
        if not self.coef_limits and self.loss == "squares":
            fits = fit_rows(law, y, x=at, **options)
            return fit_values(law, fits, *errors_and_r2(fits), ends)
        # Logarithms of what is not positive are no numbers: such a curve gets the status, the others are fitted.
        positive = (y > 0) | (np.isnan(y) if weights is None else weights == 0)
        sound = np.asarray(positive.all(axis=1) | (not self.loss.startswith("log")))
        filled = np.where(sound[:, None], y, 1.0)
        limits = {"coef_limits": self.coef_limits, "loss": self.loss, "delta": self.delta}
        result = fit(law, filled, x=at, **options, **limits)
        values = fit_values(law, result, result.stderr, result.r2, ends)
        of_range = [f"{name}_{end}" for name in law.covariates for end in ENDS]
        for name in values.keys() - {"status", *of_range}:
            values[name] = np.where(sound, values[name], np.nan)
        return values | {"status": np.where(sound, values["status"], Status.NON_FINITE)}


@dataclass(frozen=True)
class ShardTask:
    """What to do with a shard; picklable if the fitter is."""

    source: Source
    fitter: Fitter

    def __call__(self, shard: Shard) -> ShardResult:
        """Fit the curves of one shard."""
        return next(self.fit_all([shard]))

    def fit_all(self, shards: list[Shard]) -> Iterator[ShardResult]:
        """Fit the curves of each shard, while the next ones are read."""
        if isinstance(self.source, Matrix):
            x = self.source.covariate()
            for shard, y in zip(shards, _read_ahead(self.source.read(shards)), strict=True):
                yield self._fit_matrix(shard, x, y)
        else:
            for shard in shards:
                yield self._fit_long(self.source, shard)

    def _fit_matrix(self, shard: Shard, x: np.ndarray, y: np.ndarray) -> ShardResult:
        """The curves y (curve, point) of a matrix, a row each."""
        names = pa.array(np.arange(shard.first, shard.end))
        left_out: Counter[str] = Counter()
        without = law_without_zero(self.fitter.laws) if np.any(x == 0) else None
        if without is not None:
            left_out[f"x is 0 (the law {without} has no value there)"] = int((x == 0).sum()) * len(y)
            y, x = y[:, x != 0], x[x != 0]
        missing = np.isnan(y)
        left_out["the value is NaN"] = int(missing.sum())
        holed = np.asarray(missing.any(axis=1))
        values = {name: np.full(len(y), np.nan) for name in self.fitter.names()}
        values["status"] = np.full(len(y), Status.TOO_FEW_POINTS, np.int8)
        # Curves without gaps need no weights, and keep their bits whatever their neighbours miss.
        for rows in (~holed, holed):
            if rows.any() and len(x):
                of_rows = slice(None) if rows.all() else rows
                weights = np.where(missing[rows], 0.0, 1.0) if holed[rows][0] else None
                for name, numbers in self.fitter(y[of_rows], x, weights).items():
                    values[name][rows] = numbers
        return ShardResult(fit_columns(names, values, self.fitter.dtype), len(y), left_out=dict(+left_out))

    def _fit_long(self, source: LongParquet | LongCsv, shard: Shard) -> ShardResult:
        tables: list[pa.Table] = []
        malformed: list[MalformedRow] = []
        renamed = _range_names(self.fitter.laws[0], source)
        left_out: Counter[str] = Counter()
        count = rows = 0
        for block in _read_ahead(curve_blocks.blocks(chunks(source, shard))):
            rows = block.row + len(block.rows)
            without = law_without_zero(self.fitter.laws) if np.any(block.rows.x == 0) else None
            fitted = block.fitted(without_zero=without is not None)
            left_out[f"{source.columns.y} is missing"] += fitted.missing
            left_out[f"{' or '.join(source.columns.x)} is 0 (the law {without} has no value there)"] += fitted.zeros
            values, refused = self._fit_block(block, fitted)
            table = fit_columns(block.names, values, self.fitter.dtype, renamed)
            tables.append(table.append_column(ROW_COLUMN, pa.array(block.starts[:-1] + block.row)))
            problems = block.rows.problems | refused
            count += len(problems)
            for row in sorted(problems)[: max(0, MAX_LISTED - len(malformed))]:
                malformed.append(MalformedRow(row + block.row, str(block.rows.curve[row].as_py()), problems[row]))
        whole = pa.concat_tables(tables) if tables else pa.table({})
        return ShardResult(whole, rows, malformed, count, dict(+left_out))

    def _fit_block(
        self, block: curve_blocks.CurveBlock, fitted: curve_blocks.FittedPoints
    ) -> tuple[dict[str, np.ndarray], dict[int, str]]:
        """Values of every curve of a block, and what the law refused, by the first row of the curve."""
        curves = len(block.starts) - 1
        values = {name: np.full(curves, np.nan) for name in self.fitter.names()}
        values["status"] = np.full(curves, Status.NON_FINITE, np.int8)
        values["status"][block.sound()] = Status.TOO_FEW_POINTS  # until they are fitted: all points may be left out
        refused: dict[int, str] = {}
        for group in curve_blocks.groups(fitted):
            try:
                of_group = self.fitter(group.y, group.x, group.weights)
            except ValueError as error:  # about this x: the law may have no value there
                refused |= {int(block.starts[k]): str(error) for k in group.curves}
                values["status"][group.curves] = Status.NON_FINITE
                continue
            for name, numbers in of_group.items():
                values[name][group.curves] = numbers
        return values, refused


def law_named(law: Law | str) -> Law:
    """The law itself, or the one of that name."""
    return laws.BY_NAME[law] if isinstance(law, str) else law


def law_without_zero(laws: tuple[Law, ...]) -> str | None:
    """The first law that has no value at x = 0, by name; points at zero are then left out for all."""
    return next((law.name for law in laws if not _has_value_at_zero(law)), None)


def _range_names(law: Law, source: LongParquet | LongCsv) -> dict[str, str]:
    """How the columns of the range are called: after the column that was the law's covariate, where it has a name."""
    pairs = zip(law.covariates, source.columns.x, strict=True)
    return {f"{name}_{end}": f"{column}_{end}" for name, column in pairs if column != "x" for end in ENDS}


def covariates(law: Law, x: np.ndarray) -> Any:
    """What the law reads at x (point,), or (point, covariate) in the order of its covariates."""
    return x if x.ndim == 1 else {name: x[:, k] for k, name in enumerate(law.covariates)}


@lru_cache(maxsize=8)
def _has_value_at_zero(law: Law) -> bool:
    """Whether the law can be fitted to points at x = 0; powers and logarithms of x cannot."""
    with jax.enable_x64(True):
        try:
            x = jnp.arange(32.0)
            prepare(law, x if len(law.covariates) == 1 else dict.fromkeys(law.covariates, x))
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
    """Least and largest x of positive weight, for all curves or for each; of each covariate, where x has several."""
    if x.ndim > 1:
        return [end for column in x.T for end in fitted_range(column, weights)]
    if weights is None:
        return [np.min(x), np.max(x)]
    used = np.asarray(weights) > 0
    ends = np.where(used, x, np.inf).min(axis=-1), np.where(used, x, -np.inf).max(axis=-1)
    return [np.where(used.any(axis=-1), end, np.nan) for end in ends]


def fit_columns(
    names: pa.Array, values: dict[str, np.ndarray], dtype: str | None, renamed: Mapping[str, str] | None = None
) -> pa.Table:
    """The table of some curves; NaN becomes null, and the status stays a number until the table is put together.

    Args:
        renamed: columns of `values` that get other names.
    """
    kind = pa.float32() if dtype == "float32" else pa.float64()
    arrays: dict[str, pa.Array] = {"curve": names}
    for name in (name for name in values if name != "status"):
        column = np.ascontiguousarray(values[name], kind.to_pandas_dtype())
        missing = np.isnan(column)
        arrays[(renamed or {}).get(name, name)] = pa.array(column, kind, mask=missing if missing.any() else None)
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
