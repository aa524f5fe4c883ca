"""Parts of a decoder: RMS norm, rotary positions, causal attention with grouped key/value heads, SwiGLU.

Letters in names give shapes: B batch, T position, S earlier position, D model, H query heads, K key/value heads, G =
H / K query heads to each of them, h head dimension, F feed-forward. Parameters are float32, activations of the
model's dtype. Sources: RMSNorm, Zhang and Sennrich 2019 (arXiv 1910.07467); rotary positions, Su et al. 2021
(2104.09864); SwiGLU, Shazeer 2020 (2002.05202); grouped-query attention, Ainslie et al. 2023 (2305.13245).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from tsl_jax.models.config import ModelConfig, head_dim

MASKED = -1e30
INIT_STD = 0.02


def rotary_table(n: int, dim: int, base: float) -> tuple[jax.Array, jax.Array]:
    """cos and sin of i / base^(2 j / dim), each (n, dim / 2)."""
    frequency_h = base ** (-jnp.arange(0, dim, 2, dtype=jnp.float32) / dim)
    angle_Txh = jnp.arange(n, dtype=jnp.float32)[:, None] * frequency_h[None, :]
    return jnp.cos(angle_Txh), jnp.sin(angle_Txh)


def rotate(x_BxTxHxh: jax.Array, table: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turn pairs (j, j + h/2) by their position's angle, so that q.k depends on the distance of positions only."""
    cos, sin = (t[None, :, None, :].astype(x_BxTxHxh.dtype) for t in table)
    a, b = jnp.split(x_BxTxHxh, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def causal_attention(q_BxTxHxh: jax.Array, k_BxTxKxh: jax.Array, v_BxTxKxh: jax.Array, kind: str) -> jax.Array:
    """softmax(q k' / sqrt(h), past and present only) v, of shape (B, T, H, h).

    Args:
        q_BxTxHxh, k_BxTxKxh, v_BxTxKxh: queries, keys, values; K divides H.
        kind: "fused" calls `jax.nn.dot_product_attention` (cuDNN's flash kernel for bfloat16 on GPU); "chunks" gives
            blocks of queries their own prefix of keys, which skips nearly half of the work and is quicker on CPU.
    """
    if kind == "fused":
        flash = jax.default_backend() == "gpu" and q_BxTxHxh.dtype == jnp.bfloat16
        return jax.nn.dot_product_attention(
            q_BxTxHxh, k_BxTxKxh, v_BxTxKxh, is_causal=True, implementation="cudnn" if flash else None
        )
    return _attention_in_chunks(q_BxTxHxh, k_BxTxKxh, v_BxTxKxh)


def _attention_in_chunks(q_BxTxHxh: jax.Array, k_BxTxKxh: jax.Array, v_BxTxKxh: jax.Array) -> jax.Array:
    B, T, H, h = q_BxTxHxh.shape
    K = k_BxTxKxh.shape[2]
    q_BxKxGxTxh = q_BxTxHxh.reshape(B, T, K, H // K, h).transpose(0, 2, 3, 1, 4)
    k_BxKxTxh, v_BxKxTxh = (x.transpose(0, 2, 1, 3) for x in (k_BxTxKxh, v_BxTxKxh))
    block = max(32, -(-T // 4))  # more than four blocks save little and compile longer
    out = []
    for start in range(0, T, block):
        stop = min(start + block, T)
        score = jnp.einsum("bkgth,bksh->bkgts", q_BxKxGxTxh[:, :, :, start:stop], k_BxKxTxh[:, :, :stop])
        seen_TxS = jnp.arange(stop)[None, :] <= jnp.arange(start, stop)[:, None]
        score = jnp.where(seen_TxS[None, None, None], score.astype(jnp.float32) * h**-0.5, MASKED)
        share = jax.nn.softmax(score, axis=-1).astype(v_BxKxTxh.dtype)
        out.append(jnp.einsum("bkgts,bksh->bkgth", share, v_BxKxTxh[:, :, :stop]))
    return jnp.concatenate(out, axis=3).transpose(0, 3, 1, 2, 4).reshape(B, T, H, h)


def matrix(rngs: nnx.Rngs, *shape: int, std: float = INIT_STD) -> nnx.Param[jax.Array]:
    """Normal initial values of mean zero."""
    return nnx.Param(std * jax.random.normal(rngs.params(), shape, jnp.float32))


def branch_std(config: ModelConfig) -> float:
    """Standard deviation of what ends a branch: with 2 L of them the residual stream starts no wider than one."""
    return INIT_STD / (2 * config.n_layers) ** 0.5


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + eps) * scale, in float32."""

    def __init__(self, d_model: int, eps: float):
        self.scale = nnx.Param(jnp.ones(d_model, jnp.float32))
        self.eps = eps

    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        x = x_BxTxD.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps)
        return (x * self.scale[...][None, None, :]).astype(x_BxTxD.dtype)


class Attention(nnx.Module):
    """Causal self-attention; one matrix makes queries, keys and values."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.n_heads, self.n_kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, head_dim(config)
        self.kind = config.attention
        width = config.n_heads * self.head_dim
        self.qkv = matrix(rngs, config.d_model, width + 2 * config.n_kv_heads * self.head_dim)
        self.out = matrix(rngs, width, config.d_model, std=branch_std(config))

    def __call__(self, x_BxTxD: jax.Array, table: tuple[jax.Array, jax.Array]) -> jax.Array:
        B, T, _ = x_BxTxD.shape
        H, K, h = self.n_heads, self.n_kv_heads, self.head_dim
        q, k, v = jnp.split(x_BxTxD @ self.qkv[...].astype(x_BxTxD.dtype), [H * h, (H + K) * h], axis=-1)
        q = rotate(q.reshape(B, T, H, h), table)
        k = rotate(k.reshape(B, T, K, h), table)
        mixed_BxTxHxh = causal_attention(q, k, v.reshape(B, T, K, h), self.kind)
        return mixed_BxTxHxh.reshape(B, T, H * h) @ self.out[...].astype(x_BxTxD.dtype)


class SwiGLU(nnx.Module):
    """(silu(x W_gate) * (x W_up)) W_down; one matrix holds gate and up."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.gate_up = matrix(rngs, config.d_model, 2 * config.d_ff)
        self.down = matrix(rngs, config.d_ff, config.d_model, std=branch_std(config))

    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        gate_BxTxF, up_BxTxF = jnp.split(x_BxTxD @ self.gate_up[...].astype(x_BxTxD.dtype), 2, axis=-1)
        return (jax.nn.silu(gate_BxTxF) * up_BxTxF) @ self.down[...].astype(x_BxTxD.dtype)
