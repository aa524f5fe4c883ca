"""The noise of a loss curve over positions, from few clusters: its covariance, bins for it, and the R2 it allows.

The covariance of a mean curve over n positions from C clusters (documents) has rank C - 1: it has no inverse, so no
likelihood can be made of it. What is known of the noise fills the gap. Windows begin anywhere in a text, so that how
hard a token is has nothing to do with its position in a window: the noise is *stationary*,

    cov(e_i, e_j) = c(|i - j|),     c(h) = mean over i of S(i, i + h),

with S the sample covariance. Averaging along diagonals uses hundreds of pairs of a few clusters, and keeps what
matters: the common mode (a text that is easy throughout; laws with a constant do not see it), slow drifts, and the
peaks at lags that overlapping windows make (a token that was hard at position i was hard at i + 3 too).

Its small eigenvalues remain poorly known: likelihoods are made of means over bins, even in log position (`log_bins`),
at which laws over positions differ and the peaks average out. In simulations with the noise of 64 documents and 8
clusters, 10 bins give tests of 5 % that reject 9 to 10 % of true laws; 17 bins, 14 to 17 %; a bin for every position
rejects nearly all. Hence `model_comparison.reference_chi2`, which simulates chi2 under a true law.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float
from scipy import stats

from tsl_jax.fitting.covariance import jacobian
from tsl_jax.fitting.result import Fit, as_covariates
from tsl_jax.fitting.varpro import orthonormal
from tsl_jax.laws import Covariates, Law

BINS = 10
PROBES = 64  # random signs: the degrees of freedom of a band's quantiles to some 10 %
BLOCK = 2**21  # numbers of a surface's clusters that are worked on at once, 16 MB


def stationary_covariance(covariance: Float[np.ndarray, "*batch n n"]) -> Float[np.ndarray, "*batch n n"]:
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
        raise ValueError(f"stationary_covariance: expected finite (..., n, n), found shape {covariance.shape}")
    n = covariance.shape[-1]
    lag = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    # c(h): the mean of S(i, j) over all pairs with |i - j| = h, then spread along the diagonals again.
    sums = [np.bincount(lag.ravel(), matrix.ravel()) for matrix in covariance.reshape(-1, n, n)]
    toeplitz = (np.stack(sums) / np.bincount(lag.ravel()))[:, lag].reshape(covariance.shape)
    # A mean of covariances along diagonals need not be one: drop negative eigenvalues, then scale the others so that
    # the trace, the total variance, stays as it was.
    values, vectors = np.linalg.eigh(toeplitz)
    kept = np.maximum(values, 0)
    total = kept.sum(-1, keepdims=True)
    kept = kept * np.maximum(values.sum(-1, keepdims=True), 0) / np.where(total > 0, total, 1)
    return (vectors * kept[..., None, :]) @ np.swapaxes(vectors, -1, -2)


def log_bins(x: Float[np.ndarray, " point"], bins: int = BINS) -> Float[np.ndarray, "bin point"]:
    """Means over bins that are even in log x: (bin, point), rows sum to one; every bin holds a point.

    Args:
        x: (point,), positive and increasing. bins: at most; fewer where neighbouring edges hold no point.

    Raises:
        ValueError: for other x, or less than one bin.
    """
    x = np.asarray(x, float)
    if x.ndim != 1 or len(x) < 2 or not (x[0] > 0 and (np.diff(x) > 0).all() and np.isfinite(x[-1])):
        raise ValueError(f"log_bins: expected positive increasing points (point,), found shape {x.shape}: {x[:4]}...")
    if bins < 1:
        raise ValueError(f"log_bins: expected one bin or more, found {bins}")
    edges = np.geomspace(x[0], x[-1] * (1 + 1e-9) + 1e-9, bins + 1)
    # A point on an edge belongs to the bin above, whatever the rounding of the edge.
    place = np.clip(np.searchsorted(edges, x * (1 + 1e-12), side="right") - 1, 0, bins - 1)
    members = place == np.unique(place)[:, None]
    return members / members.sum(axis=1, keepdims=True)


def expected_r2(fit: Fit, y: xr.DataArray, covariance: xr.DataArray) -> xr.Dataset:
    """The R2 to expect of each fit under the noise of its data, if its law were exactly true.

    Sigma is the covariance of that noise, H the projection on the law's tangent space at the fit: noise that the fit
    follows is no residual. With A = (I - H) Sigma (I - H), the SSE of a true law has the mean m = tr A, the variance
    2 tr A^2, and, as a sum of squares (Satterthwaite), about d = m^2 / tr A^2 degrees of freedom. A covariance from C
    clusters is itself the mean of C - 1 such squares, so that

        SSE/m ~ F(d, (C - 1) d),    R2 = 1 - SSE/SST.

    Args:
        fit: a fit of y over one dimension, unweighted. y: the data it was made from.
        covariance: (..., point, point_) of y's noise, taken as known (C infinite), or its root (..., cluster, point)
            from C clusters, see `tsl_jax.surface.position_noise`, which is smaller where points are many.

    Returns:
        mean, and low to high, which hold 90 % of true laws: (...) over the fit's other dimensions. NaN where y is
        constant, or a coefficient is at its limit. An R2 below `low` speaks against the law; above `high` the noise is
        smaller than the clusters say. Curves measured on the same texts share one draw of the noise: they lie in the
        interval together, or beside it together.

    Raises:
        ValueError: for a weighted fit, a fit over several dimensions, or shapes that do not belong to it.
    """
    moments = under_noise("expected_r2", fit, covariance, _sse_moments)
    (over,) = fit.over
    if set(y.dims) != {over, *fit.status.dims}:
        raise ValueError(f"expected_r2: y has dimensions {y.dims}, the fit {(*fit.status.dims, over)}; give its data")
    mean, square = moments.isel(value=0), moments.isel(value=1)
    known = xr.DataArray(np.inf)  # C - 1
    if "cluster" in covariance.dims:  # a split with fewer of them has rows of zeros
        rows = (covariance != 0).any([dim for dim in covariance.dims if dim not in (*fit.status.dims, "cluster")])
        known = (rows.sum("cluster") - 1).clip(min=2)
        # tr A^2 of a sample covariance is too large by (tr A)^2/(C - 1) and more (Srivastava 2005)
        square = known**2 / ((known - 1) * (known + 2)) * (square - mean**2 / known)
    n_points = y.sizes[over]
    freedom = (mean**2 / square.where(square > 0)).fillna(n_points).clip(1, n_points).where(mean > 0)
    # Of the data with their noise, as in the R2 of the fit.
    sst = ((y - y.mean(over)) ** 2).sum(over).transpose(*fit.status.dims)
    share = mean / sst.where(sst > 0)

    def quantile(q: float) -> xr.DataArray:
        return xr.apply_ufunc(lambda d, k: stats.f.ppf(q, d, np.minimum(k * d, 1e9)), freedom, known)

    return xr.Dataset({"mean": 1 - share, "low": 1 - share * quantile(0.95), "high": 1 - share * quantile(0.05)})


def _sse_moments(law: Law, q: Array, x: Covariates, noise: Noise) -> Array:
    """tr A and tr A^2, (2,): A = (I - H) Sigma (I - H), H = Q Q'.

    tr A = tr Sigma - tr(Q' Sigma Q) exactly; tr A^2 = E |A z|^2 over random signs z, by PROBES of them.
    """
    basis, _ = orthonormal(jacobian(law, q, x))
    signs = jax.random.rademacher(jax.random.key(0), (basis.shape[0], PROBES), basis.dtype)
    after = noise.times(signs - basis @ (basis.T @ signs))
    after = after - basis @ (basis.T @ after)
    return jnp.stack([noise.total - jnp.sum(basis * noise.times(basis)), jnp.sum(after**2) / PROBES])


def surface_expected_r2(fit: Fit, surface: xr.Dataset, noise: Callable[[xr.Dataset], xr.DataArray]) -> xr.Dataset:
    """`expected_r2` of a fit of `surface.loss` over positions, under the noise that its clusters show.

    Some checkpoints after the other, so that memory does not grow with their number.

    Args:
        noise: `tsl_jax.surface.position_noise`, or what else gives a root of the covariance of some checkpoints.

    Returns:
        mean, low, high: (split, tokens).

    Raises:
        ValueError: as `expected_r2`.
    """
    sizes = surface.cluster_sum.sizes
    each = max(BLOCK // (sizes["split"] * sizes["cluster"] * sizes["position"]), 1)
    parts: list[xr.Dataset] = []
    for first in range(0, sizes["tokens"], each):
        part = {"tokens": slice(first, first + each)}
        arrays = {name: a for name, a in vars(fit).items() if isinstance(a, xr.DataArray) and "tokens" in a.dims}
        here = replace(fit, **{name: a.isel(part) for name, a in arrays.items()})
        of_part = surface[["loss", "count", "cluster_sum", "cluster_count"]].isel(part).load()
        parts.append(expected_r2(here, of_part.loss, noise(of_part)))
    return xr.concat(parts, "tokens")


class Noise(NamedTuple):
    """A covariance Sigma (point, point): its trace, and B -> Sigma B for columns B (point, column)."""

    total: Array
    times: Callable[[Array], Array]

    @classmethod
    def from_covariance(cls, sigma: Array) -> Noise:
        return cls(jnp.trace(sigma), lambda columns: sigma @ columns)

    @classmethod
    def from_root(cls, root: Array) -> Noise:
        """Sigma = root' root, root (cluster, point)."""
        return cls(jnp.sum(root**2), lambda columns: root.T @ (root @ columns))


def under_noise(
    name: str, fit: Fit, covariance: xr.DataArray, quantity: Callable[[Law, Array, Covariates, Noise], Array]
) -> xr.DataArray:
    """quantity(law, q, x, noise) at every fit by plain least squares, q = (log shapes, coefficients), with its noise.

    A quantity of several numbers has them along a last dimension `value`. NaN where a coefficient is at its limit.
    Raises ValueError in the name of the caller, for a weighted fit, one over several dimensions, or a covariance (or
    root, with a dimension cluster) of another shape.
    """
    if fit.weights is not None:
        raise ValueError(f"{name}: the formula is that of unweighted least squares, found a weighted fit; fit without")
    if len(fit.over) != 1:
        raise ValueError(f"{name}: expected a fit over one dimension, found {fit.over}")
    points = fit.predict().sizes[fit.over[0]] if isinstance(fit.x, Mapping) else np.size(fit.x)
    is_root = "cluster" in covariance.dims
    rows = covariance.sizes["cluster"] if is_root else points
    expected = (*fit.status.shape, rows, points)
    sigma = covariance.transpose(*fit.status.dims, *(("cluster",) if is_root else ()), ...).values
    if sigma.shape != expected:
        raise ValueError(f"{name}: expected a covariance of shape {expected}, found {sigma.shape}")
    raw, shapes = fit.raw_params.values.reshape(-1, len(fit.law.raw_params)), len(fit.law.shapes)
    with jax.enable_x64(True):
        x = jax.tree.map(jnp.asarray, as_covariates(fit.x))
        q = jnp.concatenate([jnp.log(jnp.asarray(raw[:, :shapes])), jnp.asarray(raw[:, shapes:])], axis=-1)
        values = _of_each(quantity, fit.law, is_root, q, x, jnp.asarray(sigma.reshape(-1, rows, points)))
    # At its limit a coefficient does not move with the noise: the tangent space is a smaller one.
    more = values.shape[1:]
    result = xr.DataArray(
        np.asarray(values).reshape(*fit.sse.shape, *more), fit.sse.coords, (*fit.sse.dims, *["value"] * len(more))
    )
    return result.where((fit.active == 0).all("coef"))


@partial(jax.jit, static_argnums=(0, 1, 2))
def _of_each(quantity: Any, law: Law, is_root: bool, q: Array, x: Covariates, sigma: Array) -> Array:
    """The quantity of each curve (curve,), compiled once for all blocks of a surface."""
    as_noise = Noise.from_root if is_root else Noise.from_covariance
    return jax.vmap(lambda q, s: quantity(law, q, x, as_noise(s)))(q, sigma)
