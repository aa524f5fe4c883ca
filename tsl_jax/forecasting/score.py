"""How good a forecast was, once the rest of the run is known.

Judged on the mean loss of the held-out checkpoints only, on an even grid of tokens (both curves interpolated linearly),
so that the spacing of checkpoints does not weigh the errors:

    MSE = mean (predicted - observed)^2,   R2 = 1 - MSE / var(observed),   error = predicted - observed at the last one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from tsl_jax.forecasting.baselines import Baseline, mean_loss
from tsl_jax.forecasting.forecast import Forecast, forecast

GRID = 200  # points of the even token grid


def score(
    predicted: Forecast, surface: xr.Dataset, against: Baseline | Forecast | Sequence[Any] = (), schedule: Any = None
) -> pd.DataFrame:
    """A table with one row a split and method.

    Args:
        predicted: the forecast. surface: the whole run.
        against: baselines or other forecasts to stand beside it; baselines see the same past.
        schedule: the plan that baselines are told, as for `forecast`.

    Returns:
        DataFrame indexed by (split, method): final (predicted, nats), observed, error, mse, r2, status.

    Raises:
        ValueError: if fewer than two checkpoints of the run lie beyond the cut-off.
    """
    others = [against] if isinstance(against, Baseline | Forecast) else list(against)
    past = surface.sel(tokens=surface.tokens <= predicted.cutoff)
    at = surface.tokens.values[surface.tokens.values > predicted.cutoff]
    if len(at) < 2:
        raise ValueError(
            f"score: {len(at)} checkpoints beyond the cut-off of {predicted.cutoff:.4g} tokens, 2 are needed"
        )
    all_of_them = [predicted, *(forecast(past, at, schedule, o) if isinstance(o, Baseline) else o for o in others)]
    observed = mean_loss(surface.sel(tokens=at))
    rows = [_row(one, observed, split) for split in observed.split.values.tolist() for one in all_of_them]
    return pd.DataFrame(rows).set_index(["split", "method"])


def _row(predicted: Forecast, observed: xr.DataArray, split: str) -> dict[str, Any]:
    truth = observed.sel(split=split)
    mean = predicted.mean.sel(split=split).sortby("tokens")
    grid = np.linspace(float(truth.tokens[0]), float(truth.tokens[-1]), GRID)
    y, f = (np.interp(grid, curve.tokens.values, curve.values) for curve in (truth, mean))
    mse = float(np.mean((f - y) ** 2))
    final, last = float(np.interp(grid[-1], mean.tokens.values, mean.values)), float(truth[-1])
    return {
        "split": split,
        "method": predicted.method,
        "final": final,
        "observed": last,
        "error": final - last,
        "mse": mse,
        "r2": 1 - mse / float(np.var(y)) if np.var(y) > 0 else np.nan,
        "status": predicted.status[split],
    }
