"""Parts of a decoder: RMS norm, rotary positions, the projections of attention, SwiGLU, dropout.

Letters in names give shapes: B batch, T position, S earlier position, D model, H query heads, K key/value heads, G =
H / K query heads to each of them, h head dimension, F feed-forward. Parameters are float32, activations of the
model's dtype. Sources: RMSNorm, Zhang and Sennrich 2019 (arXiv 1910.07467); rotary positions, Su et al. 2021
(2104.09864); SwiGLU, Shazeer 2020 (2002.05202); grouped-query attention, Ainslie et al. 2023 (2305.13245).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from tsl_jax.models.attention import causal_attention
from tsl_jax.models.config import ModelConfig, head_dim

INIT_STD = 0.02
Table = tuple[np.ndarray, np.ndarray]  # cos and sin of a rotation, each (position, pair)


def rotary_table(n: int, dim: int, base: float, scaling: tuple[float, ...] = ()) -> Table:
    """cos and sin of i f_j, f_j = base^(-2 j / dim), each (n, dim / 2), float32.

    For contexts longer than those of the training, `scaling` slows the rotation down: one number divides all f_j; four
    (factor, low, high, original context n0) divide those whose wave is long against n0, as LLaMA 3.1 does:

        f_j ((1 - s) / factor + s),   s = (n0 f_j / (2 pi) - low) / (high - low), between 0 and 1

    Made by numpy, as constants of the program: XLA would merge the computation of a table into every loop that reads
    it, and take sines anew for every number that is rotated.
    """
    frequency_h = np.float32(base) ** (-np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim))
    if len(scaling) == 1:
        frequency_h = frequency_h / np.float32(scaling[0])
    elif scaling:
        factor, low, high, original = map(np.float32, scaling)
        share_h = np.clip((original * frequency_h / np.float32(2 * np.pi) - low) / (high - low), 0, 1)
        frequency_h = frequency_h * ((1 - share_h) / factor + share_h)
    angle_Txh = np.arange(n, dtype=np.float32)[:, None] * frequency_h[None, :]
    return np.cos(angle_Txh), np.sin(angle_Txh)


def rotate(
    x_BxTxHxh: Float[Array, "batch position head width"], table: Table
) -> Float[Array, "batch position head width"]:
    """Turn pairs (j, j + h/2) by their position's angle, so that q.k depends on the distance of positions only."""
    cos, sin = (t[None, :, None, :].astype(x_BxTxHxh.dtype) for t in table)
    a, b = jnp.split(x_BxTxHxh, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def matrix(rngs: nnx.Rngs, *shape: int, std: float = INIT_STD) -> nnx.Param[jax.Array]:
    """Normal initial values of mean zero."""
    return nnx.Param(std * jax.random.normal(rngs.params(), shape, jnp.float32))


def branch_std(config: ModelConfig) -> float:
    """Standard deviation of what ends a branch: with 2 L of them the residual stream starts no wider than one."""
    return INIT_STD / (2 * config.n_layers) ** 0.5


def matmul(
    x_BxTxD: Float[Array, "batch position d_in"], matrix_DxF: nnx.Param[jax.Array]
) -> Float[Array, "batch position d_out"]:
    """The matrix product, in x's dtype.

    Of two axes, not three: otherwise XLA transposes the gradient of the product before it multiplies it with x, and
    the gradient of the matrix takes three times as long on CPU.
    """
    B, T, D = x_BxTxD.shape
    return (x_BxTxD.reshape(B * T, D) @ matrix_DxF[...].astype(x_BxTxD.dtype)).reshape(B, T, -1)


def dropout(
    x: Float[Array, "batch position d_model"], rate: float, key: jax.Array | None, branch: int = 0
) -> Float[Array, "batch position d_model"]:
    """x with a share `rate` of its entries set to zero, the others scaled up to keep the mean; key None: x itself.

    `branch` tells apart the uses of one key. Source: Srivastava et al. 2014, JMLR 15.
    """
    if key is None:
        return x
    keep = jax.random.bernoulli(jax.random.fold_in(key, branch), 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0)


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + eps) * scale, in float32."""

    def __init__(self, d_model: int, eps: float):
        self.scale = nnx.Param(jnp.ones(d_model, jnp.float32))
        self.eps = eps

    def __call__(self, x_BxTxD: Float[Array, "batch position d_model"]) -> Float[Array, "batch position d_model"]:
        x = x_BxTxD.astype(jnp.float32)  # in bfloat16 the mean of squares would lose digits
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps)
        return (x * self.scale[...][None, None, :]).astype(x_BxTxD.dtype)


def affine(x_BxTxD: jax.Array, w_DxF: nnx.Param[jax.Array], b_F: nnx.Param[jax.Array]) -> jax.Array:
    """x W + b."""
    return matmul(x_BxTxD, w_DxF) + b_F[...].astype(x_BxTxD.dtype)[None, None, :]


class Attention(nnx.Module):
    """Causal self-attention; one matrix makes queries, keys and values.

    With `qk_norm` queries and keys are normed before they are rotated: over the width of a head (Qwen3, 2025, arXiv
    2505.09388), or over all heads at once (OLMo 2, 2501.00656).
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.n_heads, self.n_kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, head_dim(config)
        self.kind, self.qk_norm, self.bias = config.attention, config.qk_norm, config.attention_bias
        width, kv_width = config.n_heads * self.head_dim, config.n_kv_heads * self.head_dim
        self.qkv = matrix(rngs, config.d_model, width + 2 * kv_width)
        self.out = matrix(rngs, width, config.d_model, std=branch_std(config))
        if self.bias != "none":
            self.qkv_bias = nnx.Param(jnp.zeros(width + 2 * kv_width, jnp.float32))
        if self.bias == "all":
            self.out_bias = nnx.Param(jnp.zeros(config.d_model, jnp.float32))
        if self.qk_norm != "none":
            widths = (self.head_dim, self.head_dim) if self.qk_norm == "head" else (width, kv_width)
            self.q_norm, self.k_norm = (RMSNorm(w, config.norm_eps) for w in widths)

    def __call__(self, x_BxTxD: jax.Array, table: Table) -> jax.Array:
        B, T, _ = x_BxTxD.shape
        H, K, h = self.n_heads, self.n_kv_heads, self.head_dim
        qkv = matmul(x_BxTxD, self.qkv) if self.bias == "none" else affine(x_BxTxD, self.qkv, self.qkv_bias)
        q, k, v = jnp.split(qkv, [H * h, (H + K) * h], axis=-1)
        if self.qk_norm != "none":
            heads = (-1, h) if self.qk_norm == "head" else (T, -1)
            q, k = (norm(x.reshape(B, *heads)) for norm, x in ((self.q_norm, q), (self.k_norm, k)))
        q = rotate(q.reshape(B, T, H, h), table)
        k = rotate(k.reshape(B, T, K, h), table)
        # The values that a head mixes, side by side, are mapped back to the residual stream.
        mixed_BxTxHxh = causal_attention(q, k, v.reshape(B, T, K, h), self.kind)
        mixed_BxTxN = mixed_BxTxHxh.reshape(B, T, H * h)
        return affine(mixed_BxTxN, self.out, self.out_bias) if self.bias == "all" else matmul(mixed_BxTxN, self.out)


class SwiGLU(nnx.Module):
    """(silu(x W_gate) * (x W_up)) W_down; one matrix holds gate and up."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.gate_up = matrix(rngs, config.d_model, 2 * config.d_ff)
        self.down = matrix(rngs, config.d_ff, config.d_model, std=branch_std(config))

    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        gate_BxTxF, up_BxTxF = jnp.split(matmul(x_BxTxD, self.gate_up), 2, axis=-1)
        return matmul(jax.nn.silu(gate_BxTxF) * up_BxTxF, self.down)
