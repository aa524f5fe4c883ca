"""The texts in a column of a Parquet file, in memory that the file's own size bounds.

A few kilobytes of Parquet may stand for terabytes: a page shrinks as any compressed bytes do, and a value that is kept
once, in a dictionary, may be that of a million rows. So the header of every page is read first, and a page that claims
to unpack to more than `UNPACKED` bytes and `SHRINKS` times its own is refused before anything is allocated. No value
is larger than the largest page; so many rows are decoded at once as are within `AT_ONCE` bytes even if all are as
large. What all rows unpack to, and their number, are bounded as a page is.

Headers are Thrift structs in the compact protocol: https://github.com/apache/thrift/blob/master/doc/specs
(thrift-compact-protocol.md) and https://github.com/apache/parquet-format (parquet.thrift, PageHeader).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

UNPACKED, SHRINKS = 1 << 26, 100  # bytes; and how far a larger text may shrink
AT_ONCE, ROWS = 1 << 26, 64  # bytes that rows decoded at once may take, and how many they are at most
PAGE_SIZES = (2, 3)  # fields of a page header: bytes unpacked, and as they lie in the file


def texts(file: Path, column: str, max_bytes: int) -> Iterator[str]:
    """The texts of the column, row after row; empty cells are left out.

    Raises:
        ValueError: for a file that is damaged or has no text in the column, for a text of more than `max_bytes`, and
            for a small file that stands for a large one.
        OSError: for one that cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            _check_column(file, column, table.schema_arrow)
            size, unpacked = file.stat().st_size, 0
            _check_size(file, size, table.metadata.num_rows)  # as if of a byte each: empty ones take time
            rows = max(1, min(ROWS, AT_ONCE // _largest_page(file, column, table.metadata)))
            for batch in table.iter_batches(batch_size=rows, columns=[column]):
                for text in batch.column(0).drop_null():
                    length = text.as_buffer().size
                    unpacked += length
                    if length > max_bytes:
                        problem = f"{file} holds a text of more than {max_bytes:,} bytes"
                        raise ValueError(f"data: {problem}; raise data.max_bytes, or leave it out")
                    _check_size(file, size, unpacked)
                    yield text.as_py()
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        problem = f"{file} is not a whole .parquet file ({error!s:.300})"
        raise ValueError(f"data: {problem}; fetch or write it again") from None


def _check_column(file: Path, column: str, schema: Any) -> None:
    import pyarrow as pa

    if column not in schema.names:
        has = ", ".join(map(repr, schema.names))
        raise ValueError(f"data: {file} has no text in the column {column!r}; it has {has}; set data.field")
    kind = schema.field(column).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise ValueError(f"data: the column {column!r} of {file} holds {kind}, not text; set data.field")


def _check_size(file: Path, size: int, unpacked: int) -> None:
    if unpacked > max(UNPACKED, SHRINKS * size):
        found = f"{size:,} bytes of {file} unpack to {unpacked:,} or more"
        raise ValueError(f"data: {found}, as those of no text do; leave it out, or write its text as .jsonl")


def _largest_page(file: Path, column: str, metadata: Any) -> int:
    """Bytes that the largest page of a column unpacks to, by the headers of all its pages; 1 at least."""
    largest = 1
    with open(file, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for group in range(metadata.num_row_groups):
            for leaf in range(metadata.num_columns):
                chunk = metadata.row_group(group).column(leaf)
                if chunk.path_in_schema == column:
                    for unpacked, packed in _pages(file, content, chunk):
                        _check_size(file, packed, unpacked)
                        largest = max(largest, unpacked)
    return largest


def _pages(file: Path, content: mmap.mmap, chunk: Any) -> Iterator[tuple[int, int]]:
    """Bytes of each page of a column chunk, unpacked and as they lie in the file."""
    at = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < at:
        at = chunk.dictionary_page_offset
    end = min(at + chunk.total_compressed_size, len(content))
    while at < end:
        try:
            header, at = _struct(content, at)
            unpacked, packed = (header[field] for field in PAGE_SIZES)
        except (IndexError, KeyError, RecursionError, ValueError) as error:
            problem = f"{file} is not a whole .parquet file (a page header at {at:,}: {type(error).__name__})"
            raise ValueError(f"data: {problem}; fetch or write it again") from None
        yield unpacked, packed
        at += max(packed, 0)


def _struct(content: mmap.mmap, at: int) -> tuple[dict[int, int], int]:
    """The integers of a Thrift struct by field, and the place after it; other fields are passed over."""
    found, field = {}, 0
    while kind := content[at] & 15:
        delta, at = content[at] >> 4, at + 1
        if delta:
            field += delta
        else:
            field, at = _integer(content, at)
        if kind in (4, 5, 6):  # i16, i32, i64
            found[field], at = _integer(content, at)
        elif kind > 2:  # true and false have no bytes of their own
            at = _after(content, at, kind)
    return found, at + 1


def _after(content: mmap.mmap, at: int, kind: int) -> int:
    """The place after a value of this kind."""
    if kind in (4, 5, 6):
        return _integer(content, at)[1]
    if kind <= 3 or kind == 7:  # a boolean in a list, a byte, a double
        return at + (8 if kind == 7 else 1)
    if kind == 8:  # bytes
        length, at = _varint(content, at)
        return at + length
    if kind in (9, 10):  # a list, a set
        size, of, at = content[at] >> 4, content[at] & 15, at + 1
        if size == 15:
            size, at = _varint(content, at)
        for _ in range(size):
            at = _after(content, at, of)
        return at
    if kind == 12:
        return _struct(content, at)[1]
    raise ValueError(f"kind {kind}")  # no map stands in a page header


def _varint(content: mmap.mmap, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        byte, at = content[at], at + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("an integer of more than 64 bits")


def _integer(content: mmap.mmap, at: int) -> tuple[int, int]:
    """A zigzag integer: 0, -1, 1, -2, ... are kept as 0, 1, 2, 3, ..."""
    value, at = _varint(content, at)
    return (value >> 1) ^ -(value & 1), at
