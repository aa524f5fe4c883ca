"""Pretokenised text: `.npy` or raw `.bin` files of uint16 or uint32 token ids.

The files of a domain, in sorted order, are one stream; its last part is held out. With `end_token` documents end
where it stands and the cut moves on to the next one; without it, blocks of 4,096 tokens stand for documents.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

BLOCK = 4096  # tokens


def read(files: list[Path], token_type: str) -> list[np.ndarray]:
    """The streams of the files that are not empty, memory-mapped.

    Raises:
        ValueError: for arrays that are not one-dimensional or not of uint16 or uint32. OSError: for unreadable files.
    """
    streams = []
    width = np.dtype(token_type).itemsize
    for file in files:
        if file.suffix == ".npy":
            try:
                stream = np.load(file, mmap_mode="r", allow_pickle=False)
            except OSError:
                raise
            except Exception as error:  # a header may say anything
                reason = "it holds Python objects" if "pickle" in str(error) else f"{error!s:.200}"
                problem = f"{file} is not a NumPy array of token ids ({reason})"
                raise ValueError(f"data: {problem}; write it with numpy.save") from None
            if stream.ndim != 1 or stream.dtype.name not in ("uint16", "uint32"):
                content = f"{file} holds {stream.dtype.name} of shape {stream.shape}"
                raise ValueError(f"data: {content}; token ids are a one-dimensional array of uint16 or uint32")
        else:
            size = file.stat().st_size
            if size % width:
                problem = f"{file} has {size} bytes, not a multiple of {width} ({token_type})"
                raise ValueError(f"data: {problem}; set data.token_type")
            stream = np.memmap(file, np.dtype(token_type), "r") if size else np.empty(0, token_type)
        if len(stream):
            streams.append(stream)
    return streams


def join(streams: list[np.ndarray], name: str) -> np.ndarray:
    """One stream of all; a copy only where there are several.

    Raises:
        ValueError: if there is no token.
    """
    if not streams:
        raise ValueError(f"data: the pretokenised files of domain {name!r} are empty; name other files")
    return streams[0] if len(streams) == 1 else np.concatenate(streams)


def cut(stream: np.ndarray, heldout: float, end_token: int) -> int:
    """Where the held-out part begins: after an `end_token`, if that is known and one follows."""
    at = max(1, round(len(stream) * (1 - heldout)))
    if end_token < 0:
        return at
    later = np.flatnonzero(stream[at - 1 :] == end_token)
    return at + int(later[0]) if len(later) else at


def starts(stream: np.ndarray, end_token: int) -> np.ndarray:
    """Where documents begin, (document,) int64; an `end_token` closes the document it stands in."""
    if end_token < 0:
        return np.arange(0, len(stream), BLOCK, dtype=np.int64)
    after = np.flatnonzero(stream == end_token).astype(np.int64) + 1
    return np.concatenate([np.zeros(1, np.int64), after[after < len(stream)]])


def documents(stream: np.ndarray, end_token: int) -> list[np.ndarray]:
    """The documents of a stream."""
    return np.split(stream, starts(stream, end_token)[1:])
