"""The compiled programs of a run: steps, evaluation and gradient noise, compiled ahead so that their time is known."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh

from tsl_jax.models.build import Params, build
from tsl_jax.models.config import ModelConfig
from tsl_jax.models.cost import flops_per_token
from tsl_jax.models.sharding import platform_of
from tsl_jax.training import evaluation, mesh
from tsl_jax.training.config import TrainConfig
from tsl_jax.training.optimizer import run_optimizer
from tsl_jax.training.position_weights import gradient_noise, sources
from tsl_jax.training.position_weights.adaptive import wants_noise
from tsl_jax.training.step import StepFunction, TrainState, initial_state, make_step
from tsl_jax.training.timeline import FLUSH, RunTimeline

WORK = 1e12  # FLOPs of one device in a call, at least: some ms on a GPU, against the .3 to 1 ms of a call on the host


@dataclass(frozen=True)
class Programs:
    """What a run calls."""

    steps: dict[tuple[int, ...], StepFunction]  # by what they take: (sequences,), or (steps, sequences)
    per_call: int  # steps of a call, where so many are left
    forward: evaluation.Forward
    noise: gradient_noise.Noise | None  # where the position weights want it


def compile_programs(
    config: TrainConfig, timeline: RunTimeline, model: ModelConfig, devices: Mesh | None
) -> tuple[Programs, TrainState]:
    """The programs of a run, and its first state.

    Args:
        timeline: as planned, whatever data is passed over. model: resolved. devices: None for one.
    """
    optimizer, rule, T = run_optimizer(config.optimizer, timeline), config.position_weights, config.context
    platform, n_devices = platform_of(devices), 1 if devices is None else devices.size
    work = flops_per_token(model, T) * timeline.batch_tokens / n_devices
    per_call = steps_per_call(config.steps_per_call, work, platform)
    weights = None if rule.adaptive else rule.values(T)
    more = [jax.ShapeDtypeStruct((T,), np.float32, sharding=mesh.everywhere(devices))] if rule.adaptive else []

    def batch(*shape: int) -> jax.ShapeDtypeStruct:
        placed = mesh.batch_sharding(devices, stacked=len(shape) > 1)
        return jax.ShapeDtypeStruct((*shape, T + 1), np.int32, sharding=placed)

    with mesh.traced_on(devices):
        graphdef, params = build(model, config.seed, devices)
        state = initial_state(params, optimizer, devices)
        steps = {}
        for n in sorted({1, per_call}):
            step = make_step(
                graphdef, optimizer, weights, n, config.accumulate, config.seed, platform, config.noise_scale
            )
            for size in timeline.batch_sizes:
                shape = (size,) if n == 1 else (n, size)
                steps[shape] = step.lower(state, batch(*shape), *more).compile()
        losses = evaluation.make_forward(graphdef, platform, mesh.everywhere(devices))
        losses = losses.lower(params, batch(config.evaluation_batch)).compile()
        noise = None
        if rule.adaptive and wants_noise(sources.load_rule(rule.kind, rule.source)):
            noise = gradient_noise.compiled_noise(graphdef, params, T, devices)

    def forward(params: Params, windows: np.ndarray) -> jax.Array:
        return losses(params, mesh.put(windows, devices))

    return Programs(steps, per_call, forward, noise), state


def steps_per_call(configured: int, flops_per_step: float, platform: str) -> int:
    """The configured number, or by platform: 1 on CPU; elsewhere so many that a call is `WORK`, 16 at most.

    Args:
        configured: `TrainConfig.steps_per_call`. flops_per_step: of one device.
        platform: "cpu", "gpu" or "tpu".
    """
    if configured or platform == "cpu":
        return configured or 1
    return max(1, min(FLUSH, round(WORK / flops_per_step)))
