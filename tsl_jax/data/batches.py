"""Training batches: sequences of all domains, mixed in fixed shares.

A stream is packed: sequence s of context T is tokens s T ... s T + T of it, so that each token is a target once an
epoch and documents follow one another with the end-of-text token between them. Each domain is shuffled anew every
epoch (grain's MapDataset), and domains are interleaved by their weights. The batch of a step depends on (seed, step)
alone: training resumes from one integer.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from tsl_jax.data.corpora import Corpus
from tsl_jax.data.mixture import Mixture


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


def batches(corpus: Corpus, mixture: Mixture, context: int, batch_size: int, seed: int) -> Callable[[int], np.ndarray]:
    """The function from a step (from 0) to its batch, (batch_size, context + 1) int32.

    Inputs are [:, :-1], targets [:, 1:].

    Raises:
        ValueError: for a domain that is not in the corpus, or too small for one sequence.
    """
    import grain

    streams = {name: _stream(corpus, name, context) for name, weight in mixture.shares if weight > 0}
    shuffled = [
        grain.MapDataset.source(stream).shuffle(seed=(seed + zlib.crc32(name.encode())) % 2**32).repeat()
        for name, stream in streams.items()
    ]
    mixed: Any = grain.MapDataset.mix(shuffled, weights=[mixture[name] for name in streams])

    def batch_of(step: int) -> np.ndarray:
        return np.stack([mixed[step * batch_size + row] for row in range(batch_size)]).astype(np.int32)

    return batch_of


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
