"""Logs in stores: MLflow's folder of metrics or its database, trackio's, any SQLite table of losses, Parquet."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np

from tsl_jax.importers.json_logs import from_rows
from tsl_jax.importers.log_rows import LogRows, NotThisFormat, numbers_of, open_log

SQLITE = b"SQLite format 3\0"
PARQUET = b"PAR1"
MOST_ROWS = 20_000_000  # of a Parquet file: a few bytes may stand for any number of equal rows


def read_mlflow(folder: Path) -> LogRows:
    """The metrics of a run's folder in MLflow's file store: a file a metric, lines `milliseconds value step`.

    Old lines have no step, and the step may be 0 throughout: such rows are ordered by time and counted.

    Raises:
        NotThisFormat: where there are no metrics.
    """
    metrics = folder / "metrics"
    series: dict[str, list[tuple[float, float, float]]] = {}
    bad = 0
    for path in sorted(file for file in metrics.rglob("*") if file.is_file()):
        points: list[tuple[float, float, float]] = []
        with open_log(path) as file:
            for line in file:
                cells, _ = numbers_of([cell.decode("utf-8", "replace") for cell in line.split()])
                if len(cells) < 2:
                    bad += bool(len(cells))
                    continue
                points.append((cells[0], cells[1], cells[2] if len(cells) > 2 else 0.0))
        series[path.relative_to(metrics).as_posix()] = points
    return _of_series(folder, "MLflow run", series, [_mlflow_name(folder)], bad)


def _mlflow_name(folder: Path) -> str:
    """`run_name` of meta.yaml, else the folder's name."""
    try:
        lines = (folder / "meta.yaml").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip().strip("'\"") for line in lines if line.startswith("run_name:")]
    return named[0] if named and named[0] and named[0] != "null" else folder.name


def _of_series(
    path: Path, form: str, series: dict[str, list[tuple[float, float, float]]], runs: list[str], bad: int = 0
) -> LogRows:
    """Rows of series of (time, value, step), in the order of time; rows of one step are put together later."""
    named = [(time, step, name, value) for name, points in series.items() for time, value, step in points]
    named.sort(key=lambda point: (point[0], point[1]))
    if not named:
        raise NotThisFormat("no metrics")
    steps = np.array([step for _, step, _, _ in named])
    counted = len(named) > 1 and not steps.any()
    if counted:  # each metric counts its own rows
        count: dict[str, int] = {}
        for k, (_, _, name, _) in enumerate(named):
            steps[k] = count[name] = count.get(name, -1) + 1
    rows = [{"step": step, name: value} for step, (_, _, name, value) in zip(steps, named, strict=True)]
    log = from_rows(path, rows, [])
    log.format, log.runs, log.eval_rows = form, runs, True
    if counted:
        log.note("step_inferred", "the step is 0 throughout: rows were counted in the order of their times")
        log.known["steps_a_row"] = 1
    if bad:
        log.note("words", f"{bad} lines of metrics are no numbers: left out")
    return log


def read_sqlite(path: Path) -> list[LogRows]:
    """The runs of a database: of trackio, of MLflow, or of any table with a step and a loss.

    Raises:
        NotThisFormat: where there is no such table, or the file is damaged.
    """
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            tables = [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            columns = {
                table: [row[1] for row in database.execute(f'PRAGMA table_info("{_quoted(table)}")')]
                for table in tables
            }
            names = set(columns.get("metrics", ()))
            if {"metrics", "step", "run_name"} <= names:
                return _trackio(path, database, "run_id" in names)
            if {"key", "value", "step"} <= names:
                return _mlflow_database(path, database, names)
            for table, found in columns.items():
                lowered = [name.lower() for name in found]
                if any("loss" in name for name in lowered) and any(
                    "step" in name or "iter" in name for name in lowered
                ):
                    cursor = database.execute(f'SELECT * FROM "{_quoted(table)}"')
                    rows = [dict(zip(found, row, strict=True)) for row in cursor]
                    log = from_rows(path, rows, [])
                    log.format = f"SQLite table {table}"
                    return [log]
    except sqlite3.Error as error:
        raise NotThisFormat(f"a damaged or locked database ({error})") from None
    raise NotThisFormat("a database without a table of losses")


def _quoted(table: str) -> str:
    return table.replace('"', '""')


def _trackio(path: Path, database: sqlite3.Connection, has_id: bool) -> list[LogRows]:
    """trackio: a row a call of log, so that the rows of a step hold a tag each."""
    key = "coalesce(run_id, run_name)" if has_id else "run_name"
    cursor = database.execute(f"SELECT {key}, run_name, step, metrics FROM metrics ORDER BY id")
    by_run: dict[Any, tuple[str, list[dict[str, Any]]]] = {}
    damaged = 0
    for run, name, step, text in cursor:
        try:
            values = json.loads(text)
        except (TypeError, ValueError):
            damaged += 1
            continue
        if isinstance(values, dict):
            by_run.setdefault(run, (str(name), []))[1].append({"step": step, **values})
    logs = []
    for name, rows in by_run.values():
        log = from_rows(path, rows, [])
        log.format, log.runs, log.eval_rows = "trackio database", [name], True
        if damaged:
            log.note("words", f"{damaged} rows of the database are no JSON: left out")
        logs.append(log)
    if not logs:
        raise NotThisFormat("a trackio database without rows")
    return logs


def _mlflow_database(path: Path, database: sqlite3.Connection, names: set[str]) -> list[LogRows]:
    run = "run_uuid" if "run_uuid" in names else "run_id"
    titles: dict[str, str] = {}
    with suppress(sqlite3.Error):
        titles = dict(database.execute("SELECT run_uuid, name FROM runs"))
    nan = "is_nan" if "is_nan" in names else "0"
    by_run: dict[str, dict[str, list[tuple[float, float, float]]]] = {}
    cursor = database.execute(f"SELECT {run}, key, timestamp, value, step, {nan} FROM metrics ORDER BY timestamp, step")
    for owner, key, time, value, step, is_nan in cursor:
        number = float("nan") if is_nan else float(value)
        by_run.setdefault(str(owner), {}).setdefault(str(key), []).append((float(time), number, float(step)))
    return [_of_series(path, "MLflow database", of, [titles.get(owner) or owner]) for owner, of in by_run.items()]


def read_parquet(path: Path) -> LogRows:
    """The columns of a Parquet file that are numbers or words.

    Raises:
        NotThisFormat: where it is no whole Parquet file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, np.ndarray] = {}
    text: dict[str, np.ndarray] = {}
    units: dict[str, str] = {}
    try:
        with pq.ParquetFile(path) as file:
            if file.metadata.num_rows > MOST_ROWS:
                found = f"{file.metadata.num_rows:,} rows, more than {MOST_ROWS:,}"
                raise ValueError(f"{found}; take the rows of evaluations alone")
            schema: pa.Schema = file.schema_arrow
            wanted = [name for name, kind in zip(schema.names, schema.types, strict=True) if _is_flat(kind)]
            units = {name: "repeated" for name in wanted if schema.names.count(name) > 1}
            table = file.read(columns=wanted)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise NotThisFormat(f"not a whole .parquet file ({error!s:.200})") from None
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
            values = column.cast(pa.float64(), safe=False).to_numpy().astype(float)
            written = np.isnan(values) & ~column.is_null().to_numpy()
            columns[name] = np.where(written, -np.inf, values)
            continue
        cells = [None if cell is None else str(cell) for cell in column.to_pylist()]
        values, words = numbers_of(cells)
        if words:
            text[name] = np.array(["" if cell is None else cell for cell in cells], object)
        else:
            columns[name] = values
    count = table.num_rows
    if not count:
        raise NotThisFormat("a table without rows")
    return LogRows(path, "Parquet table", columns, np.zeros(count, np.int64), text, units=units)


def _is_flat(kind: Any) -> bool:
    import pyarrow as pa

    return not pa.types.is_nested(kind) and not pa.types.is_binary(kind)


def magic(head: bytes) -> str:
    """`sqlite`, `parquet` or nothing, by the first bytes of a file."""
    kinds: Sequence[tuple[bytes, str]] = ((SQLITE, "sqlite"), (PARQUET, "parquet"))
    return next((kind for first, kind in kinds if head.startswith(first)), "")
