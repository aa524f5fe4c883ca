"""The figures of the study of changes in mid-run; they draw what was measured and fit nothing but a0, a1, a2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import xarray as xr

from experiments.shared.seeds_and_intervals import bands, interval
from experiments.shared.surface_measures import in_bands, parameter_path
from tsl_jax.reporting import plots

CHANGE, MIXTURE = 0.5, "mixture"  # share of the run; the arm whose parameters need an axis of their own


def figures(
    arms: Mapping[str, Mapping[str, xr.Dataset]],
    differences: Mapping[str, xr.DataArray],
    forecasts: pd.DataFrame,
    twin: str,
    margin: float,
    level: float,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Name -> figure, and name -> caption.

    Args:
        arms: arm -> seed -> surface. differences: arm -> loss minus the twin's on id, (seed, tokens, position).
        forecasts: rows of the judged method. twin, margin, level: of the plan.
    """
    later, by_arm, seeds = {}, {}, {}
    for arm, difference in differences.items():
        mean = difference.mean("position")
        after = mean.sel(tokens=slice(0.98 * CHANGE * float(mean.tokens[-1]), None))
        ends = [interval(after.sel(tokens=t).values, level) for t in after.tokens]
        share = 100 * after.tokens.values / float(mean.tokens[-1])
        later[arm] = (share, [end.mean for end in ends], [end.low for end in ends], [end.high for end in ends])
        last = in_bands(difference.isel(tokens=-1, drop=True))
        band = bands(last.values, level)
        by_arm[arm], seeds[arm] = (band["mean"].values, band.low.values, band.high.values), last.values
    change = CHANGE * float(next(iter(arms[twin].values())).tokens[-1])
    paths = {arm: parameter_path(of_arm) for arm, of_arm in arms.items()}
    others = {arm: path for arm, path in paths.items() if arm not in (twin, MIXTURE)}
    own = forecasts[forecasts.split == "id"]
    errors = {
        arm: (100 * rows.cutoff.values, rows.mean_absolute_error.values, None, None)
        for arm, rows in own.groupby("arm", sort=False)
    }
    drawn = {
        "differences": plots.lines_with_bands(later, "tokens seen (% of the run)", f"loss minus {twin} (nats)"),
        "parameters": plots.parameter_paths({twin: paths[twin], **others}, marks=[change]),
        "parameters_mixture": plots.parameter_paths({arm: paths[arm] for arm in (twin, MIXTURE)}, marks=[change]),
        "by_position": plots.differences_by_position(last.position.values, by_arm, seeds=seeds, margin=margin),
        "forecasts": plots.lines_with_bands(
            errors, "forecast from (% of the run)", "mean |error| of the final loss (nats)"
        ),
    }
    return drawn, CAPTIONS


CAPTIONS = {
    "differences": "Held-out loss (id) of each arm minus that of its unchanged twin after the change at 50 %, mean "
    "over seeds with 90 % intervals.",
    "parameters": "a0, a1 and a2 over training (positions 1 to 128, id), mean of the seeds and its standard error; "
    "the line marks the change.",
    "parameters_mixture": "The same where the mixture changes, on axes of its own.",
    "by_position": "Final loss minus the twin's by band of positions (1, 2, 3-4, 5-8, ...), id, with simultaneous 90 % "
    "bands; thin lines are seeds, dashed the margin of equivalence.",
    "forecasts": "Mean absolute error of the final loss, id, forecast by mean_annealing from each cut-off, by arm.",
}
