"""How good a forecast was, once the rest of the run is known.

Judged on the mean loss of the held-out checkpoints only, on an even grid of tokens (both curves interpolated linearly),
so that the spacing of checkpoints does not weigh the errors:

    MSE = mean (predicted - observed)^2,   R2 = 1 - MSE / var(observed),   error = predicted - observed at the last one.

Intervals are judged at the checkpoints themselves, by the share that lies inside and by the interval score, which
rewards narrow intervals and punishes what lies outside them.

Checkpoints that lack the loss of a position are left out, and the status says so. Nothing is extrapolated: a forecast
must span the held-out checkpoints.
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
LEVEL = 0.9  # of the interval that a table tells of
LOW, HIGH = QUANTILES[0], QUANTILES[-1]


def winkler(low: Any, high: Any, observed: Any, level: float = LEVEL) -> Any:
    """Interval score of central intervals, any shape, in the unit of what is forecast; lower is better:

        high - low + 2/(1 - level) (how far the observed value lies outside).

    NaN where a bound or the value is. Its expectation is least for the true quantiles.
    Source: Winkler (1972); Gneiting & Raftery, Strictly Proper Scoring Rules (2007), equation 43.
    """
    outside = np.maximum(low - observed, 0) + np.maximum(observed - high, 0)
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
        schedule: the plan that baselines are told, as for `forecast`.

    Returns:
        DataFrame indexed by (split, method): final (predicted, nats), observed, error, mse, r2, covered_50 and
        covered_90 (shares of the held-out checkpoints inside these intervals), interval_score (their mean `winkler` at
        90 %, nats), status (a sentence), flags (`ForecastFlag` as a number; 0: nothing speaks against the forecast).
        The three about intervals are NaN for methods that give none.

    Raises:
        ValueError: if fewer than two checkpoints of the run lie beyond the cut-off, if a forecast does not span these,
            or if one in `against` has seen more than the forecast that is scored.
    """
    others = [against] if isinstance(against, Baseline | Forecast) else list(against)
    past = surface.sel(tokens=surface.tokens <= predicted.cutoff)
    at = surface.tokens.values[surface.tokens.values > predicted.cutoff]
    if len(at) < 2:
        raise ValueError(
            f"score: {len(at)} checkpoints beyond the cut-off of {predicted.cutoff:.4g} tokens, 2 are needed"
        )
    all_of_them = [predicted, *(forecast(past, at, schedule, o) if isinstance(o, Baseline) else o for o in others)]
    for one in all_of_them:
        _check(one, predicted.cutoff, at)
    observed = mean_loss(surface.sel(tokens=at))
    rows = [_row(one, observed, split) for split in observed.split.values.tolist() for one in all_of_them]
    return pd.DataFrame(rows).set_index(["split", "method"])


def _check(one: Forecast, cutoff: float, at: np.ndarray) -> None:
    """Refuse a forecast that has seen more than the others, or that says nothing of some held-out checkpoints."""
    if one.cutoff > cutoff:
        raise ValueError(
            f"score: {one.method} in against= was made from {one.cutoff:.6g} tokens, the forecast it stands beside "
            f"from {cutoff:.6g}; make it from the same past"
        )
    first, last = float(one.mean.tokens.min()), float(one.mean.tokens.max())
    if first > at[0] or last < at[-1]:
        raise ValueError(
            f"score: the forecast {one.method} spans {first:.6g} to {last:.6g} tokens, the held-out checkpoints "
            f"{at[0]:.6g} to {at[-1]:.6g}; make it with at=surface.tokens"
        )


def _row(predicted: Forecast, observed: xr.DataArray, split: str) -> dict[str, Any]:
    whole = observed.sel(split=split)
    truth = whole.dropna("tokens")
    incomplete = incomplete_checkpoints(whole, ForecastFlag.INCOMPLETE_FUTURE, "of those held out, ")
    status = predicted.status[split] | incomplete
    judged = _judged(predicted.mean.sel(split=split).sortby("tokens"), truth)
    judged |= _intervals(predicted, truth, split)
    return {"split": split, "method": predicted.method, **judged, "status": str(status), "flags": int(status.flags)}


def _intervals(predicted: Forecast, truth: xr.DataArray, split: str) -> dict[str, float]:
    """What a row says of the intervals; NaN where there are none, or fewer than two held-out checkpoints."""
    if predicted.quantiles is None or truth.sizes["tokens"] < 2:
        return dict.fromkeys(("covered_50", "covered_90", "interval_score"), np.nan)
    known = predicted.quantiles.sel(split=split).sortby("tokens")
    at = {q: np.interp(truth.tokens, known.tokens, known.sel(quantile=q)) for q in QUANTILES}
    return {
        "covered_50": covered(at[0.25], at[0.75], truth.values),
        "covered_90": covered(at[LOW], at[HIGH], truth.values),
        "interval_score": float(np.mean(winkler(at[LOW], at[HIGH], truth.values))),
    }


def _judged(mean: xr.DataArray, truth: xr.DataArray) -> dict[str, float]:
    """The numbers of a row about the mean; NaN with fewer than two held-out checkpoints."""
    if truth.sizes["tokens"] < 2:
        return dict.fromkeys(("final", "observed", "error", "mse", "r2"), np.nan)
    grid = np.linspace(float(truth.tokens[0]), float(truth.tokens[-1]), GRID)
    y, f = (np.interp(grid, curve.tokens.values, curve.values) for curve in (truth, mean))
    mse = float(np.mean((f - y) ** 2))
    r2 = 1 - mse / float(np.var(y)) if np.var(y) > 0 else np.nan
    final, last = float(f[-1]), float(truth[-1])
    return {"final": final, "observed": last, "error": final - last, "mse": mse, "r2": r2}
