"""Plans of the learning rate compared: where would one run end under each of them, and how far apart?

All plans continue the same past, so its fit is one: draw k of every plan has the same parameters and the same random
numbers, and the difference is taken draw by draw,

    d_k = L_k(end of the plan) - L_k(end of the first plan).

What two runs under one plan would differ by, through chance alone, is not in it, nor is an error that the law makes
about learning rates which this past has not seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from tsl_jax.forecasting import lr_aware
from tsl_jax.forecasting.forecast_run import forecast
from tsl_jax.forecasting.methods import MAIN, METHODS
from tsl_jax.forecasting.result import QUANTILES, Forecast
from tsl_jax.laws import Schedule

# of the other methods the draws are ordered anew for each plan
PAIRED = tuple(
    name for name, info in METHODS.items() if getattr(info.implementation, "through", None) is lr_aware.of_mean
)


@dataclass(frozen=True)
class Comparison:
    """The result.

    Attributes:
        forecasts: plan -> Forecast at the end of that plan. differences: DataArray (plan, split, quantile), nats: the
            mean loss at the end of each plan minus that of the first one; NaN where a split has no forecast.
    """

    forecasts: Mapping[str, Forecast]
    differences: xr.DataArray


def compare_plans(
    past: xr.Dataset, plans: Mapping[str, Any], method: str = MAIN, reference_runs: Sequence[xr.Dataset] = ()
) -> Comparison:
    """Forecast the end of each plan from one past, and the differences to the first plan.

    Args:
        past, reference_runs: as for `forecast`. plans: name -> `Schedule` or mapping, each of the whole run; they
            hold from the last checkpoint on. method: one of PAIRED.

    Raises:
        ValueError: for fewer than two plans, one that ends before there is anything to forecast, or another method.
    """
    if method not in PAIRED:
        raise ValueError(f"compare_plans: method must be one of {PAIRED}, found {method!r}")
    if len(plans) < 2:
        raise ValueError(f"compare_plans: expected two plans or more, found {len(plans)}; forecast takes a single one")
    schedules, seen = {}, past.tokens.values.max(initial=0)
    for name, given in plans.items():
        plan = schedules[name] = given if isinstance(given, Schedule) else Schedule.from_plan(given)
        if plan.total_tokens <= seen:
            totals = f"{plan.total_tokens:,} tokens, the past reaches {seen:,.0f}"
            raise ValueError(f"compare_plans: the plan {name} ends at {totals}; give a longer plan or an earlier past")
    made = {name: forecast(past, plan.total_tokens, plan, method, reference_runs) for name, plan in schedules.items()}
    ends = [end.draws.isel(tokens=-1, drop=True) for end in made.values() if end.draws is not None]
    apart = xr.concat([end - ends[0] for end in ends], "plan").assign_coords(plan=list(made))
    differences = apart.quantile(np.array(QUANTILES), "draw", skipna=False).transpose("plan", "split", "quantile")
    return Comparison(made, differences)
