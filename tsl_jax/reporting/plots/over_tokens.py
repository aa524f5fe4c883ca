"""Over tokens: lines with bands, parameters of the position law, forecasts, and R2 beside what the noise allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tsl_jax.reporting.figures import span
from tsl_jax.reporting.plots.axes import band, legend_above, limits, log_axis, panel_title, tokens_axis
from tsl_jax.reporting.plots.style import (
    BAND,
    DOT,
    DOUBLE,
    INK,
    MUTED,
    SHADE,
    SINGLE,
    colour,
    line,
    marker,
    sheet,
    styled,
)

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
            arrays = [curve[column] for curve in curves.values() for column in columns if curve[column] is not None]
            values = [np.ravel(np.asarray(array, float)) for array in arrays]
            log_axis(getattr(panel, f"{which}axis"), np.concatenate(values))
    panel.set(xlabel=xlabel, ylabel=ylabel)
    if len(curves) > 1:
        legend_above(figure, dict(zip(curves, panel.get_lines(), strict=True)))
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
        laws: label -> (tokens, param) values of laws or forecasts, drawn dashed in the colour of that label.
    """
    names = list(dict.fromkeys(str(name) for params, _, _ in paths.values() for name in params.param.values))
    figure, ((*panels,),) = sheet(DOUBLE, 2.1, 1, len(names))
    dashed: dict[str, Any] = {"linewidth": 0.8, "linestyle": "--"}
    for panel, name in zip(panels, names, strict=True):
        tokens, within = [], []
        for k, path in enumerate(paths.values()):
            at, y, low, high = _usable_path(path, name)
            band(panel, at, low, high, colour(k))
            panel.plot(at, y, marker=marker(k), markersize=2, linewidth=0.9, **line(k))
            # the frame holds of wide bands only the part near the values: one huge error would squash the panel
            around = np.ptp(y) if len(y) else 0.0
            within += [np.maximum(low, y - around / 2), np.minimum(high, y + around / 2)]
            tokens.append(at)
        for label, law in (laws or {}).items():
            if name in law.param.values:
                y = law.sel(param=name).values
                panel.plot(law.tokens.values, y, color=colour(list(paths).index(label)), **dashed)
        for mark in marks:
            panel.axvline(mark, color=MUTED, linewidth=0.6, linestyle=":", zorder=0)
        tokens_axis(panel, np.concatenate(tokens))
        limits(panel, *within)
        panel.set_ylabel(UNITS.get(name, name))
    legend = {label: Line2D([], [], marker=marker(k), **line(k)) for k, label in enumerate(paths)}
    legend |= {"forecast": Line2D([], [], color=MUTED, **dashed)} if laws else {}
    if len(legend) > 1:
        legend_above(figure, legend)
    return figure


def _usable_path(path: tuple[xr.DataArray, Any, xr.DataArray | None], name: str) -> tuple[np.ndarray, ...]:
    """Tokens, values, low and high (tokens,) of one parameter, as far as the fits are usable."""
    params, spread, usable = path
    y = params.sel(param=name).values
    if isinstance(spread, tuple):
        low, high = (end.sel(param=name).values for end in spread)
    else:
        error = np.zeros_like(y) if spread is None else np.nan_to_num(spread.sel(param=name).values)
        low, high = y - error, y + error
    # zero tokens have no place on the log axis
    mask = np.isfinite(y) & (params.tokens.values > 0)
    mask &= True if usable is None else usable.values.astype(bool)
    return tuple(values[mask] for values in (params.tokens.values.astype(float), y, low, high))


@styled
def prediction(
    observed: xr.DataArray, forecasts: Mapping[str, tuple[Any, Any, Any, Any]], cutoff: float, width: float = SINGLE
) -> Figure:
    """The observed mean loss, and what was forecast of it from a cut-off.

    Args:
        observed: (tokens,), nats. cutoff: the last tokens that were seen; the part up to there is shaded.
        forecasts: label -> (tokens, values, low, high), the 90 % interval or None and None. Where a forecast leaves the
            frame, which is that of the observed losses from half the cut-off on, it is not followed.
    """
    figure, ((panel,),) = sheet(width, 0.68 * SINGLE)
    _prediction_panel(panel, observed, forecasts, cutoff)
    _prediction_legend(figure, list(forecasts), any(low is not None for _, _, low, _ in forecasts.values()))
    return figure


@styled
def predictions(observed: xr.DataArray, panels: Mapping[str, tuple[float, Mapping[str, Any]]]) -> Figure:
    """The observed mean loss and what was forecast of it from several cut-offs, a panel each, two a row.

    Args:
        observed: (tokens,), nats. panels: title -> (cut-off in tokens, label -> forecast as for `prediction`). All
            panels have the same labels; None for a forecast that is not there.
    """
    rows = -(-len(panels) // 2)
    figure, grid = sheet(DOUBLE, 0.55 * SINGLE * rows, rows, 2, sharex=True)
    labels: list[str] = []
    for panel, (title, (cutoff, forecasts)) in zip(grid.flat, panels.items(), strict=False):
        _prediction_panel(panel, observed, forecasts, cutoff)
        panel_title(panel, title)
        labels = list(forecasts)
    for panel in grid.flat[len(panels) :]:
        panel.set_visible(False)
    for panel in grid[:-1].flat:
        panel.set_xlabel("")
    for panel in grid[:, 1:].flat:
        panel.set_ylabel("")
    _prediction_legend(figure, labels, banded=False)
    return figure


def _prediction_panel(panel: Any, observed: xr.DataArray, forecasts: Mapping[str, Any], cutoff: float) -> None:
    """Draw one panel of `prediction`."""
    tokens, loss = observed.tokens.values.astype(float), observed.values
    late = loss[tokens >= 0.5 * cutoff] if (tokens >= 0.5 * cutoff).any() else loss
    end = max([tokens.max(), *(float(np.max(forecast[0])) for forecast in forecasts.values() if forecast is not None)])
    panel.axvspan(-0.02 * end, cutoff, color=SHADE, linewidth=0, zorder=0)
    lowest, highest = span(late, margin=1.0) or (-np.inf, np.inf)  # forecasts beyond twice the range are cut
    within = []
    for k, forecast in enumerate(forecasts.values()):
        if forecast is None:
            continue
        at, *curves = forecast
        values, low, high = curves
        if low is not None:
            band(panel, at, low, high, colour(k))
        panel.plot(at, values, **line(k))
        arrays = [np.asarray(array, float) for array in curves if array is not None]
        within += [array[(array > lowest) & (array < highest)] for array in arrays]
    limits(panel, late, *within, margin=0.1)
    low, high = panel.get_ylim()
    inside = loss < high - 0.02 * (high - low)  # no halves of dots at the edge
    panel.plot(tokens[inside], loss[inside], "o", color=INK, zorder=3)
    panel.set(xlim=(-0.02 * end, 1.02 * end), ylabel="mean loss (nats/token)")
    tokens_axis(panel, tokens, log=False)


def _prediction_legend(figure: Figure, labels: Sequence[str], banded: bool) -> None:
    """Above the panels: what was observed and seen, and the forecasts."""
    legend = {
        "observed": Line2D([], [], color=INK, marker="o", linestyle=""),
        "seen": Patch(facecolor=SHADE),
        "90 % interval": Patch(facecolor=(MUTED, 0.35)) if banded else None,
    }
    legend_above(figure, legend | {label: Line2D([], [], **line(k)) for k, label in enumerate(labels)})


@styled
def fan(forecast: Any, observed: xr.DataArray | None = None, split: str | None = None) -> Figure:
    """A forecast of the mean loss with its 50 and 90 % intervals, over what was observed.

    Args:
        forecast: a `Forecast`. observed: (split, tokens) or (tokens,), nats. split: default the first.

    Raises:
        ValueError: for a split that it does not have.
    """
    splits = forecast.mean.split.values.tolist()
    split = splits[0] if split is None else split
    if split not in splits:
        raise ValueError(f"plot: the forecast has the splits {splits}, found {split!r}")
    mean = forecast.mean.sel(split=split).sortby("tokens")
    tokens, drawn = mean.tokens.values.astype(float), [mean.values]
    figure, ((panel,),) = sheet(SINGLE, 0.68 * SINGLE)
    panel.axvline(forecast.cutoff, color=MUTED, linewidth=0.6, linestyle=(0, (5, 1.6)))
    shades: dict[str, Any] = {"90 % interval": None, "50 % interval": None}
    if forecast.quantiles is not None:
        ends = forecast.quantiles.sel(split=split).sortby("tokens")
        for name, low, high in (("90 % interval", 0.05, 0.95), ("50 % interval", 0.25, 0.75)):
            lower, upper = (ends.sel(quantile=q).values for q in (low, high))
            drawn += [lower, upper]
            band(panel, tokens, lower, upper, colour(0))
            shades[name] = Patch(facecolor=(colour(0), BAND if low < 0.1 else 2 * BAND))
    panel.plot(tokens, mean.values, zorder=4, **line(0))  # above the dots, which may lie on it
    dots = None
    if observed is not None:
        losses = observed.sel(split=split) if "split" in observed.dims else observed
        late = losses.tokens.values >= 0.25 * forecast.cutoff  # the first fall would flatten the rest
        (dots,) = panel.plot(losses.tokens.values[late], losses.values[late], "o", color=INK, zorder=3)
        tokens, drawn = np.concatenate([tokens, losses.tokens.values[late]]), [*drawn, losses.values[late]]
    limits(panel, *drawn, margin=0.08)
    tokens_axis(panel, tokens, log=False)
    panel.set_ylabel(f"mean loss, {split} (nats/token)", parse_math=False)
    legend_above(figure, {"observed": dots, forecast.method: Line2D([], [], **line(0)), **shades})
    return figure


@styled
def r2_against_expected(tokens: Any, r2: Any, expected: Any, low: Any = None, high: Any = None) -> Figure:
    """R2 of the position law at each checkpoint, beside that expected of a true law under the noise; each (tokens,).

    Args:
        low, high: ends of the interval of a true law's R2, drawn as a band; without them the line alone.
    """
    figure, ((panel,),) = sheet(SINGLE, 1.7)
    tokens, r2, expected = (np.asarray(array, float) for array in (tokens, r2, expected))
    (line_of_expected,) = panel.plot(tokens, expected, color=MUTED, linewidth=1, linestyle=(0, (5, 1.6)))
    entries: dict[str, Any] = {"expected under the noise": line_of_expected}
    if low is not None and high is not None:
        entries["90 % of true laws"] = band(panel, tokens, low, high, MUTED)
    (points,) = panel.plot(tokens, r2, "o", color=INK, markersize=DOT)
    tokens_axis(panel, tokens)
    limits(panel, r2, expected)
    panel.set_ylabel("$R^2$ of the position law")
    legend_above(figure, {"position law": points, **entries})
    return figure
