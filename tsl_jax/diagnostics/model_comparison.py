"""Which of several laws holds on a curve: by likelihood under correlated noise, and by points that were held out.

Likelihood. With B the means over bins, S = B Sigma B' and f the curve of a law,

    chi2 = min over the law of (B y - B f)' S^-1 (B y - B f) = -2 log likelihood + constant.

Under a true law chi2 follows a chi2 of (bins - parameters) degrees (`lack_of_fit`), if Sigma is known; where Sigma
comes from few clusters `reference` simulates clusters, curve and estimate of Sigma together. Two laws f, g that are
not nested are compared by D = (chi2_g - chi2_f)/2, the log likelihood ratio. If f is true, D is normal with mean d^2/2
and standard deviation d, where d^2 is the chi2 that g leaves of f's own curve: so D < 0 has probability Phi(-d/2), and
z = (D - d^2/2)/d tells whether the data are as f would have them (`versus`; Cox 1961, linearised).

Held-out points. `held_out` leaves out blocks of points, `extrapolated` the second half, fits the rest by plain least
squares and predicts: what a law is worth without a word on noise.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tsl_jax.diagnostics import noise
from tsl_jax.fitting.result import evaluate
from tsl_jax.laws import Law

TELLING = 0.1  # standard deviations between two laws below which their ratio says nothing
GRID = 256  # shapes over the whole range, and again between the neighbours of the best


class GlsFit(NamedTuple):
    """A law at its most likely: chi2 of what it leaves, degrees of freedom, solved values, its curve (point,)."""

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
    """The law that is most likely to have made y, under noise of this covariance.

    Args:
        law: separable, with one shape. y: (point,). x: (point,). covariance: (point, point) of y, of
            `noise.stationary`. bins: (bin, point); default `noise.log_bins(x)`.

    Raises:
        ValueError: for another kind of law, or a covariance that leaves a bin without noise.
    """
    y, x = np.asarray(y, float), np.asarray(x, float)
    bins = noise.log_bins(x) if bins is None else bins
    if law.basis is None or len(law.shapes) != 1:
        raise ValueError(f"compare: needs a separable law with one shape, {law.name} has {law.shapes}")
    whiten = _whitening(bins @ np.asarray(covariance, float) @ bins.T) @ bins
    left, solved = _searched(law, y, x, whiten)
    return GlsFit(left, len(bins) - len(law.raw_params), solved, evaluate(law, solved[None], x)[0])


def _searched(law: Law, y: np.ndarray, x: np.ndarray, seen: np.ndarray) -> tuple[float, np.ndarray]:
    """Least square of seen @ (y - law), and the solved values there; seen (row, point)."""
    target = seen @ y
    with jax.enable_x64(True):
        grid, bases = _coarse(law, x.tobytes())
        best, step = grid[int(np.argmin(_left(seen, bases, target)))], grid[1] - grid[0]
        fine = np.linspace(max(grid[0], best - step), min(grid[-1], best + step), GRID)
        bases = np.asarray(_bases(law, jnp.asarray(fine), jnp.asarray(x)))
    left = _left(seen, bases, target)
    k = int(np.argmin(left))
    coefs = np.linalg.lstsq(seen @ bases[:, k], target)[0]
    return float(left[k]), np.concatenate([np.exp(fine[k : k + 1]), coefs])


def _whitening(covariance: np.ndarray) -> np.ndarray:
    """W with W S W' = 1."""
    try:
        return np.linalg.inv(np.linalg.cholesky(covariance))
    except np.linalg.LinAlgError:
        raise ValueError("compare: some mean over a bin has no noise; take fewer bins, or noise.stationary") from None


def _left(seen: np.ndarray, bases: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least squares (shape,) of target (row,) over the columns seen @ bases (point, shape, coef): Gram and Schmidt."""
    points, shapes, coefs = bases.shape
    columns = (seen @ bases.reshape(points, -1)).reshape(-1, shapes, coefs)
    frame: list[np.ndarray] = []
    rest = np.repeat(target[:, None], shapes, axis=1)
    for column in np.moveaxis(columns, -1, 0):
        start = np.sqrt((column**2).sum(axis=0))
        for other in frame:
            column = column - (column * other).sum(axis=0) * other
        size = np.sqrt((column**2).sum(axis=0))
        new = size > 1e-9 * start  # else it says nothing that the others do not
        column = np.where(new, column / np.where(new, size, 1), 0)
        rest = rest - (rest * column).sum(axis=0) * column
        frame.append(column)
    return (rest**2).sum(axis=0)


@lru_cache(maxsize=64)
def _coarse(law: Law, x: bytes) -> tuple[np.ndarray, np.ndarray]:
    """A grid over the whole range of the log shape, and the basis (point, shape, coef) there."""
    points = np.frombuffer(x)
    low, high = np.log(np.asarray(law.bounds(jnp.asarray(points))))[0]
    grid = np.linspace(low, high, GRID)
    return grid, np.asarray(_bases(law, jnp.asarray(grid), jnp.asarray(points)))


@partial(jax.jit, static_argnums=0)
def _bases(law: Law, log_shape: jax.Array, x: jax.Array) -> jax.Array:
    basis = law.basis
    assert basis is not None
    return jax.vmap(lambda s: basis(jnp.exp(s)[None], x), out_axes=1)(log_shape)


def lack_of_fit(found: GlsFit) -> float:
    """Probability of a chi2 as large as this if the law is true and the covariance known."""
    from scipy.stats import chi2

    return float(chi2.sf(found.chi2, found.degrees))


def cox_test(first: Law, second: Law, y: Any, x: Any, covariance: Any, bins: np.ndarray | None = None) -> CoxTest:
    """The first law against the second; arguments as for `likely`."""
    one, other = (gls_fit(law, y, x, covariance, bins) for law in (first, second))
    ratio = (other.chi2 - one.chi2) / 2
    apart = np.sqrt(gls_fit(second, one.curve, x, covariance, bins).chi2)
    back = np.sqrt(gls_fit(first, other.curve, x, covariance, bins).chi2)
    z_first, z_second = (_z(ratio, apart), -_z(-ratio, back))
    return CoxTest(ratio, float(apart), z_first, z_second)


def _z(ratio: float, apart: float) -> float:
    return float((ratio - apart**2 / 2) / apart) if apart >= TELLING else float("nan")


def reference(
    law: Law, curve: Any, x: Any, covariance: Any, clusters: int, draws: int = 200, seed: int = 0, bins: Any = None
) -> np.ndarray:
    """chi2 (draw,) of a law that is true, where each draw estimates its own covariance from so many clusters.

    Args:
        law: that made `curve` (point,). covariance: (point, point) of the mean over the clusters.
        clusters: each an equal share of the data. The rest as for `likely`.

    Returns:
        Values to hold an observed chi2 against: p = (1 + #{reference >= chi2}) / (1 + draws).
    """
    curve, x = np.asarray(curve, float), np.asarray(x, float)
    values, vectors = np.linalg.eigh(np.asarray(covariance, float))
    root = vectors * np.sqrt(np.maximum(values, 0) * clusters)
    random = np.random.default_rng(seed)
    found = np.empty(draws)
    for k in range(draws):
        each = root @ random.standard_normal((len(x), clusters))
        mean = each.mean(axis=1)
        apart = each - mean[:, None]
        estimate = noise.stationary(apart @ apart.T / (clusters * (clusters - 1)))
        found[k] = gls_fit(law, curve + mean, x, estimate, bins).chi2
    return found


def held_out(law: Law, y: Any, x: Any, blocks: int = 12) -> np.ndarray:
    """What the law misses at held-out points: (curve, block, point), NaN at points that were fitted.

    Blocks are even in log x (see `noise.log_bins`), and each is left out in turn; the first and the last stay in, for
    they would be extrapolated.

    Args:
        y: (curve, point) without NaN. x: (point,).
    """
    y, x = np.atleast_2d(np.asarray(y, float)), np.asarray(x, float)
    out = (noise.log_bins(x, blocks) > 0)[1:-1]
    return np.stack([_missed(law, y, x, block) for block in out], axis=1)


def extrapolated(law: Law, y: Any, x: Any, share: float = 0.5) -> np.ndarray:
    """What the law misses (curve, point) at x > share max x, fitted to the rest; NaN at points that were fitted."""
    y, x = np.atleast_2d(np.asarray(y, float)), np.asarray(x, float)
    return _missed(law, y, x, x > share * x.max())


def _missed(law: Law, y: np.ndarray, x: np.ndarray, out: np.ndarray) -> np.ndarray:
    """y minus the law of the other points, at points that are out; the range of the shape is that of all points."""
    solved = np.stack([_searched(law, one, x, np.eye(len(x))[~out])[1] for one in y])
    return np.where(out, y - evaluate(law, solved, x), np.nan)
