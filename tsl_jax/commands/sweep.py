"""`tsl sweep FILE.yaml`: many runs from one file, each made once."""

from __future__ import annotations

import re
import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Executor

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
    ray: str | None = None
    """Make the runs on the Ray cluster at this address, whose machines see OUT and the text under the same paths;
    "local" starts one here, "auto" finds the one this machine is in."""
    per_run: tuple[str, ...] = ()
    """With --ray, what a run takes of a machine, as CPU=4 GPU=1, GPU=0.5 or TPU=4; by itself a GPU where there are any,
    else a CPU."""
    retries: int = 1
    """How often a run that failed goes on from its last checkpoint, after all others."""
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

    if command.ray is None and command.per_run:
        raise ValueError("sweep: --per-run is what a run takes of a machine of --ray; give --ray, or leave it out")
    if command.ray is not None and command.side_by_side > 1:
        raise ValueError("sweep: --ray shares out the runs by --per-run; leave out --side-by-side")
    shares = parse_shares(command.per_run)
    _check_numbers(command.side_by_side, command.minutes, command.retries)
    runs = read_sweep(command.file)
    check_folder(command.out, "sweep")
    if not command.list:
        require_trust(command, [config.position_weights for config in runs.values()], str(command.file))
    pool = Pool(command.out, command.out / "runs")
    print(describe_runs(pool, runs), flush=True)
    if command.list:
        return 0
    over_ray = None if command.ray is None else partial(ray_executor, command.ray, shares)
    unfinished = make_runs(pool, runs, command.side_by_side, command.minutes, command.retries, over_ray)
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


def parse_shares(words: tuple[str, ...]) -> dict[str, float]:
    """CPU=4 GPU=0.5 as a mapping.

    Raises:
        ValueError: for anything else.
    """
    shares = {}
    for word in words:
        match = re.fullmatch(r"([A-Za-z][\w-]*)=(\d+\.?\d*|\.\d+)", word)
        if not match or not float(match[2]):
            raise ValueError(f"sweep: --per-run has amounts such as CPU=4 GPU=0.5, found {word!r}")
        shares[match[1]] = float(match[2])
    return shares


def ray_executor(address: str, shares: Mapping[str, float]) -> Executor:
    """The executor of a Ray cluster for so much of a machine a run; by itself a GPU where there are any, else a CPU."""
    from tsl_jax.curve_tables import RayExecutor

    try:
        executor = RayExecutor(address)
    except ModuleNotFoundError as error:  # a mistake of the user here, with its fix
        raise ValueError(str(error).replace("fit:", "sweep:")) from None
    try:
        executor.share_out(shares or ({"GPU": 1} if executor.resources.get("GPU") else {"CPU": 1}))
    except ValueError:
        executor.shutdown()
        raise
    return executor


def make_runs(
    pool: Pool,
    runs: Mapping[str, TrainConfig],
    side_by_side: int,
    minutes: float,
    retries: int = 0,
    several: Callable[[], Executor] | None = None,
) -> list[str]:
    """Make what is not kept; the names of the runs that are unfinished.

    Args:
        several: makes the executor for them; None: `side_by_side` here. retries: see `make_all`.

    Raises:
        ValueError, OSError: for text or names that cannot work, before the first run; for runs that failed, after all.
    """
    from tsl_jax.data import corpora
    from tsl_jax.sweeps import distribute

    _check_numbers(side_by_side, minutes, retries)
    todo = {name: runs[name] for name, state in pool.states(runs).items() if state != "kept"}
    for name, config in todo.items():
        pool.validate_name(name, config)
    for data in {config.data: None for config in todo.values()}:
        corpora.find(data)
    deadline = time.time() + 60 * minutes if minutes else None

    def report(name: str, done: bool) -> None:
        state = "kept" if done else "unfinished: time is up, or another process has it in hand"
        print(f"{name}: {state}", flush=True)

    if several is None and side_by_side > 1:
        several = partial(distribute.side_by_side, side_by_side)
    executors: Any = several() if several is not None and todo else nullcontext()
    with executors as executor:
        return distribute.make_all(pool, todo, executor, deadline, report, retries)


def _check_numbers(side_by_side: int, minutes: float, retries: int) -> None:
    if side_by_side < 1 or not minutes >= 0:
        values = f"{side_by_side}, {minutes}"
        raise ValueError(f"sweep: --side-by-side is 1 or more and --minutes not negative, found {values}")
    if retries < 0:
        raise ValueError(f"sweep: --retries is 0 or more, found {retries}")


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
