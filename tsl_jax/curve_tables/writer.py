"""The table from its shards: streamed in order, a row group of a few shards at a time, and moved into place at the end.

Long tables are checked for curves that come back: rows of one curve must be contiguous, since a table of any size
cannot be sorted in fixed memory. Such a curve keeps one row, without values, and its later places are reported.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import pandas.util
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet

from tsl_jax.atomic_write import move_atomically, sync
from tsl_jax.curve_tables.shards import ERRORS, TABLE, MalformedRow, ShardResult, ShardStore
from tsl_jax.curve_tables.worker import MAX_LISTED, ROW_COLUMN
from tsl_jax.fitting.status import Status

pc: Any = pyarrow.compute  # made at import, so a type checker does not see it
GROUP_ROWS = 1 << 17  # rows of a row group
HASHES = 1 << 23  # names compared at once: 64 MB
ERROR_COLUMNS = ("file", "row", "curve", "problem")
COMES_BACK = "the curve comes back after others; its rows must stand together: sort the file by curve"

Spread = Callable[[pa.Table], pa.Table]  # rows of a curve each, as the rows that are written


@dataclass
class Tally:
    """What went into a table so far: curves by status, rows of the source, malformed ones and the first of these.

    `left_out` counts the points that were not fitted, by the reason.
    """

    curves: int = 0
    rows: int = 0
    malformed_rows: int = 0
    first: MalformedRow | None = None
    status: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)


class TableBuilder:
    """A table in the making, in the folder of its shards."""

    def __init__(
        self, store: ShardStore, out: Path, source: Path, metadata: dict[str, str], spread: Spread | None = None
    ) -> None:
        self._spread = spread
        self.tally = Tally()
        self.errors = errors_file(out)
        self._store, self._out, self._source, self._metadata = store, out, source, metadata
        self._table, self._places = store.folder / TABLE, store.folder / ERRORS
        for left in (self._table, self._places):  # by a killed call; a link is not followed
            left.unlink(missing_ok=True)
        self._held: list[pa.Table] = []
        self._file: IO[bytes] | None = None
        self._writer: Any = None  # of pyarrow, for CSV or Parquet
        self._next = 0

    def add_finished(self) -> None:
        """Add the finished shards that are next in order."""
        while self._store.has(self._next):
            self._add(self._store.load(self._next))
            self._next += 1

    def add_checked(self, count: int) -> None:
        """Add all `count` shards of a long table, once it is known which curves come back."""
        repeated = repeated_names(self._store, count)
        seen: set[Any] = set()
        for number in range(count):
            result = self._store.load(number)
            self._add(result if repeated is None else _blank_repeated(result, repeated, seen))

    def finish(self) -> None:
        """Put the table into its place; then the shards are no longer needed."""
        self._flush()
        assert self._file is not None  # there is at least one shard
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if self.tally.malformed_rows:
            sync(self._places)
            move_atomically(self._places, self.errors)
        else:
            self.errors.unlink(missing_ok=True)
        move_atomically(self._table, self._out)

    def _add(self, result: ShardResult) -> None:
        tally, table = self.tally, result.table
        if result.malformed:  # listed with their places in the whole source
            begin = tally.first is None
            with open(self._places, "x" if begin else "a", newline="") as file:
                lines = csv.writer(file, lineterminator="\n")
                if begin:
                    lines.writerow(ERROR_COLUMNS)
                for row, curve, problem in result.malformed:
                    lines.writerow([self._source, place := row + tally.rows + 1, curve, problem])
                    tally.first = tally.first or MalformedRow(place, curve, problem)
                if result.malformed_rows > len(result.malformed):
                    more = result.malformed_rows - len(result.malformed)
                    lines.writerow([self._source, "", "", f"and {more} more, up to row {tally.rows + result.rows}"])
        tally.rows += result.rows
        tally.malformed_rows += result.malformed_rows
        tally.left_out.update(result.left_out)
        if not table.num_columns:  # a shard in which no curve begins
            return
        tally.curves += len(table)
        codes = np.bincount(table["status"].to_numpy(), minlength=len(Status))
        tally.status.update({Status(code).short: int(n) for code, n in enumerate(codes) if n})
        table = table.drop_columns([ROW_COLUMN]) if ROW_COLUMN in table.column_names else table
        self._held.append(table if self._spread is None else self._spread(table))
        if sum(map(len, self._held)) >= GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        """Write the rows that are held, the status by its short name."""
        if not self._held:
            return
        table = pa.concat_tables(self._held)
        names = pa.array([status.short for status in Status])  # codes count from 0
        k = table.schema.get_field_index("status")
        table = table.set_column(k, "status", names.take(table["status"].combine_chunks()))
        self._held = []
        if self._file is None:
            self._file = open(self._table, "xb")  # noqa: SIM115  (closed in `finish`)
            if self._out.suffix == ".csv":
                self._file.write((",".join(table.schema.names) + "\n").encode())
                options = pyarrow.csv.WriteOptions(include_header=False, quoting_style="needed")
                self._writer = pyarrow.csv.CSVWriter(self._file, table.schema, write_options=options)
            else:
                schema, dictionaries = table.schema.with_metadata(self._metadata), ["status"]
                self._writer = pyarrow.parquet.ParquetWriter(  # digits of floats neither compress nor repeat
                    self._file, schema, compression="none", use_dictionary=cast(Any, dictionaries)
                )
        self._writer.write_table(table)


def errors_file(out: Path) -> Path:
    """Where the malformed rows of a table are listed."""
    return out.with_name(f"{out.name}.errors.csv")


def check_replaced(out: Path) -> None:
    """Nothing, where files of these names are not there, or are what an earlier fit wrote.

    Raises:
        ValueError: naming a file of somebody else's.
    """
    for path, is_ours in ((out, _is_table), (errors_file(out), _is_list_of_errors)):
        if os.path.lexists(path) and not is_ours(path):
            raise ValueError(f"fit: {path} is there and was not written by a fit; move it away, or give another --out")


def _is_table(path: Path) -> bool:
    try:
        names = _first_line(path).split(",") if path.suffix == ".csv" else pyarrow.parquet.read_schema(path).names
    except (pa.ArrowException, OSError):
        return False
    return names[:1] == ["curve"] and names[-1:] == ["status"] and {"sse", "r2"} <= set(names)


def _is_list_of_errors(path: Path) -> bool:
    return path.is_file() and _first_line(path) == ",".join(ERROR_COLUMNS)


def _first_line(path: Path) -> str:
    with open(path, "rb") as file:
        return file.readline(1 << 16).decode(errors="replace").rstrip("\r\n")


def repeated_names(store: ShardStore, count: int) -> pa.Array | None:
    """Names of curves that stand at several places of a long table; memory is fixed.

    Names that increase from curve to curve cannot repeat, and most tables are sorted. Otherwise hashes are compared,
    a range of them at a time, and then the names whose hashes repeat.
    """
    total, last, increasing = 0, None, True  # one pass over all shards, which are mapped
    for names in _names(store, count):
        total += len(names)
        increasing = increasing and _increases(names, last)
        last = names[-1]
    if increasing:
        return None
    places: Counter[Any] = Counter()
    ranges = -(-total // HASHES)
    for k in range(ranges):
        own = [h[h % ranges == k] for h in map(_hashes, _names(store, count))]
        values, counts = np.unique(np.concatenate(own), return_counts=True)
        twice = values[counts > 1]
        for names in _names(store, count) if len(twice) else ():
            places.update(names.filter(pa.array(np.isin(_hashes(names), twice))).to_pylist())
    repeated = [name for name, times in places.items() if times > 1]
    return pa.array(repeated, next(_names(store, count)).type) if repeated else None


def _names(store: ShardStore, count: int) -> Iterator[pa.Array]:
    for number in range(count):
        table = store.load(number).table
        if len(table):
            yield table["curve"].combine_chunks()


def _increases(names: pa.Array, last: pa.Scalar | None) -> bool:
    """Whether each name is greater than the one before it, the first than `last`."""
    if names.null_count or (last is not None and not pc.less(last, names[0]).as_py()):
        return False
    return pc.all(pc.less(names.slice(0, len(names) - 1), names.slice(1)), min_count=0).as_py()


def _hashes(names: pa.Array) -> np.ndarray:
    values = names.to_numpy(zero_copy_only=False)
    hash_array: Any = pandas.util.hash_array
    return hash_array(values if values.dtype.kind in "iuf" else values.astype(object), categorize=False)


def _blank_repeated(result: ShardResult, repeated: pa.Array, seen: set[Any]) -> ShardResult:
    """The shard with one row, without values, for each repeated curve; later places (name in `seen`) are malformed."""
    table = result.table
    if not len(table):
        return result
    blank = pc.is_in(table["curve"], value_set=repeated).to_numpy()
    keep, later = np.ones(len(table), bool), []
    for k in np.flatnonzero(blank):
        name = table["curve"][k].as_py()
        if name in seen:
            keep[k] = False
            later.append(MalformedRow(table[ROW_COLUMN][k].as_py(), str(name), COMES_BACK))
        seen.add(name)
    for k, column in enumerate(table.schema):
        if column.name not in ("curve", ROW_COLUMN):
            empty = pa.scalar(int(Status.NON_FINITE) if column.name == "status" else None, column.type)
            table = table.set_column(k, column, pc.if_else(pa.array(blank), empty, table[column.name]))
    malformed = sorted([*result.malformed, *later])[:MAX_LISTED]
    return ShardResult(
        table.filter(pa.array(keep)), result.rows, malformed, result.malformed_rows + len(later), result.left_out
    )
