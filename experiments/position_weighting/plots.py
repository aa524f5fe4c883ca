"""The figures of the study of position weights; they draw what was measured and fit nothing but a0, a1, a2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from experiments.shared.seeds_and_intervals import bands, interval
from experiments.shared.surface_measures import in_bands, parameter_path
from tsl_jax.reporting import plots


def figures(
    arms: Mapping[str, Mapping[str, xr.Dataset]],
    differences: Mapping[str, xr.DataArray],
    updates: Mapping[str, Sequence[Mapping[str, Any]]],
    uniform: str,
    margin: float,
    level: float,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Name -> figure, and name -> caption.

    Args:
        arms: arm -> seed -> surface. differences: arm -> final loss minus uniform's on id, (seed, position).
        updates: adaptive arm -> what each run kept of its weights. uniform, margin, level: of the plan.
    """
    by_arm, seeds, overall = {}, {}, []
    for arm, by_position in differences.items():
        banded, each = in_bands(by_position), by_position.mean("position").values
        band = bands(banded.values, level)
        by_arm[arm], seeds[arm] = (band["mean"].values, band.low.values, band.high.values), banded.values
        mean = interval(each, level)
        overall.append({"arm": arm, "mean": mean.mean, "low": mean.low, "high": mean.high, "seeds": each})
    table = pd.DataFrame(overall)
    order = table.sort_values("mean").arm.tolist()
    shown = dict.fromkeys([uniform, order[0], *order[-2:]])
    drawn = {
        "overall": plots.differences_overall(table, margin=margin),
        "by_position": plots.differences_by_position(banded.position.values, by_arm, seeds=seeds, margin=margin),
        "parameters": plots.parameter_paths({arm: parameter_path(arms[arm]) for arm in shown}),
        "weights": plots.lines_with_bands(
            {arm: late_weights(of_arm) for arm, of_arm in updates.items()},
            "position (tokens of context)",
            "weight",
            log="x",
        ),
    }
    return drawn, CAPTIONS


def late_weights(updates: Sequence[Mapping[str, Any]]) -> tuple[Any, Any, Any, Any]:
    """Position, and mean, lowest and highest over seeds of the weights, means of the second half of the updates."""
    late = np.array([np.mean(run["weights"][len(run["weights"]) // 2 :], axis=0) for run in updates])
    return np.array(updates[0]["position"]), late.mean(0), late.min(0), late.max(0)


CAPTIONS = {
    "overall": "Final unweighted held-out loss of each arm minus that of the plain mean, id; dots are seeds, bars 90 % "
    "intervals, shaded the margin of equivalence. Left of zero is a gain.",
    "by_position": "The same by band of positions (1, 2, 3-4, 5-8, ...), with simultaneous 90 % bands; thin lines are "
    "seeds.",
    "parameters": "a0, a1 and a2 of the hyperbolic law over training (positions 1 to 128), mean of the seeds and its "
    "standard error, for the plain mean, the best arm and the two worst.",
    "weights": "Weights of the adaptive arms, averaged over the second half of the updates: mean over seeds, lowest "
    "and highest of them.",
}
