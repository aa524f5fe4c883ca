"""Tables of compressed variable projection for curves with weights of their own: masks, missing points, variances.

With [E U] the columns of the law, orthonormal for equal weights, and D what their derivative adds, a curve with weights
w needs at the shape theta

    G(theta) = A' diag(w) A,  A = [E U D],      r(theta) = [E U]' diag(w) y.

Products of members of a low-rank family are one themselves: 20 to 30 vectors P hold all products of two columns of A,
at every theta. So G is linear in the moments P' w and r in Q' (w y), two products with the data in place of one; what
is made of the moments is in `lowrank_weighted`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import combinations_with_replacement as pairs_of
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tsl_jax.fitting import lowrank_basis
from tsl_jax.fitting.lowrank_basis import GRIDS, Samples, Tables
from tsl_jax.laws import Covariates, Law

DEGREE = 12  # nodes of a local polynomial: products vary twice as fast as the columns
GRAM = {"float32": 1e-5, "float64": 1e-8}  # what P may miss of an entry of B, over the norm of the weights
ERRORS = {"float32": 3e-4, "float64": 1e-6}  # of an entry of the rest of G, which only the standard errors depend on
TAPER = 1e-3  # a derivative that adds less than this is not made a unit vector: it would be rounding
LARGEST = 50_000_000  # numbers in the products, beyond which they are not made


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("shared", "products", "still", "at_nodes", "line", "ones"),
    meta_fields=("fixed_pairs", "pairs", "line_pairs"),
)
@dataclass(frozen=True)
class WeightedTables:
    """The tables for equal weights, and what Gram matrices with other weights need. C = F + 2V columns [E U D]."""

    shared: Tables
    products: Any  # P (point, moment)
    still: Any  # (fixed pair, moment): entries of G among the fixed columns
    at_nodes: Any  # (pair, node, moment): the other entries
    line: Any  # (line pair, moment): entries of the Gram matrix of the fixed columns and a straight line
    ones: Any  # (F,): the constant 1 along the fixed columns
    fixed_pairs: tuple[tuple[int, int], ...]
    pairs: tuple[tuple[int, int], ...]
    line_pairs: tuple[tuple[int, int], ...]


def prepare(law: Law, x: Covariates, equal: np.ndarray, log_bounds: np.ndarray, dtype: str) -> WeightedTables | None:
    """The tables for weights of each curve's own, or None where products of columns are no low-rank smooth family.

    Args:
        law, x, dtype: as in `lowrank_basis.prepare`. equal: (point,) ones. log_bounds: (1, 2), range of the log shape.
    """

    def derive() -> WeightedTables | None:
        return next((tables for tables in map(at_grid, range(len(GRIDS[dtype]))) if tables is not None), None)

    def at_grid(finer: int) -> WeightedTables | None:
        shared = lowrank_basis.prepare(law, x, equal, log_bounds, dtype, DEGREE, finer)
        return None if shared is None else _derive(law, x, shared, log_bounds, dtype)

    return lowrank_basis.remembered(("own", law, dtype), x, (equal, log_bounds), derive)


def _derive(law: Law, x: Covariates, shared: Tables, log_bounds: np.ndarray, dtype: str) -> WeightedTables | None:
    layout, points = shared.layout, len(shared.weights)
    F, V, degree = len(layout.fixed), len(layout.varying), layout.degree
    columns = F + 2 * V
    pairs = tuple((i, j) for i, j in pairs_of(range(columns), 2) if j >= F)
    if len(pairs) * layout.nodes * points > LARGEST:
        return None
    with jax.enable_x64(True), np.errstate(all="ignore"):
        low, high = np.asarray(log_bounds, float)[0]
        step = (high - low) / (layout.nodes - degree - 1)
        grid = low + step * np.arange(-(degree // 2), layout.nodes - degree // 2)
        of_law, _ = lowrank_basis.columns_of(law, x, np.linspace(low, high, 5))
        fixed, r0 = np.linalg.qr(of_law[0][:, layout.fixed])
        sample = partial(
            lowrank_basis.sample, law, x, np.ones(points),
            fixed=layout.fixed, varying=layout.varying, fixed_basis=fixed, r0=r0,
        )  # fmt: skip
        at_nodes, between = (_products(sample(t), fixed, pairs) for t in (grid, (grid[1:] + grid[:-1]) / 2))
    straight = np.concatenate([fixed, lowrank_basis.straight_line(x, np.ones(points), fixed)], axis=1)
    line_pairs = tuple(pairs_of(range(straight.shape[1]), 2))
    still = np.stack([straight[:, i] * straight[:, j] for i, j in line_pairs], axis=1)  # (point, line pair)
    # entries of D are needed less exactly: they count for less where the basis is cut off
    tolerance = GRAM[dtype] / np.sqrt(points)
    weight = np.array([GRAM[dtype] / ERRORS[dtype] if j >= F + V else 1.0 for _, j in pairs])
    basis, _ = np.linalg.qr(still)
    rest, rest_between = (part * weight - basis @ (basis.T @ (part * weight)) for part in (at_nodes, between))
    family = lowrank_basis.vectors_of(rest, rest_between, tolerance, basis.shape[1])
    if family is None:
        return None
    basis, _ = np.linalg.qr(np.concatenate([basis, family], axis=1))
    entries, halfway = (np.einsum("tpj,pk->jtk", part, basis) for part in (at_nodes, between))
    # halfway between two nodes a polynomial through M of them errs most
    inside = np.arange(degree // 2, layout.nodes - degree // 2)
    window = inside[:, None] + np.arange(degree) - (degree - 1) // 2
    middle = 0.5 ** np.arange(degree) @ np.asarray(shared.interpolation, float)  # (M,)
    off = np.linalg.norm(np.einsum("m,jgmk->jgk", middle, entries[:, window]) - halfway[:, inside], axis=2)
    if not np.all(off.max(axis=1) * weight <= 2 * tolerance):
        return None
    array = partial(jnp.asarray, dtype=dtype)
    of_line = still.T @ basis
    of_fixed = [line_pairs.index(pair) for pair in pairs_of(range(F), 2)]
    return WeightedTables(
        shared,
        *map(array, (basis, of_line[of_fixed], entries, of_line, fixed.sum(axis=0))),
        fixed_pairs=tuple(pairs_of(range(F), 2)),
        pairs=pairs,
        line_pairs=line_pairs,
    )


def _products(samples: Samples, fixed: np.ndarray, pairs: tuple[tuple[int, int], ...]) -> np.ndarray:
    """Products (T, point, pair) of the columns [E U D], D tapered where it vanishes."""
    size = np.linalg.norm(samples.beyond, axis=1, keepdims=True)
    still = np.broadcast_to(fixed, (len(samples.u), *fixed.shape))
    columns = np.concatenate([still, samples.u, samples.beyond / (size + TAPER)], axis=2)
    return np.stack([columns[..., i] * columns[..., j] for i, j in pairs], axis=2)
