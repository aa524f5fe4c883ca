"""Files that are there whole or not at all, after a kill or a power failure too: a temporary name, synced, renamed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Replace a file by what `write` puts into the open one it gets: the old or the new is there, whatever happens."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        move_atomically(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def move_atomically(source: Path, path: Path) -> None:
    """Rename a synced file, and sync the name."""
    os.replace(source, path)
    sync(path.parent)


def sync(path: Path | str) -> None:
    """fsync a file, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
