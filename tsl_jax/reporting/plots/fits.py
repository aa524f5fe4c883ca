"""Fits: data, curve and residuals of a few of many curves, and several laws side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tsl_jax.reporting.figures import even_in_log
from tsl_jax.reporting.plots.axes import legend_above, limits, log_axis, panel_title
from tsl_jax.reporting.plots.style import DOUBLE, INK, MUTED, SINGLE, colour, line, marker, sheet, styled

POINTS = 120  # data points drawn of a curve
FINE = 200  # points of a fitted curve
CHOICES = ("quantile", "worst", "best")


@styled
def fitted_curves(fit: Any, curves: int = 3, by: str = "quantile") -> Figure:
    """Data, fitted curve and residuals of a few curves of a fit, a column each.

    Args:
        fit: a `Fit` over one covariate. curves: how many at most.
        by: "worst" or "best" by R2 among the usable curves, or "quantile": evenly from the worst to the best.

    Raises:
        ValueError: for another choice, or a law of several covariates.
    """
    if by not in CHOICES or curves < 1:
        raise ValueError(f"plot: by must be one of {CHOICES} and curves 1 or more, found {by!r} and {curves}")
    x, y, names = _curves_of(fit)
    chosen = _chosen(fit, curves, by)
    columns = len(chosen)
    width = SINGLE if columns == 1 else DOUBLE
    figure, panels = sheet(width, 0.62 * width if columns == 1 else 0.42 * width, 2, columns, sharex="col")
    fine, predicted = _fine_curves(fit, x)
    residuals = y - fit.predict().values.reshape(y.shape)
    for column, k in enumerate(chosen):
        above, below = panels[:, column]
        some = _some_points(x, y[k])
        above.plot(x[some], y[k][some], marker(0), color=INK, markeredgewidth=0, alpha=0.6)
        above.plot(fine, predicted[k], **line(0))
        below.axhline(0, color=MUTED, linewidth=0.6)
        below.plot(x[some], residuals[k][some], marker(0), color=INK, markeredgewidth=0, alpha=0.6)
        _x_axis(below, x)
        limits(above, y[k][some], predicted[k])
        limits(below, residuals[k][some])
        panel_title(above, f"{names[k]}R2 {float(fit.r2.values.ravel()[k]):.4f}")
        below.set_xlabel(fit.x_name)
    panels[0, 0].set_ylabel(str(fit.y.name or "y"))
    panels[1, 0].set_ylabel("data - fit")
    dots = Line2D([], [], linestyle="", marker=marker(0), color=INK, alpha=0.6)
    legend_above(figure, {"data": dots, fit.law.formula: Line2D([], [], **line(0))})
    return figure


@styled
def law_comparison(comparison: Any, curve: int | None = None) -> Figure:
    """Several laws: through one curve, what they leave of it, and their held-out errors over all curves.

    Args:
        comparison: a `LawComparison` over one covariate. curve: which, from 0; default the one of median R2.

    Raises:
        ValueError: for a curve that is not there.
    """
    table, fits = comparison.to_dataframe(), comparison.fits
    names = [name for name in table.index if bool(fits[name].usable.any())][:5]  # colours stay apart for so many
    first = fits[names[0] if names else table.index[0]]
    x, y, labels = _curves_of(first)
    if curve is not None and not 0 <= curve < len(y):
        raise ValueError(f"plot: curves are counted from 0 to {len(y) - 1}, found {curve}")
    k = _chosen(first, 1, "quantile")[0] if curve is None else curve
    figure, ((through, left, right),) = sheet(DOUBLE, 0.4 * DOUBLE, 1, 3)
    some = _some_points(x, y[k])
    through.plot(x[some], y[k][some], marker(0), color=INK, markeredgewidth=0, alpha=0.5)
    left.axhline(0, color=MUTED, linewidth=0.6)
    drawn = []
    for j, name in enumerate(names):
        fine, predicted = _fine_curves(fits[name], x)
        through.plot(fine, predicted[k], **line(j))
        rest = y[k] - fits[name].predict().values.reshape(y.shape)[k]
        drawn.append(rest[some])
        left.plot(x[some], rest[some], linewidth=0.9, **line(j))
    for panel in (through, left):
        _x_axis(panel, x)
        panel.set_xlabel(first.x_name)
    limits(through, y[k][some])
    limits(left, *drawn)
    through.set_ylabel(str(first.y.name or "y"))
    panel_title(through, f"{labels[k]}data and laws" if labels[k] else "data and laws")
    panel_title(left, "data - law")
    shown = table[table["held_out"].notna()]
    places = np.arange(len(shown))[::-1]
    for place, (name, value) in zip(places, shown["held_out"].items(), strict=True):
        shade = colour(names.index(name)) if name in names else MUTED
        right.plot([float(value)], [place], marker(0), color=shade, markersize=4)
    right.set_yticks(places, [f"{name} ({row.parameters:.0f})" for name, row in shown.iterrows()])
    right.set_ylim(-0.6, len(shown) - 0.4)
    if len(shown):
        log_axis(right.xaxis, shown["held_out"].values, most=3)
    panel_title(right, "held-out error (parameters)")
    legend_above(figure, {name: Line2D([], [], **line(j)) for j, name in enumerate(names)})
    return figure


def _curves_of(fit: Any) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """x (point,), y (curve, point) with NaN where the weight is zero, and a name in front of each title."""
    if not isinstance(fit.x, np.ndarray):
        raise ValueError(f"plot: {fit.law.name} reads {', '.join(fit.law.covariates)}; plots are of one covariate")
    weights = fit.weights
    data = fit.y if weights is None else fit.y.where(weights > 0)
    y = data.transpose(*fit.y.dims).values.reshape(-1, len(fit.x)).astype(float)
    dims = fit.status.dims
    if not dims:
        return fit.x, y, [""]
    index = fit.status.to_series().index
    keys = [key if isinstance(key, tuple) else (key,) for key in index]
    return fit.x, y, [", ".join(f"{d} {v}" for d, v in zip(dims, key, strict=True)) + ": " for key in keys]


def _chosen(fit: Any, curves: int, by: str) -> list[int]:
    """Places of the curves to draw, among the usable ones if there are any; of one the median."""
    r2, usable = fit.r2.values.ravel(), fit.usable.values.ravel()
    places = np.flatnonzero(usable & np.isfinite(r2))
    places = places if len(places) else np.arange(len(r2))
    ordered = places[np.argsort(r2[places], kind="stable")]  # the worst first
    if by == "worst":
        return ordered[:curves].tolist()
    if by == "best":
        return ordered[::-1][:curves].tolist()
    spread = [0.5] if curves == 1 else np.linspace(0, 1, curves)
    return list(dict.fromkeys(ordered[np.rint(np.asarray(spread) * (len(ordered) - 1)).astype(int)].tolist()))


def _some_points(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """At most POINTS places of finite data, even in log x where x is positive."""
    finite = np.flatnonzero(np.isfinite(y))
    if len(finite) <= POINTS:
        return finite
    some = (
        even_in_log(x[finite], POINTS) if x[finite].min() > 0 else np.linspace(0, len(finite) - 1, POINTS).astype(int)
    )
    return finite[some]


def _fine_curves(fit: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Many points over the range of x, and the fitted curves (curve, point) there."""
    low, high = float(x.min()), float(x.max())
    fine = np.geomspace(low, high, FINE) if low > 0 else np.linspace(low, high, FINE)
    return fine, fit.predict(fine).values.reshape(-1, FINE)


def _x_axis(panel: Any, x: np.ndarray) -> None:
    if x.min() > 0 and x.max() > 10 * x.min():
        log_axis(panel.xaxis, x)
    panel.tick_params(labelsize=7)
