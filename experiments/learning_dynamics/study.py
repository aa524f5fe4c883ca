"""Do all positions learn at the same rate after the early phase?

Paper: Temporal Scaling Law (Xiong et al., arXiv 2404.17785), section on learning dynamics: after an early phase the
loss of every position falls at the same rate, which is its reason for training with the plain mean over positions.

    tsl reproduce learning_dynamics        the same as: python -m experiments.learning_dynamics.study

The dated plan and what came out: README.md beside this file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

import tsl_jax as tsl
from experiments.shared import BASE_RUNS, Claim, Findings, Runs, Study
from experiments.shared import solver_comparison as lm
from experiments.shared.seeds_and_intervals import bands, interval
from experiments.shared.surface_measures import in_bands

EARLY, EARLIES = 0.2, (0.1, 0.2, 0.4)
MARGIN, MARGINS = 0.1, (0.05, 0.1, 0.2)
LEVEL = 0.9  # of the simultaneous bands: two one-sided tests at 5 %
SCHEDULES = ("cosine", "wsd", "constant")


# ------------------------------------------------------------------------------------------------------------- rates


def phase(surface: xr.Dataset, start: float, end: float) -> xr.Dataset:
    """The checkpoints between two shares of the run, both ends included; after the warm-up."""
    total = float(surface.tokens[-1])
    first = max(start * total, float(surface.attrs.get("schedule", {}).get("warmup_tokens", 0)))
    return surface.sel(tokens=slice(first, end * total))


def rates(loss: xr.DataArray) -> xr.DataArray:
    """-d loss / d log tokens by least squares over the checkpoints, nats per e-fold, over all other dimensions."""
    x = np.log(loss.tokens)
    x = x - x.mean()
    return -(loss * x).sum("tokens") / (x * x).sum()


def relative(rate: xr.DataArray) -> xr.DataArray:
    """q_i = r_i / mean r - 1."""
    return rate / rate.mean("position") - 1


def subject(runs: Runs) -> str:
    """The size that is judged: the first one that has seeds, in names SIZE-SCHEDULE@SEED.

    Raises:
        ValueError: where none has.
    """
    for name in runs.surfaces:
        if "@" in name:
            return name.split("-")[0]
    raise ValueError("plan: no run has seeds, and bands need three of them; name runs SIZE-SCHEDULE@SEED")


def schedules(runs: Runs) -> list[str]:
    """The schedules of these runs."""
    return [schedule for schedule in SCHEDULES if runs.named(f"{subject(runs)}-{schedule}@")]


def by_seed(runs: Runs, schedule: str, split: str, start: float, end: float) -> xr.DataArray:
    """Rates (seed, position) of the runs of a schedule."""
    found = runs.named(f"{subject(runs)}-{schedule}@")
    made = [rates(phase(one, start, end).loss.sel(split=split)) for one in found.values()]
    return xr.concat(made, pd.Index([name.partition("@")[2] for name in found], name="seed"))


# ------------------------------------------------------------------------------------------------------- equivalence


def judged(q: xr.DataArray, margin: float) -> dict[str, Any]:
    """Whether relative rates (seed, position) are the same, by simultaneous bands.

    Returns:
        inside: share of the positions whose band lies within the margin. outside: those whose band lies wholly beyond
        it. lowest, highest: mean relative rates. verdict: same, different or undecided.
    """
    found = bands(q.values, LEVEL)
    inside = (found.low > -margin) & (found.high < margin)
    outside = (found.high < -margin) | (found.low > margin)
    verdict = "same" if inside.all() else "different" if outside.any() else "undecided"
    ends = {"lowest": float(found["mean"].min()), "highest": float(found["mean"].max())}
    return {**ends, "inside": float(inside.mean()), "outside": float(outside.mean()), "verdict": verdict}


def main_table(runs: Runs) -> pd.DataFrame:
    """A row for each schedule, split and phase, by the primary rule."""
    rows = []
    for schedule in schedules(runs):
        for split in ("id", "ood"):
            for name, (start, end) in {"early": (0.0, EARLY), "late": (EARLY, 1.0)}.items():
                rate = by_seed(runs, schedule, split, start, end)
                mean = interval(rate.mean("position").values)
                row = {"schedule": schedule, "split": split, "phase": name, "seeds": rate.sizes["seed"]}
                row |= {"rate, nats per e-fold": str(mean)}
                row |= {f"bands: {key}": value for key, value in judged(in_bands(relative(rate)), MARGIN).items()}
                single = judged(relative(rate), MARGIN)
                row |= {"positions: inside": single["inside"], "positions: outside": single["outside"]}
                rows.append(row | law_of(runs, schedule, split, start, end, rate))
    return pd.DataFrame(rows)


def by_band(runs: Runs) -> pd.DataFrame:
    """Relative late rates of each band of positions, with simultaneous bands over them, by schedule and split."""
    rows = []
    for schedule in schedules(runs):
        for split in ("id", "ood"):
            rate = by_seed(runs, schedule, split, EARLY, 1.0)
            q = in_bands(relative(rate))
            for k, (_, one) in enumerate(bands(q.values, LEVEL).iterrows()):
                first, last = 2 ** (k - 1) + 1 if k else 1, min(2**k, rate.sizes["position"])
                inside, beyond = abs(np.array([one.low, one.high])) < MARGIN, one.low > MARGIN or one.high < -MARGIN
                verdict = "same" if inside.all() else "different" if beyond else "undecided"
                told = f"{one['mean']:+.3f} [{one.low:+.3f}, {one.high:+.3f}]"
                rows.append(
                    {"schedule": schedule, "split": split, "positions": f"{first} to {last}",
                     "rate relative to the mean": told, "verdict": verdict}
                )  # fmt: skip
    return pd.DataFrame(rows)


def law_of(runs: Runs, schedule: str, split: str, start: float, end: float, rate: xr.DataArray) -> dict[str, float]:
    """R2 over positions of the rates that the fitted hyperbolic law implies, mean over seeds; and the lm columns."""
    r2, parts = [], []
    for k, surface in enumerate(runs.named(f"{subject(runs)}-{schedule}@").values()):
        loss = phase(surface, start, end).loss.sel(split=split)
        fitted = tsl.fit(tsl.laws.HYPERBOLIC, loss, over="position")
        implied, own = rates(fitted.predict()), rate.isel(seed=k)
        r2.append(1 - float(((implied - own) ** 2).sum() / ((own - own.mean()) ** 2).sum()))
        parts.append(loss)
    beside = lm.beside(tsl.laws.HYPERBOLIC, xr.concat(parts, "seed", join="outer"), over="position")
    return {"law: R2 of the rates": float(np.mean(r2)), **beside}


def sensitivity(runs: Runs) -> pd.DataFrame:
    """The verdict on the later part for each rule of "early" and each margin, by bands of positions."""
    rows = []
    for schedule in schedules(runs):
        for split in ("id", "ood"):
            for early in EARLIES:
                q = in_bands(relative(by_seed(runs, schedule, split, early, 1.0)))
                verdicts = {f"margin {m:.0%}": judged(q, m)["verdict"] for m in MARGINS}
                ends = {"lowest": float(q.mean("seed").min()), "highest": float(q.mean("seed").max())}
                rows.append({"schedule": schedule, "split": split, "early": f"{early:.0%}", **ends, **verdicts})
    return pd.DataFrame(rows)


def larger(runs: Runs) -> pd.DataFrame:
    """Relative late rates of the runs of other sizes by band of positions: single runs, no intervals."""
    rows = []
    for name, surface in runs.surfaces.items():
        if not name.startswith(f"{subject(runs)}-"):
            rate = rates(phase(surface, EARLY, 1.0).loss.sel(split="id"))
            q = in_bands(relative(rate))
            named = {f"i = {p:.3g}": float(v) for p, v in zip(q.position.values, q.values, strict=True)}
            rows.append({"run": name, "rate, nats per e-fold": float(rate.mean()), **named})
    return pd.DataFrame(rows)


# ------------------------------------------------------------------------------------------------------- what is told


def analyse(runs: Runs) -> Findings:
    """All tables, the verdict on the paper's claim, and the figures."""
    table, bands_of, sensitive, large = main_table(runs), by_band(runs), sensitivity(runs), larger(runs)
    late = table[(table.phase == "late") & (table.split == "id")]
    verdicts = late["bands: verdict"].tolist()
    found = "agrees" if set(verdicts) == {"same"} else "differs" if "different" in verdicts else "undecided"
    lowest, highest = late["bands: lowest"].min(), late["bands: highest"].max()
    known = next(one for name, one in runs.manifests.items() if name.startswith(f"{subject(runs)}-"))
    claims = [
        Claim(
            "After the early phase the loss of all positions falls at the same rate",
            "equal rates (figure, 58M to 6.7B parameters)",
            f"between {lowest:+.0%} and {highest:+.0%} of the mean rate by band of positions ({', '.join(verdicts)} by "
            f"schedule: {', '.join(schedules(runs))}), margin 10 %",
            found,
            f"Runs of {known['n_params'] / 1e6:.3g} M parameters and {known['total_tokens'] / 1e6:.3g} M tokens may "
            "not have left their early phase: context is still learned",
        )
    ]
    tables = {"rates": table, "by_band": bands_of, "sensitivity": sensitive, "larger_runs": large}
    return Findings(tables, claims, _notes(runs, table, bands_of), *_figures(runs))


def _notes(runs: Runs, table: pd.DataFrame, bands_of: pd.DataFrame) -> list[str]:
    told = []
    for schedule in schedules(runs):
        one = bands_of[(bands_of.schedule == schedule) & (bands_of.split == "id")].set_index("positions")
        first, last = one["rate relative to the mean"].iloc[[0, -1]]
        same = ", ".join(one.index[one.verdict == "same"]) or "none"
        told.append(
            f"{schedule}, id, late: position 1 falls at {first} relative to the mean, the last half of all "
            f"positions at {last}; within the margin for sure: positions {same}."
        )
    law = table["law: R2 of the rates"]
    return [
        *told,
        f"The rates that the fitted hyperbolic law implies have R2 {law.min():.2f} to {law.max():.2f} over single "
        "positions: the law sees how positions differ as far as it holds.",
    ]


def _figures(runs: Runs) -> tuple[dict[str, Any], dict[str, str]]:
    from tsl_jax.reporting import plots as draw

    figures, captions = {}, {}
    for split in ("id", "ood"):
        shown: dict[str, Any] = {}
        for schedule in schedules(runs):
            q = in_bands(relative(by_seed(runs, schedule, split, EARLY, 1.0)))
            found = bands(q.values, LEVEL)
            shown[schedule] = (100 * found["mean"].values, 100 * found.low.values, 100 * found.high.values)
        figures[f"rates_{split}"] = draw.decline_rates(
            q.position.values, shown, margin=100 * MARGIN, centre=0.0, unit="% above or below the mean"
        )
        captions[f"rates_{split}"] = (
            f"How fast the loss of each band of positions falls after the first 20 % of the tokens, relative to the "
            f"mean over positions ({split}, {q.sizes['seed']} seeds a schedule, simultaneous 90 % bands). Shaded: the "
            "margin within which rates count as the same."
        )
    return figures, captions


STUDY = Study(
    name="learning_dynamics",
    title="Do all positions learn at the same rate after the early phase?",
    decided="2026-11-26",
    analyse=analyse,
    minutes=2,
    plans=BASE_RUNS,
)

if __name__ == "__main__":
    STUDY.main()
