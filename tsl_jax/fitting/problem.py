"""From what a user hands to `fit` (labelled or bare arrays) to curves, covariates and weights.

Says no to requests that make no sense, with what was expected and what was found. Curves with a single covariate are
padded with points of weight zero to a multiple of 32 (y only where it is copied into blocks), so that prefixes of
different lengths share one compiled program.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import xarray as xr

from tsl_jax.laws import Covariates, Law

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
    points: int  # of a curve, padding included


def read(law: Law, y: Any, over: str | tuple[str, ...] | None, x: Any, weights: Any) -> Problem:
    """The problem in a request.

    Raises:
        ValueError: for unknown dimensions, missing or misshapen x or weights, no curve or no point.
    """
    if isinstance(y, xr.Dataset):
        raise ValueError(f"fit: y is a Dataset of {tuple(y.data_vars)}; give one of them, such as surface.loss")
    labelled = isinstance(y, xr.DataArray)
    array = _arranged(y, over) if labelled else _bare(law, y, over, x)
    dims = _over(over) if labelled else (str(array.dims[-1]),)
    given = _covariates(law, array, dims) if x is None else _given(x)
    outer_dims = tuple(dim for dim in array.dims if dim not in dims)
    size = int(np.prod([array.sizes[dim] for dim in dims]))
    curves = np.asarray(array.values).reshape(-1, size)  # a view where it can be: data may be larger than memory
    if curves.size == 0:
        raise ValueError(f"fit: nothing to fit, y has shape {tuple(array.shape)}")
    _check_covariates(law, given, size)
    own = _weights(weights, array, dims, curves.shape)
    outer = array.isel(dict.fromkeys(dims, 0), drop=True)
    outer = outer.drop_vars([name for name in outer.coords if not set(outer[name].dims) <= set(outer_dims)])
    return _padded(Problem(curves, given, own, outer, dims, given, size))


def _over(over: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (over,) if isinstance(over, str) else tuple(over or ())


def _arranged(y: xr.DataArray, over: str | tuple[str, ...] | None) -> xr.DataArray:
    dims = _over(over)
    if not dims:
        raise ValueError(f"fit: name the dimension to fit with over=; y has {y.dims}")
    for dim in dims:
        if dim not in y.dims:
            raise ValueError(f"fit: over={dim!r} is not a dimension of {y.name or 'y'}; it has {y.dims}")
    return y.transpose(..., *dims)


def _bare(law: Law, y: Any, over: Any, x: Any) -> xr.DataArray:
    values = np.asarray(y)
    if over is not None:
        raise ValueError("fit: over= names a dimension of a DataArray, but y is a bare array; its last axis is fitted")
    if x is None:
        raise ValueError(f"fit: give x= ({', '.join(law.covariates)}) with a bare array, or a DataArray and over=")
    if values.ndim == 0 or values.dtype.kind not in "fiu":
        raise ValueError(f"fit: y must be an array of real numbers, found {values.dtype} of shape {values.shape}")
    outer = [f"curve_{k}" for k in range(values.ndim - 1)] if values.ndim > 2 else ["curve"] * (values.ndim - 1)
    return xr.DataArray(values, dims=(*outer, _axis(law)))


def _axis(law: Law) -> str:
    """Name of the fitted axis of a bare array."""
    return "point" if len(law.covariates) > 1 else "".join(law.covariates)


def _covariates(law: Law, array: xr.DataArray, dims: tuple[str, ...]) -> Any:
    """The law's covariates from the coordinates of the fitted dimensions."""
    along = [array.sizes[dim] for dim in dims]
    found = {}
    for name in law.covariates:
        named = name in array.coords and set(array[name].dims) <= set(dims)
        source = name if named else dims[0] if len(law.covariates) == len(dims) == 1 else None
        if source is None or source not in array.coords:
            has = tuple(map(str, array.coords))
            raise ValueError(f"fit: {law.name} needs {name!r} along {dims}, y has the coordinates {has}; give x=")
        template = array[source].broadcast_like(xr.DataArray(np.zeros(along), dims=dims)).transpose(*dims)
        found[name] = np.asarray(template.values, float).ravel()
    return found if len(found) > 1 else found[law.covariates[0]]


def _given(x: Any) -> Any:
    if isinstance(x, dict):
        return {name: np.asarray(value, float) for name, value in x.items()}
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


def _weights(weights: Any, array: xr.DataArray, dims: tuple[str, ...], shape: tuple[int, int]) -> np.ndarray:
    if weights is None:
        return np.ones(shape[1])
    if isinstance(weights, xr.DataArray):
        shared = set(weights.dims) <= set(dims)
        like = array.isel({dim: 0 for dim in array.dims if dim not in dims}, drop=True) if shared else array
        if not set(weights.dims) <= set(array.dims):
            raise ValueError(f"fit: weights have dimensions {weights.dims}, y has {array.dims}")
        weights = weights.broadcast_like(like).transpose(*like.dims).values
    values = np.asarray(weights, float)
    if values.size not in (shape[1], shape[0] * shape[1]):
        raise ValueError(f"fit: weights have shape {values.shape}; expected one a point ({shape[1]},), or y's shape")
    # By shape, not size: weights of one curve among many are those of a batch of one.
    own = values.size != shape[1] or (array.ndim > len(dims) and values.shape == array.shape)
    values = values.reshape(shape) if own else values.reshape(-1)
    if not np.all(np.isfinite(values)) or np.any(values < 0):
        raise ValueError("fit: weights must be finite and not negative; use zero to leave a point out")
    return values


def _padded(problem: Problem) -> Problem:
    if isinstance(problem.x, dict):
        return replace(problem, x={name: jnp.asarray(values, float) for name, values in problem.x.items()})
    x = np.asarray(problem.x)
    more = -len(x) % PAD
    weights = np.pad(problem.weights, [(0, 0)] * (problem.weights.ndim - 1) + [(0, more)])
    return replace(
        problem, x=jnp.asarray(np.pad(x, (0, more), mode="edge"), float), weights=weights, points=len(x) + more
    )
