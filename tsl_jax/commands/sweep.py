"""`tsl sweep FILE.yaml`: many runs from one file, each made once."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tsl_jax.sweeps import Pool
    from tsl_jax.training.config import TrainConfig


UNFINISHED = 3  # the exit code where time was up


@dataclass(frozen=True)
class SweepCommand:
    """Make every run of a sweep file. Finished ones are skipped, interrupted ones go on; their surfaces are kept.

    FILE.yaml has `name: NAME-{seed}` (of each run), `base:` (a file or mapping as of tsl train), `set:` (entries that
    replace its own), `grid:` (lists, every combination of which is a run) and `variants:` (named sets of entries);
    or is a list of such mappings.
    """

    file: tyro.conf.Positional[Path]
    """The sweep file."""
    out: Path = Path("runs/sweep")
    """Folder: OUT/NAME.npz (the surface, packed) and OUT/NAME.json (how it was made); whole runs in OUT/runs."""
    side_by_side: int = 1
    """Runs at a time, each on its own share of the cores: small runs gain more from this than from a second core. On an
    accelerator leave it at 1: a run takes most of its memory."""
    minutes: float = 0.0
    """Stop after so long, each run at a checkpoint; the same command goes on. 0: until all are made."""
    trust: bool = False
    """Run the rules of position weights that the file names: Python of their authors."""
    list: bool = False
    """Only print which runs there are, which are kept, and what the others cost."""


def run_sweep(command: SweepCommand) -> int:
    """List the runs, print what they cost, make them; `UNFINISHED` where some are left to make, else 0."""
    from tsl_jax.commands.options import check_folder, require_trust
    from tsl_jax.sweeps import Pool, read_sweep

    runs = read_sweep(command.file)
    check_folder(command.out, "sweep")
    if not command.list:
        require_trust(command, [config.position_weights for config in runs.values()], str(command.file))
    pool = Pool(command.out, command.out / "runs")
    print(describe_runs(pool, runs), flush=True)
    if command.list:
        return 0
    unfinished = make_runs(pool, runs, command.side_by_side, command.minutes)
    print(_final_losses(pool, runs))
    if unfinished:
        print(f"sweep: {len(unfinished)} of {len(runs)} runs unfinished; the same command goes on")
    else:
        print(f"sweep: all {len(runs)} runs are kept in {command.out}")
    return UNFINISHED if unfinished else 0


def describe_runs(pool: Pool, runs: Mapping[str, TrainConfig]) -> str:
    """A line a run; what those that are not kept cost from their beginning, and a guess of the time."""
    from tsl_jax.sweeps import sweep

    states = pool.states(runs)
    width = max(map(len, states))
    listing = "\n".join(f"{name:<{width}}  {state}" for name, state in states.items())
    todo = [runs[name] for name, state in states.items() if state != "kept"]
    if not todo:
        return f"{listing}\nnothing to train: every run is kept"
    try:
        costs = [(config.model.dtype, sweep.cost(config)) for config in todo]
    except (ValueError, OSError) as error:  # its text is not built yet
        return f"{listing}\nto make: {len(todo)} runs; what they cost is not known yet: {error}"
    total = sum((run_cost for _, run_cost in costs), sweep.Cost())
    try:
        rates = {dtype: sweep.machine_rate(dtype) for dtype in dict(costs)}
    except OSError as error:
        return f"{listing}\nto make: {total}; {error}"
    duration = format_duration(sum(run_cost.seconds(rates[dtype]) for dtype, run_cost in costs))
    guess = f"{duration} of this machine, one after another (a guess from its matrix products)"
    return f"{listing}\nto make: {total}\n{guess}"


def format_duration(seconds: float) -> str:
    """about 3 minutes, about 10 hours, about 69.4 days."""
    minutes = seconds / 60
    if minutes < 120:
        return f"about {minutes:.3g} minutes"
    return f"about {minutes / 60:.3g} hours" if minutes < 72 * 60 else f"about {minutes / 1440:.3g} days"


def make_runs(pool: Pool, runs: Mapping[str, TrainConfig], side_by_side: int, minutes: float) -> list[str]:
    """Make what is not kept; the names of the runs that are unfinished.

    Raises:
        ValueError, OSError: for text or names that cannot work, before the first run; for runs that failed, after all.
    """
    from tsl_jax.data import corpora
    from tsl_jax.sweeps import distribute

    if side_by_side < 1 or not minutes >= 0:
        values = f"{side_by_side}, {minutes}"
        raise ValueError(f"sweep: --side-by-side is 1 or more and --minutes not negative, found {values}")
    todo = {name: runs[name] for name, state in pool.states(runs).items() if state != "kept"}
    for name, config in todo.items():
        pool.validate_name(name, config)
    for data in {config.data: None for config in todo.values()}:
        corpora.find(data)
    deadline = time.time() + 60 * minutes if minutes else None

    def report(name: str, done: bool) -> None:
        state = "kept" if done else "unfinished: time is up, or another process has it in hand"
        print(f"{name}: {state}", flush=True)

    several: Any = distribute.side_by_side(side_by_side) if side_by_side > 1 and todo else nullcontext()
    with several as executor:
        return distribute.make_all(pool, todo, executor, deadline, report)


def _final_losses(pool: Pool, runs: Mapping[str, TrainConfig]) -> str:
    """The final losses of the runs that are kept, as Markdown."""
    manifests = pool.manifests_of(runs)
    splits = list(dict.fromkeys(split for manifest in manifests.values() for split in manifest["final_loss"]))
    rows: list[tuple[str, ...]] = [("run", "parameters", "tokens", *(f"final loss, {split}" for split in splits))]
    rows.append(("---",) * len(rows[0]))
    for name, manifest in manifests.items():
        losses = manifest["final_loss"]
        cells = (f"{losses[split]:.4f}" if split in losses else "" for split in splits)
        rows.append((name, f"{manifest['n_params']:,}", f"{manifest['total_tokens']:,}", *cells))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
