"""Fit, expected R2 and backtest of one surface: what `tsl report` and `tsl demo` compute before the page is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from tsl_jax import laws
from tsl_jax.diagnostics import surface_expected_r2
from tsl_jax.fitting import Fit, fit
from tsl_jax.forecasting import MAIN, Backtest, Forecast, backtest, forecast
from tsl_jax.forecasting.backtesting import CUTOFFS
from tsl_jax.forecasting.forecast_run import read_schedule
from tsl_jax.surface import position_noise

AHEAD = 24  # points from here to the end of the plan


@dataclass(frozen=True)
class Analysis:
    """Fit, expected R2, backtest and forecast of one surface.

    Attributes:
        surface: the surface. by_position: HYPERBOLIC fitted to the plain mean at every checkpoint.
        r2: Dataset (split, tokens): plain, additive, expected, expected_low, expected_high, as far as known.
        backtest: None while nothing lies beyond the first cut-off.
        ahead: of an unfinished run the rest of the plan, by the main method; None for a finished one.
    """

    surface: xr.Dataset
    by_position: Fit
    r2: xr.Dataset
    backtest: Backtest | None
    ahead: Forecast | None


def analyse(surface: xr.Dataset, progress: Callable[[str, int, int], None], methods: Sequence[str]) -> Analysis:
    """Fit, and forecast by the methods from every cut-off that the surface already reaches beyond."""
    progress("fit", 0, 3)
    by_position = fit(laws.HYPERBOLIC, surface.loss, over="position")
    progress("fit", 1, 3)
    r2 = {"plain": by_position.r2}
    if "loss_additive" in surface:
        r2["additive"] = fit(laws.HYPERBOLIC, surface.loss_additive, over="position").r2
    progress("fit", 2, 3)
    if "cluster_sum" in surface:
        expected = surface_expected_r2(by_position, surface, position_noise)
        r2 |= {"expected": expected["mean"], "expected_low": expected.low, "expected_high": expected.high}
    progress("fit", 3, 3)
    cutoffs = _reached(surface)
    tested = None
    if cutoffs:
        tested = backtest(surface, cutoffs, methods=methods, progress=progress, by_position=False)
    last, total = float(surface.tokens[-1]), _total(surface)
    ahead = forecast(surface, np.linspace(last, total, AHEAD + 1)[1:], method=MAIN) if last < total else None
    return Analysis(surface, by_position, xr.Dataset(r2), tested, ahead)


def missing(surface: xr.Dataset) -> str:
    """Why there is no forecast from some cut-offs, in words; empty where there is one from all."""
    without = [f"{c:.0%}" for c in CUTOFFS if c not in _reached(surface)]
    if not without:
        return ""
    first, *_, last = (f"{share:.0%}" for share in surface.tokens.values[[0, -1]] / _total(surface))
    checkpoints = f"{surface.sizes['tokens']} at {first} to {last} of the plan"
    return f"no forecast from {', '.join(without)}: it takes a checkpoint before and two after; there are {checkpoints}"


def _total(surface: xr.Dataset) -> float:
    """Tokens of the whole run: the planned total, or those of the last checkpoint where no plan is stored."""
    plan: Any = read_schedule(surface)
    return float(plan.total_tokens if plan is not None else surface.tokens[-1])


def _reached(surface: xr.Dataset) -> list[float]:
    """Cut-offs with a checkpoint before and two after them."""
    total, tokens = _total(surface), surface.tokens.values
    return [c for c in CUTOFFS if (tokens <= c * total).any() and (tokens > c * total).sum() >= 2]
