"""Gradient accumulation: a batch in several microbatches, one after the other, for batches that do not fit at once.

    gradient = 1/A sum_a gradient of microbatch a,   the same up to rounding, as the loss is a mean over sequences

What a model adds to the loss may be no such mean (the balance of experts): it is then that of microbatches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tsl_jax.models.sharding import BATCH, constrain, constrain_tree

Means = Callable[[Any, jax.Array, jax.Array], Any]


def accumulated(means: Means, microbatches: int) -> Means:
    """The same function of parameters, batch (B, N) and key, by a scan over microbatches; itself where there is one.

    Args:
        means: gives a tree of means over sequences, such as gradients and losses.
        microbatches: A, divides B. Microbatch a is rows a, a + A, ...: on a mesh each device keeps its own rows. Each
            has a key of its own.
    """
    if microbatches == 1:
        return means

    def split(params: Any, batch_BxN: jax.Array, key: jax.Array) -> Any:
        B, N = batch_BxN.shape
        batch_AxMxN = batch_BxN.reshape(B // microbatches, microbatches, N).swapaxes(0, 1)
        parts = (constrain(batch_AxMxN, None, BATCH, None), jax.random.split(key, microbatches))

        def add(total: Any, part: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, constrain_tree(means(params, *part))), None

        shapes = jax.eval_shape(means, params, batch_AxMxN[0], key)
        zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        total, _ = jax.lax.scan(add, constrain_tree(zero), parts)
        return jax.tree.map(lambda leaf: leaf / microbatches, total)

    return split
