"""`tsl evaluate` and `tsl export`: checkpoints of a run or of a published model are measured; a run's become files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from tsl_jax import processes
from tsl_jax.data.config import EvalConfig
from tsl_jax.pretrained.options import PretrainedOptions
from tsl_jax.training.config import MeshConfig


@dataclass(frozen=True)
class EvaluateCommand:
    """Measure checkpoints on text: those that a run has kept (train --keep N), or with --hf those of a published model
    (LLaMA, Mistral, Mixtral, Qwen2, Qwen3, OLMo 2, GPT-NeoX and Pythia, GPT-2). They stay as they are."""

    out: Path
    """Folder of the new loss surface."""
    run: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")] = None
    """Folder of a run; or --hf."""
    hf: str = ""
    """Folder of a checkpoint in the format of transformers, or OWNER/NAME on the Hugging Face hub."""
    text: tuple[str, ...] = ()
    """Other text, as for `tsl train`, each domain a split of its name; without it the run's own."""
    windows: EvalConfig | None = None
    """Other windows; without them the run's own."""
    mesh: MeshConfig | None = None
    """Other devices; without it laid out as in training."""
    pretrained: Annotated[PretrainedOptions, tyro.conf.arg(name="")] = field(default_factory=PretrainedOptions)
    """Options of --hf."""


def run_evaluate(command: EvaluateCommand) -> None:
    """Measure, and print the mean losses."""
    given, options = command.run, command.pretrained
    if (given is None) == (not command.hf):
        found = "neither" if given is None else "both"
        raise ValueError(f"evaluate: name the folder of a run, or --hf with that of a published model, found {found}")
    changed = [name for name, value in vars(options).items() if value != getattr(PretrainedOptions, name)]
    if given is not None and changed:
        option = changed[0].replace("_", "-")
        raise ValueError(f"evaluate: --{option} is an option of --hf, and {given} is a run; leave it out")

    from tsl_jax.commands.progress import bars

    more: dict[str, Any] = {"text": command.text, "windows_config": command.windows, "devices": command.mesh}
    again = "the same command goes on"
    try:
        with bars() as progress, processes.ending_at_once(lambda: again):  # each checkpoint is on disk once measured
            if given is not None:
                from tsl_jax.training.reevaluation import reevaluate

                reevaluate(given, command.out, **more, progress=progress)
            else:
                from huggingface_hub.utils import disable_progress_bars

                from tsl_jax.pretrained.revisions import evaluate_revisions

                disable_progress_bars()  # they would write across ours
                evaluate_revisions(command.hf, command.out, **more, options=options, progress=progress)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(again) from None
    show(command.out)


def show(out: Path) -> None:
    """Print the mean losses of a surface, and how much text they stand on ("61 documents of code, 24,576 losses")."""
    from tsl_jax.surface import load_surface

    surface = load_surface(out)
    for split in map(str, surface.split.values):
        losses = ", ".join(f"{value:.3f}" for value in surface.loss.sel(split=split).mean("position").values)
        print(f"{split}: mean loss {losses} nats at {', '.join(map(str, surface.tokens.values))} tokens")
        windows = surface.attrs["windows"][split]
        count = int(surface["count"].sel(split=split).isel(tokens=-1).sum())
        measured = f"{windows['documents']} documents of {', '.join(windows['domains'])}, {count:,} token losses"
        print(f"  measured on {measured}")
    print(f"surface: {out}")


@dataclass(frozen=True)
class ExportCommand:
    """Write a checkpoint of a run in the format of transformers: config.json, model.safetensors, tokenizer.json."""

    run: tyro.conf.Positional[Path]
    """Folder of a run."""
    out: Path
    """A new folder."""
    step: int | None = None
    """Of the checkpoint; default: the newest."""


def run_export(command: ExportCommand) -> None:
    """Export, and print where it is."""
    from tsl_jax.pretrained.export import export_run

    print(f"checkpoint: {export_run(command.run, command.out, command.step)}")
