"""What the run looked like: loss by position, the position law's parameters over tokens, and how well the law fits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from tsl_jax.fitting import Fit, Status
from tsl_jax.reporting.figures import (
    Figure,
    View,
    dots,
    entry,
    even_in_log,
    hover,
    lines,
    numbers,
    panels,
    position_axis,
    shade,
    span,
    suffix,
    tokens_axis,
)
from tsl_jax.reporting.inputs import ForecastLike, Material, PositionFit
from tsl_jax.reporting.standing import late_median
from tsl_jax.reporting.words import count, mathematics

CHECKPOINTS = 9  # colours that can still be told apart, and named in a phone's width
POINTS = 96  # measured positions drawn of each checkpoint
MEANING = {"a0": "gap from first positions to level", "a1": "how fast context closes it", "a2": "level at long context"}
LEVELS = {"plain": ("plain mean", "--blue", "circle"), "additive": ("additive estimate", "--green", "square")}


def by_position(material: Material) -> Figure | None:
    """L(i) of some checkpoints, measured and fitted, by split and law."""
    fits: dict[str, PositionFit | None] = dict(material.by_position) or {"": None}
    one = material.surface is None or material.surface.sizes["position"] < 2  # a mean over positions, say
    if one and not material.by_position:
        return None
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
    position = _positions(surface, fit)
    data: list[View] = []
    if surface is not None and not numbered:
        data += _measured(surface.loss.sel(split=split), at[chosen], colours)
    fitted = fit is not None and split in fit.splits
    if fit is not None and fitted:
        fine = np.geomspace(position[0], position[-1], 80)
        curves = fit.curves(chosen, fine)[fit.splits.index(split)]
        data += [lines(fine, y, c, key=c, **hover("fit %{y:.3f} nats")) for y, c in zip(curves, colours, strict=True)]
    names = [f"no. {number:.0f}" if numbered else count(number) for number in at[chosen]]
    legend = [entry(c, name, c, mark="block") for c, name in zip(colours, names, strict=True)]
    layout = panels(["loss, nats per token"], [330], position_axis(position[0], position[-1]), [{"range": _of(data)}])
    if not fitted:
        data = [trace | {"mode": "lines+markers", "line": {"width": 1}} for trace in data]
    return {"data": data, "layout": layout, "legend": legend}


def _of(data: Sequence[View]) -> list[float] | None:
    return span(*([value for value in trace["y"] if value is not None] for trace in data))


def _positions(surface: xr.Dataset | None, fit: PositionFit | None) -> np.ndarray:
    found = surface.position.values if surface is not None else np.asarray(fit.fit.x) if fit is not None else None
    assert found is not None  # one of them is there: see by_position
    return found.astype(float)


def _measured(loss: xr.DataArray, tokens: np.ndarray, colours: Sequence[str]) -> list[View]:
    """The measured losses of the checkpoints, thinned evenly in log position."""
    position = loss.position.values.astype(float)
    kept = even_in_log(position, POINTS)
    known = dict(
        zip(loss.tokens.values.astype(float).tolist(), loss.transpose("tokens", "position").values, strict=True)
    )
    return [
        dots(position[kept], known[one][kept], colour, key=colour, size=4.5, opacity=0.75,
             **hover(f"{count(one)} tokens, i = %{{x}}: %{{y:.3f}} nats"))
        for one, colour in zip(tokens.tolist(), colours, strict=True) if one in known
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------- parameters over tokens


def parameters(material: Material) -> Figure | None:
    """Parameters of the position law over tokens with their errors, temporal laws, and the held-out part."""
    known = {name: fit for name, fit in material.by_position.items() if len(fit.at) > 1}
    if not known:
        return None
    shown = material.shown
    views = {
        (split, name): _over_tokens(fit, split, shown, material.total)
        for name, fit in known.items()
        for split in fit.splits
    }
    alt = "Parameters of the position law against tokens seen, with standard errors and temporal laws"
    return Figure("parameters", alt, _choices(views, "split", "law"), views)


def _over_tokens(fit: PositionFit, split: str, shown: ForecastLike | None, total: float | None) -> View:
    k, names = fit.splits.index(split), fit.fit.law.params
    at, kept = fit.at, _kept(fit)
    laws = {name: _temporal(shown, name, split) for name in names}
    end = max(total or 0, at[kept].max())
    data: list[View] = []
    ranges = []
    for panel, name in enumerate(names):
        y, error = (fit.values(which, name)[k][kept] for which in ("params", "stderr"))
        drawn, spread = _states(at[kept], y, error, fit.fit.status.values[k][kept])
        curve, reach = _law(laws[name], shown, split, at[kept].min(), end)
        traces, limits = _limited([*curve, *drawn], span(spread, reach, margin=0.15))
        data += [trace | {"yaxis": f"y{suffix(panel)}"} for trace in traces]
        ranges.append({"range": limits, "nticks": 5})
    titles = [f"<b>{mathematics(name)}</b>  {MEANING.get(name, '')}" for name in names]
    axis = tokens_axis(at[kept].min(), end) if fit.tokens is not None else {"title": {"text": "curve"}}
    layout = panels(titles, [170] * len(names), axis, ranges)
    legend = _legend(data)
    if any(laws.values()) and shown is not None:
        layout["shapes"] = [shade(shown.cutoff, end)]
        legend.append(entry("held out", "held out", "--shade", mark="area"))
    return {"data": data, "layout": layout, "legend": legend}


def _kept(fit: PositionFit) -> np.ndarray:
    """Curves that are drawn: all checkpoints past zero tokens; of very many, an even choice."""
    usable = np.flatnonzero(fit.at > 0)
    return usable if len(usable) <= 400 else usable[np.linspace(0, len(usable) - 1, 400).astype(int)]


STATES = {
    "fitted": ("fitted, ± standard error", "--ink", "circle", "dot"),
    "weak": ("weakly identified", "--ink", "circle-open", "ring"),
    "bound": ("at a bound, straight or rising", "--red", "x-thin-open", "cross"),
    "temporal": ("temporal law, fitted", "--blue", "", "line"),
    "ahead": ("the same, forecast", "--blue", "", "line"),
}


def marks(drawing: Figure) -> set[str]:
    """What a figure's points tell: keys of its legends, and "beyond" where some stand at the edge of the frame."""
    views = drawing.views.values()
    shapes = [str(trace["marker"]["symbol"]) for view in views for trace in view["data"] if "marker" in trace]
    beyond = {"beyond"} if any("triangle" in shape for shape in shapes) else set()
    return beyond | {entry["key"] for view in views for entry in view["legend"]}


def _states(x: np.ndarray, y: np.ndarray, error: np.ndarray, status: np.ndarray) -> tuple[list[View], np.ndarray]:
    """Points by how their fit ended; and the values that must be within the frame."""
    fine, weak = status == Status.CONVERGED, status == Status.WEAKLY_IDENTIFIED
    bars = np.where(np.isfinite(error), error, 0)
    data = []
    for key, mask in (("fitted", fine), ("weak", weak), ("bound", ~fine & ~weak)):
        if mask.any():
            _, colour, symbol, _ = STATES[key]
            drawn = {} if key == "bound" else {"error_y": _bars(bars[mask])}
            words = [Status(int(s)).short.replace("_", " ") for s in status[mask]]
            told = hover("%{x:,.0f} tokens: %{customdata:.4g}, %{text}")
            data.append(dots(x[mask], y[mask], colour, key=key, symbol=symbol, text=words, **drawn, **told))
    # Bars count only where they are no longer than the values' own spread: one wild error would squash the panel.
    usual = y[fine] if fine.any() else y[fine | weak]
    around = np.ptp(usual) if len(usual) else 0.0
    within = np.where(bars[fine] <= around, bars[fine], 0) if fine.any() else np.zeros(len(usual))
    return data, np.concatenate([usual - within, usual + within])


def _bars(error: np.ndarray) -> View:
    return {"type": "data", "array": numbers(error), "width": 0, "thickness": 1}


def _temporal(shown: ForecastLike | None, name: str, split: str) -> Fit | None:
    found = shown.fits.get(name) if shown is not None else None
    return found if isinstance(found, Fit) and split in found.status.coords.get("split", ()) else None


def _law(
    law: Fit | None, shown: ForecastLike | None, split: str, start: float, end: float
) -> tuple[list[View], np.ndarray]:
    """The temporal law where it was fitted and, dashed, where it forecasts; and its values over the fitted part."""
    if law is None or shown is None:
        return [], np.zeros(0)
    first = max(start, float(np.min(np.asarray(law.x))))
    x = np.unique(np.concatenate([np.geomspace(first, end, 90), [shown.cutoff]]))
    y = law.predict(x).sel(split=split).values
    seen = x <= shown.cutoff
    past = lines(x[seen], y[seen], "--blue", key="temporal", width=2.2, hoverinfo="skip")
    ahead = x >= shown.cutoff
    future = lines(x[ahead], y[ahead], "--blue", key="ahead", width=2.2, dash="7px,5px", hoverinfo="skip")
    return [past, future], y[seen]


def _limited(data: list[View], limits: list[float] | None) -> tuple[list[View], list[float] | None]:
    """Points outside the frame are moved to its edge, so that nothing that was measured goes unseen."""
    if limits is None:
        return data, None
    low, high = limits
    inset = 0.04 * (high - low)
    for trace in data:
        if trace["mode"] == "markers":
            _move_inside(trace, low + inset, high - inset)
    return data, limits


def _move_inside(trace: View, low: float, high: float) -> None:
    """The points beyond these limits become triangles there, without bars; pointed at, they tell their true value."""
    true, symbol = trace["y"], trace["marker"]["symbol"]
    beyond = [0 if y is None or low <= y <= high else (1 if y > high else -1) for y in true]
    arrows = {0: symbol, 1: "triangle-up-open", -1: "triangle-down-open"}
    trace["customdata"] = true
    trace["y"] = [None if y is None else min(max(y, low), high) for y in true]
    trace["marker"] = trace["marker"] | {"symbol": [arrows[b] for b in beyond]}
    if "error_y" in trace:
        bars = [None if b else bar for b, bar in zip(beyond, trace["error_y"]["array"], strict=True)]
        trace["error_y"] = trace["error_y"] | {"array": bars}


def _legend(data: list[View]) -> list[View]:
    keys = dict.fromkeys(trace["legendgroup"] for trace in data)
    return [
        entry(key, STATES[key][0], STATES[key][1], mark=STATES[key][3], dash="dash" if key == "ahead" else "solid")
        for key in STATES
        if key in keys
    ]


# ------------------------------------------------------------------------------------------------- quality of the fits


def quality(r2: xr.Dataset | None, material: Material) -> Figure | None:
    """R2 of the position law at each checkpoint: plain mean, additive estimate, and the ceiling that noise sets."""
    levels = _levels(r2, material)
    if not levels:
        return None
    splits = [str(name) for name in next(iter(levels.values())).split.values]
    views = {(split,): _r2_of(levels, split) for split in splits}
    alt = "R squared of the position law at each checkpoint, with the ceiling that noise sets"
    return Figure("quality", alt, {"split": splits}, views)


def _levels(r2: xr.Dataset | None, material: Material) -> dict[str, xr.DataArray]:
    if r2 is not None:
        found = {name: r2[name] for name in ("plain", "additive", "ceiling") if name in r2}
        return {
            name: one for name, one in found.items() if {"split", "tokens"} <= set(one.dims) and one.notnull().any()
        }
    fits = [fit for fit in material.by_position.values() if fit.tokens is not None and len(fit.at) > 1]
    return {"plain": fits[0].fit.r2.rename(curve="tokens")} if fits else {}


def medians(r2: xr.Dataset | None, material: Material, split: str) -> dict[str, float]:
    """Median R2 over the later half of the checkpoints, by name."""
    levels = _levels(r2, material).items()
    return {name: late_median(one.sel(split=split).values) for name, one in levels if split in one.split.values}


def _r2_of(levels: dict[str, xr.DataArray], split: str) -> View:
    data, legend, kept = [], [], [np.ones(1)]
    for name, one in levels.items():
        one = one.sel(split=split, tokens=one.tokens > 0)
        x, y = one.tokens.values.astype(float), one.values
        kept.append(y[len(y) // 3 :])
        told = f"%{{x:,.0f}} tokens: {name} "
        if name == "ceiling":
            data.append(lines(x, y, "--ink", key=name, dash="7px,5px", width=1.6, **hover(told + "%{y:.4f}")))
            legend.append(entry(name, "ceiling set by noise", "--ink", dash="dash"))
        else:
            label, colour, symbol = LEVELS[name]
            data.append(dots(x, y, colour, key=name, symbol=symbol, **hover(told + "%{customdata:.4f}")))
            legend.append(entry(name, label, colour, mark="square" if symbol == "square" else "dot"))
    tokens = next(iter(levels.values())).tokens.values
    low, high = span(*kept) or [0.0, 1.0]
    data, limits = _limited(data, [max(min(low, 0.9), -0.05), min(high, 1.03)])
    axis = tokens_axis(float(tokens[tokens > 0].min()), float(tokens.max()))
    layout = panels(["R<sup>2</sup> of the position law"], [230], axis, [{"range": limits}])
    return {"data": data, "layout": layout, "legend": legend}
