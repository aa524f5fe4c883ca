"""How much context a model uses, in one number: i90, from a1 of the hyperbolic law.

The law L(i) = a0/(1 + a1 i) + a2 closes the gap a0 between position 0 and its own level a2. What is left of the gap at
position i is 1/(1 + a1 i); a tenth is left where 1 + a1 i = 10:

    i90 = 9/a1      tokens of context.

log i90 = log 9 - log a1, so the standard error of log i90 is that of log a1, and intervals are taken in the logarithm.
i90 is a property of the fitted curve: it means something where the law passes its test (`lack_of_fit`), it belongs to
the range of positions that was fitted, and beyond that range it is an extrapolation.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float

from tsl_jax.diagnostics.bootstrapping import Bootstrap
from tsl_jax.diagnostics.noise import Noise, under_noise
from tsl_jax.fitting.covariance import jacobian
from tsl_jax.fitting.result import Fit
from tsl_jax.fitting.varpro import orthonormal
from tsl_jax.laws import Covariates, Law

CLOSED = 0.9  # of the gap


def effective_context(
    fit: Fit, covariance: xr.DataArray | None = None, clusters: int | None = None, level: float = 0.9
) -> xr.Dataset:
    """i90 = 9/a1 with its interval by the delta method on log a1.

    Args:
        fit: of HYPERBOLIC over positions.
        covariance: (..., point, point_) of the noise of what was fitted; then the error of log a1 is that of plain
            least squares under this noise, (J'J)^-1 J' Sigma J (J'J)^-1, and the fit must be unweighted. Without it
            errors are those of the fit, which take the noise of positions for independent: too narrow where they share
            their text.
        clusters: that the covariance comes from: t with clusters - 1 degrees instead of the normal distribution.
        level: probability that the interval holds i90.

    Returns:
        Dataset with i90, low and high over the fit's other dimensions; NaN where the fit has no interior optimum. Where
        its status is `weakly_identified` the interval is wide, and covers less surely than it says.

    Raises:
        ValueError: for a fit of another law or over another dimension, with a covariance for a weighted one, and for a
            level or clusters that make no sense.
    """
    from scipy.stats import norm, t  # late: a second to import

    _check_context_fit(fit)
    if not 0 < level < 1:  # 90 would give NaN
        raise ValueError(f"effective_context: level must lie between 0 and 1, found {level}")
    if clusters is not None and (covariance is None or clusters < 2):
        raise ValueError(f"effective_context: clusters are the two or more of a covariance, found {clusters}")
    # At a bound of the shape a1 says where the search ended, not what the data say.
    log_a1 = np.log(fit.params.sel(param="a1", drop=True).where(fit.usable))
    error = fit.log_shape_stderr.sel(shape="a1", drop=True)
    if covariance is not None:
        error = np.sqrt(under_noise("effective_context", fit, covariance, _variance_of_log_a1))
    tail = (1 + level) / 2
    width = error * float(norm.ppf(tail) if clusters is None else t.ppf(tail, clusters - 1))
    # 1/(1 + a1 i) = 1 - CLOSED at i = CLOSED/(1 - CLOSED)/a1.
    middle = np.log(CLOSED / (1 - CLOSED)) - log_a1
    ends = {"i90": np.exp(middle), "low": np.exp(middle - width), "high": np.exp(middle + width)}
    return xr.Dataset(ends, attrs={"range": fit.range_in_words()})


def _variance_of_log_a1(law: Law, q: Array, x: Covariates, noise: Noise) -> Array:
    """The row of a1 in (J'J)^-1 J' = R^-1 Q', with the columns of J scaled to one first, on both sides of Sigma."""
    columns = jacobian(law, q, x)
    size = jnp.sqrt(jnp.sum(columns**2, axis=0))
    basis, r = orthonormal(columns / size[None])
    row = jax.scipy.linalg.solve_triangular(r, basis.T)[0] / size[0]
    return row @ noise.times(row[:, None])[:, 0]


def effective_context_resampled(
    resampled: Bootstrap, level: float = 0.9
) -> tuple[Float[np.ndarray, ...], Float[np.ndarray, ...]]:
    """Low and high (...) of i90, percentiles over resamples of clusters; few clusters make it too narrow.

    Raises:
        ValueError: for a bootstrap of another law.
    """
    _check_context_fit(resampled.fit)
    low, high = resampled.interval(level)  # i90 falls with a1, so the ends change places
    return CLOSED / (1 - CLOSED) / high[..., 1], CLOSED / (1 - CLOSED) / low[..., 1]


def _check_context_fit(fit: Fit) -> None:
    """i90 is a number of positions: 9/a1 of another law or dimension is not."""
    if fit.law.name != "hyperbolic":
        raise ValueError(f"effective_context: i90 = 9/a1 belongs to the hyperbolic law, found a fit of {fit.law.name}")
    if fit.over != ("position",):
        raise ValueError(f"effective_context: expected a fit over position, found one over {', '.join(fit.over)}")
