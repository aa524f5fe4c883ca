"""What a user hands to `fit`, read into curves, covariates and weights; requests that make no sense are refused.

Labelled or bare arrays, a law or a plain function, weights by point or by curve and point. Curves with a single
covariate are padded with points of weight zero to a multiple of PAD, so that prefixes of different lengths share one
program: y and weights of each curve where they are copied into blocks, everything else here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import xarray as xr

from tsl_jax.fitting.solver import curve_points
from tsl_jax.laws import Covariates, Law, from_function

PAD = 32


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
        y = self.y.reshape(*self.outer.shape, -1)
        return xr.DataArray(y, coordinates, (*self.outer.dims, point), name=self.outer.name)


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
    law.check(given)
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


def as_law(law: Any, x: Any = None) -> Law:
    """The law itself, or that of a function.

    Raises:
        ValueError: for anything else, and for a function that is no law.
    """
    if isinstance(law, Law):
        return law
    if not callable(law):
        wanted = "law must be a Law such as tsl.laws.HYPERBOLIC or a function f(x, a, b, ...)"
        raise ValueError(f"fit: {wanted}, found {law!r}; see tsl.laws.BY_NAME")
    return from_function(law, covariates=tuple(map(str, x)) if isinstance(x, Mapping) and len(x) > 1 else ("x",))
