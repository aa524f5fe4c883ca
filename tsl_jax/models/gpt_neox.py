"""GPT-NeoX (Black et al. 2022, arXiv 2204.06745): both branches of a layer start from the same x,

    x + attention(norm x) + mlp(norm' x),   mlp(x) = gelu(x W_up + b_up) W_down + b_down

with LayerNorm (Ba et al. 2016, arXiv 1607.06450), biases everywhere, and rotary positions on the first quarter of each
head. Initial values are those of our LLaMA, not the paper's; `gelu` is the tanh form, or exact (Pythia). Without
`parallel` the branches follow each other, x = x + attention(norm x), then x + mlp(norm' x), which with learned
positions is GPT-2 (Radford et al. 2019).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from tsl_jax.models.attention import causal_attention
from tsl_jax.models.config import ModelConfig, head_dim, rotary_dim
from tsl_jax.models.decoder import Architecture
from tsl_jax.models.layers import Table, affine, branch_std, dropout, matrix, rotate


class LayerNorm(nnx.Module):
    """(x - mean(x)) / sqrt(var(x) + eps) * scale + bias, in float32."""

    def __init__(self, d_model: int, eps: float):
        self.scale = nnx.Param(jnp.ones(d_model, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(d_model, jnp.float32))
        self.eps = eps

    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        x = x_BxTxD.astype(jnp.float32)
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps)
        return (x * self.scale[...][None, None, :] + self.bias[...][None, None, :]).astype(x_BxTxD.dtype)


class Attention(nnx.Module):
    """Causal self-attention with biases; the last part of each head does not turn with the position, or none does."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.n_heads, self.n_kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, head_dim(config)
        self.rotary_dim, self.kind = rotary_dim(config), config.attention
        width = config.n_heads * self.head_dim
        wide = width + 2 * config.n_kv_heads * self.head_dim
        self.qkv = matrix(rngs, config.d_model, wide)
        self.qkv_bias = nnx.Param(jnp.zeros(wide, jnp.float32))
        self.out = matrix(rngs, width, config.d_model, std=branch_std(config))
        self.out_bias = nnx.Param(jnp.zeros(config.d_model, jnp.float32))

    def __call__(self, x_BxTxD: jax.Array, table: Table | None) -> jax.Array:
        B, T, _ = x_BxTxD.shape
        H, K, h = self.n_heads, self.n_kv_heads, self.head_dim
        q, k, v = jnp.split(affine(x_BxTxD, self.qkv, self.qkv_bias), [H * h, (H + K) * h], axis=-1)
        q = self._rotate_first(q.reshape(B, T, H, h), table)
        k = self._rotate_first(k.reshape(B, T, K, h), table)
        mixed_BxTxHxh = causal_attention(q, k, v.reshape(B, T, K, h), self.kind)
        return affine(mixed_BxTxHxh.reshape(B, T, H * h), self.out, self.out_bias)

    def _rotate_first(self, x_BxTxHxh: jax.Array, table: Table | None) -> jax.Array:
        if table is None:  # positions are in the embedding
            return x_BxTxHxh
        turned, still = jnp.split(x_BxTxHxh, [self.rotary_dim], axis=-1)
        return jnp.concatenate([rotate(turned, table), still], axis=-1)


class Mlp(nnx.Module):
    """gelu(x W_up + b_up) W_down + b_down."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.up = matrix(rngs, config.d_model, config.d_ff)
        self.up_bias = nnx.Param(jnp.zeros(config.d_ff, jnp.float32))
        self.down = matrix(rngs, config.d_ff, config.d_model, std=branch_std(config))
        self.down_bias = nnx.Param(jnp.zeros(config.d_model, jnp.float32))
        self.approximate = config.gelu == "tanh"

    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        up_BxTxF = affine(x_BxTxD, self.up, self.up_bias)
        return affine(jax.nn.gelu(up_BxTxF, self.approximate), self.down, self.down_bias)


class Block(nnx.Module):
    """One layer."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.attention_norm = LayerNorm(config.d_model, config.norm_eps)
        self.attention = Attention(config, rngs)
        self.mlp_norm = LayerNorm(config.d_model, config.norm_eps)
        self.mlp = Mlp(config, rngs)
        self.dropout, self.parallel = config.dropout, config.parallel

    def __call__(self, x_BxTxD: jax.Array, table: Table | None, key: jax.Array | None = None) -> jax.Array:
        attended = dropout(self.attention(self.attention_norm(x_BxTxD), table), self.dropout, key, 0)
        if not self.parallel:
            x_BxTxD = x_BxTxD + attended
            return x_BxTxD + dropout(self.mlp(self.mlp_norm(x_BxTxD)), self.dropout, key, 1)
        return x_BxTxD + attended + dropout(self.mlp(self.mlp_norm(x_BxTxD)), self.dropout, key, 1)


GPT_NEOX = Architecture(Block, norm=LayerNorm)
