"""A study: which runs an experiment reads, what they cost, and the way from them to its results.

    tsl reproduce NAME --scale cpu|gpu|paper|paper-small    the same as: python -m experiments.NAME.study --scale ...

The runs are those of the sweep file NAME/plans/SCALE.yaml, or plans/base-runs/SCALE.yaml for studies that share them.
Those that the pool keeps, whatever study they were made for, are read from there; the others are trained, in pieces of
at most --minutes, and the same command goes on. Once all are there the analysis runs, which never trains; its results
go to NAME/results/SCALE, and the page of all results is made anew. The last lines, twenty at most, are the verdicts.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr

from experiments.shared.findings import Findings, write
from tsl_jax.commands.sweep import describe_runs, make_runs
from tsl_jax.sweeps import Pool, read_sweep
from tsl_jax.training.config import TrainConfig

HOME = Path(__file__).parents[1]
BASE_RUNS = "plans/base-runs"
WIDTH = 118  # of a line in a terminal, at most
MINUTES = {"cpu": 90.0, "gpu": 7.0, "paper": 0.0, "paper-small": 90.0}  # of a piece; 0: no limit


@dataclass(frozen=True)
class Runs:
    """The runs of a study, all complete.

    Attributes:
        surfaces: name -> loss surface. manifests: name -> how it was made ("config", "n_params", "flops_per_token",
            "seconds", ...). scale: cpu, gpu, paper or paper-small.
    """

    surfaces: Mapping[str, xr.Dataset]
    manifests: Mapping[str, Mapping[str, Any]]
    scale: str

    def named(self, start: str) -> dict[str, xr.Dataset]:
        """The surfaces whose name begins so."""
        return {name: surface for name, surface in self.surfaces.items() if name.startswith(start)}


@dataclass(frozen=True)
class Study:
    """An experiment.

    Attributes:
        name: of its folder. title: of its page, a question.
        decided: the date of the plan in its README, before the ends of its runs were looked at.
        analyse: runs -> findings; draws nothing at random without a fixed seed, and trains nothing.
        minutes: that the analysis of the cpu scale takes.
        plans: folder of its sweep files, below experiments; empty: NAME/plans.
    """

    name: str
    title: str
    decided: str
    analyse: Callable[[Runs], Findings]
    minutes: float
    plans: str = ""

    def main(self, arguments: list[str] | None = None, home: Path = HOME) -> None:
        """The command line; exits with 2 and a sentence at a mistake, 130 where it was interrupted."""
        parser = argparse.ArgumentParser(description=self.title)
        parser.add_argument("--scale", choices=MINUTES, default="cpu")
        parser.add_argument("--minutes", type=float, help="stop training after so long; 0: never")
        parser.add_argument("--side-by-side", type=int, default=1, help="runs at a time, each on its own cores")
        parser.add_argument("--cost", action="store_true", help="only say what is there and what the rest costs")
        parser.add_argument("--text", action="store_true", help="print all tables, claims and notes as Markdown too")
        try:
            self._run(parser.parse_args(arguments), home)
        except (ValueError, OSError) as error:
            sys.stderr.write(f"{self.name}: {error}\n")
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            sys.stderr.write(f"{self.name}: interrupted; the same command goes on\n")
            raise SystemExit(130) from None

    def runs(self, scale: str, home: Path = HOME) -> dict[str, TrainConfig]:
        """The runs of a scale.

        Raises:
            ValueError: where it has no plan, or a plan that cannot work.
        """
        plans = home / (self.plans or f"{self.name}/plans")
        if not (plans / f"{scale}.yaml").exists():
            scales = ", ".join(name for name in MINUTES if (plans / f"{name}.yaml").exists()) or "none"
            raise ValueError(f"there is no plan {plans / scale}.yaml; --scale may be: {scales}")
        return read_sweep(plans / f"{scale}.yaml")

    def _run(self, options: argparse.Namespace, home: Path) -> None:
        runs, pool = self.runs(options.scale, home), Pool(home / "kept_runs", Path("runs/pool"))
        print(describe_runs(pool, runs))
        print(f"then an analysis of about {self.minutes:g} minutes (cpu scale)", flush=True)
        if options.cost:
            return
        minutes = MINUTES[options.scale] if options.minutes is None else options.minutes
        left = make_runs(pool, runs, options.side_by_side, minutes)
        if left:
            print(f"{len(left)} of {len(runs)} runs are unfinished; the same command goes on")
            return
        start = time.perf_counter()
        findings = self.analyse(load_runs(pool, runs, options.scale))
        folder = home / self.name / "results" / options.scale
        facts = {"study": self.name, "title": self.title, "decided": self.decided, "scale": options.scale}
        commit = write(findings, folder, facts, time.perf_counter() - start)
        if options.text:
            print(findings.text())
        print("\n".join(["", *findings.verdict_lines(min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns))]))
        if commit.endswith("-dirty"):
            print("warning: code or plans were changed since the last commit; do not commit these results")
        print(f"tables, figures: {folder.resolve()}")
        print(f"page: {_page(home)}")


def _page(home: Path) -> Path:
    """The page of all results, made anew."""
    from experiments import results_pages  # which reads findings by this package

    return results_pages.write(home / "results")[0].resolve()


def load_runs(pool: Pool, runs: Mapping[str, TrainConfig], scale: str) -> Runs:
    """The kept runs of a sweep, under the names it gives them."""
    manifests = pool.manifests_of(runs)
    return Runs(pool.load(runs), manifests, scale)
