"""Statistics over seeds, the unit that repeats: Student's t intervals, and simultaneous bands over positions.

    interval        mean +- t_{1 - (1 - level)/2, n-1} s / sqrt(n); there are few seeds, 5 to 10
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


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its interval, and how many seeds."""

    mean: float
    low: float
    high: float
    n: int

    def __format__(self, digits: str) -> str:
        """As `f"{interval:.3f}"`: each number with its sign; four decimals where none are given."""
        digits = digits or ".4f"
        return f"{self.mean:+{digits}} [{self.low:+{digits}}, {self.high:+{digits}}]"

    def __str__(self) -> str:
        return format(self)

    def columns(self, name: str) -> dict[str, float]:
        """As a table has it: NAME, NAME_low, NAME_high."""
        return {name: self.mean, f"{name}_low": self.low, f"{name}_high": self.high}


def of_columns(row: Any, name: str, n: int = 0) -> Interval:
    """The interval that a row of a table has as NAME, NAME_low, NAME_high."""
    return Interval(row[name], row[f"{name}_low"], row[f"{name}_high"], n)


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
