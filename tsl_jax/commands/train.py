"""`tsl train`: text becomes a run: checkpoints and the loss surface."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from tsl_jax.training.config import TrainConfig


@dataclass(frozen=True)
class Command:
    """Train a decoder on text, measuring the loss of every position along the way."""

    out: Path
    """Folder of the run."""
    text: tuple[str, ...] = ()
    """GLOB, an installed domain (tsl corpora lists them), or DOMAIN=GLOB@WEIGHT for several (.txt, .jsonl, .parquet,
    .npy, .bin, hf:NAME); default: the standard library's source. The same as --data.text, and wins over it."""
    resume: bool = False
    """Continue the unfinished run in OUT, with its own configuration."""
    tensorboard: bool = False
    """Write the metrics for TensorBoard too, into OUT/tensorboard (needs tensorboardX)."""
    train: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)
    """Everything else."""


def run(command: Command) -> None:
    """Train, and say where the result is."""
    from tsl_jax.commands.progress import bars
    from tsl_jax.training import run_dir
    from tsl_jax.training.loop import checked, train

    config, out = resolved(command), command.out
    if command.resume and not (out / run_dir.CONFIG).exists():
        raise ValueError(f"train: {out} holds no run to continue; check --out, or begin one without --resume")
    if not checked(config, out, resume=command.resume):
        print(cost(config))
        try:
            with _tensorboard(command) as write, bars() as progress:

                def observe(facts: Mapping[str, Any]) -> None:
                    progress.observe(facts)
                    write(facts)

                train(config, out, resume=command.resume, progress=progress, observe=observe)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(run_dir.how_to_resume(out)) from None
    print(f"run: {out} is complete (tsl report {out} draws it)")


def _tensorboard(command: Command) -> AbstractContextManager[Callable[[Mapping[str, Any]], None]]:
    """Gives the function that writes for TensorBoard, which does nothing unless asked."""
    if not command.tensorboard:
        return nullcontext(lambda facts: None)
    from tsl_jax.training.tensorboard import scalars

    return scalars(command.out / "tensorboard")


def resolved(command: Command) -> TrainConfig:
    """The configuration with `--text` in its place."""
    if not command.text:
        return command.train
    return replace(command.train, data=replace(command.train.data, text=command.text))


def cost(config: TrainConfig) -> str:
    """What the run will take, before it begins."""
    from tsl_jax.data.corpora import vocabulary as of_text
    from tsl_jax.models.config import resolve
    from tsl_jax.models.cost import flops_per_token, n_params

    vocabulary = config.model.vocabulary or of_text(config.data)
    model = resolve(config.model, vocabulary=vocabulary, context=config.context)
    flops = flops_per_token(model, config.context) * config.tokens
    size = f"{n_params(model):,} parameters without embeddings"
    return f"{size}, {config.tokens:,} tokens, {flops:.2e} FLOPs, {config.evaluations} evaluations"
