"""Positions in bands 1, 2, 3-4, 5-8, ...: single positions are noisy, and what tells them apart is even in log i."""

from __future__ import annotations

import numpy as np
import xarray as xr


def in_bands(by_position: xr.DataArray) -> xr.DataArray:
    """Means over positions 1, 2, 3-4, 5-8, ...; the coordinate `position` is a band's geometric middle."""
    position = by_position.position
    band = np.ceil(np.log2(position)).astype(int)
    means = by_position.groupby(band.rename("band")).mean()
    middle = np.exp(np.log(position).groupby(band.rename("band")).mean())
    return means.assign_coords(position=("band", middle.values)).swap_dims(band="position").drop_vars("band")
