"""What do changes in mid-run do to the loss by position, to a0, a1, a2, and to forecasts of the end?

Paper: Temporal Scaling Law (Xiong et al., arXiv 2404.17785) keeps data, batch and schedule as they
are; this is beyond it.

    tsl reproduce mid_run_changes        the same as: python -m experiments.mid_run_changes.study

The dated plan and what came out: README.md beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

import tsl_jax as tsl
from experiments.mid_run_changes import plots
from experiments.shared import Claim, Findings, Runs, Study, solver_comparison
from experiments.shared.paired_differences import DIFFERENT, EQUIVALENT, equivalence, holm, verdicts
from experiments.shared.seeds_and_intervals import interval
from experiments.shared.surface_measures import error_columns, final_errors
from experiments.shared.tables import rounded

MARGIN, MARGIN_OF_FORECASTS = 0.01, 0.02  # nats
LEVEL, ALPHA = 0.9, 0.05
TWIN = "none"
PLACES, PARAMETER_PLACES = (0.55, 0.6, 0.75, 1.0), (0.6, 1.0)  # shares of the run
CUTOFFS = (0.4, 0.5, 0.55, 0.6, 0.7)
JUDGED = "mean_annealing"  # the method that the claims are about
METHODS = (JUDGED, "annealing", "temporal", tsl.baselines.POWER_LAW)
SPLITS, PARAMETERS = ("id", "ood"), ("a0", "a1", "a2")

Arms = Mapping[str, Mapping[str, xr.Dataset]]  # arm -> seed -> surface


def arms_of(runs: Runs) -> Arms:
    """The runs by arm and seed, the unchanged ones first.

    Raises:
        ValueError: where an arm has other seeds or checkpoints than its twin.
    """
    arms: dict[str, dict[str, xr.Dataset]] = {TWIN: {}}
    for name, surface in runs.named("change-").items():
        arm, _, seed = name.removeprefix("change-").partition("@")
        arms.setdefault(arm.partition("-")[0], {})[seed] = surface  # a size may follow: change-none-9.8m@0
    for arm, seeds in arms.items():
        if list(seeds) != list(arms[TWIN]):
            raise ValueError(f"plan: {arm} has the seeds {list(seeds)}, its twin {list(arms[TWIN])}; give it the same")
        if any(not np.array_equal(surface.tokens, arms[TWIN][seed].tokens) for seed, surface in seeds.items()):
            raise ValueError(f"plan: {arm} is measured at other tokens than its twin; choose batches that divide them")
    return arms


def changed(arms: Arms) -> list[str]:
    """All arms but the unchanged one."""
    return [arm for arm in arms if arm != TWIN]


def at(values: xr.DataArray, share: float) -> xr.DataArray:
    """The checkpoint nearest to a share of the run."""
    return values.sel(tokens=share * float(values.tokens[-1]), method="nearest")


def differences(arms: Arms, arm: str, split: str) -> xr.DataArray:
    """Arm minus twin, loss (seed, tokens, position)."""
    pairs = [(surface.loss - arms[TWIN][seed].loss).sel(split=split) for seed, surface in arms[arm].items()]
    return xr.concat(pairs, pd.Index(list(arms[arm]), name="seed"))


# ------------------------------------------------------------------------------------------------- losses, and the law


def loss_table(arms: Arms) -> pd.DataFrame:
    """A row an arm and split: paired differences of the mean loss along the way, the verdict on the end."""
    rows = []
    for split in SPLITS:
        for arm in changed(arms):
            mean = differences(arms, arm, split).mean("position")
            row: dict[str, Any] = {"split": split, "arm": arm}
            for share in PLACES[:-1]:
                row |= interval(at(mean, share).values, LEVEL).columns(f"at_{share:g}")
            row |= equivalence(at(mean, 1.0).values, MARGIN).columns("at_end")
            row["sd_of_pairs"] = float(at(mean, 1.0).std(ddof=1))
            rows.append(row | _solvers(arms, arm, 1.0, split))
    return verdicts(pd.DataFrame(rows), "at_end", ("lower", "higher"), groups=["split"])


def _solvers(arms: Arms, arm: str, share: float, split: str) -> dict[str, float]:
    """The lm columns of the law on the losses of an arm at a share of the run."""
    losses = xr.concat([at(surface.loss.sel(split=split), share) for surface in arms[arm].values()], "seed")
    return solver_comparison.beside(tsl.laws.HYPERBOLIC, losses.drop_vars("tokens"), over="position")


def law_table(arms: Arms) -> pd.DataFrame:
    """a0, a1, a2 on id: the twin's values at each place, and what an arm has beyond them, paired.

    "moves" names the parameters whose difference is not zero, of all arms at the two places that the plan names.
    """
    params = {arm: _params(seeds) for arm, seeds in arms.items()}
    rows = []
    for arm, own in params.items():
        for share in PLACES:
            values = at(own, share) if arm == TWIN else at(own, share) - at(params[TWIN], share)
            row: dict[str, Any] = {"arm": arm, "is": "value" if arm == TWIN else "minus none", "at": share}
            for name in PARAMETERS:
                value = values.sel(param=name).values
                row |= interval(value, LEVEL).columns(name)
                row[f"p_{name}"] = np.nan if arm == TWIN else equivalence(value, 1.0).p_different
            rows.append(row | _solvers(arms, arm, share, "id"))
    table = pd.DataFrame(rows)
    judged = (table.arm != TWIN) & table["at"].isin(PARAMETER_PLACES)
    moves = pd.DataFrame({name: holm(table.loc[judged, f"p_{name}"]) < ALPHA for name in PARAMETERS})
    names = [", ".join(moves.columns[row]) for row in moves.to_numpy()]
    return table.assign(moves=pd.Series(names, table.index[judged]).reindex(table.index, fill_value=""))


def _params(seeds: Mapping[str, xr.Dataset]) -> xr.DataArray:
    """(seed, tokens, param) of the runs of an arm."""
    losses = [surface.loss.sel(split="id") for surface in seeds.values()]
    stacked = xr.concat(losses, pd.Index(list(seeds), name="seed"))
    return tsl.fit(tsl.laws.HYPERBOLIC, stacked, over="position").params


# ---------------------------------------------------------------------------------------------------------- forecasts


def forecast_table(arms: Arms) -> pd.DataFrame:
    """A row a split, method, cut-off and arm: errors of the final loss, and |error| beyond that of the twin, paired."""
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for method in METHODS:
        name = method if isinstance(method, str) else method.name
        for cutoff in CUTOFFS:
            made = {
                arm: [final_errors(surface, method, cutoff) for surface in seeds.values()]
                for arm, seeds in arms.items()
            }
            for split in SPLITS:
                pairs = {arm: np.array([ends[split] for ends in of_arm], float).T for arm, of_arm in made.items()}
                for arm, (error, inside) in pairs.items():
                    row = {"split": split, "method": name, "cutoff": cutoff, "arm": arm}
                    row |= error_columns(error, inside, LEVEL)
                    rows[split].append(row | _beyond(abs(error) - abs(pairs[TWIN][0]), arm))
    return pd.DataFrame([row for split in SPLITS for row in rows[split]])


def _beyond(excess: np.ndarray, arm: str) -> dict[str, Any]:
    """|error| beyond the twin's over seeds: its interval, and whether the forecast is as good."""
    tested = equivalence(excess[np.isfinite(excess)], MARGIN_OF_FORECASTS)
    if arm == TWIN:
        return {"beyond_twin": np.nan, "beyond_twin_low": np.nan, "beyond_twin_high": np.nan, "as_good": ""}
    words = {EQUIVALENT: "as good", DIFFERENT: "worse" if tested.interval.mean > 0 else "better"}
    return {**tested.interval.columns("beyond_twin"), "as_good": words.get(tested.verdict, "undecided")}


# ---------------------------------------------------------------------------------------------------- the conclusions


def analyse(runs: Runs) -> Findings:
    """Losses, the law, forecasts, and the verdicts."""
    arms = arms_of(runs)
    losses, law, forecasts = loss_table(arms), law_table(arms), forecast_table(arms)
    tables = {"losses": losses, "law": law, "forecasts": forecasts, "places": places(arms)}
    lines = {arm: differences(arms, arm, "id") for arm in changed(arms)}
    drawn = plots.figures(arms, lines, forecasts[forecasts.method == JUDGED], TWIN, MARGIN, LEVEL)
    return Findings(tables, claims(losses, forecasts), notes(law), *drawn)


def claims(losses: pd.DataFrame, forecasts: pd.DataFrame) -> list[Claim]:
    """The three of the plan, on id."""
    end = losses[(losses.split == "id") & (losses.arm == "rollback")].iloc[0]
    rollback = {EQUIVALENT: "agrees", DIFFERENT: "differs"}.get(end.equivalence, "undecided")
    return [
        _of_forecasts(forecasts, 0.4, "A forecast of the final loss from 40 % survives a change at 50 %"),
        _of_forecasts(forecasts, 0.6, "Once the change is past, at 60 %, forecasts are as good as without it"),
        Claim(
            "A rollback that skips the data of a spike leaves the end of the run as it was",
            "not asked",
            f"the ends on id are {end.equivalence}",
            rollback,
            "" if rollback == "agrees" else "another order of the data moves the end of so short a run",
            rounded(end.to_frame().T, "arm", "split", "at_end", "at_end_low", "at_end_high", "pairs"),
        ),
    ]


def _of_forecasts(forecasts: pd.DataFrame, cutoff: float, claim: str) -> Claim:
    own = forecasts[(forecasts.split == "id") & (forecasts.method == JUDGED) & (forecasts.cutoff == cutoff)]
    own = own[own.arm != TWIN]
    by_verdict = own.groupby("as_good", sort=False).arm.agg(", ".join)
    ours = "; ".join(f"{word}: {arms.replace('_', ' ')}" for word, arms in by_verdict.items())
    numbers = rounded(own, "arm", "beyond_twin", "beyond_twin_low", "beyond_twin_high", "as_good")
    worse, as_good = (own.as_good == "worse").any(), (own.as_good == "as good").all()
    verdict = "differs" if worse else "agrees" if as_good else "undecided"
    return Claim(claim, "not asked", f"forecasts beside the twin's, id, {ours}", verdict, "", numbers)


def places(arms: Arms) -> pd.DataFrame:
    """Which checkpoints stand for the shares of the plan: the nearest for losses, the last before for forecasts."""
    tokens = next(iter(arms[TWIN].values())).tokens
    share = tokens.values / float(tokens[-1])
    near = [("losses and the law", place, share[abs(share - place).argmin()]) for place in PLACES]
    last = [("forecasts see", cutoff, share[share <= cutoff + 1e-9].max()) for cutoff in CUTOFFS]
    return pd.DataFrame([*near, *last], columns=["kind", "named", "nearest"])


def notes(law: pd.DataFrame) -> list[str]:
    """Which parameters move, and where numbers stand."""
    moved = law[law.moves != ""].groupby("moves", sort=False).arm.unique()
    which = "; ".join(f"{names} under {', '.join(arms)}" for names, arms in moved.items()).replace("_", " ")
    return [
        f"Parameters that move beyond what the seeds can tell: {which or 'none'}.",
        "Along the way the losses of the arms stand in the table of losses; how many of the 90 % intervals held the "
        "end stands in the table of forecasts.",
    ]


STUDY = Study(
    name="mid_run_changes",
    title="What do changes in mid-run do to the law and to forecasts?",
    decided="2026-11-26",
    analyse=analyse,
    minutes=2,
)

if __name__ == "__main__":
    STUDY.main()
