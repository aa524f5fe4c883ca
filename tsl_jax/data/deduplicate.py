"""What documents have in common, counted in blocks of characters: near-copies are removed.

Between held-out and training text:

A held-out document is cut into blocks of 64 characters that do not overlap; a block is *shared* if the training text
of any domain has it at any place. Characters are bytes of UTF-8 with every run of white space made one space:
indentation alone makes no block common, and a copy with another indentation is found. Pretokenised text is compared
in blocks of 16 tokens. A held-out document with more than `BOUND` of its blocks shared is a near-copy and is removed.

Within one part of a domain a document is removed if more than `REPEATED` of it stands in those kept before it. Here
one in 64 of the blocks at all places stands for a text, those with the smallest hashes (Manber 1994), so that copies
are found at any place and little is remembered.

A block has the polynomial hash h_64 by doubling, h_2k[i] = h_k[i] B^k + h_k[i + k] (mod 2^64; Karp and Rabin 1987),
which gives the hashes at all places of a text in six passes of numpy.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator

import numpy as np

CHARACTERS = 64
TOKENS = 16
BOUND = 0.1  # largest share of shared blocks a held-out document may have
REPEATED = 0.5  # largest share of a document that those before it may have
SAMPLED = 64  # one block in so many stands for a text

_BASE = 0x9E3779B97F4A7C15
_SCRAMBLE = np.uint64(0xD6E8FEB86659FD93)
_PIECE = 1 << 20  # characters hashed at a time: the arrays stay in the cache of the core
_BITS = 24  # of the table that sorts out nearly all blocks that are not shared


def characters(text: str) -> np.ndarray:
    """The bytes of a text with runs of white space made one space."""
    return np.frombuffer(re.sub(rb"\s+", b" ", text.encode("utf-8", "surrogatepass")), np.uint8)


def shared_blocks(
    train: Iterable[np.ndarray], heldout: Iterable[np.ndarray], block: int
) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of each held-out document, and how many of them are shared, each (document,) int64.

    Args:
        train: documents or pieces of streams, integers. heldout: documents. block: length of a block, a power of two.
    """
    places = [_hashes(document, block)[::block] for document in heldout]
    counts = np.array([len(hashes) for hashes in places], np.int64)
    if not counts.sum():
        return counts, np.zeros_like(counts)
    heldout_hashes, which = np.unique(np.concatenate(places), return_inverse=True)
    is_shared = np.zeros(len(heldout_hashes), bool)
    # the first bits of a hash sort out nearly all blocks of the training text before the search
    table = np.zeros(1 << _BITS, bool)
    table[heldout_hashes >> np.uint64(64 - _BITS)] = True
    for piece in _pieces(train, block):
        hashes = _hashes(piece, block)
        candidates = hashes[table[hashes >> np.uint64(64 - _BITS)]]
        at = np.searchsorted(heldout_hashes, candidates).clip(max=len(heldout_hashes) - 1)
        is_shared[at[heldout_hashes[at] == candidates]] = True
    document = np.repeat(np.arange(len(counts)), counts)
    return counts, np.bincount(document, weights=is_shared[which], minlength=len(counts)).astype(np.int64)


def near_copies(blocks: np.ndarray, shared: np.ndarray) -> np.ndarray:
    """Which held-out documents are near-copies, (document,) bool."""
    return shared > BOUND * blocks


def sample(text: str) -> np.ndarray:
    """Hashes that stand for a text, (hash,) uint64; of a short one its smallest, or that of all its bytes."""
    values = characters(text)
    hashes = _hashes(values, CHARACTERS)
    if not len(hashes):
        digest = hashlib.blake2b(values.tobytes(), digest_size=8).digest()
        return np.frombuffer(digest, np.uint64)
    chosen = hashes[hashes < np.uint64(2**64 // SAMPLED)]
    return np.unique(chosen) if len(chosen) else hashes.min(keepdims=True)


def repeats(samples: list[np.ndarray]) -> np.ndarray:
    """Which documents repeat those before them, (document,) bool.

    Args:
        samples: of each document, in order.
    """
    repeated = np.zeros(len(samples), bool)
    if not samples:
        return repeated
    distinct, number = np.unique(np.concatenate(samples), return_inverse=True)
    seen = np.zeros(len(distinct), bool)
    ends = np.cumsum([len(sample) for sample in samples])
    for document, own in enumerate(np.split(number, ends[:-1])):
        repeated[document] = seen[own].mean() > REPEATED
        if not repeated[document]:
            seen[own] = True
    return repeated


def rate(blocks: np.ndarray, shared: np.ndarray) -> float:
    """Share of the blocks that are shared."""
    return float(shared.sum() / max(1, blocks.sum()))


def _hashes(values: np.ndarray, block: int) -> np.ndarray:
    """The hash of values[i : i + block] for every i, uint64."""
    if len(values) < block:
        return np.empty(0, np.uint64)
    hashes = (values.astype(np.uint64) + np.uint64(1)) * _SCRAMBLE
    factor, width = _BASE, 1
    while width < block:
        hashes = hashes[:-width] * np.uint64(factor) + hashes[width:]
        factor, width = factor * factor % 2**64, 2 * width
    return hashes


def _pieces(train: Iterable[np.ndarray], block: int) -> Iterator[np.ndarray]:
    """The training text in pieces of about one size: short documents joined, long ones cut with an overlap."""
    waiting: list[np.ndarray] = []
    size = 0
    for document in train:
        for start in range(0, max(1, len(document) - block + 1), _PIECE):
            waiting.append(document[start : start + _PIECE + block - 1])
            size += len(waiting[-1])
            if size >= _PIECE:
                yield np.concatenate(waiting)
                waiting, size = [], 0
    if waiting:
        yield np.concatenate(waiting)
