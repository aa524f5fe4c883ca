"""A document, and the side of the split it is on.

The split comes before everything else: a document is held out when a hash of its key falls into the lowest `heldout`
of its range. The key is the path within the standard library or the name of a topic there, so that the code and the
docstrings of one file are always on one side; and the text itself for a user's documents, so that exact copies are on
one side and moving a folder moves no document. The hash has no seed: no one can choose a split.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple


class Document(NamedTuple):
    """One text and the key that places it."""

    key: str
    text: str


def place(key: str) -> float:
    """A number in [0, 1) that depends on the key alone, evenly spread over keys."""
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=6).digest(), "big") / 2**48


def split(documents: list[Document], heldout: float) -> tuple[list[Document], list[Document]]:
    """Training and held-out documents, in the order given."""
    train: list[Document] = []
    held: list[Document] = []
    for document in documents:
        (held if place(document.key) < heldout else train).append(document)
    return train, held
