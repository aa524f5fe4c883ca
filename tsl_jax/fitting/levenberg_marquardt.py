"""The general solver: jaxopt's Levenberg-Marquardt, for a residual of one's own and for laws.

One step solves (J^T J + mu I) d = -J^T r by a QR factorisation of J stacked on sqrt(mu) I, in variables of size one:
mu = 0 is Gauss-Newton's step, a large mu a short one down the gradient.
`least_squares` minimises |r(b)|^2 from one start: parameters in units of their own size, several first values of mu,
units renewed in rounds, then Gauss-Newton steps that are judged by the relative offset (Bates & Watts 1981) instead
of by a sum of squares that rounding hides. It is certified on the nonlinear problems of the NIST Statistical
Reference Datasets. `solve` fits laws: logs of the shapes, linear coefficients projected out, starts spread over the box
of the shapes by an additive recurrence (Roberts' R sequence). The box is kept by t = mid + half * sin(u), as in MINUIT,
so that a solution may lie on the bound itself.
Source: Madsen & Nielsen, Introduction to Optimization and Data Fitting; jaxopt's LevenbergMarquardt.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from tsl_jax.fitting.varpro import Curves, Solution, Weights, project
from tsl_jax.laws import Covariates, Law

with warnings.catch_warnings():  # jaxopt announces at import that it is no longer maintained; it does what we need
    warnings.simplefilter("ignore", DeprecationWarning)
    from jaxopt import LevenbergMarquardt

Residual = Callable[[Array], Array]

DAMPINGS = (1e-6, 1e-3, 1.0)  # first mu over the largest curvature: from Gauss-Newton to short steps downhill
ROUNDS = 10  # times the units are renewed: a parameter may end orders of magnitude away from its start
STEPS = 100  # in a round
POLISH = 12  # Gauss-Newton steps; on the most nonlinear NIST problems each gains half a digit
FLOOR = 1e-8  # no unit is smaller than this times the scale: a parameter may cross zero
AGREE = 1e-6  # relative difference of SSE within which two ends are one optimum
PROBES = 64  # per shape: points of the box at which SSE is looked at before the best become starts
MAXITER = 300  # of the search for a law


class LeastSquares(NamedTuple):
    """The minimum of |residual(b)|^2, with p parameters and n points."""

    params: Array  # (p,)
    stderr: Array  # (p,)
    covariance: Array  # (p, p) sse/(n - p) (J^T J)^-1
    sse: Array  # |residual|^2
    sd: Array  # residual standard deviation, sqrt(sse/(n - p))
    agree: Array  # how many of the DAMPINGS ended at this SSE
    converged: Array  # bool: a Gauss-Newton step would change nothing that matters


def least_squares(
    residual: Residual, start: Float[Array, " p"], *, scale: Float[Array, " p"] | None = None
) -> LeastSquares:
    """Minimise |residual(b)|^2 from `start` (p,); pure, so that it can be jitted and vmapped over starts.

    A local search: it finds the valley that the start lies in. It needs jax's float64 to deliver its digits.

    Args:
        residual: b (p,) -> (n,), differentiable. Where it is not finite, the step is refused.
        start: where to begin. scale: sizes the parameters may have, default |start|, and one where that is zero.

    Returns:
        `LeastSquares`. Singular problems have infinite or NaN errors and are not converged.
    """
    scale = jnp.where(start == 0, 1, jnp.abs(start)) if scale is None else jnp.asarray(scale, start.dtype)
    dampings = jnp.asarray(DAMPINGS, start.dtype)
    ends = jax.lax.map(lambda damping: search(residual, start, scale, damping, STEPS, ROUNDS), dampings)  # see `solve`
    best, agree = best_of(ends.sse, jnp.sum(residual(start) ** 2))
    return _polished(residual, ends.params[best], agree)


def best_of(sse: Array, total: Array) -> tuple[Array, Array]:
    """Index of the smallest SSE of several searches, and how many agree with it; `total` sets what rounding allows."""
    sse = jnp.where(jnp.isfinite(sse), sse, jnp.inf)
    best = jnp.argmin(sse)
    rounding = total * (64 * jnp.finfo(sse.dtype).eps) ** 2
    return best, jnp.sum(sse <= sse[best] * (1 + AGREE) + rounding)


class End(NamedTuple):
    """Where a search ended."""

    params: Array
    sse: Array
    stopped: Array  # bool: by its own rule, not for want of steps


class _State(NamedTuple):
    """A search under way: b = unit * u."""

    u: Array
    unit: Array
    size: Array  # norm of the residual when the round began
    inner: Any  # jaxopt's state
    step: Array  # in this round
    rounds: Array  # that are over
    stopped: Array
    going: Array


def search(residual: Residual, start: Array, scale: Array, damping: Array | float, steps: int, rounds: int) -> End:
    """jaxopt's steps from `start`; every round measures parameters and residual in units of their size at its start.

    A round ends at rest or after `steps` steps; the search, with a round at rest that did not lower SSE.
    """

    def begin(b: Array, unit: Array, size: Array, rounds_over: Array) -> _State:
        u, no = b / unit, jnp.asarray(False)
        # A state before any evaluation: its first update stays at u, and measures there. It replaces jaxopt's
        # `init_state`, whose residual and Jacobian would be compiled a second time.
        shapes = jax.eval_shape(_solver(residual, unit, size).init_state, u)
        inner, one = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes), jnp.ones((), u.dtype)
        inner = inner._replace(value=jnp.finfo(u.dtype).max * one, damping_factor=one, increase_factor=2 * one)
        return _State(u, unit, size, inner, jnp.asarray(0), rounds_over, no, ~no)

    def step(now: _State) -> _State:
        u, inner = _solver(residual, now.unit, now.size).update(now.u, now.inner)
        broken = ~jnp.isfinite(inner.damping_factor) | ~jnp.all(jnp.isfinite(u))  # stay where all was well
        u, value = jnp.where(broken, now.u, u), jnp.where(broken, now.inner.value, inner.value)
        curvature, first = jnp.diagonal(inner.jtj), now.step == 0
        mu = jnp.where(first, damping * jnp.max(curvature), inner.damping_factor)
        # At rest: the step is lost in rounding, or r is at right angles to every column of J: |J_k' r| << |J_k| |r|.
        eps = jnp.finfo(u.dtype).eps
        still = jnp.linalg.norm(inner.delta) <= 1e4 * eps * jnp.linalg.norm(u)
        angle = jnp.abs(inner.gradient) <= 1e3 * eps * jnp.sqrt(curvature * 2 * inner.value)
        stopped = ~first & (broken | still | jnp.all(angle))
        # In units of the round's first residual: 2 value = |r|^2/|r_0|^2, so less than one is progress.
        over, fell = stopped | (now.step >= steps), 2 * value < 1 - 1e-9
        going = ~over | ((fell | ~stopped) & (now.rounds + 1 < rounds))
        b = now.unit * u
        size = now.size * jnp.sqrt(jnp.where(value > 0, 2 * value, 1))  # an exact fit has no size to renew
        renewed = begin(b, jnp.maximum(jnp.abs(b), FLOOR * scale), size, now.rounds + 1)
        inner = inner._replace(damping_factor=mu, value=value)
        same = _State(u, now.unit, now.size, inner, now.step + 1, now.rounds, stopped, going)
        return jax.tree.map(lambda new, old: jnp.where(over & going, new, old), renewed, same)

    size = jnp.sqrt(jnp.sum(residual(start) ** 2))
    first = begin(start, scale, jnp.where(jnp.isfinite(size) & (size > 0), size, 1), jnp.asarray(0))
    end = jax.lax.while_loop(lambda now: now.going, step, first)
    return End(end.unit * end.u, 2 * end.inner.value * end.size**2, end.stopped)


def _solver(residual: Residual, unit: Array, size: Array) -> LevenbergMarquardt:
    """jaxopt's solver of |r(unit u)|^2/size^2 in u."""
    return LevenbergMarquardt(
        _guarded(lambda u: residual(unit * u) / size), solver="qr", materialize_jac=True, implicit_diff=False
    )


def _guarded(residual: Residual) -> Residual:
    """The residual without NaN and infinity, in value and derivative: jaxopt multiplies what it refuses by zero."""

    @jax.custom_jvp
    def finite(u: Array) -> Array:
        return _clipped(residual(u), jnp.inf)

    @finite.defjvp
    def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
        value, slope = jax.jvp(residual, primals, tangents)
        return _clipped(value, jnp.inf), _clipped(slope, 0)

    return finite


def _clipped(a: Array, instead_of_nan: float) -> Array:
    big = jnp.finfo(a.dtype).max ** 0.1  # its sixth power is still finite
    return jnp.clip(jnp.where(jnp.isnan(a), instead_of_nan, a), -big, big)


def _polished(residual: Residual, start: Array, agree: Array) -> LeastSquares:
    """Gauss-Newton steps from `start` while the relative offset shrinks, and the errors at the end.

    The offset |Q^T r|/|r| is the sine of the angle between r and the normal of the surface of the model: it goes to
    zero at the optimum, where differences of |r|^2 are lost in rounding already.
    """
    count = len(start)

    def look(_: Array, best: tuple[Array, ...]) -> tuple[Array, ...]:
        """Try the kept b less its step; keep it if the offset shrinks, else quarter the step."""
        b = best[0] - best[1]
        rest, jacobian = residual(b), jax.jacfwd(residual)(b)
        size = jnp.sqrt(jnp.sum(jacobian**2, axis=0))  # columns of very different size: scale first
        q, r = jnp.linalg.qr(jacobian / size[None])
        along = q.T @ rest  # the step is R^-1 Q^T r
        inverse = jax.scipy.linalg.solve_triangular(r, jnp.eye(count, dtype=b.dtype)) / size[:, None]
        sse = jnp.sum(rest**2)
        offset = jnp.sqrt(jnp.sum(along**2) / jnp.where(sse > 0, sse, 1))
        better = (sse <= best[2] * (1 + 1e-8)) & (offset < best[3])
        moved = (b, inverse @ along, sse, offset, inverse)
        stayed = (best[0], best[1] / 4, *best[2:])
        return tuple(jnp.where(better, new, old) for new, old in zip(moved, stayed, strict=True))

    infinite = jnp.asarray(jnp.inf, start.dtype)
    nowhere = (start, jnp.zeros_like(start), infinite, infinite, jnp.full((count, count), jnp.nan, start.dtype))
    b, step, sse, offset, inverse = jax.lax.fori_loop(0, POLISH, look, nowhere)
    free = jax.eval_shape(residual, b).size - count
    sd = jnp.sqrt(sse / (free if free > 0 else jnp.nan))
    covariance = inverse @ inverse.T * sd**2
    converged = jnp.isfinite(sse) & ((offset <= 1e-6) | jnp.all(jnp.abs(step) <= 1e-9 * jnp.abs(b)))
    return LeastSquares(b, jnp.sqrt(jnp.diagonal(covariance)), covariance, sse, sd, agree, converged)


def quasi_random(count: int, dimensions: int) -> Float[np.ndarray, "count dimension"]:
    """Points (count, dimensions) that fill the unit cube evenly, Roberts' R sequence.

    Point k is 1/2 + k (g^-1, g^-2, ...) modulo one, with g the root of g^(d+1) = g + 1: for d = 1 the golden ratio.
    """
    ratio = 2.0
    for _ in range(60):  # a fixed-point iteration
        ratio = (1 + ratio) ** (1 / (dimensions + 1))
    steps = ratio ** -np.arange(1.0, dimensions + 1)
    return (0.5 + np.arange(1, count + 1)[:, None] * steps) % 1.0


def solve(
    law: Law, log_bounds: Float[Array, "shape 2"], x: Covariates, root_weight: Weights, targets: Curves
) -> Solution:
    """Fit any law to every curve; arguments as in `varpro.solve`, with log_bounds (shape, 2)."""
    middle, half = log_bounds.mean(axis=1), (log_bounds[:, 1] - log_bounds[:, 0]) / 2
    probes = jnp.asarray(np.arcsin(2 * quasi_random(PROBES * len(law.shapes), len(law.shapes)) - 1), targets.dtype)
    unit = jnp.ones(len(law.shapes), targets.dtype)  # an angle: the box is pi wide
    tiny = jnp.finfo(targets.dtype).tiny

    def solve_curve(root: Array, target: Array) -> Solution:
        scale = jnp.sqrt(jnp.maximum(jnp.sum(target**2), tiny))

        def residual(u: Array) -> Array:
            return project(law, middle + half * jnp.sin(u), x, root, target)[0] / scale

        # SSE at many points of the box, coefficients projected out; the best become starts.
        sse = jax.vmap(lambda u: jnp.sum(residual(u) ** 2))(probes)
        order = jnp.argsort(jnp.where(jnp.isfinite(sse), sse, jnp.inf))
        starts = probes[order[: law.starts]]
        ends = jax.lax.map(lambda u: search(residual, u, unit, DAMPINGS[0], MAXITER, rounds=1), starts)
        keep, agree = best_of(ends.sse, jnp.ones((), targets.dtype))
        log_shape = middle + half * jnp.sin(ends.params[keep])
        rest, coef = project(law, log_shape, x, root, target)
        return Solution(log_shape, coef, rest @ rest, ends.stopped[keep], agree.astype(jnp.int8))

    # Curve by curve, start by start: on CPU, LAPACK's QR of a batch waits within XLA's pool for other threads of that
    # pool, and two such programs at once take all of them and wait for ever (jaxlib 0.10, two cores).
    roots = jnp.broadcast_to(root_weight, targets.shape)
    return jax.lax.map(lambda curve: solve_curve(*curve), (roots, targets))
