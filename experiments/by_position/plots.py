"""The figure of the study of forecasts by position: differences of |error| from the default, case by case."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from tsl_jax.reporting import plots


def figures(
    table: pd.DataFrame, seeds: Mapping[tuple[str, str], np.ndarray], margin: float
) -> tuple[dict[str, Any], dict[str, str]]:
    """Name -> figure, and name -> caption.

    Args:
        table: of `comparisons`, candidates against the default. seeds: (case, method) -> differences (seed,), nats.
    """
    rows = [
        {
            "arm": f"{row.case}: {row.method.replace('_', ' ')}",
            "mean": row.difference,
            "low": row.difference_low,
            "high": row.difference_high,
            "seeds": seeds[row.case, row.method],
        }
        for row in table.itertuples()
    ]
    drawn = {"differences": plots.differences_overall(pd.DataFrame(rows), margin=margin, unit="nats of |error|")}
    return drawn, {
        "differences": "|error| of the forecast end by position minus that of mean_annealing on the same mean, "
        "averaged over schedules, cut-offs and quarters of the documents; dots are seeds, bars 97.5 % bootstrap "
        "intervals over them, dashed the margin. Left of zero by position is better."
    }
