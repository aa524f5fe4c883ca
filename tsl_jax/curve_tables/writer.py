"""The table from its shards: streamed in order, a row group of a few shards at a time, and moved into place at the end.

Long tables are checked for curves that come back: rows of one curve must stand together, since a table of any size
cannot be sorted in fixed memory. Such a curve keeps one row, without values, and its later places are reported.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas.util
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet

from tsl_jax.atomic_write import move_atomically, sync
from tsl_jax.curve_tables.shard_store import Parts
from tsl_jax.curve_tables.worker import PLACE, PLACES_KEPT, Fitted, Malformed
from tsl_jax.fitting.status import Status

pc: Any = pyarrow.compute  # made at import, so a type checker does not see it
GROUP_ROWS = 1 << 17  # rows of a row group
HASHES = 1 << 23  # names compared at once: 64 MB


@dataclass
class Tally:
    """What went into a table so far: curves by status, rows of the source, malformed ones and the first of these."""

    curves: int = 0
    rows: int = 0
    malformed_rows: int = 0
    first: Malformed | None = None
    status: Counter[str] = field(default_factory=Counter)


class Assembly:
    """A table in the making, in the folder of its shards."""

    def __init__(self, parts: Parts, out: Path, source: Path, metadata: dict[str, str]) -> None:
        self.tally = Tally()
        self.folder = parts.folder
        self.errors = out.with_name(f"{out.name}.errors.csv")
        self._parts, self._out, self._source, self._metadata = parts, out, source, metadata
        self._table, self._places = parts.folder / ".table.tmp", parts.folder / ".errors.tmp"
        self._held: list[pa.Table] = []
        self._writer: Writer | None = None
        self._next = 0

    def advance(self) -> None:
        """Add the finished shards that are next in order."""
        while self._parts.has(self._next):
            self._add(self._parts.load(self._next))
            self._next += 1

    def advance_checked(self, count: int) -> None:
        """Add all `count` shards of a long table, once it is known which curves come back."""
        again = returning(self._parts, count)
        seen: set[Any] = set()
        for number in range(count):
            self._add(_without_returning(self._parts.load(number), again, seen))

    def finish(self) -> None:
        """Put the table into its place, then the shards are no longer needed."""
        self._flush()
        assert self._writer is not None  # there is at least one shard
        self._writer.close()
        if self.tally.malformed_rows:
            sync(self._places)
            move_atomically(self._places, self.errors)
        else:
            self.errors.unlink(missing_ok=True)
        move_atomically(self._table, self._out)

    def _add(self, fitted: Fitted) -> None:
        tally, table = self.tally, fitted.table
        self._report(fitted)
        tally.rows += fitted.rows
        tally.malformed_rows += fitted.malformed_rows
        if not table.num_columns:  # a shard in which no curve begins
            return
        tally.curves += len(table)
        codes = np.bincount(table["status"].to_numpy(), minlength=len(Status))
        tally.status.update({Status(code).short: int(n) for code, n in enumerate(codes) if n})
        self._held.append(table.drop_columns([PLACE]) if PLACE in table.column_names else table)
        if sum(map(len, self._held)) >= GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if not self._held:
            return
        table = _with_words(pa.concat_tables(self._held))
        self._held = []
        if self._writer is None:
            self._writer = Writer(self._table, self._out.suffix, table.schema, self._metadata)
        self._writer.write(table)

    def _report(self, fitted: Fitted) -> None:
        """Add the malformed rows of a shard to the file of errors, with their places in the whole source."""
        if not fitted.malformed:
            return
        begin = self.tally.first is None
        with open(self._places, "w" if begin else "a", newline="") as file:
            lines = csv.writer(file, lineterminator="\n")
            if begin:
                lines.writerow(["file", "row", "curve", "problem"])
            for row, curve, problem in fitted.malformed:
                lines.writerow([self._source, place := row + self.tally.rows + 1, curve, problem])
                self.tally.first = self.tally.first or Malformed(place, curve, problem)
            if fitted.malformed_rows > len(fitted.malformed):
                rest = fitted.malformed_rows - len(fitted.malformed)
                end = self.tally.rows + fitted.rows
                lines.writerow([self._source, "", "", f"and {rest} more, up to row {end}"])


class Rows(Protocol):
    """What the writers of pyarrow have in common."""

    def write_table(self, table: pa.Table) -> Any: ...
    def close(self) -> Any: ...


class Writer:
    """A Parquet or CSV file, synced when closed."""

    def __init__(self, path: Path, suffix: str, schema: pa.Schema, metadata: dict[str, str]) -> None:
        self._file = open(path, "wb")  # noqa: SIM115  (closed in `close`)
        self._rows: Rows
        if suffix == ".csv":
            self._file.write((",".join(schema.names) + "\n").encode())
            options = pyarrow.csv.WriteOptions(include_header=False, quoting_style="needed")
            self._rows = pyarrow.csv.CSVWriter(self._file, schema, write_options=options)
        else:
            words: Any = ["status"]  # digits of floats neither compress nor repeat
            self._rows = pyarrow.parquet.ParquetWriter(
                self._file, schema.with_metadata(metadata), compression="none", use_dictionary=words
            )

    def write(self, table: pa.Table) -> None:
        """Add rows."""
        self._rows.write_table(table)

    def close(self) -> None:
        """End the file; on return it survives a power failure."""
        self._rows.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def returning(parts: Parts, count: int) -> pa.Array | None:
    """Names of curves that stand at several places of a long table. Memory is fixed: by hashes, a range at a time."""
    total, last, rising = 0, None, True
    for names in _names(parts, count):
        total += len(names)
        rising = rising and _rises(names, last)
        last = names[-1]
    if rising:
        return None
    again: Counter[Any] = Counter()
    ranges = -(-total // HASHES)
    for k in range(ranges):
        own = [h[h % ranges == k] for h in map(_hashes, _names(parts, count))]
        values, counts = np.unique(np.concatenate(own), return_counts=True)
        twice = values[counts > 1]
        for names in _names(parts, count) if len(twice) else ():
            again.update(names.filter(pa.array(np.isin(_hashes(names), twice))).to_pylist())
    found = [name for name, times in again.items() if times > 1]
    return pa.array(found, next(_names(parts, count)).type) if found else None


def _names(parts: Parts, count: int) -> Iterator[pa.Array]:
    for number in range(count):
        table = parts.load(number).table
        if len(table):
            yield table["curve"].combine_chunks()


def _rises(names: pa.Array, last: pa.Scalar | None) -> bool:
    """Whether each name is greater than the one before it: then none comes back."""
    if names.null_count or (last is not None and not pc.less(last, names[0]).as_py()):
        return False
    return pc.all(pc.less(names.slice(0, len(names) - 1), names.slice(1)), min_count=0).as_py()


def _hashes(names: pa.Array) -> np.ndarray:
    values = names.to_numpy(zero_copy_only=False)
    hash_array: Any = pandas.util.hash_array
    return hash_array(values if values.dtype.kind in "iuf" else values.astype(object), categorize=False)


def _without_returning(fitted: Fitted, again: pa.Array | None, seen: set[Any]) -> Fitted:
    """The shard with one row, without values, for each curve that comes back, and its later places as malformed."""
    table = fitted.table
    if again is None or not len(table):
        return fitted
    bad = pc.is_in(table["curve"], value_set=again).to_numpy()
    keep, places = np.ones(len(table), bool), []
    for k in np.flatnonzero(bad):
        name = table["curve"][k].as_py()
        if name in seen:
            keep[k] = False
            problem = "the curve comes back after others; its rows must stand together: sort the file by curve"
            places.append(Malformed(table[PLACE][k].as_py(), str(name), problem))
        seen.add(name)
    for k, column in enumerate(table.schema):
        if column.name not in ("curve", PLACE):
            empty = pa.scalar(int(Status.NON_FINITE) if column.name == "status" else None, column.type)
            table = table.set_column(k, column, pc.if_else(pa.array(bad), empty, table[column.name]))
    malformed = sorted([*fitted.malformed, *places])[:PLACES_KEPT]
    return Fitted(table.filter(pa.array(keep)), fitted.rows, malformed, fitted.malformed_rows + len(places))


def _with_words(table: pa.Table) -> pa.Table:
    """The status by its short name."""
    words = pa.array([status.short for status in Status])  # codes count from 0
    k = table.schema.get_field_index("status")
    return table.set_column(k, "status", words.take(table["status"].combine_chunks()))
