"""Every law and baseline from several cut-offs of one finished run: what would have been forecast, and how it came."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from tsl_jax.forecasting.baselines import Baseline
from tsl_jax.forecasting.forecast_run import forecast, read_schedule
from tsl_jax.forecasting.methods import METHODS
from tsl_jax.forecasting.result import Forecast
from tsl_jax.forecasting.scoring import score
from tsl_jax.laws import Schedule

CUTOFFS = (0.1, 0.2, 0.3, 0.4)


@dataclass(frozen=True)
class Backtest:
    """The result.

    Attributes:
        scores: DataFrame indexed by (split, cutoff, method); columns as in `score`.
        forecasts: (cutoff, method) -> Forecast over the checkpoints beyond that cut-off.
    """

    scores: pd.DataFrame
    forecasts: dict[tuple[float, str], Forecast]

    def __repr__(self) -> str:
        return self.scores.error.unstack("method").to_string(float_format="{:+.3f}".format)


def backtest(
    surface: xr.Dataset,
    cutoffs: Sequence[float] = CUTOFFS,
    schedule: Any = None,
    methods: Sequence[Any] = tuple(METHODS),
    progress: Callable[[str, int, int], None] | None = None,
) -> Backtest:
    """Forecast from each fraction of the planned tokens and score against what came.

    Args:
        surface: a whole run. cutoffs: fractions of the planned tokens (of the last checkpoint where no plan is known).
        schedule: as for `forecast`. methods: names and baselines. progress: called with (stage, done, total).

    Raises:
        ValueError: if a cut-off leaves no checkpoint before it, or fewer than two after it.
    """
    plan = read_schedule(surface, schedule)
    tables, forecasts = [], {}
    for k, (cutoff, past) in enumerate(pasts(surface, cutoffs, schedule).items()):
        at = surface.tokens.values[past.sizes["tokens"] :]
        known = None if plan is None else plan.known_at(float(past.tokens[-1]))
        made = _side_by_side(past, at, known, methods)
        forecasts |= {(cutoff, one.method): one for one in made}
        table = score(made[0], surface, made[1:]).reset_index().assign(cutoff=cutoff)
        tables.append(table)
        if progress is not None:
            progress("forecast", k + 1, len(cutoffs))
    scores = pd.concat(tables).set_index(["split", "cutoff", "method"])
    return Backtest(scores.replace([np.inf, -np.inf], np.nan), forecasts)


def pasts(surface: xr.Dataset, cutoffs: Sequence[float] = CUTOFFS, schedule: Any = None) -> dict[float, xr.Dataset]:
    """What is seen from each cut-off; arguments and errors as of `backtest`, before any work."""
    plan = read_schedule(surface, schedule)
    total = plan.total_tokens if plan is not None else float(surface.tokens[-1])
    seen = {cutoff: surface.sel(tokens=surface.tokens <= cutoff * total) for cutoff in cutoffs}
    for cutoff, past in seen.items():
        where, later = f"{cutoff:.0%} ({cutoff * total:.4g} tokens)", surface.sizes["tokens"] - past.sizes["tokens"]
        if past.sizes["tokens"] == 0:
            raise ValueError(f"backtest: no checkpoint within the first {where}")
        if later < 2:
            raise ValueError(
                f"backtest: {later} checkpoints beyond the first {where}, 2 are needed; name earlier cut-offs"
            )
    return seen


def _is_baseline(method: Any) -> bool:
    return isinstance(method, Baseline) or (
        isinstance(method, str) and method in METHODS and METHODS[method].is_baseline
    )


def _side_by_side(past: xr.Dataset, at: np.ndarray, plan: Schedule | None, methods: Sequence[Any]) -> list[Forecast]:
    """The forecasts of all methods. Compiling a law takes far longer than fitting it, and compilers run in parallel."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        # those of the mean first: the routes by position share laws, and would compile them twice
        order = sorted(methods, key=lambda method: not _is_baseline(method))
        made = dict(zip(map(id, order), pool.map(lambda method: forecast(past, at, plan, method), order), strict=True))
    return [made[id(method)] for method in methods]
