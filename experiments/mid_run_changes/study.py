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
from experiments.shared import Claim, Findings, Runs, Study
from experiments.shared import solver_comparison as lm
from experiments.shared.seeds_and_intervals import (
    DIFFERENT,
    EQUIVALENT,
    Equivalence,
    bands,
    equivalence,
    holm,
    interval,
)
from experiments.shared.surface_measures import final_errors, in_bands, parameter_path

MARGIN, MARGIN_OF_FORECASTS = 0.01, 0.02  # nats
LEVEL = 0.9
TWIN, MIXTURE, CHANGE = "none", "mixture", 0.5
PLACES = (0.55, 0.6, 0.75, 1.0)  # shares of the run
CUTOFFS = (0.4, 0.5, 0.55, 0.6, 0.7)
JUDGED = "mean_annealing"  # the method that the claims are about
METHODS = (JUDGED, "annealing", "temporal", tsl.baselines.POWER_LAW)
SPLITS = ("id", "ood")

Arms = Mapping[str, Mapping[str, xr.Dataset]]  # arm -> seed -> surface


def arms_of(runs: Runs) -> Arms:
    """The runs by arm and seed, the unchanged ones first.

    Raises:
        ValueError: where an arm has other seeds or checkpoints than its twin.
    """
    found: dict[str, dict[str, xr.Dataset]] = {TWIN: {}}
    for name, surface in runs.named("change-").items():
        told, _, seed = name.removeprefix("change-").partition("@")
        found.setdefault(told.partition("-")[0], {})[seed] = surface  # a size may follow: change-none-9.8m@0
    for arm, own in found.items():
        if list(own) != list(found[TWIN]):
            raise ValueError(f"plan: {arm} has the seeds {list(own)}, its twin {list(found[TWIN])}; give it the same")
        if any(not np.array_equal(one.tokens, found[TWIN][seed].tokens) for seed, one in own.items()):
            raise ValueError(f"plan: {arm} is measured at other tokens than its twin; choose batches that divide them")
    return found


def changed(arms: Arms) -> list[str]:
    """All arms but the unchanged one."""
    return [arm for arm in arms if arm != TWIN]


def at(one: xr.Dataset | xr.DataArray, share: float) -> Any:
    """The checkpoint nearest to a share of the run."""
    return one.sel(tokens=share * float(one.tokens[-1]), method="nearest")


def differences(arms: Arms, arm: str, split: str) -> xr.DataArray:
    """Arm minus twin, loss (seed, tokens, position)."""
    pairs = [(own.loss - arms[TWIN][seed].loss).sel(split=split) for seed, own in arms[arm].items()]
    return xr.concat(pairs, pd.Index(list(arms[arm]), name="seed"))


# ------------------------------------------------------------------------------------------------- losses, and the law


def main_table(arms: Arms) -> pd.DataFrame:
    """A row an arm and split: paired differences of the mean loss along the way, the verdict on the end."""
    rows = [_row(arms, arm, split) for split in SPLITS for arm in changed(arms)]
    table = pd.DataFrame(rows)
    adjusted = table.groupby("split").p.transform(lambda p: holm(p))
    table.insert(8, "p, Holm", adjusted)
    table.insert(9, "verdict", [_verdict(row) for row in table.to_dict("records")])
    return table


def _row(arms: Arms, arm: str, split: str) -> dict[str, Any]:
    mean = differences(arms, arm, split).mean("position")
    tested = equivalence(at(mean, 1.0).values, MARGIN)
    row: dict[str, Any] = {"split": split, "arm": arm}
    row |= {f"at {share:.0%}, nats (90 %)": str(interval(at(mean, share).values, LEVEL)) for share in PLACES}
    row |= {"p equivalent": tested.p_equivalent, "p": tested.p_different, "equivalence": tested.verdict}
    row |= {"mean": tested.interval.mean, "sd of pairs": float(at(mean, 1.0).std(ddof=1))}
    ends = xr.concat([at(own.loss.sel(split=split), 1.0) for own in arms[arm].values()], "seed")
    return row | lm.beside(tsl.laws.HYPERBOLIC, ends.drop_vars("tokens"), over="position")


def _verdict(row: Mapping[str, Any]) -> str:
    if row["equivalence"] == EQUIVALENT:
        return "no difference: equivalent"
    if row["p, Holm"] < 0.05:
        return "lower" if row["mean"] < 0 else "higher"
    return "undecided"


def law_table(arms: Arms) -> pd.DataFrame:
    """a0, a1, a2 on id: the twin's values at each place, and what an arm has beyond them, paired."""
    fits = {arm: _params(own) for arm, own in arms.items()}
    rows = []
    for arm, found in fits.items():
        for share in PLACES:
            own, twin = at(found, share), at(fits[TWIN], share)
            shown = own if arm == TWIN else own - twin
            row: dict[str, Any] = {"arm": arm, "is": "value" if arm == TWIN else "minus none", "at": f"{share:.0%}"}
            for name in ("a0", "a1", "a2"):
                values = shown.sel(param=name).values
                row[name] = str(interval(values, LEVEL))
                row[f"p {name}"] = np.nan if arm == TWIN else equivalence(values, 1.0).p_different
            losses = xr.concat([at(one.loss.sel(split="id"), share) for one in arms[arm].values()], "seed")
            rows.append(row | lm.beside(tsl.laws.HYPERBOLIC, losses.drop_vars("tokens"), over="position"))
    return _adjusted(pd.DataFrame(rows))


def _params(own: Mapping[str, xr.Dataset]) -> xr.DataArray:
    """(seed, tokens, param) of the runs of an arm."""
    losses = xr.concat([one.loss.sel(split="id") for one in own.values()], pd.Index(list(own), name="seed"))
    return tsl.fit(tsl.laws.HYPERBOLIC, losses, over="position").params


def _adjusted(table: pd.DataFrame) -> pd.DataFrame:
    """With "moves": the parameters whose difference is not zero, of all arms at the two places that the plan names."""
    judged = (table.arm != TWIN) & table["at"].isin(("60%", "100%"))
    moves = {index: [] for index in table.index}
    for name in ("a0", "a1", "a2"):
        for index, p in zip(table.index[judged], holm(table.loc[judged, f"p {name}"]), strict=True):
            moves[index] += [name] if p < 0.05 else []
    told = [", ".join(moves[index]) if judged[index] else "" for index in table.index]
    return table.assign(moves=told)


# ---------------------------------------------------------------------------------------------------------- forecasts


def forecast_table(arms: Arms) -> pd.DataFrame:
    """A row a split, method, cut-off and arm: errors of the final loss, and |error| beyond that of the twin, paired."""
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for method in METHODS:
        for cutoff in CUTOFFS:
            made = {arm: [final_errors(one, method, cutoff) for one in own.values()] for arm, own in arms.items()}
            for split in SPLITS:
                errors = {arm: np.array([one[split] for one in found], float) for arm, found in made.items()}
                rows[split] += [_forecast_row(errors, arm, method, cutoff, split) for arm in arms]
    return pd.DataFrame([row for split in SPLITS for row in rows[split]])


def _forecast_row(errors: Mapping[str, np.ndarray], arm: str, method: Any, cutoff: float, split: str) -> dict[str, Any]:
    error, inside = errors[arm].T
    beyond = abs(error) - abs(errors[TWIN][:, 0])
    known = inside[np.isfinite(inside)]
    tested = equivalence(beyond[np.isfinite(beyond)], MARGIN_OF_FORECASTS)
    return {
        "split": split,
        "method": method if isinstance(method, str) else method.name,
        "from": f"{cutoff:.0%}",
        "arm": arm,
        "mean error, nats (90 %)": str(interval(error, LEVEL)),
        "mean absolute error": float(np.nanmean(abs(error))) if np.isfinite(error).any() else np.nan,
        "without forecast": int(np.isnan(error).sum()),
        "inside 90 %": f"{int(known.sum())} of {len(known)}",
        "beyond twin": "" if arm == TWIN else str(tested.interval),
        "as good": "" if arm == TWIN else _as_good(tested),
    }


def _as_good(tested: Equivalence) -> str:
    if tested.verdict == DIFFERENT:
        return "worse" if tested.interval.mean > 0 else "better"
    return "as good" if tested.verdict == EQUIVALENT else "undecided"


# -------------------------------------------------------------------------------------------------------- what is told


def analyse(runs: Runs) -> Findings:
    """Losses, the law, forecasts, and the verdicts."""
    arms = arms_of(runs)
    main, law, forecasts = main_table(arms), law_table(arms), forecast_table(arms)
    tables = {"losses": main, "law": law, "forecasts": forecasts}
    notes = [_checkpoints(arms), *_notes(main, law), *_missed(forecasts)]
    return Findings(tables, _claims(main, forecasts), notes, *_figures(arms, forecasts))


def _claims(main: pd.DataFrame, forecasts: pd.DataFrame) -> list[Claim]:
    end = main[(main.split == "id") & (main.arm == "rollback")].iloc[0]
    rollback = {EQUIVALENT: "agrees", DIFFERENT: "differs"}.get(end.equivalence, "undecided")
    place = next(name for name in main if name.startswith("at 100%"))
    return [
        _of_forecasts(forecasts, "40%", "A forecast of the final loss from 40 % survives a change at 50 %"),
        _of_forecasts(forecasts, "60%", "Once the change is past, at 60 %, forecasts are as good as without it"),
        Claim("A rollback that skips the data of a spike leaves the end of the run as it was", "not asked",
              f"{end[place]} nats on id ({end.equivalence})", rollback,
              "" if rollback == "agrees" else "another order of the data moves the end of so short a run"),
    ]  # fmt: skip


def _of_forecasts(forecasts: pd.DataFrame, cutoff: str, claim: str) -> Claim:
    own = forecasts[(forecasts.split == "id") & (forecasts.method == JUDGED) & (forecasts["from"] == cutoff)]
    own = own[own.arm != TWIN]
    ours = "; ".join(f"{row.arm} {row['beyond twin']} ({row['as good']})" for _, row in own.iterrows())
    said = own["as good"]
    verdict = "differs" if (said == "worse").any() else "agrees" if (said == "as good").all() else "undecided"
    return Claim(claim, "not asked", f"|error| of {JUDGED} beyond the twin's, nats, id: {ours}", verdict)


def _checkpoints(arms: Arms) -> str:
    """Where the checkpoints lie that stand for the shares of the plan."""
    tokens = next(iter(arms[TWIN].values())).tokens
    share = tokens.values / float(tokens[-1])
    near = ", ".join(f"{place:.0%}: {share[abs(share - place).argmin()]:.1%}" for place in PLACES)
    last = ", ".join(f"{cutoff:.0%}: {share[share <= cutoff + 1e-9].max():.1%}" for cutoff in CUTOFFS)
    return f"The checkpoints nearest to the places named lie at ({near}); forecasts see checkpoints up to ({last})."


def _missed(forecasts: pd.DataFrame) -> list[str]:
    """Arms and cut-offs whose 90 % intervals held fewer than four of five ends, id, by method."""
    told = []
    for method, rows in forecasts[forecasts.split == "id"].groupby("method", sort=False):
        held = rows["inside 90 %"].str.split(" of ", expand=True).astype(int)
        bad = rows[(held[0] < 0.8 * held[1]).values]
        each = ", ".join(f"{row.arm} from {row['from']} {row['inside 90 %']}" for _, row in bad.iterrows())
        told.append(f"90 % intervals of {method} that held fewer than four fifths of the ends, id: {each or 'none'}.")
    return told


def _notes(main: pd.DataFrame, law: pd.DataFrame) -> list[str]:
    places = [name for name in main if name.startswith("at ")]
    told = [
        f"{row.arm}, {row.split}: " + "; ".join(f"{name.split(',')[0]} {row[name]}" for name in places)
        + f" nats; the end is {row.verdict}."
        for _, row in main.iterrows()
    ]  # fmt: skip
    moved = law[(law.moves != "")]
    law_told = [
        f"{row.arm} at {row['at']}: {row.moves} move (a0 {row.a0}, a1 {row.a1}, a2 {row.a2})."
        for _, row in moved.iterrows()
    ]
    return [*told, *(law_told or ["No parameter moves beyond what five seeds can tell."])]


def _figures(arms: Arms, forecasts: pd.DataFrame) -> tuple[dict[str, Any], dict[str, str]]:
    from tsl_jax.reporting import plots as draw

    later, by_arm, seeds = {}, {}, {}
    for arm in changed(arms):
        difference = differences(arms, arm, "id")
        mean = difference.mean("position")
        after = mean.sel(tokens=slice(0.98 * CHANGE * float(mean.tokens[-1]), None))
        found = [interval(after.sel(tokens=t).values, LEVEL) for t in after.tokens]
        share = 100 * after.tokens.values / float(mean.tokens[-1])
        later[arm] = (share, [one.mean for one in found], [one.low for one in found], [one.high for one in found])
        last = in_bands(at(difference, 1.0).drop_vars("tokens"))
        band = bands(last.values, LEVEL)
        by_arm[arm], seeds[arm] = (band["mean"].values, band.low.values, band.high.values), last.values
    end = float(next(iter(arms[TWIN].values())).tokens[-1])
    paths = {arm: parameter_path(own) for arm, own in arms.items()}
    others = {arm: one for arm, one in paths.items() if arm not in (TWIN, MIXTURE)}
    figures = {
        "differences": draw.lines_with_bands(later, "tokens seen (% of the run)", "loss minus none (nats)"),
        "parameters": draw.parameter_paths({TWIN: paths[TWIN], **others}, marks=[CHANGE * end]),
        "parameters_mixture": draw.parameter_paths({arm: paths[arm] for arm in (TWIN, MIXTURE)}, marks=[CHANGE * end]),
        "by_position": draw.differences_by_position(last.position.values, by_arm, seeds=seeds, margin=MARGIN),
        "forecasts": draw.lines_with_bands(
            _by_cutoff(forecasts), "forecast from (% of the run)", "mean |error| of the final loss (nats)"
        ),
    }
    captions = {
        "differences": "Held-out loss (id) of each arm minus that of its unchanged twin after the change at 50 %, "
        "mean of five seeds with 90 % intervals.",
        "parameters": "a0, a1 and a2 over training (positions 1 to 128, id), mean of the seeds and its standard error; "
        "the line marks the change.",
        "parameters_mixture": "The same where the mixture changes: on text that is hardly trained on any more, a0 and "
        "a1 of single fits run away together.",
        "by_position": "Final loss minus the twin's by band of positions (1, 2, 3-4, 5-8, ...), id, with simultaneous "
        "90 % bands; thin lines are seeds, dashed the margin of equivalence.",
        "forecasts": "Mean absolute error of the final loss, id, forecast by mean_annealing from each cut-off, by arm; "
        "rollback lies on none.",
    }
    return figures, captions


def _by_cutoff(forecasts: pd.DataFrame) -> dict[str, tuple[Any, Any, None, None]]:
    own = forecasts[(forecasts.split == "id") & (forecasts.method == JUDGED) & (forecasts.arm != "rollback")]
    cutoffs = [100 * cutoff for cutoff in CUTOFFS]
    return {
        arm: (cutoffs, rows["mean absolute error"].values, None, None) for arm, rows in own.groupby("arm", sort=False)
    }


STUDY = Study(
    name="mid_run_changes",
    title="What do changes in mid-run do to the law and to forecasts?",
    decided="2026-11-26",
    analyse=analyse,
    minutes=2,
)

if __name__ == "__main__":
    STUDY.main()
