"""What a training run is told. Standard library only, so that a command line can show it without loading jax.

`TrainConfig` only nests the configurations of the rooms; each room receives its own part. A resolved configuration
has a hash, which names the run: two runs with one hash have the same losses on the same machine and versions.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from decimal import Decimal
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

from tsl_jax.data import config as data_config
from tsl_jax.data.config import DataConfig, EvalConfig
from tsl_jax.models import config as model_config
from tsl_jax.models.config import ModelConfig
from tsl_jax.training.weights import PositionWeights

T = TypeVar("T")
_SCIENTIFIC = re.compile(r"[-+]?\d[\d_]*(\.\d*)?[eE][-+]?\d+")

# These may differ between a run and its continuation: they change no number in it, but by rounding.
HARMLESS = ("keep", "mesh", "steps_per_call")
YOUNGER = ("mesh", "steps_per_call", "accumulate")  # the first runs had none of these; their hashes leave out a 1
YOUNGER_OF_OPTIMIZER = {"decay_form": "linear", "cycles": 2}  # nor these; left out are these values

SCHEDULES = ("cosine", "constant", "wsd", "restarts")
DECAY_FORMS = ("linear", "exponential", "sqrt")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with clipping; the learning rate warms up linearly, then follows its schedule."""

    peak_lr: float = 3e-3
    schedule: str = "cosine"  # cosine, constant, wsd (warm-up, stable, decay) or restarts (a cosine in cycles)
    warmup: float = 0.02  # share of the run
    final_ratio: float = 0.1  # learning rate at the end, relative to the peak (not of constant)
    decay: float = 0.2  # share of the run in which wsd decays
    decay_form: str = "linear"  # or exponential (by equal factors) or sqrt (1 - sqrt), of wsd
    cycles: int = 2  # equal cosines after the warm-up, of restarts
    beta1: float = 0.9
    beta2: float = 0.99  # long memory for small batches
    eps: float = 1e-8
    weight_decay: float = 0.1  # of matrices only
    clip: float = 1.0  # largest norm of the gradient; 0: no clipping


@dataclass(frozen=True)
class MeshConfig:
    """The devices of one process; parameters are split over fsdp and tensor, sequences over data and fsdp."""

    data: int = 0  # copies of the model (each spread over fsdp x tensor devices); 0: as many as there are devices for
    fsdp: int = 1  # devices that share the parameters and gather them when a layer runs
    tensor: int = 1  # devices that share the work of every matrix product


@dataclass(frozen=True)
class TrainConfig:
    """One run: text, model, optimizer, and when and on what to evaluate."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    position_weights: PositionWeights = field(default_factory=PositionWeights)  # head:16@0.1, a rule, a file
    mesh: MeshConfig = field(default_factory=MeshConfig)
    tokens: int = 2_500_000  # training tokens; whole batches of them are taken
    context: int = 64
    batch_size: int = 8  # sequences in a step; small, as short runs want many steps
    accumulate: int = 1  # microbatches that a step takes its batch in, one after the other: less memory, same result
    steps_per_call: int = 0  # steps that the device makes without the host; 0: by platform, 1 on CPU
    weight_updates: int = 32  # looks at the model by adaptive position weights: one every 1/32 of the run
    evaluations: int = 30  # checkpoints at which the loss surface is measured
    evaluation_batch: int = 32  # windows scored at a time; on CPU more fall out of the cache and take 1.5 times as long
    keep: int = 2  # newest checkpoints kept
    seed: int = 0  # of the initial parameters and of the order of the data


def batch_tokens(config: TrainConfig) -> int:
    """Training tokens in one step."""
    return config.batch_size * config.context


def total_steps(config: TrainConfig) -> int:
    """Optimizer steps of the run."""
    return config.tokens // batch_tokens(config)


def phases(config: OptimizerConfig, total_steps: int) -> tuple[int, int]:
    """Whole steps of the warm-up and, for wsd, of the decay."""
    decay = round(config.decay * total_steps) if config.schedule == "wsd" else 0
    return round(config.warmup * total_steps), decay


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
    if total_steps(config) < 2:
        found = f"{config.tokens} tokens are less than two batches of {batch_tokens(config)}"
        raise ValueError(f"training: {found}; raise tokens, or lower batch_size or context")
    data_config.check(config.data)
    data_config.check_evaluation(config.evaluation)
    model_config.resolve(config.model, vocabulary=config.data.vocabulary, context=config.context)
    _check_optimizer(config.optimizer)
    _check_phases(config.optimizer, total_steps(config))
    config.position_weights.check(config.context)


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


def to_dict(config: Any) -> dict[str, Any]:
    """The configuration as JSON or YAML values."""
    values = json.loads(json.dumps(asdict(config)))
    if isinstance(config, TrainConfig):
        values["position_weights"] = config.position_weights.written()
    return values


def from_dict(kind: type[T], values: dict[str, Any]) -> T:
    """A configuration from what a file says; what it leaves out keeps its default.

    Raises:
        ValueError: for an entry that does not exist, or a value of the wrong kind.
    """
    if not isinstance(values, dict):
        raise ValueError(f"training: {kind.__name__} needs a mapping of names to values, found {values!r}")
    hints = get_type_hints(kind)
    names = [f.name for f in fields(kind)]  # pyright: ignore[reportArgumentType]
    unknown = [name for name in values if name not in names]
    if unknown:
        raise ValueError(f"training: {kind.__name__} has no {unknown[0]!r}; it has {', '.join(names)}")
    return kind(**{name: value_of(hints[name], name, value) for name, value in values.items()})


def value_of(hint: Any, name: str, value: Any) -> Any:
    """One entry of a configuration as its type has it: a mapping becomes its dataclass, a list a tuple.

    Raises:
        ValueError: for a value of the wrong kind.
    """
    if NoneType in get_args(hint):
        return None if value is None else value_of(next(h for h in get_args(hint) if h is not NoneType), name, value)
    if hint is PositionWeights and isinstance(value, str):
        return PositionWeights.parse(value)
    if is_dataclass(hint):
        if not isinstance(value, dict):
            raise ValueError(f"{name} must be a mapping, found {value!r}")
        return from_dict(hint, value)  # pyright: ignore[reportArgumentType]
    if hint in (int, float) and type(value) in (int, float, str):
        try:
            return whole(value) if hint is int else _float(value)
        except (ValueError, OverflowError):
            raise ValueError(f"{name} must be {hint.__name__}, found {value!r}") from None
    if hint in (int, float, str, bool):
        if type(value) is not hint:
            raise ValueError(f"{name} must be {hint.__name__}, found {value!r}")
        return value
    return Path(str(value)) if hint is Path else _frozen(value)


def whole(value: Any) -> int:
    """An integer, also one that is written as 1e6 or 2.5e9 (which YAML reads as text, or as a float).

    Raises:
        ValueError: for what is no number, or none without a fraction. OverflowError: for infinity.
    """
    if isinstance(value, str) and not _SCIENTIFIC.fullmatch(value):
        return int(value)
    number = value if isinstance(value, int) else int(Decimal(str(value)))
    if number != Decimal(str(value)):
        raise ValueError(f"{value} is not a whole number")
    return number


def _float(value: Any) -> float:
    """A float; YAML reads 1e-3, without a point, as text."""
    if isinstance(value, str) and not _SCIENTIFIC.fullmatch(value):
        raise ValueError(f"{value!r} is text")
    return float(value)


def _frozen(value: Any) -> Any:
    """Lists, as a file has them, become the tuples of the dataclass."""
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def config_hash(config: TrainConfig) -> str:
    """Twelve hexadecimal digits that name the run; entries in HARMLESS do not count."""
    values = to_dict(replace(config, **dict.fromkeys(HARMLESS, 1)))
    values = {name: value for name, value in values.items() if name not in YOUNGER or value != 1}
    values["position_weights"] = config.position_weights.identity()
    if not config.position_weights.adaptive:
        del values["weight_updates"]
    told = values["optimizer"].items()
    values["optimizer"] = {name: value for name, value in told if YOUNGER_OF_OPTIMIZER.get(name) != value}
    values |= {"model": model_config.described(config.model), "data": data_config.described(config.data)}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
