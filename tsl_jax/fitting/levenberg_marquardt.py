"""The general solver: jaxopt's Levenberg-Marquardt over the log shapes, linear coefficients projected out.

It fits what variable projection on a grid cannot: several shapes, or laws that do not separate. Starts are spread
over the box of the shapes by an additive recurrence (Roberts' R sequence), the best few are polished, and the best
result kept. The box is kept by t = mid + half * sin(u), as in MINUIT, so that a solution may lie on the bound itself.
Source: Madsen & Nielsen, Introduction to Optimization and Data Fitting; jaxopt's LevenbergMarquardt.
"""

import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from tsl_jax.fitting.varpro import Solution, project
from tsl_jax.laws import Covariates, Law

with warnings.catch_warnings():  # jaxopt announces at import that it is no longer maintained; it does what we need
    warnings.simplefilter("ignore", DeprecationWarning)
    from jaxopt import LevenbergMarquardt

PROBES = 64  # per shape: points of the box at which SSE is looked at before the best become starts
MAXITER = 300
AGREE = 1e-6  # relative difference of SSE within which two starts found the same optimum


def spread(count: int, dimensions: int) -> Array:
    """Points (count, dimensions) that fill the unit cube evenly: multiples of inverse powers of the R_d constant."""
    ratio = 2.0
    for _ in range(60):  # the root of g^(d+1) = g + 1
        ratio = (1 + ratio) ** (1 / (dimensions + 1))
    steps = ratio ** -jnp.arange(1.0, dimensions + 1)
    return (0.5 + jnp.arange(1, count + 1)[:, None] * steps) % 1.0


def configured(residual: Callable[[Array], Array]) -> LevenbergMarquardt:
    """jaxopt's solver of min |residual(u)|^2 / 2, stopping when gradient or step vanishes to working precision.

    `residual` should be scaled to norm about one; MAXITER steps reached means that it did not settle.
    """
    return LevenbergMarquardt(
        residual,
        maxiter=MAXITER,
        stop_criterion="madsen-nielsen",
        xtol=1e-9,
        gtol=1e-14,
        solver="cholesky",
        materialize_jac=True,
        implicit_diff=False,
    )


def solve(law: Law, log_bounds: Array, x: Covariates, root_weight: Array, targets: Array) -> Solution:
    """Fit any law to every curve; arguments as in `varpro.solve`, with log_bounds (shape, 2)."""
    middle, half = log_bounds.mean(axis=1), (log_bounds[:, 1] - log_bounds[:, 0]) / 2
    probes = jnp.arcsin(2 * spread(PROBES * len(law.shapes), len(law.shapes)) - 1).astype(targets.dtype)
    tiny = jnp.finfo(targets.dtype).tiny

    def one(root: Array, target: Array) -> tuple[Array, ...]:
        scale = jnp.sqrt(jnp.maximum(jnp.sum(target**2), tiny))

        def residual(u: Array) -> Array:
            return project(law, middle + half * jnp.sin(u), x, root, target)[0] / scale

        solver = configured(residual)
        height = jax.vmap(lambda u: jnp.sum(residual(u) ** 2))(probes)
        order = jnp.argsort(jnp.where(jnp.isfinite(height), height, jnp.inf))
        ends, states = jax.vmap(solver.run)(probes[order[: law.starts]])
        sse = jax.vmap(lambda u: jnp.sum(residual(u) ** 2))(ends)
        keep = jnp.argmin(jnp.where(jnp.isfinite(sse), sse, jnp.inf))
        log_shape = middle + half * jnp.sin(ends[keep])
        rest, coef = project(law, log_shape, x, root, target)
        agreeing = jnp.sum(sse <= sse[keep] * (1 + AGREE) + tiny).astype(jnp.int8)
        return log_shape, coef, rest @ rest, states.iter_num[keep] < MAXITER, agreeing

    share = None if root_weight.ndim == 1 else 0
    return Solution(*jax.vmap(one, (share, 0))(root_weight, targets))
