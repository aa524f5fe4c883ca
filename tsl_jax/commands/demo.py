"""`tsl demo`: the main job on text that every Python has, in minutes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from tsl_jax.training.config import TrainConfig


@dataclass(frozen=True)
class Command:
    """Train on the standard library's source, fit, forecast, and draw the page. Goes on where it was interrupted."""

    out: Path = Path("runs/demo")
    """Folder of the run, with summary.json and report.html."""
    train: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)
    """The run, should you want it otherwise."""


def run(command: Command) -> None:
    """Train, analyse, report."""
    from tsl_jax.commands import options, report
    from tsl_jax.commands.progress import bars
    from tsl_jax.commands.train import cost
    from tsl_jax.surface import load_surface
    from tsl_jax.training.loop import checked, train

    if not checked(command.train, command.out, resume=True):
        print(cost(command.train))
    try:
        with bars() as progress:
            train(command.train, command.out, resume=True, progress=progress, observe=progress.observe)
            surface = load_surface(command.out)
            summary = report.write(command.out, command.out, surface, options.stamp(command), progress)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on") from None
    report.show(summary, surface, command.out)
