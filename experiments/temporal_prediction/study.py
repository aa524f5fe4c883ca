"""Does the temporal law forecast the rest of a run better than laws of the mean loss, from 10 to 40 % of its tokens?

Paper: Temporal Scaling Law (Xiong et al., arXiv 2404.17785), prediction: fitted to the first 10, 20, 30 and 40 % of the
tokens it predicts the rest with a smaller mean squared error than a power law, a reciprocal law and a logarithm that
are fitted to the mean loss of the same prefix.

    tsl reproduce temporal_prediction        the same as: python -m experiments.temporal_prediction.study

The dated plan and what came out: README.md beside this file.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from experiments.shared import BASE_RUNS, Claim, Findings, Runs, Study
from experiments.shared import laws_over_tokens as tl
from experiments.shared.cached_tables import cached
from experiments.shared.seeds_and_intervals import Interval, interval
from experiments.shared.tables import rounded
from experiments.temporal_prediction import plots
from tsl_jax.forecasting import backtest, baselines
from tsl_jax.forecasting.backtesting import CUTOFFS
from tsl_jax.training.provenance import git_commit

POSITION = ("paper", "temporal", "temporal_joint", "annealing")
MEAN = (*baselines.ALL, "mean_annealing")
METHODS = (*POSITION, *MEAN)
NAMES = tuple(method if isinstance(method, str) else method.name for method in METHODS)
FAIR, THEIRS = "power", ("power_pure", "reciprocal", "logarithmic")
KEYS = ["runs", "split", "seed", "cutoff", "method"]
KEPT = [*KEYS, "error", "mse", "covered_90", "final_inside"]
LM_CUTOFF = 0.4
EVIDENCE = Path(__file__).parents[1] / "forecast_evidence" / "results"

# ------------------------------------------------------------------------------------------------------ forecasts


def kept_forecasts(kind: str, seeds: Mapping[str, xr.Dataset], folder: Path = EVIDENCE) -> pd.DataFrame | None:
    """The rows of one kind of run that forecast_backtest.py kept; None unless all of its seeds are there.

    A run is the same if its name in the pool and its tokens are. Forecasts that exploded in those rows are refused by
    the library since, and so they are here.
    """
    files = [folder / f"{part}.parquet" for part in ("development", "locked_test_set")]
    rows = pd.concat(
        [pd.read_parquet(file) for file in files if file.exists()] or [pd.DataFrame(columns=list(COLUMNS))]
    )
    rows = rows[(rows.protocol == "alone") & (rows.data == "pool") & rows.method.isin(NAMES)]
    runs = {kind if seed == "0" else f"{kind}@{seed}": seed for seed in seeds}
    tokens = {seed: float(surface.tokens[-1]) for seed, surface in seeds.items()}
    own = rows[rows.run.isin(runs)]
    own = own.assign(runs=kind, seed=own.run.map(runs))
    own = own[own.total_tokens == own.seed.map(tokens)].rename(columns=COLUMNS)
    splits = next(iter(seeds.values())).sizes["split"]
    if len(own) != len(seeds) * splits * len(NAMES) * len(CUTOFFS):
        return None
    own = own[[*KEYS, *COLUMNS.values(), "mse", "r2", "covered_50", "covered_90", "interval_score", "status", "commit"]]
    exploded = own.error.abs() > EXPLODED * own.observed
    own.loc[exploded, ["error", "mse", "r2", "covered_50", "covered_90", "interval_score", "final_inside"]] = np.nan
    return own.assign(rmse=own.mse**0.5).reset_index(drop=True)


COLUMNS = {"final_error": "error", "final_observed": "observed", "covered_90_final": "final_inside"}
EXPLODED = 10  # times the loss: such a forecast is refused


def new_forecasts(kind: str, seeds: Mapping[str, xr.Dataset]) -> dict[str, pd.DataFrame]:
    """`rows`: all forecasts of one kind of run by seed, split, cut-off and method, made anew by `backtest`."""
    made = backtest(tl.stacked(seeds), CUTOFFS, methods=METHODS)
    rows = made.scores.reset_index().rename(columns={"split": "name"})
    rows[["split", "seed"]] = rows.name.str.split("@", expand=True)
    ends = pd.DataFrame(
        [_end(key, forecast, name) for key, forecast in made.forecasts.items() for name in set(rows.name)]
    )
    rows = rows.merge(ends, on=["cutoff", "method", "name"], how="left")
    inside = (rows.low <= rows.observed) & (rows.observed <= rows.high)
    rows = rows.assign(runs=kind, rmse=rows.mse**0.5, commit=git_commit())
    rows["final_inside"] = inside.astype(float).where(rows.low.notna())
    return {"rows": rows.drop(columns=["name", "low", "high", "final"])}


def _end(key: tuple[float, str], forecast: Any, name: str) -> dict[str, Any]:
    """The 90 % interval of the final loss."""
    cutoff, method = key
    quantiles = None if forecast.quantiles is None else forecast.quantiles.sel(split=name).isel(tokens=-1)
    low, high = (np.nan if quantiles is None else float(quantiles.sel(quantile=q)) for q in (0.05, 0.95))
    return {"cutoff": cutoff, "method": method, "name": name, "low": low, "high": high}


# ------------------------------------------------------------------------------------------------------- tables


def main_table(rows: pd.DataFrame, beside: pd.DataFrame) -> pd.DataFrame:
    """A line for each kind of run, split and method: mean errors over seeds by cut-off."""
    lines = []
    for (kind, split, method), group in rows.groupby(["runs", "split", "method"], sort=False):
        line: dict[str, Any] = {"runs": kind, "split": split, "method": method, "seeds": group.seed.nunique()}
        line["missing"] = int(group.error.isna().sum())
        for cutoff, own in group.groupby("cutoff"):
            at = f"{100 * float(str(cutoff)):.0f}"
            line |= {f"final_error_from_{at}": own.error.abs().mean(), f"rmse_from_{at}": own.rmse.mean()}
            line |= {f"median_mse_from_{at}": own.mse.median()}
        lines.append(line)
    return pd.DataFrame(lines).merge(beside, on=["runs", "split", "method"], how="left")


def pairs(rows: pd.DataFrame) -> pd.DataFrame:
    """Each method by position minus each of the mean, paired over seeds: |final error| and rmse, nats."""
    lines = []
    for (kind, split, cutoff), group in rows.groupby(["runs", "split", "cutoff"], sort=False):
        by = {name: of_method.set_index("seed") for name, of_method in group.groupby("method")}
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
                    estimate = interval(apart)
                    line |= {measure: estimate.mean, f"{measure}_low": estimate.low, f"{measure}_high": estimate.high}
                    line |= {f"{measure}_better": float((apart.dropna() < 0).mean()) if estimate.n else np.nan}
                    line["seeds"] = estimate.n
                lines.append(line)
    return pd.DataFrame(lines)


def coverage(rows: pd.DataFrame) -> pd.DataFrame:
    """Shares inside the intervals by kind of run, split, method and cut-off: the horizon is 1 over the cut-off.

    Of the checkpoints beyond the cut-off at 50 and 90 %, and of the final loss at 90 %: means over seeds with t
    intervals cut to 0..1, each seed being one number; and the mean interval score at 90 %, nats.
    """
    lines = []
    for key, group in rows[rows.covered_90.notna()].groupby(["runs", "split", "method", "cutoff"], sort=False):
        line = dict(zip(("runs", "split", "method", "cutoff"), key, strict=True))
        for name in ("covered_90", "final_inside"):
            estimate = interval(group[name])
            low, high = np.clip([estimate.low, estimate.high], 0, 1)
            line |= {"seeds": estimate.n, name: estimate.mean, f"{name}_low": low, f"{name}_high": high}
        lines.append(line | {"covered_50": group.covered_50.mean(), "interval_score": group.interval_score.mean()})
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
            {**name, "method": mean_law.name, **tl.lm_of_mean(mean_law, surface, own)}
            for mean_law in tl.OF_MEAN
            if mean_law not in tl.ANNEALED
        ]
        for law, method in tl.BY_POSITION.items():
            if tl.applies(method, own):
                columns = tl.lm_by_position(method, own).loc["together", list(tl.solver_comparison.COLUMNS)].to_dict()
                lines.append({**name, "method": law, **columns})
    return pd.DataFrame(lines)


# ---------------------------------------------------------------------------------------------------- the conclusions


def verdict(intervals: Mapping[float, Interval]) -> str:
    """By the rule of the plan: agrees below zero everywhere; differs above somewhere and below nowhere."""
    below, above = (
        [estimate.high < 0 for estimate in intervals.values()],
        [estimate.low > 0 for estimate in intervals.values()],
    )
    if all(below):
        return "agrees"
    return "differs" if any(above) and not any(below) else "undecided"


def _paired(table: pd.DataFrame, kind: str, split: str, method: str, other: str) -> dict[float, Interval]:
    chosen = (table.runs == kind) & (table.split == split) & (table.method == method) & (table.minus == other)
    own = table[chosen].sort_values("cutoff")
    return {row.cutoff: Interval(row.rmse, row.rmse_low, row.rmse_high, row.seeds) for row in own.itertuples()}


def claims(table: pd.DataFrame, kind: str) -> list[Claim]:
    """Of the paper's law against each baseline, id and ood."""
    made = []
    for split in ("id", "ood"):
        for other in (FAIR, *THEIRS):
            intervals = _paired(table, kind, split, "paper", other)
            better = sum(estimate.high < 0 for estimate in intervals.values())
            worse = sum(estimate.low > 0 for estimate in intervals.values())
            rows = [{"runs": kind, "cutoff": cutoff, **estimate.columns("difference"), "seeds": estimate.n}
                    for cutoff, estimate in intervals.items()]  # fmt: skip
            numbers = pd.DataFrame(rows)
            made.append(
                Claim(
                    f"The temporal law predicts the rest of a run better than {LABELS[other]}, {split}",
                    "lower mean squared error at 10, 20, 30 and 40 %"
                    if other in THEIRS
                    else "lower (a power law; whether it had a constant is not known)",
                    f"its root MSE is smaller at {better}, larger at {worse} of {len(intervals)} cut-offs",
                    verdict(intervals),
                    WHY,
                    rounded(numbers, *numbers.columns),
                )
            )
    return made


LABELS = {
    "power": "a power law with a constant",
    "power_pure": "a power law without a constant",
    "reciprocal": "a reciprocal law",
    "logarithmic": "a logarithm",
}
WHY = "Runs of a few million tokens: their prefix is the early fall of the loss."


def coverage_overall(rows: pd.DataFrame) -> pd.DataFrame:
    """Shares of later checkpoints inside the 90 % interval over all cut-offs, of runs with several seeds."""
    lines = []
    repeated = rows[rows.runs.isin(repeated_kinds(rows))]
    for key, group in repeated.groupby(["runs", "split", "method"], sort=False):
        estimate = interval(group.groupby("seed").covered_90.mean())
        if estimate.n:
            low, high = np.clip([estimate.low, estimate.high], 0, 1)
            line = {**dict(zip(("runs", "split", "method"), key, strict=True)), "seeds": estimate.n}
            lines.append(line | {"covered_90": estimate.mean, "covered_90_low": low, "covered_90_high": high})
    return pd.DataFrame(lines)


def better_pairs(rows: pd.DataFrame) -> pd.DataFrame:
    """How often the paper's law (`temporal` where there is no cosine) had the smaller root MSE than the power law."""
    lines = []
    for kind, own in rows[rows.runs.isin(repeated_kinds(rows)) & (rows.split == "id")].groupby("runs", sort=False):
        wide = own.pivot(index=["seed", "cutoff"], columns="method", values="rmse")
        law = "paper" if wide["paper"].notna().any() else "temporal"
        apart = (wide[law] - wide[FAIR]).dropna()
        line = {"runs": kind, "split": "id", "method": law, "minus": FAIR}
        lines.append({**line, "lower": int((apart < 0).sum()), "pairs": len(apart)})
    return pd.DataFrame(lines)


BEFORE = (
    "Nothing here is a fresh test: all these forecasts were looked at before, seeds 0 to 4 as development data and "
    "seeds 100 to 104 when the locked test set was opened. Cut-offs of one run overlap, so the rows of a table are not "
    "independent."
)


def repeated_kinds(rows: pd.DataFrame) -> list[str]:
    """Kinds of run with several seeds."""
    count = rows.groupby("runs", sort=False).seed.nunique()
    return list(count[count > 1].index) or list(count.index)


def analyse(runs: Runs) -> Findings:
    """All tables, claims and figures; the forecasts are kept as they come."""
    parts = []
    for kind, seeds in tl.by_kind_and_seed(runs.surfaces).items():
        forecasts = kept_forecasts(kind, seeds)
        if forecasts is None:
            forecasts = cached(seeds, f"{kind} {ASKED}", lambda kind=kind, seeds=seeds: new_forecasts(kind, seeds))[
                "rows"
            ]
        parts.append(forecasts)
        print(f"forecast: {kind}", flush=True)
    rows = pd.concat(parts, ignore_index=True)
    beside = pd.concat([beside_lm(*group) for group in tl.by_kind_and_seed(runs.surfaces).items()], ignore_index=True)
    table, apart = main_table(rows, beside), pairs(rows)
    kind = first_cosine(rows)
    drawn, captions = plots.figures(rows[rows.runs.isin(repeated_kinds(rows))])
    more, more_captions = plots.predictions(kind, *_drawn(runs, kind))
    tables = {"errors": table, "better_pairs": better_pairs(rows), "pairs": apart}
    tables |= {"coverage_overall": coverage_overall(rows), "coverage": coverage(rows), "rows": rows[KEPT]}
    return Findings(tables, claims(apart, kind), [BEFORE], more | drawn, more_captions | captions)


def _drawn(runs: Runs, kind: str) -> tuple[xr.Dataset, Any]:
    """The first seed of a kind of run on id, and its backtest by the methods that are drawn."""
    surface = next(iter(tl.by_kind_and_seed(runs.surfaces)[kind].values())).sel(split=["id"])
    methods = [method for method in METHODS if (method if isinstance(method, str) else method.name) in plots.DRAWN]
    return surface, backtest(surface, CUTOFFS, methods=methods)


# Read once, as a file may be edited while its analysis runs.
ASKED = f"{NAMES} {CUTOFFS} " + "".join(inspect.getsource(maker) for maker in (new_forecasts, _end))


def first_cosine(rows: pd.DataFrame) -> str:
    """The kind of run for which `paper` gave forecasts, with the most seeds."""
    own = rows[(rows.method == "paper") & rows.error.notna()].groupby("runs", sort=False).seed.nunique()
    return str(own.idxmax())


STUDY = Study(
    name="temporal_prediction",
    title="Does the temporal law forecast the rest of a run better than laws of the mean loss?",
    decided="2026-11-26",
    analyse=analyse,
    minutes=5,
    plans=BASE_RUNS,
)

if __name__ == "__main__":
    STUDY.main()
