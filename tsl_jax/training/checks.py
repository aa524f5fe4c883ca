"""What can be known to be wrong with a run's configuration before any text is read, or any device looked at."""

from __future__ import annotations

from collections.abc import Iterable

from tsl_jax.data.config import validate_data_config, validate_eval_config
from tsl_jax.models import config as model_config
from tsl_jax.training.config import OptimizerConfig, TrainConfig
from tsl_jax.training.optimizer import warmup_and_decay_steps
from tsl_jax.training.timeline import RunTimeline, resolve_timeline

SCHEDULES = ("cosine", "constant", "wsd", "restarts")
DECAY_FORMS = ("linear", "exponential", "sqrt")
ON_NONFINITE = ("stop", "rollback")
NOISE_SCALE = ("off", "total", "by_layer")
# The least and the most of the counts: beyond these no machine goes, or numbers no longer fit their types.
RANGES = {
    "tokens": (1, 10**15), "unique_tokens": (0, 10**15), "context": (1, 1 << 24), "batch_size": (1, 1 << 24),
    "accumulate": (1, 1 << 24),
    "weight_updates": (1, 10_000), "evaluations": (1, 10_000), "evaluation_batch": (1, 1 << 24), "keep": (1, 1 << 24),
    "steps_per_call": (0, 1 << 16), "seed": (0, (1 << 32) - 1),
}  # fmt: skip
LEAST_SIGMAS = 3  # below it every run has spikes: one step in a few hundred lies there by chance
MOST_STEPS = 1 << 31  # int32, as the state counts them


def validate_config(config: TrainConfig, *, run_code: bool = True) -> RunTimeline:
    """The timeline of the run that the configuration describes, where one can be made as far as one can tell by now.

    Args:
        run_code: False: a rule of position weights that is not the library's own is neither imported nor called.

    Raises:
        ValueError: naming the entry, what was found, and what to give instead.
    """
    for name, (least, most) in RANGES.items():
        _check_range(name, getattr(config, name), least, most)
    for name, least in (("data", 0), ("fsdp", 1), ("tensor", 1)):
        _check_range(f"mesh.{name}", getattr(config.mesh, name), least, 1 << 16)
    if config.on_nonfinite not in ON_NONFINITE:
        raise ValueError(f"training: on_nonfinite must be stop or rollback, found {config.on_nonfinite!r}")
    if config.spike_sigmas and not LEAST_SIGMAS <= config.spike_sigmas < float("inf"):
        found = f"found {config.spike_sigmas}"
        raise ValueError(f"training: spike_sigmas must be 0, for none, or at least {LEAST_SIGMAS} and finite, {found}")
    check_noise_scale(config, config.mesh.data)
    parts = max(config.mesh.data, 1) * config.mesh.fsdp
    check_shares([config.batch_size], config.accumulate, parts)
    check_evaluation_shares(config.evaluation_batch, parts)
    if config.model.context and config.context > config.model.context:
        lengths = f"context {config.context}, while the model's longest is {config.model.context}"
        raise ValueError(f"training: {lengths}; lower --context or raise --model.context")
    batch_tokens = config.batch_size * config.context
    steps = config.tokens // batch_tokens
    if steps < 2:
        problem = f"{config.tokens} tokens are less than two batches of {batch_tokens}"
        raise ValueError(f"training: {problem}; raise tokens, or lower batch_size or context")
    if steps >= MOST_STEPS:
        problem = f"{config.tokens} tokens in batches of {batch_tokens} are {steps} steps, more than {MOST_STEPS}"
        raise ValueError(f"training: {problem}; raise batch_size or context, or lower tokens")
    sources = validate_data_config(config.data)
    validate_eval_config(config.evaluation)
    model_config.resolve(config.model, vocabulary=config.data.vocabulary, context=config.context)
    _check_optimizer(config.optimizer, steps)
    timeline = resolve_timeline(config)
    check_shares(timeline.batch_sizes, config.accumulate, parts)
    _check_interventions(timeline, tuple(source.name for source in sources))
    config.position_weights.check(config.context, run_code=run_code)
    return timeline


def _check_range(name: str, value: int, least: int, most: int) -> None:
    if value < least:
        bound = f"be at least {least}" if least else "not be negative"
        raise ValueError(f"training: {name} must {bound}, found {value}")
    if value > most:
        raise ValueError(f"training: {name} must be at most {most:,}, found {value:,}; lower it")


def check_noise_scale(config: TrainConfig, data: int) -> None:
    """Nothing, where the gradient of a batch can be compared with those of its microbatches or of parts of the mesh.

    Args:
        data: devices along the axis data; 0: not known yet.

    Raises:
        ValueError: where there is one of either, or the option is none.
    """
    if config.noise_scale not in NOISE_SCALE:
        found = f"found {config.noise_scale!r}"
        raise ValueError(f"training: noise_scale must be one of {', '.join(NOISE_SCALE)}, {found}")
    if config.noise_scale != "off" and config.accumulate == 1 and data == 1:
        found = f"noise_scale {config.noise_scale} compares a batch with parts of it, and accumulate 1 makes one"
        more = "give --accumulate 2 or more (the same steps up to rounding), or two devices along the mesh's axis data"
        raise ValueError(f"training: {found}; {more}")


def _check_interventions(timeline: RunTimeline, domains: tuple[str, ...]) -> None:
    """They come after the warm-up, and mix domains of the run (of any, where `domains` is empty)."""
    for segment in timeline.segments[1:]:
        if segment.step < max(timeline.warmup, 1):
            share = segment.tokens / timeline.base_plan["total_tokens"]
            begin = f"after {segment.step} steps, {share:.3g} of the run, while the warm-up takes {timeline.warmup}"
            raise ValueError(f"training: a change begins {begin}; put it later, or lower optimizer.warmup")
        for name, _ in segment.mixture:
            if domains and name not in domains:
                raise ValueError(
                    f"training: a change mixes in {name!r}, the domains of this run are {', '.join(domains)}"
                )


def check_shares(batch_sizes: Iterable[int], accumulate: int, parts: int) -> None:
    """Nothing, where microbatches of each size can be shared evenly by so many parts of the mesh.

    Raises:
        ValueError: where they cannot.
    """
    for size in batch_sizes:
        if size % accumulate:
            sizes = f"batch_size {size} and accumulate {accumulate}"
            raise ValueError(f"training: accumulate must divide batch_size, found {sizes}; change one of them")
        if size // accumulate % parts:
            sizes = f"{size // accumulate} sequences at a time over data x fsdp = {parts} devices"
            raise ValueError(f"training: batch_size / accumulate must share evenly, found {sizes}; change one of them")


def check_evaluation_shares(evaluation_batch: int, parts: int) -> None:
    """The same for the windows that are scored at a time."""
    if evaluation_batch % parts:
        sizes = f"{evaluation_batch} windows over data x fsdp = {parts} devices"
        raise ValueError(f"training: evaluation_batch must share evenly, found {sizes}; change one of them")


def _check_optimizer(config: OptimizerConfig, total_steps: int) -> None:
    """Its numbers, and whole steps as the laws want them: some after the warm-up, in wsd's decay, in a cycle."""
    for name, choices in (("schedule", SCHEDULES), ("decay_form", DECAY_FORMS)):
        if getattr(config, name) not in choices:
            raise ValueError(f"training: {name} must be one of {', '.join(choices)}, found {getattr(config, name)!r}")
    if not 1 <= config.cycles <= 1 << 24:
        raise ValueError(f"training: cycles must be at least 1, found {config.cycles}")
    if not 0 < config.peak_lr < float("inf"):
        raise ValueError(f"training: peak_lr must be positive, found {config.peak_lr}")
    for name in ("warmup", "decay", "final_ratio"):
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"training: {name} is a share between 0 and 1, found {getattr(config, name)}")
    if config.schedule == "wsd" and config.warmup + config.decay > 1:
        lengths = f"warmup {config.warmup} and decay {config.decay}"
        raise ValueError(f"training: {lengths} are more than the whole run; lower one of them")
    if config.schedule == "wsd" and config.decay_form == "exponential" and not config.final_ratio:
        raise ValueError("training: an exponential decay never reaches final_ratio 0; raise it, or decay linearly")
    for name in ("weight_decay", "clip"):
        if not 0 <= getattr(config, name) < float("inf"):
            raise ValueError(f"training: {name} must not be negative, nor infinite, found {getattr(config, name)}")
    for name in ("beta1", "beta2"):
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"training: {name} must be at least 0 and below 1, found {getattr(config, name)}")
    if not 0 < config.eps < 1:
        raise ValueError(f"training: eps must be above 0 and below 1, found {config.eps}")

    warmup, decay = warmup_and_decay_steps(config, total_steps)
    if warmup >= total_steps:
        problem = f"warmup {config.warmup} leaves no step of {total_steps} at the full learning rate"
        raise ValueError(f"training: {problem}; lower it")
    if config.schedule == "wsd" and not decay:
        problem = f"decay {config.decay} of {total_steps} steps is no step"
        raise ValueError(f"training: {problem}; raise it, or choose the schedule constant")
    if warmup + decay > total_steps:
        lengths = f"warmup and decay are {warmup} and {decay} of {total_steps} steps"
        raise ValueError(f"training: {lengths}; lower one of them")
    if config.schedule == "restarts" and config.cycles > total_steps - warmup:
        problem = f"{config.cycles} cycles of {total_steps - warmup} steps after the warm-up leave some without a step"
        raise ValueError(f"training: {problem}; lower cycles")
