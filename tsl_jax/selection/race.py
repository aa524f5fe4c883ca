"""Stub of the race, to be replaced: differences between candidates as random walks in log tokens.

The loss of candidate k at the end is its last loss plus what all fall by together plus a difference that walks:
variance s^2 log(T_end/T) with s^2 pooled over candidates. `chance_best` draws from a normal distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 4000


@dataclass(frozen=True)
class RaceForecast:
    """Losses at the end: mean (candidate,), covariance (candidate, candidate); eliminated: may be stopped."""

    mean: np.ndarray
    covariance: np.ndarray
    eliminated: np.ndarray


def race(tokens: Sequence[np.ndarray], losses: Sequence[np.ndarray], at: float) -> RaceForecast:
    """The end of each curve at `at` tokens."""
    last = np.array([loss[-1] for loss in losses])
    seen = np.array([float(where[-1]) for where in tokens])
    grid = np.geomspace(max(float(where[0]) for where in tokens), seen.min(), 12)
    on_grid = np.array([np.interp(np.log(grid), np.log(t), y) for t, y in zip(tokens, losses, strict=True)])
    steps = np.diff(on_grid - on_grid.mean(0), axis=1)
    variance = float(np.mean(steps**2) / np.diff(np.log(grid))[0]) if grid[-1] > grid[0] else 1e-4
    slope = np.diff(on_grid.mean(0))[-3:].mean() / np.diff(np.log(grid))[0] if grid[-1] > grid[0] else 0.0
    ahead = np.maximum(np.log(at / seen), 0.0)
    common = 0.5 * slope * ahead
    covariance = np.diag(variance * ahead) + np.outer(common, common)
    mean = last + common
    chance = chance_best(mean, covariance)
    return RaceForecast(mean, covariance, (chance < 0.01) & (ahead > 0))


def chance_best(mean: np.ndarray, covariance: np.ndarray, seed: int = 0) -> np.ndarray:
    """The probability that each has the lowest value."""
    best = np.argmin(draws(mean, covariance, seed), axis=1)
    return np.bincount(best, minlength=len(mean)) / DRAWS


def draws(mean: np.ndarray, covariance: np.ndarray, seed: int = 0) -> np.ndarray:
    """(DRAWS, candidate) values."""
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    return mean + np.random.default_rng(seed).standard_normal((DRAWS, len(mean))) @ root.T
