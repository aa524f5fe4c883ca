"""Does the temporal law forecast the rest of a run better than laws of the mean loss, from 10 to 40 % of its tokens?

Paper: Temporal Scaling Law (Xiong et al., arXiv 2404.17785), prediction: fitted to the first 10, 20, 30 and 40 % of the
tokens it predicts the rest with a smaller mean squared error than a power law, a reciprocal law and a logarithm that
are fitted to the mean loss of the same prefix.

    tsl reproduce temporal_prediction --scale cpu     trains nothing (the runs of the pool), about half an hour of two
                                                      cores; interrupted, it goes on (runs/studies keeps the forecasts)

**The plan, 2026-11-26.** What had been seen before: every forecast here was made once for forecast_backtest.py. Seeds
0 to 4 and the six larger runs were its development data, on which the choice of the default method and the priors of
the annealing laws rested; seeds 100 to 104 were sealed and opened once, and its log tells the errors and the coverage
of all these methods. Nothing is tuned here, but nothing here is a fresh test either. New are the paired intervals over
seeds.

* Methods by position: `paper` (the paper's law: needs a cosine), `temporal` (the same with the hyperbola of a2 going
  on: all that the paper's law can be under wsd and constant), `temporal_joint`, `annealing` (a0, a1, a2 each by a law
  that knows the learning rate). Of the mean loss: power law with (`power`) and without constant (`power_pure`),
  reciprocal, logarithmic, the last value, the forms of the position route on the mean (`mean_log`, `mean_cosine`), and
  one that knows the learning rate (`mean_annealing`). No run sees siblings.
* Cut-offs: 10, 20, 30, 40 % of the tokens. Errors beyond them, by `tsl.backtest`: MSE of the mean loss on an even grid
  of tokens (200 points, both curves interpolated), and the error of the final loss. Told are mean |final error| and
  root mean squared error (`rmse`: the root of one run's MSE, then the mean over seeds), as a single failure ruins a
  mean of MSE; medians of MSE stand beside, and a forecast that a method refuses (NaN) counts as missing and is counted.
* Unit: the seed, 10 a schedule. Paired differences, method minus baseline, same run, split and cut-off: Student's t,
  95 %. With 4 cut-offs and 8 baselines p values are not adjusted; the claim rests on one pair, and the rest is
  description.
* Claims, under cosine: "lower MSE than the power law" agrees if the paired differences in rmse between `paper` and
  `power` (with constant: the fair one) lie below zero at all four cut-offs on id, differs if above at one or more and
  below at none, else undecided. The same against the paper's own baselines (power_pure, reciprocal, logarithmic), and
  for each on ood.
* Intervals: share of later checkpoints inside the 90 % interval, by horizon, bootstrap over whole runs
  (`tsl_jax.forecasting.coverage`); and the final loss alone over seeds.

Expected, as the rows above were seen: the paper's law loses to the power law with a constant on these short runs; laws
that know the learning rate win under wsd.

**Seen, 2026-11-26**: SEEN
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from reproduction import Claim, Findings, Runs, Study
from reproduction import token_laws as tl
from reproduction.kept import kept
from reproduction.statistics import Interval, interval

from tsl_jax.forecasting import Backtest, backtest, baselines, coverage
from tsl_jax.forecasting.backtest import CUTOFFS

POSITION = ("paper", "temporal", "temporal_joint", "annealing")
MEAN = (*baselines.ALL, "mean_annealing")
METHODS = (*POSITION, *MEAN)
NAMES = tuple(one if isinstance(one, str) else one.name for one in METHODS)
FAIR, THEIRS = "power", ("power_pure", "reciprocal", "logarithmic")
KEYS = ["runs", "split", "seed", "cutoff", "method"]
LM_CUTOFF = 0.4

# ------------------------------------------------------------------------------------------------------ forecasts


def tested(kind: str, seeds: Mapping[str, xr.Dataset]) -> dict[str, pd.DataFrame]:
    """Tables of all forecasts of one kind of run: `rows` by seed, split, cut-off and method, and `coverage`."""
    learned = tl.stacked(seeds)
    made = backtest(learned, CUTOFFS, methods=METHODS)
    rows = made.scores.reset_index().rename(columns={"split": "name"})
    rows[["split", "seed"]] = rows.name.str.split("@", expand=True)
    ends = pd.DataFrame([_end(key, one, name) for key, one in made.forecasts.items() for name in set(rows.name)])
    rows = rows.merge(ends, on=["cutoff", "method", "name"], how="left").drop(columns="name")
    rows = rows.assign(runs=kind, rmse=rows.mse**0.5)
    inside = (rows.low <= rows.observed) & (rows.observed <= rows.high)
    rows["final_inside"] = inside.astype(float).where(rows.low.notna())
    shares = [covered(learned, made, split).assign(kind=kind, split=split) for split in sorted(set(rows.split))]
    return {"rows": rows, "coverage": pd.concat(shares, ignore_index=True)}


def _end(key: tuple[float, str], one: Any, name: str) -> dict[str, Any]:
    """The 90 % interval of the final loss."""
    cutoff, method = key
    known = None if one.quantiles is None else one.quantiles.sel(split=name).isel(tokens=-1)
    low, high = (np.nan if known is None else float(known.sel(quantile=q)) for q in (0.05, 0.95))
    return {"cutoff": cutoff, "method": method, "name": name, "low": low, "high": high}


def covered(learned: xr.Dataset, made: Backtest, split: str) -> pd.DataFrame:
    """Coverage over the seeds of one split, each a cluster; by method and horizon, all cut-offs together."""
    surfaces, tests = [], []
    for name in tl.seeds_of(learned.split.values.tolist(), split):
        own = {
            key: replace(one, quantiles=one.quantiles.sel(split=[name]))
            for key, one in made.forecasts.items()
            if one.quantiles is not None
        }
        surfaces.append(learned.sel(split=[name]))
        tests.append(Backtest(made.scores, own))
    return coverage(surfaces, tests).reset_index()


# ------------------------------------------------------------------------------------------------------- tables


def main_table(rows: pd.DataFrame, beside: pd.DataFrame) -> pd.DataFrame:
    """A line for each kind of run, split and method: mean errors over seeds by cut-off."""
    lines = []
    for (kind, split, method), group in rows.groupby(["runs", "split", "method"], sort=False):
        line: dict[str, Any] = {"runs": kind, "split": split, "method": method, "seeds": group.seed.nunique()}
        line["missing"] = int(group.error.isna().sum())
        for cutoff, own in group.groupby("cutoff"):
            at = f"{100 * float(str(cutoff)):.0f} %"
            line |= {f"|final error|, {at}": own.error.abs().mean(), f"rmse, {at}": own.rmse.mean()}
            line |= {f"median mse, {at}": own.mse.median()}
        lines.append(line)
    return pd.DataFrame(lines).merge(beside, on=["runs", "split", "method"], how="left")


def pairs(rows: pd.DataFrame) -> pd.DataFrame:
    """Each method by position minus each of the mean, paired over seeds: |final error| and rmse, nats."""
    lines = []
    for (kind, split, cutoff), group in rows.groupby(["runs", "split", "cutoff"], sort=False):
        by = {name: one.set_index("seed") for name, one in group.groupby("method")}
        for method in POSITION:
            for other in (name for name in NAMES if name not in POSITION):
                line: dict[str, Any] = {
                    "runs": kind,
                    "split": split,
                    "cutoff": cutoff,
                    "method": method,
                    "minus": other,
                }
                for measure in ("error", "rmse"):
                    apart = by[method][measure].abs() - by[other][measure].abs()
                    found = interval(apart)
                    line |= {measure: found.mean, f"{measure}_low": found.low, f"{measure}_high": found.high}
                    line |= {f"{measure}_better": float((apart.dropna() < 0).mean()) if found.n else np.nan}
                    line["seeds"] = found.n
                lines.append(line)
    return pd.DataFrame(lines)


def ends(rows: pd.DataFrame) -> pd.DataFrame:
    """How often the final loss lay inside its 90 % interval, by kind of run, split and method: mean over seeds of the
    share over cut-offs, t interval cut to 0..1; and the mean width."""
    lines = []
    for (kind, split, method), group in rows.groupby(["runs", "split", "method"], sort=False):
        if group.final_inside.notna().any():
            found = interval(group.groupby("seed").final_inside.mean())
            low, high = np.clip([found.low, found.high], 0, 1)
            width, score = float((group.high - group.low).mean()), float(group.interval_score.mean())
            line = {"runs": kind, "split": split, "method": method, "seeds": found.n, "inside": found.mean}
            lines.append(line | {"low": low, "high": high, "width": width, "interval_score": score})
    return pd.DataFrame(lines)


def beside_lm(kind: str, seeds: Mapping[str, xr.Dataset]) -> pd.DataFrame:
    """The lm columns of the laws, fitted to the first LM_CUTOFF of the tokens."""
    surface, learned = next(iter(seeds.values())), tl.stacked(seeds)
    past = learned.sel(tokens=learned.tokens <= LM_CUTOFF * float(surface.tokens[-1]))
    lines = []
    for split in surface.split.values.tolist():
        own = past.sel(split=tl.seeds_of(past.split.values.tolist(), split))
        name = {"runs": kind, "split": split}
        lines += [
            {**name, "method": one.name, **tl.lm_of_mean(one, surface, own)}
            for one in tl.OF_MEAN
            if one not in tl.ANNEALED
        ]
        for law, method in tl.BY_POSITION.items():
            if tl.applies(method, own):
                found = tl.lm_by_position(method, own).loc["together", list(tl.lm.COLUMNS)].to_dict()
                lines.append({**name, "method": law, **found})
    return pd.DataFrame(lines)


# ------------------------------------------------------------------------------------------------- what is told


def verdict(found: Mapping[float, Interval]) -> str:
    """By the rule of the plan: agrees below zero everywhere; differs above somewhere and below nowhere."""
    below, above = ([one.high < 0 for one in found.values()], [one.low > 0 for one in found.values()])
    if all(below):
        return "agrees"
    return "differs" if any(above) and not any(below) else "undecided"


def _found(table: pd.DataFrame, kind: str, split: str, method: str, other: str) -> dict[float, Interval]:
    chosen = (table.runs == kind) & (table.split == split) & (table.method == method) & (table.minus == other)
    own = table[chosen].sort_values("cutoff")
    return {row.cutoff: Interval(row.rmse, row.rmse_low, row.rmse_high, row.seeds) for row in own.itertuples()}


def claims(table: pd.DataFrame, kind: str) -> list[Claim]:
    """Of the paper's law against each baseline, id and ood."""
    made = []
    for split in ("id", "ood"):
        for other in (FAIR, *THEIRS):
            found = _found(table, kind, split, "paper", other)
            told = "; ".join(f"{100 * cutoff:.0f} %: {one}" for cutoff, one in found.items())
            made.append(
                Claim(
                    f"The temporal law predicts the rest of a run better than {LABELS[other]}, {split}",
                    "lower mean squared error at 10, 20, 30 and 40 %"
                    if other in THEIRS
                    else "lower (a power law; whether it had a constant is not known)",
                    f"root MSE, paper minus {other}, nats, {kind}: {told}",
                    verdict(found),
                    WHY,
                )
            )
    return made


LABELS = {
    "power": "a power law with a constant",
    "power_pure": "a power law without a constant",
    "reciprocal": "a reciprocal law",
    "logarithmic": "a logarithm",
}
WHY = "Runs of a few million tokens: the prefix is the early fall, and a0, a1 and a2 have hardly begun to settle."


def notes(rows: pd.DataFrame, shares: pd.DataFrame) -> list[str]:
    """The best method for each schedule; refused forecasts; coverage; controls."""
    told = []
    for (kind, split), group in rows[rows.runs.isin(_repeated(rows))].groupby(["runs", "split"], sort=False):
        for cutoff in (CUTOFFS[1], CUTOFFS[3]):
            mean = group[group.cutoff == cutoff].groupby("method").rmse.mean().dropna().sort_values()
            best = ", ".join(f"{name} {value:.3f}" for name, value in mean.items())
            told.append(f"{kind}, {split}, from {100 * cutoff:.0f} %, mean root MSE in nats: {best}")
    everything = shares[(shares.horizon == "all") & (shares.runs > 1)]
    for (kind, split), group in everything.groupby(["kind", "split"], sort=False):
        inside = ", ".join(
            f"{one.method} {one.covered_90:.2f} [{one.low:.2f}, {one.high:.2f}]" for one in group.itertuples()
        )
        told.append(f"{kind}, {split}, later checkpoints inside the 90 % interval, all cut-offs: {inside}")
    refused = rows[rows.error.isna()].groupby("method").size()
    said = ", ".join(f"{name} {count}" for name, count in refused.items())
    told.append(f"forecasts that were refused, of {len(rows) // rows.method.nunique()} each: {said}")
    return [*told, BEFORE]


BEFORE = (
    "Nothing here is a fresh test: all these forecasts were looked at before, seeds 0 to 4 as development data and "
    "seeds 100 to 104 when their seal was opened. Cut-offs of one run overlap, so the rows of a table are not "
    "independent."
)


def _repeated(rows: pd.DataFrame) -> list[str]:
    """Kinds of run with several seeds."""
    count = rows.groupby("runs", sort=False).seed.nunique()
    return list(count[count > 1].index) or list(count.index)


def figures(rows: pd.DataFrame) -> tuple[dict[str, Any], dict[str, str]]:
    """Mean root MSE by method and cut-off, for each schedule with several seeds, id."""
    from tsl_jax.reporting.print import errors_by

    made, told = {}, {}
    for kind in _repeated(rows):
        own = rows[(rows.runs == kind) & (rows.split == "id") & rows.rmse.notna()]
        lines = []
        for (method, cutoff), group in own.groupby(["method", "cutoff"], sort=False):
            found = interval(group.rmse)
            line = {"method": method, "cutoff": cutoff, "value": found.mean, "low": found.low, "high": found.high}
            lines.append(line)
        made[f"errors-{kind}"] = errors_by(pd.DataFrame(lines), "root mean squared error of the rest (nats)")
        told[f"errors-{kind}"] = (
            f"{kind}, id: root of the mean squared error beyond each cut-off, mean over {own.seed.nunique()} seeds "
            "with 95 % t intervals."
        )
    return made, told


def analyse(runs: Runs) -> Findings:
    """All tables, claims and figures; the forecasts are kept as they come."""
    parts = []
    for kind, seeds in tl.groups(runs.surfaces).items():
        parts.append(kept(seeds, f"{kind} {ASKED}", lambda kind=kind, seeds=seeds: tested(kind, seeds)))
        print(f"forecast: {kind}", flush=True)
    rows = pd.concat([one["rows"] for one in parts], ignore_index=True)
    shares = pd.concat([one["coverage"] for one in parts], ignore_index=True)
    beside = pd.concat([beside_lm(*one) for one in tl.groups(runs.surfaces).items()], ignore_index=True)
    table, apart = main_table(rows, beside), pairs(rows)
    kind = _first_cosine(rows)
    drawn, captions = figures(rows)
    tables = {"errors": table, "pairs": apart, "final": ends(rows), "coverage": shares, "rows": rows}
    return Findings(tables, claims(apart, kind), notes(rows, shares), drawn, captions)


# Read once, as a file may be edited while its analysis runs.
ASKED = f"{NAMES} {CUTOFFS} " + "".join(inspect.getsource(one) for one in (tested, covered, _end))


def _first_cosine(rows: pd.DataFrame) -> str:
    """The kind of run for which `paper` gave forecasts, with the most seeds."""
    own = rows[(rows.method == "paper") & rows.error.notna()].groupby("runs", sort=False).seed.nunique()
    return str(own.idxmax())


STUDY = Study(
    name="temporal_prediction",
    title="Does the temporal law forecast the rest of a run better than laws of the mean loss?",
    decided="2026-11-26",
    analyse=analyse,
    minutes=30,
)

if __name__ == "__main__":
    STUDY.main()
