"""Measures that several studies take of surfaces: bands of positions, paths of a0, a1, a2, errors of forecast ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

import tsl_jax as tsl
from experiments.shared.seeds_and_intervals import interval


def in_bands(by_position: xr.DataArray) -> xr.DataArray:
    """Means over positions 1, 2, 3-4, 5-8, ...; the coordinate `position` is a band's geometric middle.

    Single positions are noisy, and what tells them apart is even in log i.
    """
    position = by_position.position
    band = np.ceil(np.log2(position)).astype(int)
    means = by_position.groupby(band.rename("band")).mean()
    middle = np.exp(np.log(position).groupby(band.rename("band")).mean())
    return means.assign_coords(position=("band", middle.values)).swap_dims(band="position").drop_vars("band")


def loss_on_clusters(surface: xr.Dataset, clusters: slice | Sequence[int]) -> xr.DataArray:
    """The plain mean loss (split, tokens, position) over the documents of some clusters."""
    some = surface.isel(cluster=clusters)
    loss = some.cluster_sum.sum("cluster") / some.cluster_count.sum("cluster")
    return loss.transpose("split", "tokens", "position")


def parameter_path(
    seeds: Mapping[str, xr.Dataset], split: str = "id"
) -> tuple[xr.DataArray, xr.DataArray, xr.DataArray]:
    """The hyperbolic law over training of the runs of one arm (seed -> surface).

    Returns:
        Mean over seeds of a0, a1, a2 (tokens, param), its standard error, and where the fits of all seeds are usable.
    """
    fits = [tsl.fit(tsl.laws.HYPERBOLIC, surface.loss.sel(split=split), over="position") for surface in seeds.values()]
    params, usable = (xr.concat([getattr(fit, name) for fit in fits], "seed") for name in ("params", "usable"))
    return params.mean("seed"), params.std("seed", ddof=1) / np.sqrt(len(fits)), usable.all("seed")


def final_errors(surface: xr.Dataset, method: Any, cutoff: float) -> dict[str, tuple[float, float]]:
    """By split: forecast minus observed final mean loss, nats, and if the 90 % interval holds it (1, 0, NaN: none).

    Args:
        cutoff: share of the run that the forecast sees, and the plan as known then.
    """
    end, errors = int(surface.tokens[-1]), {}
    forecast = tsl.forecast(surface.sel(tokens=slice(None, round(cutoff * end))), [end], method=method)
    for split in map(str, surface.split.values):
        observed = float(surface.loss.sel(split=split, tokens=end).mean())
        error, inside = float(forecast.mean.sel(split=split)[-1]) - observed, np.nan
        if forecast.quantiles is not None and np.isfinite(error):
            low, high = (float(forecast.quantiles.sel(split=split, quantile=q)[-1]) for q in (0.05, 0.95))
            inside = float(low <= observed <= high)
        errors[split] = error, inside
    return errors


def error_columns(errors: np.ndarray, inside: np.ndarray, level: float) -> dict[str, Any]:
    """Columns of a table: mean error of the final loss over seeds (seed,), its size, and ends inside intervals."""
    judged = np.isfinite(inside)
    return {
        **interval(errors, level).columns("error"),
        "mean_absolute_error": float(pd.Series(np.abs(errors)).mean()),
        "without_forecast": int(np.isnan(errors).sum()),
        "intervals": int(judged.sum()),
        "inside_90": int(inside[judged].sum()),
    }
