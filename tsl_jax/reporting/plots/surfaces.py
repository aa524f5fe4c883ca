"""The loss surface: loss by position at several checkpoints, and a map of the residuals of a law."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tsl_jax.reporting.figures import even_in_log
from tsl_jax.reporting.plots.axes import POSITION, TOKENS, legend_above, limits, log_axis, position_axis
from tsl_jax.reporting.plots.style import DOT, INK, MARKERS, SINGLE, diverging, sequential, sheet, styled
from tsl_jax.reporting.wording import count

POINTS = 28  # measured positions drawn of each checkpoint
CELLS = 40  # of the map along positions
HATCH = "//////"  # for values below zero, which in grey look like those above


@styled
def position_curves(surface: xr.Dataset, fit: Any, split: str, checkpoints: int = 6) -> Figure:
    """L(i) over log position at several checkpoints: measured (dots, evenly thinned in log position), fitted (lines).

    Args:
        surface: a loss surface. fit: the position law fitted to it (`predict`, over split and tokens), or None.
        checkpoints: how many, evenly in log tokens, first and last among them.
    """
    figure, ((panel,),) = sheet(SINGLE, 0.72 * SINGLE)
    loss = surface.loss.sel(split=split).transpose("tokens", "position")
    position = loss.position.values.astype(float)
    chosen = even_in_log(loss.tokens.values.astype(float), checkpoints)
    points = even_in_log(position, POINTS)
    fine = np.geomspace(position[0], position[-1], 120)
    curves = None if fit is None else fit.predict(fine).sel(split=split).transpose("tokens", "position")
    colours = sequential(len(chosen))
    for k, (measured, shade) in enumerate(zip(loss.isel(tokens=chosen), colours, strict=True)):
        panel.plot(position[points], measured.values[points], MARKERS[k % len(MARKERS)], color=shade, markeredgewidth=0)
        if curves is not None:
            panel.plot(fine, curves.sel(tokens=measured.tokens).values, color=shade, linewidth=0.9)
    position_axis(panel, position)
    limits(panel, loss.values[chosen][:, points])
    panel.set_ylabel("loss (nats/token)")
    style = {"linestyle": "" if fit is None else "-", "markersize": DOT + 0.6, "linewidth": 0.9}
    handles = [Line2D([], [], color=c, marker=MARKERS[k % len(MARKERS)], **style) for k, c in enumerate(colours)]
    names = [count(tokens) for tokens in loss.tokens.values[chosen]]
    if len(set(names)) < len(names):  # too close for three figures
        names = [f"{tokens:,.0f}" for tokens in loss.tokens.values[chosen]]
    legend_above(figure, dict(zip(names, handles, strict=True)), title=TOKENS)
    return figure


@styled
def position_curves_of_sizes(curves: Mapping[str, tuple[Any, Any, Any, Any]]) -> Figure:
    """L(i) over log position of models of several sizes: measured (dots) and fitted (lines).

    Args:
        curves: size, the smallest first -> (position, loss) measured, (position, loss) of the law; nats.
    """
    figure, ((panel,),) = sheet(SINGLE, 0.72 * SINGLE)
    handles = []
    for k, ((at, loss, fine, law), shade) in enumerate(zip(curves.values(), sequential(len(curves)), strict=True)):
        panel.plot(at, loss, MARKERS[k % len(MARKERS)], color=shade, markeredgewidth=0)
        panel.plot(fine, law, color=shade, linewidth=0.9)
        handles.append(Line2D([], [], color=shade, marker=MARKERS[k % len(MARKERS)], linewidth=0.9))
    position_axis(panel, np.concatenate([curve[2] for curve in curves.values()]))
    limits(panel, *(curve[1] for curve in curves.values()))
    panel.set_ylabel("loss (nats/token)")
    legend_above(figure, dict(zip(curves, handles, strict=True)), title="parameters")
    return figure


@styled
def residual_map(residual: xr.DataArray, unit: str = "nats") -> Figure:
    """Residuals of a law, observed minus fitted, over log position and log tokens; below zero hatched as well.

    Args:
        residual: (tokens, position). Neighbouring positions are averaged into at most 40 cells, even in log position.
    """
    figure, ((panel,),) = sheet(SINGLE, 0.72 * SINGLE)
    values = residual.transpose("tokens", "position")
    values = values.isel(tokens=values.tokens.values > 0)
    edges, cells = _cells(values.position.values.astype(float), values.values)
    borders = _borders(values.tokens.values.astype(float))
    levels = _levels(cells)
    norm, scale = BoundaryNorm(levels, 256, extend="both"), diverging()
    panel.pcolormesh(edges, borders, cells, cmap=scale, norm=norm, linewidth=0)
    below = np.ma.masked_where(~(cells < levels[levels < 0][-1]), cells)
    panel.pcolor(edges, borders, below, facecolor="none", edgecolor=INK, hatch=HATCH, linewidth=0)
    log_axis(panel.xaxis, edges, lambda value: f"{value:,.0f}", margin=1.0)
    log_axis(panel.yaxis, borders, count, margin=1.0)
    panel.set(xlabel=POSITION, ylabel=TOKENS)
    bar = figure.colorbar(ScalarMappable(norm, scale), ax=panel, ticks=levels, pad=0.02, aspect=22)
    bar.ax.axhspan(levels[0], levels[levels < 0][-1], facecolor="none", edgecolor=INK, hatch=HATCH, linewidth=0)
    bar.set_label(f"observed − fitted ({unit})")
    return figure


def _cells(position: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edges of the cells along positions, and means (tokens, cell)."""
    # of cells even in log position, those narrower than one position fall together
    first = np.unique(np.round(np.geomspace(position[0], position[-1] + 1, CELLS + 1)))[:-1]
    starts = np.unique(np.searchsorted(position, first))
    sizes = np.diff([*starts, len(position)])
    return np.append(position[starts], position[-1] + 1) - 0.5, np.add.reduceat(values, starts, axis=1) / sizes


def _borders(tokens: np.ndarray) -> np.ndarray:
    """Borders halfway in log between checkpoints."""
    logs = np.log(tokens)
    middle = (logs[1:] + logs[:-1]) / 2
    if not len(middle):
        return tokens[0] * np.array([0.9, 1.1])
    return np.exp([2 * logs[0] - middle[0], *middle, 2 * logs[-1] - middle[-1]])


def _levels(cells: np.ndarray) -> np.ndarray:
    """Three round levels (1, 2, 5) on both sides of zero; 2 % of the cells or more lie beyond the highest."""
    most = float(np.nanquantile(np.abs(cells), 0.98)) if np.isfinite(cells).any() else 0.0
    # rounds down, so that the outer levels are reached
    ladder = np.outer(10.0 ** np.arange(-12, 7), [1, 2, 5]).ravel()
    top = max(int(np.searchsorted(ladder, most, side="right")), 3)
    above = ladder[top - 3 : top]
    return np.concatenate([-above[::-1], above])
