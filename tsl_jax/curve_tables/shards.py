"""Shards: the parts of a source that are fitted one at a time, their results, and the folder that keeps finished ones.

A result is written under another name, synced, and renamed, so that it is there whole or not at all, whenever the
process is killed. The manifest in the folder `<out>.parts/` holds the request that the results answer; results of
another request are never mixed in. A lock, which ends with its process, keeps two calls from writing the same table.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import mmap
import os
import re
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.ipc

from tsl_jax.atomic_write import is_unused, remove_temporary_files, write_atomically

SHARD_BYTES = 1 << 27  # of the source: the unit that is fitted in memory, and that a kill can cost
DIGEST_BYTES = 1 << 16  # read at each end of a file to tell it from another of the same size and time
MANIFEST = "manifest.json"
TABLE, ERRORS = ".table.tmp", ".errors.tmp"  # the table in the making, and its malformed rows
_OURS = re.compile(r"\d{8}\.arrow")
CHECKSUM = 32  # bytes at the end of a result's file: the SHA-256 of those before
NOTES = b"tsl_jax"  # where a result's file keeps what is not a column


@dataclass(frozen=True)
class Shard:
    """A part of a source, from `first` to before `end`, in the source's own unit; `number` counts from 0."""

    number: int
    first: int
    end: int

    def __len__(self) -> int:
        return self.end - self.first


class MalformedRow(NamedTuple):
    """A malformed row: its place (counted from the first row of its shard), its curve, and what is wrong."""

    row: int
    curve: str
    problem: str


@dataclass(frozen=True)
class ShardResult:
    """The fits of a shard (a table, status as int8), how many rows of the source they come from, what was malformed.

    `left_out` counts the points that were not fitted, by the reason.
    """

    table: pa.Table
    rows: int
    malformed: list[MalformedRow] = field(default_factory=list)
    malformed_rows: int = 0
    left_out: dict[str, int] = field(default_factory=dict)


def file_identity(path: Path) -> dict[str, Any]:
    """Path, size, time and a digest of both ends of a file: enough to notice that it was replaced."""
    stat = path.stat()
    with open(path, "rb") as file:
        digest = hashlib.sha256(file.read(DIGEST_BYTES))
        file.seek(max(0, stat.st_size - DIGEST_BYTES))
        digest.update(file.read())
    return {
        "source": str(path),
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "digest": digest.hexdigest()[:16],
    }


def size_in_words(size: float) -> str:
    """A number of bytes, for people."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.4g} GB"


class ShardStore:
    """The folder of the results of one request."""

    def __init__(self, out: Path, request: dict[str, Any]) -> None:
        """Open or make the folder of the table `out`.

        Raises:
            ValueError: it holds results of another request or something else, or another call is writing to it.
        """
        self.folder = out.with_name(f"{out.name}.parts")
        self._intact: set[int] = set()  # shards whose checksum has been compared
        with explain_full_disk(self.folder):
            if not self.folder.is_symlink() and is_unused(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
            elif not (self.folder / MANIFEST).exists():
                problem = f"{self.folder} is there and holds no {MANIFEST} of finished shards"
                raise ValueError(f"fit: {problem}; move it away, or give another --out")
            self._lock = os.open(self.folder, os.O_RDONLY)
        try:
            self._take_lock()
            with explain_full_disk(self.folder):
                self._match_request(request)
                remove_temporary_files(self.folder)
        except BaseException:
            os.close(self._lock)
            raise

    def has(self, number: int) -> bool:
        """Whether a shard is finished; one that is damaged is removed, with a warning, and is to be fitted again."""
        path = self._path(number)
        if number in self._intact or not path.exists():
            return number in self._intact
        with open(path, "rb") as file:  # a call before this one has left it
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
        if hashlib.sha256(memoryview(content)[:-CHECKSUM]).digest() == content[-CHECKSUM:]:
            self._intact.add(number)
            return True
        warnings.warn(f"fit: {path} is damaged; its curves are fitted again", stacklevel=2)
        path.unlink()
        return False

    def save(self, number: int, result: ShardResult) -> None:
        """Keep the result of a shard; on return it survives a kill and a power failure."""
        notes = {
            "rows": result.rows,
            "malformed": result.malformed,
            "malformed_rows": result.malformed_rows,
            "left_out": result.left_out,
        }
        table = result.table.replace_schema_metadata({NOTES: json.dumps(notes)})

        def write(file: IO[bytes]) -> None:
            hashing = _Hashing(file)
            with pyarrow.ipc.new_file(pa.PythonFile(hashing, "w"), table.schema) as writer:
                writer.write_table(table)
            file.write(hashing.sha.digest())

        with explain_full_disk(self.folder):
            write_atomically(self._path(number), write)
        self._intact.add(number)

    def load(self, number: int) -> ShardResult:
        """The result of a finished shard, mapped rather than read."""
        with pyarrow.memory_map(str(self._path(number))) as file:
            content = file.read_buffer(file.size() - CHECKSUM)
            table = pyarrow.ipc.open_file(content).read_all()
        notes = json.loads(table.schema.metadata[NOTES])
        malformed = [MalformedRow(*row) for row in notes["malformed"]]
        table = table.replace_schema_metadata(None)
        return ShardResult(table, notes["rows"], malformed, notes["malformed_rows"], notes["left_out"])

    def remove(self) -> None:
        """Delete the results: the table is complete. The manifest goes last: no kill leaves results without one.

        What somebody else has put there stays, and so does the folder then.
        """
        remove_temporary_files(self.folder)
        ours = [path for path in self.folder.iterdir() if _OURS.fullmatch(path.name) or path.name in (TABLE, ERRORS)]
        with ThreadPoolExecutor(8) as pool:  # a file costs milliseconds where the system discards its blocks at once
            list(pool.map(Path.unlink, ours))
        (self.folder / MANIFEST).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty
            self.folder.rmdir()

    def close(self) -> None:
        """Release the lock; a folder without any result is removed."""
        if (self.folder / MANIFEST).exists() and not any(self.folder.glob("*.arrow")):
            self.remove()
        os.close(self._lock)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:08d}.arrow"

    def _take_lock(self) -> None:
        try:
            import fcntl

            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # no locks on this system
            pass
        except OSError as error:  # others, such as a file system without locks, are no reason to stop
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise ValueError(
                    f"fit: another call is writing {self.folder}; wait for it, or give another --out"
                ) from None

    def _match_request(self, request: dict[str, Any]) -> None:
        """Continue results of this request, begin if there are none, and refuse those of another."""
        path = self.folder / MANIFEST
        digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:16]
        if not path.exists():
            text = json.dumps({"request": request, "hash": digest}, indent=1)
            write_atomically(path, text)
            return
        try:
            manifest = json.loads(path.read_text())
            stored, stored_digest = manifest["request"], manifest["hash"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"fit: {path} is damaged; remove {self.folder}, or give another --out") from None
        if stored_digest == digest:
            return
        for name in sorted({*request, *stored}):
            if request.get(name) != stored.get(name):
                raise ValueError(
                    f"fit: {self.folder} holds finished shards of another request ({name} is {stored.get(name)!r} "
                    f"there, {request.get(name)!r} here); repeat that request to continue it, remove the folder, or "
                    "give another --out"
                )
        raise ValueError(f"fit: {path} is damaged; remove {self.folder}, or give another --out")


class _Hashing(io.RawIOBase):
    """Writes on into a file, and hashes what passes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.sha = file, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.sha.update(data)
        return self._file.write(data)


@contextmanager
def explain_full_disk(folder: Path) -> Iterator[None]:
    """Say in one sentence that the disk is full, and that nothing is lost."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        text = "no space left on the disk; finished shards are kept: free some space and repeat the call to continue"
        raise OSError(error.errno, text, str(folder)) from error
