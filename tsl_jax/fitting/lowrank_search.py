"""Compressed variable projection: laws with one shape, curves that share their grid and weights, by the million.

The columns Phi(theta) of a separable law, theta = log shape, sweep a numerically low-rank family of curves: K = 10 to
30 orthonormal vectors hold all of it to working accuracy. `lowrank_basis.prepare` derives them once, on the host in
float64, so that the fit of a curve y needs a single product with the data, z = Q' (sqrt(w) y). With u(theta) what the
varying columns add to the fixed ones, made orthonormal,

    SSE(theta) = |sqrt(w) y|^2 - |z_fixed|^2 - |u(theta)' z|^2

is searched globally over the nodes of a uniform grid, then by safeguarded Newton steps on a local polynomial between
the nodes, at a cost that does not depend on the number of points. What coefficients and errors need are such
polynomials too; SSE comes from a pass over the residuals of the law itself. Basis and polynomials are checked against
the law between the nodes (`lowrank_basis.py`). With E R0 the fixed columns, V = E C + U R the varying ones, and their
derivative dV/d theta R^-1 = [E U] X + W T for orthonormal [E U W], the solution and its covariance (over SSE/(n - p))
are, with f = U'z,

    coef_varying = R^-1 f,   coef_fixed = R0^-1 z_fixed - L f,   L = R0^-1 C R^-1,
    var(theta) = 1/|T f|^2,  cov(theta, coef) = -b var(theta),  cov(coef) = H + b b' var(theta),
    b = [R0^-1 X_E f - L X_U f, R^-1 X_U f],   H = [R0^-1 R0^-1' + L L', -L R^-1'; ., R^-1 R^-1'].

Curves lie along the last axis of small arrays, so that what follows the product is vectorised over curves.
Source: Golub & Pereyra, SIAM J. Numer. Anal. 10 (1973); the compression is our own.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from tsl_jax.fitting.lowrank_basis import TableLayout, Tables
from tsl_jax.laws import Law

STEPS = 4  # Newton steps from the best node, which is near


class TableSolution(NamedTuple):
    """Fits; the curve is the last axis of everything."""

    log_shape: Array  # (curve,)
    coef: Array  # (coef, curve) in the law's order
    unscaled_cov: Array  # (1 + coef, 1 + coef, curve): covariance of (log shape, coefs) over SSE/(n - p)
    sse: Array  # (curve,)
    sst: Array  # (curve,) about the weighted mean
    mean: Array  # (curve,) weighted
    line: Array  # (curve,) bool: a straight line is as good
    finite: Array  # (curve,) bool: the data are


def solve(law: Law, tables: Tables, y: Float[Array, "curve point"]) -> TableSolution:
    """Fit every curve of y (curve, point); pure, and jit-able with `law` static."""
    layout = tables.layout
    n_fixed, count = len(layout.fixed), len(layout.fixed) + layout.vectors
    if layout.masked:
        y = jnp.where(tables.weights > 0, y, 0)
    # Without the barriers XLA fuses product and transposition into one five times slower than both.
    z = jax.lax.optimization_barrier(jnp.dot(y, tables.basis, precision="highest"))
    z = jax.lax.optimization_barrier(z.T)
    log_shape, f, scalars = _search(tables, z[n_fixed:count])
    coef, unscaled_cov = _coefficients(tables, f, scalars, z[:n_fixed])
    mean = tables.mean @ z
    sse = _sse(law, tables, log_shape, coef, y)
    # Residual, fixed columns and u are orthogonal: SST needs no pass of its own. Where the fixed columns are the
    # constant alone, the two last terms are equal and would only round.
    sst = sse + jnp.sum(f**2, axis=0)
    if not layout.constant:
        sst = sst + jnp.sum(z[:n_fixed] ** 2, axis=0) - jnp.sum(tables.weights) * mean**2
    line = jnp.sum(z[count:] ** 2, axis=0) >= jnp.sum(f**2, axis=0) * (1 - 8 * jnp.finfo(y.dtype).eps)
    return TableSolution(log_shape, coef, unscaled_cov, sse, sst, mean, line, jnp.isfinite(sst))


def _search(tables: Tables, z: Array) -> tuple[Array, Array, Array]:
    """The log shape (curve,) of the least SSE, f = u' z (V, curve) there, and all scalars (S, curve)."""
    layout, dtype = tables.layout, z.dtype
    n_varying, K, G, M = len(layout.varying), layout.vectors, layout.nodes, layout.degree
    edge = M // 2
    curve = jnp.arange(z.shape[1])
    node_basis = tables.node_basis.reshape(n_varying * G, K)
    # |u' z|^2 at every node inside the range is what the varying columns explain there: the largest wins.
    projections = jnp.dot(node_basis, z, precision="highest").reshape(n_varying, G, -1)
    explained = jnp.sum(projections**2, axis=0)[edge : G - edge]
    node = jnp.arange(edge, G - edge, dtype=jnp.int32)[:, None]
    # A vectorised argmax: the first node that reaches the maximum.
    best = jnp.min(jnp.where(explained == jnp.max(explained, axis=0, keepdims=True), node, G - edge - 1), axis=0)
    at_best = projections[:, best, curve]
    entries = jax.lax.optimization_barrier(tables.by_node[best].T)  # (entries, curve)
    u_best = entries[: n_varying * K].reshape(n_varying, K, -1)
    polynomials = entries[n_varying * K :].reshape(M, -1, z.shape[1])
    # u(s)' z = u(s)' (z - u_b u_b' z) + (u(s)' u_b) (u_b' z): what the best node leaves, and its overlap, each as a
    # polynomial in s, so that differences between shapes are not swamped by what all of them explain.
    rest = jax.lax.optimization_barrier(z - jnp.sum(u_best * at_best[:, None], axis=0))
    again = jnp.dot(node_basis, rest, precision="highest").reshape(n_varying, G, -1)
    values = jnp.stack([again[:, best + j - (M - 1) // 2, curve] for j in range(M)])  # (M, V, curve)
    overlap = polynomials[:, : n_varying**2].reshape(M, n_varying, n_varying, -1)
    q = jnp.einsum("ij,jvc->ivc", tables.interpolation, values, precision="highest")
    q = q + jnp.sum(overlap * at_best[None, None], axis=2)
    low = jnp.where(best == edge, 0, -1).astype(dtype)
    high = jnp.where(best == G - edge - 1, 0, 1).astype(dtype)
    s = jnp.zeros_like(low)
    for _ in range(STEPS):
        # Newton on |f|^2/2: gradient f.f', hessian f'.f' + f.f''; where it is not concave, half a node uphill.
        f, d, dd = taylor(q, s)
        gradient, hessian = jnp.sum(f * d, axis=0), jnp.sum(d * d + f * dd, axis=0)
        step = jnp.where(hessian < 0, -gradient / jnp.where(hessian < 0, hessian, -1), jnp.sign(gradient) / 2)
        s = jnp.clip(s + step, low, high)
    log_shape = tables.grid[0] + tables.grid[1] * (best.astype(dtype) + s)
    return log_shape, taylor(q, s)[0], horner(polynomials[:, n_varying**2 :], s)


def taylor(q: Array, s: Array) -> tuple[Array, Array, Array]:
    """Value, first and second derivative at s (curve,) of polynomials q (M, V, curve), each (V, curve)."""
    f, d, dd, s = q[-1], jnp.zeros_like(q[0]), jnp.zeros_like(q[0]), s[None]
    for k in range(q.shape[0] - 2, -1, -1):
        dd, d, f = dd * s + d, d * s + f, f * s + q[k]
    return f, d, 2 * dd


def horner(q: Array, s: Array) -> Array:
    """The value alone."""
    f = q[-1]
    for k in range(q.shape[0] - 2, -1, -1):
        f = f * s[None] + q[k]
    return f


class Scalars(NamedTuple):
    """What depends on the shape alone, the letters of the module's text; the curve is the last axis."""

    inverse: Array  # R^-1, (V, V, curve)
    level: Array  # L, (F, V, curve)
    reached: Array  # X, (F + V, V, curve)
    t: Array  # T, (V, V, curve)


def unpack(layout: TableLayout, values: Array) -> Scalars:
    """The scalars of `lowrank_basis.Samples`, (S, curve), taken apart."""
    F, V, m = len(layout.fixed), len(layout.varying), layout.columns
    log_norm, inverse, level, reached, t = jnp.split(values, np.cumsum((V, V * V, F * V, m * V)))
    inverse = inverse.reshape(V, V, -1) * jnp.exp(-log_norm)[:, None]
    level, reached, t = (a.reshape(-1, V, a.shape[-1]) for a in (level, reached, t))
    diagonal = np.eye(V, dtype=bool)[..., None]
    return Scalars(inverse, level, reached, jnp.where(diagonal, jnp.exp(jnp.where(diagonal, t, 0)), t))


def times(matrix: Array, vector: Array) -> Array:
    """(i, j, curve) times (j, curve)."""
    return jnp.sum(matrix * vector[None], axis=1)


def to_coefs(tables: Tables, scalars: Scalars, z_fixed: Array, f: Array) -> Array:
    """Coefficients (coef, curve), the fixed ones first, from what is along E and U."""
    fixed = jnp.dot(tables.inverse_r0, z_fixed, precision="highest") - times(scalars.level, f)
    return jnp.concatenate([fixed, times(scalars.inverse, f)])


def triangle(tables: Tables, scalars: Scalars) -> Array:
    """The inverse of [R0 C; 0 R], (coef, coef, curve), fixed ones first."""
    F, V, curves = *scalars.level.shape[:2], scalars.level.shape[2]
    inverse_r0 = jnp.broadcast_to(tables.inverse_r0[..., None], (F, F, curves))
    zero = jnp.zeros((V, F, curves), scalars.level.dtype)
    upper = jnp.concatenate([inverse_r0, -scalars.level], axis=1)
    return jnp.concatenate([upper, jnp.concatenate([zero, scalars.inverse], axis=1)], axis=0)


def covariance(layout: TableLayout, rows: Array, b: Array, var: Array) -> tuple[Array, Array]:
    """Of (log shape, coefs), over SSE/(n - p), and H, that of the coefs at the shape; in the law's order.

    Args:
        rows: (coef, m, curve) with H = rows rows'. b: (coef, curve). var: (curve,), of the log shape.
    """
    order = np.argsort(np.array(layout.fixed + layout.varying))
    rows, b = rows[order], b[order]
    h = jnp.sum(rows[:, None] * rows[None], axis=2)
    cross = -b * var[None]
    top = jnp.concatenate([var[None], cross])[None]
    coefs = h + b[:, None] * b[None] * var[None, None]
    return jnp.concatenate([top, jnp.concatenate([cross[:, None], coefs], axis=1)]), h


def _coefficients(tables: Tables, f: Array, values: Array, z_fixed: Array) -> tuple[Array, Array]:
    """Coefficients (coef, curve) in the law's order, and the covariance of (log shape, coefs) over SSE/(n - p)."""
    layout, scalars = tables.layout, unpack(tables.layout, values)
    coef = to_coefs(tables, scalars, z_fixed, f)
    fixed, own = jnp.split(times(scalars.reached, f), [len(layout.fixed)])
    b = to_coefs(tables, scalars, fixed, own)
    var = 1 / jnp.sum(times(scalars.t, f) ** 2, axis=0)
    cov, _ = covariance(layout, triangle(tables, scalars), b, var)
    return coef[np.argsort(np.array(layout.fixed + layout.varying))], cov


def _sse(law: Law, tables: Tables, log_shape: Array, coef: Array, y: Array) -> Array:
    """SSE of each curve: a pass over the residuals of the law itself."""
    basis = law.basis
    assert basis is not None

    def residual(t: Array, c: Array, row: Array) -> Array:
        columns = basis(jnp.exp(t)[None], tables.x)
        for k in (*tables.layout.fixed, *tables.layout.varying):  # the level first: smaller numbers round less
            row = row - columns[:, k] * c[k]
        return row

    rest = jax.vmap(residual, (0, 1, 0))(log_shape, coef, y)
    # A sum as a product with the weights: XLA's own reductions over rows are not vectorised.
    return jnp.dot(rest * rest, tables.weights, precision="highest")
