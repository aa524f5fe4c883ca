"""How good the prediction of unseen mixtures was on the user's own runs, beside simpler ways.

The runs of the largest size with FEWEST candidates or more are held out in FOLDS parts by candidate; runs of other
sizes stay. Each method predicts them from the rest:

    gaussian process     `mixture_regression`, its parameters fitted anew for each part where there are few rows
    linear               log loss linear in the shares, a level for each size
    data mixing law      c + k exp(sum_j t_j r_j), a level for each size (Ye et al., arXiv 2403.16952)
    smaller runs         the loss of the same mixture at the next smaller size: ranks alone

Spearman's correlation, the rms error in nats, and the share of held-out runs inside their 90 % intervals.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from tsl_jax.selection.mixture_regression import NAMES, MixturePoints, MixtureRegression, fit_regression

FEWEST = 8  # candidates of a size that are held out in parts
FOLDS = 10
REFITTED = 150  # rows up to which parameters are fitted anew: with more, a tenth hardly moves them
RIDGE = 1e-3
Z90 = 1.6449
GP, LINEAR, LAW, SMALLER = "gaussian process", "linear", "data mixing law", "smaller runs"


def cross_validate(regression: MixtureRegression, ended: np.ndarray, seed: int = 0) -> pd.DataFrame:
    """A row a method: held_out (runs), spearman, rms (nats), inside_90, z2 (mean squared standardised error).

    Args:
        regression: fitted to all rows. ended: (row,) mask of those whose loss is known, not extrapolated.

    Returns:
        No rows where no size has FEWEST candidates.
    """
    points, y = regression.points, regression.y
    held = _largest_size(points, ended)
    columns = ["method", "held_out", "spearman", "rms", "inside_90", "z2"]
    if not held.any():
        return pd.DataFrame(columns=columns).set_index("method")
    candidates = np.unique(points.candidate[held])
    folds = np.array_split(np.random.default_rng(seed).permutation(candidates), min(FOLDS, len(candidates)))
    predicted = {name: np.full(len(y), np.nan) for name in (GP, LINEAR, LAW, SMALLER)}
    sd = np.full(len(y), np.nan)
    for fold in folds:
        out = held & np.isin(points.candidate, fold)
        gone = np.isin(points.candidate, fold) & (points.scale > points.scale[held].min() - 0.05)  # larger runs too
        fitted = regression.without(gone)
        if len(fitted.y) <= REFITTED:
            fitted = fit_regression(fitted.points, fitted.y, fitted.errors, start=regression.theta)
        mean, covariance = fitted.predict(points.take(out))
        predicted[GP][out] = mean
        noise = fitted.unit**2 * np.exp(2 * fitted.theta[NAMES.index("noise")])
        sd[out] = np.sqrt(np.maximum(np.diag(covariance) + noise, 1e-18))
        if points.shares is not None:
            predicted[LINEAR][out] = linear(points.take(~gone), y[~gone], points.take(out))
            predicted[LAW][out] = mixing_law(points.take(~gone), y[~gone], points.take(out))
    predicted[SMALLER] = _at_smaller_size(points, y, held)
    rows = []
    for name, values in predicted.items():
        known = held & np.isfinite(values)
        if known.sum() < FEWEST:
            continue
        z = (y - values)[known] / sd[known]
        of_gp = name == GP
        rms = float(np.sqrt(np.mean((np.exp(y) - np.exp(values))[known] ** 2))) if name != SMALLER else np.nan
        inside = float(np.mean(np.abs(z) < Z90)) if of_gp else np.nan
        correlation = spearman(values[known], y[known])
        rows.append((name, int(known.sum()), correlation, rms, inside, float(np.mean(z**2)) if of_gp else np.nan))
    return pd.DataFrame(rows, columns=columns).set_index("method")


def linear(points: MixturePoints, y: np.ndarray, at: MixturePoints) -> np.ndarray:
    """Log losses by a linear regression on the shares, each size with a level of its own."""
    assert points.shares is not None
    assert at.shares is not None
    level, effects = _levels(points, y, at)
    center = points.shares.mean(0)
    design = points.shares - center
    slopes = np.linalg.solve(design.T @ design + RIDGE * np.eye(design.shape[1]), design.T @ effects)
    return level + (at.shares - center) @ slopes


def mixing_law(points: MixturePoints, y: np.ndarray, at: MixturePoints) -> np.ndarray:
    """Log losses by c + k exp(sum_j t_j r_j), fitted by least squares to losses relative to the level of their size.

    NaN where there are fewer runs than numbers to fit.
    """
    from scipy.optimize import least_squares

    assert points.shares is not None
    assert at.shares is not None
    shares = points.shares
    if len(y) < shares.shape[1] + 2:
        return np.full(len(at), np.nan)
    level, effects = _levels(points, y, at)
    ratio = np.exp(effects)

    def coefficients(t: np.ndarray) -> tuple[float, float]:  # c and k are those of a straight line, given t
        rise = np.exp(np.clip(shares @ t, -30, 30))
        away = rise - rise.mean()
        k = float(away @ ratio / max(float(away @ away), 1e-12))
        return float(ratio.mean() - k * rise.mean()), k

    def residual(t: np.ndarray) -> np.ndarray:
        c, k = coefficients(t)
        return np.r_[c + k * np.exp(np.clip(shares @ t, -30, 30)) - ratio, 1e-4 * t]

    center = shares - shares.mean(0)
    slopes = np.linalg.solve(center.T @ center + RIDGE * np.eye(shares.shape[1]), center.T @ effects)
    scale = np.abs(slopes).max() or 1.0
    fits = [least_squares(residual, slopes / scale * size, max_nfev=40, x_scale="jac") for size in (0.5, 2.0)]
    t = min(fits, key=lambda fit: fit.cost).x
    c, k = coefficients(t)
    return level + np.log(np.maximum(c + k * np.exp(np.clip(at.shares @ t, -30, 30)), 1e-3))


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Correlation of ranks, ties at their mean rank; NaN where one does not vary."""
    ranks = [pd.Series(values).rank().to_numpy() for values in (first, second)]
    if min(np.ptp(rank) for rank in ranks) == 0:
        return float("nan")
    return float(np.corrcoef(ranks)[0, 1])


def _levels(points: MixturePoints, y: np.ndarray, at: MixturePoints) -> tuple[np.ndarray, np.ndarray]:
    """The mean of each size at the new points (that of all where it has none), and what runs are away from theirs."""
    means = {size: y[points.size == size].mean() for size in np.unique(points.size)}
    effects = y - np.array([means[size] for size in points.size])
    return np.array([means.get(size, y.mean()) for size in at.size]), effects


def _largest_size(points: MixturePoints, ended: np.ndarray) -> np.ndarray:
    """(row,) the runs of the largest size with FEWEST candidates."""
    for scale in np.unique(points.scale[ended])[::-1]:
        size = points.size[ended & (points.scale == scale)][0]
        rows = ended & (points.size == size)
        if len(np.unique(points.candidate[rows])) >= FEWEST:
            return rows
    return np.zeros(len(points), bool)


def _at_smaller_size(points: MixturePoints, y: np.ndarray, held: np.ndarray) -> np.ndarray:
    """The loss of the same candidate at the next smaller size; NaN where it has none."""
    values = np.full(len(y), np.nan)
    smaller = points.scale < points.scale[held].min()
    for row in np.flatnonzero(held):
        same = np.flatnonzero(smaller & (points.candidate == points.candidate[row]))
        if len(same):
            nearest = points.scale[same] == points.scale[same].max()
            values[row] = y[same[nearest]].mean()
    return values
