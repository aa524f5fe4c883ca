"""The texts in one file, one after the other; the format follows from its name.

    .jsonl .ndjson     a text a line, in a field of the object that stands there
    .parquet           a text a row, in a column
    any other name     text, or several with the end-of-text token written between them

All but .parquet may be compressed: a.jsonl.gz, a.txt.zst. Lines and rows are read as they are needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from tsl_jax.data import parquet_text
from tsl_jax.data.compression import COMPRESSED, open_decompressed

PIECE = 1 << 22  # bytes read at a time
LINES = (".jsonl", ".ndjson")
READ = ".txt and other text, .jsonl, .ndjson, these as .gz or .zst, .parquet, .npy and .bin"
NO_TEXT = frozenset(
    (".7z", ".arrow", ".bz2", ".doc", ".docx", ".epub", ".feather", ".h5", ".odt", ".pdf", ".pickle", ".pkl")
) | frozenset((".pt", ".rar", ".safetensors", ".tar", ".tgz", ".xls", ".xlsx", ".xz", ".zip"))


def validate_format(file: Path) -> None:
    """Refuse a file whose name says that its text cannot be read here, before any is read.

    Raises:
        ValueError: naming what is read.
    """
    suffix = _suffix(file)
    if suffix in NO_TEXT or (suffix == ".parquet" and file.suffix in COMPRESSED):
        remedy = "convert it to one of them, unpack it, or leave it out"
        raise ValueError(f"data: {file} is a {file.suffix} file, which is not read; {READ} are; {remedy}")


def texts(file: Path, field: str, end_of_text: str, max_bytes: int = 1 << 62) -> Iterator[str]:
    """The texts of a file, blank ones among them.

    Args:
        max_bytes: of a text that was compressed, or of Parquet: a few megabytes may stand for more than memory holds.

    Raises:
        ValueError: for a file that is damaged or not UTF-8, without text in the field, or beyond `max_bytes`.
        OSError: for one that cannot be read.
    """
    if _suffix(file) == ".parquet":
        yield from parquet_text.texts(file, field, max_bytes)
        return
    compressed = file.suffix in COMPRESSED

    def bounded(size: int) -> None:
        if compressed and size > max_bytes:
            problem = f"{file} holds a text of more than {max_bytes:,} bytes once it is decompressed"
            raise ValueError(f"data: {problem}; raise data.max_bytes, or leave it out")

    with open_decompressed(file) as stream:
        if _suffix(file) in LINES:
            for number in count(1):
                raw = stream.readline(max_bytes + 1 if compressed else -1)
                bounded(len(raw))
                if not raw:
                    break
                line = _decode(raw, f"line {number} of {file}")
                if line.strip():
                    yield _field(line, field, f"line {number} of {file}")
            return
        raw = bytearray()
        while piece := stream.read(PIECE):
            raw += piece
            bounded(len(raw))
    yield from _decode(raw, str(file)).split(end_of_text)


def _suffix(file: Path) -> str:
    """The suffix in front of the one that says how the file is compressed."""
    return Path(file.stem).suffix.lower() if file.suffix in COMPRESSED else file.suffix.lower()


def _decode(raw: bytes | bytearray, where: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problem = f"{where} is not UTF-8 text (byte {raw[error.start]:#04x} at {error.start})"
        raise ValueError(f"data: {problem}; convert it, unpack it, or leave it out; {READ} are read") from None


def _field(line: str, field: str, where: str) -> str:
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"data: {where} is not JSON ({error!s:.200}); correct or remove it") from None
    if isinstance(value, dict) and isinstance(value.get(field), str):
        return value[field]
    has = f"it has {', '.join(map(repr, value))}" if isinstance(value, dict) else f"it is a {type(value).__name__}"
    raise ValueError(f"data: {where} has no text in the field {field!r}; {has}; set data.field")
