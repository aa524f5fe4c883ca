"""Comparisons: rates at which the loss of each position decreases, differences from a reference, errors by method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tsl_jax.reporting.plots.axes import (
    CROWDED,
    POSITION,
    band,
    even_ticks,
    legend_above,
    limits,
    log_axis,
    panel_title,
    position_axis,
    tokens_axis,
)
from tsl_jax.reporting.plots.style import (
    DOUBLE,
    INK,
    MARKERS,
    MUTED,
    SHADE,
    SINGLE,
    colour,
    line,
    sequential,
    sheet,
    styled,
)
from tsl_jax.reporting.wording import percents

ROW = 0.24  # inches
MARGIN: dict[str, Any] = {"color": MUTED, "linewidth": 0.7, "linestyle": (0, (4, 2))}  # of equivalence, as a line
OPEN_DOT: dict[str, Any] = {"markersize": 2.6, "markerfacecolor": "none", "markeredgewidth": 0.5, "color": INK}


@styled
def decline_rates(
    position: Any,
    phases: Mapping[str, tuple[Any, Any, Any]],
    margin: float | Mapping[str, float] | None = None,
    unit: str = "nats per e-fold of tokens",
    centre: float | None = None,
) -> Figure:
    """How fast the loss of each position decreases, one panel a phase of training.

    Args:
        position: (position,). phases: name -> (rate, low, high), each (position,), a simultaneous band.
        margin: half the width of the band of equivalence around the mean rate, in the same unit; a mapping by phase.
        centre: the mean rate over positions, where the points are bands of several; default the mean of the points.
    """
    figure, panels = _panels_by_position(position, list(phases), f"rate of decrease\n({unit})")
    dashed: dict[str, Any] = {"color": MUTED, "linewidth": 0.8, "linestyle": "--"}
    for k, (panel, (name, (rate, low, high))) in enumerate(zip(panels, phases.items(), strict=True)):
        half = margin.get(name) if isinstance(margin, Mapping) else margin
        mean, around = float(np.mean(rate)) if centre is None else centre, []
        if half is not None:
            around = [mean - half, mean + half]
            panel.axhspan(*around, color=SHADE, linewidth=0, zorder=0)
        panel.axhline(mean, zorder=1, **dashed)
        band(panel, position, low, high, colour(k))
        panel.plot(position, rate, color=colour(k), linewidth=_width(position))
        limits(panel, low, high, around)
    legend = {
        "rate": Line2D([], [], color=INK),
        "simultaneous band": Patch(facecolor=(INK, 0.2)),
        "mean over positions": Line2D([], [], **dashed),
        "margin": None if margin is None else Patch(facecolor=SHADE),
    }
    legend_above(figure, legend)
    return figure


@styled
def differences_by_position(
    position: Any,
    arms: Mapping[str, tuple[Any, Any, Any]],
    seeds: Mapping[str, Any] | None = None,
    margin: float | None = None,
) -> Figure:
    """Difference of the loss from a reference by position, one panel an arm, all on the same scale.

    Args:
        position: (position,). arms: name -> (mean, low, high), each (position,), nats.
        seeds: arm -> (seed, position), thin lines. margin: of equivalence, nats, dashed on both sides of zero.
    """
    figure, panels = _panels_by_position(position, list(arms), "difference of loss (nats)", sharey=True)
    # one scale for all arms, so that panels compare: the values of each count for the limits of all
    held = [values for arm in arms.values() for values in arm] + list((seeds or {}).values())
    held += [] if margin is None else [[-margin, margin]]
    for k, (panel, (name, (mean, low, high))) in enumerate(zip(panels, arms.items(), strict=True)):
        panel.axhline(0, color=INK, linewidth=0.6, zorder=1)
        for side in () if margin is None else (-margin, margin):
            panel.axhline(side, zorder=1, **MARGIN)
        for seed in [] if seeds is None else np.asarray(seeds.get(name, [])):
            panel.plot(position, seed, color=MUTED, linewidth=0.4, alpha=0.6)
        band(panel, position, low, high, colour(k))
        panel.plot(position, mean, color=colour(k), linewidth=_width(position))
        limits(panel, *held)
    legend = {
        "mean": Line2D([], [], color=INK),
        "interval": Patch(facecolor=(INK, 0.2)),
        "one seed": Line2D([], [], color=MUTED, linewidth=0.4) if seeds else None,
        "margin": None if margin is None else Line2D([], [], **MARGIN),
    }
    legend_above(figure, legend)
    return figure


def _panels_by_position(position: Any, names: list[str], ylabel: str, **share: Any) -> tuple[Figure, list[Axes]]:
    """A small panel a name, in rows of two or three; labels at the left column and the lowest of each column only."""
    count = len(names)
    columns = count if count < 4 else 2 if count == 4 else 3
    rows = -(-count // columns)
    figure, grid = sheet(SINGLE if columns == 1 else DOUBLE, 0.4 + 1.4 * rows, rows, columns, **share)
    panels = list(grid.ravel()[:count])
    for spare in grid.ravel()[count:]:
        spare.remove()
    for k, (panel, name) in enumerate(zip(panels, names, strict=True)):
        position_axis(panel, position, (POSITION if columns < 3 else "position") if k + columns >= count else "")
        panel.set_ylabel(ylabel if k % columns == 0 else "")
        if count > 1 or name:
            panel_title(panel, name)
    return figure, panels


def _width(position: Any) -> float:
    return 1.2 if np.size(position) <= CROWDED else 0.8


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
        panel.axvline(side, zorder=1, **MARGIN)
    seeds_of = table.seeds if "seeds" in table else [None] * len(table)
    rows: Any = table.itertuples(index=False)
    for y, (row, seeds) in enumerate(zip(rows, seeds_of, strict=True)):
        panel.plot([row.low, row.high], [y, y], color=colour(0), linewidth=1.4, solid_capstyle="butt")
        panel.plot([row.mean], [y], "s", color=colour(0), markersize=4)
        if seeds is not None:
            x = np.ravel(seeds)
            panel.plot(x, np.full(len(x), y + 0.28), "o", **OPEN_DOT)
    _rows(panel, table.arm)
    panel.xaxis.set_major_locator(even_ticks())
    panel.set_xlabel(f"difference of loss ({unit})")
    with_seeds = any(seeds is not None for seeds in seeds_of)
    legend = {
        "mean, interval": Line2D([], [], color=colour(0), marker="s", markersize=4),
        "one seed": Line2D([], [], marker="o", linestyle="", **OPEN_DOT) if with_seeds else None,
        "margin": None if margin is None else Line2D([], [], **MARGIN),
    }
    legend_above(figure, legend)
    return figure


@styled
def errors_by(table: pd.DataFrame, xlabel: str = "absolute error (nats)") -> Figure:
    """Absolute errors on a log scale, one row a method, one marker a cut-off.

    Args:
        table: columns method, cutoff (share of the run, or a word), value, low, high (NaN for no bar); methods in the
            order in which they first come. Values that are not positive have no place on the scale and are left out; a
            method without any is marked "none".
    """
    methods, cutoffs = list(dict.fromkeys(table.method)), sorted(set(table.cutoff))
    figure, ((panel,),) = sheet(SINGLE, 0.5 + 1.1 * ROW * len(methods))
    offsets = np.linspace(-0.27, 0.27, len(cutoffs)) if len(cutoffs) > 1 else [0.0]
    positive = table[["value", "low", "high"]].where(lambda values: values > 0)
    # on a log scale a bar that reaches zero or below ends at the smallest value drawn
    smallest = float(np.nanmin(positive.to_numpy(float)))
    shares = percents(cutoff for cutoff in cutoffs if not isinstance(cutoff, str))
    legend = {}
    for k, (cutoff, shade, offset) in enumerate(zip(cutoffs, sequential(len(cutoffs)), offsets, strict=True)):
        here = table[(table.cutoff == cutoff) & (table.value > 0)]
        y = np.array([methods.index(method) for method in here.method]) + offset
        panel.hlines(y, here.low.clip(lower=smallest), here.high, color=shade, linewidth=0.9)
        (points,) = panel.plot(here.value, y, MARKERS[k % len(MARKERS)], color=shade, markersize=3.6)
        legend[cutoff if isinstance(cutoff, str) else f"{shares[cutoff]} seen"] = points
    for y, method in enumerate(methods):
        panel.axhline(y + 0.5, color=MUTED, linewidth=0.2, zorder=0)
        if not (table.value[table.method == method] > 0).any():
            centred = {"transform": panel.get_yaxis_transform(), "va": "center", "ha": "center"}
            panel.text(0.5, y, "none", fontsize=7, color=MUTED, **centred)
    _rows(panel, methods)
    log_axis(panel.xaxis, positive.to_numpy(float).ravel(), margin=1.25)
    panel.set_xlabel(xlabel)
    legend_above(figure, legend)
    return figure


def _rows(panel: Any, names: Any) -> None:
    """One row a name, the first at the top."""
    panel.set_yticks(range(len(names)), [str(name) for name in names])
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.tick_params(axis="y", length=0)
    panel.spines["left"].set_visible(False)


@styled
def run_comparison(comparison: Any) -> Figure:
    """Groups of runs: mean curves, differences of the end with intervals, and differences by position where there are.

    Args:
        comparison: a `RunComparison`.
    """
    by_position, curves = comparison.by_position, comparison.curves
    table = comparison.table
    count = 2 + (by_position is not None)
    figure, (panels,) = sheet(DOUBLE, 0.4 * DOUBLE, 1, count)
    through, ends = panels[:2]
    for j, name in enumerate(table.index):
        through.plot(curves.tokens, curves.sel(group=name), linewidth=1.0, **line(j))
    tokens_axis(through, curves.tokens.values)
    late = curves.tokens.values >= curves.tokens.values[-1] / 30
    limits(through, curves.values[:, late])
    through.set_ylabel("mean loss (nats)")
    panel_title(through, "mean over runs")
    rows = table.iloc[1:]
    places = np.arange(len(rows))[::-1]
    ends.axvline(0, color=MUTED, linewidth=0.6)
    if comparison.margin is not None:
        ends.axvline(-comparison.margin, **MARGIN)
        ends.axvline(comparison.margin, **MARGIN)
    for place, (name, row) in zip(places, rows.iterrows(), strict=True):
        shade = colour(list(table.index).index(name))
        ends.plot([row.low, row.high], [place, place], color=shade, linewidth=1.2)
        ends.plot([row.difference], [place], "o", color=shade, markersize=4)
    ends.set_yticks(places, list(rows.index))
    ends.set_ylim(-0.6, len(rows) - 0.4)
    ends.set_xlabel("difference (nats)")
    panel_title(ends, f"end less that of {table.index[0]}")
    if by_position is not None:
        where = panels[2]
        where.axhline(0, color=MUTED, linewidth=0.6)
        for name in by_position.group.values:
            j = list(table.index).index(name)
            where.plot(by_position.position, by_position.sel(group=name), linewidth=0.9, **line(j))
        position_axis(where, by_position.position.values)
        limits(where, by_position.values)
        where.set_ylabel("difference (nats)")
        panel_title(where, "by position")
    legend_above(figure, {str(name): Line2D([], [], **line(j)) for j, name in enumerate(table.index)})
    return figure
