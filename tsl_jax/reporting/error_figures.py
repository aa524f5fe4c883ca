"""Figures of how far forecasts were off: errors of the last loss by method and cut-off, and coverage of intervals."""

from __future__ import annotations

from html import escape

import numpy as np
import pandas as pd

from tsl_jax.forecasting.methods import MAIN, METHODS
from tsl_jax.reporting.figures import Figure, View, dots, entry, hover, lines, panels, round_ticks
from tsl_jax.reporting.forecast_figures import style
from tsl_jax.reporting.material import Material, splits_with_errors
from tsl_jax.reporting.wording import last_loss, signed

LEAST_ERROR = 1e-4  # nats: smaller ones are drawn here, as a logarithmic axis has no zero
N_BASELINES = 2  # beside the main method and the paper's


def errors(material: Material) -> Figure | None:
    """Absolute error of the last loss, one row a method, one dot a cut-off."""
    splits = splits_with_errors(material.scores)
    if not splits:
        return None
    views: dict[tuple[str, ...], View] = {
        (split,): _rows_of_methods(material, material.scores.xs(split, level="split")) for split in splits
    }
    alt = f"Absolute error of the forecast of the {last_loss(material.unfinished)}, by method and cut-off"
    return Figure("errors", alt, {"split": splits}, views, strip=True)


def ranked(scores: pd.DataFrame) -> pd.DataFrame:
    """Errors (method, cutoff) of one split, best at the largest cut-off first, methods without forecast last."""
    table = scores.error.unstack("cutoff").sort_index(axis=1)
    # stable: methods of equal error, such as two that have no forecast, keep the order in which they were made
    return table.loc[table.iloc[:, -1].abs().sort_values(kind="stable", na_position="last").index]


def is_by_position(method: str) -> bool:
    """Whether a method forecasts the loss of every position, and not of their mean alone."""
    return method in METHODS and METHODS[method].by_position


def _rows_of_methods(material: Material, scores: pd.DataFrame) -> View:
    table = ranked(scores).dropna(how="all")
    names = [escape(str(method)) for method in table.index]
    # plotly counts rows from below
    rows = [f"<b>{n}</b>" if is_by_position(str(m)) else n for n, m in zip(names, table.index, strict=True)][::-1]
    rim = {"line": {"width": 1, "color": "--paper"}}
    data, legend = [], []
    for cutoff, place in zip(table.columns, np.linspace(0, 1, len(table.columns)), strict=True):
        colour, name = f"seq:{place:.3f}", material.cutoff_names[cutoff]
        error = table[cutoff].to_numpy(float)[::-1]
        size = np.maximum(np.abs(error), LEAST_ERROR)
        on_hover = hover(f"from {name}: %{{text}} nats")
        # the legend is a strip: its entries are keyed by their colour
        data.append(dots(size, np.arange(len(rows)), colour, key=colour, size=11, marker=rim, **on_hover))
        data[-1]["text"] = [signed(value) for value in error]
        legend.append(entry(colour, f"{name} seen", colour, mark="block"))
    low, high = np.nanmin(np.abs(table.to_numpy(float))), np.nanmax(np.abs(table.to_numpy(float)))
    ticks = {"tickvals": list(range(len(rows))), "ticktext": rows, "range": [-0.6, len(rows) - 0.4]}
    layout = panels([""], [34 * len(rows)], _error_axis(low, high), [ticks | {"fixedrange": True}])
    return {"data": data, "layout": layout, "legend": legend}


def _error_axis(low: float, high: float) -> View:
    """Absolute errors, logarithmic."""
    low, high = max(low, LEAST_ERROR), max(high, LEAST_ERROR)
    low, high = min(low * 0.7, high * 0.3), high * 1.4
    ticks = round_ticks(low, high, most=4)  # side by side on a phone, beside the names of methods
    labels = {"tickvals": ticks.tolist(), "ticktext": [f"{tick:.3g}" for tick in ticks], "fixedrange": True}
    title = {"text": "absolute error, nats (log scale)"}
    return {"type": "log", "range": [np.log10(low), np.log10(high)], "title": title, **labels}


def by_share(material: Material) -> Figure | None:
    """Absolute error of the last loss against the share of the run seen: main method, the paper's, best baselines."""
    scores = material.scores
    if MAIN not in scores.index.unique("method") or len(scores.index.unique("cutoff")) < 2:
        return None
    views: dict[tuple[str, ...], View] = {}
    for split in scores.index.unique("split"):
        table = scores.xs(split, level="split").error.abs().unstack("cutoff").sort_index(axis=1)
        of_family = [name for name in table.index if name not in METHODS or METHODS[name].is_baseline]
        # only baselines with an error at every cut-off: a median over few of them would favour those that fail early
        median = table.loc[of_family].dropna().median(axis=1)
        best = median.sort_values(kind="stable").index[:N_BASELINES]
        table = table.reindex([name for name in (MAIN, "temporal", *best) if name in table.index]).dropna(how="all")
        if len(table):
            views[(str(split),)] = _lines_of_methods(material, table)
    if not views:
        return None
    alt = f"Absolute error of the forecast {last_loss(material.unfinished)}, against the share of the run seen"
    return Figure("by-share", alt, {"split": [key[0] for key in views]}, views)


def _lines_of_methods(material: Material, table: pd.DataFrame) -> View:
    """Absolute errors (method, cutoff) as a line a method."""
    data, legend = [], []
    for name, row in table.iterrows():
        (colour, dash), width = style(str(name)), 2.4 if name == MAIN else 1.8
        size = np.maximum(row.to_numpy(float), LEAST_ERROR)
        on_hover = hover(f"{escape(str(name))} from %{{x:.3g}}%: error %{{y:.3f}} nats")
        percent = 100 * table.columns.to_numpy(float)
        data.append(lines(percent, size, colour, key=str(name), dash=dash, width=width, hoverinfo="skip"))
        data.append(dots(percent, size, colour, key=str(name), size=8, **on_hover))
        legend.append(entry(str(name), str(name), colour, dash=dash))
    axis = _error_axis(float(np.nanmin(table.to_numpy(float))), float(np.nanmax(table.to_numpy(float))))
    x = _share_axis(material, table.columns.to_numpy(float))
    layout = panels(["absolute error, nats (log scale)"], [240], x, [axis | {"title": {"text": ""}}])
    return {"data": data, "layout": layout, "legend": legend}


def _share_axis(material: Material, cutoffs: np.ndarray) -> View:
    """The share of the run seen, in percent; of cut-offs too close for two labels the larger one has it."""
    span = float(np.ptp(cutoffs))
    labelled: list[float] = []
    for cutoff in sorted(cutoffs.tolist(), reverse=True):
        if not labelled or labelled[-1] - cutoff > 0.08 * span:
            labelled.append(cutoff)
    names = [material.cutoff_names[cutoff] for cutoff in labelled]
    margin = 3 + 4 * span
    ends = [100 * float(cutoffs.min()) - margin, 100 * float(cutoffs.max()) + margin]
    ticks = {"tickvals": [100 * cutoff for cutoff in labelled], "ticktext": names}
    return {"title": {"text": "share of the run seen"}, "range": ends, "fixedrange": True, **ticks}


def coverage(material: Material) -> Figure | None:
    """The share of later checkpoints inside the main method's intervals, by cut-off, beside the nominal 50 and 90%."""
    if "covered_90" not in material.scores or MAIN not in material.scores.index.unique("method"):
        return None
    scores = material.scores.xs(MAIN, level="method").sort_index()
    splits = [split for split in scores.index.unique("split") if scores.covered_90.xs(split).notna().any()]
    if not splits:
        return None
    views: dict[tuple[str, ...], View] = {
        (str(split),): _coverage(material, scores.xs(split, level="split")) for split in splits
    }
    alt = "Share of later checkpoints inside the 50 and 90% intervals, by cut-off, beside 50 and 90%"
    return Figure("coverage", alt, {"split": [str(split) for split in splits]}, views)


def _coverage(material: Material, scores: pd.DataFrame) -> View:
    percent, data, legend = 100 * scores.index.to_numpy(float), [], []
    ends = [percent.min() - 3, percent.max() + 3]
    for level, colour, symbol in ((90, "--blue", "circle"), (50, "--purple", "square")):
        key, inside = f"{level}%", 100 * scores[f"covered_{level}"].to_numpy(float)
        data.append(lines(ends, [level, level], colour, key=key, dash="4px,4px", width=1.2, hoverinfo="skip"))
        data.append(lines(percent, inside, colour, key=key, width=1.5, hoverinfo="skip"))
        on_hover = hover(f"from %{{x:.3g}}%: %{{y:.0f}}% of later checkpoints inside the {level}% interval")
        data.append(dots(percent, inside, colour, key=key, symbol=symbol, size=9, **on_hover))
        legend.append(entry(key, f"inside the {level}% interval (dashed: {level}%)", colour))
    ticks = [0, 50, 90, 100]
    axis = {"range": [-6, 106], "tickvals": ticks, "ticktext": [f"{tick}%" for tick in ticks], "fixedrange": True}
    x = _share_axis(material, scores.index.to_numpy(float))
    layout = panels(["later checkpoints inside the interval"], [190], x, [axis])
    return {"data": data, "layout": layout, "legend": legend}
