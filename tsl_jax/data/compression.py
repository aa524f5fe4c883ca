"""Files that are packed with gzip (`.gz`) or Zstandard (`.zst`), read as if they were not.

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

PACKED = (".gz", ".zst")
_PIECE = 1 << 16  # bytes


@contextmanager
def opened(file: Path) -> Iterator[IO[bytes]]:
    """The file, open for reading; unpacked on the way if its name ends so.

    Raises:
        ValueError: for a file that is damaged, cut short or not packed, or if zstandard is missing.
        OSError: for a file that cannot be opened.
    """
    damage = (gzip.BadGzipFile, zlib.error, EOFError, *_zstd_errors(file))
    try:
        with _open(file) as stream:
            yield stream
    except damage as error:
        found = f"{file} is not a whole {file.suffix} file ({error or type(error).__name__})"
        raise ValueError(f"data: {found}; fetch or pack it again") from None


def _open(file: Path) -> Any:
    if file.suffix == ".gz":
        return gzip.open(file)
    if file.suffix != ".zst":
        return file.open("rb")
    if sys.version_info >= (3, 14):
        from compression import zstd  # pyright: ignore[reportMissingImports]

        return zstd.open(file)
    return io.BufferedReader(_Zstd(file), _PIECE)


def _zstd_errors(file: Path) -> tuple[type[Exception], ...]:
    """What a damaged Zstandard file raises; the package is asked for here, before the file is opened."""
    if file.suffix != ".zst":
        return ()
    if sys.version_info >= (3, 14):
        from compression import zstd  # pyright: ignore[reportMissingImports]

        return (zstd.ZstdError,)
    try:
        import zstandard  # pyright: ignore[reportMissingImports]
    except ImportError:
        mend = "pip install zstandard, or unpack it"
        raise ValueError(f"data: {file} is packed with Zstandard, which this Python does not read; {mend}") from None
    return (zstandard.ZstdError,)


class _Zstd(io.RawIOBase):
    """The frames of a file one after the other; one that ends in the middle of a frame raises EOFError."""

    def __init__(self, file: Path):
        import zstandard  # pyright: ignore[reportMissingImports]

        self._file = file.open("rb")
        self._new: Any = zstandard.ZstdDecompressor().decompressobj
        self._frame: Any = None  # none between frames
        self._packed = self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            self._packed = self._packed or self._file.read(_PIECE)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("it is cut short")
                return 0
            self._frame = self._frame or self._new()
            self._ready = self._frame.decompress(self._packed)
            self._packed = self._frame.unused_data
            self._frame = None if self._frame.eof else self._frame
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()
