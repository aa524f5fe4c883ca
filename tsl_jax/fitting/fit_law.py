"""One verb, `fit`: any law on any axis of an array, batched over all other axes.

`problem.read` turns what a user hands over into curves, covariates and weights. Beneath, `solver.solve_curves` is a
pure function that `batching.run` calls in blocks of a fixed number of curves, so that one compiled program serves any
batch and memory stays bounded. Precision: float64 inside a context, whatever the caller's jax settings, unless
`dtype="float32"`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from tsl_jax.fitting import batching, bounds, robust
from tsl_jax.fitting.problem import Problem, as_law, read
from tsl_jax.fitting.result import Fit, evaluate
from tsl_jax.fitting.solver import CurveFits, prepare
from tsl_jax.fitting.status import Status
from tsl_jax.laws import Law

MANY = 512  # curves with weights of their own, for which tables pay: they take seconds, a curve without them 2 ms


def fit(
    law: Law | Callable[..., Any],
    y: Any,
    over: str | tuple[str, ...] | None = None,
    x: Any = None,
    weights: Any = None,
    method: str = "auto",
    dtype: str | None = None,
    absolute_sigma: bool = False,
    loss: str = "squares",
    delta: float | None = None,
    coef_limits: bounds.Limits | None = None,
    points: int | None = None,
) -> Fit:
    """Fit `law` to y by weighted least squares along `over`, for all other dimensions at once.

    Minimises sum_i w_i (y_i - law(x_i))^2 for each curve.

    Args:
        law: what to fit, such as `tsl.laws.HYPERBOLIC`, or a function f(x, a, b, ...), see `tsl.laws.from_function`.
        y: a DataArray, with the dimension(s) named by `over`; or an array whose last axis is fitted, with `x=` given.
        over: the dimension(s) to fit along; with several, the points of all of them are one curve.
        x: covariate at each point, or a mapping of covariates; default the coordinates along `over` that have the names
            of the law's covariates.
        weights: per point, or per curve and point. A point of weight zero may be NaN.
        method: "varpro" (global, one shape, separable laws), "lm" (Levenberg-Marquardt from several starts), or "auto".
        dtype: "float64" (default) or "float32".
        absolute_sigma: weights are 1/variance of y, and errors come from them alone; else weights are relative and
            errors are scaled by SSE/(n - p), as scipy's `curve_fit` has it.
        loss: "squares", "huber", "log" or "log_huber", see `robust.py`. delta: where Huber's loss turns linear, in
            units of y or of its logarithm; default 1.345 robust standard deviations of each curve's residuals.
        coef_limits: {"a2": (0, None)} keeps coefficients within limits, {"a2": (1.6, 1.6)} fixes one; `Fit.active` says
            which are met.
        points: curves over one covariate are padded to so many points, so that curves of other lengths share their
            compiled program; default and least the next multiple of 32.

    Returns:
        `Fit`, with the other dimensions of y; a 2-d bare array gets the dimension `curve`.

    Raises:
        ValueError: if the request makes no sense (never for a bad curve, which gets a status).
    """
    if dtype not in (None, "float32", "float64"):
        raise ValueError(f"fit: dtype must be 'float64' or 'float32', found {dtype!r}")
    law = as_law(law, x)
    if loss not in robust.LOSSES or (loss != "squares" and absolute_sigma):
        raise ValueError(f"fit: loss must be one of {robust.LOSSES}, others than squares without absolute_sigma")
    limits = bounds.check_limits(law, coef_limits or {})
    with jax.enable_x64(dtype != "float32"):
        problem = read(law, y, over, x, weights, points or 0)
        options = {"method": method, "dtype": dtype or "float64", "absolute_sigma": absolute_sigma}
        curves = _fit_curves(law, problem, options, limits, loss, delta)
    outer, seen = problem.outer, problem.y.shape[1]

    def array(values: Any, extra: Mapping[str, tuple[str, ...]]) -> xr.DataArray:
        shape = (*outer.shape, *values.shape[1:])
        coordinates = {**outer.coords, **{dim: list(names) for dim, names in extra.items()}}
        return xr.DataArray(np.asarray(values).reshape(shape), coordinates, (*outer.dims, *extra))

    own, used = None, problem.weights[..., :seen]
    if np.any(used != used[..., :1]):
        point = problem.over[0] if len(problem.over) == 1 else "point"
        if used.ndim == 1:
            own = xr.DataArray(used, dims=(point,))
        else:
            own = xr.DataArray(used.reshape(*outer.shape, seen), outer.coords, (*outer.dims, point))
    stderr, r2 = errors_and_r2(curves)
    names = {"param": law.params}
    return Fit(
        law=law,
        params=array(curves.params, names),
        stderr=array(stderr, names),
        covariance=array(curves.covariance, {**names, "param_": law.params}),
        status=array(curves.status, {}),
        sse=array(curves.sse, {}),
        r2=array(r2, {}),
        raw_params=array(curves.raw_params, {"raw_param": law.raw_params}),
        log_shape_stderr=array(curves.log_error, {"shape": law.shapes}),
        n_agreeing_starts=array(curves.n_agreeing_starts, {}),
        active=array(bounds.active(law, limits, curves), {"coef": law.coefs}),
        over=problem.over,
        x=problem.given,
        x_name=problem.x_name,
        weights=own,
        y=problem.labelled(),
        refit=partial(fit, law, x=problem.given, **options, loss=loss, delta=delta, coef_limits=coef_limits),
    )


def fit_rows(
    law: Law, y: np.ndarray, x: Any, weights: Any = None, method: str = "auto", dtype: str | None = None
) -> CurveFits:
    """`fit` of bare y (curve, point) by squares, without labels: for callers with many batches."""
    with jax.enable_x64(dtype != "float32"):
        options = {"method": method, "dtype": dtype or "float64"}
        return _fit_curves(law, read(law, y, None, x, weights), options)


def errors_and_r2(curves: CurveFits) -> tuple[np.ndarray, np.ndarray]:
    """Standard errors (curve, param) and R2 (curve,)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        stderr = np.sqrt(np.diagonal(curves.covariance, axis1=-2, axis2=-1))
        r2 = 1 - curves.sse / curves.sst
    return stderr, np.where(curves.status == Status.FLAT, np.nan, r2)  # flat: no variance to explain


def _fit_curves(
    law: Law,
    problem: Problem,
    options: Mapping[str, Any],
    limits: Mapping[str, tuple[float, float]] | None = None,
    loss: str = "squares",
    delta: float | None = None,
) -> CurveFits:
    """The fits of all curves: robust steps around reduced laws around the solver; `options` go to `prepare`."""
    points = problem.y.shape[1]
    # A law that is the same after a shift of x is fitted where its columns neither underflow nor overflow.
    origin = law.origin(problem.x)

    def solve(law: Law, y: np.ndarray, own: np.ndarray | None) -> CurveFits:
        x = jnp.asarray(problem.x) - origin if origin else problem.x
        shared = problem.weights if own is None else None
        prepared = prepare(law, x, shared, points=problem.points, many=len(y) >= MANY, **options)
        curves = batching.run(prepared, y, own)
        return _moved(law, curves, origin) if origin else curves

    def least_squares(y: np.ndarray, own: np.ndarray | None) -> CurveFits:
        if not limits and not law.covariate_params:
            return solve(law, y, own)
        weights = (problem.weights if own is None else own)[..., :points]
        return bounds.fit_reduced(
            law,
            limits or {},
            problem.given,
            y,
            weights,
            lambda law, y, rows: solve(law, y, None if own is None else own[rows]),
        )

    def descend(raw: np.ndarray, weights: np.ndarray, edge: np.ndarray) -> np.ndarray:
        log_bounds = prepare(law, problem.x, points=problem.points, **options).log_bounds
        x, dtype = jax.tree.map(jnp.asarray, problem.given), log_bounds.dtype
        arrays = (jnp.asarray(part, dtype) for part in (problem.y, weights, edge, raw))
        return np.asarray(robust.descend(law, log_bounds, x, *arrays))

    if loss == "squares":
        return least_squares(problem.y, problem.weights if problem.weights.ndim == 2 else None)
    # a dozen fast steps are enough for one shape and a delta that follows the residuals; limits the steps alone keep
    slow = (len(law.shapes) > 1 or delta is not None) and not limits and not origin
    return robust.fit(
        loss,
        delta,
        np.asarray(problem.y, float),
        problem.weights[..., :points],
        least_squares,
        lambda curves: evaluate(law, curves.raw_params, problem.given),
        descend if slow else None,
    )


@partial(jax.jit, static_argnums=0)  # one program in place of one for every operation
def _moved_params(law: Law, params: jax.Array, x0: Any) -> tuple[jax.Array, jax.Array]:
    """Parameters (curve, param) over x - x0 as those over x, and their slopes (curve, param, param)."""
    shapes = len(law.shapes)
    order = np.array([law.raw_params.index(name) for name in law.params])

    def moved(params: jax.Array) -> jax.Array:
        raw = params[np.argsort(order)]
        assert law.shift is not None  # else the origin is zero
        return jnp.concatenate([raw[:shapes], raw[shapes:] * law.shift(raw[:shapes], x0)])[order]

    return jax.vmap(moved)(params), jax.vmap(jax.jacfwd(moved))(params)


def _moved(law: Law, curves: CurveFits, x0: float) -> CurveFits:
    """Fits over x - x0 as fits over x: coefficients times their factors, errors by the delta method."""
    order = np.array([law.raw_params.index(name) for name in law.params])
    params, g = jax.device_get(_moved_params(law, jnp.asarray(curves.params), x0))
    with np.errstate(invalid="ignore"):  # a coefficient may be beyond the largest number
        covariance = g @ curves.covariance @ g.swapaxes(1, 2)
    return curves._replace(params=params, raw_params=params[:, np.argsort(order)], covariance=covariance)
