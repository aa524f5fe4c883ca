"""How well does the temporal law describe the loss of a whole run, beside power laws of the mean loss?

Paper: Temporal Scaling Law (Xiong et al., arXiv 2404.17785), fit quality: R2 of the temporal law over whole runs is
above .99 in and out of distribution; that of a power law in tokens on the mean loss .6 to .7. (The forms of the
temporal laws are reconstructed, and the power law of the paper is taken to be one without a constant.)

    tsl reproduce temporal_fit        the same as: python -m experiments.temporal_fit.study

The dated plan and what came out: README.md beside this file.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

import tsl_jax as tsl
from experiments.shared import BASE_RUNS, Claim, Findings, Runs, Study
from experiments.shared import laws_over_tokens as tl
from experiments.shared.cached_tables import cached
from experiments.shared.seeds_and_intervals import Interval, interval, of_columns
from experiments.shared.tables import rounded
from experiments.temporal_fit import plots
from tsl_jax.forecasting import lr_history, position_route
from tsl_jax.forecasting.baselines import mean_loss

GRID = 200
LATE = 0.5
GOAL, COARSE = 0.99, (0.6, 0.7)
FAIR = "power"
MEASURES = ("r2", "r2_even", "r2_heldout", "r2_late")

# ---------------------------------------------------------------------------------------------------------- one law


def r2(observed: Any, predicted: Any) -> float:
    """1 - SSE/SST of two arrays of one shape."""
    observed, predicted = np.asarray(observed, float), np.asarray(predicted, float)
    return float(1 - ((observed - predicted) ** 2).sum() / ((observed - observed.mean()) ** 2).sum())


def judged(mean: xr.DataArray, fitted: xr.DataArray, heldout: xr.DataArray, parameters: int) -> dict[str, float]:
    """The measures of one split: mean loss, fit to all checkpoints, and fit to every other one, each (tokens,)."""
    tokens, y, f = mean.tokens.values.astype(float), mean.values, fitted.values
    grid, late = np.linspace(tokens[0], tokens[-1], GRID), tokens > LATE * tokens[-1]
    sse, n = float(((y - f) ** 2).sum()), len(y)
    return {
        "r2": r2(y, f),
        "r2_even": r2(np.interp(grid, tokens, y), np.interp(grid, tokens, f)),
        "r2_heldout": r2(y[1::2], heldout.values[1::2]),
        "r2_late": r2(y[late], f[late]),
        "rmse": float(np.sqrt(sse / n)),
        "bic": n * np.log(sse / n) + parameters * np.log(n),
    }


def of_surface(loss: xr.DataArray, fitted: xr.DataArray) -> dict[str, float]:
    """R2 of a surface (tokens, position) about its grand mean, and about the mean over tokens of each position."""
    observed, predicted = (surface.transpose("tokens", "position").values for surface in (loss, fitted))
    sse = ((observed - predicted) ** 2).sum()
    return {
        "surface_r2": r2(observed, predicted),
        "within_r2": float(1 - sse / ((observed - observed.mean(0)) ** 2).sum()),
    }


# -------------------------------------------------------------------------------------------------- all of a group


def by_run(kind: str, seeds: Mapping[str, xr.Dataset]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A row for each seed, split and law; and the surfaces' rows."""
    surface, learned = next(iter(seeds.values())), tl.stacked(seeds)
    half, at = learned.isel(tokens=slice(None, None, 2)), learned.tokens.values
    plan, mean = lr_history.schedule_of(surface), mean_loss(learned)
    rows, surfaces = [], []
    for mean_law in tl.OF_MEAN:
        fits = tl.mean_curve(mean_law, surface, learned), tl.mean_curve(mean_law, surface, learned, every=2)
        rows += _rows(kind, mean_law.name, mean, fits, mean_law.parameters(plan))
    for name, method in tl.BY_POSITION.items():
        whole, other = tl.position_surface(method, learned, at), tl.position_surface(method, half, at)
        if whole is not None and other is not None:
            fits = whole.mean("position"), other.mean("position")
            rows += _rows(kind, name, mean, fits, tl.position_parameters(method))
            surfaces += _surfaces(kind, name, learned, whole, tl.position_parameters(method))
    for name, (fitted, parameters) in controls(learned).items():
        surfaces += _surfaces(kind, name, learned, fitted, parameters)
    return pd.DataFrame(rows), pd.DataFrame(surfaces)


def controls(learned: xr.Dataset) -> dict[str, tuple[xr.DataArray, int]]:
    """What the surface may be described by besides: name -> (surface, free numbers)."""
    positions, checkpoints = learned.sizes["position"], learned.sizes["tokens"]
    still = learned.loss.mean("tokens").broadcast_like(learned.loss)
    return {
        "each position: power": (tsl.fit(tsl.laws.POWER, learned.loss, over="tokens").predict(), 3 * positions),
        "each checkpoint: hyperbola": (
            tsl.fit(tsl.laws.HYPERBOLIC, learned.loss, over="position").predict(),
            3 * checkpoints,
        ),
        "profile that does not change": (still, positions),
    }


def _rows(kind: str, law: str, mean: xr.DataArray, fits: tuple[Any, Any], parameters: int) -> list[dict[str, Any]]:
    if fits[0] is None or fits[1] is None:
        return []
    made = []
    for name in mean.split.values.tolist():
        split, _, seed = name.partition("@")
        measures = judged(*(curve.sel(split=name) for curve in (mean, *fits)), parameters)
        made.append({"runs": kind, "split": split, "law": law, "seed": seed, "parameters": parameters, **measures})
    return made


def _surfaces(kind: str, law: str, learned: xr.Dataset, fitted: xr.DataArray, parameters: int) -> list[dict[str, Any]]:
    made = []
    for name in learned.split.values.tolist():
        split, _, seed = name.partition("@")
        measures = of_surface(learned.loss.sel(split=name), fitted.sel(split=name))
        made.append({"runs": kind, "split": split, "law": law, "seed": seed, "parameters": parameters, **measures})
    return made


# --------------------------------------------------------------------------------------------------------- tables


def main_table(rows: pd.DataFrame, beside: pd.DataFrame) -> pd.DataFrame:
    """A line for each kind of run, split and law: means over seeds, with intervals of r2 and r2_heldout."""
    lines = []
    for (kind, split, law), group in rows.groupby(["runs", "split", "law"], sort=False):
        line: dict[str, Any] = {"runs": kind, "split": split, "law": law}
        line |= {"parameters": int(group.parameters.iloc[0]), "seeds": len(group)}
        for name in MEASURES:
            estimate = interval(group[name])
            line[name] = estimate.mean
            if name in ("r2", "r2_heldout"):
                line |= {f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        line |= {"r2_least": group.r2.min(), "rmse": group.rmse.mean(), "bic": group.bic.mean()}
        lines.append(line)
    return pd.DataFrame(lines).merge(beside, on=["runs", "split", "law"], how="left")


def surface_table(surfaces: pd.DataFrame) -> pd.DataFrame:
    lines = []
    for (kind, split, law), group in surfaces.groupby(["runs", "split", "law"], sort=False):
        line: dict[str, Any] = {"runs": kind, "split": split, "law": law, "parameters": int(group.parameters.iloc[0])}
        for name in ("surface_r2", "within_r2"):
            estimate = interval(group[name])
            line |= {name: estimate.mean, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        lines.append(line)
    return pd.DataFrame(lines)


def differences(rows: pd.DataFrame) -> pd.DataFrame:
    """Laws by position minus each law of the mean, in r2_heldout and bic, paired over seeds."""
    wide = rows.set_index(["runs", "split", "seed", "law"])
    lines = []
    for (kind, split), group in wide.groupby(["runs", "split"], sort=False):
        by_law = {name: of_law.droplevel(["runs", "split", "law"]) for name, of_law in group.groupby("law", sort=False)}
        for name in (name for name in tl.BY_POSITION if name in by_law):
            for other in (name for name in by_law if name not in tl.BY_POSITION):
                apart = by_law[name] - by_law[other]
                line = {"runs": kind, "split": split, "law": name, "minus": other, "seeds": len(apart)}
                for measure in ("r2", "r2_heldout", "bic"):
                    estimate = interval(apart[measure])
                    line |= {measure: estimate.mean, f"{measure}_low": estimate.low, f"{measure}_high": estimate.high}
                lines.append(line)
    return pd.DataFrame(lines)


def beside_lm(kind: str, seeds: Mapping[str, xr.Dataset]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The lm columns of every law, and a table of the laws of a0, a1 and a2 alone."""
    surface, learned = next(iter(seeds.values())), tl.stacked(seeds)
    lines, parameters = [], []
    for split in surface.split.values.tolist():
        own = learned.sel(split=tl.seeds_of(learned.split.values.tolist(), split))
        name = {"runs": kind, "split": split}
        lines += [{**name, "law": mean_law.name, **tl.lm_of_mean(mean_law, surface, own)} for mean_law in tl.OF_MEAN]
        for law, method in tl.BY_POSITION.items():
            if tl.applies(method, own):
                lm_table = tl.lm_by_position(method, own)
                together = lm_table.loc["together", list(tl.solver_comparison.COLUMNS)].to_dict()
                if law != "temporal_joint":
                    parts = lm_table.drop("together").reset_index(names="parameter")
                    parameters += [{**name, "law": law, **row} for row in parts.to_dict("records")]
                lines.append({**name, "law": law, **together, "lm_mean_r2": _mean_r2_by_lm(law, method, own)})
    return pd.DataFrame(lines), pd.DataFrame(parameters)


def _mean_r2_by_lm(law: str, method: Any, learned: xr.Dataset) -> float:
    """Mean r2 of the mean loss where Levenberg-Marquardt fitted the temporal laws that were put back."""
    curve = tl.position_surface(method, learned, learned.tokens.values, "lm")
    assert curve is not None
    mean, fitted = mean_loss(learned), curve.mean("position")
    return float(np.mean([r2(mean.sel(split=s), fitted.sel(split=s)) for s in mean.split.values]))


# ---------------------------------------------------------------------------------------------------- the conclusions


def _interval_of(table: pd.DataFrame, kind: str, split: str, law: str, name: str) -> Interval:
    row = table[(table.runs == kind) & (table.split == split) & (table.law == law)].iloc[0]
    return of_columns(row, name, int(row.seeds))


def _numbers(splits: Mapping[str, Interval], law: str, name: str) -> list[dict[str, Any]]:
    """Rows of a claim's table: an interval of each split."""
    rows = [{"split": split, "law": law, **estimate.columns(name)} for split, estimate in splits.items()]
    return rounded(pd.DataFrame(rows), *rows[0])


def _in_words(splits: Mapping[str, Interval]) -> str:
    known = {
        split: f"{estimate.mean:.3f}" if np.isfinite(estimate.mean) else "none" for split, estimate in splits.items()
    }
    return ", ".join(f"{value} {split}" for split, value in known.items())


def claims(table: pd.DataFrame, apart: pd.DataFrame, kind: str) -> list[Claim]:
    """The three claims, on the runs of one kind, by the rules of the plan."""
    splits = ("id", "ood")
    ours = {split: _interval_of(table, kind, split, "paper", "r2") for split in splits}
    coarse = {split: _interval_of(table, kind, split, "power_pure", "r2") for split in splits}
    fair = {split: _interval_of(table, kind, split, FAIR, "r2") for split in splits}
    row = {
        split: apart[(apart.runs == kind) & (apart.split == split) & (apart.law == "paper") & (apart.minus == FAIR)]
        for split in splits
    }
    gain = {
        split: Interval(
            *of_split[["r2_heldout", "r2_heldout_low", "r2_heldout_high"]].iloc[0], int(of_split.seeds.iloc[0])
        )
        for split, of_split in row.items()
    }
    best = table[table.runs == kind].groupby("split").r2.max()
    return [
        Claim(
            "The temporal law describes whole runs with R2 above .99, in and out of distribution",
            "> .99 (fit quality)",
            f"R2 of the mean loss over checkpoints, {kind}: {_in_words(ours)}",
            above(ours.values(), GOAL),
            "The largest mean R2 of any law tried is "
            + ", ".join(f"{best[split]:.4f} {split}" for split in splits)
            + "; the paper's models are larger, its runs longer.",
            _numbers(ours, "paper", "r2"),
        ),
        Claim(
            "A power law in tokens on the mean loss describes them with R2 of .6 to .7",
            ".6 to .7",
            f"without constant: {_in_words(coarse)}; with one: {_in_words(fair)}",
            "agrees"
            if all(estimate.low <= COARSE[1] and estimate.high >= COARSE[0] for estimate in coarse.values())
            else "differs",
            "How bad a power law without constant is depends on how near a run has come to its floor, and a cosine "
            "that lowers the loss late hides the missing constant.",
            _numbers(coarse, "power_pure", "r2") + _numbers(fair, FAIR, "r2"),
        ),
        Claim(
            "The temporal law describes a run better than a power law with a constant does",
            "not compared",
            f"R2 of checkpoints left out, the paper's law minus the power law: {_in_words(gain)}",
            above(gain.values(), 0.0),
            "These checkpoints lie between those that were fitted, so this is interpolation.",
            _numbers(gain, "the paper's law minus the power law", "r2_heldout"),
        ),
    ]


def above(intervals: Iterable[Interval], goal: float) -> str:
    """Whether all intervals lie above a goal: differs if one lies below it."""
    intervals = list(intervals)
    if any(estimate.high < goal for estimate in intervals):
        return "differs"
    return "agrees" if all(estimate.low > goal for estimate in intervals) else "undecided"


def best_laws(table: pd.DataFrame) -> pd.DataFrame:
    """Which law is best on the checkpoints left out, and which by BIC, of runs with several seeds."""
    lines = []
    for (kind, split), group in table[table.seeds > 1].groupby(["runs", "split"], sort=False):
        held, bic = group.loc[group.r2_heldout.idxmax()], group.loc[group.bic.idxmin()]
        line = {"runs": kind, "split": split, "best_heldout": held.law, "r2_heldout": held.r2_heldout}
        lines.append({**line, "best_bic": bic.law, "bic": bic.bic})
    return pd.DataFrame(lines)


COUNTED = (
    "BIC counts the residuals of the checkpoints as independent, which they are not, and a law by position is not "
    "fitted to the mean loss: it is a rough measure, and the checkpoints left out are the better one."
)
SOLVERS = (
    "The lm columns compare solvers. piecewise_cosine and area_annealing have two shapes: both are found by "
    "Levenberg-Marquardt either way, so their excess is zero by construction. The laws of a0, a1, a2 are compared "
    "without weights; lm_mean_r2 is r2 with them."
)


def one_run(runs: Runs, kind: str) -> plots.OneRun:
    """The first seed of a kind on id: its mean loss beside three laws, and a0, a1, a2 beside theirs."""
    seed, surface = next(iter(tl.by_kind_and_seed(runs.surfaces)[kind].items()))
    learned = tl.stacked({seed: surface})
    learned = learned.sel(split=tl.seeds_of(learned.split.values.tolist(), "id"))
    at, plan = learned.tokens.values, learned.attrs["schedule"]
    fits = position_route.described(learned, tsl.laws.Schedule.from_plan(plan), tl.BY_POSITION["paper"])
    fitted = position_route.surface_of(fits, at, learned.position)
    curves = {"observed": mean_loss(learned)[0].values, "paper": fitted.mean("position")[0].values}
    for law in tl.OF_MEAN:
        curve = tl.mean_curve(law, surface, learned) if law.name in ("power", "power_pure") else None
        curves |= {} if curve is None else {law.name: curve[0].values}
    laws = xr.concat([fits[name].predict(at) for name in tl.PARTS], pd.Index(tl.PARTS, name="param"))
    residual = (learned.loss - fitted).isel(split=0, drop=True)
    return plots.OneRun(f"{kind}, seed {seed}, id", at, curves, fits["position"], laws.isel(split=0), residual)


def first_cosine(rows: pd.DataFrame) -> str:
    """The kind of run under a cosine with the most seeds."""
    own = rows[rows.law == "paper"].groupby("runs", sort=False).seed.nunique()
    return str(own.idxmax())


def analyse(runs: Runs) -> Findings:
    """All tables, claims and figures."""
    made = []
    for kind, seeds in tl.by_kind_and_seed(runs.surfaces).items():
        made.append(cached(seeds, f"{kind} {ASKED}", lambda kind=kind, seeds=seeds: fitted(kind, seeds)))
        print(f"fitted: {kind}", flush=True)
    rows, surfaces, beside, parameters = (
        pd.concat([of_kind[name] for of_kind in made], ignore_index=True)
        for name in ("rows", "surfaces", "lm", "parameters")
    )
    surfaces, table, apart = surface_table(surfaces), main_table(rows, beside), differences(rows)
    kind = first_cosine(rows)
    tables = {
        "fit": table,
        "best": best_laws(table),
        "surface": surfaces,
        "differences": apart,
        "parameters": parameters,
        "runs": rows,
    }
    tables = {name: made for name, made in tables.items() if len(made)}  # of one seed no law can be called the best
    return Findings(tables, claims(table, apart, kind), [COUNTED, SOLVERS], *plots.figures(one_run(runs, kind)))


def fitted(kind: str, seeds: Mapping[str, xr.Dataset]) -> dict[str, pd.DataFrame]:
    """All tables of one kind of run."""
    (rows, surfaces), (beside, parameters) = by_run(kind, seeds), beside_lm(kind, seeds)
    return {"rows": rows, "surfaces": surfaces, "lm": beside, "parameters": parameters}


# Read once, as a file may be edited while its analysis runs.
MADE_BY = (by_run, _rows, _surfaces, controls, beside_lm, _mean_r2_by_lm, judged, of_surface, r2)
ASKED = f"{GRID} {LATE} " + "".join(inspect.getsource(maker) for maker in (*MADE_BY, tl))


STUDY = Study(
    name="temporal_fit",
    title="How well does the temporal law describe the loss of a whole run?",
    decided="2026-11-26",
    analyse=analyse,
    minutes=13,
    plans=BASE_RUNS,
)

if __name__ == "__main__":
    STUDY.main()
