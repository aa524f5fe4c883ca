"""Importance sampling of a few dimensions: Student proposals on a low-discrepancy sequence, tempered weights.

The parts of the loop in `mixed_model.sample`: quasi-random numbers of a Student distribution with their density, and
weights w = (p/q)^(1/T) at the lowest temperature T that leaves enough draws effective, 1/sum w^2 of them. Source:
Bugallo et al., Adaptive Importance Sampling (2017).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.special import ndtri

from tsl_jax.fitting.levenberg_marquardt import quasi_random

TEMPERED = 0.12  # share of the draws that a temperature above 1 leaves effective
FREEDOM = 8  # degrees of freedom of the proposal: tails wider than those of a normal
HOTTEST = 20.0  # log of the highest temperature


def tempered(log_weight: np.ndarray) -> tuple[float, np.ndarray]:
    """The lowest temperature, at least 1, that leaves TEMPERED of the draws effective; and the weights there."""
    low, high = 0.0, HOTTEST  # of log T, bisected: effective draws grow with T
    for _ in range(30):
        middle = (low + high) / 2
        weight = normalised(log_weight * np.exp(-middle))
        low, high = (low, middle) if 1 / (weight**2).sum() > TEMPERED * len(weight) else (middle, high)
    temperature = 1.0 if high < 1e-6 else float(np.exp(high))  # bisection ends near log T = 0, never at it
    return temperature, normalised(log_weight / temperature)


def normalised(log_weight: np.ndarray) -> np.ndarray:
    """Weights that sum to one from their logarithms; equal ones where none is finite."""
    if not np.any(np.isfinite(log_weight)):
        return np.full(len(log_weight), 1 / len(log_weight))
    weight = np.exp(log_weight - log_weight.max())  # the largest is exp(0): no overflow
    return weight / weight.sum()


@lru_cache(maxsize=64)
def student(count: int, dimensions: int, attempt: int) -> tuple[np.ndarray, np.ndarray]:
    """Student numbers (count, dimensions), quasi-random and others at each attempt; and their log density.

    t = n sqrt(FREEDOM / chi^2), with n normal: the uniform numbers of a low-discrepancy sequence, shifted at random
    (modulo 1), through the normal quantile function. Density, up to a constant: (1 + |t|^2/FREEDOM)^-(FREEDOM + d)/2.
    """
    random = np.random.default_rng(attempt)
    even = (quasi_random(count, dimensions) + random.random(dimensions)) % 1
    shifted = even.clip(1e-6, 1 - 1e-6)  # ndtri is infinite at 0 and 1
    normal = ndtri(shifted)  # scipy's: jax would compile it part by part
    z = normal * np.sqrt(FREEDOM / random.chisquare(FREEDOM, (count, 1)))  # one chi^2 a draw: jointly Student
    return z, -(FREEDOM + dimensions) / 2 * np.log1p((z**2).sum(1) / FREEDOM)
