"""The Universal Transformer (Dehghani et al. 2018, arXiv 1807.03819): one block, applied n_layers times.

    x_(t+1) = block(x_t + depth_t),   t = 0 .. n_layers - 1

The same parameters serve every layer; only the depth embedding tells them apart. The block is our LLaMA's (pre-norm,
rotary positions, SwiGLU), so that the two models differ in sharing alone; the paper's is post-norm with sinusoids for
position and depth. There is no adaptive halting, as in Kaplan et al.'s comparison (arXiv 2001.08361, appendix D).
Parameters are stacked as in all models, here a stack of one.
"""

from __future__ import annotations

import jax
from flax import nnx

from tsl_jax.models.config import ModelConfig, head_dim
from tsl_jax.models.decoder import dropout, dropout_keys, embed, need_context, scan_layers, stacked_blocks
from tsl_jax.models.layers import RMSNorm, matrix, rotary_table
from tsl_jax.models.llama import Block


class Universal(nnx.Module):
    """Tokens (B, T) to hidden states (B, T, D); see `llama.Llama`."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        self.embedding = matrix(rngs, config.vocabulary, config.d_model)
        self.depth = matrix(rngs, config.n_layers, config.d_model)
        self.blocks = stacked_blocks(Block, config, rngs, 1)
        self.final_norm = RMSNorm(config.d_model, config.norm_eps)
        if not config.tied:
            self.unembedding = matrix(rngs, config.vocabulary, config.d_model)

    def __call__(self, tokens_BxT: jax.Array, key: jax.Array | None = None) -> tuple[jax.Array, None]:
        config, n = self.config, need_context(self.config, tokens_BxT)
        table = rotary_table(n, head_dim(config), config.rope_base)
        first, keys = dropout_keys(config, key)
        x_BxTxD = dropout(embed(self.embedding[...], tokens_BxT, config), config.dropout, first)
        graphdef, stacked = nnx.split(self.blocks)
        block = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf[0], stacked))

        def one(x: jax.Array, layer: tuple[jax.Array, jax.Array | None]) -> jax.Array:
            depth_D, key = layer
            return block(x + depth_D.astype(x.dtype)[None, None, :], table, key)

        x_BxTxD = scan_layers(one, x_BxTxD, (self.depth[...], keys), config)
        return self.final_norm(x_BxTxD), None
