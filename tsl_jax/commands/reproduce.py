"""`tsl reproduce NAME`: one experiment, from its runs to its tables, figures and page. Lives in a checkout."""

from __future__ import annotations

import ast
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from tsl_jax.processes import python

HERE = Path("experiments")


@dataclass(frozen=True)
class ReproduceCommand:
    """Run an experiment of experiments/: print its cost, make the runs that are missing, analyse, write the results."""

    name: tyro.conf.Positional[str] = ""
    """An experiment; without it they are listed."""
    scale: Literal["cpu", "gpu", "paper", "paper-small"] = "cpu"
    """cpu: two cores, hours. gpu: one accelerator, pieces of minutes. paper: the sizes of the paper, for a cluster;
    paper-small: its smallest size alone, on two cores."""
    minutes: float | None = None
    """Stop after so long, each run at a checkpoint; the same command goes on. Default 90 (cpu, paper-small), 7 (gpu), 0
    (paper: no limit)."""
    side_by_side: int = 1
    """Runs at a time, each on its own share of the cores."""
    cost: bool = False
    """Only print which runs there are and what those that are not kept would cost."""
    text: bool = False
    """Print all tables, claims and notes as Markdown too, before the verdicts."""
    trust: bool = False
    """Run the experiment of the folder below this one, where the library comes without any."""


def run_reproduce(command: ReproduceCommand) -> None:
    """List the experiments with their questions, or become one."""
    if command.side_by_side < 1 or not (command.minutes is None or command.minutes >= 0):
        values = f"{command.side_by_side}, {command.minutes}"
        raise ValueError(f"reproduce: --side-by-side is 1 or more and --minutes not negative, found {values}")
    folder = experiments()
    if command.name and folder == HERE and not command.trust:
        raise ValueError(f"reproduce: {folder.absolute()} is Python that would run; look at it, then add --trust")
    studies = {path.parent.name: path for path in sorted(folder.glob("*/study.py"))}
    studies.pop("shared", None)  # what the studies have in common, and no study
    if not command.name:
        for name, path in studies.items():
            question = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
            print(f"  {name:<22}{question}")
        return
    if command.name not in studies:
        raise ValueError(f"reproduce: expected one of {', '.join(studies)}, found {command.name!r}")
    options = ["--scale", command.scale, "--side-by-side", str(command.side_by_side)]
    options += [] if command.minutes is None else ["--minutes", str(command.minutes)]
    options += ["--cost"] if command.cost else []
    options += ["--text"] if command.text else []
    paths = [str(folder.parent.resolve()), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    sys.stdout.flush()
    # This process becomes the experiment's, so that Ctrl-C and kills reach it, and its exit code is ours.
    arguments = [*python("-m"), f"experiments.{command.name}.study", *options]
    os.execve(sys.executable, arguments, environment)


def experiments() -> Path:
    """The folder of experiments: of the checkout that this library is imported from, or below this folder.

    Raises:
        ValueError: where there is none, as in an installed wheel.
    """
    places = (Path(__file__).parents[2] / "experiments", HERE)
    for place in places:
        if (place / "plans").is_dir():
            return place
    raise ValueError(
        "reproduce: experiments are part of a checkout, not of the installed package; clone the repository"
    )
