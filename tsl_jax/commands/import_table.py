"""`tsl import TABLE`: losses measured elsewhere become surfaces on disk."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class ImportCommand:
    """Make a surface of each run of a table, for tsl report and tsl forecast. A row is a checkpoint.

    Columns named as their role (tokens, step, loss, lr, run, n_params) are found; the others are named here.
    """

    table: tyro.conf.Positional[Path]
    """A .csv, .jsonl or .parquet file."""
    out: Path
    """Folder for a file a run, RUN.npz; or one .npz file for the one run of a table."""
    loss: Annotated[tuple[str, ...], tyro.conf.arg(metavar="COL...")] = ("loss",)
    """Columns of losses, nats per token; each is a split."""
    tokens: Annotated[str | None, tyro.conf.arg(metavar="COL")] = "tokens"
    """Column of training tokens seen; None passes it over."""
    step: Annotated[str | None, tyro.conf.arg(metavar="COL")] = "step"
    """Column of steps."""
    lr: Annotated[str | None, tyro.conf.arg(metavar="COL")] = "lr"
    """Column of learning rates."""
    run: Annotated[tuple[str, ...], tyro.conf.arg(metavar="COL...")] = ("run",)
    """Columns that name the run together; without one the table is one run, named as the file."""
    n_params: Annotated[str | None, tyro.conf.arg(metavar="COL")] = "n_params"
    """Column of the model's parameters, without embeddings."""
    position: Annotated[str | None, tyro.conf.arg(metavar="COL")] = None
    """Column of positions, from 1; without one losses are means over positions."""
    tokens_per_step: int | None = None
    """Where only steps are known: tokens of a step; 1 makes steps the clock."""
    schedule: Annotated[Path | None, tyro.conf.arg(metavar="FILE.yaml")] = None
    """Learning-rate plan: kind, peak, warmup_tokens, total_tokens, final_ratio; a list of them, each with from_tokens,
    where it changed; or either for each run, under its name."""
    warmup_tokens: int | None = None
    """Length of a warm-up that was over before the first row."""
    allow_missing: bool = False
    """Leave out rows without any loss, and let others lack some."""


def run_import(command: ImportCommand) -> None:
    """Read, write what is not there yet, and print one line a run."""
    from tsl_jax.atomic_write import check_outputs
    from tsl_jax.commands.options import check_folder
    from tsl_jax.importers import read_table
    from tsl_jax.surface import load_surface, save_surface

    options = {name: value for name, value in vars(command).items() if name not in ("table", "out", "schedule")}
    surfaces = read_table(command.table, **options, schedule=_schedule(command.schedule))
    files = _files(command.out, list(surfaces))
    for file in files.values():
        check_folder(file.parent, "import")
    check_outputs([command.table, command.schedule], files.values(), "import")
    new = []
    for name, surface in surfaces.items():
        if not files[name].exists():
            new.append(name)
        elif not load_surface(files[name]).identical(surface):
            raise ValueError(
                f"import: {files[name]} holds another surface, and is left as it is; remove it, or name another --out"
            )
    for name in new:
        save_surface(surfaces[name], files[name])
    for name, surface in surfaces.items():
        print(f"{name}: {_line(surface)}{'' if name in new else '; the file was there'}")
    print(f"surfaces: {command.out}")


def _schedule(file: Path | None) -> Any:
    """The plan of a file, or run -> plan."""
    if file is None:
        return None
    from tsl_jax.importers import schedule_files

    plans = schedule_files.load(file)
    if isinstance(plans, dict) and plans and all(isinstance(plan, dict | list) for plan in plans.values()):
        return {name: schedule_files.schedule_of(plan, f"{file}, {name}") for name, plan in plans.items()}
    return schedule_files.schedule_of(plans, str(file))


def _files(out: Path, names: list[str]) -> dict[str, Path]:
    """Run -> file."""
    if out.suffix == ".npz":
        if len(names) > 1:
            raise ValueError(f"import: the table has {len(names)} runs, {out} is one file; give --out a folder")
        return {names[0]: out}
    files = {name: out / (re.sub(r"[^\w.+=-]+", "_", name) + ".npz") for name in names}
    if len(set(files.values())) < len(files):
        raise ValueError("import: two runs have the same name but for signs no file can have; name others with --run")
    return files


def _line(surface: xr.Dataset) -> str:
    """Checkpoints, tokens, and each split's first and last loss."""
    tokens, ends = surface.tokens.values, surface.loss.mean("position").isel(tokens=[0, -1])
    losses = ", ".join(f"{s} {a:.3f} to {b:.3f}" for s, (a, b) in zip(surface.split.values, ends.values, strict=True))
    return f"{len(tokens)} checkpoints, {tokens[0]:,} to {tokens[-1]:,} tokens; {losses}"
