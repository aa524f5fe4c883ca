"""Curves by the million, from a file to a table, one row a curve, in fixed memory.

Input: `.npy` of (curves, positions), or a long table `curve,x,y[,weight]` as `.csv` or `.parquet`, of any size. Output:
Parquet (or `.csv`) with `curve`, the parameters in published order, `<param>_stderr` for each, `sse`, `r2`, the range
that was fitted (`position_low`, `position_high`: parameters of different ranges are not comparable), and `status` by
its short name. A call that was killed continues after its last finished shard when it is repeated, and ends with the
same table.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass, field
from importlib import metadata as installed
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from tsl_jax import laws
from tsl_jax.atomic_write import check_outputs
from tsl_jax.curve_tables import executors
from tsl_jax.curve_tables.shards import SHARD_BYTES, MalformedRow, Shard, ShardResult, ShardStore, explain_full_disk
from tsl_jax.curve_tables.sources import Matrix, Source, open_source
from tsl_jax.curve_tables.worker import LawFitter, ShardTask, fit_columns, fit_values
from tsl_jax.curve_tables.writer import Spread, TableBuilder, check_replaced, errors_file
from tsl_jax.fitting import bounds, fit
from tsl_jax.fitting.bounds import Limits
from tsl_jax.fitting.result import Fit
from tsl_jax.fitting.robust import LOSSES
from tsl_jax.fitting.solver import prepare
from tsl_jax.laws import Law

Progress = Callable[[float, int], None]  # share of the source that is done, and curves fitted by this call
LAYOUT = 6  # of the stored shards; those of an earlier layout are not continued


@dataclass(frozen=True)
class TableSummary:
    """What a table holds: how many curves, how many of each status, malformed rows, and where these are listed.

    `left_out` counts the points that were not fitted, by the reason.
    """

    out: Path
    curves: int
    status: dict[str, int]
    malformed_rows: int
    errors: Path | None
    left_out: dict[str, int] = field(default_factory=dict)


def fit_table(
    law: Law,
    source: Path | str,
    out: Path | str,
    *,
    x: Path | str | Mapping[str, str] | None = None,
    curve: str | None = None,
    y: str | None = None,
    weight: str | None = None,
    method: str = "auto",
    dtype: str | None = None,
    coef_limits: Limits | None = None,
    loss: str = "squares",
    delta: float | None = None,
    starts: int | None = None,
    strict: bool = False,
    executor: Executor | None = None,
    progress: Progress | None = None,
    metadata: Mapping[str, str] | None = None,
    version: str = "",
    shard_bytes: int = SHARD_BYTES,
) -> TableSummary:
    """Fit `law` to every curve of a file, and write one row a curve.

    Finished shards stand in `<out>.parts/` until the table is complete: a second call of the same request goes on from
    them. A malformed row of a long table costs its curve (status `non_finite`, no values) and is listed with its place
    in `<out>.errors.csv`; so does a curve whose rows are not contiguous. A point whose y is missing is
    left out, and so is one at x = 0 where the law has no value there.

    Args:
        law: what to fit. A law of several covariates reads a column for each, and all rows are one curve where no
            column names it.
        source: `.npy` (curves, positions), or `.csv` or `.parquet` with the columns curve, x, y and perhaps weight.
        out: the table, `.parquet` or `.csv`.
        x: a `.npy` with the covariate at each point of a `.npy` source, default 1 to n for laws over position; or the
            name of the column x of a table, after which the columns of the range are named (`step_low`, `step_high`);
            for a law of several covariates a mapping of these to columns, default those of their names.
        curve, y, weight: names of the other columns of a table.
        method, dtype, coef_limits, loss, delta: as for `fit`; with float32 the columns are float32 too.
        starts: of the general solver, in place of the law's own.
        strict: stop at a malformed row.
        executor: fits the shards, such as a ProcessPoolExecutor (with the spawn context: jax is not fork-safe); its
            workers must see the source under the same path. Default: this process.
        progress: called with the share of the source that is done, and the curves fitted, after each shard.
        metadata: kept in the schema of a Parquet table.
        version: of a law that is not of tsl_jax, such as a hash of its file: shards of another are not continued.
        shard_bytes: how much of the source is a shard: what is in memory at once, and what a kill can cost.

    Raises:
        FileNotFoundError, ValueError: a request that makes no sense, a source that is no table of curves, finished
            shards of another request; with `strict`, a malformed row. OSError: the disk is full, say. ShardsFailed:
            shards that failed on the executor three times; the others are kept.
    """
    out = Path(out).absolute()
    check_output(out)
    check_request(law, method, dtype, coef_limits, shard_bytes, loss, delta, starts)
    opened = open_source(Path(source), x, curve, y, weight, law.covariates)
    check_files(law, opened, out, x)
    named = laws.BY_NAME.get(law.name) is law  # else the functions of the law themselves are pickled
    limits = {name: list(pair) for name, pair in sorted((coef_limits or {}).items())}
    task = ShardTask(
        opened, LawFitter(law.name if named else law, method, dtype, dict(coef_limits or {}), loss, delta, starts)
    )
    request = {"law": law.name, "formula": law.formula, "method": method, "dtype": dtype or "float64"}
    request |= {"version": version, "coef_limits": limits, "loss": loss, "delta": delta, "starts": starts}
    return make_table(
        task,
        request,
        out,
        strict=strict,
        executor=executor,
        progress=progress,
        metadata=metadata,
        shard_bytes=shard_bytes,
    )


def make_table(
    task: ShardTask,
    request: Mapping[str, Any],
    out: Path,
    *,
    strict: bool,
    executor: Executor | None,
    progress: Progress | None,
    metadata: Mapping[str, str] | None,
    shard_bytes: int,
    spread: Spread | None = None,
) -> TableSummary:
    """The table of a task whose request has been checked, or what is still missing of it; see `fit_table`.

    Args:
        request: all that the rows depend on beside the source: what finished shards must agree with to be continued.
        spread: makes the rows that are written of a table with a row a curve.
    """
    opened = task.source
    identity = opened.identity()
    packages = {name: installed.version(name) for name in ("tsl_jax", "jax", "jaxlib")}
    store = ShardStore(out, {**request, **identity, **packages, "layout": LAYOUT, "shard_bytes": shard_bytes})
    try:
        table = TableBuilder(store, out, opened.path, dict(metadata or {}), spread)
        _fit_shards(task, store, table, opened.shards(shard_bytes), strict, executor, progress)
        with explain_full_disk(store.folder):
            if opened.identity() != identity:
                store.remove()
                changed = f"{opened.path} has changed while it was read"
                raise ValueError(f"fit: {changed}, so its fits belong to no one file; nothing is kept, repeat the call")
            if strict and table.tally.first is not None:  # only now known: a curve that comes back
                raise ValueError(f"fit: {_place(opened, table.tally.first)}; fix it, or fit without strict")
            table.finish()
        store.remove()
    finally:
        store.close()
    tally = table.tally
    if tally.first is not None:
        warnings.warn(
            f"fit: malformed rows: {tally.malformed_rows}, the first in {_place(opened, tally.first)}; their curves "
            f"have no values, all others are fitted; the places are in {table.errors}",
            stacklevel=2,
        )
    errors = table.errors if tally.malformed_rows else None
    return TableSummary(out, tally.curves, dict(tally.status), tally.malformed_rows, errors, dict(tally.left_out))


def write_fit(law: Law, result: Fit, out: Path, metadata: Mapping[str, str]) -> TableSummary:
    """Write a fit that is in memory as such a table; curves are named by their labels, joined by "/"."""
    check_output(out)
    out = out.absolute()
    check_replaced(out)
    status = result.status
    labels: list[Any] = list(range(status.size))
    if status.ndim > 1:
        stacked = status.stack(_curve=status.dims)["_curve"].values
        labels = ["/".join(str(part) for part in label) for label in stacked]
    elif status.ndim == 1 and status.dims[0] in status.coords:
        labels = status[status.dims[0]].values.tolist()
    ends = [end for name in law.covariates for end in result.range.get(name, (math.nan, math.nan))]
    values = fit_values(law, result, result.stderr, result.r2, ends)
    kind = "float32" if result.params.dtype == "float32" else None
    store = ShardStore(out, {"labels": str(status.dims)})
    try:
        table = TableBuilder(store, out, out, dict(metadata))
        store.save(0, ShardResult(fit_columns(pa.array(labels), values, kind), 0))
        table.add_finished()
        table.finish()
        store.remove()
    finally:
        store.close()
    return TableSummary(out, table.tally.curves, dict(table.tally.status), 0, None)


def check_output(path: Path) -> None:
    """Refuse a file that could not be written, before any long work."""
    if path.suffix not in (".parquet", ".csv"):
        raise ValueError(f"fit: --out must end in .parquet or .csv, found {path}")
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:  # Arrow opens no such file
        raise ValueError(f"fit: the path of --out is not UTF-8, found {path.absolute()}; give another name") from None


def check_request(
    law: Law,
    method: str,
    dtype: str | None,
    coef_limits: Limits | None = None,
    shard_bytes: int = SHARD_BYTES,
    loss: str = "squares",
    delta: float | None = None,
    starts: int | None = None,
) -> None:
    """Refuse what no shard could be fitted with, before any work."""
    if not isinstance(law, Law):
        raise ValueError(f"fit: law must be a Law such as tsl.laws.HYPERBOLIC, found {law!r}; see tsl.laws.BY_NAME")
    if loss not in LOSSES:
        raise ValueError(f"fit: loss must be one of {', '.join(LOSSES)}, found {loss!r}")
    if delta is not None and not (delta > 0 and loss.endswith("huber")):
        raise ValueError(f"fit: delta must be positive and goes with a Huber loss, found {delta} with {loss}")
    if starts is not None and starts < 1:
        raise ValueError(f"fit: starts must be 1 or more, found {starts}")
    if dtype not in (None, "float32", "float64"):
        raise ValueError(f"fit: dtype must be 'float64' or 'float32', found {dtype!r}")
    if shard_bytes < 1:
        raise ValueError(f"fit: shard_bytes must be positive, found {shard_bytes}")
    with jax.enable_x64(True):  # on any x: whether the method serves this law
        try:
            prepare(law, _some_x(law), method=method)
            by_point = len(law.covariates) == 1 or _reads_points(law)
        except ValueError:
            raise
        except Exception as error:  # a law of the user's own may fail in any way
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise ValueError(
                f"fit: the law {law.name} cannot be evaluated at x = 1 to 32 ({reason:.300}); correct its functions"
            ) from error
    if not by_point:
        history = f"{law.name} reads a history of {' and '.join(law.covariates)}, not a value of each at every point"
        raise ValueError(f"fit: {history}; fit it from Python, with x= a mapping of these")
    _check_limits(law, coef_limits or {})


def _some_x(law: Law) -> Any:
    """Positive covariates of 32 points that do not move together."""
    x = jnp.arange(1.0, 33.0)
    return x if len(law.covariates) == 1 else {name: jnp.roll(x, 7 * k) for k, name in enumerate(law.covariates)}


def _reads_points(law: Law) -> bool:
    """Whether a law of several covariates has at each point a value that follows from the covariates there alone."""
    x = _some_x(law)
    shape, coef = jnp.exp(jnp.log(law.bounds(x)).mean(axis=1)), jnp.ones(len(law.coefs))
    turned = law.evaluate(shape, coef, {name: values[::-1] for name, values in x.items()})
    return bool(jnp.allclose(turned[::-1], law.evaluate(shape, coef, x)))


def _check_limits(law: Law, limits: Limits) -> None:
    """Refuse limits that the law does not allow; those other than zero show in a fit that fixes them."""
    checked = bounds.check_limits(law, limits)
    fixed = {name: (end, end) for name, ends in checked.items() for end in ends if end and math.isfinite(end)}
    if fixed:
        fit(law, 1 / np.arange(1.0, 33.0), x=_some_x(law), coef_limits=fixed)


def check_files(law: Law, source: Source, out: Path, x: Path | str | Mapping[str, str] | None) -> None:
    """Refuse a covariate that would be made up, and files that would be overwritten by the results."""
    covariate = law.covariates[0]  # of a .npy the only one
    if isinstance(source, Matrix) and source.x is None and covariate not in ("position", "x"):
        raise ValueError(
            f"fit: {law.name} is a law over {covariate}, which {source.path.name} does not hold: its points are "
            f"positions 1 to {source.shape[1]}; give x= (--x), a .npy of {covariate} at each point"
        )
    check_outputs(
        [source.path, Path(x) if isinstance(x, Path | str) and isinstance(source, Matrix) else None],
        [out, errors_file(out)],
        "fit",
    )
    check_replaced(out)


def _fit_shards(
    task: ShardTask,
    store: ShardStore,
    table: TableBuilder,
    shards: list[Shard],
    strict: bool,
    executor: Executor | None,
    progress: Progress | None,
) -> None:
    """Fit and store what is not yet stored, and hand all to the table."""
    source, curves, checked, rows = task.source, 0, 0, 0
    todo = [shard for shard in shards if not store.has(shard.number)]
    size = sum(map(len, shards))
    share = 1 - sum(map(len, todo)) / size

    def save(shard: Shard, result: ShardResult) -> None:
        store.save(shard.number, result)
        if isinstance(source, Matrix):  # its curves are all different: the table can grow while others are fitted
            with explain_full_disk(store.folder):
                table.add_finished()

    def stop_at_malformed() -> None:
        """The first malformed row of the file: its place is known once all shards before it are stored."""
        nonlocal checked, rows
        while checked < len(shards) and store.has(checked):
            result = store.load(checked)
            for row, curve, problem in result.malformed:
                place = _place(source, MalformedRow(row + rows + 1, curve, problem))
                raise ValueError(f"fit: {place}; fix it, or fit without strict")
            checked, rows = checked + 1, rows + result.rows

    if strict:
        stop_at_malformed()
    if progress is not None:
        progress(share, 0)
    here = executor is None
    fits = executors.fit_here(task, todo, save) if here else executors.fit_on_executor(executor, task, todo, save)
    with closing(fits):  # also if progress raises: nothing is being written any more
        for shard, result in fits:
            if strict:
                stop_at_malformed()
            share, curves = share + len(shard) / size, curves + len(result.table)
            if progress is not None:
                progress(min(1.0, share), curves)
    with explain_full_disk(store.folder):
        table.add_finished() if isinstance(source, Matrix) else table.add_checked(len(shards))


def _place(source: Source, malformed: MalformedRow) -> str:
    return f"{source.path}, row {malformed.row} (curve {malformed.curve}): {malformed.problem}"
