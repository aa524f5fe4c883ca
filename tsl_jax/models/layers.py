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


def rotary_table(n: int, dim: int, base: float) -> Table:
    """cos and sin of i / base^(2 j / dim), each (n, dim / 2), float32.

    Made by numpy, as constants of the program: XLA would merge the computation of a table into every loop that reads
    it, and take sines anew for every number that is rotated.
    """
    frequency_h = np.float32(base) ** (-np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim))
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


class Attention(nnx.Module):
    """Causal self-attention; one matrix makes queries, keys and values."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.n_heads, self.n_kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, head_dim(config)
        self.kind = config.attention
        width = config.n_heads * self.head_dim
        self.qkv = matrix(rngs, config.d_model, width + 2 * config.n_kv_heads * self.head_dim)
        self.out = matrix(rngs, width, config.d_model, std=branch_std(config))

    def __call__(self, x_BxTxD: jax.Array, table: Table) -> jax.Array:
        B, T, _ = x_BxTxD.shape
        H, K, h = self.n_heads, self.n_kv_heads, self.head_dim
        q, k, v = jnp.split(matmul(x_BxTxD, self.qkv), [H * h, (H + K) * h], axis=-1)
        q = rotate(q.reshape(B, T, H, h), table)
        k = rotate(k.reshape(B, T, K, h), table)
        # The values that a head mixes, side by side, are mapped back to the residual stream.
        mixed_BxTxHxh = causal_attention(q, k, v.reshape(B, T, K, h), self.kind)
        return matmul(mixed_BxTxHxh.reshape(B, T, H * h), self.out)


class SwiGLU(nnx.Module):
    """(silu(x W_gate) * (x W_up)) W_down; one matrix holds gate and up."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.gate_up = matrix(rngs, config.d_model, 2 * config.d_ff)
        self.down = matrix(rngs, config.d_ff, config.d_model, std=branch_std(config))

    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        gate_BxTxF, up_BxTxF = jnp.split(matmul(x_BxTxD, self.gate_up), 2, axis=-1)
        return matmul(jax.nn.silu(gate_BxTxF) * up_BxTxF, self.down)
