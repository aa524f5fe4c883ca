"""The loss of every position on a fixed set of windows: one checkpoint of the loss surface.

The device gives float32 losses of single tokens, a fixed number of windows at a time (a batch of another size may
take another kernel and other bits); the host adds them up in float64 in window order, in total and by cluster. What
comes out are the arrays named in `surface.STORED`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx

from tsl_jax.data.windows import Windows
from tsl_jax.models.build import Params, hidden, unembedding
from tsl_jax.training import additive_estimate
from tsl_jax.training.objective import token_losses

Forward = Callable[[Params, Any], jax.Array]


@dataclass(frozen=True)
class EvaluationSet:
    """The windows of one split with what is prepared once: see `data.windows`."""

    tokens: np.ndarray  # (window, context + 1) int32
    cluster: np.ndarray  # (window,)
    n_clusters: int
    design: additive_estimate.Design | None  # None where windows do not overlap


def prepare(windows: Windows) -> EvaluationSet:
    """The evaluation set of a split's windows."""
    design = None
    if windows.design["design"] == "overlapping":
        n = windows.tokens.shape[1] - 1
        design = additive_estimate.prepare(windows.excerpt, windows.offset, windows.cluster, windows.n_clusters, n)
    return EvaluationSet(windows.tokens, windows.cluster, windows.n_clusters, design)


def make_forward(graphdef: nnx.GraphDef) -> Any:
    """A jitted function: params, windows (B, T + 1) int32 -> losses (B, T) float32, nats."""

    def forward(params: Params, tokens_BxN: jax.Array) -> jax.Array:
        h_BxTxD = hidden(graphdef, params, tokens_BxN[:, :-1])
        return token_losses(h_BxTxD, unembedding(params), tokens_BxN[:, 1:])

    return jax.jit(forward)


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
    mean, sem = additive_estimate.estimate(x, windows.design) if windows.design else (nothing, nothing)
    return result | {"loss_additive": mean, "loss_additive_sem": sem}
