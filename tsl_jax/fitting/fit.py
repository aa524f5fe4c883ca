"""One verb, `fit`: any law on any axis of an array, batched over all other axes.

`solve_curves` beneath it is a pure function, arrays in and a pytree out. It runs in blocks of a fixed number of
curves, so that one compiled program serves any batch and memory stays bounded. Precision: float64 inside a context,
whatever the caller's jax settings, unless `dtype="float32"`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array

from tsl_jax.fitting import uncertainty, varpro
from tsl_jax.fitting.problem import Problem, read
from tsl_jax.fitting.result import Fit, Status
from tsl_jax.laws import Covariates, Law

METHODS = ("auto", "varpro", "lm")
BLOCKS = (2, 64)  # curves solved together: one or two (temporal laws; never one row, another matrix path), or many
WEAK = 0.2  # standard error of a log shape beyond which Wald intervals of the shape no longer cover


class Curves(NamedTuple):
    """What is known of each curve after a fit; every array has the curve first."""

    params: Array  # (curve, param) in published order
    solved: Array  # (curve, solved) shapes, then coefficients
    covariance: Array  # (curve, param, param)
    sse: Array  # (curve,)
    sst: Array  # (curve,) weighted sum of squares about the weighted mean
    status: Array  # (curve,) int8


def fit(
    law: Law,
    y: Any,
    over: str | tuple[str, ...] | None = None,
    x: Any = None,
    weights: Any = None,
    method: str = "auto",
    dtype: str | None = None,
) -> Fit:
    """Fit `law` to y by weighted least squares along `over`, for all other dimensions at once.

    Minimises sum_i w_i (y_i - law(x_i))^2 for each curve.

    Args:
        law: what to fit, such as `tsl.laws.HYPERBOLIC`.
        y: a DataArray, with the dimension(s) named by `over`; or an array whose last axis is fitted, with `x=` given.
        over: the dimension(s) to fit along; with several, the points of all of them are one curve.
        x: covariate at each point, or a mapping of covariates; default the coordinates of `over`.
        weights: per point, or per curve and point; relative. A point of weight zero may be NaN.
        method: "varpro" (global, one shape, separable laws), "lm" (Levenberg-Marquardt from several starts), or "auto".
        dtype: "float64" (default) or "float32".

    Returns:
        `Fit`, with the other dimensions of y; a 2-d bare array gets the dimension `curve`.

    Raises:
        ValueError: if the request makes no sense (never for a bad curve, which gets a status).
    """
    solver = _solver(law, method)
    if dtype not in (None, "float32", "float64"):
        raise ValueError(f"fit: dtype must be 'float64' or 'float32', found {dtype!r}")
    with jax.enable_x64(dtype != "float32"):
        problem = read(law, y, over, x, weights)
        bounds = _log_bounds(law, problem)
        curves = _in_blocks(law, solver, problem, bounds)
    return _label(law, problem, curves)


@partial(jax.jit, static_argnums=(0, 1))
def solve_curves(law: Law, solver: str, log_bounds: Array, x: Covariates, y: Array, weights: Array) -> Curves:
    """Pure fit of y (curve, point) with weights (point,) or (curve, point), shapes within log_bounds (shape, 2)."""
    observed = weights > 0
    broken = jnp.any(observed & ~jnp.isfinite(y), axis=-1)
    y = jnp.where(observed & ~broken[:, None], y, 0)
    root = jnp.sqrt(weights)
    found = _solve(solver)(law, log_bounds, x, root, root * y)
    q = jnp.concatenate([found.log_shape, found.coef], axis=-1)
    share = None if root.ndim == 1 else 0
    covariance, log_error = jax.vmap(partial(uncertainty.covariance, law), (0, None, share, 0))(q, x, root, found.sse)
    mean = jnp.sum(weights * y, -1, keepdims=True) / jnp.sum(jnp.broadcast_to(weights, y.shape), -1, keepdims=True)
    sst = jnp.sum(weights * (y - mean) ** 2, axis=-1)
    status = _status(law, log_bounds, x, y, weights, found, log_error, sst, broken)
    solved = jnp.concatenate([jnp.exp(found.log_shape), found.coef], axis=-1)
    unusable = (status == Status.NON_FINITE) | (status == Status.TOO_FEW_POINTS)
    params = jax.vmap(partial(uncertainty.published, law))(q)

    def known(a: Array) -> Array:
        return jnp.where(unusable.reshape(-1, *[1] * (a.ndim - 1)), jnp.nan, a)

    return Curves(known(params), known(solved), known(covariance), known(found.sse), known(sst), status)


def _solve(solver: str) -> Any:
    if solver == "varpro":
        return varpro.solve
    from tsl_jax.fitting import levenberg_marquardt  # late: only this file imports jaxopt

    return levenberg_marquardt.solve


def _solver(law: Law, method: str) -> str:
    if method not in METHODS:
        raise ValueError(f"fit: method must be one of {METHODS}, found {method!r}")
    simple = law.basis is not None and len(law.shapes) <= 1
    if method == "varpro" and not simple:
        raise ValueError(
            f"fit: method='varpro' needs a separable law with one shape, {law.name} is not; use method='lm'"
        )
    return method if method != "auto" and law.shapes else ("varpro" if simple else "lm")


def _log_bounds(law: Law, problem: Problem) -> Array:
    """Log range of each shape (shape, 2), once the law is known to be finite on the data."""
    bounds, finite = _range(law, problem.x)
    if not bool(jnp.all(jnp.isfinite(bounds))):
        raise ValueError(f"fit: law {law.name} finds no range for its shapes at x = {problem.x}; x must be positive")
    if not bool(finite):
        raise ValueError(f"fit: law {law.name} is not finite at every x; leave out points such as x = 0")
    return bounds


@partial(jax.jit, static_argnums=0)
def _range(law: Law, x: Covariates) -> tuple[Array, Array]:
    """Log range of the shapes, and whether the law is finite in the middle of it."""
    bounds = jnp.log(law.bounds(x))
    middle = law.evaluate(jnp.exp(bounds.mean(axis=1)), jnp.ones(len(law.coefs)), x)
    return bounds, jnp.all(jnp.isfinite(middle))


def _status(
    law: Law,
    log_bounds: Array,
    x: Covariates,
    y: Array,
    weights: Array,
    found: varpro.Solution,
    log_error: Array,
    sst: Array,
    broken: Array,
) -> Array:
    """The first statement that is true of each curve, worst first."""
    width = log_bounds[:, 1] - log_bounds[:, 0]
    at_low = jnp.any(found.log_shape <= log_bounds[:, 0] + 1e-4 * width, axis=-1)
    at_high = jnp.any(found.log_shape >= log_bounds[:, 1] - 1e-4 * width, axis=-1)
    count = jnp.sum(jnp.broadcast_to(weights, y.shape) > 0, axis=-1)
    rounding = 64 * jnp.finfo(y.dtype).eps * jnp.max(jnp.abs(y), axis=-1)
    flat = sst <= jnp.max(weights) * count * rounding**2
    falling = [law.coefs.index(name) for name in law.falls]
    rising = jnp.any(found.coef[:, jnp.asarray(falling, int)] < 0, axis=-1) if falling else jnp.zeros_like(broken)
    straight = (at_low | at_high) & _line_is_as_good(x, y, weights, found.sse)
    cases = {
        Status.NON_FINITE: broken,
        Status.TOO_FEW_POINTS: count <= len(law.solved),
        Status.FLAT: flat,
        Status.RISING: rising,
        Status.STRAIGHT_LINE: straight,
        Status.LOWER_BOUND: at_low,
        Status.UPPER_BOUND: at_high,
        Status.NOT_SETTLED: ~found.settled,
        Status.WEAKLY_IDENTIFIED: ~jnp.all(log_error <= WEAK, axis=-1),
    }
    codes = [jnp.asarray(int(code), jnp.int8) for code in cases]
    return jnp.select(list(cases.values()), codes, jnp.asarray(int(Status.CONVERGED), jnp.int8))


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

    return jax.vmap(line, (None if weights.ndim == 1 else 0, 0))(weights, y) <= sse * (1 + 1e-9)


def _in_blocks(law: Law, solver: str, problem: Problem, log_bounds: Array) -> Curves:
    """All curves, a block of fixed shape at a time; the last block is filled up with copies of its last curve."""
    y, weights = problem.y, problem.weights
    size = BLOCKS[0] if len(y) <= BLOCKS[0] else BLOCKS[1]
    blocks = []
    for start in range(0, len(y), size):
        rows = np.minimum(np.arange(start, start + size), len(y) - 1)
        own = weights if weights.ndim == 1 else weights[rows]
        block = solve_curves(law, solver, log_bounds, problem.x, jnp.asarray(y[rows], float), jnp.asarray(own, float))
        blocks.append(jax.tree.map(lambda a: np.asarray(a), block))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(y)], *blocks)


def _label(law: Law, problem: Problem, curves: Curves) -> Fit:
    """The result with the names of the dimensions that were not fitted."""
    outer = problem.outer

    def array(values: Any, extra: Mapping[str, tuple[str, ...]]) -> xr.DataArray:
        shape = (*outer.shape, *values.shape[1:])
        coordinates = {**outer.coords, **{dim: list(names) for dim, names in extra.items()}}
        return xr.DataArray(np.asarray(values).reshape(shape), coordinates, (*outer.dims, *extra))

    variance = np.diagonal(curves.covariance, axis1=-2, axis2=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        stderr = np.sqrt(variance)
        r2 = 1 - np.asarray(curves.sse) / np.asarray(curves.sst)
    r2 = np.where(np.asarray(curves.status) == Status.FLAT, np.nan, r2)  # no variance to explain
    names = {"param": law.params}
    return Fit(
        law=law,
        params=array(curves.params, names),
        stderr=array(stderr, names),
        covariance=array(curves.covariance, {**names, "param_": law.params}),
        status=array(curves.status, {}),
        sse=array(curves.sse, {}),
        r2=array(r2, {}),
        solved=array(curves.solved, {"solved": law.solved}),
        over=problem.over,
        x=problem.given,
    )
