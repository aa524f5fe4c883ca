"""What was forecast and what came: the mean loss from each cut-off, and the errors of every method."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import numpy as np
import pandas as pd
import xarray as xr

from tsl_jax.forecasting.methods import MAIN
from tsl_jax.reporting.figures import Figure, View, dots, entry, hover, lines, panels, round_ticks, shade, span
from tsl_jax.reporting.inputs import ForecastLike, Material, quantiles_of
from tsl_jax.reporting.standing import last_loss, percent
from tsl_jax.reporting.words import BY_POSITION, label, signed, winners

# method -> colour, dash; laws that know the learning rate are blue, the paper's route by position green.
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
OTHER = ("--muted", "9px,5px")
STRONG = (MAIN, "temporal", "power")
LEAST_ERROR = 1e-4  # nats: smaller ones are drawn here, as a logarithmic axis has no zero


def mean_loss(material: Material) -> Figure | None:
    """Observed and forecast mean loss from each cut-off, held-out part shaded, learning rate beneath."""
    if not material.futures:
        return None
    several = [cutoff for cutoff, group in material.futures.items() if len(group) > 1]
    splits, cutoffs = material.splits, several or list(material.futures)
    views = {(split, cutoff): _from_cutoff(material, split, cutoff) for split in splits for cutoff in cutoffs}
    choices = {"split": list(splits), "forecast from": cutoffs}
    alt = "Mean loss against tokens seen: observed, and forecast from a cut-off by each method"
    return Figure("forecast", alt, choices, views, start={"forecast from": cutoffs[-1]})


def _from_cutoff(material: Material, split: str, cutoff: str) -> View:
    group = material.futures[cutoff]
    made = {name: one for name, one in group.items() if split in one.mean.split.values and _some(one, split)}
    seen_until = max(one.cutoff for one in group.values())
    observed = None if material.mean is None else material.mean.sel(split=split)
    data, legend = the_observed(observed)
    shown = {*STRONG, *_winner(material.scores, split, cutoff)} if len(made) > 4 else set(made)
    for name, one in made.items():
        data.append(_future(name, one.mean.sel(split=split)))
        legend.append(entry(name, label(name), data[-1]["line"]["color"], dash=style(name)[1], shown=name in shown))
    end = material.total or max(float(one.mean.tokens.max()) for one in group.values())
    legend.append(entry("held out", "held out" if came(observed, seen_until) else "to come", "--shade", mark="area"))
    frame = {"range": _frame(observed, made, split, seen_until), "nticks": 7}
    rate = learning_rate(material, end)
    layout = over_tokens(frame, rate, end)
    layout["shapes"] = [shade(seen_until, end)]
    return {"data": data + rate, "layout": layout, "legend": legend}


def came(observed: xr.DataArray | None, seen_until: float) -> bool:
    """Whether anything was observed beyond a cut-off."""
    return observed is not None and bool((observed.tokens > seen_until).any())


def _some(one: ForecastLike, split: str) -> bool:
    return bool(np.isfinite(one.mean.sel(split=split).values).any())


def _winner(scores: pd.DataFrame, split: str, cutoff: str) -> list[str]:
    best = winners(scores, split)
    return [str(row.method) for at, row in best.iterrows() if percent(float(str(at))) == cutoff]


def the_observed(observed: xr.DataArray | None) -> tuple[list[View], list[View]]:
    """The observed losses as dots, and their entry in the legend."""
    if observed is None:
        return [], []
    told = hover("observed at %{x:,.0f} tokens: %{y:.3f} nats")
    points = dots(observed.tokens.values, observed.values, "--ink", key="observed", size=6.5, **told)
    return [points], [entry("observed", "observed", "--ink", mark="dot")]


def style(name: str) -> tuple[str, str]:
    """Colour and dash of a method."""
    return STYLES.get(name, OTHER)


def _future(name: str, mean: xr.DataArray) -> View:
    colour, dash = style(name)
    told = hover(f"{escape(label(name))} at %{{x:,.0f}} tokens: %{{y:.3f}} nats")
    mean = mean.sortby("tokens")
    width = 2.6 if name in STRONG else 2
    return lines(mean.tokens.values, mean.values, colour, key=name, dash=dash, width=width, **told)


def _frame(
    observed: xr.DataArray | None, made: Mapping[str, ForecastLike], split: str, seen_until: float
) -> list[float] | None:
    """The range of the loss axis: from what was observed, later than half the cut-off, never from a wild forecast.

    Where nothing is observed beyond the cut-off, it holds the forecasts with intervals as well.
    """
    if observed is None:
        return span(*(one.mean.sel(split=split).values for one in made.values()), margin=0.15)
    late = observed.values[observed.tokens.values >= 0.5 * seen_until]
    sober = [] if came(observed, seen_until) else [one for one in made.values() if quantiles_of(one) is not None]
    ahead = [one.mean.sel(split=split).values for one in sober]
    return span(late if len(late) else observed.values, *ahead, margin=0.2, least=0.02)


def learning_rate(material: Material, end: float) -> list[View]:
    """The plan, or the rates that were recorded; nothing where neither is known."""
    if material.schedule is not None:
        knots = material.schedule.knots(1e-3)
        x = np.union1d(np.linspace(0, end, 160), knots[0])
        y = np.interp(x, *knots)
    elif material.surface is not None and "lr" in material.surface.coords:
        x, y = material.surface.tokens.values, material.surface.lr.values
    else:
        return []
    told = hover("learning rate %{y:.3g} at %{x:,.0f} tokens")
    return [lines(x, y, "--muted", key="learning rate", width=1.8, yaxis="y2", **told)]


def over_tokens(frame: View, rate: list[View], end: float) -> View:
    """Mean loss over tokens, `frame` its axis, and the learning rate beneath."""
    axis: View = {"title": {"text": "tokens seen"}, "range": [-0.01 * end, 1.015 * end], "nticks": 7}
    axis |= {"exponentformat": "B", "separatethousands": False}
    title = "mean loss, nats per token"
    if not rate:
        return panels([title], [340], axis, [frame])
    peak = max((value for value in rate[0]["y"] if value is not None), default=1.0) or 1.0
    ticks = {"tickvals": [0, peak / 2, peak], "ticktext": ["0", f"{peak / 2:.3g}", f"{peak:.3g}"]}
    below = {"range": [-0.08 * peak, 1.12 * peak], "fixedrange": True, **ticks}
    return panels([title, "learning rate"], [320, 80], axis, [frame, below])


# ------------------------------------------------------------------------------------------------------------- errors


def errors(material: Material) -> Figure | None:
    """Size of the error of the final loss, one row a method, one dot a cut-off."""
    scores = material.scores
    splits = [split for split in scores.index.unique("split") if len(winners(scores, split))]
    if not splits:
        return None
    views = {(str(split),): _dots_of(scores.xs(split, level="split")) for split in splits}
    alt = f"Size of the error of the forecast of the {last_loss(material.unfinished)}, by method and cut-off"
    return Figure("errors", alt, {"split": [str(split) for split in splits]}, views, strip=True)


def ranked(scores: pd.DataFrame) -> pd.DataFrame:
    """Errors (method, cutoff) of one split, best at the largest cut-off first, methods without forecast last."""
    table = scores.error.unstack("cutoff").sort_index(axis=1)
    return table.loc[table.iloc[:, -1].abs().sort_values(kind="stable", na_position="last").index]


def _dots_of(scores: pd.DataFrame) -> View:
    table = ranked(scores).dropna(how="all")
    rows = [_row_name(str(name)) for name in table.index][::-1]
    rim = {"line": {"width": 1, "color": "--paper"}}
    data, legend = [], []
    for cutoff, place in zip(table.columns, np.linspace(0, 1, len(table.columns)), strict=True):
        colour, name = f"seq:{place:.3f}", percent(float(cutoff))
        error = table[cutoff].to_numpy(float)[::-1]
        told = hover(f"from {name}: %{{text}} nats")
        size = np.maximum(np.abs(error), LEAST_ERROR)
        data.append(dots(size, np.arange(len(rows)), colour, key=colour, size=11, marker=rim, **told))
        data[-1]["text"] = [signed(value) for value in error]
        legend.append(entry(colour, f"{name} seen", colour, mark="block"))
    low, high = np.nanmin(np.abs(table.to_numpy(float))), np.nanmax(np.abs(table.to_numpy(float)))
    ticks = {"tickvals": list(range(len(rows))), "ticktext": rows, "range": [-0.6, len(rows) - 0.4]}
    layout = panels([""], [34 * len(rows)], error_axis(low, high), [ticks | {"fixedrange": True}])
    return {"data": data, "layout": layout, "legend": legend}


def _row_name(method: str) -> str:
    name = escape(label(method))
    return f"<b>{name}</b>" if method in BY_POSITION else name


def error_axis(low: float, high: float) -> View:
    """Sizes of errors, logarithmic."""
    low, high = max(low, LEAST_ERROR), max(high, LEAST_ERROR)
    low, high = min(low * 0.7, high * 0.3), high * 1.4
    ticks = round_ticks(low, high, most=4)  # side by side on a phone, beside the names of methods
    labels = {"tickvals": ticks.tolist(), "ticktext": [f"{tick:.3g}" for tick in ticks], "fixedrange": True}
    title = {"text": "size of the error, nats (log scale)"}
    return {"type": "log", "range": [np.log10(low), np.log10(high)], "title": title, **labels}
