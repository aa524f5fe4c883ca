"""Training batches: sequences of all domains, mixed in fixed shares.

A stream is packed: sequence s of context T is tokens s T ... s T + T of it, so that each token is a target once an
epoch and documents follow one another with the end-of-text token between them. Each domain is shuffled anew every
epoch (grain's MapDataset), and domains are interleaved by their weights. A sequence depends on the seed and its place
in that order alone: training resumes from one integer.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tsl_jax.data.config import Mixture
from tsl_jax.data.corpora import Corpus


class _Sequences:
    """The sequences of a stream, by number: what grain calls a random-access source."""

    def __init__(self, tokens: np.ndarray, context: int):
        self.tokens = tokens
        self.context = context

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.context

    def __getitem__(self, index: Any) -> np.ndarray:
        start = int(index) * self.context
        return self.tokens[start : start + self.context + 1]

    def __repr__(self) -> str:
        return f"{len(self)} sequences of {self.context} tokens"


def sequences(
    corpus: Corpus, mixtures: Sequence[tuple[int, Mixture]], context: int, seed: int
) -> Callable[[int, int], np.ndarray]:
    """The function from a place in the order of the data and a number n to n sequences, (n, context + 1) int32.

    Inputs are [:, :-1], targets [:, 1:].

    Args:
        mixtures: each with the place from which it holds, increasing from 0. Where one follows another, every domain
            goes on in its own order where it was.

    Raises:
        ValueError: for a domain that is not in the corpus, or too small for one sequence.
    """
    orders = []
    read: dict[str, int] = {}  # sequences of each domain before the mixture holds
    for k, (first, mixture) in enumerate(mixtures):
        orders.append((first, _mixed(corpus, mixture, context, seed, read)))
        if k + 1 < len(mixtures):
            taken = mixtures[k + 1][0] - first
            # mixing keeps to the shares within a sequence or two: rounded up, none is read twice
            read |= {name: read.get(name, 0) + math.ceil(w * taken) + 1 for name, w in mixture.shares if w > 0}

    def take(first: int, n: int) -> np.ndarray:
        begin, order = next((begin, order) for begin, order in reversed(orders) if begin <= first)
        return np.stack([order[first - begin + row] for row in range(n)]).astype(np.int32)

    return take


def _mixed(corpus: Corpus, mixture: Mixture, context: int, seed: int, read: Mapping[str, int]) -> Any:
    """The order of the sequences of a mixture, without those of each domain that were read before."""
    import grain

    names = [name for name, weight in mixture.shares if weight > 0]
    shuffled = [
        grain.MapDataset.source(_stream(corpus, name, context))
        .shuffle(seed=(seed + zlib.crc32(name.encode())) % 2**32)
        .repeat()
        for name in names
    ]
    rest = [one[read[name] :] if name in read else one for name, one in zip(names, shuffled, strict=True)]
    return grain.MapDataset.mix(rest, weights=[mixture[name] for name in names])


def _stream(corpus: Corpus, name: str, context: int) -> _Sequences:
    if name not in corpus.domains:
        raise ValueError(f"data: the mixture names {name!r}, the corpus has {', '.join(corpus.domains)}")
    stream = _Sequences(corpus.domains[name].train.tokens, context)
    if not len(stream):
        found = (
            f"the training part of domain {name!r} has {len(stream.tokens)} tokens, one sequence needs {context + 1}"
        )
        raise ValueError(f"data: {found}; give it more text, or lower the context")
    return stream
