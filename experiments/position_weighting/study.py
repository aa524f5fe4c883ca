"""Does any weighting of positions in the training objective beat the plain mean?

Paper: Temporal Scaling Law (Xiong et al., arXiv 2404.17785), position-weighting ablations: suppressing head, middle or
tail positions brings no gain over the plain mean. Beyond the paper: boosting them, linear weights, and weights that
follow the run: 1/L(i), the part of the loss that context can still remove (from the fitted a0 and a1), and the inverse
variance of the gradient by position.

    tsl reproduce position_weighting        the same as: python -m experiments.position_weighting.study

The dated plan and what came out: README.md beside this file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

import tsl_jax as tsl
from experiments.shared import Claim, Findings, Runs, Study
from experiments.shared import solver_comparison as lm
from experiments.shared.seeds_and_intervals import bands, detectable, equivalence, holm, interval
from experiments.shared.surface_measures import final_errors, in_bands, parameter_path

MARGIN = 0.01  # nats
LEVEL = 0.9
DEVELOPMENT_SEED = "50"
DEVELOPMENT, FINAL = slice(0, 2), slice(2, 4)  # clusters of held-out documents
UNIFORM = "uniform"
MORE = "more-"  # begins the names of the runs of the second plan
ADAPTIVE = ("inverse_loss", "learnable_excess", "gradient_noise")
SUPPRESSED = ("head-0.1", "middle-0.1", "tail-0.1")
CUTOFF, METHODS = 0.4, ("mean_annealing", "paper", tsl.baselines.POWER_LAW)
EARLY, PAIRS = 0.2, 5  # share of the run at which pool runs of two schedules stand in for two arms; how many

Arms = Mapping[str, Mapping[str, xr.Dataset]]  # arm -> seed -> surface


def arm_rate_seed(name: str) -> tuple[str, float, str]:
    """("head-4", 3e-3, "0") of "weights-head-4-lr0.003@0"."""
    told, _, seed = name.removeprefix("weights-").partition("@")
    arm, _, rate = told.rpartition("-lr")
    return arm, float(rate), seed


def loss_of(surface: xr.Dataset, clusters: slice) -> xr.DataArray:
    """Unweighted loss (split, tokens, position) of some clusters of the held-out documents."""
    some = surface.isel(cluster=clusters)
    loss = some.cluster_sum.sum("cluster") / some.cluster_count.sum("cluster")
    return loss.transpose("split", "tokens", "position")


# ------------------------------------------------------------------------------------------------------- development


def development(surfaces: Mapping[str, xr.Dataset]) -> pd.DataFrame:
    """Final id loss of each arm and learning rate on the development half, and which rate is chosen."""
    rows = []
    for name, surface in surfaces.items():
        if name.startswith("weights-") and arm_rate_seed(name)[2] == DEVELOPMENT_SEED:
            arm, rate, _ = arm_rate_seed(name)
            loss = float(loss_of(surface, DEVELOPMENT).sel(split="id").isel(tokens=-1).mean())
            rows.append({"arm": arm, "learning rate": rate, "development loss, id": loss})
    table = pd.DataFrame(rows)
    best = table.groupby("arm")["development loss, id"].transform("min")
    return table.assign(chosen=table["development loss, id"] == best)


def chosen(table: pd.DataFrame) -> dict[str, float]:
    """The learning rate of each arm."""
    return dict(zip(table[table.chosen].arm, table[table.chosen]["learning rate"], strict=True))


# ------------------------------------------------------------------------------------------------------------- final


def final_runs(runs: Runs, rates: Mapping[str, float], start: str = "weights-") -> Arms:
    """The paired runs whose names begin so, uniform first.

    Raises:
        ValueError: where the plan trains an arm at another rate than development chose.
    """
    found: dict[str, dict[str, xr.Dataset]] = {UNIFORM: {}}
    for name, surface in runs.named(start).items():
        arm, rate, seed = arm_rate_seed(name.removeprefix(MORE))
        if seed == DEVELOPMENT_SEED:
            continue
        if rate != rates[arm]:
            raise ValueError(f"plan: {name} trains at {rate:g}, development chose {rates[arm]:g}; correct the plan")
        found.setdefault(arm, {})[seed] = surface
    return found


def differences(arms: Arms, arm: str, clusters: slice = FINAL) -> xr.DataArray:
    """Arm minus uniform, final unweighted loss (seed, split, position), paired by seed."""
    pairs = [
        (loss_of(own, clusters) - loss_of(arms[UNIFORM][seed], clusters)).isel(tokens=-1, drop=True)
        for seed, own in arms[arm].items()
    ]
    return xr.concat(pairs, pd.Index(list(arms[arm]), name="seed"))


def others(arms: Arms) -> Iterable[str]:
    """All arms but uniform."""
    return [arm for arm in arms if arm != UNIFORM]


def ends(own: Mapping[str, xr.Dataset]) -> xr.DataArray:
    """Final id loss (seed, position) on all documents."""
    final = [one.loss.sel(split="id").isel(tokens=-1, drop=True) for one in own.values()]
    return xr.concat(final, pd.Index(list(own), name="seed"))


def main_table(arms: Arms, rates: Mapping[str, float]) -> pd.DataFrame:
    """A row an arm: paired differences on the final half of the documents, with tests; the fit of its last curves."""
    table = pd.DataFrame([_row(arms, arm, rates) for arm in others(arms)])
    table.insert(6, "p, Holm", holm(table.p))
    table.insert(7, "verdict", [_verdict(row) for row in table.to_dict("records")])
    return table


def _row(arms: Arms, arm: str, rates: Mapping[str, float]) -> dict[str, Any]:
    inner = differences(arms, arm).mean("position")
    tested = equivalence(inner.sel(split="id").values, MARGIN)
    every = differences(arms, arm, slice(None)).mean("position").sel(split="id")
    return {
        "arm": arm,
        "learning rate": rates[arm],
        "difference, id, nats (90 %)": str(tested.interval),
        "seeds": tested.interval.n,
        "p equivalent": tested.p_equivalent,
        "p": tested.p_different,
        "equivalence": tested.verdict,
        "mean": tested.interval.mean,
        "sd of pairs": float(inner.sel(split="id").std(ddof=1)),
        "all documents, id": str(interval(every.values, LEVEL)),
        "ood": str(interval(inner.sel(split="ood").values, LEVEL)),
    } | lm.beside(tsl.laws.HYPERBOLIC, ends(arms[arm]), over="position")


def _verdict(row: Mapping[str, Any]) -> str:
    within = row["equivalence"] == "equivalent"
    if row["p, Holm"] < 0.05:
        return ("gain" if row["mean"] < 0 else "loss") + (", within the margin" if within else "")
    return "no difference: equivalent" if within else "undecided"


def effect(runs: Runs, arms: Arms) -> tuple[float, float]:
    """Minimal detectable effects of five pairs, nats: by pairs of the pool beforehand, by the spread that came."""
    pairs = []
    for seed in range(PAIRS):
        cosine, wsd = (runs.surfaces[f"small-{kind}@{seed}"] for kind in ("cosine", "wsd"))
        at = int(cosine.tokens.sel(tokens=EARLY * float(cosine.tokens[-1]), method="nearest"))
        pairs.append(float((cosine.loss - wsd.loss).sel(split="id", tokens=at).mean()))
    came = [float(differences(arms, arm).sel(split="id").mean("position").std(ddof=1)) for arm in others(arms)]
    return detectable(float(np.std(pairs, ddof=1)), PAIRS), detectable(float(np.median(came)), PAIRS)


# ----------------------------------------------------------------------------------------------- the law, and forecasts


def law_table(arms: Arms) -> pd.DataFrame:
    """a0, a1, a2 of the last checkpoint, id, positions 1 to 128: uniform's values, and the arms' paired differences."""
    fits = {arm: tsl.fit(tsl.laws.HYPERBOLIC, ends(own), over="position") for arm, own in arms.items()}
    rows = []
    for arm, found in fits.items():
        shown = found.params if arm == UNIFORM else found.params - fits[UNIFORM].params
        row: dict[str, Any] = {"arm": arm, "is": "value" if arm == UNIFORM else "minus uniform"}
        row |= {name: str(interval(shown.sel(param=name).values, LEVEL)) for name in ("a0", "a1", "a2")}
        row |= {"R2": float(found.r2.mean())}
        rows.append(row | lm.beside(tsl.laws.HYPERBOLIC, ends(arms[arm]), over="position"))
    return pd.DataFrame(rows)


def forecast_table(arms: Arms) -> pd.DataFrame:
    """Error of the final mean loss, id, forecast from 40 % of the run, by arm and method."""
    return pd.DataFrame([_forecasts(arm, own, method) for arm, own in arms.items() for method in METHODS])


def _forecasts(arm: str, own: Mapping[str, xr.Dataset], method: Any) -> dict[str, Any]:
    errors, inside = np.array([final_errors(surface, method, CUTOFF)["id"] for surface in own.values()], float).T
    known = inside[np.isfinite(inside)]
    return {
        "arm": arm,
        "method": method if isinstance(method, str) else method.name,
        "mean error, nats (90 %)": str(interval(errors, LEVEL)),
        "mean absolute error": float(np.nanmean(abs(errors))) if np.isfinite(errors).any() else np.nan,
        "without forecast": int(np.isnan(errors).sum()),
        "inside 90 %": f"{int(known.sum())} of {len(known)}",
    }


# ----------------------------------------------------------------------------------------------------- what is told


def analyse(runs: Runs) -> Findings:
    """Development, final comparisons, the law, the forecasts, and the verdict on the paper's claim."""
    developed = development(runs.surfaces)
    rates = chosen(developed)
    arms = final_runs(runs, rates)
    table = main_table(arms, rates)
    more_arms = final_runs(runs, rates, MORE)
    more = main_table(more_arms, rates) if more_arms[UNIFORM] else table.iloc[:0]
    tables = {"arms": table, "more_seeds": more, "law": law_table(arms), "forecasts": forecast_table(arms)}
    tables |= {"learning_rates": developed}
    tables = {name: one for name, one in tables.items() if len(one)}
    return Findings(tables, _claims(table, more), _notes(runs, arms, table, more), *_figures(runs, arms))


def _claims(table: pd.DataFrame, more: pd.DataFrame) -> list[Claim]:
    paper = table[table.arm.isin(SUPPRESSED)]
    gains = paper.verdict.str.startswith("gain").any()
    settled = ((paper.equivalence == "equivalent") | (paper.verdict.str.startswith("loss"))).all()
    ours = "; ".join(f"{row.arm} {row['difference, id, nats (90 %)']} ({row.verdict})" for _, row in paper.iterrows())
    judged = pd.concat([table[~table.arm.isin(more.arm)], more])  # the second plan's verdicts for its own arms
    best = judged.sort_values("mean").iloc[0]
    any_gain = judged.verdict.str.startswith("gain").any()
    none = ((judged.equivalence == "equivalent") | (judged.verdict.str.startswith("loss"))).all()
    return [
        Claim(
            "Suppressing head, middle or tail positions brings no gain over the plain mean",
            "no gain (ablation)",
            ours,
            "differs" if gains else "agrees" if settled else "undecided",
        ),
        Claim(
            "No weighting tried here, boosts and adaptive ones included, beats the plain mean",
            "not asked",
            f"best is {best.arm}, {best['difference, id, nats (90 %)']}, {best.seeds} seeds ({best.verdict}); "
            + "; ".join(
                f"{row.arm} {row['difference, id, nats (90 %)']} ({row.verdict})" for _, row in more.iterrows()
            ),
            "differs" if any_gain else "agrees" if none else "undecided",
        ),
    ]


def _notes(runs: Runs, arms: Arms, table: pd.DataFrame, more: pd.DataFrame) -> list[str]:
    before, came = effect(runs, arms)
    finals = [float(loss_of(one, FINAL).sel(split="id").isel(tokens=-1).mean()) for one in arms[UNIFORM].values()]
    loss = interval(finals, LEVEL)
    return [
        f"Uniform ends at {loss.mean:.4f} nats on the final half of the documents [{loss.low:.4f}, {loss.high:.4f}] "
        "over seeds (90 %); differences are paired.",
        f"Minimal detectable effect of {PAIRS} pairs: {before:.4f} nats by pairs of the pool, computed beforehand; "
        f"{came:.4f} by the median spread of the pairs that came. The margin is {MARGIN}.",
        _kept(runs),
        *[f"{row.arm}: {row['difference, id, nats (90 %)']} nats, {row.verdict}." for _, row in table.iterrows()],
        *[
            f"{row.arm}, {row.seeds} fresh seeds: {row['difference, id, nats (90 %)']} nats, {row.verdict} "
            f"(p equivalent {row['p equivalent']:.2g}, p different {row['p, Holm']:.2g}); ood {row.ood}."
            for _, row in more.iterrows()
        ],
    ]


def _kept(runs: Runs) -> str:
    """How often the fitted law was of no use to the weights that follow it."""
    said = [one for weights in updates(runs, "learnable_excess") for one in weights["said"]]
    kept = sum(one.startswith("weights kept") for one in said)
    return f"learnable_excess: at {kept} of {len(said)} updates the fit was not usable, and the weights were kept."


def updates(runs: Runs, arm: str) -> list[Mapping[str, Any]]:
    """What the final runs of an adaptive arm kept of their weights."""
    return [
        found["probes"]["weights"]
        for name, found in runs.manifests.items()
        if name.startswith(f"weights-{arm}-") and arm_rate_seed(name)[2] != DEVELOPMENT_SEED
    ]


def _weights(runs: Runs, arm: str) -> tuple[Any, Any, Any, Any]:
    """Position, and mean, lowest and highest over seeds of the weights, means of the second half of the updates."""
    found = updates(runs, arm)
    late = np.array([np.mean(one["weights"][len(one["weights"]) // 2 :], axis=0) for one in found])
    return np.array(found[0]["position"]), late.mean(0), late.min(0), late.max(0)


def _figures(runs: Runs, arms: Arms) -> tuple[dict[str, Any], dict[str, str]]:
    from tsl_jax.reporting import plots as draw

    by_arm, seeds, overall = {}, {}, []
    for arm in others(arms):
        by_position = differences(arms, arm).sel(split="id")
        one, each = in_bands(by_position), by_position.mean("position").values
        found = bands(one.values, LEVEL)
        by_arm[arm] = (found["mean"].values, found.low.values, found.high.values)
        seeds[arm] = one.values
        mean = interval(each, LEVEL)
        overall.append({"arm": arm, "mean": mean.mean, "low": mean.low, "high": mean.high, "seeds": each})
    table = pd.DataFrame(overall)
    figures = {
        "overall": draw.differences_overall(table, margin=MARGIN),
        "by_position": draw.differences_by_position(one.position.values, by_arm, seeds=seeds, margin=MARGIN),
        "parameters": draw.parameter_paths({arm: parameter_path(arms[arm]) for arm in _shown(table)}),
        "weights": draw.lines_with_bands(
            {arm: _weights(runs, arm) for arm in ADAPTIVE}, "position (tokens of context)", "weight", log="x"
        ),
    }
    captions = {
        "overall": "Final unweighted held-out loss of each arm minus that of the plain mean, id; dots are seeds, bars "
        "90 % intervals, shaded the margin of equivalence. Left of zero is a gain.",
        "by_position": "The same by band of positions (1, 2, 3-4, 5-8, ...), with simultaneous 90 % bands; thin lines "
        "are seeds.",
        "parameters": "a0, a1 and a2 of the hyperbolic law over training (positions 1 to 128), mean of the seeds and "
        "its standard error, for the plain mean, the best arm and the two worst.",
        "weights": "Weights of the adaptive arms, averaged over the second half of the updates: mean of five seeds, "
        "lowest and highest of them.",
    }
    return figures, captions


def _shown(table: pd.DataFrame) -> list[str]:
    order = table.sort_values("mean").arm.tolist()
    return list(dict.fromkeys([UNIFORM, order[0], *order[-2:]]))


STUDY = Study(
    name="position_weighting",
    title="Does any weighting of positions in training beat the plain mean?",
    decided="2026-11-26",
    analyse=analyse,
    minutes=2,
)

if __name__ == "__main__":
    STUDY.main()
