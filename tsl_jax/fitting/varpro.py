"""Variable projection: least squares for separable laws, by a search over the shapes alone.

For shape theta (its logarithm is searched), basis matrix Phi(theta) and weights w, the best coefficients are linear,
so

    SSE(theta) = |sqrt(w) y|^2 - |projection of sqrt(w) y on span sqrt(w) Phi(theta)|^2.

With one shape the search is global: a grid over its whole range, then Newton steps inside the best bracket, halving
where Newton leaves it. No start values. Source: Golub & Pereyra, SIAM J. Numer. Anal. 10 (1973).

Everything here is a pure function of arrays, one curve at a time (callers vmap), except the grid pass, which is one
matrix product for all curves that share their weights.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from tsl_jax.laws import Covariates, Law

GRID = 128  # points over the log range of the shape: 0.15 to 0.25 apart, where SSE is smooth on a scale of about 1
NEWTON_STEPS = 40


class Solution(NamedTuple):
    """What a solver finds for each curve."""

    log_shape: Array  # (curve, shape)
    coef: Array  # (curve, coef)
    sse: Array  # (curve,) weighted sum of squared residuals
    settled: Array  # (curve,) bool: the solver's own stopping rule was met


def orthonormal(columns: Array) -> tuple[Array, Array]:
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


def project(law: Law, log_shape: Array, x: Covariates, root_weight: Array, target: Array) -> tuple[Array, Array]:
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


def projected_sse(law: Law, log_shape: Array, x: Covariates, root_weight: Array, target: Array) -> Array:
    """SSE(theta) after the coefficients are solved."""
    residual, _ = project(law, log_shape, x, root_weight, target)
    return residual @ residual


def grid_sse(law: Law, grid: Array, x: Covariates, root_weight: Array, targets: Array) -> Array:
    """SSE (curve, grid) of every curve at every value of one shape; `root_weight` is (point,) or (curve, point)."""
    basis = law.basis
    assert basis is not None

    def frames(root: Array) -> Array:
        return jax.vmap(lambda t: orthonormal(root[:, None] * basis(jnp.exp(t)[None], x))[0])(grid)

    total = jnp.sum(targets**2, axis=-1, keepdims=True)
    if root_weight.ndim == 1:
        along = jnp.einsum("cp,gpk->cgk", targets, frames(root_weight), precision="highest")
    else:
        along = jax.vmap(lambda r, t: jnp.einsum("p,gpk->gk", t, frames(r), precision="highest"))(root_weight, targets)
    return total - jnp.sum(along**2, axis=-1)


def refine(law: Law, low: Array, high: Array, x: Covariates, root_weight: Array, target: Array) -> Array:
    """The log shape in [low, high] where the slope of SSE vanishes: Newton, with halving as the safeguard."""

    def sse(t: Array) -> Array:
        return projected_sse(law, t[None], x, root_weight, target)

    def step(_: int, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        t, low, high = state
        slope, curvature = jax.jvp(jax.grad(sse), (t,), (jnp.ones_like(t),))
        low, high = jnp.where(slope < 0, t, low), jnp.where(slope > 0, t, high)
        newton = t - slope / jnp.where(curvature > 0, curvature, 1)
        inside = (curvature > 0) & (newton >= low) & (newton <= high)
        return jnp.where(inside, newton, (low + high) / 2), low, high

    return jax.lax.fori_loop(0, NEWTON_STEPS, step, ((low + high) / 2, low, high))[0]


def solve(law: Law, log_bounds: Array, x: Covariates, root_weight: Array, targets: Array) -> Solution:
    """Fit a separable law with one shape, or none (plain linear least squares), to every curve.

    Args:
        law: separable, at most one shape. log_bounds: (1, 2) range of the log shape. x: covariates, point-wise
        (point,).
        root_weight: sqrt of the weights, (point,) shared or (curve, point). targets: sqrt(w) y, (curve, point).
    """
    share = None if root_weight.ndim == 1 else 0
    if not law.shapes:
        shapeless = jnp.zeros(0, targets.dtype)
        residual, coef = jax.vmap(lambda r, t: project(law, shapeless, x, r, t), (share, 0))(root_weight, targets)
        sse = jnp.sum(residual**2, axis=-1)
        return Solution(jnp.zeros((len(targets), 0), targets.dtype), coef, sse, jnp.isfinite(sse))
    grid = jnp.linspace(log_bounds[0, 0], log_bounds[0, 1], GRID)
    best = jnp.argmin(grid_sse(law, grid, x, root_weight, targets), axis=-1)
    low, high = grid[jnp.maximum(best - 1, 0)], grid[jnp.minimum(best + 1, GRID - 1)]

    def one(low: Array, high: Array, at_grid: Array, root: Array, target: Array) -> tuple[Array, Array, Array]:
        candidates = jnp.stack([refine(law, low, high, x, root, target), at_grid])
        residuals, coefs = jax.vmap(lambda t: project(law, t[None], x, root, target))(candidates)
        sse = jnp.sum(residuals**2, axis=-1)
        keep = jnp.argmin(sse)  # the grid point itself wins where Newton met a flat or non-finite slope
        return candidates[keep][None], coefs[keep], sse[keep]

    log_shape, coef, sse = jax.vmap(one, (0, 0, 0, share, 0))(low, high, grid[best], root_weight, targets)
    return Solution(log_shape, coef, sse, jnp.isfinite(sse))
