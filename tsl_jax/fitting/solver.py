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

from tsl_jax.fitting import lowrank_basis, lowrank_search, varpro
from tsl_jax.fitting.covariance import params_with_covariance, to_params, unscaled_cov
from tsl_jax.fitting.status import EDGE, UNSOLVED, judge
from tsl_jax.laws import Covariates, Law

METHODS = ("auto", "varpro", "lm")


class CurveFits(NamedTuple):
    """What is known of each curve after a fit, jax or numpy arrays that all have the curve first."""

    params: Any  # (curve, param) in published order
    raw_params: Any  # (curve, solved) shapes, then coefficients
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
) -> PreparedFit:
    """Read what all curves share.

    Args:
        law, method: as in `fit`. x: covariates, concrete arrays.
        weights: (point,), shared by all curves; None: curves bring their own, and nothing is derived for shared ones.
        points: of a curve; default those of x.
        dtype: "float64" needs jax's x64 mode wherever the plan is used.
        absolute_sigma: weights are 1/variance of y, so that errors do not come from SSE.

    Raises:
        ValueError: if the law cannot be fitted on x, or by this method.
    """
    solver = _solver(law, method)
    with jax.enable_x64(True):
        bounds = _log_bounds(law, x)
    shared = np.ones(points or _points(law, x)) if weights is None else np.asarray(weights, float)
    tables = None
    if solver == "varpro" and law.shapes and weights is not None:
        tables = lowrank_basis.prepare(law, x, shared, bounds, dtype)
    array = partial(jnp.asarray, dtype=dtype)
    solver = "compressed" if tables is not None else solver
    return PreparedFit(law, solver, absolute_sigma, array(bounds), jax.tree.map(array, x), array(shared), tables)


def _solver(law: Law, method: str) -> str:
    if method not in METHODS:
        raise ValueError(f"fit: method must be one of {METHODS}, found {method!r}")
    simple = law.basis is not None and len(law.shapes) <= 1
    if method == "varpro" and not simple:
        raise ValueError(
            f"fit: method='varpro' needs a separable law with one shape, {law.name} is not; use method='lm'"
        )
    return method if method != "auto" and law.shapes else ("varpro" if simple else "lm")


def _points(law: Law, x: Covariates) -> int:
    """Of the law's curve: a covariate may be longer (a history)."""
    return jax.eval_shape(law.evaluate, jnp.ones(len(law.shapes)), jnp.ones(len(law.coefs)), x).shape[0]


def _log_bounds(law: Law, x: Covariates) -> np.ndarray:
    """Log range of each shape (shape, 2), once the law is known to be finite on the data."""
    bounds, finite = _range(law, jax.tree.map(jnp.asarray, x))
    if not np.all(np.isfinite(bounds)):
        raise ValueError(f"fit: law {law.name} finds no range for its shapes at x = {x}; x must be positive")
    if not bool(finite):
        raise ValueError(f"fit: law {law.name} is not finite at every x; leave out points such as x = 0")
    return np.asarray(bounds)


@partial(jax.jit, static_argnums=0)
def _range(law: Law, x: Covariates) -> tuple[Array, Array]:
    """Log range of the shapes, and whether the law is finite in the middle of it."""
    bounds = jnp.log(law.bounds(x))
    middle = law.evaluate(jnp.exp(bounds.mean(axis=1)), jnp.ones(len(law.coefs)), x)
    return bounds, jnp.all(jnp.isfinite(middle))


def solve_curves(plan: PreparedFit, y: Array, weights: Array | None = None) -> CurveFits:
    """Fit every curve of y (curve, point); pure.

    Args:
        weights: (curve, point), for plans made without weights; default those of the plan.
    """
    return _solve(plan, y, plan.weights if weights is None else weights)


@jax.custom_jvp
def _solve(plan: PreparedFit, y: Array, weights: Array) -> CurveFits:
    if plan.solver == "compressed" and weights.ndim == 1:
        return _compressed(plan, y)
    return _general(plan, y, weights)


def _compressed(plan: PreparedFit, y: Array) -> CurveFits:
    law = plan.law
    found = lowrank_search.solve(law, plan.tables, y)
    count = jnp.sum(plan.weights > 0)
    scale = jnp.ones_like(found.sse) if plan.absolute_sigma else found.sse / (count - len(law.raw_params))
    log_error = jnp.sqrt(found.spread[0, 0] * scale)[None]
    status = judge(
        law,
        plan.log_bounds,
        log_shape=found.log_shape[None],
        coef=found.coef,
        log_error=log_error,
        count=count,
        size=found.sst + jnp.sum(plan.weights) * found.mean**2,
        sst=found.sst,
        line=found.line,
        finite=found.finite,
        converged=found.finite,
    )
    q = jnp.concatenate([found.log_shape[None], found.coef])
    params, covariance = params_with_covariance(law, q, found.spread * scale)
    solved = jnp.concatenate([jnp.exp(q[:1]), q[1:]])
    agreeing = jnp.full(status.shape, -1, jnp.int8)
    return _known(params, solved, covariance, log_error, found.sse, found.sst, status, agreeing)


def _general(plan: PreparedFit, y: Array, weights: Array) -> CurveFits:
    law, x = plan.law, plan.x
    observed = weights > 0
    finite = jnp.all(~observed | jnp.isfinite(y), axis=-1)
    y = jnp.where(observed & finite[:, None], y, 0)
    root = jnp.sqrt(weights)
    found = _search(plan.solver)(law, plan.log_bounds, x, root, root * y)
    q = jnp.concatenate([found.log_shape, found.coef], axis=-1)
    share = None if root.ndim == 1 else 0
    count = jnp.sum(jnp.broadcast_to(weights, y.shape) > 0, axis=-1)
    free = (count - len(law.raw_params)).astype(y.dtype)
    scale = jnp.ones_like(found.sse) if plan.absolute_sigma else found.sse / jnp.where(free > 0, free, jnp.nan)
    spread = jax.vmap(partial(unscaled_cov, law), (0, None, share), -1)(q, x, root)
    log_error = jnp.sqrt(jnp.diagonal(spread[: len(law.shapes), : len(law.shapes)]).T * scale)
    total = jnp.sum(jnp.broadcast_to(weights, y.shape), -1, keepdims=True)
    mean = jnp.sum(weights * y, -1, keepdims=True) / total
    sst = jnp.sum(weights * (y - mean) ** 2, axis=-1)
    status = judge(
        law,
        plan.log_bounds,
        log_shape=found.log_shape.T,
        coef=found.coef.T,
        log_error=log_error,
        count=count,
        size=sst + (total * mean**2)[:, 0],
        sst=sst,
        line=_line_is_as_good(x, y, weights, found.sse),
        finite=finite,
        converged=found.converged,
    )
    params, covariance = params_with_covariance(law, q.T, spread * scale)
    solved = jnp.concatenate([jnp.exp(found.log_shape), found.coef], axis=-1).T
    return _known(params, solved, covariance, log_error, found.sse, sst, status, found.n_agreeing_starts)


def _known(
    params: Array,
    raw_params: Array,
    covariance: Array,
    log_error: Array,
    sse: Array,
    sst: Array,
    status: Array,
    n_agreeing_starts: Array,
) -> CurveFits:
    """The curve first, and NaN for what an unusable curve has."""
    unusable = (status == UNSOLVED[0]) | (status == UNSOLVED[1])

    def first(a: Array) -> Array:
        return jnp.moveaxis(jnp.where(unusable, jnp.nan, a), -1, 0)

    parts = (first(params), first(raw_params), first(covariance), first(log_error), first(sse), first(sst))
    return CurveFits(*parts, status, n_agreeing_starts)


def _search(solver: str) -> Any:
    if solver in ("varpro", "compressed"):
        return varpro.solve
    from tsl_jax.fitting import levenberg_marquardt  # late: only this file imports jaxopt

    return levenberg_marquardt.solve


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
def _implicit(
    primals: tuple[PreparedFit, Array, Array], tangents: tuple[Any, Array, Any]
) -> tuple[CurveFits, CurveFits]:
    plan, y, weights = primals
    found, moved = _solve(plan, y, weights), tangents[1]
    law, n_shapes = plan.law, len(plan.law.shapes)
    y, moved = (jnp.where(weights > 0, a, 0) for a in (y, moved))
    weights = jnp.broadcast_to(weights, y.shape)
    q = jnp.concatenate([jnp.log(found.raw_params[:, :n_shapes]), found.raw_params[:, n_shapes:]], axis=-1)

    def half_sse(q: Array, y: Array, w: Array) -> Array:
        return jnp.sum(w * (y - law.evaluate(jnp.exp(q[:n_shapes]), q[n_shapes:], plan.x)) ** 2) / 2

    def one(q: Array, y: Array, w: Array, dy: Array) -> tuple[Array, Array]:
        bend = jax.hessian(half_sse)(q, y, w)
        _, pull = jax.jvp(lambda y: jax.grad(half_sse)(q, y, w), (y,), (dy,))
        width = plan.log_bounds[:, 1] - plan.log_bounds[:, 0]
        inside = jnp.abs(q[:n_shapes] - plan.log_bounds.mean(axis=1)) < (0.5 - EDGE) * width
        free = jnp.concatenate([inside, jnp.ones(len(law.coefs), bool)])
        size = jnp.sqrt(jnp.where(free, jnp.abs(jnp.diagonal(bend)), 1))
        scaled = jnp.where(free[:, None] & free, bend / (size[:, None] * size), jnp.eye(len(q), dtype=q.dtype))
        dq = -jnp.linalg.solve(scaled, jnp.where(free, pull / size, 0)) / size
        _, dp = jax.jvp(partial(to_params, law), (q,), (dq,))
        return dq, dp

    dq, dp = jax.vmap(one)(q, y, weights, moved)
    curve = jax.vmap(lambda q: law.evaluate(jnp.exp(q[:n_shapes]), q[n_shapes:], plan.x))(q)
    mean = jnp.sum(weights * y, -1, keepdims=True) / jnp.sum(weights, -1, keepdims=True)
    dsolved = jnp.concatenate([dq[:, :n_shapes] * found.raw_params[:, :n_shapes], dq[:, n_shapes:]], axis=-1)
    still = jax.tree.map(_no_tangent, found)
    return found, still._replace(
        params=dp,
        raw_params=dsolved,
        sse=2 * jnp.sum(weights * (y - curve) * moved, axis=-1),
        sst=2 * jnp.sum(weights * (y - mean) * moved, axis=-1),
    )


def _no_tangent(a: Array) -> Any:
    if jnp.issubdtype(a.dtype, jnp.floating):
        return jnp.zeros_like(a)
    return np.zeros(a.shape, jax.dtypes.float0)
