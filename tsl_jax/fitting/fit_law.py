"""One verb, `fit`: any law on any axis of an array, batched over all other axes.

Beneath it `curves.solve_curves` is a pure function, which `blocks.run` calls in blocks of a fixed number of curves, so
that one compiled program serves any batch and memory stays bounded. Precision: float64 inside a context, whatever the
caller's jax settings, unless `dtype="float32"`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import xarray as xr

from tsl_jax.fitting import batching, bounds, robust
from tsl_jax.fitting.problem import Problem, read
from tsl_jax.fitting.result import Fit, evaluate
from tsl_jax.fitting.solver import CurveFits, prepare
from tsl_jax.fitting.status import Status
from tsl_jax.laws import Law


def fit(
    law: Law,
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
) -> Fit:
    """Fit `law` to y by weighted least squares along `over`, for all other dimensions at once.

    Minimises sum_i w_i (y_i - law(x_i))^2 for each curve.

    Args:
        law: what to fit, such as `tsl.laws.HYPERBOLIC`.
        y: a DataArray, with the dimension(s) named by `over`; or an array whose last axis is fitted, with `x=` given.
        over: the dimension(s) to fit along; with several, the points of all of them are one curve.
        x: covariate at each point, or a mapping of covariates; default the coordinates of `over`.
        weights: per point, or per curve and point. A point of weight zero may be NaN.
        method: "varpro" (global, one shape, separable laws), "lm" (Levenberg-Marquardt from several starts), or "auto".
        dtype: "float64" (default) or "float32".
        absolute_sigma: weights are 1/variance of y, and errors come from them alone; else weights are relative and
            errors are scaled by SSE/(n - p), as scipy's `curve_fit` has it.
        loss: "squares", "huber", "log" or "log_huber", see `robust.py`. delta: where Huber's loss turns linear, in
            units of y or of its logarithm; default 1.345 robust standard deviations of each curve's residuals.
        coef_limits: {"a2": (0, None)} keeps coefficients within limits; `Fit.active` says which are met.

    Returns:
        `Fit`, with the other dimensions of y; a 2-d bare array gets the dimension `curve`.

    Raises:
        ValueError: if the request makes no sense (never for a bad curve, which gets a status).
    """
    if dtype not in (None, "float32", "float64"):
        raise ValueError(f"fit: dtype must be 'float64' or 'float32', found {dtype!r}")
    if not isinstance(law, Law):
        raise ValueError(f"fit: law must be a Law such as tsl.laws.HYPERBOLIC, found {law!r}; see tsl.laws.BY_NAME")
    if loss not in robust.LOSSES or (loss != "squares" and absolute_sigma):
        raise ValueError(f"fit: loss must be one of {robust.LOSSES}, others than squares without absolute_sigma")
    bound = bounds.check(law, coef_limits or {})
    with jax.enable_x64(dtype != "float32"):
        problem = read(law, y, over, x, weights)
        options = {"method": method, "dtype": dtype or "float64", "absolute_sigma": absolute_sigma}
        curves = _solved(law, problem, options, bound, loss, delta)
    return _label(law, problem, curves, bounds.active(law, bound, curves))


def _solved(
    law: Law,
    problem: Problem,
    options: Mapping[str, Any],
    bound: Any = None,
    loss: str = "squares",
    delta: float | None = None,
) -> CurveFits:
    """The fits, by way of limits and robust losses where these are asked for; `options` go to `prepare`."""
    own = problem.weights if problem.weights.ndim == 2 else None

    def solve(law: Law, y: np.ndarray, own: np.ndarray | None) -> CurveFits:
        shared = problem.weights if own is None else None
        return batching.run(prepare(law, problem.x, shared, points=problem.points, **options), y, own)

    def limited(y: np.ndarray, own: np.ndarray | None) -> CurveFits:
        if not bound:
            return solve(law, y, own)
        return bounds.fit(
            law,
            bound,
            problem.given,
            y,
            problem.weights[..., : y.shape[1]] if own is None else own[..., : y.shape[1]],
            lambda law, y, k: solve(law, y, None if own is None else own[k]),
        )

    if loss == "squares":
        return limited(problem.y, own)
    points = problem.y.shape[1]
    return robust.fit(
        loss,
        delta,
        np.asarray(problem.y, float),
        problem.weights[..., :points],
        lambda y, w: limited(y, None if w is None else _extended(w, problem.points)),
        lambda curves: evaluate(law, curves.raw_params, problem.given),
    )


def _extended(weights: np.ndarray, points: int) -> np.ndarray:
    """Weights (curve, point) with zeros up to the padded number of points."""
    return np.pad(weights, ((0, 0), (0, points - weights.shape[1])))


def fit_rows(
    law: Law, y: np.ndarray, x: Any, weights: Any = None, method: str = "auto", dtype: str | None = None
) -> CurveFits:
    """`fit` of bare y (curve, point) by squares, without labels: for callers with many batches."""
    with jax.enable_x64(dtype != "float32"):
        options = {"method": method, "dtype": dtype or "float64"}
        return _solved(law, read(law, y, None, x, weights), options)


def errors_and_r2(curves: CurveFits) -> tuple[np.ndarray, np.ndarray]:
    """Standard errors (curve, param) and R2 (curve,)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        stderr = np.sqrt(np.diagonal(curves.covariance, axis1=-2, axis2=-1))
        r2 = 1 - curves.sse / curves.sst
    return stderr, np.where(curves.status == Status.FLAT, np.nan, r2)  # flat: no variance to explain


def _label(law: Law, problem: Problem, curves: CurveFits, active: np.ndarray) -> Fit:
    """The result with the names of the dimensions that were not fitted."""
    outer = problem.outer

    def array(values: Any, extra: Mapping[str, tuple[str, ...]]) -> xr.DataArray:
        shape = (*outer.shape, *values.shape[1:])
        coordinates = {**outer.coords, **{dim: list(names) for dim, names in extra.items()}}
        return xr.DataArray(np.asarray(values).reshape(shape), coordinates, (*outer.dims, *extra))

    weights, used = None, problem.weights[..., : problem.y.shape[1]]  # without padding
    if np.any(used != used[..., :1]):
        point = problem.over[0] if len(problem.over) == 1 else "point"
        own = used.ndim == 2
        shape, dims = ((*outer.shape, used.shape[1]), (*outer.dims, point)) if own else (used.shape, (point,))
        weights = xr.DataArray(used.reshape(shape), outer.coords if own else None, dims)
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
        active=array(active, {"coef": law.coefs}),
        over=problem.over,
        x=problem.given,
        weights=weights,
    )
