"""`tsl train` and `tsl demo`: text becomes a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from tsl_jax.training.config import TrainConfig

if TYPE_CHECKING:
    from tsl_jax.training.timeline import RunTimeline


@dataclass(frozen=True)
class TrainCommand:
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
    distributed: bool = False
    """One run in several processes, which SLURM, Open MPI, Kubernetes or a TPU pod has started: docs/cluster.md."""
    coordinator: str = ""
    """HOST:PORT on which process 0 listens, where nothing says so to jax; the others need --processes, --process-id."""
    processes: int = 0
    """How many processes there are, where nothing says so to jax."""
    process_id: int = -1
    """Which of them this is, from 0, where nothing says so to jax."""
    trust: bool = False
    """Run the rule of position weights that a file (--config, or of the run to resume) names: Python of its author."""
    train: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)
    """Everything else."""


def run_train(command: TrainCommand) -> None:
    """Train, in this process or in several."""
    if not command.distributed:
        if command.coordinator or command.processes or command.process_id >= 0:
            given = "--coordinator, --processes and --process-id are of a run in several processes"
            raise ValueError(f"train: {given}; add --distributed, or leave them out")
        return _train(command)
    from tsl_jax.training import hosts

    with hosts.joined(command.coordinator, command.processes, command.process_id):
        _train(command)


def _train(command: TrainCommand) -> None:
    """Train, and print where the result is."""
    from tsl_jax.commands.progress import bars
    from tsl_jax.training import hosts, run_dir
    from tsl_jax.training.loop import check_run, train

    config, out = resolved(command), command.out
    if command.resume and not (out / run_dir.CONFIG).exists():
        raise ValueError(f"train: {out} holds no run to continue; check --out, or begin one without --resume")
    timeline, domains = check_run(config, out, resume=command.resume)
    if not hosts.is_writer():  # which shows and says everything
        if domains is not None:
            train(config, out, resume=command.resume)
        return
    if domains is not None:  # not complete
        print(cost(config, timeline))
        silent = nullcontext(lambda facts: None)
        tensorboard = tensorboard_scalars(out / "tensorboard") if command.tensorboard else silent
        try:
            with tensorboard as write, bars() as progress:

                def observe(facts: Mapping[str, Any]) -> None:
                    progress.observe(facts)
                    write(facts)

                train(config, out, resume=command.resume, progress=progress, observe=observe)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(run_dir.how_to_resume(out)) from None
    print(f"run: {out} is complete (tsl report {out} draws it)")


@contextmanager
def tensorboard_scalars(folder: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Gives the function that writes what a run observes; a continued run replaces the steps it makes again.

    Raises:
        ValueError: tensorboardX is not installed.
    """
    try:
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise ValueError("training: tensorboardX is not installed; pip install 'tsl_jax[tensorboard]'") from None
    writers: list[Any] = []

    def observe(facts: Mapping[str, Any]) -> None:
        if not writers:
            writers.append(SummaryWriter(str(folder), purge_step=facts["step"]))
        for name, value in facts.items():
            if name != "step":
                tag = name if "/" in name else f"train/{name}"
                writers[0].add_scalar(tag, value, global_step=facts["step"])

    try:
        yield observe
    finally:
        for writer in writers:
            writer.close()


def resolved(command: TrainCommand) -> TrainConfig:
    """The configuration with `--text` in its place."""
    if not command.text:
        return command.train
    return replace(command.train, data=replace(command.train.data, text=command.text))


def cost(config: TrainConfig, timeline: RunTimeline) -> str:
    """What the run will take, before it begins."""
    from tsl_jax.data.corpora import vocabulary_size
    from tsl_jax.models.config import resolve
    from tsl_jax.models.cost import flops_per_token, n_params

    vocabulary = config.model.vocabulary or vocabulary_size(config.data)
    model = resolve(config.model, vocabulary=vocabulary, context=config.context)
    flops = flops_per_token(model, config.context) * timeline.total_tokens
    size = f"{n_params(model):,} parameters without embeddings"
    return f"{size}, {timeline.total_tokens:,} tokens, {flops:.2e} FLOPs, {len(timeline.evaluations)} evaluations"


@dataclass(frozen=True)
class DemoCommand:
    """Train on the standard library's source, fit, forecast, and draw the page. Goes on where it was interrupted."""

    out: Path = Path("runs/demo")
    """Folder of the run, with summary.json and report.html."""
    trust: bool = False
    """Run the rule of position weights that a file names: Python of its author."""
    train: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)
    """The run, should you want it otherwise."""


def run_demo(command: DemoCommand) -> None:
    """Train, analyse, report."""
    from tsl_jax.commands import options, report
    from tsl_jax.commands.progress import bars
    from tsl_jax.forecasting.methods import REPORTED
    from tsl_jax.surface import load_surface
    from tsl_jax.training.loop import check_run, train

    timeline, domains = check_run(command.train, command.out, resume=True)
    if domains is not None:  # not complete
        print(cost(command.train, timeline))
    try:
        with bars() as progress:
            train(command.train, command.out, resume=True, progress=progress, observe=progress.observe)
            surface = load_surface(command.out)
            summary = report.write(command.out, command.out, surface, options.stamp(command), progress, REPORTED)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on") from None
    report.show(summary, surface, command.out)
