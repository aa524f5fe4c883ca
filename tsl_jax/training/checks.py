"""What can be known to be wrong with a run's configuration before any text is read. Standard library only."""

from __future__ import annotations

from dataclasses import replace

from tsl_jax.data import config as data_config
from tsl_jax.models import config as model_config
from tsl_jax.training.config import OptimizerConfig, TrainConfig, batch_tokens, phases, planned_steps, run_stretches

SCHEDULES = ("cosine", "constant", "wsd", "restarts")
DECAY_FORMS = ("linear", "exponential", "sqrt")


def check(config: TrainConfig) -> None:
    """Everything that can be known to be wrong before any text is read.

    Raises:
        ValueError: naming the entry, what was found, and what to give instead.
    """
    for name in (
        "tokens",
        "context",
        "batch_size",
        "accumulate",
        "weight_updates",
        "evaluations",
        "evaluation_batch",
        "keep",
    ):
        if getattr(config, name) < 1:
            raise ValueError(f"training: {name} must be at least 1, found {getattr(config, name)}")
    _check_mesh(config)
    if config.model.context and config.context > config.model.context:
        found = f"context {config.context}, while the model's longest is {config.model.context}"
        raise ValueError(f"training: {found}; lower --context or raise --model.context")
    if planned_steps(config) < 2:
        found = f"{config.tokens} tokens are less than two batches of {batch_tokens(config)}"
        raise ValueError(f"training: {found}; raise tokens, or lower batch_size or context")
    data_config.validate_data_config(config.data)
    data_config.validate_eval_config(config.evaluation)
    model_config.resolve(config.model, vocabulary=config.data.vocabulary, context=config.context)
    _check_optimizer(config.optimizer)
    _check_phases(config.optimizer, planned_steps(config))
    _check_changes(config)
    config.position_weights.check(config.context)


def _check_changes(config: TrainConfig) -> None:
    """Changes come after the warm-up, and their batches and domains are ones that the run can have."""
    known = () if config.data.corpus else tuple(source.name for source in data_config.domain_sources(config.data))
    warmup = phases(config.optimizer, planned_steps(config))[0]
    for one in run_stretches(config)[1:] if config.changes else ():
        if one.step < max(warmup, 1):
            found = (
                f"after {one.step} steps, {one.tokens / config.tokens:.3g} of the run, while the warm-up takes {warmup}"
            )
            raise ValueError(f"training: a change begins {found}; put it later, or lower optimizer.warmup")
        batch_shares(replace(config, batch_size=one.batch_size), max(config.mesh.data, 1) * config.mesh.fsdp)
        for name, _ in one.mixture:
            if known and name not in known:
                raise ValueError(
                    f"training: a change mixes in {name!r}, the domains of this run are {', '.join(known)}"
                )


def _check_mesh(config: TrainConfig) -> None:
    """What needs no look at the devices."""
    for name, least in (("data", 0), ("fsdp", 1), ("tensor", 1)):
        if getattr(config.mesh, name) < least:
            raise ValueError(f"training: mesh.{name} must be at least {least}, found {getattr(config.mesh, name)}")
    if config.steps_per_call < 0:
        raise ValueError(f"training: steps_per_call must not be negative, found {config.steps_per_call}")
    batch_shares(config, max(config.mesh.data, 1) * config.mesh.fsdp)


def batch_shares(config: TrainConfig, parts: int) -> None:
    """Nothing, where batches can be shared by that many parts of the mesh.

    Raises:
        ValueError: where they cannot.
    """
    if config.batch_size % config.accumulate:
        found = f"batch_size {config.batch_size} and accumulate {config.accumulate}"
        raise ValueError(f"training: accumulate must divide batch_size, found {found}; change one of them")
    if config.batch_size // config.accumulate % parts:
        found = f"{config.batch_size // config.accumulate} sequences at a time over data x fsdp = {parts} devices"
        raise ValueError(f"training: batch_size / accumulate must share evenly, found {found}; change one of them")
    if config.evaluation_batch % parts:
        found = f"{config.evaluation_batch} windows over data x fsdp = {parts} devices"
        raise ValueError(f"training: evaluation_batch must share evenly, found {found}; change one of them")


def _check_optimizer(config: OptimizerConfig) -> None:
    for name, known in (("schedule", SCHEDULES), ("decay_form", DECAY_FORMS)):
        if getattr(config, name) not in known:
            raise ValueError(f"training: {name} must be one of {', '.join(known)}, found {getattr(config, name)!r}")
    if config.cycles < 1:
        raise ValueError(f"training: cycles must be at least 1, found {config.cycles}")
    if not 0 < config.peak_lr < float("inf"):
        raise ValueError(f"training: peak_lr must be positive, found {config.peak_lr}")
    for name in ("warmup", "decay", "final_ratio"):
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"training: {name} is a share between 0 and 1, found {getattr(config, name)}")
    if config.schedule == "wsd" and config.warmup + config.decay > 1:
        found = f"warmup {config.warmup} and decay {config.decay}"
        raise ValueError(f"training: {found} are more than the whole run; lower one of them")
    if config.schedule == "wsd" and config.decay_form == "exponential" and not config.final_ratio:
        raise ValueError("training: an exponential decay never reaches final_ratio 0; raise it, or decay linearly")
    for name in ("weight_decay", "clip"):
        if getattr(config, name) < 0:
            raise ValueError(f"training: {name} must not be negative, found {getattr(config, name)}")


def _check_phases(config: OptimizerConfig, total_steps: int) -> None:
    """Whole steps, as the laws that read the schedule want them: some after the warm-up, in wsd's decay, a cycle."""
    warmup, decay = phases(config, total_steps)
    if warmup >= total_steps:
        found = f"warmup {config.warmup} leaves no step of {total_steps} at the full learning rate"
        raise ValueError(f"training: {found}; lower it")
    if config.schedule == "wsd" and not decay:
        found = f"decay {config.decay} of {total_steps} steps is no step"
        raise ValueError(f"training: {found}; raise it, or choose the schedule constant")
    if warmup + decay > total_steps:
        found = f"warmup and decay are {warmup} and {decay} of {total_steps} steps"
        raise ValueError(f"training: {found}; lower one of them")
    if config.schedule == "restarts" and config.cycles > total_steps - warmup:
        found = f"{config.cycles} cycles of {total_steps - warmup} steps after the warm-up leave some without a step"
        raise ValueError(f"training: {found}; lower cycles")
