"""From the beginning of a run to the rest of it: the predicted loss surface and mean loss, at tokens not yet seen.

`forecast` is the entry point; `methods.py` lists the methods. Laws that know the learning rate, with reference runs
(`lr_aware.py`), give draws. The paper's temporal laws of a0, a1, a2 (`position_route.py`) and laws of the mean alone
(`baselines.py`) give points, whose intervals come from earlier origins within the past (`rolling_origin.py`). A
forecast sees only `past`, its reference runs, and the learning-rate plan as known at the cut-off.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from tsl_jax.forecasting import lr_aware, position_route, rolling_origin
from tsl_jax.forecasting.baselines import Baseline, mean_loss
from tsl_jax.forecasting.lr_aware import ForecastMethod
from tsl_jax.forecasting.lr_history import schedule_of
from tsl_jax.forecasting.methods import MAIN, METHODS
from tsl_jax.forecasting.position_route import Paper
from tsl_jax.forecasting.result import Forecast
from tsl_jax.laws import Schedule
from tsl_jax.surface import validate_surface


def forecast(
    past: xr.Dataset,
    at: Any = None,
    schedule: Any = None,
    method: str | Baseline | ForecastMethod | Paper = MAIN,
    reference_runs: Sequence[xr.Dataset] = (),
) -> Forecast:
    """Forecast the loss at tokens `at` from the surface of the past.

    Args:
        past: a surface cut at the present, such as `surface.sel(tokens=slice(None, 20e9))`.
        at: tokens seen at which to forecast, in any order; default the end of the plan. Of tokens that `past` has seen
            the result is what the fitted laws say there, no forecast. Of tokens named twice the first counts: a
            token count is a label of the result.
        schedule: the learning-rate plan as known at the cut-off (`Schedule`, mapping, or list of mappings); default the
            plan that the surface carries; without one the last learning rate goes on, and methods that need a plan do
            not apply. Laws that know the learning rate read it beyond the last checkpoint only: they read the past from
            the surface, if it carries a plan.
        method: one of METHODS, one of `tsl.baselines`, or `Paper(n_sep=...)`. The default is of the mean loss alone.
        reference_runs: surfaces of other runs to learn from, of other sizes (attribute n_params), seeds or schedules;
            only the family "lr_aware" uses them. They are used whole: give none that was not known at the cut-off.

    Raises:
        ValueError: for an unknown method, a surface without checkpoints, tokens that are not positive, or none where
            no plan is known. Too few usable checkpoints do not raise: the forecast of that split is NaN and its status
            says why.
    """
    past = validate_surface(past)
    plan = read_schedule(past, schedule)
    if past.sizes["tokens"] == 0:
        raise ValueError("forecast: past holds no checkpoint; check the cut-off against surface.tokens")
    at = _tokens(at, plan)
    if isinstance(method, str):
        if method not in METHODS:
            names = ", ".join(METHODS)
            raise ValueError(f"forecast: method must be one of {names}, or a value of tsl.baselines, found {method!r}")
        method = METHODS[method].implementation
    if isinstance(method, ForecastMethod):
        return lr_aware.forecast_splits(method, past, at, plan, [validate_surface(run) for run in reference_runs])
    learned = after_warmup(past, plan)
    cutoff = float(past.tokens[-1])

    def points(surface: xr.Dataset, tokens: np.ndarray) -> Forecast:
        if not isinstance(method, Baseline):
            return position_route.by_position(surface, tokens, plan, method, cutoff)
        mean, status, fits = method.predict(mean_loss(surface), tokens, plan)
        return Forecast(method.name, cutoff, mean, None, status, fits)

    shares = rolling_origin.FEW_SHARES if method == "temporal_joint" else rolling_origin.SHARES
    return rolling_origin.with_intervals(points, past, learned, at, shares)


def _tokens(at: Any, plan: Schedule | None) -> np.ndarray:
    """The tokens asked for (token,), each once, in the order of the question."""
    if at is None and plan is None:
        raise ValueError("forecast: the surface carries no plan whose end could be meant; name tokens, as in at=20e9")
    try:
        tokens = np.atleast_1d(np.asarray(plan.total_tokens if plan is not None and at is None else at, float))
    except (TypeError, ValueError):
        tokens = np.empty(0)
    if tokens.ndim != 1 or tokens.size == 0 or not np.all((tokens > 0) & np.isfinite(tokens)):
        raise ValueError(f"forecast: at= must be tokens seen, positive, found {at!r}")
    return tokens[np.sort(np.unique(tokens, return_index=True)[1])]


def read_schedule(past: xr.Dataset, schedule: Any = None) -> Schedule | None:
    """The plan given, else the one that the surface carries, as known at its last checkpoint, else None."""
    if schedule is not None:
        return schedule if isinstance(schedule, Schedule) else Schedule.from_plan(schedule)
    plan = schedule_of(past)
    return plan and plan.known_at(float(past.tokens.values.max(initial=0)))


def after_warmup(past: xr.Dataset, plan: Schedule | None) -> xr.Dataset:
    """The checkpoints that every law and baseline learns from: past the warm-up, as far as it is known."""
    return past.sel(tokens=past.tokens > 0 if plan is None else past.tokens >= max(plan.warmup_tokens, 1))
