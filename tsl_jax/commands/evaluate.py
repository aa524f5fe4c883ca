"""`tsl evaluate RUN`: the kept checkpoints of a run on other text or other windows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from tsl_jax.data.config import EvalConfig
from tsl_jax.training.config import MeshConfig


@dataclass(frozen=True)
class Command:
    """Measure the checkpoints a run has kept (train --keep N) again, on other text or windows; it stays as it is."""

    run: tyro.conf.Positional[Path]
    """Folder of a run."""
    out: Path
    """Folder of the new loss surface."""
    text: tuple[str, ...] = ()
    """Other text, as for `tsl train`, each domain a split of its name; without it the run's own."""
    windows: EvalConfig | None = None
    """Other windows; without them the run's own."""
    mesh: MeshConfig | None = None
    """Other devices; without it laid out as in training."""


def run(command: Command) -> None:
    """Measure, and print the mean losses."""
    from tsl_jax.commands.progress import bars
    from tsl_jax.surface import load_surface
    from tsl_jax.training.reevaluation import reevaluate

    try:
        with bars() as progress:
            given = {"text": command.text, "evaluation": command.windows, "devices": command.mesh}
            reevaluate(command.run, command.out, **given, progress=progress)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on") from None
    surface = load_surface(command.out)
    for split in map(str, surface.split.values):
        losses = ", ".join(f"{value:.3f}" for value in surface.loss.sel(split=split).mean("position").values)
        print(f"{split}: mean loss {losses} nats at {', '.join(map(str, surface.tokens.values))} tokens")
        print(f"  measured on {_measured(surface, split)}")
    print(f"surface: {command.out}")


def _measured(surface: Any, split: str) -> str:
    """How much text the losses of a split stand on: "61 documents of code, 24,576 token losses"."""
    windows = surface.attrs["windows"][split]
    losses = int(surface["count"].sel(split=split).isel(tokens=-1).sum())
    return f"{windows['documents']} documents of {', '.join(windows['domains'])}, {losses:,} token losses"
