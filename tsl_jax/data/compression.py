"""Files compressed with gzip (`.gz`) or Zstandard (`.zst`), read as if they were not.

Zstandard is in the standard library from Python 3.14 on, and in the package `zstandard` before.
"""

from __future__ import annotations

import gzip
import io
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

COMPRESSED = (".gz", ".zst")
_PIECE = 1 << 16  # bytes read at a time


@contextmanager
def open_decompressed(file: Path) -> Iterator[IO[bytes]]:
    """The file, open for reading; decompressed on the way if its name ends so.

    Raises:
        ValueError: for a file that is damaged, cut short or not compressed, or if zstandard is missing.
        OSError: for a file that cannot be opened.
    """
    damage: tuple[type[Exception], ...] = (gzip.BadGzipFile, zlib.error, EOFError)
    opening: Any = Path.open
    mode = ("rb",)
    if file.suffix == ".gz":
        opening, mode = gzip.open, ()
    elif file.suffix == ".zst":
        opening, zstd_error = _zstandard(file)
        damage, mode = (*damage, zstd_error), ()
    try:
        with opening(file, *mode) as stream:
            yield stream
    except damage as error:
        problem = f"{file} is not a whole {file.suffix} file ({error or type(error).__name__})"
        raise ValueError(f"data: {problem}; fetch or compress it again") from None


def _zstandard(file: Path) -> tuple[Any, type[Exception]]:
    """What opens a Zstandard file, and what a damaged one raises."""
    if sys.version_info >= (3, 14):
        from compression import zstd  # pyright: ignore[reportMissingImports]

        return zstd.open, zstd.ZstdError
    try:
        import zstandard  # pyright: ignore[reportMissingImports]
    except ImportError:
        remedy = "pip install zstandard, or decompress it"
        problem = f"{file} is compressed with Zstandard, which this Python does not read"
        raise ValueError(f"data: {problem}; {remedy}") from None
    return lambda path: io.BufferedReader(_ZstdStream(path), _PIECE), zstandard.ZstdError


class _ZstdStream(io.RawIOBase):
    """The frames of a file one after the other; one that ends in the middle of a frame raises EOFError.

    The package's own reader returns what it has of a file that is cut short, without a word.
    """

    def __init__(self, file: Path):
        import zstandard  # pyright: ignore[reportMissingImports]

        self._file = file.open("rb")
        self._new_frame: Any = zstandard.ZstdDecompressor().decompressobj
        self._frame: Any = None  # none between frames
        self._compressed = self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            self._compressed = self._compressed or self._file.read(_PIECE)
            if not self._compressed:
                if self._frame is not None:
                    raise EOFError("it is cut short")
                return 0
            self._frame = self._frame or self._new_frame()
            self._ready = self._frame.decompress(self._compressed)
            self._compressed = self._frame.unused_data
            self._frame = None if self._frame.eof else self._frame
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()
