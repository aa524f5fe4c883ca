"""AdamW (Loshchilov and Hutter, arXiv 1711.05101) with clipping, and the plan of its learning rate.

The plan is a JSON value in tokens, known before the run starts and kept with its surface; `schedules` has its
equations. Changes of the learning rate in mid-run make a list of plans, each with the token from which it holds: the
same curve, times a factor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax

from tsl_jax.schedules import Schedule
from tsl_jax.training.config import OptimizerConfig

if TYPE_CHECKING:
    from tsl_jax.training.timeline import RunTimeline


def warmup_and_decay_steps(config: OptimizerConfig, total_steps: int) -> tuple[int, int]:
    """Whole steps of the warm-up and, for wsd, of the decay."""
    decay = round(config.decay * total_steps) if config.schedule == "wsd" else 0
    return round(config.warmup * total_steps), decay


def lr_plan(config: OptimizerConfig, total_steps: int, batch_tokens: int) -> dict[str, Any]:
    """The learning-rate plan of a run in which nothing changes, in tokens, at whole steps."""
    warmup_steps, decay_steps = warmup_and_decay_steps(config, total_steps)
    plan: dict[str, Any] = {
        "kind": config.schedule,
        "peak": config.peak_lr,
        "warmup_tokens": warmup_steps * batch_tokens,
        "total_tokens": total_steps * batch_tokens,
        "final_ratio": 1.0 if config.schedule == "constant" else config.final_ratio,
    }
    if config.schedule == "wsd":
        plan["decay_start_tokens"] = (total_steps - decay_steps) * batch_tokens
        # A plan without a form decays linearly, so that the plans of the first runs are still written as they were.
        plan |= {"decay_form": config.decay_form} if config.decay_form != "linear" else {}
    if config.schedule == "restarts":
        plan["cycles"] = config.cycles
    return plan


def run_optimizer(config: OptimizerConfig, timeline: RunTimeline) -> optax.GradientTransformation:
    """The optimizer of a run, its interventions included."""
    changes = [
        (segment.step, segment.tokens, segment.batch_size * timeline.context, segment.lr_factor)
        for segment in timeline.segments[1:]
    ]
    return adamw(config, timeline.base_plan, timeline.batch_tokens, changes)


def adamw(
    config: OptimizerConfig,
    plan: Mapping[str, Any],
    batch_tokens: int,
    changes: Sequence[tuple[int, int, int, float]] = (),
) -> optax.GradientTransformation:
    """Clipping by global norm, Adam, decay of matrices, and the planned learning rate.

    Args:
        plan: of the learning rate, see `lr_plan`.
        changes: (steps done, tokens seen, tokens in a step, factor of the learning rate) from which on they hold.
    """
    schedule = Schedule.from_plan(plan)

    def lr(count: jax.Array) -> jax.Array:
        # float32 holds 2^24 steps exactly; tokens as int32 would overflow at 2.1e9
        done = count.astype(jnp.float32) + 1
        tokens, factor = done * float(batch_tokens), 1.0
        for step, seen, in_step, times in changes:
            tokens = jnp.where(count >= step, float(seen) + (done - step) * float(in_step), tokens)
            factor = jnp.where(count >= step, times, factor)
        planned = schedule.rate(tokens)
        return planned * factor if changes else planned

    adam = optax.adamw(
        lr,  # pyright: ignore[reportArgumentType]
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
