"""The objective: position-weighted mean cross-entropy, in chunks of tokens so that (B, T, V) logits never exist.

    loss = 1/(B T) sum_{b,i} w_i l_{b,i},   l = logsumexp(W h) - (W h)_target >= 0,   mean_i w_i = 1

`weighted_loss` makes the gradient in the forward pass, chunk by chunk: with p = softmax(W h) and g = w/(B T) (p -
onehot), dh = g' W and dW = sum g h'. That is three products with W instead of the four of recomputation, and valid
because the loss is a fixed linear function of the token losses. The idea is that of Liger Kernel (Hsu et al. 2024,
arXiv 2410.10989).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tsl_jax.models.sharding import BATCH, batch_parts, constrain, gathered, platform_of

# On CPU a chunk of logits fits the cache where V allows, and all arrays but h, W and their gradients take 128 MB.
CHUNK_LOGITS = 1 << 22  # entries of a chunk of logits: larger chunks are no faster
CHUNK_TOKENS = 256  # at least in a chunk, even if V is large: fewer make slow matrix products
MOST_LOGITS = 25 << 20  # entries of a chunk of logits, however large V is
WHOLE_DW = 1 << 20  # entries of dW up to which all of it is added to at once
DW_ROWS = 192  # rows of a larger dW that are added to at a time; a power of two would be slower by a fifth
ACCELERATOR_LOGITS = 1 << 28  # entries of a chunk on an accelerator, where few and large products are fast

Hidden = Float[Array, "batch position d_model"]
Unembedding = Float[Array, "vocabulary d_model"]
Targets = Int[Array, "batch position"]


def token_losses(
    h_BxTxD: Hidden, w_VxD: Unembedding, target_BxT: Targets, chunk: int = 0, platform: str = ""
) -> Float[Array, "batch position"]:
    """Cross-entropy of every token in nats, (B, T) float32. For evaluation: its gradient would keep the logits.

    Arguments are those of `weighted_loss`.
    """
    h, y, _ = _chunked(h_BxTxD, target_BxT, None, chunk or chunk_tokens(len(w_VxD), platform))
    w_VxD = gathered(w_VxD.astype(h.dtype))
    losses_CxM = jax.lax.map(lambda part: _losses(part[0], w_VxD, part[1])[0], (h, y))
    return _unchunked(losses_CxM, target_BxT)


def token_scores(
    h_BxTxD: Hidden, w_VxD: Unembedding, target_BxT: Targets, chunk: int = 0, platform: str = ""
) -> tuple[Float[Array, "batch position"], Bool[Array, "batch position"]]:
    """`token_losses`, and whether each target is the most likely token, the first of equals: (B, T) both."""
    h, y, _ = _chunked(h_BxTxD, target_BxT, None, chunk or chunk_tokens(len(w_VxD), platform))
    w_VxD = gathered(w_VxD.astype(h.dtype))

    def score(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        loss_M, e_MxV, _ = _losses(part[0], w_VxD, part[1])
        return loss_M, e_MxV.argmax(axis=-1) == part[1]

    losses_CxM, hits_CxM = jax.lax.map(score, (h, y))
    return _unchunked(losses_CxM, target_BxT), _unchunked(hits_CxM, target_BxT)


def weighted_loss(
    h_BxTxD: Hidden,
    w_VxD: Unembedding,
    target_BxT: Targets,
    weight_T: Float[Array, " position"],
    chunk: int = 0,
    platform: str = "",
) -> Float[Array, ""]:
    """The position-weighted mean cross-entropy in nats, a float32 scalar, differentiable in h and W.

    Args:
        h_BxTxD: hidden states; w_VxD: unembedding; target_BxT: the tokens to predict.
        weight_T: weights of positions, mean one (`PositionWeights.values`), constants of the run.
        chunk: tokens at a time; 0: by the size of V and the platform.
        platform: "cpu", "gpu" or "tpu", on which the program will run; "" is this machine's.
    """
    share_BxT = jnp.broadcast_to(weight_T.astype(jnp.float32)[None, :] / target_BxT.size, target_BxT.shape)
    h, y, share = _chunked(h_BxTxD, target_BxT, share_BxT, chunk or chunk_tokens(len(w_VxD), platform))
    return _summed_loss(h, w_VxD, y, share)


@jax.custom_vjp
def _summed_loss(h_CxMxD: jax.Array, w_VxD: jax.Array, y_CxM: jax.Array, share_CxM: jax.Array) -> jax.Array:
    w = gathered(w_VxD.astype(h_CxMxD.dtype))
    losses = jax.lax.map(lambda part: _losses(part[0], w, part[1])[0], (h_CxMxD, y_CxM))
    return jnp.sum(losses * share_CxM)


def _forward(
    h_CxMxD: jax.Array, w_VxD: jax.Array, y_CxM: jax.Array, share_CxM: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """The loss, and its gradients with respect to h and W."""
    w = gathered(w_VxD.astype(h_CxMxD.dtype))

    def one_chunk(dw_VxD: jax.Array, part: tuple[jax.Array, ...]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        h_MxD, y_M, share_M = part
        loss_M, e_MxV, total_M = _losses(h_MxD, w, y_M)
        # g = share (softmax - onehot), the gradient with respect to the logits; then dW += g' h and dh = g W
        hit_MxV = jnp.arange(w.shape[0], dtype=y_M.dtype)[None, :] == y_M[:, None]
        g_MxV = e_MxV * (share_M / total_M)[:, None] - jnp.where(hit_MxV, share_M[:, None], 0.0)
        g_MxV = g_MxV.astype(h_MxD.dtype)
        return _add_product(dw_VxD, g_MxV, h_MxD), (jnp.sum(loss_M * share_M), g_MxV @ w)

    zero = gathered(jnp.zeros(w_VxD.shape, jnp.float32))
    dw_VxD, (loss_C, dh_CxMxD) = jax.lax.scan(one_chunk, zero, (h_CxMxD, y_CxM, share_CxM))
    return jnp.sum(loss_C), (dh_CxMxD, dw_VxD.astype(w_VxD.dtype))


def _add_product(dw_VxD: jax.Array, g_MxV: jax.Array, h_MxD: jax.Array) -> jax.Array:
    """dW + g' h.

    On CPU, XLA's product of this form is slower by two thirds and takes as much memory as dW. There a small dW gets the
    transpose of h' g, and a larger one is added to by rows.
    """

    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        return jax.lax.dot_general(a, b, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)

    def add_rows(dw_VxD: jax.Array, start: Any, count: int) -> jax.Array:
        rows_RxD = jax.lax.dynamic_slice_in_dim(dw_VxD, start, count)
        rows_RxD += product(jax.lax.dynamic_slice_in_dim(g_MxV, start, count, axis=1), h_MxD)
        return jax.lax.dynamic_update_slice_in_dim(dw_VxD, rows_RxD, start, axis=0)

    def on_cpu(dw_VxD: jax.Array, g_MxV: jax.Array, h_MxD: jax.Array) -> jax.Array:
        if dw_VxD.size <= WHOLE_DW:
            # Without the barrier XLA would turn the product into the slow one.
            return dw_VxD + jax.lax.optimization_barrier(product(h_MxD, g_MxV)).T
        blocks, left = divmod(dw_VxD.shape[0], DW_ROWS)
        dw_VxD = jax.lax.fori_loop(0, blocks, lambda i, dw_VxD: add_rows(dw_VxD, i * DW_ROWS, DW_ROWS), dw_VxD)
        return add_rows(dw_VxD, blocks * DW_ROWS, left) if left else dw_VxD

    def elsewhere(dw_VxD: jax.Array, g_MxV: jax.Array, h_MxD: jax.Array) -> jax.Array:
        return dw_VxD + product(g_MxV, h_MxD)

    return jax.lax.platform_dependent(dw_VxD, g_MxV, h_MxD, cpu=on_cpu, default=elsewhere)


def _backward(residuals: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array, None, None]:
    dh, dw = residuals
    return dh * g.astype(dh.dtype), dw * g.astype(dw.dtype), None, None


_summed_loss.defvjp(_forward, _backward)


def _losses(h_MxD: jax.Array, w_VxD: jax.Array, y_M: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Loss of each token, e^(logit - largest) and its sum: the exponentials are taken once for loss and gradient.

    The target's logit is computed once more, by itself: read from the logits after the exponentials are taken, it
    would keep XLA from putting these in the logits' place, and a chunk would need twice the memory. By rounding it may
    exceed the largest of them; cut off there, no loss is negative, as the sum holds the largest one's e^0 = 1.
    """
    logits_MxV = jax.lax.dot_general(h_MxD, w_VxD, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    at_target_M = jnp.sum(h_MxD.astype(jnp.float32) * jnp.take(w_VxD, y_M, axis=0).astype(jnp.float32), axis=-1)
    largest_M = logits_MxV.max(axis=-1)
    e_MxV = jnp.exp(logits_MxV - largest_M[:, None])
    total_M = e_MxV.sum(axis=-1)
    return jnp.log(total_M) + jnp.maximum(largest_M - at_target_M, 0.0), e_MxV, total_M


def chunk_tokens(vocabulary: int, platform: str = "") -> int:
    """Tokens of a chunk on a platform, "" being this machine's."""
    if (platform or platform_of(None)) != "cpu":
        return max(1, ACCELERATOR_LOGITS // vocabulary)
    return min(max(CHUNK_TOKENS, CHUNK_LOGITS // vocabulary), max(1, MOST_LOGITS // vocabulary))


def _chunked(
    h_BxTxD: jax.Array, y_BxT: jax.Array, share_BxT: jax.Array | None, chunk: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """All tokens as (chunks, tokens of a chunk, ...); the last chunk is filled up with tokens that count nothing.

    On a mesh every chunk has tokens of every part of the batch, so that no device waits for the chunks of another.
    """
    parts = batch_parts(len(y_BxT))
    n = y_BxT.size // parts
    m = -(-n // -(-n // chunk))  # chunks of nearly equal length leave little to fill up

    def chunks(x_BxTx: jax.Array) -> jax.Array:
        rest = x_BxTx.shape[2:]
        x_PxNx = jnp.pad(x_BxTx.reshape(parts, n, *rest), ((0, 0), (0, -n % m), *((0, 0) for _ in rest)))
        x_CxMx = x_PxNx.reshape(parts, -1, m, *rest).swapaxes(0, 1).reshape(-1, parts * m, *rest)
        return constrain(x_CxMx, None, BATCH, *(None for _ in rest))

    share_BxT = jnp.zeros(y_BxT.shape, jnp.float32) if share_BxT is None else share_BxT
    return chunks(h_BxTxD), chunks(y_BxT), chunks(share_BxT)


def _unchunked(x_CxM: jax.Array, y_BxT: jax.Array) -> jax.Array:
    """(B, T) of what `_chunked` made of it, without the tokens that filled the last chunk up."""
    parts = batch_parts(len(y_BxT))
    x_PxN = x_CxM.reshape(len(x_CxM), parts, -1).swapaxes(0, 1).reshape(parts, -1)
    return x_PxN[:, : y_BxT.size // parts].reshape(y_BxT.shape)
