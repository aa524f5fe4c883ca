"""The LLaMA decoder (Touvron et al. 2023, arXiv 2302.13971): blocks x + attention(norm x), then x + swiglu(norm x)."""

from __future__ import annotations

import jax
from flax import nnx

from tsl_jax.models.config import ModelConfig, head_dim
from tsl_jax.models.decoder import apply_blocks, dropout, dropout_keys, embed, need_context, stacked_blocks
from tsl_jax.models.layers import Attention, RMSNorm, SwiGLU, Table, matrix, rotary_table


class Block(nnx.Module):
    """One layer."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config.d_model, config.norm_eps)
        self.attention = Attention(config, rngs)
        self.mlp_norm = RMSNorm(config.d_model, config.norm_eps)
        self.mlp = SwiGLU(config, rngs)
        self.dropout = config.dropout

    def __call__(self, x_BxTxD: jax.Array, table: Table, key: jax.Array | None = None) -> jax.Array:
        attended = self.attention(self.attention_norm(x_BxTxD), table)
        x_BxTxD = x_BxTxD + dropout(attended, self.dropout, key, 0)
        return x_BxTxD + dropout(self.mlp(self.mlp_norm(x_BxTxD)), self.dropout, key, 1)


class Llama(nnx.Module):
    """Tokens (B, T) to hidden states (B, T, D); the loss multiplies them with `unembedding` in chunks.

    `config` is resolved: every size is given, `layers` and `attention` are a choice, not "auto".
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        self.embedding = matrix(rngs, config.vocabulary, config.d_model)
        self.blocks = stacked_blocks(Block, config, rngs, config.n_layers)
        self.final_norm = RMSNorm(config.d_model, config.norm_eps)
        if not config.tied:
            self.unembedding = matrix(rngs, config.vocabulary, config.d_model)

    def __call__(self, tokens_BxT: jax.Array, key: jax.Array | None = None) -> tuple[jax.Array, None]:
        config, n = self.config, need_context(self.config, tokens_BxT)
        table = rotary_table(n, head_dim(config), config.rope_base)
        first, keys = dropout_keys(config, key)
        x_BxTxD = dropout(embed(self.embedding[...], tokens_BxT, config), config.dropout, first)
        x_BxTxD = apply_blocks(self.blocks, x_BxTxD, config, table, keys=keys)
        return self.final_norm(x_BxTxD), None
