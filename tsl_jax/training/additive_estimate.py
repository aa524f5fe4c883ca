"""The two-way additive estimator of the loss by position, for windows that overlap.

Some target tokens are hard wherever they stand; a plain mean over windows carries that noise into every position.
Where the same target is scored at several positions it can be taken out:

    loss[target, i] = t_target + p_i + noise                                            (least squares)

Demeaning within targets removes t (Frisch-Waugh); the normal equations of p are then A p = r with

    A = diag(n) - N' diag(m)^-1 N,   r_i = sum over windows of (loss - mean of its target),

N the targets x positions counts, m its row sums, n its column sums. A is singular along constants: the level of p is
set so that its mean over positions is that of the plain mean. Offsets must connect all positions (with only even
differences odd and even positions share no target); where they do not, the estimate is NaN.

The error is a cluster sandwich: p is linear in the losses, so with residuals e, cluster c moves it by A^+ r_c(e) +
(mean_i S_ci - level n_c) / n, and the variance is C/(C-1) sum_c of its square. Source: fixed-effects estimators and
clustered errors as in Cameron and Miller 2015, "A Practitioner's Guide to Cluster-Robust Inference".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Design:
    """What of the windows does not change from checkpoint to checkpoint."""

    cell: np.ndarray  # (window, position) number of the target that is scored there
    per_cell: np.ndarray  # (cell,) how often each target is scored
    inverse: np.ndarray  # (position, position) A^+
    cluster: np.ndarray  # (window,)
    n_clusters: int


def prepare(excerpt: np.ndarray, offset: np.ndarray, cluster: np.ndarray, n_clusters: int, n: int) -> Design | None:
    """The design of a set of windows, or None where targets do not connect all positions.

    Args:
        excerpt, offset, cluster: of each window; the target at position i of a window is token offset + i of its
            excerpt, and an excerpt lies within one cluster.
        n_clusters: C. n: positions of a window.
    """
    place = offset[:, None] + np.arange(1, n + 1)[None, :]
    span = int(place.max()) + 1
    _, flat = np.unique(excerpt[:, None] * span + place, return_inverse=True)
    cell = flat.reshape(place.shape)
    per_cell = np.bincount(cell.ravel()).astype(np.float64)
    normal = _normal_matrix(cell, excerpt, per_cell, n)
    values, vectors = np.linalg.eigh(normal)
    if n < 2 or values[1] < 1e-9 * values[-1]:  # more than the constants are free
        return None
    inverse = (vectors[:, 1:] / values[1:]) @ vectors[:, 1:].T
    return Design(cell, per_cell, inverse, np.asarray(cluster), n_clusters)


def estimate(losses: np.ndarray, design: Design) -> tuple[np.ndarray, np.ndarray]:
    """The position effects at the level of the plain mean, and their standard errors, each (position,) float64.

    Args:
        losses: (window, position), nats.
        design: of the same windows in the same order.
    """
    losses = np.asarray(losses, np.float64)
    shape = design.inverse @ _demeaned(losses, design).sum(axis=0)
    residual = _demeaned(losses - shape[None, :], design)
    level = losses.mean()
    score = _by_cluster(residual, design)
    level_score = _by_cluster(losses - level, design).mean(axis=1)
    influence = score @ design.inverse + level_score[:, None] / len(losses)
    clusters = len(np.unique(design.cluster))
    factor = clusters / (clusters - 1) if clusters > 1 else np.nan
    return level + shape, np.sqrt(factor * (influence**2).sum(axis=0))


def _normal_matrix(cell: np.ndarray, excerpt: np.ndarray, per_cell: np.ndarray, n: int) -> np.ndarray:
    """A, added up excerpt by excerpt: no two excerpts share a target."""
    normal = np.zeros((n, n))
    for name in np.unique(excerpt):
        inside = cell[excerpt == name]
        cells, local = np.unique(inside, return_inverse=True)
        count = np.zeros((len(cells), n))
        np.add.at(count, (local.reshape(inside.shape), np.arange(n)[None, :]), 1.0)
        normal += np.diag(count.sum(axis=0)) - (count / per_cell[cells, None]).T @ count
    return normal


def _demeaned(values: np.ndarray, design: Design) -> np.ndarray:
    """Values minus the mean of their target."""
    total = np.bincount(design.cell.ravel(), weights=values.ravel(), minlength=len(design.per_cell))
    return values - (total / design.per_cell)[design.cell]


def _by_cluster(values: np.ndarray, design: Design) -> np.ndarray:
    """Sums over the windows of each cluster, in window order, (cluster, position)."""
    total = np.zeros((design.n_clusters, values.shape[1]))
    np.add.at(total, design.cluster, values)
    return total
