"""Comparisons by position: how fast the loss of each position falls, and how arms differ at each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tsl_jax.reporting.plots.frame import CROWDED, POSITION, band, legend_above, limits, panel_title, position_axis
from tsl_jax.reporting.plots.style import DOUBLE, INK, MUTED, SHADE, SINGLE, colour, sheet, styled


@styled
def decline_rates(
    position: Any,
    phases: Mapping[str, tuple[Any, Any, Any]],
    margin: float | Mapping[str, float] | None = None,
    unit: str = "nats per e-fold of tokens",
    centre: float | None = None,
) -> Figure:
    """How fast the loss of each position falls, one panel a phase of training.

    Args:
        position: (position,). phases: name -> (rate, low, high), each (position,), a simultaneous band.
        margin: half the width of the band of equivalence around the mean rate, in the same unit; a mapping by phase.
        centre: the mean rate over positions, where the points are bands of several; default the mean of the points.
    """
    figure, panels = _grid(len(phases))
    for k, (panel, (name, (rate, low, high))) in enumerate(zip(panels, phases.items(), strict=True)):
        half = margin.get(name) if isinstance(margin, Mapping) else margin
        mean, around = float(np.mean(rate)) if centre is None else centre, []
        if half is not None:
            around = [mean - half, mean + half]
            panel.axhspan(*around, color=SHADE, linewidth=0, zorder=0)
        panel.axhline(mean, color=MUTED, linewidth=0.8, linestyle="--", zorder=1)
        band(panel, position, low, high, colour(k))
        panel.plot(position, rate, color=colour(k), linewidth=_width(position))
        limits(panel, low, high, around)
        _named(panel, position, name, len(phases))
    _outer_labels(panels, f"rate of fall\n({unit})", len(phases))
    handles: list[Any] = [Line2D([], [], color=INK), Patch(facecolor=(INK, 0.2))]
    labels = ["rate", "simultaneous band"]
    handles.append(Line2D([], [], color=MUTED, linewidth=0.8, linestyle="--"))
    labels.append("mean over positions")
    if margin is not None:
        handles.append(Patch(facecolor=SHADE))
        labels.append("margin")
    legend_above(figure, handles, labels)
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
    figure, panels = _grid(len(arms), sharey=True)
    held = [one for found in arms.values() for one in found] + list((seeds or {}).values())
    held += [] if margin is None else [[-margin, margin]]
    for k, (panel, (name, (mean, low, high))) in enumerate(zip(panels, arms.items(), strict=True)):
        panel.axhline(0, color=INK, linewidth=0.6, zorder=1)
        for side in () if margin is None else (-margin, margin):
            panel.axhline(side, color=MUTED, linewidth=0.7, linestyle=(0, (4, 2)), zorder=1)
        for one in [] if seeds is None else np.asarray(seeds.get(name, [])):
            panel.plot(position, one, color=MUTED, linewidth=0.4, alpha=0.6)
        band(panel, position, low, high, colour(k))
        panel.plot(position, mean, color=colour(k), linewidth=_width(position))
        limits(panel, *held)
        _named(panel, position, name, len(arms))
    _outer_labels(panels, "difference of loss (nats)", len(arms))
    handles = [Line2D([], [], color=INK), Patch(facecolor=(INK, 0.2))]
    labels = ["mean", "interval"]
    if seeds:
        handles.append(Line2D([], [], color=MUTED, linewidth=0.4))
        labels.append("one seed")
    if margin is not None:
        handles.append(Line2D([], [], color=MUTED, linewidth=0.7, linestyle=(0, (4, 2))))
        labels.append("margin")
    legend_above(figure, handles, labels)
    return figure


def _grid(count: int, **share: Any) -> tuple[Figure, list[Axes]]:
    """As many small panels as there are names, in rows of two or three."""
    columns = _columns(count)
    rows = -(-count // columns)
    figure, panels = sheet(SINGLE if columns == 1 else DOUBLE, 0.4 + 1.4 * rows, rows, columns, **share)
    for spare in panels.ravel()[count:]:
        spare.remove()
    return figure, list(panels.ravel()[:count])


def _width(position: Any) -> float:
    return 1.2 if np.size(position) <= CROWDED else 0.8


def _columns(count: int) -> int:
    return count if count < 4 else 2 if count == 4 else 3


def _named(panel: Axes, position: Any, name: str, count: int) -> None:
    position_axis(panel, position, "")
    if count > 1 or name:
        panel_title(panel, name)


def _outer_labels(panels: list[Axes], ylabel: str, count: int) -> None:
    """Labels at the left column and below the lowest panel of each column only."""
    for k, panel in enumerate(panels):
        if k % _columns(count) == 0:
            panel.set_ylabel(ylabel)
        if k + _columns(count) >= count:
            panel.set_xlabel(POSITION if _columns(count) < 3 else "position")
