"""The family of a law's columns on given points: its low-rank basis, and polynomials for what depends on the shape.

What `lowrank_search.solve` needs of a law, derived once on the host in float64, cached by content, and checked against
the law between the nodes; `lowrank_search.py` has the equations and the letters.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from threading import RLock
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tsl_jax.laws import Covariates, Law

GRIDS = {"float32": (48, 96, 192, 384), "float64": (96, 192, 384)}  # nodes: the first number that is accurate
DEGREES = {"float32": 8, "float64": 12}  # nodes of a local polynomial
# What the basis may miss of a column of size one. SSE feels its square: 3e-6 of a signal 100 times the noise is 1e-7.
MISSED = {"float32": 3e-6, "float64": 1e-11}
CURVES = {"float32": 1e-6, "float64": 1e-10}  # relative error of the polynomials that the curves depend on
ERRORS = 1e-5  # relative, of what only the standard errors depend on
FLOOR = -23.0  # logarithm of T below which the shape is not identified in any precision
ROUND = 8  # columns of the basis come in multiples of this
LARGEST = 64  # vectors beyond which a family does not count as low-rank
CACHED = 32


@dataclass(frozen=True)
class TableLayout:
    """What of the tables is fixed at compilation."""

    fixed: tuple[int, ...]  # columns of the law that do not depend on the shape
    varying: tuple[int, ...]
    vectors: int  # K
    nodes: int  # G, some beyond each end of the range, so that every polynomial has its node in its middle
    degree: int  # M, points of a local polynomial
    masked: bool  # some weights are zero
    constant: bool  # the fixed columns are the constant alone

    @property
    def columns(self) -> int:
        """Columns of the law, fixed ones first."""
        return len(self.fixed) + len(self.varying)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("basis", "node_basis", "by_node", "interpolation", "inverse_r0", "mean", "grid", "x", "weights"),
    meta_fields=("layout",),
)
@dataclass(frozen=True)
class Tables:
    """A law on a grid with weights, before any curve is seen. V varying and F fixed columns."""

    layout: TableLayout
    basis: Any  # Q (point, F + K + 0..2), sqrt(w) folded in: fixed columns, the family, the rest of a straight line
    node_basis: Any  # (V, node, K): u at the nodes
    by_node: Any  # (node, V K + M S): the node basis again, then the polynomials of S scalars, see Samples
    interpolation: Any  # (M, M): values at M nodes -> polynomial in the distance from the best one
    inverse_r0: Any  # (F, F): coefficients of the fixed columns from z_fixed
    mean: Any  # (row of z,): the weighted mean from z
    grid: Any  # (2,): first node, distance of nodes
    x: Any
    weights: Any  # (point,)


T = TypeVar("T")
_prepared: OrderedDict[tuple[Any, bytes], Any] = OrderedDict()
_preparing = RLock()  # forecasts are made in threads


def prepare(
    law: Law, x: Covariates, weights: np.ndarray, log_bounds: np.ndarray, dtype: str, degree: int = 0, finer: int = 0
) -> Tables | None:
    """The tables of a law with one shape, or None where it is no low-rank smooth family on this grid.

    Args:
        law: separable, one shape. x: its covariates. weights: (point,), shared by all curves.
        log_bounds: (1, 2), range of the log shape. dtype: "float32" or "float64".
        degree: nodes of a local polynomial, an even number; default DEGREES. finer: how many of GRIDS to pass over.
    """
    degree = degree or DEGREES[dtype]

    def derive() -> Tables | None:
        bounds = np.asarray(log_bounds, float)[0]
        # Columns that vanish or coincide somewhere in the range give infinities, which `_derive` looks for.
        with jax.enable_x64(True), np.errstate(all="ignore"):
            try:
                return _derive(law, x, np.asarray(weights, float), bounds, dtype, degree, GRIDS[dtype][finer:])
            except np.linalg.LinAlgError:
                return None

    return remembered(("shared", law, dtype, degree, finer), x, (weights, log_bounds), derive)


def remembered(what: tuple[Any, ...], x: Covariates, arrays: tuple[np.ndarray, ...], derive: Callable[[], T]) -> T:
    """What `derive` gives, or gave for the same arrays; the last CACHED are kept."""
    parts = [np.asarray(v) for _, v in sorted(x.items())] if isinstance(x, Mapping) else [np.asarray(x)]
    digest = hashlib.sha256(repr([part.shape for part in parts]).encode())
    for part in (*parts, *arrays):
        digest.update(np.ascontiguousarray(part, float).tobytes())
    key = (what, digest.digest())
    with _preparing:
        if key not in _prepared:
            _prepared[key] = derive()
            while len(_prepared) > CACHED:
                _prepared.popitem(last=False)
        _prepared.move_to_end(key)
        return _prepared[key]


class Samples(NamedTuple):
    """The family at many shapes (T): what is exact, to be tabulated."""

    u: np.ndarray  # (T, point, V) orthonormal, orthogonal to the fixed columns
    curve: np.ndarray  # (T, V + V V + F V): log norms of the columns of R, R^-1 without these norms, L
    error: np.ndarray  # (T, (F + V) V + V V): X, and T with a logarithmic diagonal
    beyond: np.ndarray  # (T, point, V): W T


def _derive(
    law: Law, x: Covariates, weights: np.ndarray, bounds: np.ndarray, dtype: str, degree: int, grids: tuple[int, ...]
) -> Tables | None:
    root, tolerance = np.sqrt(weights), MISSED[dtype]
    # Columns that are the same at five shapes do not depend on it: sqrt(w) times these is E R0.
    columns, _ = columns_of(law, x, np.linspace(bounds[0], bounds[1], 5))
    still = np.all(columns == columns[:1], axis=(0, 1))
    fixed, varying = (tuple(int(k) for k in np.flatnonzero(m)) for m in (still, ~still))
    fixed_basis, r0 = np.linalg.qr(root[:, None] * columns[0][:, fixed])
    if not varying or np.count_nonzero(weights) <= len(law.coefs) + 1:
        return None
    straight = straight_line(x, root, fixed_basis)
    for inside in grids:
        step = (bounds[1] - bounds[0]) / (inside - 1)
        grid = bounds[0] + step * np.arange(-(degree // 2), inside + degree // 2)
        # Halfway between the nodes polynomials err most: there they are checked against the law itself.
        at_nodes, between = (
            sample(law, x, root, t, fixed, varying, fixed_basis, r0) for t in (grid, (grid[1:] + grid[:-1]) / 2)
        )
        if not all(np.all(np.isfinite(part)) for part in (*at_nodes, *between)):
            return None
        family = vectors_of(at_nodes.u, between.u, tolerance, len(fixed) + straight.shape[1])
        if family is None:
            return None
        # At right angles to the fixed columns to the last digit, so that a constant curve has no part in it.
        family = np.linalg.qr(np.concatenate([fixed_basis, family], axis=1))[0][:, len(fixed) :]
        node_basis = np.einsum("tpv,pk->vtk", at_nodes.u, family)
        interpolation, polynomials, accurate = _polynomials(
            node_basis, at_nodes, between, family, degree, CURVES[dtype]
        )
        if accurate:
            break
    else:
        return None
    constant = len(fixed) == 1 and bool(
        np.allclose(fixed_basis[:, 0] * (fixed_basis[:, 0] @ root), root, rtol=0, atol=1e-12)
    )
    basis = np.concatenate([fixed_basis, family, straight], axis=1)
    # sum w y / sum w = root' (sqrt(w) y) / sum w, and the family is orthogonal to sqrt(w) wherever that is fixed.
    mean = np.concatenate([fixed_basis.T @ root, np.zeros(family.shape[1]), straight.T @ root]) / weights.sum()
    by_node = np.concatenate(
        [node_basis.transpose(1, 0, 2).reshape(len(grid), -1), polynomials.reshape(len(grid), -1)], axis=1
    )
    inverse_r0 = np.linalg.inv(r0) if len(fixed) else r0
    first_and_step = np.array([grid[0], grid[1] - grid[0]])
    array = partial(jnp.asarray, dtype=dtype)
    return Tables(
        TableLayout(fixed, varying, family.shape[1], len(grid), degree, bool(np.any(weights == 0)), constant),
        *map(array, (root[:, None] * basis, node_basis, by_node, interpolation, inverse_r0, mean, first_and_step)),
        x=jax.tree.map(array, x),
        weights=array(weights),
    )


def columns_of(law: Law, x: Covariates, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns (T, point, coef) of the law at log shapes theta, and their derivatives."""
    columns, derivatives = _columns_at(law, x, jnp.asarray(theta))
    return np.asarray(columns), np.asarray(derivatives)


@partial(jax.jit, static_argnums=0)
def _columns_at(law: Law, x: Covariates, theta: Array) -> tuple[Array, Array]:
    basis = law.basis
    assert basis is not None

    def with_derivative(t: Array) -> tuple[Array, Array]:
        return jax.jvp(lambda s: basis(jnp.exp(s)[None], x), (t,), (jnp.ones_like(t),))

    return jax.vmap(with_derivative)(theta)


def sample(
    law: Law,
    x: Covariates,
    root: np.ndarray,
    theta: np.ndarray,
    fixed: tuple[int, ...],
    varying: tuple[int, ...],
    fixed_basis: np.ndarray,
    r0: np.ndarray,
) -> Samples:
    """u(theta) and the scalars that coefficients and errors need, exactly.

    The varying columns are V = E C + U R, their derivatives dV/d theta R^-1 = [E U] X + W T.
    """
    columns, derivatives = (root[:, None] * part for part in columns_of(law, x, theta))
    phi, slope = columns[..., varying], derivatives[..., varying]
    along = np.einsum("pf,tpv->tfv", fixed_basis, phi)  # C
    u, r = _gram_schmidt(phi - np.einsum("pf,tfv->tpv", fixed_basis, along))
    norm = np.linalg.norm(r, axis=1)
    inverse = np.linalg.inv(r / norm[:, None, :])  # R^-1 is this, its rows over the norms
    along, slope = (part @ (inverse / norm[:, :, None]) for part in (along, slope))
    if fixed:
        along = np.linalg.solve(r0, along)  # L = R0^-1 C R^-1
    whole = np.concatenate([np.broadcast_to(fixed_basis, (len(theta), *fixed_basis.shape)), u], axis=2)  # [E U]
    reached = np.einsum("tpm,tpv->tmv", whole, slope)  # X
    beyond = slope - np.einsum("tpm,tmv->tpv", whole, reached)
    # Twice, as in Gram-Schmidt: what is beyond [E U] may be a small difference of large numbers.
    beyond = beyond - np.einsum("tpm,tmv->tpv", whole, np.einsum("tpm,tpv->tmv", whole, beyond))
    _, t = _gram_schmidt(beyond)
    diagonal = np.arange(len(varying))
    # Logarithms of the diagonal: it spans many orders of magnitude, and a polynomial of it would not stay positive.
    t[:, diagonal, diagonal] = np.log(np.maximum(t[:, diagonal, diagonal], np.exp(FLOOR)))

    def flat(*parts: np.ndarray) -> np.ndarray:
        return np.concatenate([part.reshape(len(theta), -1) for part in parts], axis=1)

    return Samples(u, flat(np.log(norm), inverse, along), flat(reached, t), beyond)


def _gram_schmidt(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal bases and triangular factors of (T, point, V), smooth in T: diagonals are positive."""
    q, r = np.linalg.qr(columns)
    sign = np.where(np.diagonal(r, axis1=1, axis2=2) < 0, -1.0, 1.0)
    return q * sign[:, None, :], r * sign[:, :, None]


def vectors_of(at_nodes: np.ndarray, between: np.ndarray, tolerance: float, n_other_columns: int) -> np.ndarray | None:
    """As few orthonormal vectors (point, K) as hold all u to the tolerance, or None if they are many."""
    stacked = np.concatenate([part.transpose(0, 2, 1).reshape(-1, part.shape[1]) for part in (at_nodes, between)])
    _, _, vectors = np.linalg.svd(stacked, full_matrices=False)
    beyond = np.cumsum(((stacked @ vectors.T) ** 2)[:, ::-1], axis=1)[:, ::-1]  # what vectors from the k-th on hold
    enough = np.flatnonzero(np.sqrt(beyond.max(axis=0)) <= tolerance)
    count = int(enough[0]) if len(enough) else len(vectors)
    # With the other columns of the basis a multiple of ROUND: whole vector registers, and few programs to compile.
    count += -(count + n_other_columns) % ROUND
    return vectors[: min(count, len(vectors))].T if count <= LARGEST else None


def _polynomials(
    node_basis: np.ndarray, at_nodes: Samples, between: Samples, family: np.ndarray, degree: int, tolerance: float
) -> tuple[np.ndarray, np.ndarray, bool]:
    """(values -> coefficients), polynomials (node, M, S) of all scalars about each node, whether they are accurate.

    The overlaps u(theta)' u(theta_node) come first among the scalars. Nodes whose window would leave the grid get
    that of the nearest one that has one; no search ends there.
    """
    nodes = node_basis.shape[1]
    offset = np.arange(degree) - (degree - 1) // 2
    interpolation = np.linalg.inv(np.vander(offset.astype(float), increasing=True))
    middle = np.clip(np.arange(nodes), (degree - 1) // 2, nodes - 1 - degree // 2)
    window = middle[:, None] + offset  # (node, M)
    overlap = np.einsum("vgmk,wgk->gmvw", node_basis[:, window], node_basis).reshape(nodes, degree, -1)
    values = np.concatenate([overlap, at_nodes.curve[window], at_nodes.error[window]], axis=2)
    polynomials = np.einsum("ij,gjs->gis", interpolation, values)
    inside = np.arange(degree // 2, nodes - degree // 2)
    halfway = np.einsum("i,gis->gs", 0.5 ** np.arange(degree), polynomials[inside])
    u_between = np.einsum("tpv,pk->vtk", between.u[inside], family)
    own = np.einsum("vgk,wgk->gvw", u_between, node_basis[:, inside]).reshape(len(inside), -1)
    off = np.abs(halfway - np.concatenate([own, between.curve[inside], between.error[inside]], axis=1))
    size = np.maximum(np.abs(values[inside]).max(axis=1), 1)
    curve, error = np.split(off / size, [own.shape[1] + between.curve.shape[1]], axis=1)
    identified = at_nodes.error[window[inside]].min(axis=(1, 2)) > FLOOR
    return interpolation, polynomials, bool(curve.max() <= tolerance and error[identified].max(initial=0) <= ERRORS)


def straight_line(x: Covariates, root: np.ndarray, fixed_basis: np.ndarray) -> np.ndarray:
    """What a straight line adds to the fixed columns, (point, 0 to 2) orthonormal."""
    ones = np.ones(len(root))
    slope = np.zeros(len(root)) if isinstance(x, Mapping) else np.asarray(x, float)
    basis = list(fixed_basis.T)
    for column in (ones, (slope - slope.mean()) / (slope.std() or 1.0)):
        v = root * column
        size = np.linalg.norm(v)
        for q in basis * 2:
            v = v - q * (q @ v)
        if np.linalg.norm(v) > 1e-9 * max(size, 1e-300):
            basis.append(v / np.linalg.norm(v))
    return np.stack(basis, axis=1)[:, fixed_basis.shape[1] :] if basis else np.zeros((len(root), 0))
