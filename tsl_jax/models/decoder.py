"""Blocks on top of each other: their parameters stacked along a first axis, run unrolled or scanned; and dropout.

Stacked from the start, checkpoints, sharding and imports have one shape however the forward pass runs: unrolled (10 %
quicker on CPU) or scanned (compiles in constant time). Dropout: Srivastava et al. 2014, JMLR 15.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from tsl_jax.models.config import ModelConfig
from tsl_jax.models.rematerialise import rematerialised
from tsl_jax.models.sharding import gathered, residual

T = TypeVar("T")


def stacked_blocks(block: Callable[[ModelConfig, nnx.Rngs], Any], config: ModelConfig, rngs: nnx.Rngs, n: int) -> Any:
    """n blocks, each with its own initial parameters, as one whose leaves have them along a first axis."""

    @nnx.split_rngs(splits=n)
    @nnx.vmap(in_axes=0, out_axes=0)
    def create(rngs: nnx.Rngs) -> Any:
        return block(config, rngs)

    return create(rngs)


def apply_blocks(blocks: Any, x: T, config: ModelConfig, *shared: Any, keys: jax.Array | None = None) -> T:
    """x = block(x, *shared, key of the block) for every block in turn.

    Args:
        blocks: from `stacked_blocks`. x: any pytree. config: of the model.
        shared: what all blocks receive. keys: one a block, for dropout; None: no dropout.
    """
    graphdef, stacked = nnx.split(blocks)
    return scan_layers(lambda x, layer: nnx.merge(graphdef, layer[0])(x, *shared, layer[1]), x, (stacked, keys), config)


def scan_layers(layer: Callable[[T, Any], T], x: T, each: Any, config: ModelConfig) -> T:
    """x = layer(x, e) for every e along the first axis of `each`, unrolled or scanned."""
    one = rematerialised(lambda x, e: residual(layer(x, e)), config)
    x = residual(x)
    if config.layers == "scan":
        return jax.lax.scan(lambda x, e: (one(x, e), None), x, each)[0]
    for i in range(len(jax.tree.leaves(each)[0])):
        x = one(x, jax.tree.map(lambda leaf, i=i: leaf[i], each))
    return x


def embed(embedding_VxD: jax.Array, tokens_BxT: jax.Array, config: ModelConfig) -> jax.Array:
    """The rows of the tokens (B, T, D), as activations."""
    return gathered(embedding_VxD)[tokens_BxT].astype(config.dtype)


def need_context(config: ModelConfig, tokens_BxT: jax.Array) -> int:
    """The number of positions T.

    Raises:
        ValueError: where they are more than the model's context.
    """
    n = tokens_BxT.shape[1]
    if n > config.context:
        mend = "shorten the windows, or train a model of that context"
        raise ValueError(f"models: {n} tokens of context, but this model's longest is {config.context}; {mend}")
    return n


def dropout_keys(config: ModelConfig, key: jax.Array | None) -> tuple[jax.Array | None, jax.Array | None]:
    """A key for the embedding and one for each layer; None where nothing is dropped: in evaluation, or at rate 0."""
    if key is None or not config.dropout:
        return None, None
    keys = jax.random.split(key, config.n_layers + 1)
    return keys[0], keys[1:]


def dropout(x: jax.Array, rate: float, key: jax.Array | None, branch: int = 0) -> jax.Array:
    """x with a share `rate` of its entries set to zero and the others scaled up to keep the mean; key None: x itself.

    `branch` tells apart the uses of one key.
    """
    if key is None:
        return x
    keep = jax.random.bernoulli(jax.random.fold_in(key, branch), 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0)
