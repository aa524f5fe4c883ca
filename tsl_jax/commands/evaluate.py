"""`tsl evaluate RUN`: the kept checkpoints of a run on other text or other windows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from tsl_jax.data.config import EvalConfig


@dataclass(frozen=True)
class Command:
    """Measure the checkpoints a run has kept again: on other text, or on other windows. The run is left as it is."""

    run: tyro.conf.Positional[Path]
    """Folder of a run."""
    out: Path
    """Folder of the new loss surface."""
    text: tuple[str, ...] = ()
    """Other text, as for `tsl train`; default the run's own."""
    windows: EvalConfig | None = None
    """Other windows; default the run's own."""


def run(command: Command) -> None:
    """Measure, and print the mean losses."""
    from tsl_jax.commands.progress import bars
    from tsl_jax.surface import load_surface
    from tsl_jax.training.reevaluate import reevaluate

    with bars() as progress:
        reevaluate(command.run, command.out, text=command.text, evaluation=command.windows, progress=progress)
    surface = load_surface(command.out)
    for split in surface.split.values:
        losses = ", ".join(f"{value:.3f}" for value in surface.loss.sel(split=split).mean("position").values)
        print(f"{split}: mean loss {losses} nats at {', '.join(map(str, surface.tokens.values))} tokens")
    print(f"surface: {command.out}")
