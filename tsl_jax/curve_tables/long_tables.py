"""Long tables, a row a point: `curve,x,y[,weight]` in Parquet or CSV, read a chunk of rows at a time.

A shard is a range of row groups, or of bytes. A curve belongs to the shard in which it begins: the reader of a shard
skips the rows that continue the curve before it, and reads on behind its end to the last row of the curve that is open
there. Neighbours so agree from the file alone, without having met. In a CSV a line is a row, blank lines are nothing,
and names are text as written.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet

from tsl_jax.curve_tables.ragged import Chunk
from tsl_jax.curve_tables.row_checks import checked
from tsl_jax.curve_tables.shards import SHARD_BYTES, Shard, identity, in_words

pc: Any = pyarrow.compute  # made at import, so a type checker does not see it
NEEDED = ("curve", "x", "y")
CHUNK_BYTES = 1 << 23  # of CSV text parsed at once
CHUNK_ROWS = 1 << 18  # of Parquet decoded at once
BACK_BYTES = 1 << 16  # read before a place in a CSV to learn which curve stands there


class LongTable(Protocol):
    """What a kind of file adds: its rows between two places, and the last name before a place."""

    @property
    def path(self) -> Path: ...

    @property
    def start(self) -> int: ...

    @property
    def end(self) -> int: ...

    def rows(self, first: int, end: int) -> Iterator[Chunk]: ...

    def name_before(self, place: int) -> pa.Scalar: ...


def chunks(table: LongTable, shard: Shard) -> Iterator[Chunk]:
    """The rows of the curves that begin in the shard; a row without a name goes with the one before it."""
    inside = table.rows(shard.first, shard.end)
    if shard.first > table.start:
        inside = _continued(inside, table.name_before(shard.first), inside=False)
    else:
        inside = _named(inside, pa.scalar(None))
    begun = False
    for chunk in inside:
        begun = begun or len(chunk) > 0
        yield chunk
    if begun and shard.end < table.end:
        yield from _continued(table.rows(shard.end, table.end), table.name_before(shard.end), inside=True)


@dataclass(frozen=True)
class LongParquet:
    """A long table in Parquet; places are row groups."""

    path: Path
    columns: tuple[str, ...]
    end: int
    start: int = 0

    def shards(self, shard_bytes: int = SHARD_BYTES) -> list[Shard]:
        with pyarrow.parquet.ParquetFile(self.path) as file:
            sizes = [file.metadata.row_group(k).total_byte_size for k in range(self.end)]
        bins = np.cumsum([0, *sizes])[:-1] // shard_bytes
        edges = [0, *(np.flatnonzero(np.diff(bins)) + 1).tolist(), self.end]
        return _shards(edges)

    def describe(self) -> str:
        with pyarrow.parquet.ParquetFile(self.path) as file:
            points = file.metadata.num_rows
        return f"{self.path.name}: {points:,} points in a long table, {in_words(self.path.stat().st_size)}"

    def identity(self) -> dict[str, Any]:
        return identity(self.path)

    def rows(self, first: int, end: int) -> Iterator[Chunk]:
        # without pre_buffer, which would hold whole row groups
        with pyarrow.parquet.ParquetFile(self.path, pre_buffer=False, buffer_size=1 << 20) as file:
            for batch in file.iter_batches(CHUNK_ROWS, list(range(first, end)), list(self.columns)):
                yield checked({name: _plain(batch.column(name)) for name in self.columns}, {})

    def name_before(self, place: int) -> pa.Scalar:
        with pyarrow.parquet.ParquetFile(self.path) as file:
            for k in range(place - 1, -1, -1):
                names = _plain(file.read_row_group(k, columns=["curve"]).column("curve").combine_chunks()).drop_null()
                if len(names):
                    return names[-1]
        return pa.scalar(None)


@dataclass(frozen=True)
class LongCsv:
    """A long table in CSV; places are bytes. `header` has all columns of the file, `columns` those that count."""

    path: Path
    header: tuple[str, ...]
    columns: tuple[str, ...]
    start: int
    end: int

    def shards(self, shard_bytes: int = SHARD_BYTES) -> list[Shard]:
        return _shards([*range(self.start, self.end, shard_bytes), self.end])

    def describe(self) -> str:
        return f"{self.path.name}: a long table of {in_words(self.end)} as text"

    def identity(self) -> dict[str, Any]:
        return identity(self.path)

    def rows(self, first: int, end: int) -> Iterator[Chunk]:
        for text in self._text(first, end, CHUNK_BYTES):
            yield self._parsed(text)

    def name_before(self, place: int) -> pa.Scalar:
        back = BACK_BYTES
        while True:
            first = max(self.start, place - back)
            for text in reversed(list(self._text(first, place, back))):
                names = [cells[self.header.index("curve")] for cells in self._cells(text) if len(cells) > 1]
                for name in reversed(names):
                    if name:
                        return pa.scalar(name)
            if first == self.start:
                return pa.scalar(None)
            back *= 4

    def _text(self, first: int, end: int, size: int) -> Iterator[bytes]:
        """The lines that begin in first to before end, in pieces of about `size`."""
        with open(self.path, "rb") as file:
            if first > self.start:  # from the next line, unless one begins here
                file.seek(first - 1)
                file.readline()
            else:
                file.seek(first)
            while (at := file.tell()) < end:
                yield file.read(min(size, end - at) - 1) + file.readline()

    def _parsed(self, text: bytes) -> Chunk:
        numbers = {name: pa.float64() for name in self.columns if name != "curve"}
        places = [str(k) for k in range(len(self.header))]  # the other columns may share names
        at = {name: places[self.header.index(name)] for name in self.columns}
        try:
            table = pyarrow.csv.read_csv(
                pa.BufferReader(text),
                pyarrow.csv.ReadOptions(column_names=places),
                convert_options=pyarrow.csv.ConvertOptions(
                    column_types={at[name]: numbers.get(name, pa.string()) for name in self.columns},
                    include_columns=list(at.values()),
                    null_values=[""],
                    quoted_strings_can_be_null=True,
                ),
            )
        except (pa.ArrowInvalid, pa.ArrowKeyError):  # something malformed: line by line, to learn where
            return self._line_by_line(text)
        found = {name: table.column(place).combine_chunks() for name, place in at.items()}
        return checked(found | {"curve": _no_empty(found["curve"])}, {})

    def _line_by_line(self, text: bytes) -> Chunk:
        columns: dict[str, list[str | None]] = {name: [] for name in self.columns}
        problems: dict[int, str] = {}
        for row, cells in enumerate(self._cells(text)):
            if len(cells) != len(self.header):
                problems[row] = f"{len(cells)} cells, expected {len(self.header)}"
            for name, column in columns.items():
                k = self.header.index(name)
                column.append(cells[k] or None if k < len(cells) else None)
        return checked({name: pa.array(column, pa.string()) for name, column in columns.items()}, problems)

    def _cells(self, text: bytes) -> Iterator[list[str]]:
        """The cells of each line. Each line on its own: a stray quote must not swallow its neighbours."""
        for line in text.decode(errors="replace").replace("\r\n", "\n").split("\n"):
            if line:
                try:
                    yield next(csv.reader([line]))
                except csv.Error:
                    yield []


def open_parquet(path: Path) -> LongParquet:
    """The long table of a Parquet file.

    Raises:
        ValueError: for a file that is not Parquet, lacks columns or rows.
    """
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names, rows, groups = file.schema_arrow.names, file.metadata.num_rows, file.num_row_groups
    except (ValueError, OSError) as error:  # pyarrow's own errors are both
        raise ValueError(f"fit: {path} cannot be read as a table ({error})") from None
    columns = _columns(path, names)
    if not rows:
        raise ValueError(f"fit: {path} holds no rows")
    return LongParquet(path, columns, groups)


def open_csv(path: Path) -> LongCsv:
    """The long table of a CSV file with a header.

    Raises:
        ValueError: for a file that lacks columns or rows.
    """
    with open(path, "rb") as file:
        first = file.readline(1 << 20)
        start, end = file.tell(), file.seek(0, 2)
        file.seek(start)
        rows = bool(file.read(1 << 16).strip())
    try:
        header = next(csv.reader([first.decode("utf-8-sig").strip("\r\n")]), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"fit: {path} cannot be read as a table ({error})") from None
    columns = _columns(path, header)
    if not rows:
        raise ValueError(f"fit: {path} holds no rows")
    return LongCsv(path, tuple(header), columns, start, end)


def _columns(path: Path, names: list[str]) -> tuple[str, ...]:
    missing = [name for name in NEEDED if name not in names]
    if missing:
        raise ValueError(f"fit: {path} lacks the columns {missing}; it has {names}, expected curve,x,y[,weight]")
    return (*NEEDED, "weight") if "weight" in names else NEEDED


def _shards(edges: list[int]) -> list[Shard]:
    return [Shard(k, first, end) for k, (first, end) in enumerate(pairwise(edges))]


def _named(rows: Iterator[Chunk], known: pa.Scalar) -> Iterator[Chunk]:
    """Rows whose missing names are those of the row before, `known` before the first."""
    for chunk in rows:
        names = chunk.curve
        if names.null_count:
            before = pa.array([known.as_py()], names.type)
            names = pc.fill_null_forward(pa.concat_arrays([before, names])).slice(1)
        if len(names):
            known = names[-1]
        yield replace(chunk, curve=names)


def _continued(rows: Iterator[Chunk], known: pa.Scalar, *, inside: bool) -> Iterator[Chunk]:
    """The first rows, as long as they go on with the curve `known`; or, where not `inside`, all rows after these."""
    passed = False
    for chunk in _named(rows, known):
        if passed:
            yield chunk
            continue
        new = chunk.curve.is_valid() if not known.is_valid else pc.fill_null(pc.not_equal(chunk.curve, known), False)
        place = pc.index(new, True).as_py()
        passed = place >= 0
        place = place if passed else len(chunk)
        yield chunk.part(0, place) if inside else chunk.part(place, len(chunk))
        if passed and inside:
            return


def _plain(column: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return _no_empty(column)


def _no_empty(column: pa.Array) -> pa.Array:
    """Empty text is a missing cell."""
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return column
    return pc.if_else(pc.equal(column, ""), pa.scalar(None, column.type), column)
