"""Errors of fitted parameters.

With J the Jacobian of the weighted curve in q = (log shapes, coefficients), n points of positive weight and p =
len(q):

    cov(q) = SSE/(n - p) (J^T J)^-1,    cov(published) = G cov(q) G^T,   G = d published / d q  (delta method).

Weights are relative: multiplying all of them by a constant changes nothing, unless they are declared to be
inverse variances.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tsl_jax.fitting.varpro import grid_sse, orthonormal, projected_sse, solve, without_constants
from tsl_jax.laws import Covariates, Law

PROFILE = 1024  # points over the range of a shape: .02 apart
BISECTIONS = 40  # of the gap between two of them
SLICES = 129  # shapes within an interval at which coefficients are looked at
GROWTH = 0.1  # d log coefficient/d log shape beyond which a coefficient has no end


def jacobian(law: Law, q: Array, x: Covariates) -> Array:
    """d curve / d q, (point, p)."""
    shapes = len(law.shapes)
    return jax.jacfwd(lambda q: law.evaluate(jnp.exp(q[:shapes]), q[shapes:], x))(q)


def to_params(law: Law, q: Array) -> Array:
    """Published parameters (param,) of q = (log shapes, coefficients)."""
    shapes = len(law.shapes)
    return law.to_params(jnp.concatenate([jnp.exp(q[:shapes]), q[shapes:]]))


def unscaled_cov(law: Law, q: Array, x: Covariates, root_weight: Array) -> Array:
    """(J^T J)^-1 of the weighted curve in q, (p, p); infinite or NaN where the data do not identify a parameter."""
    # J = Q R gives (J^T J)^-1 = R^-1 R^-T without squaring the condition of J.
    columns = root_weight[:, None] * jacobian(law, q, x)
    size = jnp.sqrt(jnp.sum(columns**2, axis=0))  # columns of very different size: scale first
    _, r = orthonormal(columns / size[None])
    inverse = jax.scipy.linalg.solve_triangular(r, jnp.eye(len(law.raw_params), dtype=q.dtype)) / size[:, None]
    return inverse @ inverse.T


def params_with_covariance(law: Law, q: Array, cov: Array) -> tuple[Array, Array]:
    """Published parameters (param, curve) and their covariance (param, param, curve), by the delta method.

    Args:
        q: (p, curve), log shapes and coefficients. cov: (p, p, curve), their covariance.
    """
    if law.params_from_raw is None:  # an order, and the exponential of the shapes
        shapes = len(law.shapes)
        order = np.array([law.raw_params.index(name) for name in law.params])
        values = jnp.concatenate([jnp.exp(q[:shapes]), q[shapes:]])[order]
        slope = jnp.concatenate([jnp.exp(q[:shapes]), jnp.ones_like(q[shapes:])])[order]
        return values, cov[order][:, order] * slope[:, None] * slope[None]
    values = jax.vmap(partial(to_params, law), -1, -1)(q)
    g = jax.vmap(jax.jacfwd(partial(to_params, law)), -1, -1)(q)
    return values, jnp.einsum("ikc,klc,jlc->ijc", g, cov, g, precision="highest")


def profile_interval(law: Law, y: np.ndarray, x: Covariates, weights: np.ndarray | None = None, level: float = 0.9):
    """Profile interval of the shape of a one-shape law, (low, high) for each curve, by likelihood ratio.

    All theta with SSE(theta) <= SSE_min (1 + F/(n - p)), where F is the quantile of F(1, n - p). Where the shape is
    weak it covers as it says, unlike estimate +- standard error. An end beyond the range of the shape is 0 or infinite.

    Args:
        y: (curve, point) without NaN. weights: (point,) or (curve, point), relative.
        level: probability that the interval holds the shape.

    Raises:
        ValueError: for a law that is not separable with one shape.
    """
    with jax.enable_x64(True):
        low, high, _ = _profile(law, *_profile_problem(law, y, x, weights, level)[:-1])
    return np.exp(np.asarray(low)), np.exp(np.asarray(high))


def profile_intervals(
    law: Law, y: np.ndarray, x: Covariates, weights: np.ndarray | None = None, level: float = 0.9
) -> tuple[np.ndarray, np.ndarray]:
    """`profile_interval` of the shape, and as much for each coefficient: (low, high), each (curve, raw_param).

    At a shape theta the coefficients of curves with SSE <= limit are an ellipsoid about the best ones,

        c_k = c_k(theta) +- sqrt((limit - SSE(theta)) [(Phi' W Phi)^-1]_kk),

    and the interval of a coefficient is the union of these over theta, on a grid over the interval of the shape. A
    coefficient that grows with the shape at an end of its range that is within the interval has no end either.
    """
    with jax.enable_x64(True):
        *problem, origin = _profile_problem(law, y, x, weights, level)
        low, high, limit = _profile(law, *problem)
        bounds, points, root, targets, _ = problem
        least, greatest = _profile_coefs(law, bounds, points, root, targets, low, high, limit, origin)
    ends = ((low, least), (high, greatest))
    low, high = (np.column_stack([np.exp(shape), coefs]) for shape, coefs in ends)
    return low, high


def _profile_problem(law: Law, y: np.ndarray, x: Covariates, weights: np.ndarray | None, level: float) -> list[Any]:
    """Range of the log shape, x from the law's origin, sqrt(w), sqrt(w) y, the largest SSE/SSE_min, and the origin."""
    from scipy.stats import f as f_distribution  # late: a second to import

    if law.basis is None or len(law.shapes) != 1:
        raise ValueError(f"profile_interval: needs a separable law with one shape, {law.name} has {law.shapes}")
    y = np.atleast_2d(np.asarray(y, float))
    share = np.ones(y.shape[1]) if weights is None else np.asarray(weights, float)
    free = (np.broadcast_to(share, y.shape) > 0).sum(axis=1) - len(law.raw_params)
    # SSE(theta) <= SSE_min (1 + F/(n - p)): without a free point every shape is within.
    at_least_one = np.maximum(free, 1)
    factor = np.where(free > 0, 1 + f_distribution.ppf(level, 1, at_least_one) / at_least_one, np.inf)
    points = jax.tree.map(jnp.asarray, dict(x) if isinstance(x, Mapping) else x)
    origin = law.origin(points)
    points = points - origin if origin else points
    root = jnp.sqrt(jnp.asarray(share))
    targets = jnp.atleast_2d(root) * np.where(share > 0, y, 0)
    return [jnp.log(law.bounds(points)), points, root, targets, factor, jnp.asarray(float(origin))]


@partial(jax.jit, static_argnums=0)
def _profile(
    law: Law, bounds: Array, x: Covariates, root: Array, targets: Array, factor: Array
) -> tuple[Array, Array, Array]:
    """Ends of all log shapes whose SSE is at most `factor` times the least, and that SSE, all (curve,)."""
    solution = solve(law, bounds, x, root, targets)
    rounding = (64 * jnp.finfo(targets.dtype).eps) ** 2
    best, limit = solution.log_shape[:, 0], solution.sse * factor + rounding * jnp.sum(targets**2, axis=-1)
    lowest, highest = bounds[0]
    grid = jnp.linspace(lowest, highest, PROFILE)
    inside = grid_sse(law, grid, x, root, without_constants(law, bounds, x, root, targets)) <= limit[:, None]

    def crossing(inner: Array, step: Array, end: Array, limit: Array, root: Array, target: Array) -> Array:
        """Where SSE meets the limit, from `inner` within to the next grid point; infinite where it does not."""

        def within(t: Array) -> Array:
            return ~(projected_sse(law, t[None], x, root, target) > limit)  # NaN excludes nothing

        def halve(_: Array, pair: tuple[Array, Array]) -> tuple[Array, Array]:
            middle = (pair[0] + pair[1]) / 2
            good = within(middle)
            return jnp.where(good, middle, pair[0]), jnp.where(good, pair[1], middle)

        met = jax.lax.fori_loop(0, BISECTIONS, halve, (inner, jnp.clip(inner + step, lowest, highest)))[0]
        return jnp.where(within(end), jnp.sign(step) * jnp.inf, met)

    crossings = jax.vmap(crossing, (0, None, None, 0, None if root.ndim == 1 else 0, 0))
    # The least SSE may lie between two grid points that are both outside.
    low = jnp.minimum(best, jnp.min(jnp.where(inside, grid, jnp.inf), axis=1))
    high = jnp.maximum(best, jnp.max(jnp.where(inside, grid, -jnp.inf), axis=1))
    step = grid[1] - grid[0]
    low = crossings(low, -step, lowest, limit, root, targets)
    return low, crossings(high, step, highest, limit, root, targets), limit


@partial(jax.jit, static_argnums=0)
def _profile_coefs(
    law: Law, bounds: Array, x: Covariates, root: Array, targets: Array, low: Array, high: Array, limit: Array, x0: Any
) -> tuple[Array, Array]:
    """Least and greatest coefficients (curve, coef) over log shapes from low to high (curve,), of x measured from zero.

    x itself is measured from x0.
    """
    basis, (lowest, highest) = law.basis, bounds[0]
    assert basis is not None

    def ends_of_curve(curve: tuple[Array, Array, Array, Array, Array]) -> tuple[Array, Array]:
        first, last, limit, root, target = curve

        def ends_at(t: Array) -> tuple[Array, Array]:
            q, r = orthonormal(root[:, None] * basis(jnp.exp(t)[None], x))
            along = q.T @ target
            rest = target - q @ along
            inverse = jax.scipy.linalg.solve_triangular(r, jnp.eye(len(along), dtype=r.dtype))
            coef = inverse @ along
            half = jnp.sqrt(jnp.maximum(limit - rest @ rest, 0) * jnp.sum(inverse**2, axis=1))
            scale = 1.0 if law.shift is None else law.shift(jnp.exp(t)[None], x0)
            return (coef - half) * scale, (coef + half) * scale

        shapes = jnp.linspace(jnp.maximum(first, lowest), jnp.minimum(last, highest), SLICES)
        smallest, largest = jax.vmap(ends_at)(shapes)

        def greatest(values: Array) -> Array:
            """Of (slice, coef); infinite where it grows as a power of the shape at an end that ends nothing."""
            found, infinity = jnp.nanmax(values, axis=0), jnp.asarray(jnp.inf, values.dtype)
            for end, edge, inner in ((first, 0, 1), (last, -1, -2)):
                growth = (values[edge] - values[inner]) / jnp.abs(shapes[1] - shapes[0])
                found = jnp.where(jnp.isinf(end) & (growth > GROWTH * jnp.abs(values[edge])), infinity, found)
            return found

        return -greatest(-smallest), greatest(largest)

    return jax.lax.map(ends_of_curve, (low, high, limit, jnp.broadcast_to(root, targets.shape), targets))
