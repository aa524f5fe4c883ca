"""`tsl import LOG`: logs and tables of losses measured elsewhere become surfaces on disk."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    import xarray as xr

LOG_OPTIONS = ("loss", "tokens", "step", "lr", "run", "n_params", "sequence_length", "tokens_unit", "loss_unit")
LOG_OPTIONS += ("bytes_per_token", "logging_steps", "warmup_tokens", "repeated", "strict")
TABLE_OPTIONS = ("tokens", "step", "lr", "n_params", "position", "warmup_tokens", "allow_missing")


@dataclass(frozen=True)
class ImportCommand:
    """Make a surface of each run of any logs, for tsl report and tsl forecast, and say what was read.

    The format is recognised, and so are columns of losses, tokens, steps, rates and runs; restarts are stitched.
    """

    logs: tyro.conf.Positional[tuple[str, ...]]
    """Files, folders or patterns: lines of a trainer, CSV, JSON, TensorBoard, W&B, MLflow, trackio, Parquet, ..."""
    out: Path = Path("runs/imported")
    """Folder for a file a run, RUN.npz; or one .npz file for the one run of a log."""
    loss: Annotated[tuple[str, ...], tyro.conf.arg(metavar="COL...")] = ()
    """Columns of losses, nats per token; each is a split. Without: those that are recognised."""
    tokens: Annotated[str | None, tyro.conf.arg(metavar="COL")] = "tokens"
    """Column of training tokens seen; None passes it over."""
    step: Annotated[str | None, tyro.conf.arg(metavar="COL")] = "step"
    """Column of steps."""
    lr: Annotated[str | None, tyro.conf.arg(metavar="COL")] = "lr"
    """Column of learning rates."""
    run: Annotated[tuple[str, ...], tyro.conf.arg(metavar="COL...")] = ()
    """Columns that name the run together; without one a file is one run, or several where its steps begin again."""
    n_params: Annotated[str | None, tyro.conf.arg(metavar="N|COL")] = "n_params"
    """The model's parameters, without embeddings, as tsl scale reads them: 124e6, 124M, or a column. Without: where the
    log states a number."""
    position: Annotated[str | None, tyro.conf.arg(metavar="COL")] = None
    """Column of positions, from 1, of a table; without one losses are means over positions."""
    tokens_per_step: Annotated[str | None, tyro.conf.arg(metavar="N|STEP:N,...")] = None
    """Where only steps are known: tokens of a step; 1 makes steps the clock; 0:N,1000:M where it changes at a step."""
    sequence_length: int | None = None
    """Where only samples are known: tokens of a sample."""
    tokens_unit: float | None = None
    """What the column of tokens counts in, such as 1e9."""
    loss_unit: Literal["nats/token", "bits/token", "bits/byte", "bits/char", "perplexity"] | None = None
    """What the losses are, where their names do not say."""
    bytes_per_token: float | None = None
    """Makes bits per byte nats per token."""
    logging_steps: int | None = None
    """Steps between two rows of a log that has no steps."""
    schedule: Annotated[Path | None, tyro.conf.arg(metavar="FILE.yaml")] = None
    """Learning-rate plan: kind, peak, warmup_tokens, total_tokens, final_ratio; a list of them, each with from_tokens,
    where it changed; or either for each run, under its name."""
    warmup_tokens: int | None = None
    """Length of a warm-up that was over before the first row."""
    repeated: Literal["last", "first", "mean", "apart"] = "last"
    """Which losses count where a run was started again: of the last attempt, the first, their mean, or each apart."""
    allow_missing: bool = False
    """With --position: let rows lack losses. Other logs may always."""
    strict: bool = False
    """Refuse what would be left out, changed or doubtful."""


def run_import(command: ImportCommand) -> None:
    """Read, write what is not there yet, print one line a run and the account."""
    from tsl_jax.atomic_write import check_outputs
    from tsl_jax.commands.options import check_folder
    from tsl_jax.surface import load_surface, save_surface

    if not command.logs:
        raise ValueError("import: name a log: a file, a folder or a pattern")
    surfaces, account = _read(command)
    files = _files(command.out, list(surfaces))
    for file in files.values():
        check_folder(file.parent, "import")
    inputs = [Path(log) for log in command.logs if Path(log).exists()]
    check_outputs([*inputs, command.schedule], files.values(), "import")
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
    print(account, end="\n" if account else "")
    print(f"surfaces: {command.out}")


def _read(command: ImportCommand) -> tuple[dict[str, xr.Dataset], str]:
    """The surfaces and the account of what was read; a table of positions is read strictly, row by row."""
    from tsl_jax.importers import read_log, read_table
    from tsl_jax.importers.model_size import as_number

    given, schedule = vars(command), _schedule(command.schedule)
    each = _tokens_per_step(command.tokens_per_step)
    if command.position is not None:
        if len(command.logs) > 1 or isinstance(each, list):
            raise ValueError("import: a table of positions is one file, and tokens_per_step one number")
        size = as_number(command.n_params)
        options = {name: given[name] for name in TABLE_OPTIONS} | ({"n_params": None} if size is not None else {})
        named = {"loss": command.loss or ("loss",), "run": command.run or ("run",)}
        surfaces = read_table(next(iter(command.logs)), **options, **named, tokens_per_step=each, schedule=schedule)
        if size is not None:
            surfaces = {name: surface.assign_attrs(n_params=int(size)) for name, surface in surfaces.items()}
        return surfaces, ""
    options = {name: given[name] for name in LOG_OPTIONS}
    result = read_log(command.logs, **options, tokens_per_step=each, schedule=schedule)
    return result.surfaces, str(result)


def _tokens_per_step(text: str | None) -> int | list[tuple[int, int]] | None:
    """`524288`, or `0:262144,1000:524288` of a ramp.

    Raises:
        ValueError: for anything else.
    """
    if text is None:
        return None
    try:
        if ":" not in text:
            return int(text.replace("_", ""))
        return [(int(first), int(size)) for first, size in (part.split(":") for part in text.split(","))]
    except ValueError:
        found = f"found {text!r}; write 524288, or 0:262144,1000:524288 of a ramp"
        raise ValueError(f"import: tokens_per_step must be whole numbers, {found}") from None


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
    """Checkpoints, clock, and each split's first and last loss that is known."""
    tokens = surface.tokens.values
    losses = []
    for split, values in zip(surface.split.values, surface.loss.mean("position").values, strict=True):
        known = values[values == values]
        losses.append(f"{split} {known[0]:.3f} to {known[-1]:.3f}" if len(known) else f"{split} unknown")
    unit = surface.attrs.get("log", {}).get("clock", "tokens")
    return f"{len(tokens)} checkpoints, {tokens[0]:,} to {tokens[-1]:,} {unit}; {', '.join(losses)}"
