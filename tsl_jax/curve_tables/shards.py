"""What a source of curves by the million falls into: shards, and what tells one source from another.

A source is a small picklable description, never the data: whoever fits a shard opens the file himself, on this machine
or another that sees the same path. Shards follow from sizes alone, without reading the data, so that they are the same
in every call: rows of a `.npy`, row groups of a Parquet file, bytes of a CSV.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

SHARD_BYTES = 1 << 27  # of the source: the unit that is fitted in memory, and that a kill can cost
SHARD_CURVES = 1 << 17  # short curves: their results take more room than they do
DIGEST_BYTES = 1 << 16  # read at each end of a file to tell it from another of the same size and time


@dataclass(frozen=True)
class Shard:
    """A part of a source, from `first` to before `end`, in the source's own unit; `number` counts from 0."""

    number: int
    first: int
    end: int


class Source(Protocol):
    """What `fit_table` asks of a file of curves."""

    @property
    def path(self) -> Path: ...

    def shards(self, shard_bytes: int) -> list[Shard]:
        """The whole file, in order."""
        ...

    def describe(self) -> str:
        """Its size in one line, before any work."""
        ...

    def identity(self) -> dict[str, Any]:
        """What tells this file from a changed one."""
        ...


def in_words(size: float) -> str:
    """A number of bytes, for people."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.4g} GB"


def identity(path: Path) -> dict[str, Any]:
    """Path, size, time and a digest of both ends of a file: enough to notice that it was replaced."""
    found = path.stat()
    with open(path, "rb") as file:
        digest = hashlib.sha256(file.read(DIGEST_BYTES))
        file.seek(max(0, found.st_size - DIGEST_BYTES))
        digest.update(file.read())
    return {
        "source": str(path),
        "size": found.st_size,
        "mtime_ns": found.st_mtime_ns,
        "digest": digest.hexdigest()[:16],
    }
