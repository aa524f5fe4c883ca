"""The figures of the study of mixtures: ranks, regret against cost, and the loss by position of each domain."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from tsl_jax.reporting.plots import style
from tsl_jax.reporting.plots.axes import legend_above, log_axis


@style.styled
def ranks(candidates: pd.DataFrame) -> Any:
    """The end of the target model of each mixture against that of its small models; the short list is marked."""
    figure, ((panel,),) = style.sheet(style.SINGLE, 0.8 * style.SINGLE)
    listed = candidates.listed.to_numpy(bool)
    for k, (label, some) in enumerate({"other mixtures": ~listed, "short list": listed}.items()):
        part = candidates[some]
        panel.plot(
            part.small, part.target_b, linestyle="none", marker=style.marker(k), color=style.colour(k), label=label
        )
    panel.set(xlabel="small models' end, half a (nats)", ylabel="target model's end, half b (nats)")
    legend_above(figure, dict(zip(["other mixtures", "short list"], panel.get_lines(), strict=True)))
    return figure


@style.styled
def regret_against_cost(strategies: pd.DataFrame, noise: float) -> Any:
    """Mean regret over random halves of the mixtures against cost in full runs, a line a strategy over its cut-offs."""
    figure, ((panel,),) = style.sheet(style.DOUBLE, 0.75 * style.SINGLE)
    for k, (name, own) in enumerate(strategies.groupby("strategy", sort=False)):
        panel.plot(own.cost, 1e3 * own.regret_halves, marker=style.marker(k), label=str(name), **style.line(k))
    panel.axhline(1e3 * noise, color="0.6", linewidth=0.8, linestyle=":")
    log_axis(panel.xaxis, strategies.cost.to_numpy(float))
    panel.set(xlabel="cost (full runs of the target model)", ylabel="regret (0.001 nats)", ylim=(0, None))
    names = [str(name) for name in strategies.strategy.unique()]
    legend_above(figure, dict(zip(names, panel.get_lines()[: len(names)], strict=True)))
    return figure


@style.styled
def by_domain(curves: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Any:
    """Loss by position of each domain at the last checkpoint, and its hyperbola: name -> (position, loss, fitted)."""
    figure, ((panel,),) = style.sheet(style.SINGLE, 0.75 * style.SINGLE)
    for k, (position, loss, fitted) in enumerate(curves.values()):
        panel.plot(position, loss, linestyle="none", marker=style.marker(k), markersize=2, color=style.colour(k))
        panel.plot(position, fitted, color=style.colour(k), linewidth=0.9)
    log_axis(panel.xaxis, next(iter(curves.values()))[0])
    panel.set(xlabel="token position i", ylabel="loss (nats)")
    legend_above(figure, dict(zip(curves, panel.get_lines()[::2], strict=True)))
    return figure
