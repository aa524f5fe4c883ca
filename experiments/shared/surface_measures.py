"""Measures that several studies take of surfaces: bands of positions, paths of a0, a1, a2, errors of forecast ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

import tsl_jax as tsl


def parameter_path(own: Mapping[str, xr.Dataset], split: str = "id") -> tuple[xr.DataArray, xr.DataArray, xr.DataArray]:
    """The hyperbolic law over training of the runs of one arm (seed -> surface).

    Returns:
        Mean over seeds of a0, a1, a2 (tokens, param), its standard error, and where the fits of all seeds are usable.
    """
    fits = [tsl.fit(tsl.laws.HYPERBOLIC, one.loss.sel(split=split), over="position") for one in own.values()]
    params = xr.concat([one.params for one in fits], "seed")
    good = [one.usable for one in fits]
    return params.mean("seed"), params.std("seed", ddof=1) / np.sqrt(len(fits)), xr.concat(good, "seed").all("seed")


def final_errors(surface: xr.Dataset, method: Any, cutoff: float) -> dict[str, tuple[float, float]]:
    """By split: forecast minus observed final mean loss, nats, and if the 90 % interval holds it (1, 0, NaN: none).

    Args:
        cutoff: share of the run that the forecast sees, and the plan as known then.
    """
    end = int(surface.tokens[-1])
    made = tsl.forecast(surface.sel(tokens=slice(None, round(cutoff * end))), [end], method=method)
    found = {}
    for split in map(str, surface.split.values):
        observed = float(surface.loss.sel(split=split, tokens=end).mean())
        error, inside = float(made.mean.sel(split=split)[-1]) - observed, np.nan
        if made.quantiles is not None and np.isfinite(error):
            low, high = (float(made.quantiles.sel(split=split, quantile=q)[-1]) for q in (0.05, 0.95))
            inside = float(low <= observed <= high)
        found[split] = error, inside
    return found


def in_bands(by_position: xr.DataArray) -> xr.DataArray:
    """Means over positions 1, 2, 3-4, 5-8, ...; the coordinate `position` is a band's geometric middle."""
    position = by_position.position
    band = np.ceil(np.log2(position)).astype(int)
    means = by_position.groupby(band.rename("band")).mean()
    middle = np.exp(np.log(position).groupby(band.rename("band")).mean())
    return means.assign_coords(position=("band", middle.values)).swap_dims(band="position").drop_vars("band")
