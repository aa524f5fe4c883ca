"""By position, does it ever help a forecast?

Paper: Temporal Scaling Law (Xiong et al., arXiv 2404.17785) forecasts through a0, a1 and a2 of the law over positions.
Here that route stands beside a law of the mean where it could pay: few evaluation texts, other text, a range of
positions.

    tsl reproduce by_position        the same as: python -m experiments.by_position.study

The dated plan and what came out: README.md beside this file.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from experiments.by_position import plots
from experiments.selection_cost.study import clusters_of, subsets
from experiments.shared import BASE_RUNS, Claim, Findings, Runs, Study
from experiments.shared import laws_over_tokens as tl
from experiments.shared.cached_tables import cached
from experiments.shared.seeds_and_intervals import Interval, interval
from experiments.shared.surface_measures import loss_on_clusters
from experiments.shared.tables import rounded
from tsl_jax import laws
from tsl_jax.forecasting import ForecastMethod, covered, lr_aware, winkler
from tsl_jax.forecasting.forecast_run import read_schedule

CUTOFFS, MARGIN = (0.2, 0.4), 0.005  # shares of the tokens; nats
FIRST, LAST = 8, 0.25  # the early positions, and the share of the positions that are the late ones
QUARTERS = ("1a", "1b")  # of the documents
RESAMPLES = 10_000
BASE, CONTROL = "mean_annealing", "mean_area_annealing"
CANDIDATES = ("annealing", "saturating_by_position")
LEVEL = 1 - 0.05 / len(CANDIDATES)
METHODS = {
    BASE: lr_aware.MEAN_ANNEALING,
    "annealing": lr_aware.ANNEALING,
    "saturating_by_position": ForecastMethod(
        "saturating_by_position", laws.SATURATING_ANNEALING, lr_aware.by_parameters, True
    ),
    CONTROL: ForecastMethod(CONTROL, laws.AREA_ANNEALING, lr_aware.of_mean),
}
PAIRS = (*((name, BASE) for name in CANDIDATES), ("annealing", CONTROL))
KNOWN, FALL, END, SCHEDULES = "mean, all documents", "few texts, fall", "few texts, end", "few texts, schedules"
OOD, LATE, EARLY = "other text", "late positions", "early positions"
CASES = {
    FALL: "By position helps to forecast from few evaluation texts: the fall of the mean loss",
    END: "By position helps to forecast from few evaluation texts: the end of the mean loss",
    SCHEDULES: "By position helps to forecast from few evaluation texts: differences between schedules",
    OOD: "By position helps to forecast the mean loss on other text (ood)",
    LATE: "By position helps to forecast late positions (the last quarter of them)",
    EARLY: "By position helps to forecast early positions (the first 8)",
}
DECIDING = (FALL, OOD, LATE, EARLY)  # one for each comparison of the plan; the others stand beside them
KEYS = ["runs", "seed", "case", "subset", "cutoff"]

# ------------------------------------------------------------------------------------------------------ forecasts


def ranges(positions: int) -> dict[str, np.ndarray]:
    """Case -> places of the positions whose mean is forecast."""
    late = np.arange(round((1 - LAST) * positions), positions)
    return {KNOWN: np.arange(positions), LATE: late, EARLY: np.arange(FIRST)}


def draws_of_end(method: ForecastMethod, past: xr.Dataset, end: float, places: np.ndarray) -> np.ndarray:
    """Draws (draw,) of the mean loss over some positions at the end; NaN where the method refuses.

    By position the whole surface is forecast and read there; a law of the mean sees these positions alone.

    Args:
        past: of one split, cut at the present.
    """
    seen, plan, at = past if method.by_position else past.isel(position=places), read_schedule(past), np.array([end])
    try:
        draws, _ = method.through(method.law, seen, at, plan, [])
    except ValueError:  # too little is known
        return np.array([np.nan])
    if isinstance(draws, np.ndarray):
        return draws[:, 0]
    return draws.at(slice(None))[:, 0, places].mean(axis=1)


def judged(draws: np.ndarray, truth: float) -> dict[str, float]:
    """Error of the median (nats, forecast minus truth), interval score at 90 %, and whether the interval holds it."""
    low, middle, high = np.quantile(draws, (0.05, 0.5, 0.95))
    score = float(winkler(low, high, truth))
    return {"error": middle - truth, "interval_score": score, "final_inside": covered(low, high, truth)}


def of_run(surface: xr.Dataset, cutoff: float, method: ForecastMethod) -> Iterator[dict[str, Any]]:
    """A row for each case (and quarter of the documents) of a finished run, forecast from a share of its tokens."""
    end = float(surface.tokens[-1])
    past = surface.sel(tokens=surface.tokens <= cutoff * end)
    now, last = int(past.tokens[-1]), int(surface.tokens[-1])

    def mean(of: xr.Dataset, split: str, tokens: int, places: Any = slice(None)) -> float:
        return float(of.loss.sel(split=split, tokens=tokens).isel(position=places).mean())

    everywhere = ranges(surface.sizes["position"])
    views = [(case, "id", places) for case, places in everywhere.items()] + [(OOD, "ood", everywhere[KNOWN])]
    for case, split, places in views:
        draws = draws_of_end(method, past.sel(split=split), end, places)
        yield {"case": case, "subset": "all", **judged(draws, mean(surface, split, last, places))}
    documents = subsets(clusters_of(surface))
    for name in QUARTERS:
        loss = loss_on_clusters(past, list(documents[name][1]))
        few = xr.Dataset({"loss": loss}, attrs=past.attrs)
        draws = draws_of_end(method, few.sel(split="id"), end, everywhere[KNOWN])
        truth, before = mean(surface, "id", last), mean(surface, "id", now)
        yield {"case": END, "subset": name, **judged(draws, truth)}
        yield {"case": FALL, "subset": name, **judged(draws - mean(few, "id", now), truth - before)}


def forecasts(kind: str, seeds: Mapping[str, xr.Dataset]) -> dict[str, pd.DataFrame]:
    """`rows`: every forecast of one kind of run, by seed, cut-off, method, case and quarter of the documents."""
    rows = [
        {"runs": kind, "seed": seed, "cutoff": cutoff, "method": name, **row}
        for seed, surface in seeds.items()
        for cutoff in CUTOFFS
        for name, method in METHODS.items()
        for row in of_run(surface, cutoff, method)
    ]
    return {"rows": pd.DataFrame(rows)}


def schedule_differences(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the case SCHEDULES: errors of the forecast difference of two schedules, same size, seed and quarter."""
    few = rows[rows.case == END].assign(case=SCHEDULES, interval_score=np.nan, final_inside=np.nan)
    few[["size", "schedule"]] = few.runs.str.split("-", n=1, expand=True)
    keys = ["size", "seed", "subset", "cutoff", "method"]
    constant = few[few.schedule == "constant"].set_index(keys).error
    others = few[few.schedule != "constant"].set_index(keys)
    apart = others.assign(error=others.error - constant.reindex(others.index))
    return apart.reset_index()[rows.columns].dropna(subset=["error"])


# ------------------------------------------------------------------------------------------------------- comparisons


def magnitudes(rows: pd.DataFrame, measure: str = "error") -> pd.DataFrame:
    """|error|, or the interval score, of each method: index KEYS, a column a method."""
    return rows.assign(value=rows[measure].abs()).pivot(index=KEYS, columns="method", values="value")


def apart(table: pd.DataFrame, method: str, other: str) -> pd.Series:
    """A method's column of `magnitudes` minus another's; pairs that lack one are left out."""
    return (table[method] - table[other]).dropna()


def of_case(table: pd.DataFrame, case: str) -> pd.DataFrame:
    """The rows of a table of `magnitudes` that are of a case."""
    return table[table.index.get_level_values("case") == case]


def resampled(values: Any) -> Interval:
    """The mean of independent values (seed,) with its bootstrap interval at LEVEL; NaN bounds for fewer than three."""
    values = np.asarray(values, float)
    if len(values) < 3:
        return Interval(float(values.mean()) if len(values) else np.nan, np.nan, np.nan, len(values))
    means = np.random.default_rng(0).choice(values, (RESAMPLES, len(values))).mean(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(values.mean()), float(low), float(high), len(values))


def comparisons(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each case and pair of methods: differences with intervals over seeds."""
    errors, scores, lines = magnitudes(rows), magnitudes(rows, "interval_score"), []
    for case in (KNOWN, *CASES):
        for method, other in PAIRS:
            by_seed = apart(of_case(errors, case), method, other).groupby("seed").mean()
            by_t, found = interval(by_seed, LEVEL), resampled(by_seed)
            line = {"case": case, "method": method, "minus": other, "seeds": found.n, **found.columns("difference")}
            line |= by_t.columns("by_t") | {"seeds_worse": int((by_seed > 0).sum())}
            of_scores = apart(of_case(scores, case), method, other).groupby("seed").mean()
            lines.append(line | resampled(of_scores).columns("score_difference"))
    return pd.DataFrame(lines)


def verdict(found: Mapping[str, Interval]) -> str:
    """Of a case, by the rule of the plan: candidate -> difference."""
    if any(one.mean <= -MARGIN and one.high < 0 for one in found.values()):
        return "helps"
    return "does not help" if all(one.low > -MARGIN for one in found.values()) else "undecided"


def found_in(table: pd.DataFrame, case: str, name: str = "difference") -> dict[str, Interval]:
    """Candidate -> its difference from BASE, from the table of `comparisons`."""
    own = table[(table.case == case) & (table.minus == BASE)].set_index("method")
    columns = [name, f"{name}_low", f"{name}_high"]
    return {method: Interval(*own.loc[method, columns].astype(float), int(own.seeds[method])) for method in CANDIDATES}


def by_method(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds, schedules and quarters by case, cut-off and method."""
    grouped = rows.assign(mean_absolute_error=rows.error.abs(), missing=rows.error.isna().astype(float))
    columns = ["mean_absolute_error", "error", "interval_score", "final_inside", "missing"]
    return grouped.groupby(["case", "cutoff", "method"], sort=False)[columns].mean().reset_index()


def cells(rows: pd.DataFrame) -> pd.DataFrame:
    """Each schedule and cut-off by itself, over seeds; `helps` by the rule of the plan, with t intervals at 95 %."""
    lines = []
    for (case, kind, cutoff), own in magnitudes(rows[rows.case != KNOWN]).groupby(level=["case", "runs", "cutoff"]):
        for method in CANDIDATES:
            one = interval(apart(own, method, BASE).groupby("seed").mean())
            line = {"case": case, "runs": kind, "cutoff": cutoff, "method": method, **one.columns("difference")}
            lines.append(line | {"helps": bool(one.mean <= -MARGIN and one.high < 0)})
    return pd.DataFrame(lines)


def larger(rows: pd.DataFrame) -> pd.DataFrame:
    """Of the runs of one seed: |error| minus BASE's by size and case, mean over schedules, cut-offs and quarters."""
    errors, lines = magnitudes(rows), []
    of_size = errors.index.get_level_values("runs").str.split("-").str[0]
    for (size, case), own in errors.groupby([of_size, errors.index.get_level_values("case")]):
        base = own[BASE].mean()
        for method in CANDIDATES:
            pairs = apart(own, method, BASE)
            line = {"size": size, "case": case, "method": method, "pairs": len(pairs), "difference": pairs.mean()}
            lines.append(line | {"error_better": (pairs < 0).mean(), "mean_absolute_error": base})
    return pd.DataFrame(lines)


# ---------------------------------------------------------------------------------------------------- the conclusions

WORDS = {"helps": "agrees", "does not help": "differs", "undecided": "undecided"}


def claims(table: pd.DataFrame) -> list[Claim]:
    """A claim for each case, from the table of `comparisons`, and the one that no kept run answers."""
    made = []
    for case, sentence in CASES.items():
        found, own = found_in(table, case), table[table.case == case]
        numbers = rounded(own, "method", "minus", "difference", "difference_low", "difference_high", "seeds")
        said, by_t = verdict(found), verdict(found_in(table, case, "by_t"))
        ours = "; ".join(f"{method} {one:.3f}" for method, one in found.items())
        why = "" if case in DECIDING else "Beside the comparison of the plan."
        why += "" if by_t == said else f" By t intervals: {by_t}."
        made.append(
            Claim(sentence, "not asked", f"|error| minus {BASE}'s, nats: {ours}: {said}", WORDS[said], why, numbers)
        )
    lacking = "no kept run changes its context or mixes several"
    contexts = "By position helps where the context length changes or contexts are mixed"
    return [*made, Claim(contexts, "not asked", lacking, "out of reach", "Such runs were not trained for this.")]


def notes(rows: pd.DataFrame, cell: pd.DataFrame) -> list[str]:
    """What was seen before, and how often a single cell looks like help."""
    helping, count = cell[cell.helps], len(cell)
    where = "; ".join(f"{one.case}, {one.runs}, {one.cutoff:.0%}, {one.method}" for one in helping.itertuples())
    refused = rows.method[rows.error.isna()].map(lambda name: METHODS[name].by_position)
    return [
        "All of these runs are development data; the default was chosen on them among others, by position was not.",
        f"Of {count} cells (case, schedule, cut-off, candidate) {len(helping)} look like help by themselves"
        + (f": {where}." if where else "."),
        f"{len(refused)} of {len(rows)} forecasts were refused, {refused.sum()} of them by position; "
        "such pairs are left out.",
        "The runs of 1M and 5M parameters, one seed each, decide nothing: the table of sizes.",
    ]


def analyse(runs: Runs) -> Findings:
    """All tables, claims and the figure; the forecasts are kept as they come."""
    parts = []
    for kind, seeds in tl.by_kind_and_seed(runs.surfaces).items():
        parts.append(cached(seeds, f"{kind} {ASKED}", lambda kind=kind, seeds=seeds: forecasts(kind, seeds))["rows"])
        print(f"forecast: {kind}", flush=True)
    made = pd.concat(parts, ignore_index=True)
    rows = pd.concat([made, schedule_differences(made)], ignore_index=True)
    repeated = rows.runs.map(rows.groupby("runs").seed.nunique()) > 1
    small = rows[repeated]
    table, cell = comparisons(small), cells(small)
    errors = magnitudes(small)
    seeds = {
        (case, method): apart(of_case(errors, case), method, BASE).groupby("seed").mean().to_numpy()
        for case in (KNOWN, *DECIDING)
        for method in CANDIDATES
    }
    shown = table[(table.minus == BASE) & table.case.isin([KNOWN, *DECIDING])]
    drawn, captions = plots.figures(shown, seeds, MARGIN)
    tables = {"comparisons": table, "by_method": by_method(small), "cells": cell, "larger": larger(rows[~repeated])}
    digits = {"error": 6, "interval_score": 6}
    tables["rows"] = made[[*KEYS, "method", "error", "interval_score", "final_inside"]].round(digits)
    return Findings(tables, claims(table), notes(made, cell), drawn, captions)


MADE_BY = (subsets, loss_on_clusters, clusters_of, ranges, draws_of_end, judged, of_run, forecasts)
# Read once, as a file may be edited while its analysis runs.
ASKED = f"{CUTOFFS} {FIRST} {LAST} {QUARTERS} {list(METHODS)} " + "".join(map(inspect.getsource, MADE_BY))

STUDY = Study(
    name="by_position",
    title="By position, does it ever help a forecast?",
    decided="2026-11-29",
    analyse=analyse,
    minutes=8,
    plans=BASE_RUNS,
)

if __name__ == "__main__":
    STUDY.main()
