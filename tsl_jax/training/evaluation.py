"""The loss of every position on a fixed set of windows: one checkpoint of the loss surface.

The device gives float32 losses of single tokens, a fixed number of windows at a time (a batch of another size may
take another kernel and other bits); the host adds them up in float64 in window order, in total and by cluster. What
comes out are the arrays named in `surface.STORED`.

Where windows overlap, the loss by position is estimated a second time, by a two-way additive model. Some target tokens
are hard wherever they stand; a plain mean over windows carries that noise into every position.
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

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from tsl_jax.data.windows import Windows
from tsl_jax.models.build import Params, hidden, unembedding
from tsl_jax.training.objective import token_losses

Forward = Callable[[Params, Any], jax.Array]


@dataclass(frozen=True)
class AdditiveDesign:
    """What of the windows does not change from checkpoint to checkpoint."""

    cell: np.ndarray  # (window, position) number of the target that is scored there
    per_cell: np.ndarray  # (cell,) how often each target is scored
    inverse: np.ndarray  # (position, position) A^+
    cluster: np.ndarray  # (window,)
    n_clusters: int


@dataclass(frozen=True)
class EvaluationSet:
    """The windows of one split with what is prepared once: see `data.windows`."""

    tokens: np.ndarray  # (window, context + 1) int32
    cluster: np.ndarray  # (window,)
    n_clusters: int
    design: AdditiveDesign | None  # None where windows do not overlap


def prepare(windows: Windows) -> EvaluationSet:
    """The evaluation set of a split's windows."""
    design = None
    if windows.design["design"] == "overlapping":
        n = windows.tokens.shape[1] - 1
        design = additive_design(windows.excerpt, windows.offset, windows.cluster, windows.n_clusters, n)
    return EvaluationSet(windows.tokens, windows.cluster, windows.n_clusters, design)


def make_forward(graphdef: nnx.GraphDef, platform: str = "", placed: NamedSharding | None = None) -> Any:
    """A jitted function: params, windows (B, T + 1) int32 -> losses (B, T) float32, nats.

    Args:
        graphdef: of the model. platform: "cpu", "gpu" or "tpu", on which it will run; "" is this machine's.
        placed: where the losses lie, on a mesh: whole on every device, so that every process has them.
    """

    def forward(params: Params, tokens_BxN: jax.Array) -> jax.Array:
        h_BxTxD = hidden(graphdef, params, tokens_BxN[:, :-1])
        return token_losses(h_BxTxD, unembedding(params), tokens_BxN[:, 1:], platform=platform)

    return jax.jit(forward, out_shardings=placed)


def window_losses(
    forward: Forward,
    params: Params,
    tokens: np.ndarray,
    batch: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """Losses of all windows, (window, position) float32.

    Args:
        forward: from `make_forward`; params: of the model.
        tokens: (window, context + 1) int32; batch: windows at a time, the last batch filled up with the first window.
        progress: called with windows done and in all; an exception from it ends the evaluation.
    """
    n = len(tokens)
    padded = np.concatenate([tokens, np.repeat(tokens[:1], -n % batch, axis=0)]).astype(np.int32)
    out = []
    for start in range(0, n, batch):
        out.append(np.asarray(forward(params, padded[start : start + batch])))
        progress(min(start + batch, n), n)
    return np.concatenate(out)[:n]


def reduce(losses: np.ndarray, windows: EvaluationSet) -> dict[str, np.ndarray]:
    """The float64 arrays of one split and checkpoint, as `surface.append` takes them.

    Args:
        losses: (window, position) as `window_losses` gives them; windows: the same windows.
    """
    x = np.asarray(losses, np.float64)
    result: dict[str, np.ndarray] = {}
    for name, values in (("sum", x), ("sum_squares", x * x), ("count", np.ones_like(x))):
        by_cluster = np.zeros((windows.n_clusters, x.shape[1]))
        np.add.at(by_cluster, windows.cluster, values)
        result[f"cluster_{name}"] = by_cluster
        result["count" if name == "count" else f"loss_{name}"] = values.sum(axis=0)
    nothing = np.full(x.shape[1], np.nan)
    mean, sem = additive_estimate(x, windows.design) if windows.design else (nothing, nothing)
    return result | {"loss_additive": mean, "loss_additive_sem": sem}


def additive_design(
    excerpt: np.ndarray, offset: np.ndarray, cluster: np.ndarray, n_clusters: int, n: int
) -> AdditiveDesign | None:
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
    if n < 2 or values[1] <= 1e-9 * values[-1]:  # more than the constants are free, all where no target repeats
        return None
    inverse = (vectors[:, 1:] / values[1:]) @ vectors[:, 1:].T
    return AdditiveDesign(cell, per_cell, inverse, np.asarray(cluster), n_clusters)


def additive_estimate(losses: np.ndarray, design: AdditiveDesign) -> tuple[np.ndarray, np.ndarray]:
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


def _demeaned(values: np.ndarray, design: AdditiveDesign) -> np.ndarray:
    """Values minus the mean of their target."""
    total = np.bincount(design.cell.ravel(), weights=values.ravel(), minlength=len(design.per_cell))
    return values - (total / design.per_cell)[design.cell]


def _by_cluster(values: np.ndarray, design: AdditiveDesign) -> np.ndarray:
    """Sums over the windows of each cluster, in window order, (cluster, position)."""
    total = np.zeros((design.n_clusters, values.shape[1]))
    np.add.at(total, design.cluster, values)
    return total
