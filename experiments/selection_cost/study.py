"""What does it cost to choose among runs by forecasts of short runs, and how few evaluations will do?

Paper: Temporal Scaling Law (Xiong et al., arXiv 2404.17785), hyperparameter selection: candidates train the target
model for a small share of its tokens, the law forecasts each end, the best forecast wins. What evaluating and
forecasting cost is not stated there.

    tsl reproduce selection_cost        the same as: python -m experiments.selection_cost.study

The dated plan and what came out: README.md beside this file.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

import tsl_jax as tsl
from experiments.selection_cost import plots
from experiments.shared import BASE_RUNS, Claim, Findings, Runs, Study
from experiments.shared import laws_over_tokens as tl
from experiments.shared.cached_tables import cached
from experiments.shared.seeds_and_intervals import interval
from experiments.shared.surface_measures import loss_on_clusters
from experiments.shared.tables import rounded
from tsl_jax.forecasting import baselines, lr_history
from tsl_jax.forecasting.baselines import mean_loss
from tsl_jax.forecasting.forecast_run import after_warmup

CUTOFFS, EVERY, QUARTERS = (0.2, 0.4), (1, 2, 4), (1, 2)  # and all four
MARGIN = 0.02  # nats
CANDIDATES, SHARES = (2, 4, 8, 16), (0.1, 0.2, 0.4)
EVIDENCE = Path(__file__).parents[1] / "forecast_evidence" / "results"
MAIN = "mean_annealing"
DESIGN = ["split", "cutoff", "every", "quarters"]

# ------------------------------------------------------------------------------------------------ thinned evaluations


def subsets(clusters: int) -> dict[str, tuple[int, range]]:
    """Name -> (quarters of the documents, which clusters): all of them, and two disjoint parts of each smaller size.

    Raises:
        ValueError: if the clusters are no multiple of four.
    """
    if clusters % 4 or not clusters:
        raise ValueError(f"subsets: expected clusters of documents in a multiple of 4, found {clusters}")
    parts, each = {"all": (4, range(clusters))}, clusters // 4
    for size in QUARTERS:
        parts |= {f"{size}a": (size, range(size * each)), f"{size}b": (size, range(2 * each, (2 + size) * each))}
    return parts


def clusters_of(surface: xr.Dataset) -> int:
    """Clusters that every split has."""
    return int((surface.cluster_count.isel(tokens=0, position=0) > 0).sum("cluster").min())


def thinned(surface: xr.Dataset, every: int) -> xr.Dataset:
    """Every so many checkpoints, the last one among them."""
    kept_ones = np.arange(surface.sizes["tokens"])[::-1][::every][::-1]
    return surface.isel(tokens=kept_ones)


def designs(seeds: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """All seeds and subsets of documents as the splits "id@SEED/SUBSET" of one surface, past the warm-up."""
    parts, first = [], next(iter(seeds.values()))
    for seed, surface in seeds.items():
        for name, (_, chosen) in subsets(clusters_of(surface)).items():
            loss = loss_on_clusters(surface, list(chosen))
            parts.append(loss.assign_coords(split=[f"{split}@{seed}/{name}" for split in surface.split.values]))
    whole = xr.Dataset({"loss": xr.concat(parts, "split", coords="minimal", compat="override")}, attrs=first.attrs)
    return after_warmup(whole, lr_history.schedule_of(first))


def methods(surface: xr.Dataset) -> tuple[Any, ...]:
    """The three of the plan."""
    return (MAIN, baselines.POWER_LAW, "paper" if tl.applies(tl.BY_POSITION["paper"], surface) else "temporal")


def forecasts(kind: str, seeds: Mapping[str, xr.Dataset]) -> dict[str, pd.DataFrame]:
    """`rows`: the forecast of the final loss for every cut-off, design, seed, split and method."""
    whole, rows = designs(seeds), []
    end, sizes = float(whole.tokens[-1]), subsets(4)
    truth = {seed: mean_loss(surface).isel(tokens=-1) for seed, surface in seeds.items()}
    for cutoff in CUTOFFS:
        past = whole.sel(tokens=whole.tokens <= cutoff * end)
        for every in EVERY:
            seen = thinned(past, every)
            for method in methods(whole):
                made = tsl.forecast(seen, end, method=method)
                for name, value in zip(made.mean.split.values.tolist(), made.mean.values[:, -1], strict=True):
                    split, _, rest = name.partition("@")
                    seed, _, subset = rest.partition("/")
                    row = {"runs": kind, "split": split, "seed": seed, "subset": subset, "quarters": sizes[subset][0]}
                    row |= {"cutoff": cutoff, "every": every, "checkpoints": seen.sizes["tokens"]}
                    row |= {"method": made.method, "forecast": float(value)}
                    rows.append(row | {"final": float(truth[seed].sel(split=split))})
    return {"rows": pd.DataFrame(rows)}


# --------------------------------------------------------------------------------------------------------- errors


def evaluated(surface: xr.Dataset) -> dict[str, float]:
    """Tokens of a full evaluation by split."""
    count = surface["count"].isel(tokens=0).sum("position")
    return {split: float(count.sel(split=split)) for split in surface.split.values.tolist()}


def errors(rows: pd.DataFrame, spent: Mapping[tuple[str, str], float]) -> pd.DataFrame:
    """|forecast - final| by kind of run, split, cut-off, method and design: mean over seeds, and what was evaluated.

    Args:
        spent: (runs, split) -> tokens of a full evaluation.
    """
    rows, lines = rows.assign(error=(rows.forecast - rows.final).abs()), []
    for (kind, method, *design), group in rows.groupby(["runs", "method", *DESIGN], sort=False):
        estimate = interval(group.groupby("seed").error.mean())
        tokens = spent[kind, design[0]] * design[-1] / 4 * int(group.checkpoints.iloc[0])
        line = {"runs": kind, "method": method, **dict(zip(DESIGN, design, strict=True))}
        line |= {"checkpoints": int(group.checkpoints.iloc[0]), "evaluated_tokens": tokens, "seeds": estimate.n}
        line |= {"missing": float(group.error.isna().mean())}
        lines.append(line | {"error": estimate.mean, "low": estimate.low, "high": estimate.high})
    return pd.DataFrame(lines)


def contrasts(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each forecast difference between schedules of one size, seed and subset, by one method.

    The paper's law under a cosine is set against the same law without it under the other schedules.
    """
    named = rows.assign(law=rows.method.replace("temporal", "paper"))
    named[["size", "schedule"]] = named.runs.str.split("-", n=1, expand=True)
    keys = ["size", "seed", "subset", "law", *DESIGN]
    by = {schedule: group.set_index(keys) for schedule, group in named.groupby("schedule")}
    made = []
    for schedule in (name for name in by if name != "constant" and "constant" in by):
        both = by[schedule].join(by["constant"].add_suffix("_other"), how="inner")
        forecast, observed = both.forecast - both.forecast_other, both.final - both.final_other
        own = pd.DataFrame(
            {"forecast": forecast, "observed": observed, "error": (forecast - observed).abs()}
        ).reset_index()
        made.append(own.assign(contrast=f"{schedule} - constant"))
    columns = [*keys, "forecast", "observed", "error", "contrast"]
    return pd.concat(made, ignore_index=True) if made else pd.DataFrame(columns=columns)


def contrast_table(pairs: pd.DataFrame) -> pd.DataFrame:
    """|difference error| by size, law and design: mean over seeds; its excess over the full design, paired."""
    keys, lines = ["size", "law", *DESIGN], []
    by_seed = pairs.groupby([*keys, "seed"], sort=False).error.mean()
    for key, group in by_seed.groupby(keys, sort=False):
        own, full = group.droplevel(keys), _full(by_seed, key)
        estimate, more = interval(own), interval(own - full)
        line = {**dict(zip(keys, key, strict=True)), "seeds": estimate.n, "difference_error": estimate.mean}
        line |= {"low": estimate.low, "high": estimate.high}
        lines.append(line | {"excess": more.mean, "excess_low": more.low, "excess_high": more.high})
    right = pairs.dropna(subset=["forecast"]).assign(
        right=lambda frame: np.sign(frame.forecast) == np.sign(frame.observed)
    )
    share = right.groupby(keys, sort=False).right.mean().reset_index()
    size = pairs.assign(observed_size=pairs["observed"].abs()).groupby(keys, sort=False).observed_size.mean()
    return pd.DataFrame(lines).merge(share, on=keys, how="left").merge(size.reset_index(), on=keys, how="left")


def _full(by_seed: pd.Series, key: tuple[Any, ...]) -> pd.Series:
    """The errors (seed,) of the full design beside that of the key."""
    size, law, split, cutoff, _, _ = key
    own = by_seed.xs((size, law, split, cutoff, 1), level=["size", "law", "split", "cutoff", "every"])
    return own.xs(4, level="quarters")


def recommended(table: pd.DataFrame, size: str) -> tuple[int, int]:
    """(every, quarters of the documents) by the rule of the plan; the full design where no other fulfils it."""
    own = table[(table["size"] == size) & (table.law == MAIN) & (table.split == "id") & (table.cutoff == CUTOFFS[0])]
    good = own[(own.excess_high < MARGIN) | ((own.every == 1) & (own.quarters == 4))]
    best = good.loc[(good.quarters / good.every).idxmin()]
    return int(best.every), int(best.quarters)


# ---------------------------------------------------------------------------------------------------------- costs


def costs(runs: Runs) -> pd.DataFrame:
    """A line for each kind of run: FLOPs of training and of its evaluations, seconds, and seconds of a forecast."""
    seconds, lines = fitting_seconds(), []
    for kind, seeds in tl.by_kind_and_seed(runs.surfaces).items():
        name = next(run for run in runs.surfaces if run.partition("@")[0] == kind)
        surface, made = next(iter(seeds.values())), runs.manifests[name]
        flops, tokens = float(made["flops_per_token"]), float(made["total_tokens"])
        each, count = sum(evaluated(surface).values()), surface.sizes["tokens"]
        line = {"runs": kind, "n_params": int(made["n_params"]), "tokens": tokens, "training_flops": flops * tokens}
        line |= {"evaluated_tokens": each, "checkpoints": count, "evaluation_flops": flops / 3 * each * count}
        line["evaluation_over_training"] = each * count / 3 / tokens
        line |= {f"seconds_{what}": made["seconds"].get(what, np.nan) for what in ("train", "evaluate")}
        line |= {_until(share): int((surface.tokens <= share * tokens).sum()) for share in SHARES}
        train = line["seconds_train"]
        for method in (MAIN, "power", "paper"):
            line[f"forecast_seconds_over_training_{method}"] = seconds.get((method, kind), np.nan) / train
        lines.append(line)
    return pd.DataFrame(lines)


def _until(share: float) -> str:
    return f"checkpoints_until_{100 * share:.0f}"


def fitting_seconds(folder: Path = EVIDENCE) -> dict[tuple[str, str], float]:
    """(method, kind of run) -> median seconds of a forecast of one split, as forecast_backtest.py kept them."""
    files = [folder / f"{part}.parquet" for part in ("development", "locked_test_set")]
    rows = pd.concat([pd.read_parquet(file) for file in files if file.exists()])
    own = rows[(rows.data == "pool") & (rows.protocol == "alone")]
    kinds = own.run.str.partition("@")[0].rename("kind")
    return own.groupby([own.method, kinds]).seconds.median().to_dict()


def selections(table: pd.DataFrame, design: tuple[int, int]) -> pd.DataFrame:
    """Choosing among k candidates by runs to a share of the tokens, in FLOPs, against training all to their end."""
    (every, quarters), lines = design, []
    for row in _sizes(table):
        training, evaluation = row.training_flops, row.evaluation_flops / row.checkpoints
        for k in CANDIDATES:
            everything = k * (training + evaluation)
            for share in SHARES:
                seen = int(row[_until(share)])
                short, rest = k * share * training, (1 - share) * training + evaluation
                line = {"runs": row.runs, "k": k, "share": share, "all_to_end": everything}
                for name, part in (("full_evaluation", seen), ("thin_evaluation", -(-seen // every) * quarters / 4)):
                    spent = k * evaluation * part
                    line |= {f"{name}": short + spent + rest, f"{name}_over_all": (short + spent + rest) / everything}
                    line[f"{name}_share"] = spent / (short + spent + rest)
                lines.append(line)
    return pd.DataFrame(lines)


def _sizes(table: pd.DataFrame) -> Iterator[pd.Series]:
    """One row of each size: schedules cost the same."""
    yield from (row for _, row in table.drop_duplicates("n_params").iterrows())


# ---------------------------------------------------------------------------------------------------- the conclusions


def beside_lm(kind: str, seeds: Mapping[str, xr.Dataset]) -> pd.DataFrame:
    """The lm columns of the laws that are fitted by least squares, from all documents, by cut-off and thinning."""
    surface, learned = next(iter(seeds.values())), tl.stacked(seeds)
    power = next(mean_law for mean_law in tl.OF_MEAN if mean_law.name == baselines.POWER_LAW.name)
    law = methods(surface)[-1]
    lines = []
    for cutoff in CUTOFFS:
        past = learned.sel(tokens=learned.tokens <= cutoff * float(surface.tokens[-1]))
        for split in surface.split.values.tolist():
            own = past.sel(split=tl.seeds_of(past.split.values.tolist(), split))
            name = {"runs": kind, "split": split, "cutoff": cutoff, "every": 1, "quarters": 4}
            lines.append({**name, "method": power.name, **tl.lm_of_mean(power, surface, own)})
            together = tl.lm_by_position(tl.BY_POSITION[law], own).loc["together", list(tl.solver_comparison.COLUMNS)]
            lines.append({**name, "method": law, **together.to_dict()})
    return pd.DataFrame(lines)


def claims(chosen: pd.DataFrame, cost: pd.DataFrame) -> list[Claim]:
    row = chosen[(chosen.k == 8) & (chosen.share == SHARES[0])].iloc[0]
    ours = (
        f"8 candidates of {row.runs} to 10 % of their tokens, the winner to its end: "
        f"{row['thin_evaluation_over_all']:.2f} of training all with thin evaluations, "
        f"{row['full_evaluation_over_all']:.2f} with all"
    )
    shown = chosen[(chosen.k == 8) & (chosen.runs == row.runs)].assign(each=_each(cost, row.runs))
    names = ("full_evaluation_over_all", "thin_evaluation_over_all", "each")
    return [
        Claim(
            "Choosing by forecasts of short runs costs a small share of training all candidates",
            "implied (10B of the tokens of 468M and 1.2B models)",
            ours,
            "agrees" if row["thin_evaluation_over_all"] < 0.5 else "differs",
            "A third of a token's training is what evaluating one costs, whatever the model; so the share falls with "
            "the length of the run.",
            rounded(shown, "runs", "k", "share", *names),
        )
    ]


def _each(cost: pd.DataFrame, kind: str) -> float:
    row = cost[cost.runs == kind].iloc[0]
    return float(row.evaluation_flops / row.checkpoints / row.training_flops)


def without_forecast(error: pd.DataFrame) -> pd.DataFrame:
    """The share of forecasts that a method refused, by cut-off and thinning, where there are such."""
    lost = error.groupby(["method", "cutoff", "every"]).missing.mean().reset_index()
    return lost[lost.missing > 0]


def analyse(runs: Runs) -> Findings:
    """All tables, claims and figures; the forecasts are kept as they come."""
    parts = []
    for kind, seeds in tl.by_kind_and_seed(runs.surfaces).items():
        parts.append(cached(seeds, f"{kind} {ASKED}", lambda kind=kind, seeds=seeds: forecasts(kind, seeds))["rows"])
        print(f"forecast: {kind}", flush=True)
    rows = pd.concat(parts, ignore_index=True)
    grouped = tl.by_kind_and_seed(runs.surfaces)
    spent = {
        (kind, split): tokens
        for kind, seeds in grouped.items()
        for split, tokens in evaluated(next(iter(seeds.values()))).items()
    }
    beside = pd.concat([beside_lm(*group) for group in grouped.items()], ignore_index=True)
    error = errors(rows, spent).merge(beside, on=["runs", "method", *DESIGN], how="left")
    pairs, cost = contrasts(rows), costs(runs)
    contrast = contrast_table(pairs) if len(pairs) else pd.DataFrame()
    design = recommended(contrast, _size_of_rule(rows)) if len(pairs) else (1, 4)
    chosen = selections(cost, design)
    drawn, captions = plots.figures(error, contrast, MAIN, CUTOFFS[0])
    tables = {"costs": cost, "selection": chosen, "differences": contrast, "errors": error}
    tables |= {"without_forecast": without_forecast(error), "rows": rows[KEPT]}
    note = f"By the rule of the plan: evaluate every {design[0]}. checkpoint on {design[1]} of 4 quarters of documents."
    return Findings(tables, claims(chosen, cost), [note], drawn, captions)


KEPT = ["runs", "split", "seed", "subset", "cutoff", "every", "method", "forecast", "final"]
MADE_BY = (subsets, loss_on_clusters, clusters_of, thinned, designs, methods, forecasts)
# Read once, as a file may be edited while its analysis runs.
ASKED = f"{CUTOFFS} {EVERY} {QUARTERS} " + "".join(inspect.getsource(maker) for maker in MADE_BY)


def _size_of_rule(rows: pd.DataFrame) -> str:
    """The size with the most seeds."""
    count = rows.groupby(rows.runs.str.partition("-")[0], sort=False).seed.nunique()
    return str(count.idxmax())


STUDY = Study(
    name="selection_cost",
    title="What does it cost to choose among runs by forecasts of short runs, and how few evaluations will do?",
    decided="2026-11-26",
    analyse=analyse,
    minutes=15,
    plans=BASE_RUNS,
)

if __name__ == "__main__":
    STUDY.main()
