"""Robust losses (Huber, squares and Huber on logarithms) by iterated reweighting.

    huber      sum_i w_i rho(y_i - f_i)
    log        sum_i w_i (log y_i - log f_i)^2
    log_huber  sum_i w_i rho(log y_i - log f_i),     rho(r) = r^2/2 for |r| < delta, delta |r| - delta^2/2 beyond

Each step solves least squares with the caller's solver, whose search over the shape stays global.

Values: the data are moved to f + clip(y - f, -delta, delta), which majorises rho (Huber & Dutter 1974), so weights
stay those of all curves and the fast solver serves. Logarithms: with h = psi(r)/r, weights w h/f^2 and the
*working response*

    z = f (1 + log(y/f)),

since log f_new = log f + (f_new - f)/f to first order. Reweighting y itself by 1/f^2 has another stationary point.
Where delta is far below the noise few points are inside it, and reweighting needs hundreds of steps, each with all
its starts. `descend` first goes to the minimum of the objective itself; reweighting then begins where it would end.

Errors follow Huber (Robust Statistics, 1981, section 7.6): SSE/(n - p) becomes
sum w psi^2/(n - p)/(mean psi')^2.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from tsl_jax.fitting.solver import CurveFits
from tsl_jax.fitting.status import UNSOLVED, USABLE, WEAK, Status
from tsl_jax.laws import Covariates, Law

LOSSES = ("squares", "huber", "log", "log_huber")
EFFICIENT = 1.345 * 1.4826  # times the median absolute residual: 95 % efficiency under normal noise
STEPS = 500
CONVERGED_CHANGE = {"float64": 1e-9, "float32": 1e-6}  # relative change of the objective, by the dtype of the fits
ACCURATE = {"float64": 1e-8, "float32": 1e-6}  # of the data: smaller residuals may be the solver's own
BARELY_POSITIVE = 0.01  # of the data: what stands for a fit below zero, whose logarithm would be NaN

DESCENT = 500  # steps of `descend`, of which a dozen to a hundred are needed
STILL = 1e-14  # relative gain of a step of it that is none

Solver = Callable[[np.ndarray, np.ndarray | None], CurveFits]  # data, own weights -> fits
Predictor = Callable[[CurveFits], np.ndarray]  # the fitted curves
Descent = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # raw params, weights, edge -> raw params


@np.errstate(all="ignore")  # a bad curve gets a status, not a warning
def fit(
    loss: str,
    delta: float | None,
    y: np.ndarray,
    weights: np.ndarray,
    solve: Solver,
    predict: Predictor,
    descend: Descent | None = None,
) -> CurveFits:
    """Fit every curve of y (curve, point) under a loss of `LOSSES`.

    Args:
        delta: where the loss turns linear, in the units of the residuals; None: 1.345 robust standard deviations of the
            residuals of the least squares fit, for each curve.
        weights: (point,) or (curve, point). solve, predict: as named above. descend: of the loss on logarithms.

    Raises:
        ValueError: for a delta, or logarithms of data, that are not positive.
    """
    if delta is not None and not delta > 0:
        raise ValueError(f"fit: delta must be a positive number or None, found {delta}")
    on_logs = loss.startswith("log")
    own = weights if weights.ndim == 2 else None
    weights = np.broadcast_to(weights, y.shape)
    observed = weights > 0
    bad = observed & ~(y > 0) & np.isfinite(y)
    if on_logs and bad.any():
        curve, point = np.argwhere(bad)[0]
        datum = f"y = {y[curve, point]} at curve {curve}, point {point}"
        raise ValueError(f"fit: loss={loss!r} needs positive data, found {datum}; give it weight zero or drop it")
    if on_logs and descend is not None:
        own = np.array(weights)  # as every later step has them: one program less to compile
    curves = CurveFits(*(np.array(part) for part in solve(y, own)))
    kind = curves.raw_params.dtype.name
    curve = _loggable(predict(curves), y) if on_logs else predict(curves)
    residual = _residuals(y, curve, on_logs)
    rounding = ACCURATE[kind] * (np.ones_like(y) if on_logs else np.abs(y))
    # `edge` is where rho turns linear: delta, or 1.345 robust deviations of each curve's residuals.
    if not loss.endswith("huber"):
        edge = np.full((len(y), 1), np.inf)
    elif delta is not None:
        edge = np.full((len(y), 1), float(delta))
    else:
        size = np.where(observed & np.isfinite(residual), np.maximum(np.abs(residual), rounding), np.nan)
        size[np.isnan(size).all(axis=1)] = 0  # nanmedian would warn
        edge = np.maximum(EFFICIENT * np.nanmedian(size, axis=1, keepdims=True), np.finfo(float).tiny)
    if on_logs and descend is not None:
        lower = descend(curves.raw_params, np.where(observed, weights, 0), edge)
        curve = _loggable(predict(curves._replace(raw_params=lower)), y)
        residual = _residuals(y, curve, on_logs)
    # The part of the objective that may be the solver's rounding: a change below it is none.
    noise = np.sum(np.where(observed, weights * _rho(rounding, edge), 0), axis=1)
    objective = np.full(len(y), np.inf)
    moving = np.full(len(y), True)
    for _ in range(STEPS):
        now = np.sum(np.where(observed, weights * _rho(residual, edge), 0), axis=1)
        moving &= np.abs(objective - now) > CONVERGED_CHANGE[kind] * now + noise
        if not moving.any():
            break
        objective = now
        # A curve that has converged stays as it is, however long its neighbours take.
        if on_logs:
            # h = psi(r)/r <= 1; the working response f (1 + r) with weights w h/f^2.
            share = np.minimum(1, edge / np.maximum(np.abs(residual), np.finfo(float).tiny))
            target = np.where(observed, curve * (1 + residual), y)
            step = solve(target[moving], np.where(observed, weights * share / curve**2, 0)[moving])
        else:
            # Least squares on f + clip(y - f, -delta, delta) majorises rho: the objective cannot rise.
            target = np.where(observed, curve + np.clip(residual, -edge, edge), y)
            step = solve(target[moving], None if own is None else own[moving])
        for whole, part in zip(curves, step, strict=True):
            whole[moving] = part
        curve = _loggable(predict(curves), y) if on_logs else predict(curves)
        residual = _residuals(y, curve, on_logs)
    curve = predict(curves)
    if on_logs:
        moving |= (observed & (curve <= 0)).any(axis=1)
    # SSE and SST are those of the data, errors those of the loss, with a status for what did not converge.
    residual = _residuals(y, curve, on_logs)
    # Huber (1981, 7.6): sum w psi^2/(n - p)/(mean psi')^2 takes the place of SSE/(n - p).
    psi_squared = np.where(observed, weights * np.clip(residual, -edge, edge) ** 2, 0).sum(axis=1)
    number = np.maximum(observed.sum(axis=1), 1)
    inside = np.where(observed, np.abs(residual) <= edge, 0).sum(axis=1) / number
    share = np.minimum(1, edge / np.maximum(np.abs(residual), np.finfo(float).tiny))
    # On logarithms the last step's weights hold psi(r)/r, whose mean its errors miss.
    missed = np.where(observed, share, 0).sum(axis=1) / number if on_logs else 1.0
    data = np.where(observed, y, 0)
    mean = (weights * data).sum(1, keepdims=True) / weights.sum(1, keepdims=True)
    # The last step's problem has the sum of squares `curves.sse`; its errors are rescaled to those of the loss.
    ratio = np.where(curves.sse == 0, 1, psi_squared / inside**2 * missed / curves.sse)
    log_error = curves.log_error * np.sqrt(ratio)[:, None]
    sse = np.where(observed, weights * (y - curve) ** 2, 0).sum(axis=1)
    sst = np.where(observed, weights * (data - mean) ** 2, 0).sum(axis=1)
    unsolved = np.isin(curves.status, UNSOLVED)
    by_error = np.where((log_error <= WEAK).all(axis=1), Status.CONVERGED, Status.WEAKLY_IDENTIFIED)
    interior = np.isin(curves.status, USABLE)
    status = np.where(interior, by_error, curves.status)
    status = np.where(moving & ~unsolved & np.isfinite(sse), Status.MAX_ITERATIONS, status)
    return curves._replace(
        covariance=curves.covariance * ratio[:, None, None],
        log_error=log_error,
        sse=np.where(unsolved, np.nan, sse),
        sst=np.where(unsolved, np.nan, sst),
        status=status.astype(np.int8),
    )


@partial(jax.jit, static_argnums=0)
def descend(
    law: Law,
    log_bounds: Float[Array, "shape 2"],
    x: Covariates,
    y: Float[Array, "curve point"],
    weights: Float[Array, "curve point"],
    edge: Float[Array, "curve 1"],
    raw_params: Float[Array, "curve raw_param"],
) -> Float[Array, "curve raw_param"]:
    """From the raw parameters of each curve to a local minimum of sum_i w_i rho(log y_i - log f_i), or where they are.

    Levenberg-Marquardt with the weights psi' = [|r| < delta] of Newton's method, damped by the diagonal of the
    majoriser's matrix, which has psi(r)/r in their place and is never singular where the parameters are identified.
    """
    shapes = len(law.shapes)
    middle, half = log_bounds.mean(axis=1), (log_bounds[:, 1] - log_bounds[:, 0]) / 2
    tiny = jnp.finfo(y.dtype).tiny

    def of_curve(y: Array, w: Array, edge: Array, raw: Array) -> Array:
        unit = jnp.where(raw[shapes:] == 0, 1, jnp.abs(raw[shapes:]))  # of the coefficients

        def to_raw(q: Array) -> Array:  # the box of the shapes as in levenberg_marquardt
            return jnp.concatenate([jnp.exp(middle + half * jnp.sin(q[:shapes])), unit * q[shapes:]])

        def residual(q: Array) -> Array:
            raw = to_raw(q)
            return jnp.log(jnp.where(w > 0, y, 1)) - jnp.log(law.evaluate(raw[:shapes], raw[shapes:], x))

        def objective(r: Array) -> Array:
            size = jnp.abs(r)
            linear = edge * size - jnp.where(jnp.isinf(edge), 0, edge) ** 2 / 2
            total = jnp.sum(jnp.where(w > 0, w * jnp.where(size <= edge, size**2 / 2, linear), 0))
            return jnp.where(jnp.isfinite(total), total, jnp.inf)

        def step(now: tuple[Array, ...]) -> tuple[Array, ...]:
            q, best, damping, count, _ = now
            r, jacobian = residual(q), jax.jacfwd(residual)(q)
            jacobian = jnp.where((w > 0)[:, None], jacobian, 0)
            inside, share = jnp.abs(r) <= edge, jnp.minimum(1, edge / jnp.maximum(jnp.abs(r), tiny))
            gradient = jacobian.T @ jnp.where(w > 0, w * r * share, 0)
            size = jnp.sum(jnp.where(w > 0, w * share, 0)[:, None] * jacobian**2, axis=0)
            matrix = jacobian.T @ (jnp.where(inside, w, 0)[:, None] * jacobian)
            scale = 1 / jnp.sqrt(jnp.maximum(size, tiny))  # units in which the majoriser's diagonal is one
            matrix = matrix * scale[:, None] * scale[None] + damping * jnp.eye(len(q), dtype=q.dtype)
            new = q - scale * jnp.linalg.solve(matrix, scale * gradient)
            reached = objective(residual(new))
            better = reached < best
            gain = jnp.where(better, (best - reached) / best, jnp.inf)
            still = (gain < STILL) | (~better & (damping > 1e8))
            damping = jnp.where(better, damping / 5, damping * 4)
            return jnp.where(better, new, q), jnp.where(better, reached, best), damping, count + 1, still

        log_shape = jnp.log(raw[:shapes])
        angle = jnp.arcsin(jnp.clip((log_shape - middle) / half, -1, 1))
        q = jnp.concatenate([angle, raw[shapes:] / unit])
        start = (q, objective(residual(q)), jnp.asarray(1e-3, y.dtype), jnp.asarray(0), jnp.asarray(False))
        # NaN parameters and an exact fit stay
        end = jax.lax.while_loop(lambda n: ~n[4] & (n[3] < DESCENT) & jnp.isfinite(n[1]) & (n[1] > 0), step, start)
        return jnp.where(end[1] < start[1], to_raw(end[0]), raw)

    return jax.lax.map(lambda curve: of_curve(*curve), (y, weights, edge, raw_params))


def _loggable(curve: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.where(curve <= 0, BARELY_POSITIVE * y, curve)


def _residuals(y: np.ndarray, curve: np.ndarray, on_logs: bool) -> np.ndarray:
    return np.log(y) - np.log(curve) if on_logs else y - curve


def _rho(residual: np.ndarray, edge: np.ndarray) -> np.ndarray:
    """Huber's loss: r^2/2 up to the edge, edge |r| - edge^2/2 beyond."""
    size = np.abs(residual)
    return np.where(size <= edge, residual**2 / 2, edge * size - np.where(np.isinf(edge), 0, edge) ** 2 / 2)
