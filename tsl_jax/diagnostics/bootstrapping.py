"""Errors by resampling: the cluster bootstrap as one batched fit.

Positions of a loss curve correlate, as do checkpoints, because they share their text. The unit that repeats is the
cluster (a document): B resamples of the clusters give B curves, and the engine fits them as it fits any others.
Source: Efron & Tibshirani, An Introduction to the Bootstrap, 1993.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from tsl_jax.fitting.fit_law import fit
from tsl_jax.fitting.result import Fit
from tsl_jax.laws import Law


@dataclass(frozen=True)
class Bootstrap:
    """Parameters of resampled curves.

    Attributes:
        params: (resample, ..., param) in published order.
        usable: (resample, ...) bool: the fit has an interior optimum. fit: all fits.
    """

    params: np.ndarray
    usable: np.ndarray
    fit: Fit

    def interval(self, level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """Low and high (..., param), percentiles over all resamples: those at a bound of the shape count too."""
        tail = (1 - level) / 2
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # of curves without fits: NaN
            low, high = np.nanquantile(self.params, [tail, 1 - tail], axis=0)
        return low, high

    def stderr(self) -> np.ndarray:
        """Standard deviation over the usable resamples (..., param)."""
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # of curves with fewer than two: NaN
            return np.nanstd(np.where(self.usable[..., None], self.params, np.nan), axis=0, ddof=1)


def bootstrap(
    law: Law, sums: Any, counts: Any, x: Any, resamples: int = 1000, seed: int = 0, dtype: str | None = None
) -> Bootstrap:
    """Fit `law` to the mean curves of resampled clusters.

    Args:
        sums: (..., cluster, point), the sum of losses in each cluster. counts: the same shape, how many were summed;
            where that is zero, the sum may be NaN.
        x: covariate of the points. resamples: B. seed: of the draw; the same clusters are drawn for all curves.

    Raises:
        ValueError: for fewer than two clusters, or counts of another shape.
    """
    sums, counts = np.asarray(sums, float), np.asarray(counts, float)
    if sums.ndim < 2 or sums.shape != counts.shape or sums.shape[-2] < 2:
        found = f"sums {sums.shape} and counts {counts.shape}"
        raise ValueError(f"bootstrap: expected (..., cluster, point) of two or more clusters, found {found}")
    sums = np.where(counts > 0, sums, 0)
    clusters = sums.shape[-2]
    drawn = np.random.default_rng(seed).multinomial(clusters, np.full(clusters, 1 / clusters), resamples)
    total, number = (np.tensordot(drawn.astype(float), part, (1, part.ndim - 2)) for part in (sums, counts))
    with np.errstate(invalid="ignore", divide="ignore"):
        curves = total / number
    found = fit(law, curves, x=x, weights=None if (number > 0).all() else number > 0, dtype=dtype)
    return Bootstrap(found.params.values, found.usable.values, found)
