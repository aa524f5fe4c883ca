"""The configuration of a training run. Standard library only, so that a command line can show it without loading jax.

`TrainConfig` only nests the configurations of the packages; each receives its own part, and what happens when is
resolved once (`timeline.RunTimeline`). A configuration has a hash, which names the run: two runs with one hash have the
same losses on the same machine and versions.
"""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from decimal import Decimal
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from tsl_jax.data.config import DataConfig, EvalConfig
from tsl_jax.models.config import ModelConfig, without_default_variants
from tsl_jax.training.position_weights.weights import PositionWeights

T = TypeVar("T")
_SCIENTIFIC = re.compile(r"[-+]?\d[\d_]*(\.\d*)?[eE][-+]?\d+")

DIGITS = 30  # of a whole number, at most

# How a run is executed, not what it computes: these may differ between a run and its continuation, as they change its
# numbers by rounding at most. They are no part of the hash.
EXECUTION_FIELDS = ("keep", "mesh", "steps_per_call")


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
    """The devices of all processes; parameters are split over fsdp and tensor, sequences over data and fsdp."""

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
    unique_tokens: int = 0  # size of the data set: so many tokens of the training text, repeated; 0: all of it
    changes: tuple[str, ...] = ()  # AT:WHAT=VALUE, of lr, batch, mixture, skip: from that share of the run on
    context: int = 64
    batch_size: int = 8  # sequences in a step; small, as short runs want many steps
    accumulate: int = 1  # microbatches that a step takes its batch in, one after the other: less memory, same result
    steps_per_call: int = 0  # steps that the device makes without the host; 0: by platform, 1 on CPU
    weight_updates: int = 32  # looks at the model by adaptive position weights: one every 1/32 of the run
    evaluations: int = 30  # checkpoints at which the loss surface is measured
    evaluation_batch: int = 32  # windows scored at a time; on CPU more fall out of the cache and take 1.5 times as long
    keep: int = 2  # newest checkpoints kept
    on_nonfinite: str = "stop"  # of a NaN or spike: or rollback, to the last evaluation, on without the batches since
    spike_sigmas: float = 0.0  # a loss so many robust standard deviations above those before is a spike; 0: none is
    noise_scale: str = "off"  # total, by_layer: log the gradient noise scale, from microbatches or devices
    seed: int = 0  # of the initial parameters and of the order of the data


def to_dict(config: Any) -> dict[str, Any]:
    """The configuration as JSON or YAML values."""
    values = json.loads(json.dumps(asdict(config)))
    if isinstance(config, TrainConfig):
        values["position_weights"] = config.position_weights.written()
        if not config.spike_sigmas:  # as the files of all runs were before there were spikes
            del values["spike_sigmas"]
        if config.noise_scale == "off":
            del values["noise_scale"]
        if not config.evaluation.by_domain:
            del values["evaluation"]["by_domain"]
        if not config.unique_tokens:
            del values["unique_tokens"]
    return values


def from_dict(kind: type[T], values: dict[str, Any]) -> T:
    """A configuration from what a file says; what it leaves out keeps its default.

    Raises:
        ValueError: for an entry that does not exist, or a value of the wrong kind.
    """
    if not isinstance(values, dict):
        found = reprlib.repr(values)
        raise ValueError(f"training: {kind.__name__} needs a mapping of names to values, found {found}")
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
            raise ValueError(f"{name} must be a mapping, found {reprlib.repr(value)}")
        return from_dict(hint, value)  # pyright: ignore[reportArgumentType]
    if hint in (int, float) and type(value) in (int, float, str):
        try:
            return whole(value) if hint is int else _float(value)
        except (ValueError, OverflowError):
            raise ValueError(f"{name} must be {hint.__name__}, found {reprlib.repr(value)}") from None
    if hint in (int, float, str, bool):
        if type(value) is not hint:
            raise ValueError(f"{name} must be {hint.__name__}, found {reprlib.repr(value)}")
        return value
    if get_origin(hint) is tuple and not isinstance(value, list | tuple):
        raise ValueError(f"{name} must be a list, found {reprlib.repr(value)}")
    if get_origin(hint) is tuple and get_args(hint)[0] is Path:
        return tuple(Path(str(entry)) for entry in value)
    return Path(str(value)) if hint is Path else _frozen(value)


def whole(value: Any) -> int:
    """An integer, also one that is written as 1e6 or 2.5e9 (which YAML reads as text, or as a float).

    Raises:
        ValueError: for what is no number, or none without a fraction. OverflowError: for infinity.
    """
    if isinstance(value, str) and not _SCIENTIFIC.fullmatch(value):
        number = int(value)
    else:
        exact = Decimal(str(value))
        if exact.adjusted() > DIGITS:  # to write it out would take the memory of so many digits
            raise ValueError(f"{value} has more than {DIGITS} digits, beyond all that is counted here")
        number = value if isinstance(value, int) else int(exact)
        if number != exact:
            raise ValueError(f"{value} is not a whole number")
    if abs(number) >= 10**DIGITS:
        raise ValueError(f"{value!s:.40} has more than {DIGITS} digits, beyond all that is counted here")
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
    """Twelve hexadecimal digits that name the run: all entries but EXECUTION_FIELDS.

    A later version with more entries gives other digits, unless they are options of models. Compare two runs by their
    configurations, as config.yaml or a manifest has them, hashed now; never by a hash that was written down.
    """
    values = {name: value for name, value in to_dict(config).items() if name not in EXECUTION_FIELDS}
    if config.on_nonfinite == "stop":  # as all runs did before there was a choice
        del values["on_nonfinite"]
    values["position_weights"] = config.position_weights.identity()  # the content of a file, wherever it lies
    values["model"] = without_default_variants(values["model"])
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
