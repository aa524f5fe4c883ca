"""The figures of position_law.py; they draw what was measured and fit nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

from experiments.position_law.measures import clusters_of
from tsl_jax.diagnostics import log_bins
from tsl_jax.fitting import Fit
from tsl_jax.reporting import plots as drawn
from tsl_jax.reporting.wording import count
from tsl_jax.surface import position_covariance

ARCHITECTURES = {"LLaMA": "", "GPT-NeoX": "-neox", "MoE": "-moe", "LSTM": "-lstm"}  # as the names of runs tell them


POINTS = 14  # bins of positions, even in log position, of a curve
WIDEST = 1e3  # intervals of i90 wider than this factor tell nothing and are not drawn


def architectures(names: Iterable[str]) -> dict[str, str]:
    """The run of each architecture, SIZE[-ARCHITECTURE]-cosine[@SEED], of the size that has most of them."""
    names = list(names)
    by_size = [
        {
            label: next(name for name in names if name.startswith(f"{size}{part}-cosine"))
            for label, part in ARCHITECTURES.items()
            if any(name.startswith(f"{size}{part}-cosine") for name in names)
        }
        for size in dict.fromkeys(name.split("-")[0] for name in names)
    ]
    return max(by_size, key=len, default={})


def curves(surfaces: Mapping[str, xr.Dataset], fits: Mapping[str, Fit]) -> dict[str, Any]:
    """Position curves of every architecture with the law."""
    return {
        f"curves-{label.lower()}": drawn.position_curves(surfaces[name], fits[name], "id")
        for label, name in architectures(surfaces).items()
    }


def sizes(surfaces: Mapping[str, xr.Dataset], fits: Mapping[str, Fit], n_params: Mapping[str, int], split: str) -> Any:
    """The last position curve of LLaMA of each size with its law, the first run of a size; `n_params`: of each run."""
    named = {name.partition("@")[0].removesuffix("-cosine"): name for name in reversed(list(surfaces))}
    chosen = sorted((name for size, name in named.items() if "-" not in size), key=lambda name: n_params[name])
    curves = {}
    for name in chosen:
        position = surfaces[name].position.values.astype(float)
        bins, fine = log_bins(position, POINTS), np.geomspace(position[0], position[-1], 120)
        measured = surfaces[name].loss.sel(split=split).isel(tokens=-1).values
        law = fits[name].predict(fine).sel(split=split).isel(tokens=-1).values
        curves[count(n_params[name])] = (np.exp(bins @ np.log(position)), bins @ measured, fine, law)
    return drawn.position_curves_of_sizes(curves)


def quality(rows: pd.DataFrame, run: str) -> dict[str, Any]:
    """R2 and that expected under the noise by checkpoint of a run, each split."""
    figures = {}
    for split, part in rows[rows.run == run].groupby("split"):
        figures[f"r2-{split}"] = drawn.r2_against_expected(part.tokens.values, part.r2.values, part.r2_expected.values)
    return figures


def residuals(surface: xr.Dataset, hyperbola: Fit, split: str) -> Any:
    """Residual (tokens, position) in standard errors of the positions' noise without its common mode."""
    left = (surface.loss - hyperbola.predict()).sel(split=split)
    sigma = position_covariance(surface).sel(split=split).values
    common = sigma.mean(axis=(1, 2))
    alone = np.sqrt(np.maximum(np.diagonal(sigma, axis1=1, axis2=2).mean(axis=1) - common, 0))
    unit = xr.DataArray(alone, {"tokens": left.tokens}, ("tokens",))
    return drawn.residual_map((left / unit).transpose("tokens", "position"), unit="standard errors")


def context(rows: pd.DataFrame, split: str) -> Any:
    """i90 over training by architecture, where the form passes its test."""
    lines = {}
    for label, name in architectures(rows.run.unique()).items():
        part = rows[(rows.run == name) & (rows.split == split) & rows.passes]
        part = part[np.isfinite(part.i90) & (part.high < WIDEST * part.low)]
        if len(part):
            lines[label] = (part.tokens.values, part.i90.values, part.low.values, part.high.values)
    return drawn.lines_with_bands(lines, "tokens seen", "i90 = 9/a1 (tokens of context)", log="xy")


def alternatives(comparisons: pd.DataFrame, estimate: str) -> Any:
    """Held-out errors of every law, geometric mean over runs and splits with a 90 % range of them."""
    table = []
    names = {"held_out": "held-out blocks", "second_half": "held-out second half"}
    comparisons = comparisons[comparisons.estimate == estimate]
    first = comparisons[comparisons.alternative == comparisons.alternative.iloc[0]]
    each = [("hyperbolic", first, "")] + [
        (alternative, part, "_alternative") for alternative, part in comparisons.groupby("alternative", sort=False)
    ]
    for law, part, end in each:
        for measure, word in names.items():
            values = part[measure + end].values
            low, high = np.quantile(values, [0.05, 0.95])
            row = {"method": law.removeprefix("position_"), "cutoff": word}
            table.append({**row, "value": float(stats.gmean(values)), "low": low, "high": high})
    return drawn.errors_by(pd.DataFrame(table), xlabel="root mean square error (nats)")


def by_position(differences: Mapping[str, tuple[np.ndarray, np.ndarray, int]], position: np.ndarray) -> Any:
    """Paired differences from LLaMA in bins even in log position, with pointwise 90 % t intervals."""
    bins = log_bins(position, 16)
    arms = {}
    for label, (mean, each, clusters) in differences.items():
        middle = bins @ mean
        error = np.sqrt(clusters / (clusters - 1) * ((each @ bins.T) ** 2).sum(axis=0))
        width = stats.t.ppf(0.95, clusters - 1) * error
        arms[label] = (middle, middle - width, middle + width)
    centre = np.exp(bins @ np.log(position))
    return drawn.differences_by_position(centre, arms)


def clusters_in(surfaces: Mapping[str, xr.Dataset]) -> str:
    """How many clusters the runs have, in words."""
    counts = {clusters_of(surface, str(split)) for surface in surfaces.values() for split in surface.split.values}
    return " or ".join(map(str, sorted(counts)))
