"""A sparse mixture of experts as in Mixtral (Jiang et al. 2024, arXiv 2401.04088): LLaMA with E SwiGLUs to a layer.

A router scores the experts, r = x W_r; a token's A best ones are mixed by the softmax of their scores:

    mlp(x) = sum over the A largest r_e of softmax(these r)_e swiglu_e(x)

No token is dropped, as no expert has a limit. Two ways give the same result. "ragged" sorts the tokens by expert and
multiplies each group with its expert's matrices (`jax.lax.ragged_dot`). "dense" lets every expert see every token: E/A
times the work, yet the lesser on CPU, where ragged_dot is itself done densely, on A times as many rows.

The loss that training adds keeps experts equally busy (Switch Transformer, Fedus et al. 2021, arXiv 2101.03961,
equation 4): `balance` times the mean over layers of

    E sum_e f_e P_e,   f_e the share of choices that fell on e, P_e the mean of softmax(all r)_e

which is 1 where both are even. Both means are over the whole batch. In transformers' `router_aux_loss_coef` f sums to A
instead of to 1, so with two experts a token a balance of .01 here weighs as its .005 (and it takes f and P over all
layers together before it multiplies them).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from tsl_jax.models.config import ModelConfig
from tsl_jax.models.decoder import Architecture, BlocksResult, Decoder, apply_blocks
from tsl_jax.models.layers import Attention, RMSNorm, Table, branch_std, dropout, matrix


class Experts(nnx.Module):
    """Router and experts. Letters: N tokens of the batch, E experts, A experts of a token."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.n_experts, self.per_token, self.kind = config.n_experts, config.experts_per_token, config.experts
        self.router = matrix(rngs, config.d_model, config.n_experts)
        self.gate_up = matrix(rngs, config.n_experts, config.d_model, 2 * config.d_ff)
        self.down = matrix(rngs, config.n_experts, config.d_ff, config.d_model, std=branch_std(config))

    def __call__(self, x_BxTxD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The mixed output, and E sum f P of this layer."""
        x_NxD = x_BxTxD.reshape(-1, x_BxTxD.shape[-1])
        score_NxE = x_NxD.astype(jnp.float32) @ self.router[...]
        best_NxA, chosen_NxA = jax.lax.top_k(score_NxE, self.per_token)
        share_NxA = jax.nn.softmax(best_NxA, axis=-1).astype(x_NxD.dtype)
        count_E = jnp.bincount(chosen_NxA.reshape(-1), length=self.n_experts)
        mean_E = jnp.mean(jax.nn.softmax(score_NxE, axis=-1), axis=0)
        imbalance = self.n_experts * jnp.sum(count_E / chosen_NxA.size * mean_E)
        if self.kind == "dense":
            y_NxD = self._dense(x_NxD, chosen_NxA, share_NxA)
        else:
            y_NxD = self._ragged(x_NxD, chosen_NxA, share_NxA, count_E)
        return y_NxD.reshape(x_BxTxD.shape), imbalance

    def _dense(self, x_NxD: jax.Array, chosen_NxA: jax.Array, share_NxA: jax.Array) -> jax.Array:
        gate_up_ExDxF, down_ExFxD = self.gate_up[...].astype(x_NxD.dtype), self.down[...].astype(x_NxD.dtype)
        share_NxE = jnp.einsum("na,nae->ne", share_NxA, jax.nn.one_hot(chosen_NxA, self.n_experts, dtype=x_NxD.dtype))
        gate_NxExF, up_NxExF = jnp.split(jnp.einsum("nd,edf->nef", x_NxD, gate_up_ExDxF), 2, axis=-1)
        return jnp.einsum("nef,efd->nd", jax.nn.silu(gate_NxExF) * up_NxExF * share_NxE[:, :, None], down_ExFxD)

    def _ragged(self, x_NxD: jax.Array, chosen_NxA: jax.Array, share_NxA: jax.Array, count_E: jax.Array) -> jax.Array:
        # Rows are repeated and then permuted, not gathered by token: the gradient of a permutation adds nothing up,
        # so that its bits do not depend on the order in which a GPU adds.
        order_M = jnp.argsort(chosen_NxA.reshape(-1), stable=True)
        sorted_MxD = jnp.repeat(x_NxD, self.per_token, axis=0)[order_M]
        gate_up = jax.lax.ragged_dot(sorted_MxD, self.gate_up[...].astype(x_NxD.dtype), count_E)
        gate_MxF, up_MxF = jnp.split(gate_up, 2, axis=-1)
        y_MxD = jax.lax.ragged_dot(jax.nn.silu(gate_MxF) * up_MxF, self.down[...].astype(x_NxD.dtype), count_E)
        y_NxAxD = y_MxD[jnp.argsort(order_M)].reshape(*chosen_NxA.shape, -1)
        return jnp.sum(y_NxAxD * share_NxA[:, :, None], axis=1)


class Block(nnx.Module):
    """One layer: (x, sum of imbalances so far) to the same after it."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config.d_model, config.norm_eps)
        self.attention = Attention(config, rngs)
        self.mlp_norm = RMSNorm(config.d_model, config.norm_eps)
        self.mlp = Experts(config, rngs)
        self.dropout = config.dropout

    def __call__(
        self,
        state: tuple[jax.Array, jax.Array],
        table: Table,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        x_BxTxD, total = state
        attended = self.attention(self.attention_norm(x_BxTxD), table)
        x_BxTxD = x_BxTxD + dropout(attended, self.dropout, key, 0)
        mixed, imbalance = self.mlp(self.mlp_norm(x_BxTxD))
        return x_BxTxD + dropout(mixed, self.dropout, key, 1), total + imbalance


def balanced_blocks(
    model: Decoder, x_BxTxD: jax.Array, table: Table | None, layer_keys: jax.Array | None
) -> BlocksResult:
    """All blocks, and `balance` times the mean over layers of their imbalance."""
    config, start = model.config, (x_BxTxD, jnp.zeros((), jnp.float32))
    x_BxTxD, total = apply_blocks(model.blocks, start, config, table, layer_keys)
    return x_BxTxD, config.balance / config.n_layers * total


MOE = Architecture(Block, blocks=balanced_blocks)
