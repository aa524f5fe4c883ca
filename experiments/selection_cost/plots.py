"""The figures of the study of selection: errors against what was evaluated."""

from __future__ import annotations

from typing import Any

import pandas as pd

from tsl_jax.forecasting import baselines
from tsl_jax.reporting.plots import lines_with_bands


def figures(
    error: pd.DataFrame, contrast: pd.DataFrame, main: str, cutoff: float
) -> tuple[dict[str, Any], dict[str, str]]:
    """Errors against evaluated tokens from a cut-off, id, of the final loss and of differences; and captions.

    Drawn are all designs of the main method, and of the power law those that read every checkpoint.
    """
    kind = str(error[error.seeds == error.seeds.max()].runs.iloc[0])
    own = error[(error.runs == kind) & (error.split == "id") & (error.cutoff == cutoff) & error.low.notna()]
    own = own[(own.method == main) | ((own.method == baselines.POWER_LAW.name) & (own.every == 1))]
    lines = {
        f"{method}, every {every}.": _line(group, "error", "low", "high")
        for (method, every), group in own.groupby(["method", "every"], sort=False)
    }
    drawn = {"errors": lines_with_bands(lines, "tokens evaluated until the cut-off", "|final error| (nats)", "xy")}
    captions = {
        "errors": f"{kind}, id, from {100 * cutoff:.0f} %: error of the forecast final loss against tokens evaluated. "
        "Methods and designs that are not drawn are in the tables."
    }
    if len(contrast):
        size = kind.partition("-")[0]
        some = contrast[(contrast["size"] == size) & (contrast.split == "id") & (contrast.cutoff == cutoff)]
        spent = own.drop_duplicates(["every", "quarters"])[["every", "quarters", "evaluated_tokens"]]
        some = some.merge(spent, on=["every", "quarters"])
        shown = (some.law == main) | ((some.law == baselines.POWER_LAW.name) & (some.every == 1))
        lines = {
            f"{law}, every {every}.": _line(group, "difference_error", "low", "high")
            for (law, every), group in some[some.low.notna() & shown].groupby(["law", "every"], sort=False)
        }
        drawn["differences"] = lines_with_bands(
            lines, "tokens evaluated until the cut-off, each run", "error of the difference (nats)", "x"
        )
        captions["differences"] = (
            f"{size}, id, from {100 * cutoff:.0f} %: error of forecast differences between schedules of one seed."
        )
    return drawn, captions


def _line(group: pd.DataFrame, *names: str) -> tuple[Any, ...]:
    ordered = group.sort_values("evaluated_tokens")
    return (ordered.evaluated_tokens.to_numpy(), *(ordered[name].to_numpy() for name in names))
