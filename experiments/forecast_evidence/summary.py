"""The table of rows in short: by protocol and method, and in pairs, with bootstrap intervals over whole clusters."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from tsl_jax.forecasting.backtesting import clustered_mean

BESIDE = {
    "three_siblings": "alone",
    "ladder": "alone",
    "cooldown": "cooldown_alone",
    "earlier_seeds": "alone",
    "other_schedules": "alone",
}
CONTROLS = {
    "mean_annealing": "annealing of the mean",
    "each_position": "each position alone",
    "components": "three principal components",
}
SAME = ["protocol", "data", "run", "split", "cutoff"]


def summary(rows: pd.DataFrame) -> str:
    """Markdown: a line for each protocol, data set and method, then the paired differences."""
    rows = rows.assign(family=rows.data.str.split("/").str[0])
    groups = rows.groupby(["protocol", "family", "method"], sort=False)
    lines = [_line(*name, group) for name, group in groups]
    head = (
        "protocol", "data", "method", "runs", "rows (without forecast, doubtful)", "median abs. final error, nats",
        "the same, %", "median R2", "future inside 90 %", "final inside 90 %", "final inside 50 %",
        "interval score: final, mean",
    )  # fmt: skip
    return "\n\n".join([_table(head, lines), *_pairs(rows)])


def _line(protocol: str, family: str, method: str, group: pd.DataFrame) -> tuple[str, ...]:
    error = group.final_error.abs()
    runs, lost = group.groupby(["data", "run"]).ngroups, int(error.isna().sum())
    doubtful = int((group.status != "ok").sum()) - lost
    relative = 100 * (error / group.final_observed).median()
    inside = [_range(clustered_mean(group[name], group.cluster)) for name in ("covered_90", "covered_90_final")]
    half = _number(group.covered_50_final.mean(), "{:.2f}")
    scores = [_number(group[name].mean(), "{:.3f}") for name in ("interval_score_final", "interval_score")]
    r2 = _number(group.r2.median(), "{:.3f}")
    shown = (f"{len(group)} ({lost}, {doubtful})", _number(error.median(), "{:.4f}"), _number(relative, "{:.2f}"))
    return (protocol, family, method, str(runs), *shown, r2, *inside, half, ", ".join(scores))


def _pairs(rows: pd.DataFrame) -> list[str]:
    """Do positions help, and do siblings? Differences of rows that differ in nothing else."""
    alone = rows[rows.protocol.isin(["alone", "cooldown_alone"])]
    by_law = alone[alone.method == "annealing"]
    comparisons = [
        (f"annealing by the law over positions minus {name}, {family}", tested, alone[alone.method == method], SAME)
        for method, name in CONTROLS.items()
        for family, tested in [("id", by_law[by_law.split == "id"]), ("ood", by_law[by_law.split == "ood"])]
    ]
    for protocol, before in BESIDE.items():
        beside = rows[rows.protocol == protocol]
        same = [name for name in SAME if name != "protocol"]
        for method in beside.method.unique():
            pair = beside[beside.method == method], rows[(rows.protocol == before) & (rows.method == method)]
            comparisons.append((f"{protocol}: {method} with siblings minus without", *pair, same))
    lines = [line for title, tested, other, same in comparisons if (line := _paired(title, tested, other, same))]
    head = (
        "pairs",
        "number (clusters)",
        "abs. final error, nats",
        "root MSE, nats",
        "interval score of the final loss",
    )
    return [_table(head, lines)] if lines else []


def _paired(title: str, tested: pd.DataFrame, other: pd.DataFrame, same: list[str]) -> tuple[str, ...] | None:
    pairs = tested.merge(other, on=same, suffixes=("", "_other"))
    if pairs.empty:
        return None
    measures: list[Callable[[str], pd.Series]] = [
        lambda end: pairs[f"final_error{end}"].abs(),
        lambda end: pairs[f"mse{end}"] ** 0.5,
        lambda end: pairs[f"interval_score_final{end}"],
    ]
    differences = [_range(clustered_mean(of("") - of("_other"), pairs.cluster), "{:+.4f}") for of in measures]
    return (title, f"{len(pairs)} ({pairs.cluster.nunique()})", *differences)


def _range(estimate: tuple[float, float, float], form: str = "{:.2f}") -> str:
    mean, low, high = (_number(value, form) for value in estimate)
    return mean if low == "" else f"{mean} [{low}, {high}]"


def _number(value: float, form: str) -> str:
    return form.format(value) if np.isfinite(value) else ""


def _table(head: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    cells = [head, tuple("---" for _ in head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)
