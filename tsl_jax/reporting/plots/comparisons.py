"""Comparisons in rows: a forest of differences with their seeds, and sizes of errors by method and cut-off."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tsl_jax.reporting.plots.frame import even_ticks, legend_above, log_axis
from tsl_jax.reporting.plots.style import INK, MARKERS, MUTED, SINGLE, colour, sequential, sheet, styled
from tsl_jax.reporting.standing import percent

ROW = 0.24  # inches


@styled
def differences_overall(table: pd.DataFrame, margin: float | None = None, unit: str = "nats") -> Figure:
    """Differences from a reference, one row an arm: mean (square), interval (bar), seeds (open dots).

    Args:
        table: columns arm, mean, low, high, and seeds (the values of each arm's seeds, or None), top row first.
        margin: of equivalence, dashed on both sides of zero.
    """
    figure, ((panel,),) = sheet(SINGLE, 0.6 + 1.25 * ROW * len(table))
    panel.axvline(0, color=INK, linewidth=0.6, zorder=1)
    for side in () if margin is None else (-margin, margin):
        panel.axvline(side, color=MUTED, linewidth=0.7, linestyle=(0, (4, 2)), zorder=1)
    known = table.seeds if "seeds" in table else [None] * len(table)
    rows: Any = table.itertuples(index=False)
    for y, (row, seeds) in enumerate(zip(rows, known, strict=True)):
        panel.plot([row.low, row.high], [y, y], color=colour(0), linewidth=1.4, solid_capstyle="butt")
        panel.plot([row.mean], [y], "s", color=colour(0), markersize=4)
        if seeds is not None:
            x = np.ravel(seeds)
            panel.plot(x, np.full(len(x), y + 0.28), "o", markersize=2.6, markerfacecolor="none", markeredgewidth=0.5,
                       color=INK)  # fmt: skip
    _rows(panel, table.arm)
    panel.xaxis.set_major_locator(even_ticks())
    panel.set_xlabel(f"difference of loss ({unit})")
    legend_above(figure, *_entries(any(one is not None for one in known), margin))
    return figure


def _entries(seeds: bool, margin: float | None) -> tuple[list[Any], list[str]]:
    handles, labels = [Line2D([], [], color=colour(0), marker="s", markersize=4)], ["mean, interval"]
    if seeds:
        open_dot = {"markerfacecolor": "none", "markeredgewidth": 0.5, "markersize": 2.6}
        handles.append(Line2D([], [], color=INK, marker="o", linestyle="", **open_dot))
        labels.append("one seed")
    if margin is not None:
        handles.append(Line2D([], [], color=MUTED, linewidth=0.7, linestyle=(0, (4, 2))))
        labels.append("margin")
    return handles, labels


@styled
def errors_by(table: pd.DataFrame, xlabel: str = "size of the error (nats)") -> Figure:
    """Sizes of errors on a log scale, one row a method, one marker a cut-off.

    Args:
        table: columns method, cutoff (share of the run, or a word), value, low, high (NaN for no bar); methods in the
            order in which they first come. Values that are not positive have no place on the scale and are left out; a
            method without any says "none".
    """
    methods, cutoffs = list(dict.fromkeys(table.method)), sorted(set(table.cutoff))
    figure, ((panel,),) = sheet(SINGLE, 0.5 + 1.1 * ROW * len(methods))
    offsets = np.linspace(-0.27, 0.27, len(cutoffs)) if len(cutoffs) > 1 else [0.0]
    positive = table[["value", "low", "high"]].where(lambda one: one > 0)
    floor = float(np.nanmin(positive.to_numpy(float)))
    handles = []
    for k, (cutoff, shade, offset) in enumerate(zip(cutoffs, sequential(len(cutoffs)), offsets, strict=True)):
        here = table[(table.cutoff == cutoff) & (table.value > 0)]
        y = np.array([methods.index(one) for one in here.method]) + offset
        panel.hlines(y, here.low.clip(lower=floor), here.high, color=shade, linewidth=0.9)
        handles += panel.plot(here.value, y, MARKERS[k % len(MARKERS)], color=shade, markersize=3.6)
    for y, method in enumerate(methods):
        panel.axhline(y + 0.5, color=MUTED, linewidth=0.2, zorder=0)
        if not (table.value[table.method == method] > 0).any():
            panel.text(
                0.5, y, "none", transform=panel.get_yaxis_transform(), fontsize=7, color=MUTED, va="center", ha="center"
            )
    _rows(panel, methods)
    log_axis(panel.xaxis, positive.to_numpy(float).ravel(), margin=1.25)
    panel.set_xlabel(xlabel)
    legend_above(figure, handles, [one if isinstance(one, str) else f"{percent(one)} seen" for one in cutoffs])
    return figure


def _rows(panel: Any, names: Any) -> None:
    """One row a name, the first at the top."""
    panel.set_yticks(range(len(names)), [str(one) for one in names])
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.tick_params(axis="y", length=0)
    panel.spines["left"].set_visible(False)
