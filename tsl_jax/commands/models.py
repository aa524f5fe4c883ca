"""`tsl models`: parameters, memory and training time of the presets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import tyro

from tsl_jax.commands.progress import duration

if TYPE_CHECKING:
    from tsl_jax.models.config import ModelConfig

TOKENS_PER_PARAMETER = 20  # Hoffmann et al. 2022 (arXiv 2203.15556): about what is best for a given compute
HEADER = ("preset", "architecture", "layers x width", "parameters", "+ embeddings", "FLOPs/token", "memory")


@dataclass(frozen=True)
class ModelsCommand:
    """Sizes by name: parameters, memory, and how long they would train on this machine.

    kaplan-LxD, for any L layers of width D, is a preset too (Kaplan et al.'s shapes).
    """

    preset: tyro.conf.Positional[str] = ""
    """One preset in detail; without it a table of all."""
    tokens: int = 0
    """Tokens to train on; 0: twenty a parameter, embeddings and unused experts apart."""
    context: int = 1024
    vocabulary: int = 32_000
    batch_size: int = 8
    """Sequences in a step; memory grows with it, time does not."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations."""
    utilisation: float = 0.4
    """Share of the machine's matrix rate that training is assumed to reach; .3 to .5 is usual."""
    platform: Literal["here", "cpu", "gpu", "tpu"] = "here"
    """Where it would run: a CPU runs attention and experts another way than a GPU, and keeps more in memory."""
    rate: float = 0.0
    """FLOPs a second that the matrix products of another machine reach, for its times; 0: measured here."""
    time: bool = True
    """Measuring the rate takes a second or two; --no-time leaves times out."""


@dataclass(frozen=True)
class Estimate:
    """What is estimated for one model."""

    model: ModelConfig
    memory: dict[str, int]  # bytes of a step, by part
    tokens: int  # to train on
    seconds: float  # of training on them; 0: no time was asked for


def run_models(command: ModelsCommand) -> None:
    """Print the table, or one preset in detail.

    Raises:
        ValueError: for an unknown preset, or numbers that cannot be.
    """
    from tsl_jax.models.build import for_platform
    from tsl_jax.models.config import ModelConfig, resolve
    from tsl_jax.models.cost import n_params, n_params_active
    from tsl_jax.models.presets import PRESETS
    from tsl_jax.models.sharding import platform_of
    from tsl_jax.training.resources import flops_computed, matrix_rate, memory

    if not 1 <= command.batch_size <= 1 << 24 or not 0 <= command.tokens <= 10**18:
        arguments = f"batch_size {command.batch_size}, tokens {command.tokens}"
        expected = "1 to 2^24 sequences and 0 to 1e18 tokens"
        raise ValueError(f"models: expected {expected}, found {arguments}")
    if command.rate < 0 or not command.rate < float("inf"):
        raise ValueError(f"models: --rate is a number of FLOPs a second, such as 1e14, found {command.rate}")
    if not 0 < command.utilisation <= 1:
        raise ValueError(f"models: utilisation is a share between 0 and 1, found {command.utilisation}")
    platform = platform_of(None) if command.platform == "here" else command.platform
    names = [command.preset] if command.preset else list(PRESETS)
    configs = [ModelConfig(preset=name, dtype=command.dtype) for name in names]
    sizes = {"vocabulary": command.vocabulary, "context": command.context}
    models = [for_platform(resolve(config, **sizes), platform) for config in configs]
    if command.time and not command.rate and command.platform != "here":
        raise ValueError(f"models: --platform {platform} needs its --rate, in FLOPs a second, or --no-time")
    rate = (command.rate or matrix_rate(command.dtype)) if command.time else 0.0

    estimates = []
    for model in models:
        tokens = command.tokens or TOKENS_PER_PARAMETER * min(n_params(model), n_params_active(model))
        seconds = tokens * flops_computed(model) / (rate * command.utilisation) if rate else 0.0
        estimates.append(Estimate(model, memory(model, command.batch_size, platform), tokens, seconds))
    print(_detail(estimates[0]) if command.preset else _table(estimates))
    print(_assumptions(command, rate))


def _detail(estimate: Estimate) -> str:
    from tsl_jax.models import cost
    from tsl_jax.models.config import SIZES

    model, parts = estimate.model, estimate.memory
    sizes = [f"{name} {getattr(model, name):,}" for name in SIZES[model.architecture]]
    lines = [
        f"{model.preset}: {model.architecture}, {', '.join(sizes)}",
        f"parameters without embeddings  {cost.n_params(model):,}; a token meets {cost.n_params_active(model):,}",
        f"embeddings                     {cost.n_params_embedding(model):,}",
        f"training FLOPs a token         {cost.flops_per_token(model):.3e}; 6 N: {cost.flops_per_token_6n(model):.3e}",
        f"memory of a step               {_bytes(sum(parts.values()))}: "
        + ", ".join(f"{name} {_bytes(value)}" for name, value in parts.items()),
    ]
    if estimate.seconds:
        lines.append(f"time                           {duration(estimate.seconds)} for {estimate.tokens:,} tokens")
    return "\n".join(lines)


def _table(estimates: list[Estimate]) -> str:
    """A row a model under the header, as Markdown that reads well in a terminal too."""
    from tsl_jax.models.cost import flops_per_token, n_params, n_params_embedding

    timed = bool(estimates[0].seconds)
    rows: list[tuple[str, ...]] = [(*HEADER, "tokens", "time") if timed else HEADER]
    for estimate in estimates:
        model, n = estimate.model, n_params(estimate.model)
        shape, cost = f"{model.n_layers} x {model.d_model}", f"{flops_per_token(model):.2e}"
        sizes = _short(n), _short(n + n_params_embedding(model))
        row = (model.preset, model.architecture, shape, *sizes, cost, _bytes(sum(estimate.memory.values())))
        rows.append((*row, _short(estimate.tokens), duration(estimate.seconds)) if timed else row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    # Texts stand to the left; numbers, from the third column on, to the right.
    rule = tuple("-" * (width - 1) + ":" if i > 1 else "-" * width for i, width in enumerate(widths))
    lines = []
    for row in (rows[0], rule, *rows[1:]):
        cells = (cell.rjust(w) if i > 1 else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _assumptions(command: ModelsCommand, rate: float) -> str:
    """How the numbers are made, and how far they can be trusted."""
    step = f"{command.batch_size} sequences of {command.context:,} tokens, {command.dtype} activations"
    lines = [
        f"Memory: a step of {step}: 16 bytes a parameter (itself, its gradient,",
        "AdamW's two moments) and all activations. Within 5 % on CPU in float32 from demo to 9.8m; else a guide.",
    ]
    if rate:
        source = "given by --rate" if command.rate else f"that {command.dtype} matrix products reach here now"
        lines += [
            f"Time: tokens x FLOPs a token at {command.utilisation:g} of the {rate / 1e9:,.0f} GFLOP/s {source}.",
            "The share is assumed, not measured: be ready for twice the time, and for more where products are small,",
            "as below 5m on CPU, below 100m on a GPU, and in lstm, whose positions wait for each other.",
            "Compiling and evaluating come on top. On CPU all experts run, needed or not, and are timed so.",
        ]
    return "\n".join(["", *lines])


def _short(count: float) -> str:
    """1.21B, 58.4M, 25k."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if count >= unit:
            return f"{count / unit:.3g}{name}"
    return f"{count / 1e3:.3g}k"


def _bytes(count: float) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"
