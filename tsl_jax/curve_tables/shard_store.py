"""Finished shards on disk, beside the table that they will become: `<out>.parts/`.

A shard is written under another name, synced, and renamed, so that it is there whole or not at all, whenever the
process is killed. The manifest holds the request that the shards answer; shards of another request are never mixed in.
A lock, which dies with its process, keeps two calls from writing the same table.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow.ipc

from tsl_jax.atomic_write import write_atomically
from tsl_jax.curve_tables.worker import Fitted, Malformed

MANIFEST = "manifest.json"
NOTES = b"tsl_jax"  # where a shard's file keeps what is not a column


class Parts:
    """The folder of finished shards of one request."""

    def __init__(self, out: Path, request: dict[str, Any]) -> None:
        """Open or make the folder.

        Raises:
            ValueError: it holds shards of another request, or another call is writing to it.
        """
        self.folder = out.with_name(f"{out.name}.parts")
        with saying_when_full(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = self._locked()
        try:
            with saying_when_full(self.folder):
                self._claim(request)
        except BaseException:
            os.close(self._lock)
            raise

    def has(self, number: int) -> bool:
        """Whether a shard is finished."""
        return self._path(number).exists()

    def store(self, number: int, fitted: Fitted) -> None:
        """Keep the rows of a shard; on return they survive a kill and a power failure."""
        notes = {"rows": fitted.rows, "malformed": fitted.malformed, "malformed_rows": fitted.malformed_rows}
        table = fitted.table.replace_schema_metadata({NOTES: json.dumps(notes)})

        def write(file: IO[bytes]) -> None:
            with pyarrow.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)

        with saying_when_full(self.folder):
            write_atomically(self._path(number), write)

    def load(self, number: int) -> Fitted:
        """The rows of a finished shard, mapped rather than read."""
        with pyarrow.memory_map(str(self._path(number))) as file:
            table = pyarrow.ipc.open_file(file).read_all()
        notes = json.loads(table.schema.metadata[NOTES])
        malformed = [Malformed(*each) for each in notes["malformed"]]
        return Fitted(table.replace_schema_metadata(None), notes["rows"], malformed, notes["malformed_rows"])

    def remove(self) -> None:
        """Forget the shards: the table is complete. The manifest goes last, so that a kill leaves no orphans."""
        with ThreadPoolExecutor(8) as pool:  # a file costs milliseconds where the system discards its blocks at once
            list(pool.map(Path.unlink, [path for path in self.folder.iterdir() if path.name != MANIFEST]))
        shutil.rmtree(self.folder)

    def close(self) -> None:
        """Let go of the folder; one without a shard is removed."""
        if self.folder.exists() and not any(self.folder.glob("*.arrow")):
            self.remove()
        os.close(self._lock)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:08d}.arrow"

    def _locked(self) -> int:
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # no locks on this system
            pass
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                os.close(handle)
                raise ValueError(
                    f"fit: another call is writing {self.folder}; wait for it, or give another --out"
                ) from None
        return handle

    def _claim(self, request: dict[str, Any]) -> None:
        """Continue shards of this request, begin if there are none, and say no to those of another."""
        path = self.folder / MANIFEST
        if not path.exists():
            if any(self.folder.glob("*.arrow")):
                raise ValueError(f"fit: {self.folder} has shards but no {MANIFEST}; remove it, or give another --out")
            text = json.dumps({"request": request, "hash": digest(request)}, indent=1).encode()
            write_atomically(path, lambda file: file.write(text))
            return
        try:
            known = json.loads(path.read_text())
            other = known["request"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"fit: {path} is damaged; remove {self.folder}, or give another --out") from None
        if known.get("hash") == digest(request):
            return
        for name in sorted({*request, *other}):
            if request.get(name) != other.get(name):
                raise ValueError(
                    f"fit: {self.folder} holds finished shards of another request ({name} is {other.get(name)!r} "
                    f"there, {request.get(name)!r} here); repeat that request to continue it, remove the folder, or "
                    "give another --out"
                )
        raise ValueError(f"fit: {path} is damaged; remove {self.folder}, or give another --out")


def digest(request: dict[str, Any]) -> str:
    """Hash of a request."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def saying_when_full(folder: Path) -> Iterator[None]:
    """A full disk in one sentence: nothing is lost."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        text = "no space left on the disk; finished shards are kept: free some space and repeat the call to continue"
        raise OSError(error.errno, text, str(folder)) from error
