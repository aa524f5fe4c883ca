"""The figure of the study of forecasts by position: differences of |error| from the default, case by case."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from tsl_jax.reporting import plots

REACH = 0.3  # nats: one forecast that runs away must not hide the others


def figures(
    table: pd.DataFrame, seeds: Mapping[tuple[str, str], np.ndarray], margin: float
) -> tuple[dict[str, Any], dict[str, str]]:
    """Name -> figure, and name -> caption.

    Args:
        table: of `comparisons`, candidates against the default. seeds: (case, method) -> differences (seed,), nats.
    """
    rows = [
        {
            "arm": f"{row.case}: {row.method.removesuffix('_by_position')}",
            "mean": row.difference,
            "low": row.difference_low,
            "high": row.difference_high,
            "seeds": seeds[row.case, row.method],
        }
        for row in table.itertuples()
    ]
    figure = plots.differences_overall(pd.DataFrame(rows), margin=margin)
    (panel,) = figure.axes
    panel.set_xlim(-REACH / 3, REACH)
    panel.set_xlabel("|error| minus the default's (nats)")
    beyond = sum(int((values > REACH).sum()) for values in seeds.values())
    return {"differences": figure}, {
        "differences": "|error| of the forecast end by position minus that of mean_annealing on the same mean, "
        "averaged over schedules, cut-offs and quarters of the documents; dots are seeds, bars 97.5 % bootstrap "
        f"intervals over them, dashed the margin. Left of zero by position is better. Dots beyond the axis: {beyond}."
    }
