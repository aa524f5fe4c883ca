"""The family of a law's columns on given points: its low-rank frame, and polynomials for what depends on the shape.

What `compressed.solve` needs of a law, derived once on the host in float64, cached by content, and checked against the
law between the nodes; `compressed.py` has the equations and the letters.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tsl_jax.laws import Covariates, Law

GRIDS = {"float32": (48, 96, 192, 384), "float64": (96, 192, 384)}  # nodes: the first number that is accurate
DEGREES = {"float32": 8, "float64": 12}  # nodes of a local polynomial
# What the frame may miss of a column of size one. SSE feels its square: 3e-6 of a signal 100 times the noise is 1e-7.
MISSED = {"float32": 3e-6, "float64": 1e-11}
CURVES = {"float32": 1e-6, "float64": 1e-10}  # relative error of the polynomials that the curves depend on
ERRORS = 1e-5  # relative, of what only the standard errors depend on
FLOOR = -23.0  # logarithm of T below which the shape is not identified in any precision
ROUND = 8  # columns of the frame come in multiples of this
LARGEST = 64  # vectors beyond which a family does not count as low-rank
CACHED = 32


@dataclass(frozen=True)
class Layout:
    """What of the tables is fixed at compilation."""

    fixed: tuple[int, ...]  # columns of the basis that do not depend on the shape
    varying: tuple[int, ...]
    vectors: int  # K
    nodes: int  # G, some beyond each end of the range, so that every polynomial has its node in its middle
    degree: int  # M, points of a local polynomial
    masked: bool  # some weights are zero
    constant: bool  # the fixed columns are the constant alone

    @property
    def columns(self) -> int:
        """Columns of the basis, fixed ones first."""
        return len(self.fixed) + len(self.varying)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("frame", "atoms", "by_node", "local", "start", "mean", "range", "x", "weights"),
    meta_fields=("layout",),
)
@dataclass(frozen=True)
class Tables:
    """A law on a grid with weights, before any curve is seen. V varying and F fixed columns."""

    layout: Layout
    frame: Any  # (point, F + K + 0..2), sqrt(w) folded in: fixed columns, the family, the rest of a straight line
    atoms: Any  # (V, node, K): u at the nodes
    by_node: Any  # (node, V K + M S): the atoms again, then the polynomials of S scalars, see _Samples
    local: Any  # (M, M): values at M nodes -> polynomial in the distance from the best one
    start: Any  # (F, F): coefficients of the fixed columns from z_fixed
    mean: Any  # (row of z,): the weighted mean from z
    range: Any  # (2,): first node, distance of nodes
    x: Any
    weights: Any  # (point,)


_prepared: OrderedDict[tuple[Law, bytes], Tables | None] = OrderedDict()
_preparing = Lock()  # forecasts are made in threads


def prepare(law: Law, x: Covariates, weights: np.ndarray, log_bounds: np.ndarray, dtype: str) -> Tables | None:
    """The tables of a law with one shape, or None where it is no low-rank smooth family on this grid.

    Args:
        law: separable, one shape. x: its covariates. weights: (point,), shared by all curves.
        log_bounds: (1, 2), range of the log shape. dtype: "float32" or "float64".
    """
    parts = [np.asarray(v) for _, v in sorted(x.items())] if isinstance(x, Mapping) else [np.asarray(x)]
    digest = hashlib.sha256(repr((dtype, [p.shape for p in parts])).encode())
    for part in (*parts, weights, log_bounds):
        digest.update(np.ascontiguousarray(part, float).tobytes())
    key = (law, digest.digest())
    with _preparing:
        if key not in _prepared:
            # Columns that vanish or coincide somewhere in the range give infinities, which `_derive` looks for.
            with jax.enable_x64(True), np.errstate(all="ignore"):
                try:
                    derived = _derive(law, x, np.asarray(weights, float), np.asarray(log_bounds, float)[0], dtype)
                except np.linalg.LinAlgError:
                    derived = None
            _prepared[key] = derived
            while len(_prepared) > CACHED:
                _prepared.popitem(last=False)
        _prepared.move_to_end(key)
        return _prepared[key]


class _Samples(NamedTuple):
    """The family at many shapes (T): what is exact, to be tabulated."""

    u: np.ndarray  # (T, point, V) orthonormal, orthogonal to the fixed columns
    curve: np.ndarray  # (T, V + V V + F V): log norms of the columns of R, R^-1 without these norms, L
    error: np.ndarray  # (T, (F + V) V + V V): X, and T with a logarithmic diagonal


def _derive(law: Law, x: Covariates, weights: np.ndarray, bounds: np.ndarray, dtype: str) -> Tables | None:
    root = np.sqrt(weights)
    degree, tolerance = DEGREES[dtype], MISSED[dtype]
    fixed, varying, frame0, r0 = _fixed_columns(law, x, root, bounds)
    if not varying or np.count_nonzero(weights) <= len(law.coefs) + 1:
        return None
    rest = _line(x, root, frame0)
    for inside in GRIDS[dtype]:
        step = (bounds[1] - bounds[0]) / (inside - 1)
        grid = bounds[0] + step * np.arange(-(degree // 2), inside + degree // 2)
        at_nodes, between = (
            _sample(law, x, root, t, fixed, varying, frame0, r0) for t in (grid, (grid[1:] + grid[:-1]) / 2)
        )
        if not all(np.all(np.isfinite(part)) for part in (*at_nodes, *between)):
            return None
        family = _family(at_nodes.u, between.u, tolerance, len(fixed) + rest.shape[1])
        if family is None:
            return None
        # At right angles to the fixed columns to the last digit, so that a constant curve has no part in it.
        family = np.linalg.qr(np.concatenate([frame0, family], axis=1))[0][:, len(fixed) :]
        atoms = np.einsum("tpv,pk->vtk", at_nodes.u, family)
        local, polynomials, accurate = _polynomials(atoms, at_nodes, between, family, degree, CURVES[dtype])
        if accurate:
            break
    else:
        return None
    constant = len(fixed) == 1 and bool(np.allclose(frame0[:, 0] * (frame0[:, 0] @ root), root, rtol=0, atol=1e-12))
    layout = Layout(fixed, varying, family.shape[1], len(grid), degree, bool(np.any(weights == 0)), constant)
    return _pack(layout, x, weights, grid, frame0, r0, family, rest, atoms, local, polynomials, dtype)


def _fixed_columns(
    law: Law, x: Covariates, root: np.ndarray, bounds: np.ndarray
) -> tuple[tuple[int, ...], tuple[int, ...], np.ndarray, np.ndarray]:
    """Which columns do not depend on the shape, their orthonormal frame (point, F) and its triangular factor."""
    columns, _ = _columns(law, x, np.linspace(bounds[0], bounds[1], 5))
    still = np.all(columns == columns[:1], axis=(0, 1))
    fixed, varying = (tuple(int(k) for k in np.flatnonzero(m)) for m in (still, ~still))
    frame, r = np.linalg.qr(root[:, None] * columns[0][:, fixed])
    return fixed, varying, frame, r


def _columns(law: Law, x: Covariates, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns (T, point, coef) of the law at log shapes theta, and their derivatives."""
    found = _columns_of(law, x, jnp.asarray(theta))
    return np.asarray(found[0]), np.asarray(found[1])


@partial(jax.jit, static_argnums=0)
def _columns_of(law: Law, x: Covariates, theta: Array) -> tuple[Array, Array]:
    basis = law.basis
    assert basis is not None

    def one(t: Array) -> tuple[Array, Array]:
        return jax.jvp(lambda s: basis(jnp.exp(s)[None], x), (t,), (jnp.ones_like(t),))

    return jax.vmap(one)(theta)


def _sample(
    law: Law,
    x: Covariates,
    root: np.ndarray,
    theta: np.ndarray,
    fixed: tuple[int, ...],
    varying: tuple[int, ...],
    frame0: np.ndarray,
    r0: np.ndarray,
) -> _Samples:
    """Frames and scalars at log shapes theta, exactly."""
    columns, moved = (root[:, None] * part for part in _columns(law, x, theta))
    phi, slope = columns[..., varying], moved[..., varying]
    n_fixed = len(fixed)
    along = np.einsum("pf,tpv->tfv", frame0, phi)
    u, r = _gram_schmidt(phi - np.einsum("pf,tfv->tpv", frame0, along))
    norm = np.linalg.norm(r, axis=1)
    inverse = np.linalg.inv(r / norm[:, None, :])  # R^-1 is this, its rows over the norms
    along, slope = (part @ (inverse / norm[:, :, None]) for part in (along, slope))
    if n_fixed:
        along = np.linalg.solve(r0, along)
    whole = np.concatenate([np.broadcast_to(frame0, (len(theta), *frame0.shape)), u], axis=2)
    reached = np.einsum("tpm,tpv->tmv", whole, slope)
    beyond = slope - np.einsum("tpm,tmv->tpv", whole, reached)
    beyond = beyond - np.einsum("tpm,tmv->tpv", whole, np.einsum("tpm,tpv->tmv", whole, beyond))
    _, bend = _gram_schmidt(beyond)
    diagonal = np.arange(len(varying))
    bend[:, diagonal, diagonal] = np.log(np.maximum(bend[:, diagonal, diagonal], np.exp(FLOOR)))

    def flat(*parts: np.ndarray) -> np.ndarray:
        return np.concatenate([part.reshape(len(theta), -1) for part in parts], axis=1)

    return _Samples(u, flat(np.log(norm), inverse, along), flat(reached, bend))


def _gram_schmidt(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal frames and triangular factors of (T, point, V), smooth in T: diagonals are positive."""
    q, r = np.linalg.qr(columns)
    sign = np.where(np.diagonal(r, axis1=1, axis2=2) < 0, -1.0, 1.0)
    return q * sign[:, None, :], r * sign[:, :, None]


def _family(at_nodes: np.ndarray, between: np.ndarray, tolerance: float, others: int) -> np.ndarray | None:
    """As few orthonormal vectors (point, K) as hold all frames to the tolerance, or None if they are many."""
    stacked = np.concatenate([part.transpose(0, 2, 1).reshape(-1, part.shape[1]) for part in (at_nodes, between)])
    _, _, vectors = np.linalg.svd(stacked, full_matrices=False)
    beyond = np.cumsum(((stacked @ vectors.T) ** 2)[:, ::-1], axis=1)[:, ::-1]  # what vectors from the k-th on hold
    found = np.flatnonzero(np.sqrt(beyond.max(axis=0)) <= tolerance)
    count = int(found[0]) if len(found) else len(vectors)
    # With the other columns of the frame a multiple of ROUND: whole vector registers, and few programs to compile.
    count += -(count + others) % ROUND
    return vectors[: min(count, len(vectors))].T if count <= LARGEST else None


def _polynomials(
    atoms: np.ndarray, at_nodes: _Samples, between: _Samples, family: np.ndarray, degree: int, tolerance: float
) -> tuple[np.ndarray, np.ndarray, bool]:
    """(values -> coefficients), polynomials (node, M, S) of all scalars about each node, whether they are accurate.

    The overlaps u(theta)' u(theta_node) come first among the scalars. Nodes whose window would leave the grid get
    that of the nearest one that has one; no search ends there.
    """
    nodes = atoms.shape[1]
    offset = np.arange(degree) - (degree - 1) // 2
    local = np.linalg.inv(np.vander(offset.astype(float), increasing=True))
    middle = np.clip(np.arange(nodes), (degree - 1) // 2, nodes - 1 - degree // 2)
    window = middle[:, None] + offset  # (node, M)
    overlap = np.einsum("vgmk,wgk->gmvw", atoms[:, window], atoms).reshape(nodes, degree, -1)
    values = np.concatenate([overlap, at_nodes.curve[window], at_nodes.error[window]], axis=2)
    polynomials = np.einsum("ij,gjs->gis", local, values)
    inside = np.arange(degree // 2, nodes - degree // 2)
    guess = np.einsum("i,gis->gs", 0.5 ** np.arange(degree), polynomials[inside])
    u_between = np.einsum("tpv,pk->vtk", between.u[inside], family)
    own = np.einsum("vgk,wgk->gvw", u_between, atoms[:, inside]).reshape(len(inside), -1)
    off = np.abs(guess - np.concatenate([own, between.curve[inside], between.error[inside]], axis=1))
    size = np.maximum(np.abs(values[inside]).max(axis=1), 1)
    curve, error = np.split(off / size, [own.shape[1] + between.curve.shape[1]], axis=1)
    identified = at_nodes.error[window[inside]].min(axis=(1, 2)) > FLOOR
    return local, polynomials, bool(curve.max() <= tolerance and error[identified].max(initial=0) <= ERRORS)


def _pack(
    layout: Layout,
    x: Covariates,
    weights: np.ndarray,
    grid: np.ndarray,
    frame0: np.ndarray,
    r0: np.ndarray,
    family: np.ndarray,
    rest: np.ndarray,
    atoms: np.ndarray,
    local: np.ndarray,
    polynomials: np.ndarray,
    dtype: str,
) -> Tables:
    root = np.sqrt(weights)
    frame = np.concatenate([frame0, family, rest], axis=1)
    mean = np.concatenate([frame0.T @ root, np.zeros(family.shape[1]), rest.T @ root]) / weights.sum()
    by_node = np.concatenate(
        [atoms.transpose(1, 0, 2).reshape(len(grid), -1), polynomials.reshape(len(grid), -1)], axis=1
    )
    start = np.linalg.inv(r0) if len(layout.fixed) else r0
    range_ = np.array([grid[0], grid[1] - grid[0]])

    def array(values: Any) -> Array:
        return jnp.asarray(values, dtype)

    return Tables(
        layout,
        *map(array, (root[:, None] * frame, atoms, by_node, local, start, mean, range_)),
        x=jax.tree.map(array, x),
        weights=array(weights),
    )


def _line(x: Covariates, root: np.ndarray, frame0: np.ndarray) -> np.ndarray:
    """What a straight line adds to the fixed columns, (point, 0 to 2) orthonormal."""
    ones = np.ones(len(root))
    slope = np.zeros(len(root)) if isinstance(x, Mapping) else np.asarray(x, float)
    known = list(frame0.T)
    for column in (ones, (slope - slope.mean()) / (slope.std() or 1.0)):
        v = root * column
        size = np.linalg.norm(v)
        for q in known * 2:
            v = v - q * (q @ v)
        if np.linalg.norm(v) > 1e-9 * max(size, 1e-300):
            known.append(v / np.linalg.norm(v))
    return np.stack(known, axis=1)[:, frame0.shape[1] :] if known else np.zeros((len(root), 0))
