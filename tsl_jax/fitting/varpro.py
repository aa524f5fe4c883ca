"""Variable projection: least squares for separable laws, by a search over the shapes alone.

For shape theta (its logarithm is searched), basis matrix Phi(theta) and weights w, the best coefficients are linear,
so

    SSE(theta) = |sqrt(w) y|^2 - |projection of sqrt(w) y on span sqrt(w) Phi(theta)|^2.

With one shape the search is global: a grid over its whole range, then a search for the zero of the slope inside the
best bracket. No start values. Source: Golub & Pereyra, SIAM J. Numer. Anal. 10 (1973).

Everything here is a pure function of arrays, one curve at a time (callers vmap), except the grid pass, which is one
matrix product for all curves that share their weights.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from tsl_jax.laws import Covariates, Law

GRID = 128  # points over the log range of the shape: 0.15 to 0.25 apart, where SSE is smooth on a scale of about 1
STEPS = 40


Point = Float[Array, " point"]
Shape = Float[Array, " shape"]
Curves = Float[Array, "curve point"]
Weights = Float[Array, "*curve point"]  # shared, or of each curve


class Solution(NamedTuple):
    """What a solver finds for each curve."""

    log_shape: Array  # (curve, shape)
    coef: Array  # (curve, coef)
    sse: Array  # (curve,) weighted sum of squared residuals
    converged: Array  # (curve,) bool: the solver's own stopping rule was met
    n_agreeing_starts: Array  # (curve,) int8: starts that ended at the best SSE; -1 for a search without starts


def orthonormal(columns: Float[Array, "point coef"]) -> tuple[Float[Array, "point coef"], Float[Array, "coef coef"]]:
    """Q (point, coef) and R (coef, coef) of a tall thin matrix, by Gram-Schmidt done twice.

    Few columns make this faster under vmap than LAPACK, and it can be differentiated. Twice is enough for
    orthogonality at working precision (Giraud et al. 2005). A zero column gives a zero column of Q.
    """
    basis: list[Array] = []
    rows = [[jnp.zeros((), columns.dtype)] * columns.shape[1] for _ in range(columns.shape[1])]
    for j in range(columns.shape[1]):
        v = columns[:, j]
        for _ in range(2):
            for i, q in enumerate(basis):
                dot = q @ v
                rows[i][j] = rows[i][j] + dot
                v = v - dot * q
        square = v @ v
        norm = jnp.sqrt(jnp.where(square > 0, square, 1))
        rows[j][j] = jnp.where(square > 0, norm, 1)
        basis.append(v / norm)
    return jnp.stack(basis, axis=-1), jnp.stack([jnp.stack(row) for row in rows])


def project(
    law: Law, log_shape: Shape, x: Covariates, root_weight: Point, target: Point
) -> tuple[Point, Float[Array, " coef"]]:
    """Residual (point,) and coefficients (coef,) of the linear fit of `target` = sqrt(w) y for given shapes."""
    if law.basis is None:
        assert law.curve is not None
        return target - root_weight * law.curve(jnp.exp(log_shape), x), jnp.zeros(0, target.dtype)
    q, r = orthonormal(root_weight[:, None] * law.basis(jnp.exp(log_shape), x))
    along = q.T @ target
    # Twice, as in Gram-Schmidt: the residual of a nearly perfect fit keeps its digits.
    rest = target - q @ along
    more = q.T @ rest
    return rest - q @ more, jax.scipy.linalg.solve_triangular(r, along + more)


def projected_sse(law: Law, log_shape: Shape, x: Covariates, root_weight: Point, target: Point) -> Float[Array, ""]:
    """SSE(theta) after the coefficients are solved."""
    residual, _ = project(law, log_shape, x, root_weight, target)
    return residual @ residual


def grid_sse(
    law: Law, grid: Float[Array, " grid"], x: Covariates, root_weight: Weights, targets: Curves
) -> Float[Array, "curve grid"]:
    """SSE (curve, grid) of every curve at every value of one shape; `root_weight` is (point,) or (curve, point)."""
    basis = law.basis
    assert basis is not None

    def bases(root: Array) -> Array:
        """Orthonormal columns (grid, point, coef) at every grid point."""
        return jax.vmap(lambda t: orthonormal(root[:, None] * basis(jnp.exp(t)[None], x))[0])(grid)

    # SSE = |t|^2 - |Q' t|^2, for all curves and all grid points in one product.
    total = jnp.sum(targets**2, axis=-1, keepdims=True)
    if root_weight.ndim == 1:
        along = jnp.einsum("cp,gpk->cgk", targets, bases(root_weight), precision="highest")
    else:
        along = jax.vmap(lambda r, t: jnp.einsum("p,gpk->gk", t, bases(r), precision="highest"))(root_weight, targets)
    return total - jnp.sum(along**2, axis=-1)


def refine(law: Law, low: Array, high: Array, x: Covariates, root_weight: Array, target: Array) -> Array:
    """The log shape in [low, high] where the slope of SSE changes sign: false position (Illinois), with bisection.

    By the envelope theorem d SSE/d theta = -2 r . (d Phi/d theta) c, with residual r and coefficients c. The slope at
    the ends need not differ in sign (a minimum at the end of the range): the caller compares with the grid point.
    """
    basis = law.basis
    assert basis is not None

    def slope(t: Array) -> Array:
        rest, coef = project(law, t[None], x, root_weight, target)
        _, dphi = jax.jvp(lambda s: basis(jnp.exp(s)[None], x), (t,), (jnp.ones_like(t),))
        return -2 * rest @ (root_weight * (dphi @ coef))

    def step(k: Array, state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        a, at_a, b, at_b = state
        # The secant's zero, if it is between the ends; every fourth step halves, so that the bracket cannot stall.
        crossing = b - at_b * (b - a) / jnp.where(at_b == at_a, 1, at_b - at_a)
        inside = (crossing - a) * (crossing - b) < 0
        c = jnp.where(inside & (k % 4 != 3), crossing, (a + b) / 2)
        at_c = slope(c)
        same = at_c * at_b > 0  # the end a stays: halve its weight, or it would stay for ever
        return jnp.where(same, a, b), jnp.where(same, at_a / 2, at_b), c, at_c

    at_low, at_high = jax.vmap(slope)(jnp.stack([low, high]))
    return jax.lax.fori_loop(0, STEPS, step, (low, at_low, high, at_high))[2]


def without_constants(law: Law, log_bounds: Array, x: Covariates, root_weight: Array, targets: Array) -> Array:
    """Targets less their projection on the columns that do not depend on the shape, which changes no SSE(theta).

    Without it |y|^2 swamps the differences between grid points in float32.
    """
    basis = law.basis
    assert basis is not None
    low, high = (basis(jnp.exp(bound), x) for bound in (log_bounds[:, 0], log_bounds[:, 1]))
    fixed = jnp.where(jnp.all(low == high, axis=0), low, 0)

    def rest(root: Array, target: Array) -> Array:
        q, _ = orthonormal(root[:, None] * fixed)
        return target - q @ (q.T @ target)

    return jax.vmap(rest, (None if root_weight.ndim == 1 else 0, 0))(root_weight, targets)


def solve(
    law: Law, log_bounds: Float[Array, "shape 2"], x: Covariates, root_weight: Weights, targets: Curves
) -> Solution:
    """Fit a separable law with one shape, or none (plain linear least squares), to every curve.

    Args:
        law: separable, at most one shape. log_bounds: (1, 2) range of the log shape. x: covariates, a value a point.
        root_weight: sqrt of the weights, (point,) shared or (curve, point). targets: sqrt(w) y, (curve, point).
    """
    share = None if root_weight.ndim == 1 else 0
    if not law.shapes:
        shapeless = jnp.zeros(0, targets.dtype)
        residual, coef = jax.vmap(lambda r, t: project(law, shapeless, x, r, t), (share, 0))(root_weight, targets)
        sse = jnp.sum(residual**2, axis=-1)
        no_starts = jnp.full(sse.shape, -1, jnp.int8)
        return Solution(jnp.zeros((len(targets), 0), targets.dtype), coef, sse, jnp.isfinite(sse), no_starts)
    residual_targets = without_constants(law, log_bounds, x, root_weight, targets)
    grid = jnp.linspace(log_bounds[0, 0], log_bounds[0, 1], GRID)
    best = jnp.argmin(grid_sse(law, grid, x, root_weight, residual_targets), axis=-1)
    # The minimum lies between the neighbours of the best grid point.
    low, high = grid[jnp.maximum(best - 1, 0)], grid[jnp.minimum(best + 1, GRID - 1)]

    def solve_curve(low: Array, high: Array, at_grid: Array, root: Array, target: Array) -> tuple[Array, Array, Array]:
        candidates = jnp.stack([refine(law, low, high, x, root, target), at_grid])
        residuals, coefs = jax.vmap(lambda t: project(law, t[None], x, root, target))(candidates)
        sse = jnp.sum(residuals**2, axis=-1)
        keep = jnp.argmin(sse)  # the grid point itself wins where the slope was flat or not finite
        return candidates[keep][None], coefs[keep], sse[keep]

    log_shape, coef, sse = jax.vmap(solve_curve, (0, 0, 0, share, 0))(low, high, grid[best], root_weight, targets)
    return Solution(log_shape, coef, sse, jnp.isfinite(sse), jnp.full(sse.shape, -1, jnp.int8))
