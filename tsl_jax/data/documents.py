"""A document, and the side of the split it is on.

The split comes before everything else: a document is held out when a hash of its key falls into the lowest `heldout`
of its range. The key is a name in installed text (the path within the standard library, the name of a topic or of a
service), so that the code and the docstrings of one file are always on one side; and the text itself for a user's
documents, so that exact copies are on one side and moving a folder moves no document. The hash has no seed: no one
can choose a split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Document(NamedTuple):
    """One text and the key that places it."""

    key: str
    text: str


def hash_fraction(key: str) -> float:
    """A number in [0, 1) that depends on the key alone, evenly spread over keys."""
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=6).digest(), "big") / 2**48


def is_held_out(document: Document, share: float) -> bool:
    """Whether a document is among the `share` that is held out."""
    return hash_fraction(document.key) < share


def first_occurrences() -> Callable[[str], bool]:
    """A test that is true for a string the first time it comes; blank ones never pass."""
    seen: set[bytes] = set()

    def new(text: str) -> bool:
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).digest()
        known = digest in seen
        seen.add(digest)
        return not known and bool(text.strip())

    return new


class DocumentStore:
    """The texts of one part in the order they came, in one file on disk, so that a corpus need not fit into memory."""

    def __init__(self, file: Path):
        self._file = file
        self._stream = file.open("wb")
        self._ends = [0]
        self._keys: list[float] = []
        self._kept: np.ndarray | None = None  # (document,) bool; None: all

    def add(self, document: Document) -> None:
        """Append a document; not after `close`."""
        self._ends.append(self._ends[-1] + self._stream.write(document.text.encode("utf-8", "surrogatepass")))
        self._keys.append(hash_fraction("sample " + document.key))

    def close(self) -> None:
        """End the writing; from here on it can be read."""
        self._stream.close()

    def keep(self, kept: np.ndarray) -> None:
        """Leave out the documents for which `kept`, (document,) bool of those still there, is false."""
        here = np.ones(len(self._keys), bool) if self._kept is None else self._kept.copy()
        here[here] = kept
        self._kept = here

    def __len__(self) -> int:
        return len(self._numbers())

    def __iter__(self) -> Iterator[str]:
        with self._file.open("rb") as stream:
            for number in self._numbers():
                stream.seek(self._ends[number])
                yield stream.read(self._ends[number + 1] - self._ends[number]).decode("utf-8", "surrogatepass")

    def bytes(self) -> int:
        """Bytes of the texts."""
        return int(np.diff(self._ends)[self._numbers()].sum())

    def sample(self, size: int) -> Iterator[str]:
        """Texts of `size` bytes together, chosen by a hash of their keys, the last one cut; all if they are fewer."""
        numbers = self._numbers()
        order = numbers[np.argsort(np.array(self._keys)[numbers], kind="stable")]
        room = size - np.cumsum(np.diff(self._ends)[order]) + np.diff(self._ends)[order]  # in front of each
        rooms = {int(number): int(left) for number, left in zip(order, room, strict=True) if left > 0}
        yield from (text[: rooms[n]] for n, text in zip(numbers.tolist(), self, strict=True) if n in rooms)

    def _numbers(self) -> np.ndarray:
        return np.arange(len(self._keys)) if self._kept is None else np.flatnonzero(self._kept)
