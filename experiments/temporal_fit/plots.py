"""The figures of the study of whole runs: one run beside its laws, and what the paper's law leaves of its surface."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from tsl_jax.fitting import Fit
from tsl_jax.reporting import plots


@dataclass(frozen=True)
class OneRun:
    """What is drawn of one run and split, at its checkpoints after the warm-up.

    Attributes:
        name: of the run and split. tokens: (checkpoint,). curves: name -> mean loss (checkpoint,).
        by_position: the hyperbola at each checkpoint. laws: a0, a1, a2 by their laws over tokens, (param, tokens).
        residual: observed minus fitted loss, (tokens, position).
    """

    name: str
    tokens: np.ndarray
    curves: Mapping[str, np.ndarray]
    by_position: Fit
    laws: xr.DataArray
    residual: xr.DataArray


def figures(run: OneRun) -> tuple[dict[str, Any], dict[str, str]]:
    """Name -> figure, and name -> caption."""
    lines = {name: (run.tokens, values, None, None) for name, values in run.curves.items()}
    fit = run.by_position
    path = tuple(values.isel(split=0) for values in (fit.params, fit.stderr, fit.usable))
    drawn = {
        "curves": plots.lines_with_bands(lines, "training tokens", "mean loss (nats)", "x"),
        "parameters": plots.parameter_paths({"fitted": path}, laws={"fitted": run.laws}),
        "residuals": plots.residual_map(run.residual),
    }
    where = f"{run.name}, checkpoints after the warm-up"
    return drawn, {
        "curves": f"Mean loss and three laws fitted to it: {where}.",
        "parameters": f"a0, a1 and a2 of the hyperbola at each checkpoint, and the paper's laws over tokens: {where}.",
        "residuals": f"Observed minus fitted loss, what the paper's law leaves of the surface: {where}.",
    }
