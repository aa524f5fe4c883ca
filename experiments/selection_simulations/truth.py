"""Simulated runs of mixtures: what their loss really is, how sizes disagree about it, and curves that cross.

The end of a run of mixture x at n_params N (tokens 20 N):

    L = 1.7 + 1.2 (N/1e8)^-.12 + (N/1e8)^-.05 (f(x) + what sizes disagree about) + noise of a seed

with f one of four forms, drawn anew for every table: the data mixing law, a power of the useful data, that with
interactions of domains, and a mean over several validation domains. What sizes disagree about is a random walk over
sizes, a mixture each, DISAGREEMENT of the sd of f for each step of a ladder. Curves fall to their ends with rates of
their own, so that candidates cross.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from tsl_jax.selection import Runs
from tsl_jax.selection.candidate_runs import runs_of_rows

KINDS = ("mixing law", "power", "interactions", "several texts")
DISAGREEMENT = 0.1
SEED_NOISE = 0.003  # nats
CHECKPOINTS = 24


def mixtures(count: int, domains: int, rng: np.random.Generator) -> np.ndarray:
    """Mixtures about a base, more and less concentrated, small shares zero, five digits: as published tables have."""
    base = rng.dirichlet(np.ones(domains))
    strength = np.exp(rng.uniform(np.log(0.5), np.log(5), count))
    drawn = np.array([rng.dirichlet(np.maximum(base * domains * s, 0.02)) for s in strength])
    drawn[drawn < 0.003] = 0
    return np.round(drawn / drawn.sum(1, keepdims=True), 5)


def effect(kind: str, domains: int, rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
    """A function of mixtures, nats."""
    use = np.abs(rng.standard_normal(domains)) ** 2
    use[rng.integers(domains)] += 4
    use /= use.max()
    power = rng.uniform(0.1, 0.3, 4)
    if kind == "mixing law":
        rates = -use * rng.uniform(1, 3)
        return lambda x: np.exp(x @ rates)
    if kind == "several texts":
        uses = np.abs(rng.standard_normal((4, domains))) ** 3
        uses /= uses.max(1, keepdims=True)
        return lambda x: np.mean([1.2 * (x @ u + 0.01) ** -p for u, p in zip(uses, power, strict=True)], axis=0)
    pairs = 0.4 * rng.standard_normal((domains, domains)) * (rng.random((domains, domains)) < 0.3)
    own = 0.15 * np.abs(rng.standard_normal(domains)) * (rng.random(domains) < 0.5)
    between = 1.0 if kind == "interactions" else 0.0
    return lambda x: (
        1.2 * (x @ use + 0.02) ** -power[0] + between * (np.einsum("nd,de,ne->n", x, pairs, x) - np.sqrt(x) @ own)
    )


def table(
    seed: int, count: int, domains: int, sizes: tuple[float, ...], curves: bool = False
) -> tuple[Runs, np.ndarray]:
    """Runs of `count` mixtures at each size, and the expected loss of each mixture at each size (size, mixture)."""
    rng = np.random.default_rng(seed)
    x = mixtures(count, domains, rng)
    f = effect(KINDS[seed % len(KINDS)], domains, rng)(x)
    f -= f.mean()
    walk = np.cumsum(DISAGREEMENT * f.std() * rng.standard_normal((len(sizes), count)), axis=0)
    relative = np.array(sizes)[:, None] / 1e8
    truth = 1.7 + 1.2 * relative**-0.12 + relative**-0.05 * (f + walk)
    rows, shares = [], []
    for size, expected in zip(sizes, truth, strict=True):
        for k in range(count):
            tokens = np.geomspace(0.02, 1, CHECKPOINTS) if curves else np.ones(1)
            end = expected[k] + SEED_NOISE * rng.standard_normal()
            tilt = 0.01 * rng.standard_normal() * np.log(tokens)
            loss = end + 0.35 * (tokens**-0.35 - 1) + tilt + 0.002 * rng.standard_normal(len(tokens)) * (tokens < 1)
            name = {"run": f"{k}-{size:.0f}", "candidate": f"mixture {k}", "n_params": size, "planned": 20 * size}
            rows += [name | {"tokens": 20 * size * t, "loss": y} for t, y in zip(tokens, loss, strict=True)]
            shares += [x[k] / x[k].sum()] * len(tokens)
    named = pd.DataFrame(shares, columns=[f"d{j}" for j in range(domains)])
    return runs_of_rows(pd.DataFrame(rows), named, {}, True, []), truth
