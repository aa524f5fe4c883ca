"""Causal attention with grouped key/value heads: by a library's kernel, or in blocks of queries, fast on a CPU.

With p = softmax(q k' / sqrt(h)), past and present only, out = p v. Letters in names give shapes, as in `layers`; R =
G t are the rows of one block: t positions, for each of the G query heads of a key/value head. In blocks the gradient is
written out, as in FlashAttention (Dao et al. 2022, arXiv 2205.14135, appendix B.2), so that no array of the size of the
scores is passed over more often than necessary: with e = exp(s - max s), z = sum e, and g the gradient of out,

    dv = e' (g / z),   ds = e ((g / z) v' - sum(out g) / z),   dq = ds k,   dk = ds' q
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tsl_jax.models.sharding import BATCH, by_device

MASKED = -1e30  # score of a future position: its exponential is 0, and no row is inf - inf
BLOCKS = 4  # of queries: more would save little and compile longer
SHORTEST = 32  # positions of a block at least
LANES = 128  # of a TPU's vector unit
SPLASH_BLOCKS = (512, 256, LANES)  # positions of a block of the TPU kernel: the first that divides T


def causal_attention(
    q_BxTxHxh: Float[Array, "batch position head width"],
    k_BxTxKxh: Float[Array, "batch position kv_head width"],
    v_BxTxKxh: Float[Array, "batch position kv_head width"],
    kind: str,
) -> Float[Array, "batch position head width"]:
    """softmax(q k' / sqrt(h), past and present only) v, of shape (B, T, H, h).

    Args:
        q_BxTxHxh, k_BxTxKxh, v_BxTxKxh: queries, keys, values; K divides H.
        kind: "chunks" gives blocks of queries their own prefix of keys, which skips nearly half of the work and is
            quicker on CPU. "fused" is `jax.nn.dot_product_attention`, whose scores (T, T) XLA keeps. "cudnn" is cuDNN's
            flash kernel, for bfloat16 on a GPU, and "splash" jax's for TPU; "fused" in their place where the shape is
            not one of theirs (h a multiple of 8 up to 128; T a multiple of 128).
    """
    B, T, H, h = q_BxTxHxh.shape
    if kind == "splash" and T % LANES == 0:
        return by_device(_splash, (q_BxTxHxh, k_BxTxKxh, v_BxTxKxh), BATCH, None, "tensor", None)
    if kind != "chunks":
        flash = kind == "cudnn" and q_BxTxHxh.dtype == jnp.bfloat16 and h % 8 == 0 and h <= 128
        return jax.nn.dot_product_attention(
            q_BxTxHxh, k_BxTxKxh, v_BxTxKxh, is_causal=True, implementation="cudnn" if flash else None
        )
    K = k_BxTxKxh.shape[2]
    q_BxKxGxTxh = (q_BxTxHxh * h**-0.5).reshape(B, T, K, H // K, h).transpose(0, 2, 3, 1, 4)
    out_BxKxGxTxh = _in_blocks(q_BxKxGxTxh, k_BxTxKxh.transpose(0, 2, 1, 3), v_BxTxKxh.transpose(0, 2, 1, 3))
    return out_BxKxGxTxh.transpose(0, 3, 1, 2, 4).reshape(B, T, H, h)


def _splash(q_BxTxHxh: jax.Array, k_BxTxKxh: jax.Array, v_BxTxKxh: jax.Array, interpret: bool = False) -> jax.Array:
    """Attention by jax's kernel for TPU, which makes no scores of T x T and skips the blocks above the diagonal."""
    # Imported where it is used: it takes half a second, and other platforms do not need it.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    T, H, h = q_BxTxHxh.shape[1:]
    block = next(size for size in SPLASH_BLOCKS if T % size == 0)
    names = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq")
    mask = masks.MultiHeadMask([masks.CausalMask((T, T))] * H)
    kernel: Any = splash.make_splash_mha(
        mask,
        block_sizes=splash.BlockSizes(**dict.fromkeys(names, block)),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    scaled_BxHxTxh = (q_BxTxHxh * h**-0.5).swapaxes(1, 2)
    return jax.vmap(kernel)(scaled_BxHxTxh, k_BxTxKxh.swapaxes(1, 2), v_BxTxKxh.swapaxes(1, 2)).swapaxes(1, 2)


@jax.custom_vjp
def _in_blocks(q_BxKxGxTxh: jax.Array, k_BxKxTxh: jax.Array, v_BxKxTxh: jax.Array) -> jax.Array:
    """softmax(q k') v; q is scaled already."""
    return _forward(q_BxKxGxTxh, k_BxKxTxh, v_BxKxTxh)[0]


def _forward(q_BxKxGxTxh: jax.Array, k_BxKxTxh: jax.Array, v_BxKxTxh: jax.Array) -> tuple[jax.Array, Any]:
    out, saved = [], []
    for rows in _blocks(q_BxKxGxTxh.shape[3]):
        q_BxKxRxh, S = _rows(q_BxKxGxTxh, rows), rows.stop
        score_BxKxRxS = jnp.einsum(
            "bkrh,bksh->bkrs", q_BxKxRxh, k_BxKxTxh[:, :, :S], preferred_element_type=jnp.float32
        )
        # A block has its t positions once for each of the G query heads.
        place_R = rows.start + jnp.arange(q_BxKxRxh.shape[2]) % (S - rows.start)
        seen_RxS = jnp.arange(S)[None, :] <= place_R[:, None]
        score_BxKxRxS = jnp.where(seen_RxS[None, None], score_BxKxRxS, MASKED)
        e_BxKxRxS = jnp.exp(score_BxKxRxS - score_BxKxRxS.max(axis=-1, keepdims=True))
        z_BxKxRx1 = e_BxKxRxS.sum(axis=-1, keepdims=True)
        e_BxKxRxS = e_BxKxRxS.astype(v_BxKxTxh.dtype)
        mixed_BxKxRxh = jnp.einsum("bkrs,bksh->bkrh", e_BxKxRxS, v_BxKxTxh[:, :, :S])
        mixed_BxKxRxh = (mixed_BxKxRxh.astype(z_BxKxRx1.dtype) / z_BxKxRx1).astype(v_BxKxTxh.dtype)
        out.append(_positions(mixed_BxKxRxh, q_BxKxGxTxh.shape[2]))
        saved.append((e_BxKxRxS, z_BxKxRx1))
    out_BxKxGxTxh = jnp.concatenate(out, axis=3)
    return out_BxKxGxTxh, (q_BxKxGxTxh, k_BxKxTxh, v_BxKxTxh, out_BxKxGxTxh, saved)


def _backward(residuals: Any, g_BxKxGxTxh: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    q_BxKxGxTxh, k_BxKxTxh, v_BxKxTxh, out_BxKxGxTxh, saved = residuals
    dtype, (G, T) = v_BxKxTxh.dtype, q_BxKxGxTxh.shape[2:4]
    dq_BxKxGxTxh = jnp.zeros(q_BxKxGxTxh.shape, dtype)
    dk_BxKxTxh, dv_BxKxTxh = (jnp.zeros(k_BxKxTxh.shape, jnp.float32) for _ in range(2))
    for rows, (e_BxKxRxS, z_BxKxRx1) in zip(_blocks(T), saved, strict=True):
        S = rows.stop
        # ds = e ((g / z) v' - sum(out g) / z), then dq = ds k, dk = ds' q, dv = e' (g / z)
        g_BxKxRxh = _rows(g_BxKxGxTxh, rows) / z_BxKxRx1
        along_BxKxRx1 = (_rows(out_BxKxGxTxh, rows) * g_BxKxRxh).sum(axis=-1, keepdims=True)
        g_BxKxRxh = g_BxKxRxh.astype(dtype)
        dp_BxKxRxS = jnp.einsum("bkrh,bksh->bkrs", g_BxKxRxh, v_BxKxTxh[:, :, :S], preferred_element_type=jnp.float32)
        ds_BxKxRxS = (e_BxKxRxS * (dp_BxKxRxS - along_BxKxRx1)).astype(dtype)
        dq_BxKxRxh = jnp.einsum("bkrs,bksh->bkrh", ds_BxKxRxS, k_BxKxTxh[:, :, :S])
        dq_BxKxGxTxh = _put(dq_BxKxGxTxh, _positions(dq_BxKxRxh, G), axis=3, start=rows.start)
        dk_BxKxTxh = _add(dk_BxKxTxh, ds_BxKxRxS, _rows(q_BxKxGxTxh, rows))
        dv_BxKxTxh = _add(dv_BxKxTxh, e_BxKxRxS, g_BxKxRxh)
    return dq_BxKxGxTxh, dk_BxKxTxh.astype(dtype), dv_BxKxTxh.astype(dtype)


def _add(total_BxKxTxh: jax.Array, a_BxKxRxS: jax.Array, b_BxKxRxh: jax.Array) -> jax.Array:
    """Add a' b to the first S positions."""
    part_BxKxSxh = jnp.einsum("bkrs,bkrh->bksh", a_BxKxRxS, b_BxKxRxh, preferred_element_type=jnp.float32)
    return _put(total_BxKxTxh, total_BxKxTxh[:, :, : part_BxKxSxh.shape[2]] + part_BxKxSxh, axis=2, start=0)


def _put(whole: jax.Array, part: jax.Array, axis: int, start: int) -> jax.Array:
    """The part in its place; padding or concatenation would be merged by XLA into slow loops with what follows."""
    return jax.lax.dynamic_update_slice_in_dim(whole, part, start, axis)


_in_blocks.defvjp(_forward, _backward)


def _blocks(T: int) -> Iterator[slice]:
    """Positions of each block of queries."""
    block = max(SHORTEST, -(-T // BLOCKS))
    for start in range(0, T, block):
        yield slice(start, min(start + block, T))


def _rows(x_BxKxGxTxh: jax.Array, positions: slice) -> jax.Array:
    """One block, as (B, K, R, h)."""
    part = x_BxKxGxTxh[:, :, :, positions]
    return part.reshape(*part.shape[:2], -1, part.shape[-1])


def _positions(x_BxKxRxh: jax.Array, G: int) -> jax.Array:
    """The rows of one block, as (B, K, G, t, h)."""
    B, K, R, h = x_BxKxRxh.shape
    return x_BxKxRxh.reshape(B, K, G, R // G, h)
