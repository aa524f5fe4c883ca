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
from experiments.learning_dynamics import plots
from experiments.shared import BASE_RUNS, Claim, Findings, Runs, Study, solver_comparison
from experiments.shared.seeds_and_intervals import bands, interval
from experiments.shared.surface_measures import in_bands
from experiments.shared.tables import rounded

EARLY, EARLIES = 0.2, (0.1, 0.2, 0.4)
MARGIN, MARGINS = 0.1, (0.05, 0.1, 0.2)
LEVEL = 0.9  # of the simultaneous bands: two one-sided tests at 5 %
SCHEDULES, SPLITS = ("cosine", "wsd", "constant"), ("id", "ood")


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


def judged_size(runs: Runs) -> str:
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
    return [schedule for schedule in SCHEDULES if runs.named(f"{judged_size(runs)}-{schedule}@")]


def by_seed(runs: Runs, schedule: str, split: str, start: float, end: float) -> xr.DataArray:
    """Rates (seed, position) of the runs of a schedule."""
    surfaces = runs.named(f"{judged_size(runs)}-{schedule}@")
    each = [rates(phase(surface, start, end).loss.sel(split=split)) for surface in surfaces.values()]
    return xr.concat(each, pd.Index([name.partition("@")[2] for name in surfaces], name="seed"))


# ------------------------------------------------------------------------------------------------------- equivalence


def judged(q: xr.DataArray, margin: float) -> dict[str, Any]:
    """Whether relative rates (seed, position) are the same, by simultaneous bands.

    Returns:
        inside: share of the positions whose band lies within the margin. outside: those whose band lies wholly beyond
        it. lowest, highest: mean relative rates. verdict: same, different or undecided.
    """
    band = bands(q.values, LEVEL)
    inside, outside = _within(band, margin)
    verdict = "same" if inside.all() else "different" if outside.any() else "undecided"
    ends = {"lowest": float(band["mean"].min()), "highest": float(band["mean"].max())}
    return {**ends, "inside": float(inside.mean()), "outside": float(outside.mean()), "verdict": verdict}


def _within(band: pd.DataFrame, margin: float) -> tuple[pd.Series, pd.Series]:
    """Where the band lies within the margin, and where it lies wholly beyond it."""
    return (band.low > -margin) & (band.high < margin), (band.high < -margin) | (band.low > margin)


def main_table(runs: Runs) -> pd.DataFrame:
    """A row for each schedule, split and phase, by the primary rule."""
    rows = []
    for schedule in schedules(runs):
        for split in SPLITS:
            for name, (start, end) in {"early": (0.0, EARLY), "late": (EARLY, 1.0)}.items():
                rate = by_seed(runs, schedule, split, start, end)
                row = {"schedule": schedule, "split": split, "phase": name, "seeds": rate.sizes["seed"]}
                row |= interval(rate.mean("position").values).columns("nats_per_efold")
                row |= {f"bands_{key}": value for key, value in judged(in_bands(relative(rate)), MARGIN).items()}
                single = judged(relative(rate), MARGIN)
                row |= {"positions_inside": single["inside"], "positions_outside": single["outside"]}
                rows.append(row | law_of(runs, schedule, split, start, end, rate))
    return pd.DataFrame(rows)


def by_band(runs: Runs) -> pd.DataFrame:
    """Relative late rates of each band of positions, with simultaneous bands over them, by schedule and split."""
    tables = []
    for schedule in schedules(runs):
        for split in SPLITS:
            rate = by_seed(runs, schedule, split, EARLY, 1.0)
            q = in_bands(relative(rate))
            band = bands(q.values, LEVEL)
            inside, outside = _within(band, MARGIN)
            last = np.minimum(2 ** np.arange(len(band)), rate.sizes["position"])
            first = np.append(1, last[:-1] + 1)
            where = {"schedule": schedule, "split": split, "first_position": first, "last_position": last}
            rate_columns = {
                "relative_rate": band["mean"],
                "relative_rate_low": band.low,
                "relative_rate_high": band.high,
            }
            verdict = np.where(inside, "same", np.where(outside, "different", "undecided"))
            tables.append(pd.DataFrame({**where, **rate_columns, "verdict": verdict}))
    return pd.concat(tables, ignore_index=True)


def law_of(runs: Runs, schedule: str, split: str, start: float, end: float, rate: xr.DataArray) -> dict[str, float]:
    """R2 over positions of the rates that the fitted hyperbolic law implies, mean over seeds; and the lm columns."""
    r2, parts = [], []
    for k, surface in enumerate(runs.named(f"{judged_size(runs)}-{schedule}@").values()):
        loss = phase(surface, start, end).loss.sel(split=split)
        fitted = tsl.fit(tsl.laws.HYPERBOLIC, loss, over="position")
        implied, own = rates(fitted.predict()), rate.isel(seed=k)
        r2.append(1 - float(((implied - own) ** 2).sum() / ((own - own.mean()) ** 2).sum()))
        parts.append(loss)
    curves = xr.concat(parts, "seed", join="outer")
    return {"law_r2": float(np.mean(r2)), **solver_comparison.beside(tsl.laws.HYPERBOLIC, curves, over="position")}


def sensitivity(runs: Runs) -> pd.DataFrame:
    """The verdict on the later part for each rule of "early" and each margin, by bands of positions."""
    rows = []
    for schedule in schedules(runs):
        for split in SPLITS:
            for early in EARLIES:
                q = in_bands(relative(by_seed(runs, schedule, split, early, 1.0)))
                verdicts = {f"verdict_margin_{margin:g}": judged(q, margin)["verdict"] for margin in MARGINS}
                ends = {"lowest": float(q.mean("seed").min()), "highest": float(q.mean("seed").max())}
                rows.append({"schedule": schedule, "split": split, "early": early, **ends, **verdicts})
    return pd.DataFrame(rows)


def larger(runs: Runs) -> pd.DataFrame:
    """Relative late rates of the runs of other sizes by band of positions: single runs, no intervals."""
    rows = []
    for name, surface in runs.surfaces.items():
        if not name.startswith(f"{judged_size(runs)}-"):
            rate = rates(phase(surface, EARLY, 1.0).loss.sel(split="id"))
            q = in_bands(relative(rate))
            relative_rates = {f"position_{p:.3g}": float(v) for p, v in zip(q.position.values, q.values, strict=True)}
            rows.append({"run": name, "nats_per_efold": float(rate.mean()), **relative_rates})
    return pd.DataFrame(rows)


# ---------------------------------------------------------------------------------------------------- the conclusions


def analyse(runs: Runs) -> Findings:
    """All tables, the verdict on the paper's claim, and the figures."""
    main, by_bands, sensitive, large = main_table(runs), by_band(runs), sensitivity(runs), larger(runs)
    tables = {"rates": main, "by_band": by_bands, "sensitivity": sensitive, "larger_runs": large}
    manifest = next(manifest for name, manifest in runs.manifests.items() if name.startswith(f"{judged_size(runs)}-"))
    return Findings(tables, claims(main, manifest), notes(main), *plots.figures(by_bands, MARGIN))


def claims(main: pd.DataFrame, manifest: Any) -> list[Claim]:
    """By the rule of the plan: of the late phase on id, over schedules."""
    late = main[(main.phase == "late") & (main.split == "id")]
    verdicts = late.bands_verdict.tolist()
    verdict = "agrees" if set(verdicts) == {"same"} else "differs" if "different" in verdicts else "undecided"
    return [
        Claim(
            "After the early phase the loss of all positions falls at the same rate",
            "equal rates (figure, 58M to 6.7B parameters)",
            f"by band of positions {late.bands_lowest.min():+.0%} to {late.bands_highest.max():+.0%} of the mean rate, "
            f"margin {100 * MARGIN:.0f} %",
            verdict,
            f"Runs of {manifest['n_params'] / 1e6:.3g} M parameters and {manifest['total_tokens'] / 1e6:.3g} M tokens "
            "may not have left their early phase, in which a model first learns to use context.",
            rounded(late, "schedule", "bands_lowest", "bands_highest", "bands_inside", "bands_verdict", "seeds"),
        )
    ]


def notes(main: pd.DataFrame) -> list[str]:
    """What the law says of the rates."""
    return [
        f"The rates that the fitted hyperbolic law implies have R2 {main.law_r2.min():.2f} to {main.law_r2.max():.2f} "
        "over single positions: the law sees how positions differ as far as it holds.",
    ]


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
