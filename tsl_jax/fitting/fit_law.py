"""One verb, `fit`: any law on any axis of an array, batched over all other axes.

`read` turns what a user hands over (labelled or bare arrays) into curves, covariates and weights, and refuses requests
that make no sense. Beneath, `solver.solve_curves` is a pure function that `batching.run` calls in blocks of a fixed
number of curves, so that one compiled program serves any batch and memory stays bounded. Curves with a single covariate
are padded with points of weight zero to a multiple of 32, or to `points=` (y only where it is copied into blocks), so
that prefixes of different lengths share one program. Precision: float64 inside a context, whatever the caller's jax
settings, unless `dtype="float32"`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from tsl_jax.fitting import batching, bounds, robust
from tsl_jax.fitting.result import Fit, evaluate
from tsl_jax.fitting.solver import CurveFits, curve_points, prepare
from tsl_jax.fitting.status import Status
from tsl_jax.laws import Covariates, Law

PAD = 32
MANY = 512  # curves with weights of their own, for which tables pay: they take seconds, a curve without them 2 ms


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
    points: int | None = None,
) -> Fit:
    """Fit `law` to y by weighted least squares along `over`, for all other dimensions at once.

    Minimises sum_i w_i (y_i - law(x_i))^2 for each curve.

    Args:
        law: what to fit, such as `tsl.laws.HYPERBOLIC`.
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
    if not isinstance(law, Law):
        raise ValueError(f"fit: law must be a Law such as tsl.laws.HYPERBOLIC, found {law!r}; see tsl.laws.BY_NAME")
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

    if loss == "squares":
        return least_squares(problem.y, problem.weights if problem.weights.ndim == 2 else None)
    return robust.fit(
        loss,
        delta,
        np.asarray(problem.y, float),
        problem.weights[..., :points],
        least_squares,
        lambda curves: evaluate(law, curves.raw_params, problem.given),
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


@dataclass(frozen=True)
class Problem:
    """Curves y (curve, point), their covariates and weights ((point,) or (curve, point)), and the outer labels."""

    y: np.ndarray
    x: Covariates
    weights: np.ndarray
    outer: xr.DataArray  # a template with the dimensions that are not fitted
    over: tuple[str, ...]
    given: Any  # x as it was before padding
    x_name: str  # of x, where it is a single covariate
    points: int  # of a curve, padding included

    def labelled(self) -> xr.DataArray:
        """y (..., point) with the labels that a fit's curves have."""
        point = self.over[0] if len(self.over) == 1 else "point"
        coordinates = dict(self.outer.coords)
        if not isinstance(self.given, Mapping):
            coordinates[self.x_name if len(self.over) == 1 else point] = (point, self.given)
        return xr.DataArray(self.y.reshape(*self.outer.shape, -1), coordinates, (*self.outer.dims, point))


def read(law: Law, y: Any, over: str | tuple[str, ...] | None, x: Any, weights: Any, least: int = 0) -> Problem:
    """The problem in a request; curves over one covariate are padded to `least` points or more.

    Raises:
        ValueError: for unknown dimensions, missing or misshapen x or weights, no curve or no point.
    """
    if isinstance(y, xr.Dataset):
        raise ValueError(f"fit: y is a Dataset of {tuple(y.data_vars)}; give one of them, such as surface.loss")
    if isinstance(y, xr.DataArray):
        dims = (over,) if isinstance(over, str) else tuple(over or ())
        if not dims:
            raise ValueError(f"fit: name the dimension to fit with over=; y has {y.dims}")
        for dim in dims:
            if dim not in y.dims:
                raise ValueError(f"fit: over={dim!r} is not a dimension of {y.name or 'y'}; it has {y.dims}")
        array = y.transpose(..., *dims)
        if weights is not None and not isinstance(weights, xr.DataArray) and np.shape(weights) == y.shape:
            weights = xr.DataArray(np.asarray(weights, float), dims=y.dims)  # in y's order, not in that of the fit
    else:
        array = _bare(law, y, over, x)
        dims = (str(array.dims[-1]),)
    x_name = str(x.name) if isinstance(x, xr.DataArray) and x.name else law.covariates[0]
    x_name = dims[0] if x_name == "x" else x_name
    given = _covariates(law, array, dims) if x is None else _given(x, array, dims)
    outer_dims = tuple(dim for dim in array.dims if dim not in dims)
    size = int(np.prod([array.sizes[dim] for dim in dims]))
    curves = np.asarray(array.values).reshape(-1, size)  # a view where it can be: data may be larger than memory
    if curves.size == 0:
        raise ValueError(f"fit: nothing to fit, y has shape {tuple(array.shape)}")
    if isinstance(given, dict) and law.covariate_params:  # a number stands for a covariate that does not vary
        given = {
            name: np.broadcast_to(values, (size,)) if values.size == 1 else values for name, values in given.items()
        }
    _check_covariates(law, given, size)
    own = _weights(weights, array, dims, curves.shape)
    outer = array.isel(dict.fromkeys(dims, 0), drop=True)
    outer = outer.drop_vars([name for name in outer.coords if not set(outer[name].dims) <= set(outer_dims)])
    problem = partial(Problem, curves, outer=outer, over=dims, given=given, x_name=x_name)
    if isinstance(given, dict):
        return problem({name: jnp.asarray(values, float) for name, values in given.items()}, own, points=size)
    more = max(-size % PAD, least - size)
    own = own if own.ndim == 2 else np.pad(own, (0, more))  # those of each curve where they are copied into blocks
    return problem(jnp.asarray(np.pad(given, (0, more), mode="edge"), float), own, points=size + more)


def _bare(law: Law, y: Any, over: Any, x: Any) -> xr.DataArray:
    """Labels for a bare array: curves, and the law's covariate along the last axis."""
    values = np.asarray(y)
    if over is not None:
        raise ValueError("fit: over= names a dimension of a DataArray, but y is a bare array; its last axis is fitted")
    if x is None:
        raise ValueError(f"fit: give x= ({', '.join(law.covariates)}) with a bare array, or a DataArray and over=")
    if values.ndim == 0 or values.dtype.kind not in "fiu":
        raise ValueError(f"fit: y must be an array of real numbers, found {values.dtype} of shape {values.shape}")
    outer = [f"curve_{k}" for k in range(values.ndim - 1)] if values.ndim > 2 else ["curve"] * (values.ndim - 1)
    return xr.DataArray(values, dims=(*outer, law.covariates[0] if len(law.covariates) == 1 else "point"))


def _covariates(law: Law, array: xr.DataArray, dims: tuple[str, ...]) -> Any:
    """The law's covariates, by name, from the coordinates of the fitted dimensions."""
    along = xr.DataArray(np.zeros([array.sizes[dim] for dim in dims]), dims=dims)
    by_name = {}
    for name in law.covariates:
        # A law of a generic x reads any dimension; others their own, or tokens would pass for parameters.
        source = dims[0] if law.covariates == ("x",) and len(dims) == 1 else name
        if source not in array.coords or not set(array[source].dims) <= set(dims):
            has = tuple(str(key) for key in array.coords if set(array[key].dims) <= set(dims))
            raise ValueError(
                f"fit: {law.name} reads {name!r}, found the coordinates {has} along {dims}; fit over {name!r}, "
                f"choose a law of {', '.join(dims)}, or give x= where another quantity is meant to stand for it"
            )
        by_name[name] = np.asarray(array[source].broadcast_like(along).transpose(*dims).values, float).ravel()
    return by_name if len(by_name) > 1 else by_name[law.covariates[0]]


def _given(x: Any, array: xr.DataArray, dims: tuple[str, ...]) -> Any:
    """x as floats, a dict of them for a mapping; DataArrays over the fitted dimensions in the order of these."""
    if isinstance(x, Mapping):
        return {str(name): _given(values, array, dims) for name, values in x.items()}
    if isinstance(x, xr.DataArray) and set(x.dims) <= set(dims) and len(dims) > 1:
        along = xr.DataArray(np.zeros([array.sizes[dim] for dim in dims]), dims=dims)
        x = x.broadcast_like(along).transpose(*dims)
    return np.asarray(x, float).ravel()


def _check_covariates(law: Law, x: Any, size: int) -> None:
    if isinstance(x, dict):
        if set(x) != set(law.covariates):
            raise ValueError(f"fit: {law.name} reads the covariates {law.covariates}, x has {tuple(x)}")
    elif len(law.covariates) > 1:
        raise ValueError(f"fit: {law.name} reads {law.covariates}: give x as a mapping of these")
    elif len(x) != size:
        raise ValueError(f"fit: x has {len(x)} points, y has {size} along the fitted axis")
    for name, values in x.items() if isinstance(x, dict) else [("x", x)]:
        if not np.all(np.isfinite(values)):
            raise ValueError(f"fit: {name} holds NaN or infinity; drop these points from x and y")
    if isinstance(x, dict):
        lengths = {name: len(values) for name, values in x.items()}
        try:
            points = curve_points(law, x)
        except (TypeError, ValueError):  # arrays that do not go together
            points = None
        if points != size:
            raise ValueError(f"fit: {law.name} needs x for the {size} points of y, found the lengths {lengths}")


def _weights(weights: Any, array: xr.DataArray, dims: tuple[str, ...], shape: tuple[int, int]) -> np.ndarray:
    """Weights (point,), or (curve, point) where curves have their own."""
    if weights is None:
        return np.ones(shape[1])
    if isinstance(weights, xr.DataArray):
        shared = set(weights.dims) <= set(dims)
        like = array.isel({dim: 0 for dim in array.dims if dim not in dims}, drop=True) if shared else array
        if not set(weights.dims) <= set(array.dims):
            raise ValueError(f"fit: weights have dimensions {weights.dims}, y has {array.dims}")
        weights = weights.broadcast_like(like).transpose(*like.dims).values
    values = np.asarray(weights, float)
    along = tuple(array.sizes[dim] for dim in dims)
    one_row = values.shape[-1:] == (shape[1],) and values.size == shape[1]
    if not one_row and values.shape not in (along, array.shape, shape):
        raise ValueError(f"fit: weights have shape {values.shape}; expected one a point {along}, or y's {array.shape}")
    # By shape, not size: weights of one curve among many are those of a batch of one.
    own = values.size != shape[1] or (array.ndim > len(dims) and values.shape == array.shape)
    values = values.reshape(shape) if own else values.reshape(-1)
    if not np.all(np.isfinite(values)) or np.any(values < 0):
        raise ValueError("fit: weights must be finite and not negative; use zero to leave a point out")
    return values
