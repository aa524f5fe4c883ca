"""When will the loss come down to a value? Tokens with an interval, or the chance that it does not within the plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from tsl_jax.forecasting.baselines import Baseline, mean_loss
from tsl_jax.forecasting.forecast_run import forecast
from tsl_jax.forecasting.lr_aware import ForecastMethod
from tsl_jax.forecasting.methods import MAIN
from tsl_jax.forecasting.position_route import Paper
from tsl_jax.forecasting.recorded_pace import recorded_pace

POINTS = 96  # token counts between the last checkpoint and the end, even in log tokens
LEVEL = 0.9


def crossing(
    past: xr.Dataset,
    loss: float,
    until: float | None = None,
    schedule: Any = None,
    method: str | Baseline | ForecastMethod | Paper = MAIN,
    reference_runs: Sequence[xr.Dataset] = (),
) -> pd.DataFrame:
    """When the mean loss first is `loss` nats or less, from the draws of a forecast.

    Args:
        past, schedule, method, reference_runs: as in `forecast`. until: tokens up to which is looked; default the end
            of the plan.

    Returns:
        A row a split: tokens, low, high (quantiles of the first crossing; infinite where it is not by `until`), steps,
        steps_low, steps_high (NaN where the surface knows no steps), seconds, seconds_low, seconds_high (since 1970,
        at the pace of the past, see `recorded_pace`; NaN where the surface knows no times), never (chance that it is
        not by `until`), until.
        A loss that has been reached has its tokens and a chance of 0. The attribute `notes` is the forecast's.

    Raises:
        ValueError: for a loss that is not positive, an end that is not ahead, or what `forecast` refuses.
    """
    if not (np.isfinite(loss) and loss > 0):
        raise ValueError(f"crossing: the loss must be a positive number of nats, found {loss}")
    last = float(past.tokens[-1]) if past.sizes["tokens"] else 0.0
    end = forecast(past, until, schedule, method, reference_runs, by_position=False)
    furthest = float(end.mean.tokens.max())
    if furthest <= last:
        raise ValueError(
            f"crossing: expected an end beyond the last checkpoint, at {last:.4g} tokens, found {furthest:.4g}"
        )
    at = np.geomspace(last, furthest, POINTS)[1:]
    made = forecast(past, at, schedule, method, reference_runs, by_position=False)
    steps = float(past.step[-1]) / last if "step" in past.coords and last else np.nan
    rows = {}
    for split in past.split.values.tolist():
        seen = mean_loss(past).sel(split=split)
        reached = np.flatnonzero(seen.values <= loss)
        if len(reached):
            first = float(seen.tokens[reached[0]])
            rows[split] = (first, first, first, 0.0)
        elif made.draws is None or not made.usable[split]:
            rows[split] = (np.nan, np.nan, np.nan, np.nan)
        else:
            rows[split] = _quantiles(made.draws.sel(split=split).transpose("draw", "tokens").values, at, loss)
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["tokens", "low", "high", "never"])
    table.index.name = "split"
    for name, column in (("steps", "tokens"), ("steps_low", "low"), ("steps_high", "high")):
        table[name] = table[column] * steps
    pace = recorded_pace(past)
    for name, column in (("seconds", "tokens"), ("seconds_low", "low"), ("seconds_high", "high")):
        table[name] = np.nan if pace is None else pace.at(table[column])
    table["until"] = furthest
    table.attrs["notes"] = made.notes
    return table


def _quantiles(draws: np.ndarray, at: np.ndarray, loss: float) -> tuple[float, float, float, float]:
    """Median, ends of the 90 % interval and the share of draws (draw, at) that do not cross."""
    below = draws <= loss
    crosses = below.any(axis=1)
    first = np.where(crosses, at[below.argmax(axis=1)], np.inf)
    low, middle, high = np.quantile(first, [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2], method="inverted_cdf")
    return float(middle), float(low), float(high), float(1 - crosses.mean())
