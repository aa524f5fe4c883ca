"""The noise of a loss curve over positions, from few clusters: a stationary covariance, and bins that it can bear.

The covariance of a mean curve over n positions from C clusters (documents) has rank C - 1: no likelihood can be made
of it. What is known of the noise fills the gap. Windows begin anywhere in a text, so that how hard a token is has
nothing to do with the position at which it is met: the noise is *stationary*,

    cov(e_i, e_j) = c(|i - j|),     c(h) = mean over i of S(i, i + h),

with S the sample covariance. Averaging along diagonals makes hundreds of pairs of a few clusters, and keeps what
matters: the common mode (a text that is easy throughout; laws with a constant do not see it), slow drifts, and the
comb that overlapping windows leave (a token that was hard at position i was hard at i + 3 too). Negative eigenvalues
of the Toeplitz matrix are set to zero, and it is scaled back to the variance it had.

Its small eigenvalues remain mere guesses: likelihoods are made of means over bins, even in log position (`log_bins`),
at which laws over positions differ and the comb averages out. In simulations with the noise of 64 documents and 8
clusters, 10 bins give tests of 5 % that reject 9 to 10 % of true laws; 17 bins, 14 to 17 %; every position is
hopeless. Hence `compare.reference`, which simulates what is left.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array

from tsl_jax.fitting.covariance import jacobian
from tsl_jax.fitting.result import Fit, as_covariates
from tsl_jax.fitting.varpro import orthonormal
from tsl_jax.laws import Covariates, Law

BINS = 10


def stationary(covariance: np.ndarray) -> np.ndarray:
    """The stationary covariance (..., point, point) nearest to a sample covariance of evenly spaced points.

    Args:
        covariance: (..., point, point) from clusters, such as `tsl_jax.surface.position_covariance`.

    Returns:
        Positive semidefinite, constant along diagonals up to what that takes; same mean variance.

    Raises:
        ValueError: for what is not square or not finite.
    """
    covariance = np.asarray(covariance, float)
    if covariance.ndim < 2 or covariance.shape[-1] != covariance.shape[-2] or not np.isfinite(covariance).all():
        raise ValueError(f"noise: expected finite (..., point, point), found shape {covariance.shape}")
    n = covariance.shape[-1]
    lag = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    sums = [np.bincount(lag.ravel(), one.ravel()) for one in covariance.reshape(-1, n, n)]
    toeplitz = (np.stack(sums) / np.bincount(lag.ravel()))[:, lag].reshape(covariance.shape)
    values, vectors = np.linalg.eigh(toeplitz)
    kept = np.maximum(values, 0)
    total = kept.sum(-1, keepdims=True)
    kept = kept * np.maximum(values.sum(-1, keepdims=True), 0) / np.where(total > 0, total, 1)
    return (vectors * kept[..., None, :]) @ np.swapaxes(vectors, -1, -2)


def log_bins(x: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Means over bins that are even in log x: (bin, point), rows sum to one; every bin holds a point.

    Args:
        x: (point,), positive and increasing. bins: at most; fewer where neighbouring edges hold no point.
    """
    x = np.asarray(x, float)
    if x.ndim != 1 or len(x) < 2 or x[0] <= 0 or (np.diff(x) <= 0).any():
        raise ValueError(f"noise: bins need positive increasing points, found {x[:4]}...")
    edges = np.geomspace(x[0], x[-1] * (1 + 1e-9) + 1e-9, bins + 1)
    place = np.clip(np.searchsorted(edges, x * (1 + 1e-12), side="right") - 1, 0, bins - 1)
    members = place == np.unique(place)[:, None]
    return members / members.sum(axis=1, keepdims=True)


def noise_ceiling(fit: Fit, y: xr.DataArray, covariance: xr.DataArray) -> xr.DataArray:
    """The R2 that each fit would reach if its law were exactly true: 1 - tr((I - H) Sigma) / SST.

    Sigma is the covariance of the data's noise, H the projection on the law's tangent space at the fit: noise that
    the fit follows is not missed. The expectation of SSE under a true law is tr((I - H) Sigma), not tr(Sigma).

    Args:
        fit: a fit of y over one dimension, unweighted. y: the data it was made from.
        covariance: (..., point, point_) of y's noise, from clusters.
    """
    (over,) = fit.over
    noise = covariance.transpose(*fit.status.dims, ...).values.reshape(-1, *covariance.shape[-2:])
    solved = fit.raw_params.values.reshape(len(noise), -1)
    with jax.enable_x64(True):
        x = jax.tree.map(jnp.asarray, as_covariates(fit.x))
        shapes = len(fit.law.shapes)
        q = jnp.concatenate([jnp.log(jnp.asarray(solved[:, :shapes])), jnp.asarray(solved[:, shapes:])], axis=-1)
        missed = np.asarray(jax.vmap(lambda q, s: _missed(fit.law, q, x, s))(q, jnp.asarray(noise)))
    total = ((y - y.mean(over)) ** 2).sum(over).transpose(*fit.status.dims)
    return 1 - fit.sse.copy(data=missed.reshape(fit.sse.shape)) / total.where(total > 0)


def _missed(law: Law, q: Array, x: Covariates, noise: Array) -> Array:
    """tr((I - H) Sigma)."""
    frame, _ = orthonormal(jacobian(law, q, x))
    return jnp.trace(noise) - jnp.sum(frame * (noise @ frame))
