"""Curves by the million, from a file to a table, one row a curve, in fixed memory.

Input: `.npy` of (curves, positions), or a long table `curve,x,y[,weight]` as `.csv` or `.parquet`, of any size. Output:
Parquet (or `.csv`) with `curve`, the parameters in published order, `<param>_stderr` for each, `sse`, `r2`, the range
that was fitted (`position_low`, `position_high`: parameters of different ranges are not comparable), and `status` by
its short name. A call that was killed continues where its finished shards end when it is repeated, and ends with the
same table.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa

from tsl_jax import laws
from tsl_jax.curve_tables import executors, worker
from tsl_jax.curve_tables.matrix import Matrix
from tsl_jax.curve_tables.shard_store import Parts, saying_when_full
from tsl_jax.curve_tables.shards import SHARD_BYTES, Shard, Source
from tsl_jax.curve_tables.sources import open_source
from tsl_jax.curve_tables.worker import Fitted, Malformed, Work
from tsl_jax.curve_tables.writer import Assembly
from tsl_jax.fitting.result import Fit
from tsl_jax.laws import Law

Progress = Callable[[float, int], None]  # share of the source that is done, and curves fitted by this call


@dataclass(frozen=True)
class TableSummary:
    """What a table holds: how many curves, how many of each status, malformed rows, and where these are listed."""

    out: Path
    curves: int
    status: dict[str, int]
    malformed_rows: int
    errors: Path | None


def fit_table(
    law: Law,
    source: Path | str,
    out: Path | str,
    *,
    x: Path | str | None = None,
    method: str = "auto",
    dtype: str | None = None,
    strict: bool = False,
    executor: Executor | None = None,
    progress: Progress | None = None,
    metadata: Mapping[str, str] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> TableSummary:
    """Fit `law` to every curve of a file, and write one row a curve.

    Finished shards stand in `<out>.parts/` until the table is complete: a second call of the same request goes on from
    them. A malformed row of a long table costs its curve (status `non_finite`, no values) and is listed with its place
    in `<out>.errors.csv`; so does a curve whose rows do not stand together.

    Args:
        law: what to fit; a law with one covariate.
        source: `.npy` (curves, positions), or `.csv` or `.parquet` with the columns curve, x, y and perhaps weight.
        out: the table, `.parquet` or `.csv`.
        x: a `.npy` with the covariate at each position of a `.npy` source; default 1 to n.
        method, dtype: as for `fit`; with float32 the columns are float32 too.
        strict: stop at a malformed row.
        executor: fits the shards, such as a ProcessPoolExecutor (with the spawn context: jax is not fork-safe); its
            workers must see the source under the same path. Default: this process.
        progress: told the share of the source that is done, and the curves fitted, after each shard.
        metadata: kept in the schema of a Parquet table.
        shard_bytes: how much of the source is a shard: what is in memory at once, and what a kill can cost.

    Raises:
        FileNotFoundError, ValueError: a request that makes no sense, a source that is no table of curves, finished
            shards of another request; with `strict`, a malformed row. OSError: the disk is full, say. ShardsFailed:
            shards that failed on the executor three times; the others are kept.
    """
    out = Path(out).absolute()
    check_output(out)
    if len(law.covariates) > 1:
        raise ValueError(f"fit: {law.name} reads several covariates {law.covariates}; use tsl_jax.fit from Python")
    if shard_bytes < 1:
        raise ValueError(f"fit: shard_bytes must be positive, found {shard_bytes}")
    found = open_source(Path(source), None if x is None else Path(x))
    named = laws.BY_NAME.get(law.name) is law
    work = Work(found, law.name if named else law, method, dtype)
    parts = Parts(out, _request(law, work, shard_bytes))
    try:
        assembly = Assembly(parts, out, found.path, dict(metadata or {}))
        shards = found.shards(shard_bytes)
        _Run(work, parts, assembly, shards, strict, progress).fit(executor)
        _assemble(assembly, found, len(shards), strict)
        parts.remove()
    finally:
        parts.close()
    return _summary(out, found, assembly)


def write(law: Law, result: Fit, out: Path, metadata: Mapping[str, str]) -> TableSummary:
    """Write a fit that is in memory as such a table; curves are named by their labels, joined by "/"."""
    check_output(out)
    out = out.absolute()
    parts = Parts(out, {"labels": str(result.status.dims)})
    try:
        assembly = Assembly(parts, out, out, dict(metadata))
        kind = "float32" if result.params.dtype == "float32" else None
        around = [end for name in law.covariates for end in result.range.get(name, (math.nan, math.nan))]
        values = worker.values(law, result, result.stderr, result.r2, around)
        table = worker.columns(law, pa.array(_labels(result)), values, kind)
        parts.store(0, Fitted(table, 0))
        assembly.advance()
        assembly.finish()
        parts.remove()
    finally:
        parts.close()
    return TableSummary(out, assembly.tally.curves, dict(assembly.tally.status), 0, None)


def check_output(path: Path) -> None:
    """Say no to a file that could not be written, before any long work."""
    if path.suffix not in (".parquet", ".csv"):
        raise ValueError(f"fit: --out must end in .parquet or .csv, found {path}")


@dataclass
class _Run:
    """The shards that are left, on their way to disk."""

    work: Work
    parts: Parts
    assembly: Assembly
    shards: list[Shard]
    strict: bool
    progress: Progress | None
    share: float = 0
    curves: int = 0
    checked: int = 0  # shards, in order, that `strict` has seen, and their rows
    rows: int = 0

    def fit(self, executor: Executor | None) -> None:
        """Fit and store what is not yet stored."""
        left = [shard for shard in self.shards if not self.parts.has(shard.number)]
        self.share = 1 - sum(map(_size, left)) / sum(map(_size, self.shards))
        self._check()
        self._tell()
        if executor is None:
            executors.here(self.work, left, self._store, self._done)
        else:
            executors.elsewhere(executor, self.work, left, self._store, self._done)

    def _store(self, shard: Shard, fitted: Fitted) -> None:
        self.parts.store(shard.number, fitted)
        self._check()
        if isinstance(self.work.source, Matrix):  # no name comes back: the table can grow while others are fitted
            with saying_when_full(self.parts.folder):
                self.assembly.advance()

    def _check(self) -> None:
        """With `strict`, stop at the first malformed row; its place is known once all before it are stored."""
        while self.strict and self.checked < len(self.shards) and self.parts.has(self.checked):
            fitted = self.parts.load(self.checked)
            for row, curve, problem in fitted.malformed:
                first = Malformed(row + self.rows + 1, curve, problem)
                raise ValueError(f"fit: {_place(self.work.source, first)}; mend it, or fit without strict")
            self.checked, self.rows = self.checked + 1, self.rows + fitted.rows

    def _done(self, shard: Shard, fitted: Fitted) -> None:
        self.share += _size(shard) / sum(map(_size, self.shards))
        self.curves += len(fitted.table)
        self._tell()

    def _tell(self) -> None:
        if self.progress is not None:
            self.progress(min(1.0, self.share), self.curves)


def _size(shard: Shard) -> int:
    return shard.end - shard.first


def _request(law: Law, work: Work, shard_bytes: int) -> dict[str, Any]:
    """All that the rows depend on: what finished shards must agree with to be continued."""
    what = {"law": law.name, "formula": law.formula, "method": work.method, "dtype": work.dtype or "float64"}
    versions = {name: version(name) for name in ("tsl_jax", "jax", "jaxlib")}
    columns = {"columns": "with ranges"}  # shards of an earlier layout are not continued
    return what | work.source.identity() | versions | columns | {"shard_bytes": shard_bytes}


def _assemble(assembly: Assembly, source: Source, count: int, strict: bool) -> None:
    with saying_when_full(assembly.folder):
        if isinstance(source, Matrix):
            assembly.advance()
        else:
            assembly.advance_checked(count)
        first = assembly.tally.first
        if strict and first is not None:
            raise ValueError(f"fit: {_place(source, first)}; mend it, or fit without strict")
        assembly.finish()


def _place(source: Source, malformed: Malformed) -> str:
    return f"{source.path}, row {malformed.row} (curve {malformed.curve}): {malformed.problem}"


def _summary(out: Path, source: Source, assembly: Assembly) -> TableSummary:
    """The summary, and one warning if rows were malformed."""
    tally = assembly.tally
    errors = assembly.errors if tally.malformed_rows else None
    if tally.first is not None:
        warnings.warn(
            f"fit: malformed rows: {tally.malformed_rows}, the first in {_place(source, tally.first)}; their curves "
            f"have no values, all others are fitted; the places are in {errors}",
            stacklevel=3,
        )
    return TableSummary(out, tally.curves, dict(tally.status), tally.malformed_rows, errors)


def _labels(result: Fit) -> list[Any]:
    status = result.status
    if status.ndim == 0:
        return [0]
    if status.ndim == 1:
        (dim,) = status.dims
        return status[dim].values.tolist() if dim in status.coords else list(range(status.size))
    stacked = status.stack(_curve=status.dims)["_curve"].values
    return ["/".join(str(part) for part in label) for label in stacked]
