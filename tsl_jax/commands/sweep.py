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


@dataclass(frozen=True)
class Command:
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
    """Runs at a time, each on its own share of the cores: small runs gain more from this than from a second core."""
    minutes: float = 0.0
    """Stop after so long, each run at a checkpoint; the same command goes on. 0: until all are made."""
    list: bool = False
    """Only say which runs there are, which are kept, and what the others cost."""


def run(command: Command) -> None:
    """List the runs, say what they cost, make them."""
    from tsl_jax.sweeps import Pool, read_sweep
    from tsl_jax.sweeps.sweep import different

    runs = read_sweep(command.file)
    different(runs)
    pool = Pool(command.out, command.out / "runs")
    print(listed(pool, runs))
    if not command.list:
        left = made(pool, runs, command.side_by_side, command.minutes)
        print(finals(pool, runs))
        print(f"sweep: {len(left)} of {len(runs)} runs unfinished; the same command goes on" if left else
              f"sweep: all {len(runs)} runs are kept in {command.out}")  # fmt: skip


def made(pool: Pool, runs: Mapping[str, TrainConfig], side_by_side: int, minutes: float) -> list[str]:
    """Make what is not kept; the names of the runs that time did not suffice for.

    Raises:
        ValueError, OSError: for text or folders that cannot work, before the first run.
    """
    from tsl_jax.sweeps import spread
    from tsl_jax.training.train import checked

    if side_by_side < 1 or minutes < 0:
        raise ValueError(
            f"sweep: --side-by-side is 1 or more and --minutes not negative, found {side_by_side}, {minutes}"
        )
    todo = {name: config for name, config in runs.items() if not pool.find(config)}
    for name, config in todo.items():
        checked(config, pool.runs / name, resume=True)
    deadline = time.monotonic() + 60 * minutes if minutes else None
    several: Any = spread.side_by_side(side_by_side) if side_by_side > 1 else nullcontext()
    with several as executor:
        return spread.make_all(
            pool, todo, executor, deadline, lambda name, done: print(_progress(name, done), flush=True)
        )


def _progress(name: str, done: bool) -> str:
    return f"{name}: {'kept' if done else 'stopped at a checkpoint'}"


def listed(pool: Pool, runs: Mapping[str, TrainConfig]) -> str:
    """A line a run, and what those that are not kept will cost together."""
    from tsl_jax.sweeps.cost import Cost, cost
    from tsl_jax.training.estimate import matrix_rate

    states = {name: pool.state(name, config) for name, config in runs.items()}
    lines = [f"{name:<40}{state}" for name, state in states.items()]
    total = sum((cost(runs[name]) for name, state in states.items() if state != "kept"), Cost())
    if not total.runs:
        return "\n".join([*lines, "nothing to train: every run is kept"])
    minutes = total.seconds(matrix_rate("float32")) / 60
    guess = f"about {minutes:.0f} minutes of this machine, one after another (a guess from its matrix products)"
    return "\n".join([*lines, f"to make: {total}", guess])


def finals(pool: Pool, runs: Mapping[str, TrainConfig]) -> str:
    """The final losses of the runs that are kept, as Markdown."""
    kept = {name: found for name, config in runs.items() if (found := pool.find(config))}
    splits = list(dict.fromkeys(split for found in kept.values() for split in found["final_loss"]))
    head = ("run", "parameters", "tokens", *(f"final loss, {split}" for split in splits))
    rows = [
        (name, f"{found['n_params']:,}", f"{found['total_tokens']:,}",
         *(f"{found['final_loss'][split]:.4f}" if split in found["final_loss"] else "" for split in splits))
        for name, found in kept.items()
    ]  # fmt: skip
    cells = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)
