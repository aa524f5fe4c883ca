"""The printed figures of one run, from its surface, fits and backtest; each is made when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from tsl_jax.fitting import Fit
from tsl_jax.forecasting.backtesting import Backtest
from tsl_jax.forecasting.methods import MAIN
from tsl_jax.reporting.material import PATHS, forecast_parameters
from tsl_jax.reporting.plots.over_tokens import parameter_paths, prediction, r2_against_expected
from tsl_jax.reporting.plots.surfaces import position_curves, residual_map
from tsl_jax.reporting.wording import percents

DRAWN = (MAIN, "paper", "power")  # forecasts; where the paper's law has none, as it needs a cosine, "temporal"


def figures_of(
    surface: xr.Dataset, by_position: Fit, backtest: Backtest | None = None, r2: xr.Dataset | None = None
) -> Iterator[tuple[str, Figure]]:
    """Names and figures of a run: by split the position law, its residual and R2, and forecasts by cut-off.

    Args:
        surface: the run. by_position: the position law fitted at every checkpoint. backtest: forecasts of its end.
        r2: variables `plain`, and if known `expected`, `expected_low` and `expected_high`, over (split, tokens).
    """
    for split in (str(name) for name in surface.split.values):
        yield f"position-curves-{split}", position_curves(surface, by_position, split)
        yield f"residual-{split}", residual_map((surface.loss - by_position.predict()).sel(split=split))
        if r2 is not None and "expected" in r2:
            of_split = r2.sel(split=split)
            ends = (of_split[name].values if name in of_split else None for name in ("expected_low", "expected_high"))
            values = (of_split[name].values for name in ("tokens", "plain", "expected"))
            yield f"r2-{split}", r2_against_expected(*values, *ends)
    params, stderr, usable = by_position.params, by_position.stderr, by_position.usable
    splits = params.split.values
    paths = {str(s): (params.sel(split=s), stderr.sel(split=s), usable.sel(split=s)) for s in splits}
    yield "parameters", parameter_paths(paths, laws=_forecast_parameters(backtest))
    if backtest is not None:
        yield from _predictions(surface, backtest)


def _forecast_parameters(backtest: Backtest | None) -> dict[str, xr.DataArray] | None:
    """The parameters as forecast from the largest cut-off, by the first of PATHS: split -> (tokens, param)."""
    for method in PATHS:
        keys = [key for key in (backtest.forecasts if backtest else ()) if key[1] == method]
        paths = forecast_parameters(backtest.forecasts[max(keys)]) if backtest and keys else {}
        if paths:
            curves = xr.concat([path.sel(quantile=0.5) for path in paths.values()], xr.Variable("param", list(paths)))
            return {str(split): curves.sel(split=split) for split in curves.split.values}
    return None


def _predictions(surface: xr.Dataset, backtest: Backtest) -> Iterator[tuple[str, Figure]]:
    observed = surface.loss.mean("position")
    for cutoff, seen in percents(cutoff for cutoff, _ in backtest.forecasts).items():
        group = {name: forecast for (at, name), forecast in backtest.forecasts.items() if at == cutoff}
        for split in (str(name) for name in surface.split.values):
            usable = {n: f for n, f in group.items() if np.isfinite(f.mean.sel(split=split).values).any()}
            curves: dict[str, tuple[Any, Any, Any, Any]] = {}
            # where the schedule is no cosine, the paper's law does not apply and its hyperbolas stand in
            for name in (name if name in usable or name != "paper" else "temporal" for name in DRAWN):
                if name in usable:
                    mean, quantiles, low, high = usable[name].mean.sel(split=split), usable[name].quantiles, None, None
                    if quantiles is not None and name == MAIN:  # several bands on each other would hide all
                        low, high = (quantiles.sel(split=split, quantile=end).values for end in (0.05, 0.95))
                    curves[name] = (mean.tokens.values, mean.values, low, high)
            if curves:
                figure = prediction(observed.sel(split=split), curves, max(f.cutoff for f in usable.values()))
                yield f"prediction-{seen.rstrip('%')}-{split}", figure
