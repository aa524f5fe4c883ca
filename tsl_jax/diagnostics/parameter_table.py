"""Parameters of several fits side by side, refused where they do not mean the same.

a0, a1, a2 of the hyperbolic law describe positions 1..n. Where the law is not exactly true they move with n: fits of a
power law's curve over 1..128 and over 1..1024 differ in a1 by a factor of two. The same holds for any law that is a
description rather than the truth, so no difference between fits over different ranges says anything of the runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from tsl_jax.fitting.result import Fit


def align_params(fits: Mapping[str, Fit], dim: str = "fit") -> xr.Dataset:
    """Parameters of several fits of one law over one range, joined along a new dimension.

    Args:
        fits: name -> fit. dim: name of the new dimension, whose coordinate are the names.

    Returns:
        Dataset with params, stderr (dim, ..., param), r2 and converged (dim, ...), where a fit lacks a checkpoint of
        another NaN and False; attribute `range`, in words.

    Raises:
        ValueError: for fits of different laws, dimensions or ranges, naming two that differ; for none at all.
    """
    if not fits:
        raise ValueError("align_params: expected one fit or more, found none")
    (first, model), *rest = fits.items()
    for name, fit in rest:
        _alike(first, model, name, fit)
    names: Any = pd.Index(list(fits), name=dim)

    def joined(values: list[xr.DataArray], fill: object) -> xr.DataArray:
        return xr.concat(values, names, join="outer", fill_value=fill, coords="minimal", compat="override")

    each = list(fits.values())
    known = {name: joined([getattr(fit, name) for fit in each], np.nan) for name in ("params", "stderr", "r2")}
    converged = joined([fit.converged for fit in each], False)
    return xr.Dataset({**known, "converged": converged}, attrs={"range": model.range_in_words()})


def _alike(first: str, model: Fit, name: str, fit: Fit) -> None:
    if fit.law.name != model.law.name:
        raise ValueError(
            f"align_params: {first} is a fit of {model.law.name}, {name} of {fit.law.name}; compare one law"
        )
    if fit.over != model.over:
        raise ValueError(
            f"align_params: {first} was fitted over {model.over}, {name} over {fit.over}; compare one axis"
        )
    here, there = fit.range, model.range
    if here.keys() != there.keys() or any(not np.allclose(here[key], there[key], rtol=1e-9) for key in here):
        raise ValueError(
            f"align_params: {first} was fitted over {model.range_in_words()}, {name} over {fit.range_in_words()}: "
            "their parameters are not comparable; fit both over the same range"
        )
