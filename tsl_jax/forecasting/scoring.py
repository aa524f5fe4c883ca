"""How good a forecast was, once the rest of the run is known.

Judged on the mean loss of the unseen checkpoints only, on an even grid of tokens (both curves interpolated linearly),
so that the spacing of checkpoints does not weigh the errors:

    MSE = mean (predicted - observed)^2,   R2 = 1 - MSE / var(observed),   error = predicted - observed at the last one.

Intervals are judged at the checkpoints themselves, by the share that lies inside and by the interval score, which
rewards narrow intervals and punishes what lies outside them.

Checkpoints that lack the loss of a position are left out, and the status says so. Nothing is extrapolated: a forecast
must span the unseen checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from tsl_jax.forecasting.baselines import Baseline, incomplete_checkpoints, mean_loss
from tsl_jax.forecasting.forecast_run import forecast
from tsl_jax.forecasting.result import QUANTILES, Forecast, ForecastFlag

GRID = 200  # points of the even token grid
LEVEL = 0.9  # of the interval whose score a table has
LOW, HIGH = QUANTILES[0], QUANTILES[-1]


def winkler(low: Any, high: Any, observed: Any, level: float = LEVEL) -> Any:
    """Interval score of central intervals, any shape, in the unit of what is forecast; lower is better:

        high - low + 2/(1 - level) (how far the observed value lies outside).

    NaN where a bound or the value is. Its expectation is least for the true quantiles.
    Source: Winkler (1972); Gneiting & Raftery, Strictly Proper Scoring Rules (2007), equation 43.
    """
    outside = np.maximum(low - observed, 0) + np.maximum(observed - high, 0)  # 0 inside the interval
    return high - low + 2 / (1 - level) * outside


def covered(low: Any, high: Any, observed: Any) -> float:
    """Share of the observed values inside their intervals, ends included; NaN without any known interval."""
    known = np.isfinite(low) & np.isfinite(high) & np.isfinite(observed)
    inside = (low <= observed) & (observed <= high)
    return float(np.asarray(inside)[np.asarray(known)].mean()) if np.any(known) else np.nan


def score(
    predicted: Forecast, surface: xr.Dataset, against: Baseline | Forecast | Sequence[Any] = (), schedule: Any = None
) -> pd.DataFrame:
    """A table with one row a split and method.

    Args:
        predicted: the forecast. surface: the whole run.
        against: baselines or other forecasts to stand beside it; baselines see the same past, forecasts no more.
        schedule: the plan given to baselines, as for `forecast`.

    Returns:
        DataFrame indexed by (split, method): final (predicted, nats), observed, error, mse, r2, covered_50 and
        covered_90 (shares of the unseen checkpoints inside these intervals), interval_score (their mean `winkler` at
        90 %, nats), status (a sentence), flags (`ForecastFlag` as a number; 0: nothing speaks against the forecast).
        The three about intervals are NaN for methods that give none.

    Raises:
        ValueError: if fewer than two checkpoints of the run lie beyond the cut-off, if a forecast does not span these,
            or if one in `against` has seen more than the forecast that is scored.
    """
    beside = [against] if isinstance(against, Baseline | Forecast) else list(against)
    past = surface.sel(tokens=surface.tokens <= predicted.cutoff)  # all that a baseline may see
    at = surface.tokens.values[surface.tokens.values > predicted.cutoff]  # the unseen checkpoints
    if len(at) < 2:
        raise ValueError(
            f"score: {len(at)} checkpoints beyond the cut-off of {predicted.cutoff:.4g} tokens, 2 are needed"
        )
    made = [forecast(past, at, schedule, other) if isinstance(other, Baseline) else other for other in beside]
    for scored in (predicted, *made):
        if scored.cutoff > predicted.cutoff:
            raise ValueError(
                f"score: {scored.method} in against= was made from {scored.cutoff:.6g} tokens, the forecast it stands "
                f"beside from {predicted.cutoff:.6g}; make it from the same past"
            )
        first, last = float(scored.mean.tokens.min()), float(scored.mean.tokens.max())
        if first > at[0] or last < at[-1]:
            raise ValueError(
                f"score: the forecast {scored.method} spans {first:.6g} to {last:.6g} tokens, the unseen checkpoints "
                f"{at[0]:.6g} to {at[-1]:.6g}; make it with at=surface.tokens"
            )
    observed = mean_loss(surface.sel(tokens=at))  # (split, tokens), nats
    splits = observed.split.values.tolist()
    rows = [_row(scored, observed.sel(split=split), split) for split in splits for scored in (predicted, *made)]
    return pd.DataFrame(rows).set_index(["split", "method"])


def _row(predicted: Forecast, observed: xr.DataArray, split: str) -> dict[str, Any]:
    """A row of the table, from the observed mean loss (tokens,) of a split."""
    truth = observed.dropna("tokens")
    status = predicted.status[split] | incomplete_checkpoints(
        observed, ForecastFlag.INCOMPLETE_FUTURE, "of those unseen, "
    )
    points, intervals = ("final", "observed", "error", "mse", "r2"), ("covered_50", "covered_90", "interval_score")
    row = {"split": split, "method": predicted.method, **dict.fromkeys((*points, *intervals), np.nan)}
    row |= {"status": str(status), "flags": int(status.flags)}
    if truth.sizes["tokens"] < 2:
        return row
    # on an even grid of tokens: where checkpoints are dense, errors do not count for more
    mean = predicted.mean.sel(split=split).sortby("tokens")
    grid = np.linspace(float(truth.tokens[0]), float(truth.tokens[-1]), GRID)
    y, f = (np.interp(grid, curve.tokens.values, curve.values) for curve in (truth, mean))  # (GRID,), nats
    mse, final, last = float(np.mean((f - y) ** 2)), float(f[-1]), float(truth[-1])
    r2 = 1 - mse / float(np.var(y)) if np.var(y) > 0 else np.nan  # below 0: worse than the mean of what came
    row |= {"final": final, "observed": last, "error": final - last, "mse": mse, "r2": r2}
    if predicted.quantiles is not None:
        curves = predicted.quantiles.sel(split=split).sortby("tokens")  # (tokens, quantile)
        at = {q: np.interp(truth.tokens, curves.tokens, curves.sel(quantile=q)) for q in QUANTILES}
        row["covered_50"] = covered(at[0.25], at[0.75], truth.values)
        row["covered_90"] = covered(at[LOW], at[HIGH], truth.values)
        row["interval_score"] = float(np.mean(winkler(at[LOW], at[HIGH], truth.values)))
    return row
