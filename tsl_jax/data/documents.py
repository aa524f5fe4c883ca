"""A document, and the side of the split it is on.

The split comes before everything else: a document is held out when a hash of its key falls into the lowest `heldout`
of its range. The key is a name in installed text (the path within the standard library, the name of a topic or of a
service), so that the code and the docstrings of one file are always on one side; and the text itself for a user's
documents, so that exact copies are on one side and moving a folder moves no document. The hash has no seed: no one
can choose a split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple


class Document(NamedTuple):
    """One text and the key that places it."""

    key: str
    text: str


def place(key: str) -> float:
    """A number in [0, 1) that depends on the key alone, evenly spread over keys."""
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=6).digest(), "big") / 2**48


def held_out(document: Document, share: float) -> bool:
    """Whether a document is among the `share` that is held out."""
    return place(document.key) < share


def once() -> Callable[[str], bool]:
    """A test that is true for a string the first time it comes; blank ones never pass."""
    seen: set[bytes] = set()

    def new(text: str) -> bool:
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).digest()
        known = digest in seen
        seen.add(digest)
        return not known and bool(text.strip())

    return new
