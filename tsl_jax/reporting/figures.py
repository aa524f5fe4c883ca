"""Figures of the page as plain plotly dictionaries, and the parts they are put together from: traces, axes, legends.

Colours are names of CSS variables ("--blue") or places on the page's sequential scale ("seq:0.3"), which the page's
script replaces by those of the reader's theme. A figure has one view for each combination of its choices (split,
cut-off, law); the script draws the chosen one, with a legend that shows and hides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tsl_jax.reporting.wording import count

View = dict[str, Any]
PANEL_GAP = 58  # pixels between stacked panels: the title of the lower one stands there
MOST_DRAWN = 1000  # checkpoints: more are no wider on a screen, and make a page that opens slowly
MANY = 200  # dots of a curve that still stand apart
TOP, BOTTOM = 28, 50  # pixels above the first panel (its title) and below the last (ticks and their title)


@dataclass(frozen=True)
class Figure:
    """A figure of the page.

    Attributes:
        name: its id. alt: the description for readers who cannot see it.
        choices: label -> options, the first ones shown at the start (or those of `start`).
        views: the drawings, keyed by one option of each choice, in order.
        strip: whether the legend is a strip of colours in order, rather than separate entries.
    """

    name: str
    alt: str
    choices: Mapping[str, Sequence[str]]
    views: Mapping[tuple[str, ...], View]
    start: Mapping[str, str] = field(default_factory=dict)
    strip: bool = False

    def as_json(self) -> dict[str, Any]:
        """What the page's script reads: views are keyed by the options' numbers."""
        numbers = [{option: str(k) for k, option in enumerate(options)} for options in self.choices.values()]
        views = {
            ",".join(n[option] for n, option in zip(numbers, key, strict=True)): view
            for key, view in self.views.items()
        }
        start = [n[self.start.get(name, next(iter(n)))] for name, n in zip(self.choices, numbers, strict=True)]
        return {"views": views, "start": start}


def numbers(values: Any) -> list[float | None]:
    """Six figures of each value; None where it is not finite, which leaves a gap."""
    # more figures than a screen can show would double the size of the page
    flat = np.asarray(values, float).ravel().tolist()
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in flat]


def lines(x: Any, y: Any, colour: str, *, key: str, dash: str = "solid", width: float = 2, **more: Any) -> View:
    """A curve that the legend's entry `key` toggles."""
    style = {"color": colour, "width": width, "dash": dash}
    return _trace(x, y, key, more, mode="lines", line=style)


def dots(x: Any, y: Any, colour: str, *, key: str, symbol: str = "circle", size: float = 6, **more: Any) -> View:
    """Points that the legend's entry `key` toggles."""
    marker = {"color": colour, "symbol": symbol, "size": size} | more.pop("marker", {})
    return _trace(x, y, key, more, mode="markers", marker=marker)


def _trace(x: Any, y: Any, key: str, more: Mapping[str, Any], **style: Any) -> View:
    return {"type": "scatter", "x": numbers(x), "y": numbers(y), "legendgroup": key, **style, **more}


def entry(key: str, label: str, colour: str, *, mark: str = "line", dash: str = "solid", shown: bool = True) -> View:
    """A legend entry: a line, a dot, a ring, a cross, an area or a block of the strip, and what it stands for."""
    return {"key": key, "label": label, "colour": colour, "mark": mark, "dash": dash, "shown": shown}


def hover(text: str) -> View:
    """The text beside the pointer; `text` in plotly's template language, escaped by the caller."""
    return {"hovertemplate": f"{text}<extra></extra>"}


def panels(titles: Sequence[str], heights: Sequence[int], xaxis: View, yaxes: Sequence[View]) -> View:
    """The layout of panels stacked over one x axis, first on top, each with its title above its left end.

    Args:
        titles: markup. heights: pixels. xaxis: shared. yaxes: one a panel; all as plotly has them.
    """
    inner = sum(heights) + PANEL_GAP * (len(heights) - 1)
    layout: View = {"height": inner + TOP + BOTTOM, "margin": {"t": TOP, "b": BOTTOM, "l": 8, "r": 14}}
    layout["annotations"], top = [], inner
    for k, (title, height, yaxis) in enumerate(zip(titles, heights, yaxes, strict=True)):
        layout[f"yaxis{suffix(k)}"] = {"domain": [max(top - height, 0) / inner, top / inner], **yaxis}
        # an annotation, as plotly's own titles of vertical axes are turned and take width from a phone's screen
        place = {"xref": "paper", "x": 0, "xanchor": "left", "yref": "paper", "y": top / inner, "yanchor": "bottom"}
        layout["annotations"].append({"text": title, "showarrow": False, "align": "left", "yshift": 5, **place})
        top -= height + PANEL_GAP
    layout["xaxis"] = {"anchor": f"y{suffix(len(heights) - 1)}", **xaxis}
    return layout


def suffix(panel: int) -> str:
    """Plotly's number of a panel's axis: nothing, 2, 3 ..."""
    return "" if panel == 0 else str(panel + 1)


def shade(start: float, end: float, key: str = "unseen") -> View:
    """The part of the run after the cut-off, over the full height."""
    box = {"x0": start, "x1": end, "xref": "x", "y0": 0, "y1": 1, "yref": "paper"}
    return {"type": "rect", "fillcolor": "--shade", "line": {"width": 0}, "layer": "below", "name": key, **box}


def tokens_axis(low: float, high: float) -> View:
    """Tokens seen, logarithmic."""
    return log_axis("tokens seen (log scale)", low, high, round_ticks(low, high))


def position_axis(low: float, high: float) -> View:
    """Positions, logarithmic, ticks at powers of two, thinned to what a phone can show."""
    powers = np.arange(np.ceil(np.log2(low)), np.floor(np.log2(high)) + 1)
    # every second or third power where there are more than eight
    powers = powers[:: -(-len(powers) // 8)] if len(powers) else powers
    return log_axis("position i: tokens of context (log scale)", low, high, 2.0**powers)


def log_axis(title: str, low: float, high: float, ticks: np.ndarray) -> View:
    """A logarithmic axis with labels at these ticks."""
    margin = 0.02 * max(np.log10(high / low), 0.5)
    span = [np.log10(low) - margin, np.log10(high) + margin]
    labels = {"tickvals": ticks.tolist(), "ticktext": [count(tick) for tick in ticks]}
    return {"type": "log", "range": span, "title": {"text": title}, "fixedrange": True, **labels}


def round_ticks(low: float, high: float, most: int = 6) -> np.ndarray:
    """1, 2, 5 times powers of ten within [low, high]; fewer where there would be too many, more where only one."""
    decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)

    def within(*steps: int) -> np.ndarray:
        ticks = np.outer(decades, steps).ravel()
        return ticks[(ticks >= low * 0.999) & (ticks <= high * 1.001)]

    ticks = within(1, 2, 5)
    if len(ticks) < 2:
        ticks = within(*range(1, 10))
    else:
        for steps in ((1, 3), (1,)):
            ticks = ticks if len(ticks) <= most else within(*steps)
    return ticks[:: max(1, -(-len(ticks) // most))]


def span(*values: Any, margin: float = 0.08, least: float = 0.0) -> list[float] | None:
    """A range that holds all finite values with a margin (a share of it); None (automatic) where there is none."""
    flat = np.concatenate([np.asarray(array, float).ravel() for array in values]) if values else np.zeros(0)
    flat = flat[np.isfinite(flat)]
    if not len(flat):
        return None
    low, high = float(flat.min()), float(flat.max())
    beyond = max(margin * (high - low) or max(abs(high), 1.0) * 0.05, least)
    return [low - beyond, high + beyond]


def drawn(count: int, most: int = MOST_DRAWN) -> np.ndarray:
    """Which of `count` checkpoints are drawn: at most `most`, evenly picked, first and last among them."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int)


def size_of(points: int) -> float:
    """Diameter of dots, in pixels: of many, smaller ones, which do not cover the intervals as one thick band."""
    return 6.5 if points <= MANY else 3.0


def drawn_in_words(count: int, most: int = MOST_DRAWN, what: str = "checkpoint") -> str:
    """A sentence for the caption where not all are drawn, else nothing."""
    return f" Of {count:,} {what}s {most:,} are drawn, evenly picked." if count > most else ""


def even_in_log(tokens: np.ndarray, most: int) -> np.ndarray:
    """Indices of at most `most` checkpoints, as even in log tokens as they come, first and last among them."""
    usable = np.flatnonzero(tokens > 0)
    if len(usable) <= most:
        return usable
    first, last = np.log(tokens[usable[[0, -1]]])
    wanted = np.linspace(first, last, most)
    nearest = np.abs(np.log(tokens[usable])[None] - wanted[:, None]).argmin(axis=1)
    return usable[np.unique(nearest)]  # where checkpoints are rare, two wanted places have the same nearest one
