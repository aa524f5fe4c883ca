"""`tsl train`: text becomes a run: checkpoints and the loss surface."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from tsl_jax.training.config import TrainConfig


@dataclass(frozen=True)
class Command:
    """Train a decoder on text, measuring the loss of every position along the way."""

    out: Path
    """Folder of the run."""
    text: tuple[str, ...] = ()
    """GLOB, or DOMAIN=GLOB@WEIGHT for several (.txt, .jsonl, .npy, .bin); default: the standard library's source."""
    resume: bool = False
    """Continue an unfinished run in OUT."""
    train: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)
    """Everything else."""


def run(command: Command) -> None:
    """Train, and say where the result is."""
    from tsl_jax.commands.progress import bars
    from tsl_jax.training.train import train

    config = resolved(command)
    print(cost(config))
    with bars() as progress:
        folder = train(config, command.out, resume=command.resume, progress=progress)
    print(f"run: {folder} (tsl report {folder} draws it)")


def resolved(command: Command) -> TrainConfig:
    """The configuration with `--text` in its place."""
    if not command.text:
        return command.train
    return replace(command.train, data=replace(command.train.data, text=command.text))


def cost(config: TrainConfig) -> str:
    """What the run will take, before it begins."""
    from tsl_jax.models.config import flops_per_token, n_params, resolve

    vocabulary = config.model.vocabulary or config.data.vocabulary
    model = resolve(config.model, vocabulary=vocabulary, context=config.context)
    flops = flops_per_token(model, config.context) * config.tokens
    size = f"{n_params(model):,} parameters without embeddings"
    return f"{size}, {config.tokens:,} tokens, {flops:.2e} FLOPs, {config.evaluations} evaluations"
