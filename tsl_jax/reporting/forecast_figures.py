"""Figures of the mean loss from a cut-off on, forecast and observed: one method with intervals, then every method."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import numpy as np
import xarray as xr

from tsl_jax.forecasting.methods import MAIN
from tsl_jax.forecasting.result import Forecast
from tsl_jax.reporting.figures import Figure, View, dots, drawn, entry, hover, lines, panels, shade, size_of, span
from tsl_jax.reporting.material import Material, smallest_errors

# method -> colour, dash; laws that know the learning rate are blue, the paper's laws by position green.
STYLES = {
    "mean_annealing": ("--blue", "solid"),
    "mean_multi_power": ("--blue", "9px,5px"),
    "mean_area_power": ("--blue", "2px,4px"),
    "annealing": ("--green", "9px,5px"),
    "temporal": ("--green", "solid"),
    "temporal_joint": ("--purple", "solid"),
    "paper": ("--green", "2px,4px"),
    "power": ("--red", "solid"),
    "power_pure": ("--red", "2px,4px"),
    "reciprocal": ("--purple", "9px,5px"),
    "logarithmic": ("--amber", "9px,5px"),
    "last": ("--muted", "2px,4px"),
    "mean_log": ("--amber", "2px,4px"),
    "mean_cosine": ("--purple", "2px,4px"),
}
ALWAYS_SHOWN = (MAIN, "temporal", "power")  # where there are too many to begin with all of them
# level, lower and upper quantile, colour as filled, colour as seen where the inner one lies on the outer one
INTERVALS = ((90, 0.05, 0.95, "--faint", "--faint"), (50, 0.25, 0.75, "--firm", "--both"))


def style(method: str) -> tuple[str, str]:
    """Colour and dash of a method."""
    return STYLES.get(method, ("--muted", "9px,5px"))


def every_method(material: Material) -> Figure | None:
    """Observed and forecast mean loss from each cut-off, unseen part shaded, learning rate beneath."""
    if not material.forecasts:
        return None
    # a figure of methods beside each other leaves out cut-offs with a single one, if there are others
    several = [cutoff for cutoff, group in material.forecasts.items() if len(group) > 1]
    names = {cutoff: material.cutoff_names[cutoff] for cutoff in several or material.forecasts}
    splits = material.splits
    views = {(split, name): _from_cutoff(material, split, at) for split in splits for at, name in names.items()}
    choices = {"split": list(splits), "forecast from": list(names.values())}
    alt = "Mean loss against tokens seen: observed, and forecast from a cut-off by each method"
    return Figure("forecast", alt, choices, views, start={"forecast from": choices["forecast from"][-1]})


def _from_cutoff(material: Material, split: str, cutoff: float) -> View:
    group = material.forecasts[cutoff]
    means = {
        name: forecast.mean.sel(split=split).sortby("tokens")
        for name, forecast in group.items()
        if split in forecast.mean.split.values and np.isfinite(forecast.mean.sel(split=split)).any()
    }
    seen_until = max(forecast.cutoff for forecast in group.values())
    observed = None if material.mean is None else material.mean.sel(split=split)
    data, legend = observed_losses(observed)
    visible = set(means)
    if len(means) > 4:
        best = smallest_errors(material.scores, split).method if split in material.scores.index.unique("split") else {}
        visible = {*ALWAYS_SHOWN, best.get(cutoff)}
    for name, mean in means.items():
        colour, dash = style(name)
        on_hover = hover(f"{escape(name)} at %{{x:,.0f}} tokens: %{{y:.3f}} nats")
        width = 2.6 if name in ALWAYS_SHOWN else 2
        data.append(lines(mean.tokens.values, mean.values, colour, key=name, dash=dash, width=width, **on_hover))
        legend.append(entry(name, name, colour, dash=dash, shown=name in visible))
    end = material.total or max(float(forecast.mean.tokens.max()) for forecast in group.values())
    later = observed_after(observed, seen_until)
    legend.append(entry("unseen", "unseen" if later else "not yet observed", "--shade", mark="area"))
    # The axis holds what was observed later than half the cut-off, never a forecast far away from it; where nothing is
    # observed beyond the cut-off, it holds the forecasts with intervals as well.
    if observed is None:
        limits = span(*means.values(), margin=0.15)
    else:
        late = observed.values[observed.tokens.values >= 0.5 * seen_until]
        ahead = [] if later else [mean for name, mean in means.items() if group[name].quantiles is not None]
        limits = span(late if len(late) else observed.values, *ahead, margin=0.2, least=0.02)
    return _over_tokens(data, legend, limits, material, (seen_until, end))


def fan(material: Material) -> Figure | None:
    """Median, 50 and 90% intervals from each cut-off, what was observed, and the learning rate beneath."""
    views: dict[tuple[str, ...], View] = {}
    for cutoff, group in material.forecasts.items():
        for split in material.splits:
            forecast = with_intervals(group, split)
            if forecast is not None:
                views[(split, material.cutoff_names[cutoff])] = _fan(material, split, forecast)
    if not views:
        return None
    names = list(dict.fromkeys(name for _, name in views))
    choices = {"split": list(material.splits), "forecast from": names}
    alt = "Mean loss against tokens seen: observed, and forecast from a cut-off with its 50 and 90% intervals"
    return Figure("fan", alt, choices, views, start={"forecast from": names[-1]})


def with_intervals(group: Mapping[str, Forecast], split: str) -> Forecast | None:
    """The forecast whose intervals are drawn: the main method's, else the first one that has any."""
    for forecast in sorted(group.values(), key=lambda forecast: forecast.method != MAIN):
        quantiles = forecast.quantiles
        if quantiles is not None and split in quantiles.split.values and np.isfinite(quantiles.sel(split=split)).any():
            return forecast
    return None


def _fan(material: Material, split: str, forecast: Forecast) -> View:
    """Intervals that open from the last loss seen, as that one is known."""
    observed = None if material.mean is None else material.mean.sel(split=split)
    assert forecast.quantiles is not None  # see with_intervals
    quantiles = forecast.quantiles.sel(split=split).sortby("tokens").dropna("tokens")
    tokens, ends = quantiles.tokens.values, {float(q): quantiles.sel(quantile=q).values for q in quantiles["quantile"]}
    past = None if observed is None else observed.dropna("tokens").sel(tokens=slice(None, forecast.cutoff))
    if past is not None and past.sizes["tokens"]:
        tokens = np.append(past.tokens.values[-1], tokens)
        ends = {q: np.append(float(past[-1]), values) for q, values in ends.items()}
    data, legend = [], []
    for level, low, high, fill, as_seen in INTERVALS:  # there along the upper end, and back along the lower one
        x, y = np.concatenate([tokens, tokens[::-1]]), np.concatenate([ends[high], ends[low][::-1]])
        filled = {"fill": "toself", "fillcolor": fill, "hoverinfo": "skip"}
        data.append(lines(x, y, fill, key=f"{level}%", width=0, **filled))
        legend.append(entry(f"{level}%", f"{level}% interval", as_seen, mark="area"))
    on_hover = hover("median at %{x:,.0f} tokens: %{y:.3f} nats<br>90%: %{text}")
    data.append(lines(tokens, ends[0.5], "--blue", key="median", width=2.4, **on_hover))
    data[-1]["text"] = [f"{low:.3f} to {high:.3f}" for low, high in zip(ends[0.05], ends[0.95], strict=True)]
    legend.insert(0, entry("median", f"median, {forecast.method}", "--blue"))
    points, of_points = observed_losses(observed)
    end = material.total or float(tokens[-1])
    unseen = "unseen" if observed_after(observed, forecast.cutoff) else "not yet observed"
    legend += [*of_points, entry("unseen", unseen, "--shade", mark="area")]
    late = np.zeros(0) if observed is None else observed.values[observed.tokens.values >= 0.5 * forecast.cutoff]
    limits = span(late, ends[0.05], ends[0.95], margin=0.08, least=0.02)
    return _over_tokens(data + points, legend, limits, material, (forecast.cutoff, end))


def observed_losses(observed: xr.DataArray | None) -> tuple[list[View], list[View]]:
    """The observed losses as dots, and their entry in the legend."""
    if observed is None:
        return [], []
    on_hover = hover("observed at %{x:,.0f} tokens: %{y:.3f} nats")
    observed = observed.isel(tokens=drawn(observed.sizes["tokens"]))
    size = size_of(observed.size)
    points = dots(observed.tokens.values, observed.values, "--ink", key="observed", size=size, **on_hover)
    return [points], [entry("observed", "observed", "--ink", mark="dot")]


def observed_after(observed: xr.DataArray | None, cutoff: float) -> bool:
    """Whether anything was observed beyond a cut-off (tokens)."""
    return observed is not None and bool((observed.tokens > cutoff).any())


def _over_tokens(
    data: list[View], legend: list[View], limits: list[float] | None, material: Material, ahead: tuple[float, float]
) -> View:
    """Mean loss over tokens, the part `ahead` shaded; beneath it the learning rate, planned or recorded, if known."""
    end = ahead[1]
    axis: View = {"title": {"text": "tokens seen"}, "range": [-0.01 * end, 1.015 * end], "nticks": 7}
    axis |= {"exponentformat": "B", "separatethousands": False}
    titles, heights, axes = ["mean loss, nats per token"], [340], [{"range": limits, "nticks": 7}]
    rate: tuple[np.ndarray, np.ndarray] | None = None
    if material.schedule is not None:
        knots = material.schedule.knots(1e-3)
        # the knots are among the tokens, so that corners and jumps of the schedule are drawn where they are
        tokens = np.union1d(np.linspace(0, end, 160), knots[0])
        rate = tokens, np.interp(tokens, *knots)
    elif material.surface is not None and "lr" in material.surface.coords:
        recorded = material.surface.lr.isel(tokens=drawn(material.surface.sizes["tokens"]))
        rate = recorded.tokens.values, recorded.values
    if rate is not None:
        on_hover = hover("learning rate %{y:.3g} at %{x:,.0f} tokens")
        data = [*data, lines(*rate, "--muted", key="learning rate", width=1.8, yaxis="y2", **on_hover)]
        peak = max((value for value in data[-1]["y"] if value is not None), default=1.0) or 1.0
        # three ticks of our own: plotly's would overlap in a panel this low
        ticks = {"tickvals": [0, peak / 2, peak], "ticktext": ["0", f"{peak / 2:.3g}", f"{peak:.3g}"]}
        below = {"range": [-0.08 * peak, 1.12 * peak], "fixedrange": True, **ticks}
        titles, heights, axes = [*titles, "learning rate"], [320, 80], [*axes, below]
    layout = panels(titles, heights, axis, axes)
    layout["shapes"] = [shade(*ahead)]
    return {"data": data, "layout": layout, "legend": legend}
