"""The printed figures of one run, from what its analysis found; each is made when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from tsl_jax.fitting import Fit
from tsl_jax.forecasting.methods import MAIN
from tsl_jax.reporting.inputs import BacktestLike, ForecastLike, quantiles_of
from tsl_jax.reporting.plots.over_tokens import parameter_paths, prediction, r2_against_ceiling
from tsl_jax.reporting.plots.surfaces import position_curves, residual_map
from tsl_jax.reporting.standing import percent
from tsl_jax.reporting.words import label

METHODS = (MAIN, "paper", "power")  # forecasts that are drawn; without the paper's, which needs a cosine, its route


def figures_of(
    surface: xr.Dataset, by_position: Fit, backtest: BacktestLike | None = None, r2: xr.Dataset | None = None
) -> Iterator[tuple[str, Figure]]:
    """Names and figures of a run: by split the position law, its residual and R2, and forecasts by cut-off.

    Args:
        surface: the run. by_position: the position law fitted at every checkpoint. backtest: forecasts of its end.
        r2: variables `plain` and `ceiling` over (split, tokens).
    """
    for split in (str(name) for name in surface.split.values):
        yield f"position-curves-{split}", position_curves(surface, by_position, split)
        yield f"residual-{split}", residual_map((surface.loss - by_position.predict()).sel(split=split))
        if r2 is not None and "ceiling" in r2:
            one = r2.sel(split=split)
            yield f"r2-{split}", r2_against_ceiling(one.tokens.values, one.plain.values, one.ceiling.values)
    yield "parameters", parameter_paths(_paths(by_position), laws=_temporal(backtest))
    if backtest is not None:
        yield from _predictions(surface, backtest)


def _paths(fit: Fit) -> dict[str, Any]:
    return {
        str(split): tuple(one.sel(split=split) for one in (fit.params, fit.stderr, fit.usable))
        for split in fit.status.split.values
    }


def _temporal(backtest: BacktestLike | None) -> dict[str, xr.DataArray] | None:
    """The temporal laws from the largest cut-off, over the part they were fitted to and beyond."""
    made = [] if backtest is None else [key for key in backtest.forecasts if key[1] == "temporal"]
    if backtest is None or not made:
        return None
    one = backtest.forecasts[max(made)]
    laws = {name: law for name, law in one.fits.items() if isinstance(law, Fit) and law.over == ("tokens",)}
    if not laws:
        return None
    start = min(float(np.min(np.asarray(law.x))) for law in laws.values())
    at = np.geomspace(start, float(one.mean.tokens.max()), 80)
    curves = xr.concat([law.predict(at) for law in laws.values()], xr.Variable("param", list(laws)))
    return {str(split): curves.sel(split=split) for split in curves.split.values}


def _predictions(surface: xr.Dataset, backtest: BacktestLike) -> Iterator[tuple[str, Figure]]:
    mean = surface.loss.mean("position")
    for cutoff in sorted({cutoff for cutoff, _ in backtest.forecasts}):
        made = {name: one for (at, name), one in backtest.forecasts.items() if at == cutoff}
        for split in (str(name) for name in surface.split.values):
            known = {name: one for name, one in made.items() if _some(one, split)}
            names = [name if name in known or name != "paper" else "temporal" for name in METHODS]
            drawn = {label(name): _band(known[name], split) for name in names if name in known}
            if drawn:
                seen = max(one.cutoff for one in known.values())
                yield (
                    f"prediction-{percent(cutoff).rstrip('%')}-{split}",
                    prediction(mean.sel(split=split), drawn, seen),
                )


def _some(one: ForecastLike, split: str) -> bool:
    return bool(np.isfinite(one.mean.sel(split=split).values).any())


def _band(one: ForecastLike, split: str) -> tuple[Any, Any, Any, Any]:
    """Tokens, values, low and high of a 90 % band, as `prediction` draws them."""
    mean, quantiles = one.mean.sel(split=split), quantiles_of(one)
    if quantiles is None or one.method != MAIN:  # several bands on each other would hide all
        return mean.tokens.values, mean.values, None, None
    low, high = (quantiles.sel(split=split, quantile=end).values for end in (0.05, 0.95))
    return mean.tokens.values, mean.values, low, high
