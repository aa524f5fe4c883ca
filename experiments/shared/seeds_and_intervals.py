"""Statistics over seeds: paired intervals, equivalence, the smallest effect that could be seen, simultaneous bands.

The unit that repeats is the seed. Two arms that share initialisation and data order are compared by their differences,
of which there are few (5 to 10): intervals take Student's t.

    interval        mean +- t_{1 - (1 - level)/2, n-1} s / sqrt(n)
    equivalence     two one-sided tests: the (1 - 2 alpha) interval lies within (-margin, margin)
                    (Schuirmann 1987, Journal of Pharmacokinetics and Biopharmaceutics 15)
    detectable      the effect that a two-sided test at alpha finds with the given power:
                    (t_{1 - alpha/2, n-1} + t_{power, n-1}) s / sqrt(n), within 2 % of the noncentral t for n >= 5
    bands           mean(i) +- c s(i)/sqrt(n) with one c for all positions, so that the whole curve lies inside
                    with probability `level`

For the bands c is the quantile of max_i |t(i)|. Resampling five seeds cannot give it (there are 16 ways to flip their
signs), so it is drawn from a model: independent normal seeds whose correlation between positions is that of the
residuals, shrunk halfway to none, each draw studentised by its own s(i) from n seeds. Tests check its coverage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

DRAWS = 4000
EQUIVALENT, DIFFERENT, UNDECIDED = "equivalent", "different", "undecided"


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its interval, and how many seeds."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


def interval(values: Any, level: float = 0.95) -> Interval:
    """Mean of independent values (seed,) and its t interval; NaN bounds for fewer than two."""
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    n = len(values)
    if n < 2:
        return Interval(float(values.mean()) if n else np.nan, np.nan, np.nan, n)
    half = float(stats.t.ppf(0.5 + level / 2, n - 1) * values.std(ddof=1) / np.sqrt(n))
    mean = float(values.mean())
    return Interval(mean, mean - half, mean + half, n)


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided tests of |mean| < margin, beside the two-sided test of mean = 0.

    Attributes:
        interval: at 1 - 2 alpha. p_equivalent: of the worse one-sided test. p_different: two-sided, of zero.
        verdict: "equivalent" (inside the margin), "different" (equivalence is not shown, and zero is excluded at
            alpha), "undecided".
    """

    interval: Interval
    margin: float
    p_equivalent: float
    p_different: float
    verdict: str


def equivalence(values: Any, margin: float, alpha: float = 0.05) -> Equivalence:
    """Whether the mean of independent differences (seed,) lies within a margin that was set beforehand.

    Raises:
        ValueError: for a margin that is not positive.
    """
    if not margin > 0:
        raise ValueError(f"equivalence: the margin must be positive, found {margin}")
    values = np.asarray(values, float)
    found = interval(values, 1 - 2 * alpha)
    if found.n < 2:
        return Equivalence(found, margin, np.nan, np.nan, UNDECIDED)
    sem = max(float(values.std(ddof=1)) / np.sqrt(found.n), 1e-300)
    worse = float(stats.t.sf((margin - abs(found.mean)) / sem, found.n - 1))
    zero = float(2 * stats.t.sf(abs(found.mean) / sem, found.n - 1))
    verdict = EQUIVALENT if worse < alpha else DIFFERENT if zero < alpha else UNDECIDED
    return Equivalence(found, margin, worse, zero, verdict)


def detectable(sd: float, n: int, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest mean difference that n pairs whose differences have standard deviation `sd` would show."""
    return float((stats.t.ppf(1 - alpha / 2, n - 1) + stats.t.ppf(power, n - 1)) * sd / np.sqrt(n))


def holm(p: Any) -> np.ndarray:
    """p values (test,) adjusted for being several (Holm 1979)."""
    p = np.asarray(p, float)
    order = np.argsort(p)
    stepped = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def bands(values: Any, level: float = 0.95, seed: int = 0) -> pd.DataFrame:
    """Simultaneous bands of the mean of curves (seed, position): mean, low, high, pointwise_low, pointwise_high.

    Raises:
        ValueError: for fewer than three curves.
    """
    values = np.asarray(values, float)
    n, positions = values.shape
    if n < 3:
        raise ValueError(f"bands: three seeds or more are needed, found {n}")
    mean, sem = values.mean(0), values.std(0, ddof=1) / np.sqrt(n)
    critical = _critical(values, level, np.random.default_rng(seed))
    point = stats.t.ppf(0.5 + level / 2, n - 1)
    names = ("mean", "low", "high", "pointwise_low", "pointwise_high")
    columns = (mean, mean - critical * sem, mean + critical * sem, mean - point * sem, mean + point * sem)
    return pd.DataFrame(dict(zip(names, columns, strict=True)), index=range(1, positions + 1))


def _critical(values: np.ndarray, level: float, random: np.random.Generator) -> float:
    """The quantile of max_i |t(i)| of n independent normal curves with the correlation of these."""
    n = len(values)
    root = np.linalg.cholesky(_correlation(values) + 1e-9 * np.eye(values.shape[1]))
    largest = np.empty(DRAWS)
    for k in range(DRAWS):
        drawn = random.standard_normal((n, values.shape[1])) @ root.T
        largest[k] = np.max(np.abs(drawn.mean(0)) / (drawn.std(0, ddof=1) / np.sqrt(n)))
    return float(np.quantile(largest, level))


def _correlation(values: np.ndarray) -> np.ndarray:
    """Correlation (position, position): of the residuals, halfway to none.

    A few seeds leave the residuals' own correlation of rank n - 1, far too smooth: c would be too small. No correlation
    at all is the conservative end; halfway is checked to cover for white and for smooth curves.
    """
    residual = values - values.mean(0)
    scale = np.sqrt((residual**2).sum(0))
    residual = residual / np.where(scale > 0, scale, 1.0)
    return 0.5 * residual.T @ residual + 0.5 * np.eye(values.shape[1])
