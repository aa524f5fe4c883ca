"""A document, the side of the split it is on, and the store on disk for the documents of a corpus in preparation.

The split comes before everything else: a document is held out when a hash of its key falls into the lowest `heldout`
of its range. The key is a name in installed text (the path within the standard library, the name of a topic or of a
service), so that the code and the docstrings of one file are always on one side; and the text itself for a user's
documents, so that exact copies are on one side and moving a folder moves no document. The hash has no seed: no one
can choose a split. Standard library only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple


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

    def is_new(text: str) -> bool:
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).digest()
        repeated = digest in seen
        seen.add(digest)
        return not repeated and bool(text.strip())

    return is_new


class DocumentStore:
    """The texts of one part in the order they came, in one file on disk, so that a corpus need not fit into memory."""

    def __init__(self, file: Path):
        self._file = file
        self._stream = file.open("wb")
        self._ends = [0]  # bytes in the file
        self._order: list[float] = []  # (document,) by which a sample is drawn
        self._kept: list[int] = []  # numbers of the documents that are still there

    def add(self, document: Document) -> None:
        """Append a document; not after `close`."""
        self._kept.append(len(self._order))
        self._order.append(hash_fraction("sample " + document.key))
        self._ends.append(self._ends[-1] + self._stream.write(document.text.encode("utf-8", "surrogatepass")))

    def close(self) -> None:
        """End the writing; from here on it can be read."""
        self._stream.close()

    def keep(self, mask: Iterable[bool]) -> None:
        """Leave out the documents for which `kept`, (document,) of those still there, is false."""
        self._kept = [number for number, keep in zip(self._kept, mask, strict=True) if keep]

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[str]:
        with self._file.open("rb") as stream:
            for number in self._kept:
                stream.seek(self._ends[number])
                yield stream.read(self._size(number)).decode("utf-8", "surrogatepass")

    def bytes(self) -> int:
        """Bytes of the texts."""
        return sum(map(self._size, self._kept))

    def sample(self, size: int) -> Iterator[str]:
        """Texts of `size` bytes together, chosen by a hash of their keys, the last one cut; all if they are fewer."""
        available: dict[int, int] = {}  # document -> what of the size is left for it
        for number in sorted(self._kept, key=self._order.__getitem__):
            if size <= 0:
                break
            available[number] = size
            size -= self._size(number)
        yield from (text[: available[n]] for n, text in zip(self._kept, self, strict=True) if n in available)

    def _size(self, number: int) -> int:
        return self._ends[number + 1] - self._ends[number]
