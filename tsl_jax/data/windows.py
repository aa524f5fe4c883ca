"""The fixed windows on which every checkpoint is evaluated, so that checkpoints share their noise.

A window is context + 1 tokens of one held-out document; the target at position i (from 1) has i tokens of context.
Design "overlapping": excerpts are drawn from documents, one a document where there are enough, and each is read by
several windows whose offsets are

    o_k = stride k + floor(k/2)  (k alone for stride 1),     k = 0, 1, ...

so that one target token is scored at many positions. Steps of stride and stride + 1 in turn let targets connect all
positions: with multiples of one stride alone, positions fall into as many classes that share no target. Design
"random": as many windows, anywhere, a document as likely as it has places for one. In both the cluster is the
document. The seed of every run is 0 and not a setting; studies of the windows themselves draw others.

Options and the attributes of surfaces call excerpts `stretches`, so that old runs load.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tsl_jax.data.config import EvalConfig

if TYPE_CHECKING:
    from tsl_jax.data.corpora import Corpus

SEED = 0
DOCUMENT_BOUNDARY = (
    "Evaluation windows lie within one document, whose closing end-of-text token counts as part of it. "
    "Training sequences are packed: documents follow one another with the end-of-text token between them, "
    "and neither attention nor positions reset there."
)


@dataclass(frozen=True)
class Windows:
    """The windows of a split."""

    tokens: np.ndarray  # (window, context + 1) int32; inputs [:, :-1], targets [:, 1:]
    cluster: np.ndarray  # (window,) int64, number of the document, dense from 0
    excerpt: np.ndarray  # (window,) int64, dense from 0
    offset: np.ndarray  # (window,) int64, place of the first input token in the excerpt
    design: dict[str, Any]  # JSON facts
    n_clusters: int
    requested: int  # excerpts (windows of the design "random") that were asked for; there may be fewer


@dataclass(frozen=True)
class _Drawn:
    """Where the windows of a domain are."""

    begin: np.ndarray  # (window,) place in the stream
    document: np.ndarray  # (window,) number in the stream
    excerpt: np.ndarray  # (window,) from 0
    offset: np.ndarray  # (window,)


def for_splits(corpus: Corpus, context: int, config: EvalConfig, seed: int = SEED) -> dict[str, Windows]:
    """The windows of every split of a corpus; where a split has several domains, excerpts are shared out by weight.

    Raises:
        ValueError: for a domain without a held-out document that is long enough; see `EvalConfig.splits`.
    """
    windows: dict[str, Windows] = {}
    for split, names in config.splits(corpus.splits).items():
        # whole shares of the excerpts by largest remainder, at least one each
        weights = [corpus.mixture[name] or 1.0 for name in names]
        n_excerpts = _numbers(config, split)[0]
        exact = np.array(weights) / sum(weights) * n_excerpts
        shares = np.floor(exact).astype(int)
        shares[np.argsort(shares - exact, kind="stable")[: n_excerpts - shares.sum()]] += 1
        parts = [corpus.domains[name].heldout for name in names]
        streams = [(part.tokens, part.documents, max(1, int(n))) for part, n in zip(parts, shares, strict=True)]
        windows[split] = _windows(streams, names, context, config, split, seed)
    return windows


def build(tokens: np.ndarray, documents: np.ndarray, context: int, config: EvalConfig, split: str) -> Windows:
    """The windows of one held-out stream.

    Args:
        tokens: (token,). documents: (document,) where documents start.
        split: "id", or any other name for the numbers of "ood".

    Raises:
        ValueError: if no document is long enough.
    """
    return _windows([(tokens, documents, _numbers(config, split)[0])], (split,), context, config, split, SEED)


def offset_rule(number: int, stride: int) -> np.ndarray:
    """Places of the windows in an excerpt, from 0."""
    k = np.arange(number, dtype=np.int64)
    return k * stride + (k // 2 if stride > 1 else 0)


def _numbers(config: EvalConfig, split: str) -> tuple[int, int]:
    """Excerpts of a split, and windows in each."""
    of_id = (config.id_stretches, config.id_offsets)
    return of_id if split == "id" else (config.ood_stretches, config.ood_offsets)


def _windows(
    streams: list[tuple[np.ndarray, np.ndarray, int]],
    names: tuple[str, ...],
    context: int,
    config: EvalConfig,
    split: str,
    seed: int,
) -> Windows:
    """The windows of (tokens, documents, number of excerpts) of several domains, one after the other."""
    offsets = offset_rule(_numbers(config, split)[1], config.stride)
    random = config.design == "random"
    length = context + 1 + (0 if random else int(offsets[-1]))
    tokens, cluster, excerpt, offset = [], [], [], []
    n_clusters = n_excerpts = 0
    for (stream, documents, number), name in zip(streams, names, strict=True):
        sizes = np.diff(documents, append=len(stream))
        if not len(sizes) or sizes.max() < length:
            size = f"the longest of the {len(sizes)} held-out documents of {name!r} has {sizes.max(initial=0)} tokens"
            remedy = "lower the context or the offsets, or give it longer documents"
            raise ValueError(f"data: split {split!r} needs documents of {length} tokens; {size}; {remedy}")
        rng = np.random.default_rng(seed)  # of each domain, so that none depends on the others
        drawn = (
            _draw_anywhere(documents, sizes, length, number * len(offsets), rng)
            if random
            else _draw_overlapping(documents, sizes, length, number, offsets, rng)
        )
        tokens.append(stream[drawn.begin[:, None] + np.arange(context + 1)].astype(np.int32))
        used, dense = np.unique(drawn.document, return_inverse=True)
        cluster.append(n_clusters + dense.astype(np.int64))
        excerpt.append(n_excerpts + drawn.excerpt)
        offset.append(drawn.offset)
        n_clusters += len(used)
        n_excerpts = int(excerpt[-1].max()) + 1
    all_tokens = np.concatenate(tokens)
    design = {
        "design": config.design,
        "domains": list(names),
        "documents": n_clusters,
        "stretches": n_excerpts,
        "offsets": [0] if random else offsets.tolist(),
        "stride": config.stride,
        "offset_rule": "one window a stretch" if random else "stride k + floor(k/2); k alone for stride 1",
        "seed": seed,
        "document_boundary": DOCUMENT_BOUNDARY,
        "digest": hashlib.sha256(np.ascontiguousarray(all_tokens, "<i4").tobytes()).hexdigest(),
    }
    requested = sum(number for _, _, number in streams) * (len(offsets) if random else 1)
    if n_excerpts < requested:
        kind = "windows" if random else "excerpts"
        lack = f"only {n_excerpts} of the {requested} {kind} asked for fit into the held-out text of split {split!r}"
        remedy = "give more text, raise data.heldout, or ask for fewer"
        warnings.warn(f"data: {lack} ({n_clusters} documents); {remedy}", stacklevel=3)
    layout = np.concatenate(cluster), np.concatenate(excerpt), np.concatenate(offset)
    return Windows(all_tokens, *layout, design, n_clusters, requested)


def _draw_overlapping(
    documents: np.ndarray, sizes: np.ndarray, length: int, number: int, offsets: np.ndarray, rng: np.random.Generator
) -> _Drawn:
    """Excerpts in documents, one each; where these are too few, a second one that does not overlap, and so on."""
    n_fitting = sizes // length
    order = rng.permutation(np.flatnonzero(n_fitting))
    chosen = np.empty(0, np.int64)
    while len(chosen) < number and len(order):
        chosen = np.concatenate([chosen, order[: number - len(chosen)]])
        n_fitting[order] -= 1
        order = order[n_fitting[order] > 0]
    # n excerpts of a document keep apart if they are n sorted draws from the places that are left, moved on by the
    # length of those before
    owners, counts = np.unique(chosen, return_counts=True)
    begin = [
        documents[owner]
        + np.sort(rng.integers(0, sizes[owner] - count * length + 1, count))
        + np.arange(count) * length
        for owner, count in zip(owners, counts, strict=True)
    ]
    first = np.concatenate(begin)
    windows = (first[:, None] + offsets).ravel()
    document = np.repeat(np.repeat(owners, counts), len(offsets))
    excerpt = np.repeat(np.arange(len(first), dtype=np.int64), len(offsets))
    return _Drawn(windows, document, excerpt, np.tile(offsets, len(first)))


def _draw_anywhere(
    documents: np.ndarray, sizes: np.ndarray, length: int, number: int, rng: np.random.Generator
) -> _Drawn:
    """Windows anywhere, all different, in the order of the stream."""
    places = np.maximum(sizes - length + 1, 0)
    ends = np.cumsum(places)
    drawn = np.sort(rng.choice(ends[-1], min(number, int(ends[-1])), replace=False))
    document = np.searchsorted(ends, drawn, side="right")
    begin = documents[document] + drawn - (ends - places)[document]
    excerpt = np.arange(len(drawn), dtype=np.int64)
    return _Drawn(begin, document, excerpt, np.zeros_like(excerpt))
