"""Figures for print: arrays in, a matplotlib `Figure` out, written as PDF, SVG and PNG. Draws, never fits or forecasts.

matplotlib is imported in this package alone, and without pyplot: no figure is kept open, no setting stays changed.

run_plots: the figures of one run, from its surface, fits and backtest
surfaces: loss by position of one run and across sizes, map of residuals
over_tokens: lines with bands, parameters, forecasts, R2
comparisons: rates and differences by position, differences in rows, errors by method
fits: a few curves of a fit, several laws side by side
axes: parts that figures share
style: fonts, colours, dashes; `save`

>>> from tsl_jax.reporting.plots import fan, lines_with_bands, save
>>> drawn = lines_with_bands({"a run": ([1, 2, 4], [3.0, 2.5, 2.2], None, None)}, "tokens", "loss (nats)", log="x")
>>> save(drawn, Path("figures/loss"))  # doctest: +SKIP
"""

from tsl_jax.reporting.plots.comparisons import (
    decline_rates,
    differences_by_position,
    differences_overall,
    errors_by,
    run_comparison,
)
from tsl_jax.reporting.plots.fits import fitted_curves, law_comparison
from tsl_jax.reporting.plots.over_tokens import (
    fan,
    lines_with_bands,
    parameter_paths,
    prediction,
    predictions,
    r2_against_expected,
)
from tsl_jax.reporting.plots.run_plots import figures_of
from tsl_jax.reporting.plots.style import save
from tsl_jax.reporting.plots.surfaces import position_curves, position_curves_of_sizes, residual_map

__all__ = [
    "decline_rates",
    "differences_by_position",
    "differences_overall",
    "errors_by",
    "fan",
    "figures_of",
    "fitted_curves",
    "law_comparison",
    "lines_with_bands",
    "parameter_paths",
    "position_curves",
    "position_curves_of_sizes",
    "prediction",
    "predictions",
    "r2_against_expected",
    "residual_map",
    "run_comparison",
    "save",
]
