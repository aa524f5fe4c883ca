"""The LLaMA decoder (Touvron et al. 2023, arXiv 2302.13971), and the Universal Transformer, which repeats its block.

A LLaMA block is x = x + attention(norm x), then x = x + swiglu(norm' x); with `norm_after`, as in OLMo 2 (2025, arXiv
2501.00656), x = x + norm(attention(x)), then x = x + norm'(swiglu(x)).

The Universal Transformer (Dehghani et al. 2018, arXiv 1807.03819) applies one block n_layers times,

    x_(t+1) = block(x_t + depth_t),   t = 0 .. n_layers - 1.

The same parameters serve every layer; only the depth embedding tells them apart. Its block here is LLaMA's (pre-norm,
rotary positions, SwiGLU), so that the two models differ in sharing alone; the paper's is post-norm with sinusoids for
position and depth. There is no adaptive halting, as in Kaplan et al.'s comparison (arXiv 2001.08361, appendix D).
"""

from __future__ import annotations

import jax
from flax import nnx

from tsl_jax.models.config import ModelConfig
from tsl_jax.models.decoder import Architecture, BlocksResult, Decoder, scan_layers
from tsl_jax.models.layers import Attention, RMSNorm, SwiGLU, Table, dropout


class Block(nnx.Module):
    """One layer."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config.d_model, config.norm_eps)
        self.attention = Attention(config, rngs)
        self.mlp_norm = RMSNorm(config.d_model, config.norm_eps)
        self.mlp = SwiGLU(config, rngs)
        self.dropout, self.norm_after = config.dropout, config.norm_after

    def __call__(self, x_BxTxD: jax.Array, table: Table, key: jax.Array | None = None) -> jax.Array:
        if self.norm_after:
            x_BxTxD = x_BxTxD + dropout(self.attention_norm(self.attention(x_BxTxD, table)), self.dropout, key, 0)
            return x_BxTxD + dropout(self.mlp_norm(self.mlp(x_BxTxD)), self.dropout, key, 1)
        attended = self.attention(self.attention_norm(x_BxTxD), table)
        x_BxTxD = x_BxTxD + dropout(attended, self.dropout, key, 0)
        return x_BxTxD + dropout(self.mlp(self.mlp_norm(x_BxTxD)), self.dropout, key, 1)


def repeated_block(
    model: Decoder, x_BxTxD: jax.Array, table: Table | None, layer_keys: jax.Array | None
) -> BlocksResult:
    """The one block, as often as there are rows in the depth embedding."""
    graphdef, stacked = nnx.split(model.blocks)
    block = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf[0], stacked))  # a stack of one

    def layer(x: jax.Array, depth_and_key: tuple[jax.Array, jax.Array | None]) -> jax.Array:
        depth_D, key = depth_and_key
        return block(x + depth_D.astype(x.dtype)[None, None, :], table, key)

    return scan_layers(layer, x_BxTxD, (model.depth[...], layer_keys), model.config), None


LLAMA = Architecture(Block)
UNIVERSAL = Architecture(Block, blocks=repeated_block, shares_block=True)
