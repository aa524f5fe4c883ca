"""The `lm` columns of every table: jaxopt's Levenberg-Marquardt beside variable projection, on the same curves.

lm_r2          median R2 of the fits by Levenberg-Marquardt
lm_sse_excess  largest of SSE_lm / SSE_varpro - 1 over the curves; below zero where Levenberg-Marquardt is better
lm_curves      curves that were fitted both ways
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

import tsl_jax as tsl
from tsl_jax.laws import Law

MOST = 32  # curves of a table's row: this solver is a thousand times slower
COLUMNS = ("lm_r2", "lm_sse_excess", "lm_curves")


def beside(law: Law, y: xr.DataArray, over: str, **options: Any) -> dict[str, float]:
    """The three columns for a law on curves of which every other dimension is flattened.

    Args:
        law, y, over: as for `tsl.fit`; curves with missing values are left out. options: of `tsl.fit`, shared by all
            curves.
    """
    outer = [dim for dim in y.dims if dim != over]
    flat = y.stack(curve=outer).reset_index("curve", drop=True) if outer else y.expand_dims("curve")
    flat = flat.transpose("curve", over).dropna("curve")
    if not flat.size:
        return dict(zip(COLUMNS, (np.nan, np.nan, 0), strict=True))
    chosen = np.unique(np.linspace(0, flat.sizes["curve"] - 1, min(MOST, flat.sizes["curve"])).round().astype(int))
    some = flat.isel(curve=chosen)
    best = tsl.fit(law, some, over=over, **options)
    other = tsl.fit(law, some, over=over, method="lm", **options)
    both = int((np.isfinite(best.sse) & np.isfinite(other.sse)).sum())
    excess = (other.sse / best.sse - 1).where(best.sse > 0)
    return dict(zip(COLUMNS, (float(other.r2.median()), float(excess.max()), both), strict=True))
