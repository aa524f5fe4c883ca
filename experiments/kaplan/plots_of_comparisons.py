"""The figures of the comparisons: shapes, architectures by position, other text, and tokens by size."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from experiments.kaplan.plots import HEIGHT, LOSS, loss_axis, scale_name
from tsl_jax.reporting.plots.axes import legend_above, log_axis, panel_title, position_axis
from tsl_jax.reporting.plots.style import DOUBLE, INK, MUTED, SINGLE, line, marker, sequential, sheet, styled


@styled
def shapes(table: pd.DataFrame, margin: float) -> Any:
    """How much the loss of each shape lies above that of the base, a row a shape."""
    figure, ((panel,),) = sheet(SINGLE, 0.22 * len(table) + 0.55)
    rows = np.arange(len(table))[::-1]
    panel.axvspan(-100 * margin, 100 * margin, color="#ececec", linewidth=0)
    panel.axvline(0, color=MUTED, linewidth=0.6)
    panel.plot(100 * table.above, rows, color=INK, marker="o", linestyle="none")
    panel.set_yticks(rows, table.shape_name.tolist())
    panel.set(xlabel="loss relative to the base, at its size (%)", ylim=(-0.6, len(table) - 0.4))
    return figure


@styled
def by_position(curves: Mapping[str, Mapping[str, xr.DataArray]]) -> Any:
    """Loss over positions of each architecture, a panel a size: title -> label -> (position,)."""
    figure, (panels,) = sheet(DOUBLE if len(curves) > 1 else SINGLE, HEIGHT, 1, len(curves))
    entries: dict[str, Any] = {}
    for panel, (title, lines) in zip(panels, curves.items(), strict=True):
        for k, (label, loss) in enumerate(lines.items()):
            middle, smooth = in_log_bins(loss)
            entries[label] = panel.plot(middle, smooth, marker=marker(k), markersize=2, **line(k))[0]
        position_axis(panel, next(iter(lines.values())).position)
        panel_title(panel, title)
        panel.set_ylabel(LOSS)
    legend_above(figure, entries)
    return figure


def in_log_bins(loss: xr.DataArray, bins: int = 14) -> tuple[np.ndarray, np.ndarray]:
    """Means over positions in bins that are even in the logarithm; single positions are noisy."""
    position = loss.position.values
    edges = np.unique(np.round(np.geomspace(1, position[-1] + 1, bins + 1)).astype(int))
    parts = [(position >= low) & (position < high) for low, high in pairwise(edges)]
    middle = np.array([np.exp(np.log(position[part]).mean()) for part in parts])
    return middle, np.array([loss.values[part].mean() for part in parts])


@styled
def transfer(pairs: pd.DataFrame) -> Any:
    """Loss on other texts over the loss on id: all checkpoints as lines by size, ends as points; a panel a text."""
    texts = list(pairs.text.unique())
    figure, (panels,) = sheet(DOUBLE, 0.62 * SINGLE, 1, len(texts), sharey=True)
    sizes, entries = sorted(pairs.n_params.unique()), {}
    ends = [pairs.loss.min(), pairs.loss.max()]
    for panel, text in zip(panels, texts, strict=True):
        part = pairs[pairs.text == text]
        last = part.loc[part.groupby("n_params").tokens.idxmax()]
        offset = float(last.offset.mean())
        entries["constant offset"] = panel.plot(
            ends, [v + offset for v in ends], color=MUTED, linestyle="--", linewidth=0.7
        )[0]
        for size, shade in zip(sizes, sequential(len(sizes)), strict=True):
            own = part[part.n_params == size].sort_values("tokens")
            entries[scale_name(size)] = panel.plot(own.loss, own.other, color=shade, linewidth=0.8)[0]
        panel.plot(last.loss, last.other, color=INK, marker="o", linestyle="none")
        panel_title(panel, f"{text} ({offset:+.2f})")
        panel.set_xlabel("loss on id (nats)")
        panel.invert_xaxis()
    panels[0].set_ylabel("loss on other text (nats)")
    legend_above(figure, entries, "parameters without embeddings")
    return figure


@styled
def efficiency(curves: pd.DataFrame, convergence: pd.DataFrame) -> Any:
    """Learning curves over tokens, and how far above its converged loss the best size of each budget is."""
    figure, ((left, right),) = sheet(DOUBLE, HEIGHT, 1, 2)
    groups, entries = list(curves[curves.warm].groupby("n_params")), {}
    for (size, part), shade in zip(groups, sequential(len(groups)), strict=True):
        entries[scale_name(float(str(size)))] = left.plot(part.tokens, part.loss, color=shade, linewidth=1)[0]
    log_axis(left.xaxis, curves[curves.warm].tokens)
    loss_axis(left, curves[curves.warm].loss)
    left.set(xlabel="tokens seen", ylabel=LOSS)
    right.plot(convergence.pf_days_min, 100 * convergence.above_convergence, color=INK, marker="o", linestyle="none")
    if len(convergence):
        log_axis(right.xaxis, convergence.pf_days_min, margin=1.2)
    right.set(
        xlabel="minimal compute $C_{min}$ (PF-days)",
        ylabel="best size's loss above its\nconverged loss (%)",
        ylim=(0, None),
    )
    legend_above(figure, entries, "parameters without embeddings")
    return figure
