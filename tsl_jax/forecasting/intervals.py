"""From draws of a forecast to its quantiles, and the error that comes from the choice of validation texts."""

from __future__ import annotations

import numpy as np
import xarray as xr

from tsl_jax.forecasting.result import QUANTILES
from tsl_jax.surface import position_covariance


def quantiles(draws: xr.DataArray) -> xr.DataArray:
    """QUANTILES of draws (draw, ...), as the last dimension; NaN where a draw is."""
    dims = [dim for dim in draws.dims if dim != "draw"]
    return draws.quantile(QUANTILES, "draw", skipna=False).transpose(*dims, "quantile")


def of_population(past: xr.Dataset, mean: xr.DataArray) -> xr.DataArray | None:
    """Quantiles of the mean loss on all texts of this kind, from draws (draw, split, tokens) of that on these texts.

    They add the error by documents of the last checkpoint; None where the surface does not know it.
    """
    return quantiles(mean + _text_error(past, mean)) if "cluster_sum" in past else None


def _text_error(past: xr.Dataset, mean: xr.DataArray) -> xr.DataArray:
    """Draws (draw, split) of the error of the mean loss that comes from the choice of validation texts."""
    last = position_covariance(past.isel(tokens=[-1])).isel(tokens=0)
    sem = last.mean(("position", "position_")).clip(min=0).fillna(0) ** 0.5
    normal = np.random.default_rng(9).standard_normal(mean.sizes["draw"])
    return xr.DataArray(normal, dims=("draw",)) * sem.sel(split=mean.split)
