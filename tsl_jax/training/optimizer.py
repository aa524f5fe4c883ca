"""AdamW (Loshchilov and Hutter, arXiv 1711.05101) with clipping, and the plan of its learning rate.

The plan is a JSON value in tokens, known before the run starts and kept with its surface. With W warm-up tokens, T
total tokens, final ratio r, wsd's decay from D on and c cycles, the step that brings the tokens seen to n uses

    lr(n) = peak * n / W                                              n < W
    cosine:    peak * (r + (1 - r) (1 + cos(pi (n - W) / (T - W))) / 2)
    constant:  peak
    restarts:  the cosine over each of c equal parts of W..T          (SGDR, Loshchilov and Hutter, arXiv 1608.03983)
    wsd:       peak until D, then with q = (n - D) / (T - D)
               linear:       peak * (1 - (1 - r) q)
               exponential:  peak * r^q
               sqrt:         peak * (1 - (1 - r) sqrt(q))             (Haegele et al., arXiv 2405.18392)

A cycle ends at r * peak and the step after it begins the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tsl_jax.training.config import OptimizerConfig, phases

# A share of the run: steps at most this far beyond the end of a cycle belong to it, as float32 may put them there.
ROUNDING = 1e-6


def plan(config: OptimizerConfig, total_steps: int, batch_tokens: int) -> dict[str, Any]:
    """The learning-rate plan of a run, in tokens, at whole steps."""
    warmup_steps, decay_steps = phases(config, total_steps)
    result: dict[str, Any] = {
        "kind": config.schedule,
        "peak": config.peak_lr,
        "warmup_tokens": warmup_steps * batch_tokens,
        "total_tokens": total_steps * batch_tokens,
        "final_ratio": 1.0 if config.schedule == "constant" else config.final_ratio,
    }
    if config.schedule == "wsd":
        result["decay_start_tokens"] = (total_steps - decay_steps) * batch_tokens
        # plans without a form are linear: those of the first runs stay as they are
        result |= {"decay_form": config.decay_form} if config.decay_form != "linear" else {}
    if config.schedule == "restarts":
        result["cycles"] = config.cycles
    return result


def learning_rate(plan: Mapping[str, Any], tokens: Any, xp: Any = np) -> Any:
    """Learning rate of the step that brings the tokens seen to `tokens`; `xp` is numpy, or jax.numpy inside jit."""
    warmup, total = float(plan["warmup_tokens"]), float(plan["total_tokens"])
    ratio = plan["final_ratio"]
    if plan["kind"] in ("cosine", "restarts"):
        progress = xp.clip((tokens - warmup) / max(total - warmup, 1.0), 0.0, 1.0)
        progress = _within_cycle(progress, plan["cycles"], xp) if plan["kind"] == "restarts" else progress
        after = ratio + (1 - ratio) * 0.5 * (1 + xp.cos(np.pi * progress))
    elif plan["kind"] == "wsd":
        start = float(plan["decay_start_tokens"])
        progress = xp.clip((tokens - start) / max(total - start, 1.0), 0.0, 1.0)
        after = _decayed(plan.get("decay_form", "linear"), ratio, progress, xp)
    else:
        after = 1.0
    return plan["peak"] * xp.where(tokens < warmup, tokens / max(warmup, 1.0), after)


def _within_cycle(progress: Any, cycles: int, xp: Any) -> Any:
    """Progress within the cycle, the end of one being 1 of it and not 0 of the next."""
    turns = cycles * progress
    return turns - xp.maximum(xp.ceil(turns - cycles * ROUNDING) - 1, 0)


def _decayed(form: str, ratio: float, progress: Any, xp: Any) -> Any:
    """From 1 to the ratio."""
    if form == "exponential":
        return ratio**progress
    return 1 - (1 - ratio) * (xp.sqrt(progress) if form == "sqrt" else progress)


def adamw(config: OptimizerConfig, plan: Mapping[str, Any], batch_tokens: int) -> optax.GradientTransformation:
    """Clipping by global norm, Adam, decay of matrices, and the planned learning rate."""

    def schedule(count: jax.Array) -> jax.Array:
        # float32 holds 2^24 steps exactly; tokens as int32 would overflow at 2.1e9
        return learning_rate(plan, (count.astype(jnp.float32) + 1) * float(batch_tokens), jnp)

    adam = optax.adamw(
        schedule,  # pyright: ignore[reportArgumentType]
        b1=config.beta1,
        b2=config.beta2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=matrices,
    )
    return optax.chain(optax.clip_by_global_norm(config.clip), adam) if config.clip else adam


def matrices(params: Any) -> Any:
    """Which parameters are matrices: those under "blocks" have the layers as an extra first axis."""

    def is_matrix(path: Any, leaf: jax.Array) -> bool:
        return leaf.ndim - (path[0].key == "blocks") >= 2

    return jax.tree_util.tree_map_with_path(is_matrix, params)
