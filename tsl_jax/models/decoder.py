"""The skeleton that all architectures share: embedding, dropout, blocks on top of each other, a last norm.

    x = E[tokens],    x = block_l(x) for l = 1 .. L,    h = norm(x),    logits = h W'     (W = E where it is tied)

Where positions are learned, x = E[tokens] + P[0, 1, ..].

An `Architecture` says what its blocks are and where it differs. The logits are not made here: the loss takes them in
chunks (`training.objective`). The parameters of the blocks are stacked along a first axis from the start, so that
checkpoints, sharding and imports have one form however the forward pass runs: unrolled (10 % quicker on CPU) or scanned
(compiles in constant time).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from tsl_jax.models.config import ModelConfig, rotary_dim
from tsl_jax.models.layers import RMSNorm, Table, dropout, matmul, matrix, rotary_table
from tsl_jax.models.sharding import gathered, residual

T = TypeVar("T")
Tokens = Int[Array | np.ndarray, "batch position"]
Hidden = Float[Array, "batch position d_model"]
BlocksResult = tuple[jax.Array, jax.Array | None]  # x after the last block, and a loss to add to the objective


def plain_blocks(model: Decoder, x_BxTxD: jax.Array, table: Table | None, layer_keys: jax.Array | None) -> BlocksResult:
    """One block after the other, each with parameters of its own; no loss is added."""
    return apply_blocks(model.blocks, x_BxTxD, model.config, table, layer_keys), None


@dataclass(frozen=True)
class Architecture:
    """Where an architecture differs from the others.

    Attributes:
        block: makes a layer, which is called as x = layer(x, rotary table, key of its dropout or None).
        norm: makes the last norm from (d_model, eps); None: a projection (d_model, d_model) in its place.
        blocks: runs all blocks; some architectures do more than `plain_blocks`.
        shares_block: one block serves all layers, distinguished by an embedding of the depth.
        scales_embedding: by sqrt(d_model).
    """

    block: Callable[[ModelConfig, nnx.Rngs], Any]
    norm: Callable[[int, float], Any] | None = RMSNorm
    blocks: Callable[[Decoder, jax.Array, Table | None, jax.Array | None], BlocksResult] = plain_blocks
    shares_block: bool = False
    scales_embedding: bool = False


class Decoder(nnx.Module):
    """Tokens (B, T) to hidden states (B, T, D) and the loss that the architecture adds to the objective, or None.

    `config` is resolved: every size is given, and `layers`, `attention`, `experts` and `remat` are not "auto".
    """

    def __init__(self, config: ModelConfig, architecture: Architecture, rngs: nnx.Rngs):
        V, D, L = config.vocabulary, config.d_model, config.n_layers
        self.config, self.architecture = config, architecture
        # Initial values are drawn from rngs in this order: another order would make another model of the same seed.
        self.embedding = matrix(rngs, V, D)
        if architecture.shares_block:
            self.depth = matrix(rngs, L, D)
        if config.positions == "learned":
            self.place = matrix(rngs, config.context, D)
        self.blocks = stacked_blocks(architecture.block, config, rngs, 1 if architecture.shares_block else L)
        if architecture.norm:
            self.final_norm = architecture.norm(D, config.norm_eps)
        else:
            self.projection = matrix(rngs, D, D, std=D**-0.5)
        if not config.tied:
            self.unembedding = matrix(rngs, V, D)

    def __call__(self, tokens_BxT: Tokens, key: jax.Array | None = None) -> tuple[Hidden, Float[Array, ""] | None]:
        config, architecture, n = self.config, self.architecture, tokens_BxT.shape[1]
        if n > config.context:
            fix = "shorten the windows, or train a model of that context"
            raise ValueError(f"models: {n} tokens of context, but this model's longest is {config.context}; {fix}")
        # A key for the embedding and one for each layer; none in evaluation, or at rate 0: nothing is dropped then.
        keys = jax.random.split(key, config.n_layers + 1) if key is not None and config.dropout else None
        embedding_key, layer_keys = (None, None) if keys is None else (keys[0], keys[1:])

        x_BxTxD = embed(self.embedding[...], tokens_BxT, config)
        x_BxTxD = x_BxTxD * config.d_model**0.5 if architecture.scales_embedding else x_BxTxD
        if config.positions == "learned":
            x_BxTxD = x_BxTxD + self.place[...][None, :n].astype(x_BxTxD.dtype)
        x_BxTxD = dropout(x_BxTxD, config.dropout, embedding_key)
        table = None
        if config.n_heads and config.positions == "rotary":
            table = rotary_table(n, rotary_dim(config), config.rope_base, config.rope_scaling)
        x_BxTxD, auxiliary = architecture.blocks(self, x_BxTxD, table, layer_keys)
        return self.final_norm(x_BxTxD) if architecture.norm else matmul(x_BxTxD, self.projection), auxiliary


def embed(embedding_VxD: Float[Array, "vocabulary d_model"], tokens_BxT: Tokens, config: ModelConfig) -> Hidden:
    """The rows of the tokens, as activations."""
    return gathered(embedding_VxD)[tokens_BxT].astype(config.dtype)


def stacked_blocks(block: Callable[[ModelConfig, nnx.Rngs], Any], config: ModelConfig, rngs: nnx.Rngs, n: int) -> Any:
    """n blocks, each with its own initial parameters, as one whose leaves have them along a first axis."""

    @nnx.split_rngs(splits=n)
    @nnx.vmap(in_axes=0, out_axes=0)
    def create(rngs: nnx.Rngs) -> Any:
        return block(config, rngs)

    return create(rngs)


def apply_blocks(blocks: Any, x: T, config: ModelConfig, table: Table | None, layer_keys: jax.Array | None) -> T:
    """x = block(x, table, key of the block) for every block in turn.

    Args:
        blocks: from `stacked_blocks`. x: any pytree. config: of the model.
        table: of the rotation by position, None where there is none. layer_keys: one a block; None: no dropout.
    """
    graphdef, stacked = nnx.split(blocks)

    def layer(x: T, parameters_and_key: tuple[Any, jax.Array | None]) -> T:
        parameters, key = parameters_and_key
        return nnx.merge(graphdef, parameters)(x, table, key)

    return scan_layers(layer, x, (stacked, layer_keys), config)


def scan_layers(layer: Callable[[T, Any], T], x: T, layer_inputs: Any, config: ModelConfig) -> T:
    """x = layer(x, e) for every e along the first axis of `layer_inputs`, unrolled or scanned.

    For the backward pass `config.remat` says what is kept and what is made again (Chen et al. 2016, arXiv 1604.06174):
    "none" keeps everything; "full" only what enters a layer; "dots" also the results of products with matrices, so that
    what is made again is cheap. Losses and gradients are the same.
    """

    def step(x: T, layer_input: Any) -> T:
        return residual(layer(x, layer_input))

    if config.remat != "none":
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if config.remat == "dots" else None
        # Inside a scan nothing can be merged with the forward pass, so the barriers against it would only cost.
        step = jax.checkpoint(step, policy=policy, prevent_cse=config.layers != "scan")
    x = residual(x)
    if config.layers == "scan":
        return jax.lax.scan(lambda x, layer_input: (step(x, layer_input), None), x, layer_inputs)[0]
    for i in range(len(jax.tree.leaves(layer_inputs)[0])):
        x = step(x, jax.tree.map(lambda leaf, i=i: leaf[i], layer_inputs))
    return x
