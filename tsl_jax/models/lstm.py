"""A stacked LSTM (Hochreiter and Schmidhuber 1997; forget gates, Gers et al. 2000), for Kaplan et al.'s comparison.

    i, f, g, o = x_t W_input + h_(t-1) W_recurrent + b
    c_t = sigmoid(f) c_(t-1) + sigmoid(i) tanh(g),   h_t = sigmoid(o) tanh(c_t)

Every layer has d_model cells; a projection (d_model, d_model) makes hidden states of the last h. There is no norm and
no residual path. Forget biases start at 1 (Jozefowicz et al. 2015), matrices at standard deviation d_model^-1/2;
embeddings are scaled by sqrt(d_model), as the first layer needs inputs that are not tiny. Products with W_input are
made for all positions at once, only those with W_recurrent one after the other. Dropout leaves the recurrent path
alone (Zaremba et al. 2014, arXiv 1409.2329).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from tsl_jax.models.config import ModelConfig
from tsl_jax.models.decoder import Architecture
from tsl_jax.models.layers import dropout, matmul, matrix

State = tuple[jax.Array, jax.Array]  # h and c, each (B, D)


class Layer(nnx.Module):
    """One layer; the cells' state c stays float32."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        d = config.d_model
        self.input = matrix(rngs, d, 4 * d, std=d**-0.5)
        self.recurrent = matrix(rngs, d, 4 * d, std=d**-0.5)
        self.bias = nnx.Param(jnp.zeros(4 * d, jnp.float32).at[d : 2 * d].set(1.0))
        self.dropout = config.dropout

    def __call__(self, x_BxTxD: jax.Array, table: None, key: jax.Array | None = None) -> jax.Array:
        dtype, (B, _, D) = x_BxTxD.dtype, x_BxTxD.shape
        recurrent_DxG = self.recurrent[...].astype(dtype)
        from_input = matmul(x_BxTxD, self.input) + self.bias[...].astype(dtype)[None, None, :]

        def step(state: State, gates_BxG: jax.Array) -> tuple[State, jax.Array]:
            h_BxD, c_BxD = state
            gates_BxG = (gates_BxG + h_BxD @ recurrent_DxG).astype(jnp.float32)
            i, f, g, o = jnp.split(gates_BxG, 4, axis=-1)
            c_BxD = jax.nn.sigmoid(f) * c_BxD + jax.nn.sigmoid(i) * jnp.tanh(g)
            h_BxD = (jax.nn.sigmoid(o) * jnp.tanh(c_BxD)).astype(dtype)
            return (h_BxD, c_BxD), h_BxD

        start = (jnp.zeros((B, D), dtype), jnp.zeros((B, D), jnp.float32))
        _, h_TxBxD = jax.lax.scan(step, start, from_input.transpose(1, 0, 2))
        return dropout(h_TxBxD.transpose(1, 0, 2), self.dropout, key)


LSTM = Architecture(Layer, norm=None, scales_embedding=True)
