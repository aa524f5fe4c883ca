"""Long tables, a row a point: `curve,x,y[,weight]` in Parquet or CSV, read and checked a chunk of rows at a time.

A shard is a range of row groups, or of bytes. A curve belongs to the shard in which it begins: the reader of a shard
skips the rows that continue the curve before it, and reads on behind its end to the last row of the curve that is open
there. Neighbouring shards thus agree from the file alone, without exchanging anything. In a CSV a line is a row, blank
lines are skipped, and names are text as written.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet

from tsl_jax.curve_tables.columns import ONE_CURVE, Columns, check, decode
from tsl_jax.curve_tables.curve_blocks import Chunk
from tsl_jax.curve_tables.shards import SHARD_BYTES, Shard, file_identity, size_in_words

pc: Any = pyarrow.compute  # made at import, so a type checker does not see it
CHUNK_BYTES = 1 << 23  # of CSV text parsed at once
CHUNK_ROWS = 1 << 18  # of Parquet decoded at once
HEADER_BYTES = 1 << 20
BACK_BYTES = 1 << 16  # read before a place in a CSV to learn which curve stands there


def chunks(table: LongParquet | LongCsv, shard: Shard) -> Iterator[Chunk]:
    """The rows of the curves that begin in the shard; a row without a name goes with the one before it."""
    rows = table.rows(shard.first, shard.end)
    if shard.first > table.start:
        rows = _split_where_curve_ends(rows, table.name_before(shard.first), keep="rest")
    else:
        rows = _fill_names(rows, pa.scalar(None))
    begun = False
    for chunk in rows:
        begun = begun or len(chunk) > 0
        yield chunk
    if begun and shard.end < table.end:
        after = table.rows(shard.end, table.end)
        yield from _split_where_curve_ends(after, table.name_before(shard.end), keep="curve")


@dataclass(frozen=True)
class LongParquet:
    """A long table in Parquet; places are row groups."""

    path: Path
    columns: Columns
    end: int
    start: int = 0

    def shards(self, shard_bytes: int = SHARD_BYTES) -> list[Shard]:
        if self.columns.curve is None:  # one curve, which belongs to one shard
            return [Shard(0, 0, self.end)]
        with pyarrow.parquet.ParquetFile(self.path) as file:
            sizes = [file.metadata.row_group(k).total_byte_size for k in range(self.end)]
        bins = np.cumsum([0, *sizes])[:-1] // shard_bytes
        edges = [0, *(np.flatnonzero(np.diff(bins)) + 1).tolist(), self.end]
        return [Shard(k, *ends) for k, ends in enumerate(pairwise(edges))]

    def describe(self) -> str:
        with pyarrow.parquet.ParquetFile(self.path) as file:
            points = file.metadata.num_rows
        return f"{self.path.name}: {points:,} points in a long table, {size_in_words(self.path.stat().st_size)}"

    def identity(self) -> dict[str, Any]:
        return file_identity(self.path) | {"columns": list(self.columns.names())}

    def rows(self, first: int, end: int) -> Iterator[Chunk]:
        # without pre_buffer, which would hold whole row groups
        with pyarrow.parquet.ParquetFile(self.path, pre_buffer=False, buffer_size=1 << 20) as file:
            batches = file.iter_batches(CHUNK_ROWS, list(range(first, end)), list(self.columns.names()))
            while True:
                try:
                    batch = next(batches, None)
                except (pa.ArrowException, OSError) as error:
                    raise ValueError(f"fit: {self.path} is damaged ({error!s:.300}); write it again") from None
                if batch is None:
                    return
                columns = {
                    role: decode(batch.column(name), names=role == "curve")
                    for role, name in self.columns.by_role().items()
                }
                yield check(columns, {}, self.columns)

    def name_before(self, place: int) -> pa.Scalar:
        name = self.columns.curve
        if name is None:
            return pa.scalar(ONE_CURVE)
        with pyarrow.parquet.ParquetFile(self.path) as file:
            for k in range(place - 1, -1, -1):
                column = file.read_row_group(k, columns=[name])[name].combine_chunks()
                names = decode(column, names=True).drop_null()
                if len(names):
                    return names[-1]
        return pa.scalar(None)


@dataclass(frozen=True)
class LongCsv:
    """A long table in CSV; places are bytes. `header` has all columns of the file, `columns` those that count."""

    path: Path
    header: tuple[str, ...]
    columns: Columns
    start: int
    end: int

    def shards(self, shard_bytes: int = SHARD_BYTES) -> list[Shard]:
        one = self.columns.curve is None  # curve, which belongs to one shard
        edges = [self.start, self.end] if one else [*range(self.start, self.end, shard_bytes), self.end]
        return [Shard(k, *ends) for k, ends in enumerate(pairwise(edges))]

    def describe(self) -> str:
        return f"{self.path.name}: a long table of {size_in_words(self.end)} as text"

    def identity(self) -> dict[str, Any]:
        return file_identity(self.path) | {"columns": list(self.columns.names())}

    def rows(self, first: int, end: int) -> Iterator[Chunk]:
        for text in self._lines(first, end, CHUNK_BYTES):
            yield self._parse(text)

    def name_before(self, place: int) -> pa.Scalar:
        if self.columns.curve is None:
            return pa.scalar(ONE_CURVE)
        back, column = BACK_BYTES, self.header.index(self.columns.curve)
        while True:
            first = max(self.start, place - back)
            for text in reversed(list(self._lines(first, place, back))):
                names = [cells[column] for cells in self._cells(text) if len(cells) > 1]
                for name in reversed(names):
                    if name:
                        return pa.scalar(name)
            if first == self.start:
                return pa.scalar(None)
            back *= 4

    def _lines(self, first: int, end: int, size: int) -> Iterator[bytes]:
        """The lines that begin in first to before end, in pieces of about `size`."""
        with open(self.path, "rb") as file:
            if first > self.start:  # from the next line, unless one begins here
                file.seek(first - 1)
                file.readline()
            else:
                file.seek(first)
            while (at := file.tell()) < end:
                yield file.read(min(size, end - at) - 1) + file.readline()

    def _parse(self, text: bytes) -> Chunk:
        places = [str(k) for k in range(len(self.header))]  # the other columns may share names
        at = {role: places[self.header.index(name)] for role, name in self.columns.by_role().items()}
        try:
            table = pyarrow.csv.read_csv(
                pa.BufferReader(text),
                pyarrow.csv.ReadOptions(column_names=places),
                convert_options=pyarrow.csv.ConvertOptions(
                    column_types={
                        place: pa.string() if role == "curve" else pa.float64() for role, place in at.items()
                    },
                    include_columns=list(at.values()),
                    null_values=[""],
                    quoted_strings_can_be_null=True,
                ),
            )
        except (pa.ArrowInvalid, pa.ArrowKeyError):  # something malformed: line by line, to learn where
            return self._parse_by_line(text)
        columns = {role: table.column(place).combine_chunks() for role, place in at.items()}
        return check(columns | {role: decode(columns[role]) for role in columns if role == "curve"}, {}, self.columns)

    def _parse_by_line(self, text: bytes) -> Chunk:
        places = {role: self.header.index(name) for role, name in self.columns.by_role().items()}
        columns: dict[str, list[str | None]] = {role: [] for role in places}
        problems: dict[int, str] = {}
        for row, cells in enumerate(self._cells(text)):
            if len(cells) != len(self.header):
                problems[row] = f"{len(cells)} cells, expected {len(self.header)}"
            for role, k in places.items():
                columns[role].append(cells[k] or None if k < len(cells) else None)
        arrays = {role: pa.array(column, pa.string()) for role, column in columns.items()}
        return check(arrays, problems, self.columns)

    def _cells(self, text: bytes) -> Iterator[list[str]]:
        """The cells of each line. Each line on its own: a stray quote must not swallow its neighbours."""
        try:
            decoded = text.decode()
        except UnicodeDecodeError as error:  # to guess the letters could make one name of two
            line = text[text.rfind(b"\n", 0, error.start) + 1 :].partition(b"\n")[0]
            problem = f"{self.path} is not UTF-8 text, the first such line is {line[:60]!r}"
            raise ValueError(f"fit: {problem}; convert it, as with iconv -f latin1 -t utf-8") from None
        for line in decoded.replace("\r\n", "\n").split("\n"):
            if line:
                try:
                    yield next(csv.reader([line]))
                except csv.Error:
                    yield []


def open_parquet(path: Path, columns: Columns) -> LongParquet:
    """The long table of a Parquet file.

    Raises:
        ValueError: for a file that is not Parquet, lacks columns or rows.
    """
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema, rows, groups = file.schema_arrow, file.metadata.num_rows, file.num_row_groups
    except (ValueError, OSError) as error:  # pyarrow's own errors are both
        raise ValueError(f"fit: {path} cannot be read as a table ({error!s:.300})") from None
    columns = columns.among(path, schema.names)
    for name in columns.names():
        kind = schema.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if (
            pa.types.is_nested(kind)
            or pa.types.is_binary(kind)
            or (name != columns.curve and pa.types.is_boolean(kind))
        ):
            expected = "names or numbers" if name == columns.curve else "numbers"
            raise ValueError(f"fit: the column {name} of {path} holds {kind!s:.60}; expected {expected}")
    if not rows:
        raise ValueError(f"fit: {path} holds no rows")
    return LongParquet(path, columns, groups)


def open_csv(path: Path, columns: Columns) -> LongCsv:
    """The long table of a CSV file with a header.

    Raises:
        ValueError: for a file that lacks columns or rows.
    """
    with open(path, "rb") as file:
        first = file.readline(HEADER_BYTES)
        if len(first) == HEADER_BYTES:
            raise ValueError(
                f"fit: {path} begins with a line of more than {HEADER_BYTES:,} bytes; expected its columns"
            )
        start, end = file.tell(), file.seek(0, 2)
        file.seek(start)
        rows = bool(file.read(1 << 16).strip())
    try:
        header = next(csv.reader([first.decode("utf-8-sig").strip("\r\n")]), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"fit: {path} cannot be read as a table ({error})") from None
    columns = columns.among(path, header)
    if not rows:
        raise ValueError(f"fit: {path} holds no rows")
    return LongCsv(path, tuple(header), columns, start, end)


def _fill_names(rows: Iterator[Chunk], name: pa.Scalar) -> Iterator[Chunk]:
    """Rows whose missing names are those of the row before, `name` before the first."""
    for chunk in rows:
        names = chunk.curve
        if names.null_count:
            before = pa.array([name.as_py()], names.type)
            names = pc.fill_null_forward(pa.concat_arrays([before, names])).slice(1)
        if len(names):
            name = names[-1]
        yield replace(chunk, curve=names)


def _split_where_curve_ends(rows: Iterator[Chunk], name: pa.Scalar, *, keep: str) -> Iterator[Chunk]:
    """The first rows, as long as they continue the curve `name` (keep="curve"), or all rows after these ("rest")."""
    ended = False
    for chunk in _fill_names(rows, name):
        if ended:
            yield chunk
            continue
        differs = chunk.curve.is_valid() if not name.is_valid else pc.fill_null(pc.not_equal(chunk.curve, name), False)
        place = pc.index(differs, True).as_py()
        ended = place >= 0
        place = place if ended else len(chunk)
        yield chunk.part(0, place) if keep == "curve" else chunk.part(place, len(chunk))
        if ended and keep == "curve":
            return
