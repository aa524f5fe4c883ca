"""The figures of the study of predictions: curves forecast beside the true one, and errors by method and cut-off."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from experiments.shared.seeds_and_intervals import interval
from tsl_jax.forecasting.backtesting import Backtest
from tsl_jax.reporting.plots import errors_by
from tsl_jax.reporting.plots import predictions as predicted

DRAWN = ("paper", "power", "mean_annealing")


def predictions(kind: str, surface: xr.Dataset, backtest: Backtest) -> tuple[dict[str, Any], dict[str, str]]:
    """The true loss of one run beside what was forecast of it from each cut-off: name -> figure, and name -> caption.

    Args:
        surface: of one split. backtest: of that run, by the methods of DRAWN.
    """
    curves: dict[float, dict[str, Any]] = {}
    for (cutoff, name), forecast in backtest.forecasts.items():
        mean = forecast.mean.isel(split=0)
        if np.isfinite(mean.values).any():
            curves.setdefault(cutoff, {})[name] = (mean.tokens.values, mean.values, None, None)
    ends = {cutoff: max(f.cutoff for (at, _), f in backtest.forecasts.items() if at == cutoff) for cutoff in curves}
    panels = {
        f"{100 * cutoff:.0f} % seen": (ends[cutoff], {name: own.get(name) for name in DRAWN})
        for cutoff, own in sorted(curves.items())
    }
    return {"predictions": predicted(surface.loss.mean("position").isel(split=0), panels)}, {
        "predictions": f"Predicted against true loss curves, {kind}, seed 0, {surface.split.values[0]}: what a method, "
        "given the shaded part, says of the rest; `power` has a constant; a line that leaves the frame is "
        "not followed, and a law without a line gave no forecast."
    }


def figures(rows: pd.DataFrame) -> tuple[dict[str, Any], dict[str, str]]:
    """Mean root MSE by method and cut-off of each kind of run, id: name -> figure, and name -> caption."""
    drawn, captions = {}, {}
    for kind, of_kind in rows.groupby("runs", sort=False):
        own = of_kind[(of_kind.split == "id") & of_kind.rmse.notna()]
        lines = []
        for (method, cutoff), group in own.groupby(["method", "cutoff"], sort=False):
            mean = interval(group.rmse)
            line = {"method": str(method), "cutoff": cutoff}
            lines.append({**line, "value": mean.mean, "low": mean.low, "high": mean.high})
        drawn[f"errors-{kind}"] = errors_by(pd.DataFrame(lines), "root mean squared error of the rest (nats)")
        captions[f"errors-{kind}"] = (
            f"{kind}, id: root of the mean squared error beyond each cut-off, mean over {own.seed.nunique()} seeds "
            "with 95 % t intervals."
        )
    return drawn, captions
