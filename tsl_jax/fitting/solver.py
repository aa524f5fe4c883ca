"""The pure function beneath `fit`: arrays in, a pytree out, for curves that share their covariates.

`prepare` reads law, covariates and weights once, on the host; `solve_curves` then fits any number of curves under
`jax.jit`, `jax.vmap` and `jax.grad`. Gradients with respect to y follow from the implicit function theorem: with
q = (log shapes, coefs) and SSE(q, y) at its optimum,

    dq = -(d2 SSE/dq2)^-1 (d2 SSE/dq dy) dy,

a shape at its bound staying there. Covariances and status are constants in this sense.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from tsl_jax.fitting import lowrank_basis, lowrank_search, lowrank_weighted, lowrank_weighted_tables, varpro
from tsl_jax.fitting.covariance import params_with_covariance, to_params, unscaled_cov
from tsl_jax.fitting.lowrank_search import TableSolution
from tsl_jax.fitting.status import EDGE, UNSOLVED, judge
from tsl_jax.laws import Covariates, Law

METHODS = ("auto", "varpro", "lm")


class CurveFits(NamedTuple):
    """What is known of each curve after a fit, jax or numpy arrays that all have the curve first."""

    params: Any  # (curve, param) in published order
    raw_params: Any  # (curve, raw_param) shapes, then coefficients
    covariance: Any  # (curve, param, param)
    log_error: Any  # (curve, shape) standard errors of the log shapes
    sse: Any  # (curve,)
    sst: Any  # (curve,) weighted sum of squares about the weighted mean
    status: Any  # (curve,) int8
    n_agreeing_starts: Any  # (curve,) int8: starts of the solver that ended at the best SSE; -1 where it has none


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("log_bounds", "x", "weights", "tables"),
    meta_fields=("law", "solver", "absolute_sigma"),
)
@dataclass(frozen=True)
class PreparedFit:
    """All that a fit needs beside the data: a pytree, made by `prepare`."""

    law: Law
    solver: str  # "compressed", "varpro" or "lm"
    absolute_sigma: bool
    log_bounds: Any  # (shape, 2)
    x: Any
    weights: Any  # (point,)
    tables: Any  # of the compressed solver, else None


def prepare(
    law: Law,
    x: Covariates,
    weights: Any = None,
    *,
    points: int | None = None,
    method: str = "auto",
    dtype: str = "float64",
    absolute_sigma: bool = False,
    many: bool = False,
) -> PreparedFit:
    """Read what all curves share.

    Args:
        law, method: as in `fit`. x: covariates, concrete arrays.
        weights: (point,), shared by all curves; None: curves bring their own.
        many: derive also what `solve_weighted` needs for weights of the curves' own: seconds, won back by hundreds.
        points: of a curve; default those of x.
        dtype: "float64" needs jax's x64 mode wherever the result is used.
        absolute_sigma: weights are 1/variance of y, so that errors do not come from SSE.

    Raises:
        ValueError: if the law cannot be fitted on x, or by this method.
    """
    if method not in METHODS:
        raise ValueError(f"fit: method must be one of {METHODS}, found {method!r}")
    one_shape = law.basis is not None and len(law.shapes) <= 1
    if method == "varpro" and not one_shape:
        raise ValueError(
            f"fit: method='varpro' needs a separable law with one shape, {law.name} is not; use method='lm'"
        )
    solver = method if method != "auto" and law.shapes else ("varpro" if one_shape else "lm")
    x = dict(x) if isinstance(x, Mapping) else x  # jax reads no other mapping as a tree
    with jax.enable_x64(True):
        bounds, finite = _log_bounds(law, jax.tree.map(jnp.asarray, x))
        bounds = np.asarray(bounds)
    if not np.all(np.isfinite(bounds)):
        raise ValueError(f"fit: law {law.name} finds no range for its shapes at x = {x}; x must be positive")
    if not bool(finite):
        raise ValueError(f"fit: law {law.name} is not finite at every x; leave out points such as x = 0")
    shared = np.ones(points or curve_points(law, x)) if weights is None else np.asarray(weights, float)
    tables = None
    if solver == "varpro" and law.shapes and weights is not None:
        # Curves that share x and weights share all of the search but one product with the data.
        tables = lowrank_basis.prepare(law, x, shared, bounds, dtype)
    elif solver == "varpro" and law.shapes and many:
        tables = lowrank_weighted_tables.prepare(law, x, shared, bounds, dtype)
    array = partial(jnp.asarray, dtype=dtype)
    solver = "compressed" if isinstance(tables, lowrank_basis.Tables) else solver
    return PreparedFit(law, solver, absolute_sigma, array(bounds), jax.tree.map(array, x), array(shared), tables)


def curve_points(law: Law, x: Covariates) -> int:
    """How many points the law's curve has at x: a covariate may be longer (a history)."""
    return jax.eval_shape(law.evaluate, jnp.ones(len(law.shapes)), jnp.ones(len(law.coefs)), x).shape[0]


@partial(jax.jit, static_argnums=0)
def _log_bounds(law: Law, x: Covariates) -> tuple[Array, Array]:
    """Log range of each shape (shape, 2), and whether the law is finite in the middle of it."""
    bounds = jnp.log(law.bounds(x))
    middle = law.evaluate(jnp.exp(bounds.mean(axis=1)), jnp.ones(len(law.coefs)), x)
    return bounds, jnp.all(jnp.isfinite(middle))


def solve_curves(
    prepared: PreparedFit, y: Float[Array, "curve point"], weights: Float[Array, "curve point"] | None = None
) -> CurveFits:
    """Fit every curve of y (curve, point); pure.

    Args:
        prepared: what `prepare` made. weights: (curve, point) where it was made without weights; default those it has.
    """
    return _solve(prepared, y, prepared.weights if weights is None else weights)


@jax.custom_jvp
def _solve(prepared: PreparedFit, y: Array, weights: Array) -> CurveFits:
    if prepared.solver == "compressed" and weights.ndim == 1:
        return _compressed(prepared, y)
    return _general(prepared, y, weights)


def _compressed(prepared: PreparedFit, y: Array) -> CurveFits:
    """All curves through the tables of the law: one product with the data, then a search that knows no points."""
    solution = lowrank_search.solve(prepared.law, prepared.tables, y)
    return _judged(prepared, solution, jnp.sum(prepared.weights > 0), jnp.sum(prepared.weights))


def solve_weighted(prepared: PreparedFit, y: Array, weights: Array) -> tuple[CurveFits, Array]:
    """Curves with weights of their own (curve, point) through the tables, and which of them are sure (curve,).

    Those that are not need `solve_curves`, which takes no tables for them.
    """
    found = lowrank_weighted.solve(prepared.law, prepared.tables, y, weights)
    # as one, or what several numbers depend on is computed for each of them
    solution, total, sure = jax.lax.optimization_barrier(found)
    return _judged(prepared, solution, lowrank_weighted.count(weights), total), sure


def _judged(prepared: PreparedFit, solution: TableSolution, count: Array, total: Array) -> CurveFits:
    """Errors and status; count and total: points of positive weight and the sum of the weights, () or (curve,)."""
    law = prepared.law
    # s^2 = SSE/(n - p) estimates the variance of y; with absolute weights it is one.
    free = (count - len(law.raw_params)).astype(solution.sse.dtype)
    free = jnp.where(free > 0, free, jnp.nan)
    scale = jnp.ones_like(solution.sse) if prepared.absolute_sigma else solution.sse / free
    log_error = jnp.sqrt(solution.unscaled_cov[0, 0] * scale)[None]
    status = judge(
        law,
        prepared.log_bounds,
        log_shape=solution.log_shape[None],
        coef=solution.coef,
        log_error=log_error,
        count=count,
        size=solution.sst + total * solution.mean**2,
        sst=solution.sst,
        line=solution.line,
        finite=solution.finite,
        converged=solution.finite,  # a global search has no other way to fail
    )
    q = jnp.concatenate([solution.log_shape[None], solution.coef])
    params, covariance = params_with_covariance(law, q, solution.unscaled_cov * scale[None, None])
    raw = jnp.concatenate([jnp.exp(q[:1]), q[1:]])
    no_starts = jnp.full(status.shape, -1, jnp.int8)
    fits = CurveFits(params, raw, covariance, log_error, solution.sse, solution.sst, status, no_starts)
    return _curve_first(fits)


def _general(prepared: PreparedFit, y: Array, weights: Array) -> CurveFits:
    """Curve by curve: variable projection for one shape, Levenberg-Marquardt for more."""
    law, x = prepared.law, prepared.x
    each = jnp.atleast_2d(weights)  # (curve or 1, point)
    observed = each > 0
    finite = jnp.all(~observed | jnp.isfinite(y), axis=-1)
    y = jnp.where(observed & finite[:, None], y, 0)
    root = jnp.sqrt(weights)
    if prepared.solver == "lm":
        from tsl_jax.fitting.levenberg_marquardt import solve  # late: only this file imports jaxopt
    else:
        from tsl_jax.fitting.varpro import solve
    solution = solve(law, prepared.log_bounds, x, root, jnp.atleast_2d(root) * y)
    q = jnp.concatenate([solution.log_shape, solution.coef], axis=-1)
    share = None if root.ndim == 1 else 0
    count = jnp.sum(jnp.broadcast_to(weights, y.shape) > 0, axis=-1)
    # s^2 = SSE/(n - p), unknown where no point is free.
    free = (count - len(law.raw_params)).astype(y.dtype)
    scale = (
        jnp.ones_like(solution.sse) if prepared.absolute_sigma else solution.sse / jnp.where(free > 0, free, jnp.nan)
    )
    unscaled = jax.vmap(partial(unscaled_cov, law), (0, None, share), -1)(q, x, root)
    log_error = jnp.sqrt(jnp.diagonal(unscaled[: len(law.shapes), : len(law.shapes)]).T * scale[None])
    total = jnp.sum(jnp.broadcast_to(weights, y.shape), -1, keepdims=True)
    mean = jnp.sum(each * y, -1, keepdims=True) / total
    sst = jnp.sum(each * (y - mean) ** 2, axis=-1)
    status = judge(
        law,
        prepared.log_bounds,
        log_shape=solution.log_shape.T,
        coef=solution.coef.T,
        log_error=log_error,
        count=count,
        size=sst + (total * mean**2)[:, 0],
        sst=sst,
        line=_line_is_as_good(x, y, weights, solution.sse),
        finite=finite,
        converged=solution.converged,
    )
    params, covariance = params_with_covariance(law, q.T, unscaled * scale[None, None])
    raw = jnp.concatenate([jnp.exp(solution.log_shape), solution.coef], axis=-1).T
    fits = CurveFits(params, raw, covariance, log_error, solution.sse, sst, status, solution.n_agreeing_starts)
    return _curve_first(fits)


def _curve_first(fits: CurveFits) -> CurveFits:
    """The curve first, where it was last, and NaN for the numbers of a curve that could not be solved."""
    unsolved = (fits.status == UNSOLVED[0]) | (fits.status == UNSOLVED[1])
    names = ("params", "raw_params", "covariance", "log_error", "sse", "sst")
    return fits._replace(**{n: jnp.moveaxis(jnp.where(unsolved, jnp.nan, getattr(fits, n)), -1, 0) for n in names})


def _line_is_as_good(x: Covariates, y: Array, weights: Array, sse: Array) -> Array:
    """Whether a straight line in x has no larger SSE; false where x is not one number a point."""
    if isinstance(x, Mapping):
        return jnp.zeros(sse.shape, bool)
    x = jnp.asarray(x)
    centred = (x - x.mean()) / jnp.where(x.std() > 0, x.std(), 1)

    def line(weights: Array, y: Array) -> Array:
        root = jnp.sqrt(weights)
        q, _ = varpro.orthonormal(root[:, None] * jnp.stack([jnp.ones_like(centred), centred], axis=-1))
        rest = root * y - q @ (q.T @ (root * y))
        return rest @ rest

    return jax.vmap(line, (None if weights.ndim == 1 else 0, 0))(weights, y) <= sse * (
        1 + max(1e-9, 8 * float(jnp.finfo(y.dtype).eps))
    )


@_solve.defjvp
def _implicit_derivative(
    primals: tuple[PreparedFit, Array, Array], tangents: tuple[Any, Array, Any]
) -> tuple[CurveFits, CurveFits]:
    """dq = -H^-1 G dy at the optimum, with H = d2 SSE/dq2 and G = d2 SSE/dq dy, over the free part of q.

    It follows from differentiating d SSE/dq (q(y), y) = 0 along y. The solver's own steps are not differentiated.
    """
    prepared, y, weights = primals
    fits, dy = _solve(prepared, y, weights), tangents[1]
    law, n_shapes = prepared.law, len(prepared.law.shapes)
    y, dy = (jnp.where(weights > 0, a, 0) for a in (y, dy))
    weights = jnp.broadcast_to(weights, y.shape)
    q = jnp.concatenate([jnp.log(fits.raw_params[:, :n_shapes]), fits.raw_params[:, n_shapes:]], axis=-1)

    def half_sse(q: Array, y: Array, w: Array) -> Array:
        return jnp.sum(w * (y - law.evaluate(jnp.exp(q[:n_shapes]), q[n_shapes:], prepared.x)) ** 2) / 2

    def derivative(q: Array, y: Array, w: Array, dy: Array) -> tuple[Array, Array]:
        hessian = jax.hessian(half_sse)(q, y, w)
        _, gradient = jax.jvp(lambda y: jax.grad(half_sse)(q, y, w), (y,), (dy,))  # G dy
        # A shape at its bound does not move: its row and column become those of the identity.
        width = prepared.log_bounds[:, 1] - prepared.log_bounds[:, 0]
        inside = jnp.abs(q[:n_shapes] - prepared.log_bounds.mean(axis=1)) < (0.5 - EDGE) * width
        free = jnp.concatenate([inside, jnp.ones(len(law.coefs), bool)])
        # In units in which the diagonal of H is one: coefficients may be orders of magnitude apart.
        size = jnp.sqrt(jnp.where(free, jnp.abs(jnp.diagonal(hessian)), 1))
        scaled = jnp.where(
            free[:, None] & free[None], hessian / (size[:, None] * size[None]), jnp.eye(len(q), dtype=q.dtype)
        )
        dq = -jnp.linalg.solve(scaled, jnp.where(free, gradient / size, 0)) / size
        _, dp = jax.jvp(partial(to_params, law), (q,), (dq,))
        return dq, dp

    dq, dp = jax.vmap(derivative)(q, y, weights, dy)
    curve = jax.vmap(lambda q: law.evaluate(jnp.exp(q[:n_shapes]), q[n_shapes:], prepared.x))(q)
    mean = jnp.sum(weights * y, -1, keepdims=True) / jnp.sum(weights, -1, keepdims=True)
    # d shape = shape d log shape. By the envelope theorem dq does not change SSE: d SSE = 2 sum w (y - f) dy.
    draw = jnp.concatenate([dq[:, :n_shapes] * fits.raw_params[:, :n_shapes], dq[:, n_shapes:]], axis=-1)
    constant = jax.tree.map(
        lambda a: jnp.zeros_like(a) if jnp.issubdtype(a.dtype, jnp.floating) else np.zeros(a.shape, jax.dtypes.float0),
        fits,
    )
    return fits, constant._replace(
        params=dp,
        raw_params=draw,
        sse=2 * jnp.sum(weights * (y - curve) * dy, axis=-1),
        sst=2 * jnp.sum(weights * (y - mean) * dy, axis=-1),
    )
