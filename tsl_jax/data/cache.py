"""Prepared corpora on disk, each a folder named by the hash of everything it was made from.

A folder is made under a temporary name and renamed when it is whole. Its manifest has the checksum of every file; a
folder that does not match is made anew. The cache is $TSL_JAX_CACHE, else $XDG_CACHE_HOME/tsl_jax, else
~/.cache/tsl_jax, else a folder for temporary files, and may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
UNFINISHED = ".tsl_jax-unfinished-"  # a name that nobody else gives: folders of it are removed after a day
_DAY = 86_400  # seconds after which an unfinished folder is taken for one that was abandoned


def root() -> Path:
    """The folder of the cache."""
    if named := os.environ.get("TSL_JAX_CACHE"):
        return Path(named)
    if place := os.environ.get("XDG_CACHE_HOME"):
        return Path(place) / "tsl_jax"
    try:
        return Path.home() / ".cache" / "tsl_jax"
    except RuntimeError:  # a user without a home, as in a container: a folder of this user's alone
        folder = Path(tempfile.gettempdir()) / f"tsl_jax-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            raise OSError(f"data: {folder} is not this user's; name a folder for the cache in TSL_JAX_CACHE") from None
        return folder


def key(settings: dict[str, Any], files: Iterable[tuple[str, Path]]) -> str:
    """The hash of settings and of the bytes of files, which go by the names given with them; 32 hexadecimal digits.

    Raises:
        OSError: for a file that cannot be read.
    """
    sha = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, path in files:
        try:
            with open(path, "rb") as file:
                sha.update(f"\n{name} ".encode() + hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            problem = f"{path} cannot be read ({error.strerror or error})"
            raise OSError(f"data: {problem}; make it readable, or leave it out") from error
    return sha.hexdigest()[:32]


def read(folder: Path) -> dict[str, Any] | None:
    """The manifest of a prepared corpus, or None if it is missing or any file is damaged."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        # a name is that of a file in the folder: no path to elsewhere, no device that never ends
        intact = all(
            Path(name).name == name and (folder / name).is_file() and _checksum(folder / name) == value
            for name, value in manifest["files"].items()
        )
        return manifest if intact else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def make(folder: Path, write: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Fill a folder through `write`, which gets a temporary one and returns what the manifest shall say.

    Raises:
        OSError: if it cannot be written; nothing is left behind then.
    """
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        for abandoned in folder.parent.glob(f"{UNFINISHED}*"):  # by processes that were killed
            with suppress(OSError):
                if time.time() - abandoned.stat().st_mtime > _DAY:
                    shutil.rmtree(abandoned, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=folder.parent))
    try:
        manifest = write(temporary)
        with writing(folder):
            manifest = {**manifest, "files": {file.name: _checksum(file) for file in sorted(temporary.iterdir())}}
            (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1), "utf-8")
            if folder.parent == root() and folder.exists() and read(folder) is None:  # damaged
                shutil.rmtree(folder, ignore_errors=True)
            try:
                os.rename(temporary, folder)
            except OSError:
                if read(folder) is None:  # else another process has made it meanwhile
                    raise
            return manifest
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Around everything that writes: a full disk and the like say what to do.

    Raises:
        OSError: with that sentence.
    """
    try:
        yield
    except OSError as error:
        remedy = "free some space, or name another folder (in TSL_JAX_CACHE, or as --out of tsl corpora build)"
        problem = f"prepared text cannot be written to {folder.parent} ({error.strerror or error})"
        raise OSError(f"data: {problem}; {remedy}") from error


def _checksum(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
