"""Fits by reduced laws: coefficients within limits or fixed, and covariates that do not vary.

For given shapes the coefficients solve a small convex problem, so an optimum within limits such as a2 >= 0 has some of
them at a limit and the others free, as in a law that lacks their columns. Every such *reduced law* is fitted globally,
and the best feasible one is the answer. A coefficient with both limits equal is fixed: its column is never free.
Limits other than zero need a column that does not depend on the shape (a constant such as a2): what it contributes is
then known before the fit.

A covariate that does not vary, or covariates that move together, leave only the law of one of them. With D constant,

    E + A/N^alpha + B/D^beta = E' + A/N^alpha,    E' = E + B/D^beta,

so A and alpha are fitted in the law without the terms of D; E, B and beta are NaN, since each may be anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np

from tsl_jax.fitting.solver import CurveFits
from tsl_jax.fitting.status import UNSOLVED, USABLE, Design, Status, judge_design
from tsl_jax.laws import Covariates, Law

Limits = Mapping[str, tuple[float | None, float | None]]
Ranges = Mapping[str, tuple[float, float]]  # the same, checked
Solver = Callable[[Law, np.ndarray, np.ndarray], CurveFits]  # law, data, which curves -> fits of these
SLACK = 8  # roundings of a limit other than zero, in the dtype of the fits, that still count as within it


def check_limits(law: Law, limits: Limits) -> dict[str, tuple[float, float]]:
    """The limits as numbers.

    Raises:
        ValueError: for names that are no coefficients, empty ranges, or limits that the law's columns do not allow.
    """
    checked = {}
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
        if not low <= high or not (np.isfinite(low) or np.isfinite(high) or low < high):
            raise ValueError(f"fit: limits of {name} must be (low, high) with low <= high, found {pair}")
        checked[name] = (low, high)
    return checked


def fit_reduced(
    law: Law, limits: Ranges, x: Covariates, y: np.ndarray, weights: np.ndarray, solve: Solver
) -> CurveFits:
    """Fit every curve of y (curve, point) with the coefficients of `limits` within theirs, on covariates as they are.

    Args:
        weights: (point,) or (curve, point). solve: as named above.

    Returns:
        `CurveFits`, with covariance zero for a coefficient at its limit (see `active`), and NaN for what
        covariates that do not vary leave unknown.
    """
    designs = judge_design(law, x, weights)
    designs = designs if weights.ndim == 2 else designs * len(y)
    parts: CurveFits | None = None
    for design in dict.fromkeys(designs):
        rows = np.array([row for row, other in enumerate(designs) if other == design])

        def solve_rows(law: Law, limits: Ranges, rows: np.ndarray = rows) -> CurveFits:
            own = weights[rows] if weights.ndim == 2 else weights
            return _fit_limited(law, limits, x, y[rows], own, lambda law, y, k: solve(law, y, rows[k]))

        fits = _fit_design(design, law, limits, solve_rows) if design else solve_rows(law, limits)
        if len(rows) == len(y):
            return fits
        parts = parts or CurveFits(*(np.zeros((len(y), *part.shape[1:]), part.dtype) for part in fits))
        for whole, part in zip(parts, fits, strict=True):
            whole[rows] = part
    assert parts is not None  # there is a curve
    return parts


def active(law: Law, limits: Ranges, curves: CurveFits) -> np.ndarray:
    """(curve, coef) int8: -1 at the lower limit or fixed, 1 at the upper, 0 free."""
    state = np.zeros((len(curves.sse), len(law.coefs)), np.int8)
    for k, name in enumerate(law.coefs):
        low, high = limits.get(name, (-np.inf, np.inf))
        value = curves.raw_params[:, len(law.shapes) + k]
        state[:, k] = np.where(value == low, -1, np.where(value == high, 1, 0))
    return state


def _fit_limited(
    law: Law, limits: Ranges, x: Covariates, y: np.ndarray, weights: np.ndarray, solve: Solver
) -> CurveFits:
    """The best feasible fit of each curve, over all sets of coefficients that may be at a limit."""
    # Fixed ones are in every set; the first set, of no others, is the unconstrained fit, and mostly the answer.
    choices = [
        [low] if low == high else [None, *(v for v in (low, high) if np.isfinite(v))] for low, high in limits.values()
    ]
    sets = [{n: v for n, v in zip(limits, chosen, strict=True) if v is not None} for chosen in product(*choices)]

    def solve_at(at: dict[str, float], rows: np.ndarray) -> CurveFits:
        if not at:
            return solve(law, y[rows], rows)
        reduced, offset = _reduced(law, tuple(at)), _offset(law, at, x)
        if reduced.coefs:
            return _whole(law, at, solve(reduced, y[rows] - offset, rows))
        own = weights[rows] if weights.ndim == 2 else weights
        return _whole(law, at, _nothing_free(law, x, y[rows] - offset, own))

    everything = np.arange(len(y))
    best = solve_at(sets[0], everything)
    if sets[0]:  # coefficients are fixed, and y - offset has another mean
        with np.errstate(invalid="ignore"):
            seen = np.where(weights > 0, y, 0)
            mean = np.sum(weights * seen, axis=1, keepdims=True) / np.sum(weights, axis=-1, keepdims=True)
            sst = np.sum(weights * (seen - mean) ** 2, axis=1)
        best = best._replace(sst=np.where(np.isfinite(best.sst), sst, np.nan).astype(best.sst.dtype))
    outside = np.flatnonzero(~_feasible(law, limits, best) & np.isfinite(best.sse))
    if not len(outside):
        return best
    parts = CurveFits(*(np.array(part) for part in best))
    least = np.full(len(outside), np.inf)
    for at in sets[1:]:
        fits = solve_at(at, outside)
        better = _feasible(law, limits, fits) & (fits.sse < least)
        least = np.where(better, fits.sse, least)
        for whole, part in zip(parts, fits, strict=True):
            whole[outside[better]] = part[better]
        parts.sst[outside[better]] = best.sst[outside[better]]
    parts.status[outside[best.status[outside] == Status.FLAT]] = Status.FLAT  # the data are, whatever the limits
    return parts


def _fit_design(design: Design, law: Law, limits: Ranges, solve: Callable[[Law, Ranges], CurveFits]) -> CurveFits:
    """Fits of curves whose covariates do not vary or move together: what is known, the rest NaN, and a status."""
    status, names = design
    dropped = names if status == Status.COVARIATE_CONSTANT else names[1:]  # along a line one stands for all
    lost = tuple(own for name, params in law.covariate_params if name in dropped for own in params)
    if lost:
        reduced = _reduced(law, lost)
        own_limits = {name: pair for name, pair in limits.items() if name in reduced.coefs}
        fits = _whole(law, dict.fromkeys(lost, 0.0), solve(reduced, own_limits))
    else:  # a law whose parameters belong to no single covariate
        fits = solve(law, limits)
    identified = [own for name, params in law.covariate_params if name not in names for own in params]
    unidentified = np.array([name not in identified for name in law.params])
    hidden = np.array([name not in identified for name in law.shapes])
    # Where nothing is left to be known, a shape at its bound is no news.
    replaced = np.isin(fits.status, USABLE) if identified else ~np.isin(fits.status, (*UNSOLVED, Status.FLAT))
    return fits._replace(
        params=np.where(unidentified, np.nan, fits.params),
        covariance=np.where(unidentified[:, None] | unidentified, np.nan, fits.covariance),
        log_error=np.where(hidden, np.nan, fits.log_error),
        status=np.where(replaced, status, fits.status).astype(np.int8),
    )


def _feasible(law: Law, limits: Ranges, curves: CurveFits) -> np.ndarray:
    good = np.ones(len(curves.sse), bool)
    for name, (low, high) in limits.items():
        value = curves.raw_params[:, law.raw_params.index(name)]
        slack = SLACK * np.finfo(value.dtype).eps
        good &= (value >= low - slack * abs(low)) & (value <= high + slack * abs(high))
    return good


@lru_cache(maxsize=64)
def _reduced(law: Law, without: tuple[str, ...]) -> Law:
    """The law without the columns of these coefficients and without these shapes; its parameters are its raw ones."""
    basis, shift = law.basis, law.shift
    assert basis is not None
    # int32: an int64 index kept from one precision mode is refused in the other.
    keep = np.array([k for k, name in enumerate(law.coefs) if name not in without], np.int32)
    searched = np.array([k for k, name in enumerate(law.shapes) if name not in without], np.int32)
    coefs, shapes = tuple(law.coefs[k] for k in keep), tuple(law.shapes[k] for k in searched)

    def whole(shape: jax.Array) -> jax.Array:
        """The shapes of the law; one that is left out belongs to a column that is too, and may be anything."""
        if shapes == law.shapes:
            return shape
        return jnp.stack([shape[shapes.index(n)] if n in shapes else jnp.ones((), shape.dtype) for n in law.shapes])

    return replace(
        law,
        name=f"{law.name} without {', '.join(without)}",
        params=shapes + coefs,
        shapes=shapes,
        coefs=coefs,
        decreasing_coefs=tuple(name for name in law.decreasing_coefs if name in coefs),
        bounds=law.bounds if shapes == law.shapes else lambda x: law.bounds(x)[searched],
        basis=lambda shape, x: basis(whole(shape), x)[:, keep],
        params_from_raw=None,
        raw_from_params=None,
        shift=None if shift is None else lambda shape, x0: shift(whole(shape), x0)[keep],
        covariate_params=(),
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
    columns, elsewhere = jax.device_get(_columns_at_two_shapes(law, x))
    total = np.zeros(len(columns))
    for name, value in given.items():
        k = law.coefs.index(name)
        if not np.array_equal(columns[:, k], elsewhere[:, k]):
            fix = "limit it by zero, or use a law in which it is a shape"
            raise ValueError(f"fit: the limit {value} of {name} would depend on the shape of {law.name}; {fix}")
        total += value * columns[:, k]
    return total


@partial(jax.jit, static_argnums=0)  # one program in place of one for every operation
def _columns_at_two_shapes(law: Law, x: Covariates) -> tuple[jax.Array, jax.Array]:
    """The columns in the middle of the range of the shapes, and at shapes half as large again."""
    assert law.basis is not None
    middle = jnp.exp(jnp.log(law.bounds(x)).mean(axis=1))
    return law.basis(middle, x), law.basis(middle * 1.5, x)


@partial(jax.jit, static_argnums=0)
def _published(law: Law, raw: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Published parameters (curve, param) of raw ones (curve, raw_param), and slopes (curve, param, raw_param)."""
    return jax.vmap(law.to_params)(raw), jax.vmap(jax.jacfwd(law.to_params))(raw)


def _whole(law: Law, at: dict[str, float], fits: CurveFits) -> CurveFits:
    """The fits of a reduced law as those of the whole one, with the coefficients and shapes `at` given."""
    reduced = [k for k, name in enumerate(law.raw_params) if name not in at]
    n, p = len(fits.sse), len(law.raw_params)
    raw, covariance = np.zeros((n, p)), np.zeros((n, p, p))
    raw[:, reduced] = fits.raw_params
    for name, value in at.items():
        # A shape without its column may be anything that is positive.
        raw[:, law.raw_params.index(name)] = 1.0 if name in law.shapes else value
    covariance[:, np.array(reduced)[:, None], np.array(reduced)] = fits.covariance
    params, g = jax.device_get(_published(law, jnp.asarray(raw)))
    covariance = g @ covariance @ g.swapaxes(1, 2)
    # A given one is known, even where the others are not and the product is NaN.
    unknown = (g[:, :, reduced] != 0).any(axis=2)
    covariance = np.where(unknown[:, :, None] & unknown[:, None], covariance, 0)
    log_error = np.full((n, len(law.shapes)), np.nan)
    log_error[:, [k for k, name in enumerate(law.shapes) if name not in at]] = fits.log_error
    return fits._replace(params=params, raw_params=raw, covariance=covariance, log_error=log_error)
