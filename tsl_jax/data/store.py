"""Documents kept on disk while a corpus is prepared, so that its text need not fit into memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tsl_jax.data.documents import Document, place


class Store:
    """The texts of one part in the order they came, in one file."""

    def __init__(self, file: Path):
        self._file = file
        self._stream = file.open("wb")
        self._ends = [0]
        self._keys: list[float] = []
        self._kept: np.ndarray | None = None  # (document,) bool; None: all

    def add(self, document: Document) -> None:
        """Append a document; not after `close`."""
        self._ends.append(self._ends[-1] + self._stream.write(document.text.encode("utf-8", "surrogatepass")))
        self._keys.append(place("sample " + document.key))

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
