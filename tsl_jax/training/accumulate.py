"""Gradient accumulation: a batch in several microbatches, one after the other, for batches that do not fit at once.

gradient = 1/A sum_a gradient of microbatch a,   the same up to rounding, as the loss is a mean over sequences
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tsl_jax.models.sharding import BATCH, constrain, constrain_tree

ValueAndGradient = Callable[[Any, jax.Array], tuple[Any, Any]]


def accumulated(value_and_gradient: ValueAndGradient, microbatches: int) -> ValueAndGradient:
    """The same function of parameters and batch (B, N), with a scan over microbatches; itself where there is one.

    Args:
        value_and_gradient: as `jax.value_and_grad` gives it; the value may be a tree, of means over sequences.
        microbatches: A, divides B. Microbatch a is rows a, a + A, ...: on a mesh each device keeps its own rows.
    """
    if microbatches == 1:
        return value_and_gradient

    def split(params: Any, batch_BxN: jax.Array) -> tuple[Any, Any]:
        B, N = batch_BxN.shape
        batch_AxMxN = batch_BxN.reshape(B // microbatches, microbatches, N).swapaxes(0, 1)
        batch_AxMxN = constrain(batch_AxMxN, None, BATCH, None)

        def add(total: Any, batch_MxN: jax.Array) -> tuple[Any, None]:
            value, gradient = value_and_gradient(params, batch_MxN)
            return jax.tree.map(jnp.add, total, (value, constrain_tree(gradient))), None

        like = jax.eval_shape(value_and_gradient, params, batch_AxMxN[0])
        value, gradient = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
        total, _ = jax.lax.scan(add, (value, constrain_tree(gradient)), batch_AxMxN)
        return jax.tree.map(lambda leaf: leaf / microbatches, total)

    return split
