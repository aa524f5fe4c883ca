"""`tsl compare RUN RUN ...`: which is better, and how sure?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    import xarray as xr


NUMBERS = ("split", "tokens", "margin", "target", "sd", "level", "own_ends", "slope")  # options of compare_runs


@dataclass(frozen=True)
class CompareCommand:
    """Compare runs, or groups of seeds, with the first: the end with an interval, tokens to match, by position.

    tsl compare runs/plain runs/new | tsl compare runs/sweep --margin .01 | tsl compare a.npz b.npz --sd .0013
    """

    runs: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN_OR_FOLDER ...")]]
    """Folders of runs, .npz files of surfaces, or the folder of a sweep, whose runs are all taken. NAME@SEED is a seed
    of the group NAME; the first group is what others are compared with."""
    split: str = ""
    """Default the first."""
    against: str = ""
    """The group that others are compared with; default the first."""
    tokens: float | None = None
    """At which losses are compared; default the last that all runs have."""
    margin: float | None = None
    """Nats within which two groups count as equal."""
    target: float | None = None
    """A loss in nats: with which p is the mean of a group below it?"""
    sd: float | None = None
    """Standard deviation of the end of one run over seeds, known from elsewhere; default that of the runs given."""
    own_ends: bool = False
    """Compare each run at its own end, carried to that of the first group by the slope of the loss there."""
    slope: float | None = None
    """With --own-ends: nats by which the loss falls a token (a step, where steps are the clock); default estimated."""
    level: float = 0.95
    """Of the intervals."""
    out: Path | None = None
    """A .csv file for the table, or a .png or .svg for the figure."""


def run_compare(command: CompareCommand) -> None:
    """Print the table, write it or the figure."""
    from tsl_jax.atomic_write import write_atomically
    from tsl_jax.diagnostics import compare_runs

    if command.out is not None and command.out.suffix not in (".csv", ".png", ".svg"):
        raise ValueError(f"compare: --out is a .csv, .png or .svg file, found {command.out}")
    groups = _groups(command.runs)
    if command.against:
        if command.against not in groups:
            raise ValueError(f"compare: --against {command.against} is none of the groups {', '.join(groups)}")
        groups = {command.against: groups[command.against], **groups}
    options = {name: getattr(command, name) for name in NUMBERS}
    comparison = compare_runs(groups, **options)
    print(comparison.report())
    if command.out is None:
        return
    if command.out.suffix == ".csv":
        write_atomically(command.out, comparison.table.to_csv(float_format="%.8g"))
    else:
        figure, kind = comparison.plot(), command.out.suffix[1:]
        write_atomically(command.out, lambda file: figure.savefig(file, format=kind, dpi=150))
    print(f"{'table' if command.out.suffix == '.csv' else 'figure'}: {command.out}")


def _groups(paths: tuple[Path, ...]) -> dict[str, dict[str, xr.Dataset]]:
    """Group -> seed -> surface, in the order given.

    Raises:
        ValueError: for a path without a run, or two runs of one name and seed.
    """
    from tsl_jax.surface import load_surface

    groups: dict[str, dict[str, xr.Dataset]] = {}
    for path in paths:
        for run in runs_in(path, "compare"):
            stem = run.name.removesuffix(".npz")
            name, _, seed = stem.partition("@")
            group = groups.setdefault(name, {})
            if seed in group:
                raise ValueError(f"compare: {run} and another run are both seed {seed or 'unnamed'} of {name}")
            group[seed] = load_surface(run)
    return groups


def runs_in(path: Path, area: str) -> list[Path]:
    """The run at a path, or all runs of the folder of a sweep.

    Raises:
        ValueError: for a folder without runs; `area` begins the message.
    """
    if path.is_file() or (path / "surface").is_dir() or not path.is_dir():
        return [path]
    inside = sorted(entry for entry in path.glob("*") if (entry / "surface").is_dir() or entry.suffix == ".npz")
    inside = inside or sorted(entry for entry in (path / "runs").glob("*") if (entry / "surface").is_dir())
    if not inside:
        raise ValueError(f"{area}: {path} is no run, and holds none")
    return inside
