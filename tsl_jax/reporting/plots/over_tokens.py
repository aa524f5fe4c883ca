"""What goes on over training: any lines with bands, the position law's parameters, forecasts, and R2 at its ceiling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tsl_jax.reporting.figures import span
from tsl_jax.reporting.plots.frame import band, legend_above, limits, log_axis, tokens_axis
from tsl_jax.reporting.plots.style import DOT, DOUBLE, INK, MUTED, SHADE, SINGLE, colour, line, marker, sheet, styled

UNITS = {"a0": "$a_0$ (nats)", "a1": "$a_1$ (per position)", "a2": "$a_2$ (nats)"}


@styled
def lines_with_bands(
    curves: Mapping[str, tuple[Any, Any, Any, Any]], xlabel: str, ylabel: str, log: str = "", width: float = SINGLE
) -> Figure:
    """Several lines with bands in one panel.

    Args:
        curves: label -> (x, y, low, high), each (point,); low and high both None for a line without band.
        xlabel, ylabel: with units. log: axes that are logarithmic: "", "x", "y" or "xy". width: inches.
    """
    figure, ((panel,),) = sheet(width, 0.68 * SINGLE)
    for k, (x, y, low, high) in enumerate(curves.values()):
        if low is not None:
            band(panel, x, low, high, colour(k))
        few = np.size(x) <= 40
        panel.plot(x, y, marker=marker(k) if few else None, linewidth=1.2 if few else 0.9, **line(k))
    for which, columns in (("x", (0,)), ("y", (1, 2, 3))):
        if which in log and curves:
            values = [
                np.ravel(np.asarray(one[n], float)) for one in curves.values() for n in columns if one[n] is not None
            ]
            log_axis(getattr(panel, f"{which}axis"), np.concatenate(values))
    panel.set(xlabel=xlabel, ylabel=ylabel)
    if len(curves) > 1:
        legend_above(figure, panel.get_lines(), list(curves))
    return figure


@styled
def parameter_paths(
    paths: Mapping[str, tuple[xr.DataArray, Any, xr.DataArray | None]],
    marks: Sequence[float] = (),
    laws: Mapping[str, xr.DataArray] | None = None,
) -> Figure:
    """Parameters of the position law over log tokens, one panel each, one line a run.

    Args:
        paths: label -> (params (tokens, param), band, usable (tokens,) or None). The band is a standard error of the
            shape of params, or a pair (low, high) of such, or None. Fits that are not usable are left out.
        marks: tokens at which vertical lines stand, such as the steps of a schedule.
        laws: label -> (tokens, param) values of temporal laws, drawn dashed in the colour of that label.
    """
    names = list(dict.fromkeys(str(name) for one, _, _ in paths.values() for name in one.param.values))
    figure, ((*panels,),) = sheet(DOUBLE, 2.1, 1, len(names))
    for panel, name in zip(panels, names, strict=True):
        drawn = [_path(panel, k, *_of(path, name)) for k, path in enumerate(paths.values())]
        _laws(panel, list(paths), laws or {}, name)
        for mark in marks:
            panel.axvline(mark, color=MUTED, linewidth=0.6, linestyle=":", zorder=0)
        tokens_axis(panel, np.concatenate([tokens for tokens, _ in drawn]))
        limits(panel, *(values for _, values in drawn))
        panel.set_ylabel(UNITS.get(name, name))
    handles = [Line2D([], [], marker=marker(k), **line(k)) for k in range(len(paths))]
    labels = list(paths)
    if laws:
        handles.append(Line2D([], [], color=MUTED, linewidth=0.8, linestyle="--"))
        labels.append("temporal law")
    if len(labels) > 1:
        legend_above(figure, handles, labels)
    return figure


def _of(path: tuple[xr.DataArray, Any, xr.DataArray | None], name: str) -> tuple[np.ndarray, ...]:
    """Tokens, values, low and high (tokens,) of one parameter, as far as the fits are usable."""
    params, spread, usable = path
    y = params.sel(param=name).values
    if isinstance(spread, tuple):
        low, high = (end.sel(param=name).values for end in spread)
    else:
        error = np.zeros_like(y) if spread is None else np.nan_to_num(spread.sel(param=name).values)
        low, high = y - error, y + error
    kept = np.isfinite(y) & (params.tokens.values > 0)
    kept &= True if usable is None else usable.values.astype(bool)
    return tuple(one[kept] for one in (params.tokens.values.astype(float), y, low, high))


def _path(panel: Axes, k: int, tokens: Any, y: Any, low: Any, high: Any) -> tuple[np.ndarray, np.ndarray]:
    """Draw one path; its tokens, and the values that must be within the frame: of wild errors only a part."""
    band(panel, tokens, low, high, colour(k))
    panel.plot(tokens, y, marker=marker(k), markersize=2, linewidth=0.9, **line(k))
    around = np.ptp(y) if len(y) else 0.0
    return tokens, np.concatenate([np.maximum(low, y - around / 2), np.minimum(high, y + around / 2)])


def _laws(panel: Axes, labels: list[str], laws: Mapping[str, xr.DataArray], name: str) -> None:
    for label, law in laws.items():
        if name in law.param.values:
            y = law.sel(param=name).values
            panel.plot(law.tokens.values, y, color=colour(labels.index(label)), linewidth=0.8, linestyle="--")


@styled
def prediction(
    observed: xr.DataArray, forecasts: Mapping[str, tuple[Any, Any, Any, Any]], cutoff: float, width: float = SINGLE
) -> Figure:
    """The observed mean loss, and what was forecast of it from a cut-off.

    Args:
        observed: (tokens,), nats. cutoff: the last tokens that were seen; the part up to there is shaded.
        forecasts: label -> (tokens, values, low, high), the 90 % band or None and None. Where a forecast leaves the
            frame, which is that of the observed losses from half the cut-off on, it is not followed.
    """
    figure, ((panel,),) = sheet(width, 0.68 * SINGLE)
    tokens, loss = observed.tokens.values.astype(float), observed.values
    late = loss[tokens >= 0.5 * cutoff] if (tokens >= 0.5 * cutoff).any() else loss
    end = max([tokens.max(), *(float(np.max(one[0])) for one in forecasts.values())])
    panel.axvspan(-0.02 * end, cutoff, color=SHADE, linewidth=0, zorder=0)
    for k, (at, values, low, high) in enumerate(forecasts.values()):
        if low is not None:
            band(panel, at, low, high, colour(k))
        panel.plot(at, values, **line(k))
    limits(panel, late, *_sober(forecasts, late), margin=0.1)
    low, high = panel.get_ylim()
    shown = loss < high - 0.02 * (high - low)  # no halves of dots at the edge
    panel.plot(tokens[shown], loss[shown], "o", color=INK, zorder=3)
    panel.set(xlim=(-0.02 * end, 1.02 * end), ylabel="mean loss (nats/token)")
    tokens_axis(panel, tokens, log=False)
    legend_above(figure, *_entries(forecasts))
    return figure


def _sober(forecasts: Mapping[str, tuple[Any, Any, Any, Any]], late: np.ndarray) -> list[np.ndarray]:
    """Values and bands within twice the range of what was observed."""
    low, high = span(late, margin=1.0) or (-np.inf, np.inf)
    ends = [np.asarray(one, float) for _, *rest in forecasts.values() for one in rest if one is not None]
    return [one[(one > low) & (one < high)] for one in ends]


def _entries(forecasts: Mapping[str, tuple[Any, Any, Any, Any]]) -> tuple[list[Any], list[str]]:
    handles: list[Any] = [Line2D([], [], color=INK, marker="o", linestyle=""), Patch(facecolor=SHADE)]
    labels = ["observed", "seen"]
    if any(low is not None for _, _, low, _ in forecasts.values()):
        handles.append(Patch(facecolor=(MUTED, 0.35)))
        labels.append("90 % band")
    return [*handles, *(Line2D([], [], **line(k)) for k in range(len(forecasts)))], [*labels, *forecasts]


@styled
def r2_against_ceiling(tokens: Any, r2: Any, ceiling: Any) -> Figure:
    """R2 of the position law at each checkpoint, below the ceiling that measurement noise sets; each (tokens,)."""
    figure, ((panel,),) = sheet(SINGLE, 1.7)
    tokens, r2, ceiling = (np.asarray(one, float) for one in (tokens, r2, ceiling))
    panel.plot(tokens, ceiling, color=MUTED, linewidth=1, linestyle=(0, (5, 1.6)))
    panel.plot(tokens, r2, "o", color=INK, markersize=DOT)
    tokens_axis(panel, tokens)
    limits(panel, r2, ceiling)
    panel.set_ylabel("$R^2$ of the position law")
    legend_above(figure, panel.get_lines()[::-1], ["position law", "ceiling set by noise"])
    return figure
