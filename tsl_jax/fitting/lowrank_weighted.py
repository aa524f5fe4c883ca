"""Compressed variable projection where curves have weights of their own: masks, missing points, lengths, variances.

With the Gram matrix G and the products r at every shape theta, both linear in moments of the curve, see
`lowrank_weighted_tables`,

    SSE(theta) = y' diag(w) y - r' B^-1 r,      B the part of G that is of [E U],

is searched over nodes, then on its local polynomial. Coefficients and covariance follow as for shared weights, with B
where that has the identity: with b = B^-1 r its part f along U, X and T as there and t = T f,

    d curve/d theta = [E U] (X f + B^-1 G_BD t) + what is orthogonal to [E U], of square norm t' S t,
    S = G_DD - G_DB B^-1 G_BD,    var(theta) = 1/(t' S t).

The answer is then held against the law itself: a pass over the residuals gives SSE, its gradient and by the covariance
one Gauss-Newton step. Where that step is not small, or SSE is not what the moments say, the curve is not `sure`, and
`batching.run` fits it by the general solver: weights that leave the points on which the columns hardly differ.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from operator import add
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from tsl_jax.fitting import lowrank_search
from tsl_jax.fitting.lowrank_basis import TableLayout
from tsl_jax.fitting.lowrank_search import STEPS, TableSolution
from tsl_jax.fitting.lowrank_weighted_tables import TAPER, WeightedTables
from tsl_jax.laws import Covariates, Law

SMALL_STEP = 1e-3  # of SSE: a Gauss-Newton step that gains no more is the last one
ALIKE = 1e-2  # of SSE: as near the moments must come to it
CANCELLED = {"float32": 1e-2, "float64": 1e-3}  # of D that is left beside [E U]: less would be known too badly


Entries = dict[tuple[int, int], Array]


class _Moments(NamedTuple):
    """All that the search knows of a curve; the curve is the last axis."""

    of_y: Array  # Q' (w y), (fixed, family, line; curve)
    of_weights: Array  # P' w, (moment, curve)
    size: Array  # y' diag(w) y


class _Place(NamedTuple):
    """The best shape of each curve, and what is interpolated there."""

    best: Array  # the best node
    s: Array  # distance from it, in nodes
    at_end: Array  # bool: the shape is at an end of its range
    r: list[Array]
    gram: Entries


def solve(
    law: Law, tables: WeightedTables, y: Float[Array, "curve point"], weights: Float[Array, "curve point"]
) -> tuple[TableSolution, Array, Array]:
    """Fit every curve of y with its own weights; pure, and jit-able with `law` static.

    Returns:
        The fits, the sum of the weights (curve,), and of which curves they are sure (curve,).
    """
    shared, layout = tables.shared, tables.shared.layout
    eps = jnp.finfo(y.dtype).eps
    y, total, mean = _centred(layout, jnp.where(weights > 0, y, 0), weights)
    weighted = weights * y
    moments = _Moments(
        _curve_last(_dot(weighted, shared.basis)), _curve_last(_dot(weights, tables.products)), _sums(weighted * y)
    )
    place = _search(tables, moments)
    polynomials = shared.by_node[place.best, len(layout.varying) * layout.vectors :].T
    polynomials = polynomials.reshape(layout.degree, -1, len(y))[:, len(layout.varying) ** 2 :]
    scalars = lowrank_search.unpack(layout, lowrank_search.horner(polynomials, place.s))
    coef, covariance, h, explained, regular = _answer(tables, scalars, place.gram, place.r)
    log_shape = shared.grid[0] + shared.grid[1] * (place.best.astype(y.dtype) + place.s)
    # held against the law itself
    sse, gradient = _residuals(law, layout, shared.x, log_shape, coef, y, weights)
    free = jnp.sum(covariance * gradient[None], axis=1)
    at_end = jnp.concatenate([jnp.zeros_like(free[:1]), jnp.sum(h * gradient[None, 1:], axis=1)])
    step = jnp.where(place.at_end[None], at_end, free)
    gain = jnp.sum(step * gradient, axis=0)
    sure = regular & (gain >= 0) & (gain <= SMALL_STEP * sse + (1e3 * eps) ** 2 * moments.size)
    sure &= jnp.abs(moments.size - explained - sse) <= ALIKE * sse + 64 * eps * moments.size
    finite = jnp.isfinite(moments.size)
    gain, step = jnp.where(sure & finite, gain, 0), jnp.where((sure & finite)[None], step, 0)
    edge = layout.degree // 2
    low, high = (shared.grid[0] + shared.grid[1] * node for node in (edge, layout.nodes - edge - 1))
    coef = coef + step[1:] + (_of_mean(tables, mean) if layout.constant else 0)
    sst = moments.size if layout.constant else moments.size - total * mean**2
    line = _explained_by_line(tables, moments) >= (explained + gain) * (1 - 8 * eps)
    log_shape = jnp.clip(log_shape + step[0], low, high)
    solution = TableSolution(log_shape, coef, covariance, sse - gain, sst, mean, line, finite)
    return solution, total, sure | ~finite


def _search(tables: WeightedTables, moments: _Moments) -> _Place:
    """The shape of the least SSE."""
    shared, layout = tables.shared, tables.shared.layout
    F, V, K = len(layout.fixed), len(layout.varying), layout.vectors
    M, G, edge = layout.degree, layout.nodes, layout.degree // 2
    dtype, curves = moments.size.dtype, len(moments.size)
    fixed = [moments.of_y[k] for k in range(F)]
    still = dict(zip(tables.fixed_pairs, _dot(tables.still, moments.of_weights), strict=True))
    at_nodes = {pair: entry[None] for pair, entry in still.items()}  # (1, curve), as the others are (node, curve)
    r = _dot(shared.node_basis.reshape(V * G, K), moments.of_y[F : F + K]).reshape(V, G, -1)
    entries = _dot(tables.at_nodes.reshape(len(tables.pairs) * G, -1), moments.of_weights).reshape(-1, G, curves)
    r, entries = jax.lax.optimization_barrier((r, entries))
    at_nodes |= dict(zip(tables.pairs, entries, strict=True))
    explained = _explained(at_nodes, [*(part[None] for part in fixed), *r])
    explained = jax.lax.optimization_barrier(jnp.where(jnp.isfinite(explained), explained, -jnp.inf))
    node = jnp.arange(edge, G - edge, dtype=jnp.int32)[:, None]
    inside = explained[edge : G - edge]
    highest = jnp.max(inside, axis=0)
    best = jnp.min(jnp.where(inside == highest[None], node, G - edge - 1), axis=0)
    # the best shape between the nodes, on the polynomial through M of them
    curve = jnp.arange(curves)[None]
    window = best[None] + jnp.arange(M)[:, None] - (M - 1) // 2  # (M, curve)
    q = jnp.dot(shared.interpolation, explained[window, curve] - highest[None], precision="highest")[:, None]
    low = jnp.where(best == edge, 0, -1).astype(dtype)
    high = jnp.where(best == G - edge - 1, 0, 1).astype(dtype)
    s = jnp.zeros_like(low)
    for _ in range(STEPS):
        _, slope, bend = (part[0] for part in lowrank_search.taylor(q, s))
        step = jnp.where(bend < 0, -slope / jnp.where(bend < 0, bend, -1), jnp.sign(slope) / 2)
        s = jnp.clip(s + step, low, high)
    share = _dot(shared.interpolation.T, s[None] ** jnp.arange(M, dtype=dtype)[:, None])  # of each node of the window
    r = jnp.sum(share[None] * r[:, window, curve], axis=1)
    entries = jnp.sum(share[None] * entries[:, window, curve], axis=1)
    at_end = ((best == edge) | (best == G - edge - 1)) & (s == 0)
    best, s, r, entries = jax.lax.optimization_barrier((best, s, r, entries))
    return _Place(best, s, at_end, [*fixed, *r], still | dict(zip(tables.pairs, entries, strict=True)))


def _explained_by_line(tables: WeightedTables, moments: _Moments) -> Array:
    """What the fixed columns and a straight line explain (curve,)."""
    layout = tables.shared.layout
    F, last = len(layout.fixed), len(moments.of_y)
    along = [moments.of_y[k] for k in (*range(F), *range(F + layout.vectors, last))]
    return _explained(dict(zip(tables.line_pairs, _dot(tables.line, moments.of_weights), strict=True)), along)


def _answer(
    tables: WeightedTables, scalars: lowrank_search.Scalars, gram: Entries, r: list[Array]
) -> tuple[Array, Array, Array, Array, Array]:
    """Coefficients, covariance and H in the law's order, r' B^-1 r, and whether B is regular."""
    layout = tables.shared.layout
    F, V, m = len(layout.fixed), len(layout.varying), layout.columns
    factor, regular = _cholesky(gram, m)
    half = _forward(factor, r)
    along = jnp.stack(_backward(factor, half))  # b
    f = along[F:]
    t = (jnp.linalg.norm(scalars.t, axis=0) + TAPER) * f  # D f = (D, tapered) t
    cross = [_total(gram[i, m + j] * t[j] for j in range(V)) for i in range(m)]  # G_BD t
    reduced = _forward(factor, cross)
    square = _total(gram[min(i, j) + m, max(i, j) + m] * t[i] * t[j] for i in range(V) for j in range(V))
    left = square - _total(part**2 for part in reduced)
    lean = jnp.stack(_backward(factor, reduced))
    fixed, own = jnp.split(lowrank_search.times(scalars.reached, f) + lean, [F])
    b = lowrank_search.to_coefs(tables.shared, scalars, fixed, own)
    unit = jnp.eye(m, dtype=f.dtype)
    inverse = jnp.stack([jnp.stack(_forward(factor, [unit[i, k] + 0 * f[0] for i in range(m)])) for k in range(m)])
    triangle = lowrank_search.triangle(tables.shared, scalars)
    rows = jnp.sum(triangle[:, None] * jnp.swapaxes(inverse, 0, 1)[None], axis=2)  # triangle L^-T
    covariance, h = lowrank_search.covariance(layout, rows, b, 1 / left)
    coef = lowrank_search.to_coefs(tables.shared, scalars, along[:F], f)
    coef = coef[np.argsort(np.array(layout.fixed + layout.varying))]
    return coef, covariance, h, _total(part**2 for part in half), regular & (left > CANCELLED[str(f.dtype)] * square)


def _explained(gram: Entries, r: list[Array]) -> Array:
    """r' B^-1 r, B the leading part of G that r is of."""
    factor, _ = _cholesky(gram, len(r))
    return _total(part**2 for part in _forward(factor, r))


def _cholesky(gram: Entries, size: int) -> tuple[Entries, Array]:
    """The lower factor of the leading part, entry by entry, and where it is far from singular."""
    factor: Entries = {}
    regular = jnp.asarray(True)
    for j in range(size):
        pivot = gram[j, j] - sum(factor[j, k] ** 2 for k in range(j))
        eps = jnp.finfo(pivot.dtype).eps
        regular = regular & (pivot > 1e3 * eps * gram[j, j])
        factor[j, j] = jnp.sqrt(jnp.maximum(pivot, jnp.finfo(pivot.dtype).tiny))
        for i in range(j + 1, size):
            rest = gram[j, i] - sum(factor[i, k] * factor[j, k] for k in range(j))
            factor[i, j] = rest / factor[j, j]
    return factor, regular


def _forward(factor: Entries, right: list[Array]) -> list[Array]:
    """L^-1 right."""
    found: list[Array] = []
    for i, value in enumerate(right):
        found.append((value - sum(factor[i, k] * found[k] for k in range(i))) / factor[i, i])
    return found


def _backward(factor: Entries, right: list[Array]) -> list[Array]:
    """L'^-1 right."""
    found: dict[int, Array] = {}
    for i in reversed(range(len(right))):
        found[i] = (right[i] - sum(factor[k, i] * found[k] for k in range(i + 1, len(right)))) / factor[i, i]
    return [found[i] for i in range(len(right))]


def _total(parts: Iterable[Array]) -> Array:
    return reduce(add, parts)


def _dot(a: Array, b: Array) -> Array:
    return jnp.dot(a, b, precision="highest")


def _curve_last(values: Array) -> Array:
    """Transposed. Without the barriers XLA fuses product and transposition into one five times slower than both."""
    return jax.lax.optimization_barrier(jax.lax.optimization_barrier(values).T)


def _sums(values: Array) -> Array:
    """Over the points of (curve, point), as a product: XLA's own reductions over rows are not vectorised."""
    return _dot(values, jnp.ones(values.shape[1], values.dtype))


def _centred(layout: TableLayout, y: Array, weights: Array) -> tuple[Array, Array, Array]:
    """y less its weighted mean, where the law has a constant that takes it up; sum of weights, and the mean."""
    total = _sums(weights)
    mean = _sums(weights * y) / jnp.where(total > 0, total, 1)
    return (y - mean[:, None] if layout.constant else y), total, mean


def _of_mean(tables: WeightedTables, mean: Array) -> Array:
    """Coefficients (coef, curve) of the constant curve `mean` (curve,)."""
    layout = tables.shared.layout
    fixed = _dot(tables.shared.inverse_r0, tables.ones)
    return jnp.zeros((layout.columns, 1), mean.dtype).at[np.array(layout.fixed), 0].set(fixed) * mean[None]


def _residuals(
    law: Law, layout: TableLayout, x: Covariates, log_shape: Array, coef: Array, y: Array, weights: Array
) -> tuple[Array, Array]:
    """SSE (curve,) of the law itself, and minus half its gradient in (log shape, coefs) (1 + coef, curve)."""
    basis = law.basis
    assert basis is not None

    def varying(t: Array) -> tuple[list[Array], list[Array]]:
        columns, slopes = jax.jvp(lambda t: basis(jnp.exp(t)[None], x), (t,), (jnp.ones_like(t),))
        return [columns[:, k] for k in layout.varying], [slopes[:, k] for k in layout.varying]

    fixed = basis(jnp.exp(log_shape[:1]), x)  # (point, coef): the same for all shapes
    # without the barriers columns and residuals are evaluated anew for every sum
    columns, slopes = jax.lax.optimization_barrier(jax.vmap(varying)(log_shape))
    for k in layout.fixed:
        y = y - fixed[None, :, k] * coef[k][:, None]
    for k, column in zip(layout.varying, columns, strict=True):
        y = y - column * coef[k][:, None]
    weighted = jax.lax.optimization_barrier(weights * y)
    slope = sum(part * coef[k][:, None] for k, part in zip(layout.varying, slopes, strict=True))
    along = {k: _dot(weighted, fixed[:, k]) for k in layout.fixed}
    along |= {k: _sums(weighted * column) for k, column in zip(layout.varying, columns, strict=True)}
    gradient = [_sums(weighted * slope), *[along[k] for k in range(len(law.coefs))]]
    return _sums(weighted * y), jnp.stack(gradient)


def count(weights: Array) -> Array:
    """Points of positive weight (curve,)."""
    return jnp.round(_sums((weights > 0).astype(weights.dtype))).astype(jnp.int32)
