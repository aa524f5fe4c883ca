"""What the run looked like: loss by position, the position law's parameters over tokens, and how well the law fits."""

from __future__ import annotations

import numpy as np
import xarray as xr

from tsl_jax.fitting import Status
from tsl_jax.forecasting.result import Forecast
from tsl_jax.reporting.figures import (
    Figure,
    View,
    dots,
    drawn,
    entry,
    even_in_log,
    hover,
    lines,
    numbers,
    panels,
    position_axis,
    shade,
    size_of,
    span,
    suffix,
    tokens_axis,
)
from tsl_jax.reporting.material import Material, PositionFit, forecast_parameters, late_median
from tsl_jax.reporting.wording import count, mathematics, readable

CHECKPOINTS = 9  # colours that can still be on_hover apart, and named in a phone's width
POINTS = 96  # measured positions drawn of each checkpoint
MEANING = {"a0": "gain from context, nats", "a1": "rate of the gain, per position", "a2": "loss at long context, nats"}
STATES = {  # label, colour, symbol of the points, mark in the legend
    "fitted": ("fitted, ± standard error", "--ink", "circle", "dot"),
    "weak": ("weakly identified", "--ink", "circle-open", "ring"),
    "unusable": ("not usable: at a bound, straight line or rising", "--red", "x-thin-open", "cross"),
    "fitted law": ("law over tokens, fitted", "--blue", "", "line"),
    "ahead": ("forecast", "--blue", "", "line"),
    "90%": ("90% interval", "--faint", "", "area"),
}
MOST_CURVES = 400  # drawn of the parameters
BAND = ("expected_low", "expected_high")
EXPECTED = ("expected", *BAND)  # of a true law under the noise of the losses
ESTIMATES = {"plain": ("plain mean", "--blue", "circle"), "additive": ("additive estimate", "--green", "square")}


def by_position(material: Material) -> Figure | None:
    """L(i) of some checkpoints, measured and fitted, by split and law."""
    if not material.by_position and (material.surface is None or material.surface.sizes["position"] < 2):
        return None  # nothing by position: a mean over positions, say
    fits: dict[str, PositionFit | None] = dict(material.by_position) or {"": None}
    views = {}
    for name, fit in fits.items():
        splits = material.splits if material.surface is not None else fit.splits if fit else ()
        views |= {(split, name): _curves_of(material.surface, fit, split) for split in splits}
    alt = "Loss against position for several checkpoints, measured points and fitted curves"
    return Figure("by-position", alt, _choices(views, "split", "law"), views, strip=True)


def _choices(views: dict[tuple[str, ...], View], *names: str) -> dict[str, list[str]]:
    return {name: list(dict.fromkeys(key[k] for key in views)) for k, name in enumerate(names)}


def _curves_of(surface: xr.Dataset | None, fit: PositionFit | None, split: str) -> View:
    at = fit.at if fit is not None else surface.tokens.values.astype(float) if surface is not None else np.zeros(0)
    chosen = even_in_log(at, CHECKPOINTS)
    numbered = fit is not None and fit.tokens is None
    colours = [f"seq:{place:.3f}" for place in np.linspace(0, 1, len(chosen))]
    position = surface.position.values if surface is not None else np.asarray(fit.fit.x) if fit is not None else []
    position = np.asarray(position, float)
    data: list[View] = []
    if surface is not None and not numbered:
        loss = surface.loss.sel(split=split).transpose("tokens", "position")
        shown = even_in_log(position, POINTS)
        for tokens, colour in zip(at[chosen].tolist(), colours, strict=True):
            if tokens in loss.tokens:
                on_hover = hover(f"{count(tokens)} tokens, i = %{{x}}: %{{y:.3f}} nats")
                y = loss.sel(tokens=tokens).values
                data.append(dots(position[shown], y[shown], colour, key=colour, size=4.5, opacity=0.75, **on_hover))
    fitted = fit is not None and split in fit.splits
    if fit is not None and fitted:
        fine = np.geomspace(position[0], position[-1], 80)
        curves = fit.curves(chosen, fine)[fit.splits.index(split)]
        data += [lines(fine, y, c, key=c, **hover("fit %{y:.3f} nats")) for y, c in zip(curves, colours, strict=True)]
    names = [f"no. {number:.0f}" if numbered else count(number) for number in at[chosen]]
    legend = [entry(c, name, c, mark="block") for c, name in zip(colours, names, strict=True)]
    limits = span(*([value for value in trace["y"] if value is not None] for trace in data))
    layout = panels(["loss, nats per token"], [330], position_axis(position[0], position[-1]), [{"range": limits}])
    if not fitted:
        data = [trace | {"mode": "lines+markers", "line": {"width": 1}} for trace in data]
    return {"data": data, "layout": layout, "legend": legend}


# --------------------------------------------------------------------------------------------- parameters over tokens


def parameters(material: Material) -> Figure | None:
    """Parameters of the position law over tokens with their errors, temporal laws, and the unseen part."""
    fits = {name: fit for name, fit in material.by_position.items() if len(fit.at) > 1}
    if not fits:
        return None
    latest = material.shown[1] if material.shown else None
    views = {(s, name): _over_tokens(fit, s, latest, material.total) for name, fit in fits.items() for s in fit.splits}
    alt = "Parameters of the position law against tokens seen, with standard errors and their forecast"
    return Figure("parameters", alt, _choices(views, "split", "law"), views)


def _over_tokens(fit: PositionFit, split: str, forecast: Forecast | None, total: float | None) -> View:
    k, names = fit.splits.index(split), fit.fit.law.params
    rows = np.flatnonzero(fit.at > 0)
    rows = rows[drawn(len(rows), MOST_CURVES)]
    at, end = fit.at[rows], max(total or 0, fit.at[rows].max())
    data: list[View] = []
    ranges = []
    paths = {} if forecast is None else forecast_parameters(forecast)
    for panel, name in enumerate(names):
        y, error = (fit.values(which, name)[k][rows] for which in ("params", "stderr"))
        points, usual = _points(at, y, error, fit.fit.status.values[k][rows])
        curve, reach = [], np.zeros(0)
        if forecast is not None and name in paths and split in paths[name].split:  # others have no forecast
            path = paths[name].sel(split=split)
            curve, reach = _forecast_path(path.sel(tokens=path.tokens >= at.min()), forecast.cutoff)
        limits = span(usual, reach, margin=0.15)
        data += [trace | {"yaxis": f"y{suffix(panel)}"} for trace in [*curve, *_inside(points, limits)]]
        ranges.append({"range": limits, "nticks": 5})
    titles = [f"<b>{mathematics(name)}</b>  {MEANING.get(name, '')}" for name in names]
    axis = tokens_axis(at.min(), end) if fit.tokens is not None else {"title": {"text": "curve"}}
    layout = panels(titles, [170] * len(names), axis, ranges)
    states = {trace["legendgroup"] for trace in data}
    legend = [
        entry(key, name, colour, mark=mark, dash="dash" if key == "ahead" else "solid")
        for key, (name, colour, _, mark) in STATES.items() if key in states
    ]  # fmt: skip
    if "ahead" in states and forecast is not None:
        layout["shapes"] = [shade(forecast.cutoff, end)]
        unseen = "unseen" if at.max() > forecast.cutoff else "not yet observed"
        legend.append(entry("unseen", unseen, "--shade", mark="area"))
    return {"data": data, "layout": layout, "legend": legend}


def _points(x: np.ndarray, y: np.ndarray, error: np.ndarray, status: np.ndarray) -> tuple[list[View], np.ndarray]:
    """Points by how their fit ended; and the values that must be within the frame."""
    fine, weak = status == Status.CONVERGED, status == Status.WEAKLY_IDENTIFIED
    bars = np.where(np.isfinite(error), error, 0)
    data = []
    for key, mask in (("fitted", fine), ("weak", weak), ("unusable", ~fine & ~weak)):
        if mask.any():
            _, colour, symbol, _ = STATES[key]
            error_y = {"type": "data", "array": numbers(bars[mask]), "width": 0, "thickness": 1}
            options: View = {} if key == "unusable" else {"error_y": error_y}
            words = [readable(Status(int(s)).short) for s in status[mask]]
            on_hover = hover("%{x:,.0f} tokens: %{customdata:.4g}, %{text}")
            options["size"] = min(size_of(len(x)), 6)
            data.append(dots(x[mask], y[mask], colour, key=key, symbol=symbol, text=words, **options, **on_hover))
    # Bars count only where they are no longer than the range of the values: one huge error would squash the panel.
    usual = y[fine] if fine.any() else y[fine | weak]
    around = np.ptp(usual) if len(usual) else 0.0
    within = np.where(bars[fine] <= around, bars[fine], 0) if fine.any() else np.zeros(len(usual))
    return data, np.concatenate([usual - within, usual + within])


def _forecast_path(path: xr.DataArray, cutoff: float) -> tuple[list[View], np.ndarray]:
    """A parameter (tokens, quantile) where its law was fitted, if that is known, and, dashed, where it is forecast,
    with its interval if that has a width; and the values that the frame shall hold."""
    x, (low, middle, high) = path.tokens.values.astype(float), path.transpose("quantile", "tokens").values
    seen, ahead = x <= cutoff, x >= cutoff
    data = []
    if (high > low).any():
        around = np.concatenate([low[ahead], high[ahead][::-1]])
        filled = {"fill": "toself", "fillcolor": "--faint", "hoverinfo": "skip"}
        data.append(lines(np.concatenate([x[ahead], x[ahead][::-1]]), around, "--faint", key="90%", width=0, **filled))
    if seen.sum() > 1:
        data.append(lines(x[seen], middle[seen], "--blue", key="fitted law", width=2.2, hoverinfo="skip"))
    data.append(lines(x[ahead], middle[ahead], "--blue", key="ahead", width=2.2, dash="7px,5px", hoverinfo="skip"))
    return data, middle[seen] if seen.sum() > 1 else middle


def _inside(data: list[View], limits: list[float] | None) -> list[View]:
    """Points beyond the limits become triangles at the edge, without bars; pointed at, they show their true value."""
    if limits is None:
        return data
    inset = 0.04 * (limits[1] - limits[0])
    low, high = limits[0] + inset, limits[1] - inset
    inside = []
    for trace in data:
        if trace["mode"] == "markers":
            true = trace["y"]
            beyond = [0 if y is None or low <= y <= high else (1 if y > high else -1) for y in true]
            symbols = {0: trace["marker"]["symbol"], 1: "triangle-up-open", -1: "triangle-down-open"}
            moved = [None if y is None else min(max(y, low), high) for y in true]
            marker = trace["marker"] | {"symbol": [symbols[side] for side in beyond]}
            trace = trace | {"customdata": true, "y": moved, "marker": marker}
            if "error_y" in trace:
                bars = [None if side else bar for side, bar in zip(beyond, trace["error_y"]["array"], strict=True)]
                trace["error_y"] = trace["error_y"] | {"array": bars}
        inside.append(trace)
    return inside


def marks(drawing: Figure) -> set[str]:
    """What a figure's points show: keys of its legends, and "beyond" where some stand at the edge of the frame."""
    views = drawing.views.values()
    shapes = [str(trace["marker"]["symbol"]) for view in views for trace in view["data"] if "marker" in trace]
    beyond = {"beyond"} if any("triangle" in shape for shape in shapes) else set()
    return beyond | {entry["key"] for view in views for entry in view["legend"]}


# ------------------------------------------------------------------------------------------------- quality of the fits


def quality(r2: xr.Dataset | None, material: Material) -> Figure | None:
    """R2 of the position law at each checkpoint: plain mean, additive estimate, and that expected under the noise."""
    estimates = _estimates(r2, material)
    if not estimates:
        return None
    splits = [str(name) for name in next(iter(estimates.values())).split.values]
    views: dict[tuple[str, ...], View] = {(split,): _r2_of(estimates, split) for split in splits}
    alt = "R squared of the position law at each checkpoint, with that expected under the noise"
    return Figure("quality", alt, {"split": splits}, views)


def _estimates(r2: xr.Dataset | None, material: Material) -> dict[str, xr.DataArray]:
    if r2 is not None:
        given = {name: r2[name] for name in ("plain", "additive", *EXPECTED) if name in r2}
        return {name: y for name, y in given.items() if {"split", "tokens"} <= set(y.dims) and y.notnull().any()}
    fits = [fit for fit in material.by_position.values() if fit.tokens is not None and len(fit.at) > 1]
    return {"plain": fits[0].fit.r2.rename(curve="tokens")} if fits else {}


def medians(r2: xr.Dataset | None, material: Material, split: str) -> dict[str, float]:
    """Median R2 over the later half of the checkpoints, by name."""
    estimates = _estimates(r2, material).items()
    medians = {name: late_median(y.sel(split=split).values) for name, y in estimates if split in y.split.values}
    return {name: value for name, value in medians.items() if name not in BAND}


def _r2_of(estimates: dict[str, xr.DataArray], split: str) -> View:
    data, legend, late = [], [], [np.ones(1)]
    of_split = {name: r2.sel(split=split, tokens=r2.tokens > 0) for name, r2 in estimates.items()}
    if all(name in of_split for name in BAND):
        low, high = (of_split.pop(name) for name in BAND)
        low, high = (end.isel(tokens=drawn(end.size)).dropna("tokens") for end in (low, high))
        x = np.concatenate([low.tokens.values, high.tokens.values[::-1]]).astype(float)
        filled = {"fill": "toself", "fillcolor": "--faint", "hoverinfo": "skip"}
        ends = np.concatenate([low.values, high.values[::-1]])
        data.append(lines(x, ends, "--faint", key="band", width=0, **filled))
        legend.append(entry("band", "90% of true laws", "--faint", mark="area"))
    for name, r2 in of_split.items():
        late.append(r2.values[r2.size // 3 :])  # the first checkpoints are flat over positions: they would set the axis
        r2 = r2.isel(tokens=drawn(r2.size))
        x, y = r2.tokens.values.astype(float), r2.values
        on_hover = f"%{{x:,.0f}} tokens: {name} "
        if name == "expected":
            data.append(lines(x, y, "--ink", key=name, dash="7px,5px", width=1.6, **hover(on_hover + "%{y:.4f}")))
            legend.append(entry(name, "expected under the noise", "--ink", dash="dash"))
        else:
            label, colour, symbol = ESTIMATES[name]
            size = min(size_of(len(x)), 6)
            data.append(dots(x, y, colour, key=name, symbol=symbol, size=size, **hover(on_hover + "%{customdata:.4f}")))
            legend.append(entry(name, label, colour, mark="square" if symbol == "square" else "dot"))
    tokens = next(iter(estimates.values())).tokens.values
    low, high = span(*late) or [0.0, 1.0]
    low, high = max(min(low, 0.9), -0.05), min(high, 1.03)
    limits = [low, high + 0.05 * (high - low)]  # more than the inset of `_inside`: an R2 of 1 is not beyond the axis
    axis = tokens_axis(float(tokens[tokens > 0].min()), float(tokens.max()))
    layout = panels(["R<sup>2</sup> of the position law"], [230], axis, [{"range": limits}])
    return {"data": _inside(data, limits), "layout": layout, "legend": legend}
