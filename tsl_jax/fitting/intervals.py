"""Intervals of fitted parameters: by standard errors, by profile likelihood, by resampled residuals.

Each takes a `Fit`, a level, and what a bootstrap needs, and gives the low and high ends (..., param).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from tsl_jax.fitting.covariance import profile_intervals

if TYPE_CHECKING:
    from tsl_jax.fitting.result import Fit

Ends = tuple[xr.DataArray, xr.DataArray]
AT_ONCE = 1 << 24  # numbers of resampled curves that are fitted together


def wald(fitted: Fit, level: float, resamples: int, seed: int) -> Ends:
    """Estimate -+ t stderr, with t of n - p degrees of freedom; infinite where the error is, or no point is free.

    With `absolute_sigma` the noise is known, and t is that of a normal distribution.
    """
    from scipy.stats import t as student  # late: a second to import

    known = fitted.refit.keywords["absolute_sigma"]
    degrees = np.where(known, np.inf, fitted.n_points - fitted.n_free)
    quantile = np.where(degrees > 0, student.ppf((1 + level) / 2, np.maximum(degrees, 1)), np.inf)
    half = fitted.stderr * fitted.status.copy(data=quantile)
    return fitted.params - half, fitted.params + half


def profile(fitted: Fit, level: float, resamples: int, seed: int) -> Ends:
    """By likelihood ratio, of laws with one shape whose parameters are its shape and coefficients."""
    law = fitted.law
    if law.basis is None or len(law.shapes) != 1 or law.params_from_raw is not None:
        known = "separable laws with one shape that are read by it and their coefficients"
        raise ValueError(f"interval: profile intervals are of {known}; {law.name} is none, use method='bootstrap'")
    options = fitted.refit.keywords
    if options["loss"] != "squares" or options["absolute_sigma"] or options["coef_limits"]:
        made = "loss=, absolute_sigma= or coef_limits="
        raise ValueError(f"interval: profile intervals are of plain least squares, not of a fit with {made}")
    points = fitted.y.shape[-1]
    y, weights = fitted.y.values.reshape(-1, points), fitted.weights
    if weights is not None:
        weights = weights.values.reshape(-1, points) if weights.ndim > 1 else weights.values
    ends = profile_intervals(law, y, fitted.x, weights, level)  # (2, curve, raw_param)
    order = [law.raw_params.index(name) for name in law.params]
    low, high = (fitted.params.copy(data=end[:, order].reshape(fitted.params.shape)) for end in ends)
    return low, high


def bootstrap(fitted: Fit, level: float, resamples: int, seed: int) -> Ends:
    """Percentiles of the parameters of curve + resampled residuals, those at a bound of the shape included."""
    if fitted.weights is not None:
        raise ValueError("interval: residuals of points with unequal weights are not exchangeable; use method='wald'")
    if fitted.refit.keywords["absolute_sigma"]:
        raise ValueError("interval: the bootstrap takes the noise from the residuals, not from absolute_sigma=")
    random, points = np.random.default_rng(seed), fitted.y.shape[-1]
    curves = np.asarray(fitted.predict().values, float).reshape(-1, points)
    # Residuals are smaller than the noise by what the parameters took.
    scale = np.sqrt(points / max(points - len(fitted.law.raw_params), 1))
    rest = scale * (fitted.y.values.reshape(-1, points) - curves)
    low, high = (np.full((len(curves), len(fitted.law.params)), np.nan) for _ in range(2))
    size = max(1, AT_ONCE // (resamples * points))
    for start in range(0, len(curves), size):
        some = slice(start, start + size)
        drawn = np.take_along_axis(
            rest[some, None], random.integers(0, points, (len(curves[some]), resamples, points)), axis=2
        )
        again = fitted.refit(curves[some, None] + drawn)
        tails = np.array([(1 - level) / 2, (1 + level) / 2])
        low[some], high[some] = np.quantile(again.params.values, tails, axis=1)
    shape = fitted.params.shape
    return fitted.params.copy(data=low.reshape(shape)), fitted.params.copy(data=high.reshape(shape))


INTERVALS: dict[str, Callable[[Fit, float, int, int], Ends]] = {
    "wald": wald,
    "profile": profile,
    "bootstrap": bootstrap,
}
