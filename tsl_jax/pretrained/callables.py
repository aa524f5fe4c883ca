"""Losses by position of any function from tokens to logits, of JAX, PyTorch or anything else.

    loss[b, i] = log sum_v exp(logits[b, i, v]) - logits[b, i, target[b, i]],   in float32, at least 0

What comes out is a loss surface of one checkpoint, as `tsl evaluate` makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from tsl_jax import surface
from tsl_jax.data.windows import DOCUMENT_BOUNDARY, Windows
from tsl_jax.training import evaluation, provenance


def evaluate(
    apply_fn: Callable[[np.ndarray], Any],
    windows: Windows | np.ndarray | Mapping[str, Windows | np.ndarray],
    *,
    tokens: int = 0,
    step: int = -1,
    batch: int = 8,
    out: str | Path | None = None,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    **attrs: Any,
) -> xr.Dataset:
    """The loss surface of one checkpoint: the loss of every position on these windows, in nats per token.

    Args:
        apply_fn: from token ids (batch, n) int32 to logits (batch, n, vocabulary) as an array of JAX, numpy or PyTorch;
            those at place t are of the token after t. It always gets `batch` windows. For PyTorch:
            `lambda tokens: model(torch.as_tensor(tokens)).logits`, under `torch.no_grad()`.
        windows: from `text_windows`, by split; one of these; or token ids (window, n + 1), each window a cluster.
        tokens: training tokens the checkpoint has seen, 0 where not known. step: of its training, -1: not known.
        out: folder of a surface that this checkpoint is added to, begun where there is none; if it holds these `tokens`
            already, nothing is computed. None: in memory alone.
        attrs: facts to keep with it, such as run="name" or n_params=...

    Returns:
        What `load_surface` gives of it: loss, sem, loss_additive over (split, tokens, position).

    Raises:
        ValueError: for windows or logits of another shape, losses that are not finite, or an `out` of other windows.
    """
    sets = _by_split(windows)
    prepared = {split: evaluation.prepare(part) for split, part in sets.items()}
    contexts = {part.tokens.shape[1] - 1 for part in prepared.values()}
    if len(contexts) > 1:
        raise ValueError(f"evaluate: all splits have one context, found {sorted(contexts)}; cut the windows to one")
    if batch < 1 or tokens < 0:
        raise ValueError(f"evaluate: batch must be at least 1 and tokens at least 0, found {batch} and {tokens}")
    facts = {
        "windows": {split: part.design for split, part in sets.items()},
        "document_boundary": DOCUMENT_BOUNDARY,
        "versions": provenance.versions(),
        **attrs,
    }
    clusters = {split: part.n_clusters for split, part in prepared.items()}
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) if out is None else Path(out)
        surface.create(folder, clusters=clusters, context=contexts.pop(), attrs=facts)
        if tokens not in surface.checkpoints(folder):
            splits = {}
            for split, part in prepared.items():

                def report(done: int, total: int, split: str = split) -> None:
                    progress(f"evaluate {split}", done, total)

                # What the forward pass is given as parameters is the function itself.
                losses = evaluation.window_losses(_forward, cast(Any, apply_fn), part.tokens, batch, report)
                splits[split] = evaluation.reduce(losses, part)
            surface.append(folder, tokens=tokens, step=step, lr=float("nan"), splits=splits)
        return surface.load_surface(folder)


def _by_split(windows: Any) -> dict[str, Windows]:
    """The windows by split, arrays of token ids made into windows."""
    named = windows if isinstance(windows, Mapping) else {"id": windows}
    if not named:
        raise ValueError("evaluate: there are no windows; make some with tsl.text_windows")
    return {str(split): part if isinstance(part, Windows) else _from_ids(part) for split, part in named.items()}


def _from_ids(ids: Any) -> Windows:
    ids = np.asarray(ids)
    if ids.ndim != 2 or ids.dtype.kind not in "iu" or ids.shape[0] < 1 or ids.shape[1] < 2 or ids.min() < 0:
        found = f"shape {ids.shape} of {ids.dtype}"
        raise ValueError(f"evaluate: windows are token ids (window, context + 1), found {found}; see tsl.text_windows")
    number = np.arange(len(ids), dtype=np.int64)
    design = {"design": "given", "documents": len(ids), "domains": [], "stretches": len(ids), "digest": _digest(ids)}
    return Windows(ids.astype(np.int32), number, number, np.zeros_like(number), design, len(ids), len(ids))


def _digest(ids: np.ndarray) -> str:
    import hashlib

    return hashlib.sha256(np.ascontiguousarray(ids, "<i4").tobytes()).hexdigest()


def _forward(apply_fn: Any, tokens_BxN: Any) -> jax.Array:
    """Losses (B, T) of what the function makes of the first T tokens."""
    inputs, targets = np.ascontiguousarray(tokens_BxN[:, :-1]), tokens_BxN[:, 1:]
    logits = apply_fn(inputs)
    if hasattr(logits, "detach"):  # PyTorch's, which may be on a device or in bfloat16
        logits = logits.detach().cpu().float().numpy()
    if getattr(logits, "ndim", 0) != 3 or logits.shape[:2] != inputs.shape:
        found = getattr(logits, "shape", type(logits).__name__)
        raise ValueError(f"evaluate: apply_fn must give logits (batch, n, vocabulary) of {inputs.shape}, found {found}")
    if logits.shape[2] <= targets.max():
        sizes = f"{logits.shape[2]} logits, while the windows hold token {targets.max()}"
        raise ValueError(f"evaluate: apply_fn gives {sizes}; take the tokenizer of the model")
    losses = losses_of_logits(logits, targets)
    if not np.isfinite(losses).all():
        raise ValueError("evaluate: some losses are NaN or infinite; look at the logits that apply_fn gives")
    return losses


@jax.jit
def losses_of_logits(logits_BxTxV: jax.Array, target_BxT: jax.Array) -> jax.Array:
    """Cross-entropy of every token in nats, (B, T) float32."""
    logits_BxTxV = logits_BxTxV.astype(jnp.float32)
    largest_BxTx1 = logits_BxTxV.max(axis=-1, keepdims=True)
    total_BxT = jnp.exp(logits_BxTxV - largest_BxTx1).sum(axis=-1)
    at_target_BxTx1 = jnp.take_along_axis(logits_BxTxV, target_BxT[:, :, None], axis=-1)
    return jnp.log(total_BxT) + (largest_BxTx1 - at_target_BxTx1)[:, :, 0]
