"""Coefficients kept within limits, such as a2 >= 0, and which of them are active.

For given shapes the coefficients solve a small convex problem, so the optimum has some of them at a limit and the
others free, as in a law that lacks their columns. Every such *reduced law* is fitted globally, and the best feasible
one is the answer. Limits other than zero need a column that does not depend on the shape (a constant such as a2):
what it contributes is then known before the fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np

from tsl_jax.fitting.solver import CurveFits
from tsl_jax.fitting.status import Status
from tsl_jax.laws import Covariates, Law

Limits = Mapping[str, tuple[float | None, float | None]]
Solver = Callable[[Law, np.ndarray, np.ndarray], CurveFits]  # law, data, which curves -> fits of these
SLACK = 8  # roundings of a limit other than zero, in the dtype of the fits, that still count as within it


def check(law: Law, limits: Limits) -> dict[str, tuple[float, float]]:
    """The limits as numbers.

    Raises:
        ValueError: for names that are no coefficients, empty ranges, or limits that the law's columns do not allow.
    """
    found = {}
    for name, pair in limits.items():
        if name not in law.coefs:
            raise ValueError(f"fit: limits are for coefficients {law.coefs} of {law.name}, found {name!r}")
        if law.params_from_raw is not None and name not in law.params:
            raise ValueError(f"fit: {name!r} is no published parameter of {law.name}; limit one of {law.params}")
        try:
            low, high = (sign * np.inf if end is None else float(end) for sign, end in zip((-1, 1), pair, strict=True))
        except (TypeError, ValueError):
            expected = "(low, high), None where there is none"
            raise ValueError(f"fit: limits of {name} must be {expected}, found {pair!r}") from None
        if not low < high:
            raise ValueError(f"fit: limits of {name} must be (low, high) with low < high, found {pair}")
        found[name] = (low, high)
    return found


def fit(
    law: Law, limits: dict[str, tuple[float, float]], x: Covariates, y: np.ndarray, weights: np.ndarray, solve: Solver
) -> CurveFits:
    """Fit every curve of y (curve, point) with the coefficients of `limits` within theirs.

    Args:
        weights: (point,) or (curve, point). solve: as named above.

    Returns:
        `CurveFits`, with covariance zero for a coefficient at its limit (`active` tells which).
    """
    every = np.arange(len(y))
    best = solve(law, y, every)
    outside = np.flatnonzero(~_feasible(law, limits, best) & np.isfinite(best.sse))
    if not len(outside):
        return best
    parts = CurveFits(*(np.array(part) for part in best))
    height = np.full(len(outside), np.inf)
    for at in _active_sets(limits):
        reduced, offset = _reduced(law, tuple(at)), _offset(law, at, x)
        if reduced.coefs:
            found = solve(reduced, y[outside] - offset, outside)
        else:
            found = _nothing_free(law, x, y[outside] - offset, weights[outside] if weights.ndim == 2 else weights)
        found = _whole(law, at, found)
        better = _feasible(law, limits, found) & (found.sse < height)
        height = np.where(better, found.sse, height)
        for whole, part in zip(parts, found, strict=True):
            whole[outside[better]] = part[better]
        parts.sst[outside[better]] = best.sst[outside[better]]
    parts.status[outside[best.status[outside] == Status.FLAT]] = Status.FLAT  # the data are, whatever the limits
    return parts


def active(law: Law, limits: dict[str, tuple[float, float]], curves: CurveFits) -> np.ndarray:
    """(curve, coef) int8: -1 at the lower limit, 1 at the upper, 0 free."""
    state = np.zeros((len(curves.sse), len(law.coefs)), np.int8)
    for k, name in enumerate(law.coefs):
        low, high = limits.get(name, (-np.inf, np.inf))
        value = curves.raw_params[:, len(law.shapes) + k]
        state[:, k] = np.where(value == low, -1, np.where(value == high, 1, 0))
    return state


def _feasible(law: Law, limits: dict[str, tuple[float, float]], curves: CurveFits) -> np.ndarray:
    good = np.ones(len(curves.sse), bool)
    for name, (low, high) in limits.items():
        value = curves.raw_params[:, law.raw_params.index(name)]
        slack = SLACK * np.finfo(value.dtype).eps
        good &= (value >= low - slack * abs(low)) & (value <= high + slack * abs(high))
    return good


def _active_sets(limits: dict[str, tuple[float, float]]) -> list[dict[str, float]]:
    """Every way to put at least one coefficient at a limit."""
    choices = [[None, *(v for v in pair if np.isfinite(v))] for pair in limits.values()]
    sets = [{n: v for n, v in zip(limits, chosen, strict=True) if v is not None} for chosen in product(*choices)]
    return [at for at in sets if at]


@lru_cache(maxsize=64)
def _reduced(law: Law, without: tuple[str, ...]) -> Law:
    """The law without the columns of these coefficients; its parameters are what it solves."""
    basis = law.basis
    assert basis is not None
    # int32: an int64 index kept from one precision mode is refused in the other.
    keep = np.array([k for k, name in enumerate(law.coefs) if name not in without], np.int32)
    coefs = tuple(law.coefs[k] for k in keep)
    return replace(
        law,
        name=f"{law.name} without {', '.join(without)}",
        params=law.shapes + coefs,
        coefs=coefs,
        decreasing_coefs=tuple(name for name in law.decreasing_coefs if name in coefs),
        basis=lambda shape, x: basis(shape, x)[:, keep],
        params_from_raw=None,
    )


def _nothing_free(law: Law, x: Covariates, left: np.ndarray, weights: np.ndarray) -> CurveFits:
    """The fits of a law all of whose coefficients are given: any shape will do, so the middle of its range."""
    n, p = left.shape[0], len(law.shapes)
    shape = np.tile(np.exp(np.log(np.asarray(law.bounds(x))).mean(axis=1)), (n, 1))
    sse = np.sum(weights * np.where(weights > 0, left, 0) ** 2, axis=1)
    unknown = np.full((n, p, p), np.nan)
    status = np.full(n, int(Status.WEAKLY_IDENTIFIED), np.int8)
    return CurveFits(shape, shape, unknown, np.full((n, p), np.inf), sse, sse, status, np.full(n, -1, np.int8))


def _offset(law: Law, at: dict[str, float], x: Covariates) -> np.ndarray | float:
    """What coefficients at limits other than zero contribute at every point."""
    given = {name: value for name, value in at.items() if value != 0}
    if not given:
        return 0.0
    assert law.basis is not None
    middle = jnp.exp(jnp.log(law.bounds(x)).mean(axis=1))
    one, other = (np.asarray(law.basis(shape, x)) for shape in (middle, middle * 1.5))
    total = np.zeros(len(one))
    for name, value in given.items():
        k = law.coefs.index(name)
        if not np.array_equal(one[:, k], other[:, k]):
            mend = "limit it by zero, or use a law in which it is a shape"
            raise ValueError(f"fit: the limit {value} of {name} would depend on the shape of {law.name}; {mend}")
        total += value * one[:, k]
    return total


def _whole(law: Law, at: dict[str, float], found: CurveFits) -> CurveFits:
    """The fits of a reduced law as those of the whole one."""
    reduced = [k for k, name in enumerate(law.raw_params) if name not in at]
    n, p = len(found.sse), len(law.raw_params)
    solved, covariance = np.zeros((n, p)), np.zeros((n, p, p))
    solved[:, reduced] = found.raw_params
    for name, value in at.items():
        solved[:, law.raw_params.index(name)] = value
    covariance[:, np.array(reduced)[:, None], np.array(reduced)] = found.covariance
    params = np.asarray(jax.vmap(law.to_params)(jnp.asarray(solved)))
    g = np.asarray(jax.vmap(jax.jacfwd(law.to_params))(jnp.asarray(solved)))
    covariance = g @ covariance @ g.swapaxes(1, 2)
    # A given one is known, even where the others are not and the product is NaN.
    unknown = (g[:, :, reduced] != 0).any(axis=2)
    covariance = np.where(unknown[:, :, None] & unknown[:, None], covariance, 0)
    return found._replace(params=params, raw_params=solved, covariance=covariance)
