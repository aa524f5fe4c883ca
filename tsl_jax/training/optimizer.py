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

A cycle ends at r * peak and the step after it begins the next. Changes of the learning rate in mid-run make a list of
plans, each with the token from which it holds: the same curve, times a factor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tsl_jax.training.config import OptimizerConfig, TrainConfig, batch_tokens, phases, planned_steps, run_stretches

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


def plan_of(config: TrainConfig) -> dict[str, Any] | list[dict[str, Any]]:
    """The plan of a run; where its learning rate changes, a list of plans, each known from its own beginning."""
    first = plan(config.optimizer, planned_steps(config), batch_tokens(config))
    plans, lr = [{"from_tokens": 0, **first}], 1.0
    for one in run_stretches(config):
        if one.lr != lr:
            # the checkpoint at the change itself still has the rate, and the plan, of before
            plans.append({**first, "from_tokens": one.tokens + 1, "peak": one.lr * first["peak"]})
            lr = one.lr
    return plans if len(plans) > 1 else first


def learning_rate(plan: Mapping[str, Any] | Sequence[Mapping[str, Any]], tokens: Any, xp: Any = np) -> Any:
    """Learning rate of the step that brings the tokens seen to `tokens`; `xp` is numpy, or jax.numpy inside jit."""
    if not isinstance(plan, Mapping):
        lr = learning_rate(plan[0], tokens, xp)
        for one in plan[1:]:
            lr = xp.where(tokens >= one["from_tokens"], learning_rate(one, tokens, xp), lr)
        return lr
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


def of_run(config: TrainConfig) -> optax.GradientTransformation:
    """The optimizer of a run, its changes included."""
    first = plan(config.optimizer, planned_steps(config), batch_tokens(config))
    changes = [(one.step, one.tokens, one.batch_size * config.context, one.lr) for one in run_stretches(config)[1:]]
    return adamw(config.optimizer, first, batch_tokens(config), changes)


def adamw(
    config: OptimizerConfig,
    plan: Mapping[str, Any],
    batch_tokens: int,
    changes: Sequence[tuple[int, int, int, float]] = (),
) -> optax.GradientTransformation:
    """Clipping by global norm, Adam, decay of matrices, and the planned learning rate.

    Args:
        changes: (steps done, tokens seen, tokens in a step, factor of the learning rate) from which on they hold.
    """

    def schedule(count: jax.Array) -> jax.Array:
        # float32 holds 2^24 steps exactly; tokens as int32 would overflow at 2.1e9
        done = count.astype(jnp.float32) + 1
        tokens, factor = done * float(batch_tokens), 1.0
        for step, seen, in_step, lr in changes:
            tokens = jnp.where(count >= step, float(seen) + (done - step) * float(in_step), tokens)
            factor = jnp.where(count >= step, lr, factor)
        planned = learning_rate(plan, tokens, jnp)
        return planned * factor if changes else planned

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
