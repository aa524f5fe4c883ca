"""Named columns of a table file: .csv with a header line, .jsonl with an object a line, or .parquet.

A row is counted from 1, without the header. A cell is missing where it is empty, null, or says so in a word.
"""

from __future__ import annotations

import csv
import json
import reprlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

MOST_ROWS = 20_000_000  # of a table that is held in memory
MISSING = frozenset(("", "na", "n/a", "nan", "none", "null"))  # words, in lower case

Columns = dict[str, list[Any]]


def read_columns(path: Path, wanted: Collection[str]) -> tuple[list[str], Columns]:
    """The names of all columns, and the cells of those wanted that are there.

    Raises:
        ValueError: for another kind of file, one that is damaged, rows that do not fit the header, or a wanted name
            that several columns have.
        OSError: for one that cannot be read.
    """
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl, ".ndjson": _read_jsonl, ".parquet": _read_parquet}
    if path.suffix.lower() not in readers:
        raise ValueError(
            f"table: expected a .csv, .jsonl or .parquet file, found {path.name}; export it as one of them "
            "(tsl.read_log and tsl import read other logs)"
        )
    try:
        names, columns = readers[path.suffix.lower()](path, wanted)
    except UnicodeDecodeError as error:
        raise ValueError(f"table: {path.name} is not UTF-8 text ({error}); convert or unpack it") from None
    if not names or any(not cells for cells in columns.values()):
        raise ValueError(f"table: {path.name} has no rows; expected one for each checkpoint, below a header")
    return names, columns


def missing(cell: Any) -> bool:
    """Whether there is nothing in a cell."""
    return cell is None or cell != cell or (isinstance(cell, str) and cell.strip().lower() in MISSING)


def numbers(cells: Sequence[Any], refuse: Callable[[int, str], Any]) -> Float[np.ndarray, " row"]:
    """The cells as float64 (row,), NaN where they are missing; refuse(k, word) is called for the first that is none.

    True, false and digits with an underscore are no numbers, though Python reads them as such.
    """
    values = np.empty(len(cells))
    for k, cell in enumerate(cells):
        try:
            if isinstance(cell, bool) or (isinstance(cell, str) and "_" in cell):
                raise ValueError
            values[k] = np.nan if missing(cell) else float(cell)
        except (TypeError, ValueError, OverflowError):
            refuse(k, f"{cell!s:.40}" if isinstance(cell, str) else reprlib.repr(cell))
    return values


def _refuse_repeated(path: Path, names: Sequence[str], wanted: Collection[str]) -> None:
    """One of several columns of a name must not be chosen in silence; others than those wanted do not matter."""
    for name in wanted:
        if list(names).count(name) > 1:
            raise ValueError(f"table: {path.name} has several columns {name}; rename or remove all but one")


def _read_csv(path: Path, wanted: Collection[str]) -> tuple[list[str], Columns]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        try:
            cells = csv.reader(file, skipinitialspace=True)
            names, *rows = [row for row in cells if row] or [[]]  # blank lines are skipped
        except csv.Error as error:
            raise ValueError(f"table: {path.name} is not a .csv file ({error}); export it again") from None
    names = [name.strip() for name in names]
    if len(names) == 1 and (signs := [sign for sign in ";\t|" if sign in names[0]]):
        fix = "write commas, or read it by tsl.read_log (tsl import)"
        raise ValueError(f"table: the cells seem to be parted by {signs[0]!r} in {path.name}; {fix}")
    _refuse_repeated(path, names, wanted)
    for number, row in enumerate(rows, start=1):
        if len(row) != len(names):
            found = f"row {number} of {path.name} has {len(row)} cells, the header {len(names)}"
            raise ValueError(f"table: {found}; quote commas within cells, or fix the row")
    return names, {name: [row[names.index(name)] for row in rows] for name in wanted if name in names}


def _read_jsonl(path: Path, wanted: Collection[str]) -> tuple[list[str], Columns]:
    rows: list[dict[str, Any]] = []
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"line {number} of {path.name}"
            try:
                # As pairs: of two entries with one name a dict would keep the last in silence.
                pairs = json.loads(line, object_pairs_hook=list)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"table: {where} is not JSON ({error!s:.200}); fix or remove it") from None
            if not line.lstrip().startswith("{"):
                fix = 'write a row as {"step": 1, "loss": 2.5}'
                raise ValueError(f"table: {where} is no object, found {line[:40]!r}; {fix}")
            _refuse_repeated(path, [name for name, _ in pairs], wanted)
            rows.append(dict(pairs))
    names = list(dict.fromkeys(name for row in rows for name in row))  # rows may have different entries
    return names, {name: [row.get(name) for row in rows] for name in wanted if name in names}


def _read_parquet(path: Path, wanted: Collection[str]) -> tuple[list[str], Columns]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            _refuse_repeated(path, names, wanted)
            if file.metadata.num_rows > MOST_ROWS:  # a few bytes of Parquet may stand for any number of equal rows
                found = f"{file.metadata.num_rows:,} rows, more than {MOST_ROWS:,}"
                raise ValueError(f"table: {path.name} has {found}; take the rows of evaluations alone")
            table = file.read(columns=[name for name in wanted if name in names])
            return names, {name: table.column(name).to_pylist() for name in table.column_names}
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise ValueError(f"table: {path.name} is not a whole .parquet file ({error!s:.300}); write it again") from None
