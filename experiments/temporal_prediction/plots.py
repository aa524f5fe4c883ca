"""The figures of the study of predictions: errors by method and cut-off."""

from __future__ import annotations

from typing import Any

import pandas as pd

from experiments.shared.seeds_and_intervals import interval
from tsl_jax.reporting.plots import errors_by


def figures(rows: pd.DataFrame) -> tuple[dict[str, Any], dict[str, str]]:
    """Mean root MSE by method and cut-off of each kind of run, id: name -> figure, and name -> caption."""
    drawn, captions = {}, {}
    for kind, of_kind in rows.groupby("runs", sort=False):
        own = of_kind[(of_kind.split == "id") & of_kind.rmse.notna()]
        lines = []
        for (method, cutoff), group in own.groupby(["method", "cutoff"], sort=False):
            mean = interval(group.rmse)
            lines.append({"method": method, "cutoff": cutoff, "value": mean.mean, "low": mean.low, "high": mean.high})
        drawn[f"errors-{kind}"] = errors_by(pd.DataFrame(lines), "root mean squared error of the rest (nats)")
        captions[f"errors-{kind}"] = (
            f"{kind}, id: root of the mean squared error beyond each cut-off, mean over {own.seed.nunique()} seeds "
            "with 95 % t intervals."
        )
    return drawn, captions
