"""Training batches: sequences of all domains, mixed in fixed shares.

Sequence s of context T is tokens s T ... s T + T of a domain's stream, so that each token is a target once an epoch and
documents follow one another with the end-of-text token between them. Each domain is shuffled anew every epoch (grain's
MapDataset), and domains are interleaved by their weights. A sequence depends on the seed and its place in that order
alone: training resumes from one integer.

A smaller data set, `unique_tokens` D of it, is D/T sequences, of each domain its share (at least one), the first of an
order that is the same for every seed and D: the set of half the size is a part of it. It is repeated, shuffled anew
every epoch.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tsl_jax.data.config import Mixture
from tsl_jax.data.corpora import Corpus


class _Sequences:
    """The sequences of a stream, by number: what grain calls a random-access source."""

    def __init__(self, tokens: np.ndarray, context: int, order: np.ndarray | None = None):
        self.tokens = tokens
        self.context = context
        self.order = order  # numbers of those that are taken; None: all

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.context if self.order is None else len(self.order)

    def __getitem__(self, index: Any) -> np.ndarray:
        start = int(index if self.order is None else self.order[index]) * self.context
        return self.tokens[start : start + self.context + 1]

    def __repr__(self) -> str:
        return f"{len(self)} sequences of {self.context} tokens"


def sequences(
    corpus: Corpus, mixtures: Sequence[tuple[int, Mixture]], context: int, seed: int, unique_tokens: int = 0
) -> Callable[[int, int], np.ndarray]:
    """The function from a place in the order of the data and a number n to n sequences, (n, context + 1) int32.

    Inputs are [:, :-1], targets [:, 1:].

    Args:
        mixtures: each with the place from which it holds, increasing from 0. Where one follows another, every domain
            goes on in its own order where it was.
        unique_tokens: D, size of the data set, shared out by the weights; 0: all of the training text.

    Raises:
        ValueError: for a domain that is not in the corpus, or too small for one sequence or for its share of D.
    """
    import grain

    orders = []
    used: dict[str, int] = {}  # sequences of each domain before the mixture holds
    for k, (first, mixture) in enumerate(mixtures):
        names = [name for name, weight in mixture.shares if weight > 0]
        domains = []
        for name in names:
            domain_seed = (seed + zlib.crc32(name.encode())) % 2**32
            number = max(1, round(unique_tokens * mixture[name] / context)) if unique_tokens else 0
            order = grain.MapDataset.source(_source(corpus, name, context, number)).shuffle(seed=domain_seed).repeat()
            domains.append(order[used[name] :] if name in used else order)
        orders.append((first, grain.MapDataset.mix(domains, weights=[mixture[name] for name in names])))
        if k + 1 < len(mixtures):
            taken = mixtures[k + 1][0] - first
            # mixing keeps to the shares within a sequence or two: rounded up, none is read twice
            used |= {name: used.get(name, 0) + math.ceil(w * taken) + 1 for name, w in mixture.shares if w > 0}

    def take(first: int, n: int) -> np.ndarray:
        begin, order = next((begin, order) for begin, order in reversed(orders) if begin <= first)
        return np.stack([order[first - begin + row] for row in range(n)]).astype(np.int32)

    return take


def _source(corpus: Corpus, name: str, context: int, number: int = 0) -> _Sequences:
    """The training sequences of a domain, or so many of them: the first of a fixed order, nested over numbers."""
    if name not in corpus.domains:
        raise ValueError(f"data: the mixture names {name!r}, the corpus has {', '.join(corpus.domains)}")
    source = _Sequences(corpus.domains[name].train.tokens, context)
    if not len(source):
        size = len(source.tokens)
        problem = f"the training part of domain {name!r} has {size} tokens, one sequence needs {context + 1}"
        raise ValueError(f"data: {problem}; give it more text, or lower the context")
    if number > len(source):
        problem = f"unique_tokens takes {number * context:,} of domain {name!r}, which has {len(source) * context:,}"
        raise ValueError(f"data: {problem}; lower unique_tokens or the weight of {name!r}")
    if number:  # a permutation of our own: grain would draw another subset every epoch
        source.order = np.random.default_rng(zlib.crc32(name.encode())).permutation(len(source))[:number]
    return source
