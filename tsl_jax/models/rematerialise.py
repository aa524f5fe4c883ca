"""What a layer keeps for the backward pass, and what it makes again (Chen et al. 2016, arXiv 1604.06174).

"none" keeps everything; "full" only what enters the layer; "dots" also the results of products with matrices, so
that what is made again is cheap. Losses and gradients are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax

from tsl_jax.models.config import ModelConfig

F = TypeVar("F", bound=Callable[..., Any])


def rematerialised(layer: F, config: ModelConfig) -> F:
    """The layer, a function of arrays, with the policy `config.remat`, which is a choice, not "auto"."""
    if config.remat == "none":
        return layer
    dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if config.remat == "dots" else None
    # Inside a scan nothing can be merged with the forward pass, so the barriers against it would only cost.
    return jax.checkpoint(layer, policy=dots, prevent_cse=config.layers != "scan")  # pyright: ignore[reportReturnType]
