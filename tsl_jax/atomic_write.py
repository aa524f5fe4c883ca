"""Files that are whole or absent, after a kill or a power failure too: a temporary name, synced, renamed.

The order is that of POSIX: the bytes are on disk (fsync of the file) before the name points to them (rename, which
replaces in one step), and the name is on disk (fsync of the folder) before the call returns.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any


def write_atomically(path: Path, content: str | bytes | Callable[[IO[bytes]], Any]) -> None:
    """Replace a file: the old or the new is there, whatever happens.

    Args:
        content: text (written as UTF-8), bytes, or a function that writes into the open file it gets.

    Raises:
        OSError: if it cannot be written; the old file is untouched and nothing else is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
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
