"""The figures of the study of learning dynamics: relative rates by band of positions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from tsl_jax.reporting import plots


def figures(by_band: pd.DataFrame, margin: float) -> tuple[dict[str, Any], dict[str, str]]:
    """Name -> figure, and name -> caption, of each split."""
    drawn, captions = {}, {}
    for split, table in by_band.groupby("split", sort=False):
        lines = {
            str(schedule): tuple(100 * rows[name].values for name in RATE)
            for schedule, rows in table.groupby("schedule", sort=False)
        }
        own = table[table.schedule == table.schedule.iloc[0]]
        # a band's place is the geometric mean of its positions
        ranges = zip(own.first_position, own.last_position, strict=True)
        middle = np.array([np.exp(np.log(np.arange(first, last + 1)).mean()) for first, last in ranges])
        drawn[f"rates_{split}"] = plots.decline_rates(
            middle, lines, margin=100 * margin, centre=0.0, unit="% above or below the mean"
        )
        captions[f"rates_{split}"] = (
            f"How fast the loss of each band of positions falls after the first 20 % of the tokens, relative to the "
            f"mean over positions ({split}, simultaneous 90 % bands over seeds). Shaded: the margin within which rates "
            "count as the same."
        )
    return drawn, captions


RATE = ("relative_rate", "relative_rate_low", "relative_rate_high")
