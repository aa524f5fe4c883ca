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
        ValueError: for fits of different laws, dimensions or ranges, naming two that differ; for none at all, or a
            `dim` that the fits have already.
    """
    if not fits:
        raise ValueError("align_params: expected one fit or more, found none")
    (first, model), *others = fits.items()
    if dim in model.params.dims:
        raise ValueError(f"align_params: the fits have a dimension {dim} already, {model.params.dims}; rename it")
    for name, fit in others:
        if fit.law.name != model.law.name:
            laws = f"{first} is a fit of {model.law.name}, {name} of {fit.law.name}"
            raise ValueError(f"align_params: {laws}; compare one law")
        if fit.law != model.law:  # of the same name: its function, bounds or constants are others
            raise ValueError(f"align_params: {first} and {name} are fits of two laws called {fit.law.name}")
        if fit.over != model.over or set(fit.params.dims) != set(model.params.dims):
            dims = f"{model.over} with {model.params.dims}, {name} over {fit.over} with {fit.params.dims}"
            raise ValueError(f"align_params: {first} was fitted over {dims}; compare one axis")
        ends, expected = fit.range, model.range  # laws of one name have the same covariates
        if not all(np.allclose(ends[key], expected[key], rtol=1e-9) for key in expected):
            ranges = f"{model.range_in_words()}, {name} over {fit.range_in_words()}"
            fix = "their parameters are not comparable; fit both over the same range"
            raise ValueError(f"align_params: {first} was fitted over {ranges}: {fix}")
    names: Any = pd.Index(list(fits), name=dim)  # the coordinate of the new dimension

    def joined(attribute: str, fill: object) -> xr.DataArray:
        # An outer join: fits may lack checkpoints of each other.
        arrays: list[xr.DataArray] = [getattr(fit, attribute) for fit in fits.values()]
        return xr.concat(arrays, names, join="outer", fill_value=fill, coords="minimal", compat="override")

    columns = {name: joined(name, np.nan) for name in ("params", "stderr", "r2")}
    return xr.Dataset({**columns, "converged": joined("converged", False)}, attrs={"range": model.range_in_words()})
