"""Do the intervals hold? Simulated runs whose truth is known, forecast from 10 to 40 %.

    python experiments/forecast_coverage/coverage.py --runs 1000

Each run draws a schedule (cosine, wsd, constant, or a drop to a third in mid-run), the parameters of an annealing law
for its level, and a gap over positions that follows a power law, not the hyperbola that is fitted, with waves that no
law has. Residuals are an AR(1) of the level, common to all positions, and white noise at each. No run follows its law
to the end: beyond the cut-off the level changes by a random share more or less than the law says. Two populations:

    as_believed  exponents, falls and annealing as widely spread as priors.py says, misfit of law_error: whether
                 the machinery gives what it promises
    alike        runs more alike than the priors allow for, with a misfit of half as much: how wide intervals are then

Every run has its own seed, so that rows can be made again one by one; those in the table already are not. Judged:
whether the final mean loss, the mean loss and the losses at single positions at all later checkpoints lie in the
intervals; standard errors are over runs.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from rich.progress import track

import tsl_jax as tsl
from tsl_jax.atomic_write import write_atomically
from tsl_jax.forecasting import priors
from tsl_jax.forecasting.lr_history import LearningRate

CUTOFFS = (0.1, 0.2, 0.3, 0.4)
METHODS = ("mean_annealing", "annealing")
CHECKPOINTS, POSITIONS, TOTAL = 60, 32, 1e9
LEAST, PEAK = 0.4, 1e-3
SAVED_EVERY = 20  # runs
KINDS = ("cosine", "wsd", "constant", "drop")


def plan_of(kind: str, random: np.random.Generator) -> dict:
    """A learning-rate plan as a surface carries it."""
    warmup = int(TOTAL * random.uniform(0.01, 0.03))
    plan = {"kind": kind, "peak": PEAK, "warmup_tokens": warmup, "total_tokens": int(TOTAL), "final_ratio": 0.1}
    if kind == "wsd":
        plan["decay_start_tokens"] = int(TOTAL * random.uniform(0.6, 0.85))
    if kind == "constant":
        plan["final_ratio"] = 1.0
    if kind == "drop":
        at = TOTAL * random.uniform(0.5, 0.8)
        knots = [0, warmup, at, at * 1.0001, TOTAL]
        plan |= {"kind": "table", "tokens": knots, "lr": [0.0, PEAK, PEAK, 0.33 * PEAK, 0.33 * PEAK]}
    return plan


def simulate(seed: int, cutoff: float, population: str) -> tuple[str, xr.Dataset]:
    """A run, and its kind of schedule. Parameters whose loss would fall to LEAST of its scale are drawn anew."""
    random = np.random.default_rng(seed)
    kind = KINDS[seed % len(KINDS)]
    plan = plan_of(kind, random)
    tokens = np.unique(np.geomspace(0.01 * TOTAL, TOTAL, CHECKPOINTS).astype(int))
    rate = tsl.laws.Schedule.from_plan(plan)
    grid = np.union1d(np.linspace(0, TOTAL, 4000), plan.get("tokens", [0]))
    whole = LearningRate(grid, np.asarray(rate.lr(grid), float))
    covariates = whole.covariates(tokens, float(whole.area(np.array([cutoff * TOTAL]))[0]))
    scale = random.uniform(2, 4)
    level = np.zeros(1)
    while level.min() < LEAST * scale:
        shape, share, annealed, misfit = POPULATIONS[population](random)
        level = (
            scale
            * np.asarray(tsl.laws.SATURATING_ANNEALING.basis(shape, covariates))
            @ np.array([1 - share, share, annealed])
        )
    now = np.interp(cutoff * TOTAL, tokens, level)
    level += np.where(tokens > cutoff * TOTAL, random.normal(0, misfit) * (level - now), 0)
    level += _serial(len(tokens), 0.001 * scale, random.uniform(0.3, 0.9), random)
    position = np.arange(1, POSITIONS + 1)
    shape_of_gap = position**-0.5 + 0.02 * np.sin(position)
    gap = scale * random.uniform(0.2, 0.4) * (1 + 0.1 * np.log(covariates["area"]))
    loss = level[:, None] + gap[:, None] * (shape_of_gap - shape_of_gap.mean())
    loss += 5e-4 * scale * random.standard_normal(loss.shape)
    return kind, tsl.from_losses(loss, tokens=tokens, schedule=plan)


def _as_believed(random: np.random.Generator) -> tuple[np.ndarray, float, float, float]:
    """Shapes, fall and annealing in units of the loss at the cut-off, misfit: drawn from the priors, none negative."""
    law = tsl.laws.SATURATING_ANNEALING
    belief = priors.of_run(priors.of_loss(law), law, PEAK, None, None)
    shape = np.exp([random.normal(*prior) for prior in belief.shapes])
    _, fall, annealed = belief.coefs
    return shape, abs(random.normal(*fall)), abs(random.normal(*annealed)), belief.residuals.law_error


def _alike(random: np.random.Generator) -> tuple[np.ndarray, float, float, float]:
    shape = np.exp(random.normal(np.log([0.4, 1000, 2.2]), [0.3, 0.7, 0.5]))
    law_error = priors.of_loss(tsl.laws.SATURATING_ANNEALING).residuals.law_error
    return shape, random.uniform(0.05, 0.4), random.uniform(0.05, 0.07), law_error / 2


POPULATIONS = {"as_believed": _as_believed, "alike": _alike}


def _serial(count: int, sd: float, lag: float, random: np.random.Generator) -> np.ndarray:
    """An AR(1) of this sd and lag-1 correlation."""
    noise = random.standard_normal(count)
    for k in range(1, count):
        noise[k] = lag * noise[k - 1] + np.sqrt(1 - lag**2) * noise[k]
    return sd * noise


def rows(seed: int, population: str) -> list[dict]:
    """What every method forecasts of one run from every cut-off."""
    made = []
    for cutoff in CUTOFFS:
        kind, surface = simulate(seed, cutoff, population)
        past = surface.sel(tokens=slice(None, cutoff * TOTAL))
        at = surface.tokens.values[past.sizes["tokens"] :]
        truth = surface.sel(tokens=at).loss
        for method in METHODS:
            start = time.perf_counter()
            forecast = tsl.forecast(past, at, method=method)
            row = {
                "population": population,
                "seed": seed,
                "schedule": kind,
                "cutoff": cutoff,
                "method": method,
                "status": str(forecast.status["id"]),
            }
            mean = truth.mean("position")
            row["error"] = float(forecast.mean[0, -1] - mean[0, -1])
            for name, (low, high) in {"50": (0.25, 0.75), "90": (0.05, 0.95)}.items():
                inside = _inside(forecast.quantiles, mean, low, high)
                row |= {f"final_{name}": float(inside[0, -1]), f"mean_{name}": float(inside.mean())}
                if forecast.surface_quantiles is not None:
                    row[f"position_{name}"] = float(_inside(forecast.surface_quantiles, truth, low, high).mean())
            row["width"] = float(
                forecast.quantiles[0, -1].sel(quantile=0.95) - forecast.quantiles[0, -1].sel(quantile=0.05)
            )
            made.append({**row, "seconds": time.perf_counter() - start})
    return made


def _inside(quantiles, truth, low: float, high: float):
    return (truth >= quantiles.sel(quantile=low)) & (truth <= quantiles.sel(quantile=high))


def table(forecasts: pd.DataFrame) -> str:
    """Coverage by method and cut-off, with standard errors over runs."""
    kept = [name for name in forecasts if name.startswith(("final_", "mean_", "position_"))]
    by = forecasts.groupby(["population", "method", "cutoff"])[kept]
    mean, error = by.mean(), by.std() / np.sqrt(by.count())
    cells = mean.map("{:.3f}".format) + " ± " + error.map("{:.3f}".format)
    overall = forecasts.groupby(["population", "method"])[kept].mean().map("{:.3f}".format)
    return f"{cells.to_string()}\n\nover all cut-offs\n{overall.to_string()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--population", nargs="+", choices=POPULATIONS, default=list(POPULATIONS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "coverage.parquet")
    wanted = parser.parse_args()
    made = pd.read_parquet(wanted.out).to_dict("records") if wanted.out.exists() else []
    there = {(row["seed"], row["population"]) for row in made}
    seeds = range(wanted.first_seed, wanted.first_seed + wanted.runs)
    todo = [(seed, name) for seed in seeds for name in wanted.population if (seed, name) not in there]
    wanted.out.parent.mkdir(parents=True, exist_ok=True)
    for k, (seed, name) in enumerate(track(todo, "runs")):
        made += rows(seed, name)
        if k % SAVED_EVERY == 0 or k == len(todo) - 1:
            kept = pd.DataFrame(made)
            write_atomically(wanted.out, lambda file, kept=kept: kept.to_parquet(file, compression="zstd"))
    forecasts = pd.DataFrame(made)
    forecasts = forecasts[forecasts.seed.isin(seeds) & forecasts.population.isin(wanted.population)]
    print(table(forecasts))


if __name__ == "__main__":
    main()
