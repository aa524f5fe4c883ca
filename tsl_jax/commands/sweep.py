"""`tsl sweep FILE.yaml`: many runs from one file, each made once."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tsl_jax.sweeps import Pool
    from tsl_jax.training.config import TrainConfig


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
    list: bool = False
    """Only say which runs there are, which are kept, and what the others cost."""


def run_sweep(command: SweepCommand) -> None:
    """List the runs, say what they cost, make them."""
    from tsl_jax.sweeps import Pool, read_sweep

    runs = read_sweep(command.file)
    pool = Pool(command.out, command.out / "runs")
    print(listed(pool, runs), flush=True)
    if command.list:
        return
    left = made(pool, runs, command.side_by_side, command.minutes)
    print(finals(pool, runs))
    if left:
        print(f"sweep: {len(left)} of {len(runs)} runs unfinished; the same command goes on")
    else:
        print(f"sweep: all {len(runs)} runs are kept in {command.out}")


def made(pool: Pool, runs: Mapping[str, TrainConfig], side_by_side: int, minutes: float) -> list[str]:
    """Make what is not kept; the names of the runs that are unfinished.

    Raises:
        ValueError, OSError: for text or names that cannot work, before the first run; for runs that failed, after all.
    """
    from tsl_jax.data import corpora
    from tsl_jax.sweeps import spread

    if side_by_side < 1 or not minutes >= 0:
        found = f"{side_by_side}, {minutes}"
        raise ValueError(f"sweep: --side-by-side is 1 or more and --minutes not negative, found {found}")
    todo = {name: runs[name] for name, state in pool.states(runs).items() if state != "kept"}
    for name, config in todo.items():
        pool.check(name, config)
    for data in {config.data: None for config in todo.values()}:
        corpora.find(data)
    deadline = time.time() + 60 * minutes if minutes else None
    several: Any = spread.side_by_side(side_by_side) if side_by_side > 1 and todo else nullcontext()
    with several as executor:
        return spread.make_all(
            pool, todo, executor, deadline, lambda name, done: print(_progress(name, done), flush=True)
        )


def _progress(name: str, done: bool) -> str:
    return f"{name}: {'kept' if done else 'unfinished: time is up, or another process has it in hand'}"


def listed(pool: Pool, runs: Mapping[str, TrainConfig]) -> str:
    """A line a run, and what those that are not kept will cost together."""
    states = pool.states(runs)
    width = max(map(len, states))
    lines = [f"{name:<{width}}  {state}" for name, state in states.items()]
    todo = [runs[name] for name, state in states.items() if state != "kept"]
    return "\n".join([*lines, _cost(todo) if todo else "nothing to train: every run is kept"])


def _cost(todo: Sequence[TrainConfig]) -> str:
    """What these runs take from their beginning, and a guess of the time."""
    from tsl_jax.sweeps.cost import Cost, cost, machine_rate

    try:
        costs = [(config.model.dtype, cost(config)) for config in todo]
    except (ValueError, OSError) as error:  # its text is not built yet
        return f"to make: {len(todo)} runs; what they cost is not known yet: {error}"
    total = sum((one for _, one in costs), Cost())
    try:
        rates = {dtype: machine_rate(dtype) for dtype in dict(costs)}
    except OSError as error:
        return f"to make: {total}; {error}"
    seconds = sum(one.seconds(rates[dtype]) for dtype, one in costs)
    return f"to make: {total}\n{_time(seconds)} of this machine, one after another (a guess from its matrix products)"


def _time(seconds: float) -> str:
    minutes = seconds / 60
    amount, unit = next(
        (minutes / each, unit)
        for each, unit, most in ((1, "minutes", 120), (60, "hours", 72), (1440, "days", math.inf))
        if minutes / each < most
    )
    return f"about {amount:.3g} {unit}"


def finals(pool: Pool, runs: Mapping[str, TrainConfig]) -> str:
    """The final losses of the runs that are kept, as Markdown."""
    kept = pool.found(runs)
    splits = list(dict.fromkeys(split for found in kept.values() for split in found["final_loss"]))
    head = ("run", "parameters", "tokens", *(f"final loss, {split}" for split in splits))
    rows = [
        (name, f"{found['n_params']:,}", f"{found['total_tokens']:,}",
         *(f"{found['final_loss'][split]:.4f}" if split in found["final_loss"] else "" for split in splits))
        for name, found in kept.items()
    ]  # fmt: skip
    cells = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)
