"""One shard of a source, fitted: from a small picklable description of the work to the rows of the table.

This is what runs where the work is: in this process, or on an executor's worker, which opens the file itself. A curve
with a malformed row, or one that the law cannot be fitted to, keeps its row, with no values and status `non_finite`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from tsl_jax import laws
from tsl_jax.curve_tables import long_tables, ragged
from tsl_jax.curve_tables.matrix import Matrix
from tsl_jax.curve_tables.shards import Shard, Source
from tsl_jax.fitting.fit_law import errors_and_r2, fit_rows
from tsl_jax.fitting.result import Fit
from tsl_jax.fitting.solver import CurveFits
from tsl_jax.fitting.status import Status
from tsl_jax.laws import Law

T = TypeVar("T")
PLACE = "_row"  # a column of shards of long tables: the first row of each curve
PLACES_KEPT = 10_000  # malformed rows of a shard that are told one by one; the others are counted


class Malformed(NamedTuple):
    """A malformed row: its place (counted from the first row of its shard), its curve, and what is wrong."""

    row: int
    curve: str
    problem: str


@dataclass(frozen=True)
class Fitted:
    """The rows of a shard (a table, status as int8), how many rows of the source they come from, what was malformed."""

    table: pa.Table
    rows: int
    malformed: list[Malformed] = field(default_factory=list)
    malformed_rows: int = 0


@dataclass(frozen=True)
class Work:
    """What to do with a shard; picklable if the law is one of tsl_jax.laws, or made of functions of a module."""

    source: Source
    law: Law | str  # by name where it has one: functions need not travel
    method: str
    dtype: str | None

    def __call__(self, shard: Shard) -> Fitted:
        """Fit the curves of one shard."""
        return next(self.over([shard]))

    def over(self, shards: list[Shard]) -> Iterator[Fitted]:
        """Fit the curves of each shard, while the next ones are read."""
        law = laws.BY_NAME[self.law] if isinstance(self.law, str) else self.law
        if isinstance(self.source, Matrix):
            for shard, y in zip(shards, _ahead(self.source.read(shards)), strict=True):
                yield self._matrix(law, self.source.covariate(), shard, y)
        else:
            for shard in shards:
                yield self._long(law, self.source, shard)

    def _matrix(self, law: Law, x: np.ndarray, shard: Shard, y: np.ndarray) -> Fitted:
        found = fit_rows(law, y, x=x, method=self.method, dtype=self.dtype)
        names = pa.array(np.arange(shard.first, shard.end))
        table = columns(law, names, values(law, found, *errors_and_r2(found), ends(x)), self.dtype)
        return Fitted(table, len(table))

    def _long(self, law: Law, source: Any, shard: Shard) -> Fitted:
        tables: list[pa.Table] = []
        malformed: list[Malformed] = []
        count = rows = 0
        for block in _ahead(ragged.blocks(long_tables.chunks(source, shard))):
            rows = block.row + len(block.rows)
            found, unfit = self._block(law, block)
            table = columns(law, block.names, found, self.dtype)
            tables.append(table.append_column(PLACE, pa.array(block.starts[:-1] + block.row)))
            troubles = block.rows.problems | unfit
            count += len(troubles)
            for row in sorted(troubles)[: max(0, PLACES_KEPT - len(malformed))]:
                malformed.append(Malformed(row + block.row, str(block.rows.curve[row].as_py()), troubles[row]))
        return Fitted(pa.concat_tables(tables) if tables else pa.table({}), rows, malformed, count)

    def _block(self, law: Law, block: ragged.Block) -> tuple[dict[str, np.ndarray], dict[int, str]]:
        """Values of every curve of a block, and what the law refused, by the row of the curve."""
        found: dict[str, np.ndarray] = {}
        unfit: dict[int, str] = {}
        for group in ragged.groups(block):
            try:
                how = {"method": self.method, "dtype": self.dtype}
                result = fit_rows(law, group.y, x=group.x, weights=group.weights, **how)
            except ValueError as error:  # of this x: the law may have no value there
                unfit |= {int(block.starts[k]): str(error) for k in group.curves}
                continue
            around = ends(group.x, group.weights)
            for name, part in values(law, result, *errors_and_r2(result), around).items():
                if name not in found:
                    found[name] = _unknown(name, part.dtype, len(block.starts) - 1)
                found[name][group.curves] = part
        if not found:
            found = {name: _unknown(name, np.dtype(float), len(block.starts) - 1) for name in _names(law)}
        return found, unfit


def values(law: Law, found: CurveFits | Fit, stderr: Any, r2: Any, ends: Sequence[Any]) -> dict[str, np.ndarray]:
    """The columns of a fit, bare or labelled, after `curve`, in the order of the table; each (curve,).

    Args:
        ends: least and largest value of each covariate that was fitted, (curve,) or one for all.
    """
    params, errors = (np.asarray(array).reshape(-1, len(law.params)).T for array in (found.params, stderr))
    sse, r2, status = (np.asarray(array).ravel() for array in (found.sse, r2, found.status))
    around = [np.broadcast_to(np.asarray(end, float), sse.shape) for end in ends]
    return dict(zip(_names(law), [*params, *errors, sse, r2, *around, status], strict=True))


def ends(x: np.ndarray, weights: np.ndarray | None = None) -> list[Any]:
    """Least and largest x of positive weight, for all curves or for each."""
    if weights is None:
        return [np.min(x), np.max(x)]
    here = np.asarray(weights) > 0
    return [np.where(here, x, np.inf).min(axis=-1), np.where(here, x, -np.inf).max(axis=-1)]


def columns(law: Law, names: pa.Array, found: dict[str, np.ndarray], dtype: str | None) -> pa.Table:
    """The table of some curves; NaN becomes null, and the status stays a number until the table is put together."""
    kind = pa.float32() if dtype == "float32" else pa.float64()
    arrays: dict[str, pa.Array] = {"curve": names}
    for name in _names(law)[:-1]:
        column = np.ascontiguousarray(found[name], kind.to_pandas_dtype())
        missing = np.isnan(column)
        arrays[name] = pa.array(column, kind, mask=missing if missing.any() else None)
    return pa.table(arrays | {"status": pa.array(found["status"].astype(np.int8))})


def _names(law: Law) -> list[str]:
    around = (f"{name}_{end}" for name in law.covariates for end in ("low", "high"))
    return [*law.params, *(f"{name}_stderr" for name in law.params), "sse", "r2", *around, "status"]


def _unknown(name: str, dtype: np.dtype, count: int) -> np.ndarray:
    return np.full(count, Status.NON_FINITE, np.int8) if name == "status" else np.full(count, np.nan, dtype)


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, the next one made in a thread while this one is used."""
    with ThreadPoolExecutor(1) as reader:
        pending = reader.submit(next, items, None)
        while (item := pending.result()) is not None:
            pending = reader.submit(next, items, None)
            yield item
