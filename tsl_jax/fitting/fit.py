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

from tsl_jax.fitting import blocks
from tsl_jax.fitting.curves import Curves, prepare
from tsl_jax.fitting.problem import Problem, read
from tsl_jax.fitting.result import Fit
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

    Returns:
        `Fit`, with the other dimensions of y; a 2-d bare array gets the dimension `curve`.

    Raises:
        ValueError: if the request makes no sense (never for a bad curve, which gets a status).
    """
    if dtype not in (None, "float32", "float64"):
        raise ValueError(f"fit: dtype must be 'float64' or 'float32', found {dtype!r}")
    with jax.enable_x64(dtype != "float32"):
        problem = read(law, y, over, x, weights)
        own = problem.weights if problem.weights.ndim == 2 else None
        plan = prepare(
            law,
            problem.x,
            None if own is not None else problem.weights,
            points=problem.points,
            method=method,
            dtype=dtype or "float64",
            absolute_sigma=absolute_sigma,
        )
        curves = blocks.run(plan, problem.y, own)
    return _label(law, problem, curves)


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
        log_shape_stderr=array(curves.log_error, {"shape": law.shapes}),
        agreeing=array(curves.agreeing, {}),
        over=problem.over,
        x=problem.given,
    )
