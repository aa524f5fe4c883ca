"""`tsl reproduce NAME`: one experiment, from its runs to its tables, figures and page. Lives in a checkout."""

from __future__ import annotations

import ast
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro


@dataclass(frozen=True)
class ReproduceCommand:
    """Run an experiment of experiments/: say its cost, make the runs that are missing, analyse, write the results."""

    name: tyro.conf.Positional[str] = ""
    """An experiment; without it they are listed."""
    scale: Literal["cpu", "gpu", "paper"] = "cpu"
    """cpu: two cores, hours. gpu: one accelerator, pieces of minutes. paper: the sizes of the paper, for a cluster."""
    minutes: float | None = None
    """Stop after so long, each run at a checkpoint; the same command goes on. Default 90 (cpu), 7 (gpu), 0 (paper: no
    limit)."""
    side_by_side: int = 1
    """Runs at a time, each on its own share of the cores."""
    cost: bool = False
    """Only say which runs there are and what those that are not kept would cost."""


def run_reproduce(command: ReproduceCommand) -> None:
    """List the experiments, or hand over to one."""
    folder = experiments()
    known = {path.parent.name: path for path in sorted(folder.glob("*/study.py"))}
    if not command.name:
        print("\n".join(f"  {name:<22}{question(path)}" for name, path in known.items()))
        return
    if command.name not in known:
        raise ValueError(f"reproduce: expected one of {', '.join(known)}, found {command.name!r}")
    _become(folder, command.name, _told(command))


def _told(command: ReproduceCommand) -> list[str]:
    """The options that the experiment itself has."""
    told = ["--scale", command.scale, "--side-by-side", str(command.side_by_side)]
    told += [] if command.minutes is None else ["--minutes", str(command.minutes)]
    return told + (["--cost"] if command.cost else [])


def _become(folder: Path, name: str, told: list[str]) -> None:
    """This process becomes the experiment's, so that Ctrl-C and kills reach that, and its exit code is ours."""
    sys.stdout.flush()
    paths = [str(folder.parent.resolve()), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    os.execve(sys.executable, [sys.executable, "-m", f"experiments.{name}.study", *told], environment)


def experiments() -> Path:
    """The folder of experiments: of the checkout that this library is imported from, or below this folder.

    Raises:
        ValueError: where there is none, as in an installed wheel.
    """
    places = (Path(__file__).parents[2] / "experiments", Path("experiments"))
    for place in places:
        if (place / "plans").is_dir():
            return place
    raise ValueError(
        "reproduce: experiments are part of a checkout, not of the installed package; clone the repository"
    )


def question(path: Path) -> str:
    """The first line of an experiment's head."""
    lines = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()
    return lines[0] if lines else ""
