"""The LLaMA decoder (Touvron et al. 2023, arXiv 2302.13971): pre-norm blocks x + attention(norm x), x + swiglu(norm x).

The parameters of all layers are stacked along a first axis from the start, so that checkpoints, sharding and imports
have one shape however the forward pass runs: unrolled (10 % quicker on CPU) or scanned (compiles in constant time).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from tsl_jax.models.config import ModelConfig, head_dim
from tsl_jax.models.layers import INIT_STD, Attention, RMSNorm, SwiGLU, rotary_table
from tsl_jax.models.rematerialise import rematerialised
from tsl_jax.models.sharding import gathered, residual


class Block(nnx.Module):
    """One layer."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config.d_model, config.norm_eps)
        self.attention = Attention(config, rngs)
        self.mlp_norm = RMSNorm(config.d_model, config.norm_eps)
        self.mlp = SwiGLU(config, rngs)

    def __call__(self, x_BxTxD: jax.Array, table: tuple[jax.Array, jax.Array]) -> jax.Array:
        x_BxTxD = x_BxTxD + self.attention(self.attention_norm(x_BxTxD), table)
        return x_BxTxD + self.mlp(self.mlp_norm(x_BxTxD))


class Llama(nnx.Module):
    """Tokens (B, T) to hidden states (B, T, D); the loss multiplies them with `unembedding` in chunks.

    `config` is resolved: every size is given, `layers` and `attention` are a choice, not "auto".
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        shape = (config.vocabulary, config.d_model)
        self.embedding = nnx.Param(INIT_STD * jax.random.normal(rngs.params(), shape, jnp.float32))
        self.blocks = _stacked_blocks(config, rngs)
        self.final_norm = RMSNorm(config.d_model, config.norm_eps)
        if not config.tied:
            self.unembedding = nnx.Param(INIT_STD * jax.random.normal(rngs.params(), shape, jnp.float32))

    def __call__(self, tokens_BxT: jax.Array) -> jax.Array:
        config, n = self.config, tokens_BxT.shape[1]
        if n > config.context:
            mend = "shorten the windows, or train a model of that context"
            raise ValueError(f"models: {n} tokens of context, but this model's longest is {config.context}; {mend}")
        table = rotary_table(n, head_dim(config), config.rope_base)
        x_BxTxD = residual(gathered(self.embedding[...])[tokens_BxT].astype(config.dtype))
        graphdef, stacked = nnx.split(self.blocks)

        def run(x_BxTxD: jax.Array, layer: nnx.State) -> jax.Array:
            return residual(nnx.merge(graphdef, layer)(x_BxTxD, table))

        run = rematerialised(run, config)
        if config.layers == "scan":
            x_BxTxD, _ = jax.lax.scan(lambda x, layer: (run(x, layer), None), x_BxTxD, stacked)
        else:
            for i in range(config.n_layers):
                x_BxTxD = run(x_BxTxD, jax.tree.map(lambda leaf, i=i: leaf[i], stacked))
        return self.final_norm(x_BxTxD)


def _stacked_blocks(config: ModelConfig, rngs: nnx.Rngs) -> Block:
    @nnx.split_rngs(splits=config.n_layers)
    @nnx.vmap(in_axes=0, out_axes=0)
    def create(rngs: nnx.Rngs) -> Block:
        return Block(config, rngs)

    return create(rngs)
