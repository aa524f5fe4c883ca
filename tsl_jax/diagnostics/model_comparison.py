"""Which of several laws holds on a curve: by likelihood under correlated noise, and by points that were held out.

Likelihood. With B the means over bins, S = B Sigma B' and f the curve of a law,

    chi2 = min over the law of (B y - B f)' S^-1 (B y - B f) = -2 log likelihood + constant.

Under a true law chi2 follows a chi2 of (bins - parameters) degrees (`lack_of_fit`), if Sigma is known; where Sigma
comes from few clusters `reference_chi2` simulates clusters, curve and estimate of Sigma together. Two laws f, g that
are not nested are compared by D = (chi2_g - chi2_f)/2, the log likelihood ratio. If f is true, D is normal with mean
d^2/2 and standard deviation d, where d^2 is the chi2 that g leaves of f's own curve: so D < 0 has probability
Phi(-d/2), and z = (D - d^2/2)/d says whether the data are as f would have them (`cox_test`; Cox 1961, linearised).

Held-out points. `held_out` leaves out blocks of points, `extrapolated` those beyond a share of x; the rest is fitted by
plain least squares and predicts them: what a law is worth without any assumption on noise.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tsl_jax.diagnostics.noise import log_bins, stationary_covariance
from tsl_jax.fitting.fit_law import fit_rows
from tsl_jax.fitting.result import evaluate
from tsl_jax.laws import Law

MIN_DISTANCE = 0.1  # standard deviations between two laws below which their ratio says nothing
GRID = 256  # shapes over the whole range, and again between the neighbours of the best


class GlsFit(NamedTuple):
    """A law at its most likely.

    Attributes:
        chi2: of the residuals, in units of their noise. degrees: of freedom, bins - parameters.
        raw_params: (raw_param,), shape and coefficients. curve: (point,), the law there.
    """

    chi2: float
    degrees: int
    raw_params: np.ndarray
    curve: np.ndarray


class CoxTest(NamedTuple):
    """Two laws on one curve.

    Attributes:
        log_ratio: log likelihood of the first over the second.
        apart: d, how far apart the laws are in standard deviations of the noise, if the first is true.
        z_first, z_second: (log_ratio - its mean)/its standard deviation if the first, or the second, is true; NaN where
            the data cannot tell the laws apart (d < .1).
    """

    log_ratio: float
    apart: float
    z_first: float
    z_second: float


def gls_fit(law: Law, y: Any, x: Any, covariance: Any, bins: np.ndarray | None = None) -> GlsFit:
    """Generalised least squares: the parameters that are most likely to have made y, under noise of this covariance.

    Minimises |W B (y - f)|^2 over the law, with W'W = (B Sigma B')^-1.

    Args:
        law: separable, with one shape. y: (point,). x: (point,). covariance: (point, point) of y, best of
            `stationary_covariance`. bins: (bin, point), rows that average points; default `log_bins(x)`.

    Raises:
        ValueError: for another kind of law, shapes that do not fit, NaN, no more bins than parameters, or a covariance
            that leaves a bin without noise.
    """
    curves, x = _check_curves(law, y, x)
    covariance = np.asarray(covariance, float)
    bins = log_bins(x) if bins is None else np.asarray(bins, float)
    shapes, n = (len(curves), covariance.shape, bins.shape[1:]), len(x)
    if shapes != (1, (n, n), (n,)):
        found = f"{len(curves)} curves, covariance {covariance.shape}, bins {bins.shape}"
        raise ValueError(f"gls_fit: expected one y ({n},), covariance ({n}, {n}) and bins (bin, {n}), found {found}")
    degrees = len(bins) - len(law.raw_params)  # of freedom: each parameter takes the noise of one bin away
    if degrees < 1:
        need = f"the {len(law.raw_params)} parameters of {law.name}"
        raise ValueError(f"gls_fit: {len(bins)} bins leave no degree of freedom to {need}; give more points or bins")
    try:
        # With the Cholesky factor S = L L', W = L^-1 makes the noise of W B y white with variance one.
        whiten = np.linalg.inv(np.linalg.cholesky(bins @ covariance @ bins.T)) @ bins
    except np.linalg.LinAlgError:
        fix = "take fewer bins, or stationary_covariance"
        raise ValueError(f"gls_fit: some mean over a bin has no noise; {fix}") from None
    chi2, raw_params = _search(law, curves[0], x, whiten)
    return GlsFit(chi2, degrees, raw_params, evaluate(law, raw_params[None], x)[0])


def _check_curves(law: Law, y: Any, x: Any) -> tuple[np.ndarray, np.ndarray]:
    """y (curve, point) and x (point,) as arrays, once they and the law are such as `_search` can fit."""
    if law.basis is None or len(law.shapes) != 1:
        raise ValueError(f"model_comparison: needs a separable law with one shape, {law.name} has {law.shapes}")
    y, x = np.atleast_2d(np.asarray(y, float)), np.asarray(x, float)
    if x.ndim != 1 or y.ndim != 2 or y.shape[1:] != x.shape:
        found = f"y {y.shape} and x {x.shape}"
        raise ValueError(f"model_comparison: expected y ([curve,] point) and x (point,), found {found}")
    if not (np.isfinite(y).all() and np.isfinite(x).all()):
        raise ValueError("model_comparison: y or x holds NaN or infinity; leave these points out of both")
    return y, x


def _search(law: Law, y: np.ndarray, x: np.ndarray, a: np.ndarray) -> tuple[float, np.ndarray]:
    """The least |a (y - law)|^2, and the raw parameters there; a is (row, point).

    Given the shape, the coefficients are linear least squares, so the shape alone is searched (variable projection):
    on a grid over its whole range, then on one between the neighbours of the best. No local minimum is missed that is
    wider than the grid.
    """
    target = a @ y
    with jax.enable_x64(True):  # whatever the settings of the caller: chi2 are differences of large numbers
        grid, bases = _grid(law, x.tobytes())
        best, step = grid[int(np.argmin(_projected_sse(a, bases, target)))], grid[1] - grid[0]
        fine = np.linspace(max(grid[0], best - step), min(grid[-1], best + step), GRID)
        bases = np.asarray(_bases(law, jnp.asarray(fine), jnp.asarray(x)))
    sse = _projected_sse(a, bases, target)
    k = int(np.argmin(sse))  # one k for both: the coefficients belong to the best shape
    coefs = np.linalg.lstsq(a @ bases[:, k], target)[0]
    return float(sse[k]), np.concatenate([np.exp(fine[k : k + 1]), coefs])


def _projected_sse(a: np.ndarray, bases: np.ndarray, target: np.ndarray) -> np.ndarray:
    """|target - its projection on the columns a @ bases|^2 for every shape: (shape,), of bases (point, shape, coef).

    By Gram and Schmidt: each column is made orthogonal to those before it, and what it explains leaves the residual.
    """
    points, shapes, coefs = bases.shape
    columns = (a @ bases.reshape(points, -1)).reshape(-1, shapes, coefs)
    orthonormal: list[np.ndarray] = []
    residual = np.repeat(target[:, None], shapes, axis=1)
    for column in np.moveaxis(columns, -1, 0):
        start = np.sqrt((column**2).sum(axis=0))
        for other in orthonormal:
            column = column - (column * other).sum(axis=0) * other
        size = np.sqrt((column**2).sum(axis=0))
        new = size > 1e-9 * start  # else only rounding is left: the column depends on the others
        column = np.where(new, column / np.where(new, size, 1), 0)
        residual = residual - (residual * column).sum(axis=0) * column
        orthonormal.append(column)
    return (residual**2).sum(axis=0)


@lru_cache(maxsize=64)  # the same law and x come hundreds of times; bytes can be hashed, arrays cannot
def _grid(law: Law, x: bytes) -> tuple[np.ndarray, np.ndarray]:
    """A grid over the whole range of the log shape, and the basis (point, shape, coef) there."""
    points = np.frombuffer(x)
    low, high = np.log(np.asarray(law.bounds(jnp.asarray(points))))[0]
    grid = np.linspace(low, high, GRID)
    return grid, np.asarray(_bases(law, jnp.asarray(grid), jnp.asarray(points)))


@partial(jax.jit, static_argnums=0)
def _bases(law: Law, log_shape: Array, x: Array) -> Array:
    basis = law.basis
    assert basis is not None  # by `_check_curves`
    return jax.vmap(lambda s: basis(jnp.exp(s)[None], x), out_axes=1)(log_shape)


def lack_of_fit(fit: GlsFit) -> float:
    """Probability of a chi2 as large as this if the law is true and the covariance known."""
    from scipy.stats import chi2  # late: a second to import

    return float(chi2.sf(fit.chi2, fit.degrees))


def cox_test(first: Law, second: Law, y: Any, x: Any, covariance: Any, bins: np.ndarray | None = None) -> CoxTest:
    """The first law against the second; arguments as for `gls_fit`.

    Source: Cox, Tests of separate families of hypotheses, 1961.
    """
    fit_first, fit_second = (gls_fit(law, y, x, covariance, bins) for law in (first, second))
    log_ratio = (fit_second.chi2 - fit_first.chi2) / 2
    # d^2 is the chi2 that one law leaves of the curve of the other, which has no noise.
    apart = np.sqrt(gls_fit(second, fit_first.curve, x, covariance, bins).chi2)
    apart_back = np.sqrt(gls_fit(first, fit_second.curve, x, covariance, bins).chi2)
    return CoxTest(log_ratio, float(apart), _z(log_ratio, apart), -_z(-log_ratio, apart_back))


def _z(log_ratio: float, apart: float) -> float:
    """(D - d^2/2)/d, the log likelihood ratio of a true law in standard deviations from its mean."""
    return float((log_ratio - apart**2 / 2) / apart) if apart >= MIN_DISTANCE else float("nan")


def reference_chi2(
    law: Law, curve: Any, x: Any, covariance: Any, clusters: int, draws: int = 200, seed: int = 0, bins: Any = None
) -> Float[np.ndarray, " draw"]:
    """chi2 (draw,) of a law that is true, where each draw estimates its own covariance from so many clusters.

    Args:
        law: that made `curve` (point,). covariance: (point, point) of the mean over the clusters.
        clusters: each an equal share of the data. The rest as for `gls_fit`.

    Returns:
        Values to hold an observed chi2 against: p = (1 + #{reference >= chi2}) / (1 + draws).

    Raises:
        ValueError: as `gls_fit`, and for fewer than two clusters, which have no covariance.
    """
    if clusters < 2:
        raise ValueError(f"reference_chi2: a covariance comes from two clusters or more, found {clusters}")
    curve, x = np.asarray(curve, float), np.asarray(x, float)
    values, vectors = np.linalg.eigh(np.asarray(covariance, float))
    # The mean of C clusters has the covariance Sigma: each of them has C Sigma, with the root V sqrt(C lambda).
    root = vectors * np.sqrt(np.maximum(values, 0) * clusters)
    random = np.random.default_rng(seed)
    chi2 = np.empty(draws)
    for k in range(draws):
        noise = root @ random.standard_normal((len(x), clusters))
        mean = noise.mean(axis=1)
        deviations = noise - mean[:, None]
        estimate = stationary_covariance(deviations @ deviations.T / (clusters * (clusters - 1)))
        chi2[k] = gls_fit(law, curve + mean, x, estimate, bins).chi2
    return chi2


def held_out(law: Law, y: Any, x: Any, blocks: int = 12) -> Float[np.ndarray, "curve block point"]:
    """Errors of prediction, y minus law, at held-out points: (curve, block, point), NaN at points that were fitted.

    Blocks are even in log x (see `log_bins`), and each is left out in turn; the first and the last stay in, for they
    would be extrapolated.

    Args:
        y: ([curve,] point) without NaN. x: (point,), positive and increasing.

    Raises:
        ValueError: for another kind of law than `gls_fit` takes, shapes that do not fit, NaN, fewer than three blocks
            or more than there are points, or a block without which no more points than parameters are left.
    """
    y, x = _check_curves(law, y, x)
    if not 3 <= blocks <= len(x):
        allowed = f"from 3 (the first and the last stay in) to {len(x)}, the number of points"
        raise ValueError(f"held_out: blocks must be {allowed}, found {blocks}")
    inner = (log_bins(x, blocks) > 0)[1:-1]
    if not len(inner):
        raise ValueError(f"held_out: the {len(x)} points fall into fewer than three of {blocks} blocks; give more")
    return np.stack([_prediction_errors(law, y, x, block) for block in inner], axis=1)


def extrapolated(law: Law, y: Any, x: Any, share: float = 0.5) -> Float[np.ndarray, "curve point"]:
    """Errors of prediction (curve, point) at x > share max x by the law of the rest; NaN at points that were fitted.

    Raises:
        ValueError: as `held_out`, and for a share that leaves nothing to predict, or no more points than parameters.
    """
    y, x = _check_curves(law, y, x)
    if not 0 < share < 1:
        raise ValueError(f"extrapolated: share must lie between 0 and 1, found {share}")
    return _prediction_errors(law, y, x, x > share * x.max())


def _prediction_errors(law: Law, y: np.ndarray, x: np.ndarray, out: np.ndarray) -> np.ndarray:
    """y minus the law of the other points, at points that are out; the range of the shape is that of all points."""
    kept, needed = int((~out).sum()), len(law.raw_params)
    if kept <= needed:
        found = f"without the {out.sum()} held-out points {kept} are left for the {needed} parameters of {law.name}"
        raise ValueError(f"model_comparison: {found}; hold out fewer")
    raw_params = fit_rows(law, y, x, np.broadcast_to(np.where(out, 0.0, 1.0), y.shape)).raw_params
    return np.where(out, y - evaluate(law, raw_params, x), np.nan)
