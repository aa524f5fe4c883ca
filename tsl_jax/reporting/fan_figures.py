"""How sure a forecast is, and whether rightly: its bands, the later checkpoints inside them, the size of errors."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import numpy as np
import pandas as pd
import xarray as xr

from tsl_jax.forecasting.methods import MAIN
from tsl_jax.reporting.figures import Figure, View, dots, entry, hover, lines, panels, shade, span
from tsl_jax.reporting.forecast_figures import (
    LEAST_ERROR,
    came,
    error_axis,
    learning_rate,
    over_tokens,
    style,
    the_observed,
)
from tsl_jax.reporting.inputs import ForecastLike, Material, quantiles_of
from tsl_jax.reporting.standing import last_loss
from tsl_jax.reporting.words import BY_POSITION, CONTINUED, label

BANDS = ((90, 0.05, 0.95, "--faint", "--faint"), (50, 0.25, 0.75, "--firm", "--both"))  # as drawn, as seen
RIVALS = 2  # baselines beside the main method


def fanned(group: Mapping[str, ForecastLike], split: str) -> ForecastLike | None:
    """The forecast whose bands are drawn: the main method's, else the first one that has any."""
    known = [one for _, one in sorted(group.items(), key=lambda item: item[0] != MAIN) if _known(one, split)]
    return known[0] if known else None


def _known(one: ForecastLike, split: str) -> bool:
    found = quantiles_of(one)
    return found is not None and split in found.split.values and bool(np.isfinite(found.sel(split=split)).any())


def fan(material: Material) -> Figure | None:
    """Median, 50 and 90% bands from each cut-off, what was observed, and the learning rate beneath."""
    views = {}
    for cutoff, group in material.futures.items():
        for split in material.splits:
            one = fanned(group, split)
            if one is not None:
                views[(split, cutoff)] = _fan(material, split, one)
    if not views:
        return None
    cutoffs = [cutoff for cutoff in material.futures if any(cutoff == key[1] for key in views)]
    choices = {"split": list(material.splits), "forecast from": cutoffs}
    alt = "Mean loss against tokens seen: observed, and forecast from a cut-off with its 50 and 90% bands"
    return Figure("fan", alt, choices, views, start={"forecast from": cutoffs[-1]})


def _fan(material: Material, split: str, one: ForecastLike) -> View:
    observed = None if material.mean is None else material.mean.sel(split=split)
    tokens, ends = _opened(one, split, observed)
    data, legend = [], []
    for share, low, high, colour, seen in BANDS:
        data.append(_band(tokens, ends[low], ends[high], colour, key=f"{share}%"))
        legend.append(entry(f"{share}%", f"{share}% of futures", seen, mark="area"))
    told = hover("median at %{x:,.0f} tokens: %{y:.3f} nats<br>90%: %{text}")
    data.append(lines(tokens, ends[0.5], "--blue", key="median", width=2.4, **told))
    data[-1]["text"] = [f"{low:.3f} to {high:.3f}" for low, high in zip(ends[0.05], ends[0.95], strict=True)]
    legend.insert(0, entry("median", f"median, {label(one.method)}", "--blue"))
    points, named = the_observed(observed)
    end = material.total or float(tokens[-1])
    shaded = "held out" if came(observed, one.cutoff) else "to come"
    legend += [*named, entry("held out", shaded, "--shade", mark="area")]
    rate = learning_rate(material, end)
    layout = over_tokens({"range": _frame(observed, ends, one.cutoff), "nticks": 7}, rate, end)
    layout["shapes"] = [shade(one.cutoff, end)]
    return {"data": data + points + rate, "layout": layout, "legend": legend}


def _opened(one: ForecastLike, split: str, observed: xr.DataArray | None) -> tuple[np.ndarray, dict[float, np.ndarray]]:
    """Tokens and quantiles, from the last loss that was seen on, as that one is certain."""
    found = quantiles_of(one)
    assert found is not None
    known = found.sel(split=split).sortby("tokens").dropna("tokens")
    ends = {float(q): known.sel(quantile=q).values for q in known["quantile"].values}
    seen = None if observed is None else observed.dropna("tokens").sel(tokens=slice(None, one.cutoff))
    if seen is None or not seen.sizes["tokens"]:
        return known.tokens.values, ends
    first = float(seen[-1])
    return np.append(seen.tokens.values[-1], known.tokens.values), {q: np.append(first, y) for q, y in ends.items()}


def _band(tokens: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str, *, key: str) -> View:
    """A filled band: there along its upper end, and back along its lower one."""
    x, y = np.concatenate([tokens, tokens[::-1]]), np.concatenate([high, low[::-1]])
    return lines(x, y, colour, key=key, width=0, fill="toself", fillcolor=colour, hoverinfo="skip")


def _frame(observed: xr.DataArray | None, ends: Mapping[float, np.ndarray], cutoff: float) -> list[float] | None:
    """The range of the loss axis: the bands, and what was observed later than half the cut-off."""
    late = np.zeros(0) if observed is None else observed.values[observed.tokens.values >= 0.5 * cutoff]
    return span(late, ends[0.05], ends[0.95], margin=0.08, least=0.02)


# -------------------------------------------------------------------------------------------------- were they right?


def calibration(material: Material) -> Figure | None:
    """The share of later checkpoints inside the main method's bands, by cut-off, against what the bands promise."""
    scores = _of(material.scores, MAIN)
    if scores is None or "covered_90" not in scores or scores.covered_90.isna().all():
        return None
    splits = [split for split in scores.index.unique("split") if scores.covered_90.xs(split).notna().any()]
    views = {(str(split),): _shares(scores.xs(split, level="split")) for split in splits}
    alt = "Share of later checkpoints inside the 50 and 90% bands, by cut-off, beside 50 and 90%"
    return Figure("calibration", alt, {"split": [str(split) for split in splits]}, views)


def _of(scores: pd.DataFrame, method: str) -> pd.DataFrame | None:
    known = method in scores.index.get_level_values("method")
    return scores.xs(method, level="method").sort_index() if known else None


def _shares(scores: pd.DataFrame) -> View:
    seen, data, legend = 100 * scores.index.to_numpy(float), [], []
    ends = [seen.min() - 3, seen.max() + 3]
    for share, colour, symbol in ((90, "--blue", "circle"), (50, "--purple", "square")):
        key, found = f"{share}%", 100 * scores[f"covered_{share}"].to_numpy(float)
        data.append(lines(ends, [share, share], colour, key=key, dash="4px,4px", width=1.2, hoverinfo="skip"))
        data.append(lines(seen, found, colour, key=key, width=1.5, hoverinfo="skip"))
        told = hover(f"from %{{x:.3g}}%: %{{y:.0f}}% of later checkpoints inside the {share}% band")
        data.append(dots(seen, found, colour, key=key, symbol=symbol, size=9, **told))
        legend.append(entry(key, f"inside the {share}% band (dashed: {share}%)", colour))
    axis = {
        "range": [-6, 106],
        "tickvals": [0, 50, 90, 100],
        "ticktext": ["0%", "50%", "90%", "100%"],
        "fixedrange": True,
    }
    layout = panels(["later checkpoints inside the band"], [190], _seen_axis(seen), [axis])
    return {"data": data, "layout": layout, "legend": legend}


def _seen_axis(seen: np.ndarray) -> View:
    ticks = {"tickvals": seen.tolist(), "ticktext": [f"{one:.3g}%" for one in seen]}
    room = 3 + 0.04 * float(np.ptp(seen))
    ends = [float(seen.min()) - room, float(seen.max()) + room]
    return {"title": {"text": "share of the run seen"}, "range": ends, "fixedrange": True, **ticks}


def by_share(material: Material) -> Figure | None:
    """The size of the error of the last loss against the share of the run seen: main method, the paper's, the best."""
    scores = material.scores
    if _of(scores, MAIN) is None or len(scores.index.unique("cutoff")) < 2:
        return None
    tables = {str(split): _sizes(scores.xs(split, level="split")) for split in scores.index.unique("split")}
    views = {(split,): _curves(table) for split, table in tables.items() if len(table)}
    if not views:
        return None
    alt = f"Size of the error of the forecast {last_loss(material.unfinished)}, against the share of the run seen"
    return Figure("by-share", alt, {"split": [key[0] for key in views]}, views)


def _sizes(scores: pd.DataFrame) -> pd.DataFrame:
    """Sizes of the error (method, cutoff) of those that are drawn, as far as they are known."""
    table = scores.error.abs().unstack("cutoff").sort_index(axis=1)
    baselines = table.drop(index=[*CONTINUED, *BY_POSITION], errors="ignore").dropna()
    best = baselines.median(axis=1).sort_values(kind="stable").index[:RIVALS]
    return table.reindex([name for name in (MAIN, "temporal", *best) if name in table.index]).dropna(how="all")


def _curves(table: pd.DataFrame) -> View:
    seen, data, legend = 100 * table.columns.to_numpy(float), [], []
    for name, row in table.iterrows():
        colour, dash = style(str(name))
        size = np.maximum(row.to_numpy(float), LEAST_ERROR)
        told = hover(f"{escape(label(str(name)))} from %{{x:.3g}}%: %{{y:.3f}} nats off")
        data.append(
            lines(seen, size, colour, key=str(name), dash=dash, width=2.4 if name == MAIN else 1.8, hoverinfo="skip")
        )
        data.append(dots(seen, size, colour, key=str(name), size=8, **told))
        legend.append(entry(str(name), label(str(name)), colour, dash=dash))
    axis = error_axis(float(np.nanmin(table.to_numpy(float))), float(np.nanmax(table.to_numpy(float))))
    layout = panels(["size of the error, nats (log scale)"], [240], _seen_axis(seen), [axis | {"title": {"text": ""}}])
    return {"data": data, "layout": layout, "legend": legend}
