"""Parts that printed figures share: axes of tokens and positions, limits, bands, legends above, titles of panels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from tsl_jax.reporting.figures import round_ticks, span
from tsl_jax.reporting.plots.style import BAND
from tsl_jax.reporting.wording import count

TOKENS = "tokens seen"
CROWDED = 60  # points in a line, beyond which edges of bands and wide lines run into each other
POSITION = "position (tokens of context)"


def tokens_axis(panel: Axes, tokens: Any, log: bool = True, label: str = TOKENS) -> None:
    """Tokens seen along x, ticks such as 100k and 2M."""
    if log:
        log_axis(panel.xaxis, tokens, count, margin=1.06)
    else:
        panel.xaxis.set_major_locator(even_ticks())
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    panel.set_xlabel(label)


def position_axis(panel: Axes, position: Any, label: str = POSITION) -> None:
    """Positions along x, logarithmic."""
    log_axis(panel.xaxis, position, lambda value: f"{value:,.0f}", margin=1.08)
    panel.set_xlabel(label)


def number(value: float) -> str:
    """The label of a tick: 0.02, 300, 10 to the 6, 3 times 10 to the 6."""
    if 1e-3 <= abs(value) < 1e4:
        return f"{value:g}"
    digits, power = f"{value:.0e}".split("e")
    return f"${'' if digits == '1' else digits + chr(92) + 'times'}10^{{{int(power)}}}$"


def log_axis(axis: Any, values: Any, name: Any = number, margin: float = 1.15, most: int = 5) -> None:
    """A logarithmic axis that holds all positive values, few ticks at 1, 2, 5 or powers of ten; name: of a tick."""
    flat = np.ravel(np.asarray(values, float))
    flat = flat[np.isfinite(flat) & (flat > 0)]
    low, high = (flat.min() / margin, flat.max() * margin) if len(flat) else (1.0, 10.0)
    panel, which = axis.axes, axis.axis_name
    getattr(panel, f"set_{which}scale")("log")
    getattr(panel, f"set_{which}lim")(low, high)
    axis.set_major_locator(FixedLocator(round_ticks(low, high, most).tolist()))
    axis.set_major_formatter(FuncFormatter(lambda value, _: name(value)))
    few = np.log10(high / low) <= 4  # decades, beyond which minor ticks are a grey bar
    decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    axis.set_minor_locator(FixedLocator(np.outer(decades, range(1, 10)).ravel().tolist()) if few else NullLocator())
    axis.set_minor_formatter(NullFormatter())


def even_ticks() -> MaxNLocator:
    """Few ticks on a linear axis, at multiples of 1, 2 or 5."""
    return MaxNLocator(5, steps=[1, 2, 5, 10])


def limits(panel: Axes, *values: Any, margin: float = 0.06) -> None:
    """Let the vertical axis hold these values, and few ticks."""
    ends = span(*values, margin=margin)
    if ends is not None:
        panel.set_ylim(*ends)
    panel.yaxis.set_major_locator(even_ticks())


def band(panel: Axes, x: Any, low: Any, high: Any, colour: Any) -> Any:
    """A translucent band, with thin edges where points are few."""
    width = 0.3 if np.size(x) <= CROWDED else 0
    return panel.fill_between(x, low, high, facecolor=(colour, BAND), edgecolor=colour, linewidth=width)


def legend_above(figure: Figure, entries: Mapping[str, Any], title: str | None = None) -> None:
    """A legend above all panels, in as many columns as the width allows; never on the data.

    Args:
        entries: label -> handle; those that are None are left out.
    """
    visible = [(handle, label) for label, handle in entries.items() if handle is not None]
    if not visible:
        return
    # the fewest rows that fit: matplotlib does not break a legend, it lets it run out of the figure
    for rows in range(1, len(visible) + 1):
        columns = -(-len(visible) // rows)
        order = [k for first in range(columns) for k in range(first, len(visible), columns)]  # it fills columns first
        handles, labels = zip(*(visible[k] for k in order), strict=True)
        legend = figure.legend(handles, labels, loc="outside upper center", ncols=columns, title=title)
        legend.get_title().set_fontsize(7)
        for label in legend.get_texts():
            label.set_parse_math(False)
        width = legend.get_window_extent().width / figure.dpi
        if width <= figure.get_figwidth() - 0.1 or columns == 1:
            break
        legend.remove()
    # panels keep their height: the legend's is added
    figure.set_figheight(figure.get_figheight() + 0.155 * (rows + (title is not None)))


def panel_title(panel: Axes, text: str) -> None:
    """The name of one of several panels; long names become smaller until they fit."""
    title: Any = panel.set_title(text, parse_math=False)  # a $ in a name is a letter
    figure: Any = panel.get_figure()
    grid: Any = panel.get_gridspec()
    width = figure.get_figwidth() / max(grid.ncols, 1) - 0.45
    while title.get_window_extent().width / figure.dpi > max(width, 0.5) and title.get_fontsize() > 5:
        title.set_fontsize(title.get_fontsize() - 0.5)
