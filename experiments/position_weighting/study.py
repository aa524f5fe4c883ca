"""Does any weighting of positions in the training objective beat the plain mean?

Paper: Temporal Scaling Law (Xiong et al., arXiv 2404.17785), position-weighting ablations: suppressing head, middle or
tail positions brings no gain over the plain mean. Beyond the paper: boosting them, linear weights, and weights that
follow the run: 1/L(i), the part of the loss that context can still remove (from the fitted a0 and a1), and the inverse
variance of the gradient by position.

    tsl reproduce position_weighting        the same as: python -m experiments.position_weighting.study

The dated plan and what came out: README.md beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

import tsl_jax as tsl
from experiments.position_weighting import downstream, plots
from experiments.shared import Claim, Findings, Runs, Study, solver_comparison
from experiments.shared.paired_differences import EQUIVALENT, detectable, equivalence, verdicts
from experiments.shared.seeds_and_intervals import interval
from experiments.shared.surface_measures import error_columns, final_errors, loss_on_clusters
from experiments.shared.tables import rounded

MARGIN = 0.01  # nats
LEVEL = 0.9
DEVELOPMENT_SEED = "50"
DEVELOPMENT, FINAL = slice(0, 2), slice(2, 4)  # clusters of held-out documents
UNIFORM = "uniform"
PLANS = "weights-", "more-weights-", "larger-weights-"  # begin the names of the runs of the three plans
FIRST, MORE, LARGER = PLANS
ADAPTIVE = ("inverse_loss", "learnable_excess", "gradient_noise")
SUPPRESSED = ("head-0.1", "middle-0.1", "tail-0.1")
CUTOFF, METHODS = 0.4, ("mean_annealing", "paper", tsl.baselines.POWER_LAW)
EARLY, PAIRS = 0.2, 5  # share of the run at which pool runs of two schedules stand in for two arms; how many

Arms = Mapping[str, Mapping[str, xr.Dataset]]  # arm -> seed -> surface


def arm_rate_seed(name: str) -> tuple[str, float, str]:
    """("head-4", 3e-3, "0") of "weights-head-4-lr0.003@0", whatever the plan."""
    arm_and_rate, _, seed = name.removeprefix("more-").removeprefix("larger-").removeprefix(FIRST).partition("@")
    arm, _, rate = arm_and_rate.rpartition("-lr")
    return arm, float(rate), seed


# ------------------------------------------------------------------------------------------------------- development


def development(surfaces: Mapping[str, xr.Dataset], start: str = FIRST) -> pd.DataFrame:
    """Final id loss of each arm and learning rate on the development half, and which rate is chosen."""
    rows = []
    for name, surface in surfaces.items():
        if name.startswith(start) and arm_rate_seed(name)[2] == DEVELOPMENT_SEED:
            arm, rate, _ = arm_rate_seed(name)
            loss = float(loss_on_clusters(surface, DEVELOPMENT).sel(split="id").isel(tokens=-1).mean())
            rows.append({"arm": arm, "learning_rate": rate, "development_loss": loss})
    table = pd.DataFrame(rows, columns=["arm", "learning_rate", "development_loss"])
    best = table.groupby("arm").development_loss.transform("min")
    return table.assign(chosen=table.development_loss == best)


def chosen(table: pd.DataFrame) -> dict[str, float]:
    """The learning rate of each arm."""
    return dict(zip(table[table.chosen].arm, table[table.chosen].learning_rate, strict=True))


# ------------------------------------------------------------------------------------------------------------- final


def final_runs(runs: Runs, rates: Mapping[str, float], start: str = FIRST) -> Arms:
    """The paired runs whose names begin so, uniform first.

    Raises:
        ValueError: where the plan trains an arm at another rate than development chose.
    """
    arms: dict[str, dict[str, xr.Dataset]] = {UNIFORM: {}}
    for name, surface in runs.named(start).items():
        arm, rate, seed = arm_rate_seed(name)
        if seed == DEVELOPMENT_SEED:
            continue
        if rate != rates[arm]:
            raise ValueError(f"plan: {name} trains at {rate:g}, development chose {rates[arm]:g}; correct the plan")
        arms.setdefault(arm, {})[seed] = surface
    return arms


def differences(arms: Arms, arm: str, clusters: slice = FINAL) -> xr.DataArray:
    """Arm minus uniform, final unweighted loss (seed, split, position), paired by seed."""
    pairs = [
        (loss_on_clusters(own, clusters) - loss_on_clusters(arms[UNIFORM][seed], clusters)).isel(tokens=-1, drop=True)
        for seed, own in arms[arm].items()
    ]
    return xr.concat(pairs, pd.Index(list(arms[arm]), name="seed"))


def weighted(arms: Arms) -> list[str]:
    """All arms but uniform."""
    return [arm for arm in arms if arm != UNIFORM]


def final_curves(seeds: Mapping[str, xr.Dataset]) -> xr.DataArray:
    """Final id loss (seed, position) on all documents."""
    final = [surface.loss.sel(split="id").isel(tokens=-1, drop=True) for surface in seeds.values()]
    return xr.concat(final, pd.Index(list(seeds), name="seed"))


def arm_table(arms: Arms, rates: Mapping[str, float]) -> pd.DataFrame:
    """A row an arm: paired differences on the final half of the documents, with tests.

    Where runs are kept by position, also the fit of the arm's last curves.
    """
    rows = []
    for arm in weighted(arms):
        inner = differences(arms, arm).mean("position")
        all_documents = differences(arms, arm, slice(None)).mean("position").sel(split="id")
        rows.append(
            {
                "arm": arm,
                "learning_rate": rates[arm],
                **equivalence(inner.sel(split="id").values, MARGIN).columns("difference"),
                "sd_of_pairs": float(inner.sel(split="id").std(ddof=1)),
                **interval(all_documents.values, LEVEL).columns("all_documents"),
                **interval(inner.sel(split="ood").values, LEVEL).columns("ood"),
                **_fit_of(final_curves(arms[arm])),
            }
        )
    return verdicts(pd.DataFrame(rows), "difference", ("gain", "loss"))


def _fit_of(curves: xr.DataArray) -> dict[str, Any]:
    """How jaxopt's fit of the curves compares with ours; nothing of losses that are means over positions."""
    return solver_comparison.beside(tsl.laws.HYPERBOLIC, curves, over="position") if curves.position.size > 1 else {}


def downstream_table(arms: Arms, measured: pd.DataFrame) -> pd.DataFrame:
    """A row an arm: accuracy and loss of continuations, paired differences from uniform's, with tests.

    Args:
        measured: of `downstream`: run, accuracy, continuation_loss.
    """
    rows = []
    for arm in weighted(arms):
        of_arm = measured.set_index("arm").loc[[arm]].set_index("seed").sort_index()
        base = measured.set_index("arm").loc[[UNIFORM]].set_index("seed").loc[of_arm.index]
        gained = (of_arm.accuracy - base.accuracy).to_numpy()
        lost = (of_arm.continuation_loss - base.continuation_loss).to_numpy()
        row = {"arm": arm, "uniform_accuracy": float(base.accuracy.mean())}
        row |= equivalence(gained, MARGIN).columns("accuracy")
        rows.append(row | interval(lost, LEVEL).columns("continuation_loss"))
    return verdicts(pd.DataFrame(rows), "accuracy", ("loss", "gain"))


def measured_downstream(arms: Arms) -> pd.DataFrame:
    """What `downstream` kept of the final runs: arm, seed, accuracy, continuation_loss; no rows before it has run."""
    kept = pd.read_csv(downstream.KEPT) if downstream.KEPT.exists() else pd.DataFrame({"run": []})
    named = [arm_rate_seed(name) for name in kept.run]
    kept = kept.assign(arm=[arm for arm, _, _ in named], seed=[seed for _, _, seed in named])
    wanted = {(arm, seed) for arm, seeds in arms.items() for seed in seeds}
    there = [(arm, seed) in wanted for arm, seed in zip(kept.arm, kept.seed, strict=True)]
    return kept[np.array(there, bool)]


def detectable_effects(runs: Runs, arms: Arms) -> tuple[float, float]:
    """Minimal detectable effects of five pairs, nats: by pairs of the pool beforehand, by the spread that came."""
    pairs = []
    for seed in range(PAIRS):
        cosine, wsd = (runs.surfaces[f"small-{kind}@{seed}"] for kind in ("cosine", "wsd"))
        at = int(cosine.tokens.sel(tokens=EARLY * float(cosine.tokens[-1]), method="nearest"))
        pairs.append(float((cosine.loss - wsd.loss).sel(split="id", tokens=at).mean()))
    came = [float(differences(arms, arm).sel(split="id").mean("position").std(ddof=1)) for arm in weighted(arms)]
    return detectable(float(np.std(pairs, ddof=1)), PAIRS), detectable(float(np.median(came)), PAIRS)


# ----------------------------------------------------------------------------------------------- the law, and forecasts


def law_table(arms: Arms) -> pd.DataFrame:
    """a0, a1, a2 of the last checkpoint, id, positions 1 to 128: uniform's values, and the arms' paired differences."""
    curves = {arm: final_curves(seeds) for arm, seeds in arms.items()}
    fits = {arm: tsl.fit(tsl.laws.HYPERBOLIC, curve, over="position") for arm, curve in curves.items()}
    rows = []
    for arm, fit in fits.items():
        values = fit.params if arm == UNIFORM else fit.params - fits[UNIFORM].params
        row: dict[str, Any] = {"arm": arm, "is": "value" if arm == UNIFORM else "minus uniform"}
        for name in ("a0", "a1", "a2"):
            row |= interval(values.sel(param=name).values, LEVEL).columns(name)
        row["r2"] = float(fit.r2.mean())
        rows.append(row | solver_comparison.beside(tsl.laws.HYPERBOLIC, curves[arm], over="position"))
    return pd.DataFrame(rows)


def forecast_table(arms: Arms) -> pd.DataFrame:
    """Error of the final mean loss, id, forecast from 40 % of the run, by arm and method."""
    rows = []
    for arm, seeds in arms.items():
        for method in METHODS:
            ends = [final_errors(surface, method, CUTOFF)["id"] for surface in seeds.values()]
            errors, inside = np.array(ends, float).T
            name = method if isinstance(method, str) else method.name
            rows.append({"arm": arm, "method": name, **error_columns(errors, inside, LEVEL)})
    return pd.DataFrame(rows)


# ---------------------------------------------------------------------------------------------------- the conclusions


def analyse(runs: Runs) -> Findings:
    """Development, final comparisons, the law, the forecasts, and the verdict on the paper's claim."""
    developed = development(runs.surfaces)
    rates = chosen(developed)
    arms = final_runs(runs, rates)
    table = arm_table(arms, rates)
    more_arms = final_runs(runs, rates, MORE)
    more = arm_table(more_arms, rates) if more_arms[UNIFORM] else table.iloc[:0]
    tables = {"arms": table, "more_seeds": more, "law": law_table(arms), "forecasts": forecast_table(arms)}
    tables |= {"learning_rates": developed}
    larger_developed = development(runs.surfaces, LARGER)
    larger_rates = chosen(larger_developed)
    larger_arms = final_runs(runs, larger_rates, LARGER)
    larger = arm_table(larger_arms, larger_rates) if larger_arms[UNIFORM] else table.iloc[:0]
    kept = measured_downstream(larger_arms)
    below = downstream_table(larger_arms, kept) if len(kept) else table.iloc[:0]
    tables |= {"larger": larger, "downstream": below, "larger_learning_rates": larger_developed}
    tables = {name: rows for name, rows in tables.items() if len(rows)}
    pairs = {arm: differences(arms, arm).sel(split="id") for arm in weighted(arms)}
    weights = {arm: updates(runs, arm) for arm in ADAPTIVE}
    if larger_arms[UNIFORM]:
        weights |= {f"{arm}, 222k": updates(runs, arm, LARGER) for arm in weighted(larger_arms)}
    drawn = plots.figures(arms, pairs, weights, UNIFORM, MARGIN, LEVEL)
    said = [*notes(runs, arms), *larger_notes(runs, larger_arms)]
    return Findings(tables, [*claims(table, more), *larger_claims(larger, below)], said, *drawn)


def larger_claims(larger: pd.DataFrame, below: pd.DataFrame) -> list[Claim]:
    """About the rules that follow the run, at nine times the parameters: the loss, and the choice of continuations."""
    made = []
    shown = ("arm", "pairs", "verdict", "p_holm")
    for table, name, unit, sentence in (
        (larger, "difference", "nats", "At nine times the parameters no weighting that follows the run beats the mean"),
        (below, "accuracy", "of the items", "None of them chooses the true continuation of a text more often"),
    ):
        if not len(table):
            continue
        best = table.sort_values(name, ascending=name == "difference").iloc[0]
        gained = table.verdict.str.startswith("gain").any()
        none = (table.equivalence == EQUIVALENT) | table.verdict.str.startswith("loss")
        ours = f"the best is {best.arm.replace('_', ' ')}: {best[name]:+.4f} {unit}, {best.verdict}"
        verdict = "differs" if gained else "agrees" if none.all() else "undecided"
        columns = ("arm", name, f"{name}_low", f"{name}_high", *shown[1:])
        made.append(Claim(sentence, "not asked", ours, verdict, "", rounded(table, *columns)))
    return made


def larger_notes(runs: Runs, arms: Arms) -> list[str]:
    """What the runs of the third plan could show, and whether learnable_excess followed its law there."""
    if not arms[UNIFORM]:
        return []
    spread = [float(differences(arms, arm).sel(split="id").mean("position").std(ddof=1)) for arm in weighted(arms)]
    pairs = len(arms[UNIFORM])
    messages = [message for update in updates(runs, "learnable_excess", LARGER) for message in update["said"]]
    used = sum(not message.startswith("weights kept") for message in messages)
    return [
        f"222k parameters: {pairs} pairs of spread {min(spread):.4f} to {max(spread):.4f} detect "
        f"{detectable(float(np.median(spread)), pairs):.4f} nats with a power of .8 (median spread).",
        f"222k parameters: learnable_excess had a usable fit at {used} of {len(messages)} updates.",
    ]


def claims(table: pd.DataFrame, more: pd.DataFrame) -> list[Claim]:
    """About the paper's three arms, and about all arms; the second plan's verdicts count for its own arms."""

    def verdict(rows: pd.DataFrame) -> str:
        if rows.verdict.str.startswith("gain").any():
            return "differs"
        no_gain = (rows.equivalence == EQUIVALENT) | rows.verdict.str.startswith("loss")
        return "agrees" if no_gain.all() else "undecided"

    shown = ("arm", "difference", "difference_low", "difference_high", "pairs", "verdict")
    suppressed = table[table.arm.isin(SUPPRESSED)]
    judged = pd.concat([table[~table.arm.isin(more.arm)], more])
    best = judged.sort_values("difference").iloc[0]
    return [
        Claim(
            "Suppressing head, middle or tail positions brings no gain over the plain mean",
            "no gain (ablation)",
            f"costs {suppressed.difference.min():.3f} to {suppressed.difference.max():.3f} nats",
            verdict(suppressed),
            "",
            rounded(suppressed, *shown),
        ),
        Claim(
            "No weighting tried here, boosts and adaptive ones included, beats the plain mean",
            "not asked",
            f"the best is {best.arm.replace('_', ' ')}: {best.difference:+.4f} nats, {best.verdict}",
            verdict(judged),
            "",
            rounded(judged.sort_values("difference"), *shown),
        ),
    ]


def notes(runs: Runs, arms: Arms) -> list[str]:
    """The level, what could be seen, and how often an adaptive arm had no fit."""
    before, came = detectable_effects(runs, arms)
    finals = [
        loss_on_clusters(surface, FINAL).sel(split="id").isel(tokens=-1).mean() for surface in arms[UNIFORM].values()
    ]
    loss = interval([float(final) for final in finals], LEVEL)
    messages = [message for update in updates(runs, "learnable_excess") for message in update["said"]]
    kept = sum(message.startswith("weights kept") for message in messages)
    return [
        f"Uniform ends at {loss.mean:.4f} nats on the final half of the documents [{loss.low:.4f}, {loss.high:.4f}] "
        "over seeds (90 %); differences are paired.",
        f"Minimal detectable effect of {PAIRS} pairs: {before:.4f} nats by pairs of the pool, computed beforehand; "
        f"{came:.4f} by the median spread of the pairs that came. The margin is {MARGIN}.",
        f"learnable_excess: at {kept} of {len(messages)} updates the fit was not usable, and the weights were kept.",
    ]


def updates(runs: Runs, arm: str, start: str = FIRST) -> list[Mapping[str, Any]]:
    """What the final runs of an adaptive arm kept of their weights."""
    return [
        manifest["probes"]["weights"]
        for name, manifest in runs.manifests.items()
        if name.startswith(f"{start}{arm}-") and arm_rate_seed(name)[2] != DEVELOPMENT_SEED
    ]


STUDY = Study(
    name="position_weighting",
    title="Does any weighting of positions in training beat the plain mean?",
    decided="2026-11-26",
    analyse=analyse,
    minutes=2,
)

if __name__ == "__main__":
    STUDY.main()
