"""Files that are whole or absent, after a kill or a power failure too: a temporary name, synced, renamed. And what
keeps them from harm: one process writes a folder at a time, no result replaces what it is made of, no link is followed.

The order is that of POSIX: the bytes are on disk (fsync of the file) before the name points to them (rename, which
replaces in one step), and the name is on disk (fsync of the folder) before the call returns. A temporary name is new
(O_EXCL), so that nobody can have put a link there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import IO, Any

LOCK = ".lock"
_TEMPORARY = re.compile(r"\..+\.\d+(-[0-9a-f]{8})?\.tmp")


def write_atomically(path: Path, content: str | bytes | Callable[[IO[bytes]], Any]) -> None:
    """Replace a file: the old or the new is there, whatever happens. Of a link the link is replaced.

    Args:
        content: text (written as UTF-8), bytes, or a function that writes into the open file it gets.

    Raises:
        OSError: if it cannot be written; the old file is untouched and nothing else is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        move_atomically(temporary, path)
    except BaseException as error:
        with suppress(OSError):  # where the folder itself is not there, the first error says so
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename in (None, str(temporary)):
            error.filename = str(path)  # of a full disk the system names no file
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


def append_text(path: Path, text: str, *, synced: bool = False) -> None:
    """Add to the end of a file, which is made if absent; synced: it is on disk on return.

    Raises:
        OSError: if it cannot be written, or is a link.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
    with open(handle, "a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        if synced:
            os.fsync(handle)


def remove_temporary_files(folder: Path) -> None:
    """Remove what killed writes have left in a folder; call it where no other process writes there."""
    for path in folder.glob(".*.tmp"):
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


def is_unused(folder: Path, ours: str = LOCK) -> bool:
    """Whether a folder is not there, or holds nothing but a lock, what killed writes left, and names like `ours`."""
    if folder.is_dir():
        names = (path.name for path in folder.iterdir())
        return all(name == LOCK or _TEMPORARY.fullmatch(name) or fnmatch(name, ours) for name in names)
    return not os.path.lexists(folder)


def check_outputs(inputs: Iterable[Path | None], outputs: Iterable[Path], area: str) -> None:
    """Nothing, where no file that would be written is one that is read, by whatever name or link.

    Raises:
        ValueError: naming it.
    """
    read = [path for path in inputs if path is not None]
    for out in outputs:
        for path in read:
            same = out.resolve() == path.resolve()
            if same or (out.exists() and path.exists() and os.path.samefile(out, path)):
                raise ValueError(f"{area}: the results would overwrite {path}, which is read; give another --out")


@contextmanager
def locked(folder: Path, area: str) -> Iterator[None]:
    """Hold the lock of a folder, which ends with the process however that ends; the file FOLDER/.lock stays.

    Raises:
        ValueError: naming the process that holds it. OSError: if the folder cannot be written.
    """
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:  # a file system without locks is no reason to stop
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                owner = os.pread(handle, 200, 0).decode(errors="replace").strip() or "another process"
                raise ValueError(
                    f"{area}: {owner} is writing {folder}; wait until it ends, or name another folder"
                ) from None
        owner = f"process {os.getpid()} on {socket.gethostname()} (since {time.strftime('%Y-%m-%d %H:%M:%S')})"
        os.ftruncate(handle, 0)
        os.pwrite(handle, owner.encode(), 0)
        yield
    finally:
        os.close(handle)
