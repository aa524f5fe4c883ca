"""Errors by resampling: the cluster bootstrap as one batched fit.

Positions of a loss curve correlate, as do checkpoints, because they share their text. The unit that repeats is the
cluster (a document): B resamples of the clusters give B curves,

    y_b(i) = sum_c k_bc S_c(i) / sum_c k_bc n_c(i),     k_b multinomial(C; 1/C, ..., 1/C),

and one call fits them as any other batch. Source: Efron & Tibshirani, An Introduction to the Bootstrap, 1993.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

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

    params: Float[np.ndarray, "resample *curves param"]
    usable: np.ndarray
    fit: Fit

    def interval(self, level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """Low and high (..., param), percentiles over all resamples: those at a bound of the shape count too."""
        if not 0 < level < 1:
            raise ValueError(f"bootstrap: level must lie between 0 and 1, found {level}")
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
        ValueError: for fewer than two clusters, counts of another shape, counts or sums that are no numbers, or no
            resample.
    """
    sums, counts = np.asarray(sums, float), np.asarray(counts, float)
    if sums.ndim < 2 or sums.shape != counts.shape or sums.shape[-2] < 2:
        shapes = f"sums {sums.shape} and counts {counts.shape}"
        raise ValueError(f"bootstrap: expected (..., cluster, point) of two or more clusters, found {shapes}")
    if not (np.isfinite(counts).all() and (counts >= 0).all() and np.isfinite(sums[counts > 0]).all()):
        raise ValueError("bootstrap: expected counts from 0 up, and a finite sum wherever something was counted")
    if resamples < 1:
        raise ValueError(f"bootstrap: expected one resample or more, found {resamples}")
    sums = np.where(counts > 0, sums, 0)
    clusters = sums.shape[-2]
    # How often each cluster is drawn, (resample, cluster): a matrix product is the sum over drawn clusters.
    drawn = np.random.default_rng(seed).multinomial(clusters, np.full(clusters, 1 / clusters), resamples)
    total, number = (np.tensordot(drawn.astype(float), part, (1, part.ndim - 2)) for part in (sums, counts))
    with np.errstate(invalid="ignore", divide="ignore"):
        curves = total / number
    # A point that no drawn cluster reaches has no mean: weight zero leaves it out.
    fits = fit(law, curves, x=x, weights=None if (number > 0).all() else number > 0, dtype=dtype)
    return Bootstrap(fits.params.values, fits.usable.values, fits)
