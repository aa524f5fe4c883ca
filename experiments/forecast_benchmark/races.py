"""Races: which of several runs of one model will end lowest, ranked from 20 and 50 % of their tokens?

    python -m experiments.forecast_benchmark.races --curves FOLDER [--out results/races.csv]

Candidates of one plan (position weights of one seed, seeds of one optimizer, shapes of one size) are carried to their
end by `tsl_jax.selection.race`; candidates of different peak rates by the forecast of each, which knows the plan.
Beside both stands the order of the losses at the cut-off. Development data: the constants of `race` were chosen on it.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import spearmanr

import tsl_jax as tsl
from experiments.forecast_benchmark.data import lr_scheduling
from tsl_jax.atomic_write import write_atomically
from tsl_jax.selection.race import race
from tsl_jax.sweeps import read_archive

HOME = Path(__file__).parent
OUT, KEPT = HOME / "results" / "races.csv", HOME.parent / "kept_runs"
SHARES = (0.2, 0.5)
FEWEST = 3  # candidates, and checkpoints seen
Z90 = 1.6449
DIVERGED = 6.0  # nats at the end: no candidate
LENGTHS = ("25000", "50000")  # steps, of lr_scheduling, where several peaks are there


@dataclass(frozen=True)
class Race:
    """Candidates of one model, data and length.

    Attributes:
        family: of races that are averaged. surfaces: one split and one position each. same_plan: whether all have one
            plan of the learning rate.
    """

    family: str
    name: str
    surfaces: Sequence[xr.Dataset]
    same_plan: bool


def peaks(folder: Path) -> Iterator[Race]:
    """lr_scheduling, 124M: one plan and length, several peak rates."""
    groups: dict[str, list[xr.Dataset]] = {}
    for run in lr_scheduling(folder):
        steps = run.run.rsplit("-", 1)[-1]
        if "124M" in run.run and steps in LENGTHS and float(run.surface.loss[0, -1, 0]) < DIVERGED:
            groups.setdefault(re.sub(r"-lr[\d.e-]+-", "-", run.run), []).append(run.surface)
    yield from (Race("peaks of the rate", name, runs, False) for name, runs in groups.items() if len(runs) >= FEWEST)


def optimizer_seeds(folder: Path) -> Iterator[Race]:
    """modded-nanogpt: the seeds of one optimizer, which differ by chance alone."""
    for logs in sorted((folder / "modded_nanogpt").glob("2026*")):
        runs = []
        for path in sorted(logs.glob("*.txt")):
            found = re.findall(r"step:(\d+)/\d+ val_loss:([\d.]+)", path.read_text())
            step, loss = np.array([(int(a), float(b)) for a, b in found if int(a)]).T
            runs.append(tsl.from_losses(loss[None, :, None], tokens=step.astype(np.int64)))
        yield Race("seeds of an optimizer", logs.name, runs, True)


def own_runs() -> Iterator[Race]:
    """Kept runs: position weights by seed, seeds of a schedule, shapes of one size."""
    groups: dict[tuple[str, str], list[xr.Dataset]] = {}
    for name, surface in read_archive(KEPT / "position_weighting.parquet").items():
        if (found := re.fullmatch(r"weights-.*@(\d)", name)) is not None:
            groups.setdefault(("weights over positions", found[1]), []).append(surface)
    for name, surface in read_archive(KEPT / "base.parquet").items():
        if name.startswith("small-"):
            groups.setdefault(("seeds of a schedule", name.partition("@")[0]), []).append(surface)
    shapes = [surface for name, surface in read_archive(KEPT / "kaplan.parquet").items() if name.startswith("shape-")]
    groups["shapes of one size", "55k"] = shapes
    for (family, name), runs in groups.items():
        yield Race(family, name, [run.isel(split=[0]).mean("position", keep_attrs=True) for run in runs], True)


def judged(run_race: Race, share: float) -> dict[str, object] | None:
    """A row: rank correlation and regret of both orders, log score of the chance, ends inside, who would be stopped."""
    tokens = [run.tokens.values.astype(float) for run in run_race.surfaces]
    losses = [run.loss.values.reshape(len(t), -1)[:, 0] for run, t in zip(run_race.surfaces, tokens, strict=True)]
    end = min(t[-1] for t in tokens)
    truth = np.array([np.interp(np.log(end), np.log(t), y) for t, y in zip(tokens, losses, strict=True)])
    seen = [t <= share * end for t in tokens]
    if min(part.sum() for part in seen) < FEWEST:
        return None
    past = [(t[part], y[part]) for t, y, part in zip(tokens, losses, seen, strict=True)]
    now = np.array([y[-1] for _, y in past])
    fall, sd, plan = 0.0, 0.0, None
    if not run_race.same_plan:
        ends = [_end(run, share, end) for run in run_race.surfaces]
        fall, sd = now - np.array([mean for mean, _ in ends]), np.array([own for _, own in ends])
        plan = range(len(ends))
    made = race([t for t, _ in past], [y for _, y in past], end, fall, sd, plan)
    centre = np.eye(len(truth)) - 1 / len(truth)  # what all have in common is no matter of the race
    error = np.abs(centre @ (truth - made.mean)) / np.sqrt(np.diag(centre @ made.covariance @ centre))
    best = int(truth.argmin())
    return {
        "family": run_race.family, "race": run_race.name, "share": share, "candidates": len(truth),
        "spearman": spearmanr(made.mean, truth).statistic, "spearman_by_loss": spearmanr(now, truth).statistic,
        "regret": truth[made.mean.argmin()] - truth[best], "regret_by_loss": truth[now.argmin()] - truth[best],
        "log_score": -np.log(max(made.chance[best], 1e-3)), "log_score_by_chance": np.log(len(truth)),
        "inside_90": (error < Z90).mean(), "stopped": made.eliminated.mean(),
        "best_stopped": bool(made.eliminated[best]),
    }  # fmt: skip


def _end(run: xr.Dataset, share: float, end: float) -> tuple[float, float]:
    """The forecast of a run alone, and its standard deviation."""
    made = tsl.forecast(run.sel(tokens=run.tokens <= share * end), [int(end)], by_position=False)
    low, high = (float(made.quantiles.sel(quantile=q).values.ravel()[-1]) for q in (0.05, 0.95))
    return float(made.mean.values.ravel()[-1]), (high - low) / (2 * Z90)


def table(folder: Path) -> pd.DataFrame:
    """A row a race and share."""
    races = [*own_runs(), *optimizer_seeds(folder), *peaks(folder)]
    rows = [judged(each, share) for each in races for share in SHARES]
    return pd.DataFrame([row for row in rows if row is not None])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", type=Path, required=True, help="folder of the public curves")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    rows = table(options.curves)
    write_atomically(options.out, rows.to_csv(index=False, float_format="%.5g"))
    numbers = rows.drop(columns=["race"]).groupby(["family", "share"], sort=False).mean()
    print(numbers.assign(races=rows.groupby(["family", "share"]).size()).round(3).to_string())


if __name__ == "__main__":
    main()
