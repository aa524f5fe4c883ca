"""The figures of the benchmark: the error by the share seen for every family, and coverage by schedule.

python -m experiments.forecast_benchmark.plots      writes results/errors.png and results/coverage.png
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from experiments.forecast_benchmark.run import LEVEL, ROWS, SHARES
from tsl_jax.reporting.plots.axes import legend_above, log_axis
from tsl_jax.reporting.plots.style import DOUBLE, INK, SINGLE, colour, marker, save, sheet, styled

DRAWN = ("tsl_jax", "multi-power, fitted", "annealing, fitted", "power law, last half", "logarithm, last half")
COLUMNS = 5
WIDE = 0.16  # of a group of bars that one takes


@styled
def errors(rows: pd.DataFrame) -> Any:
    """Median error of the end by the share seen, a panel a family."""
    names = sorted(rows.family.unique())
    lines = -(-len(names) // COLUMNS)
    figure, panels = sheet(DOUBLE, 0.42 * SINGLE * lines + 0.3, lines, COLUMNS, sharex=True, sharey=True)
    every = rows.assign(error=rows.error.abs()).groupby(["entry", "family", "share"]).error.median()
    drawn: dict[str, Any] = {}
    for panel, family in zip(panels.flat, names, strict=False):
        for k, entry in enumerate(DRAWN):
            if (entry, family) in every.index.droplevel("share"):
                of_entry = every.loc[entry, family]
                look = {"color": colour(k), "marker": marker(k), "markersize": 2.5, "linewidth": 1.4 if k == 0 else 0.8}
                drawn[entry] = panel.plot(of_entry.index, of_entry.to_numpy(), **look)[0]
        panel.set_title(family.replace("lr_scheduling", "lr_sched.").replace("33M to 93M", "33-93M"), fontsize=6)
        log_axis(panel.yaxis, every.loc[list(DRAWN)].clip(2e-3, 1), most=4)
        panel.set_xticks(SHARES, [f"{share:.0%}" for share in SHARES])
    for panel in panels.flat[len(names) :]:
        panel.set_axis_off()
    figure.supxlabel("share of the run seen", fontsize=7)
    figure.supylabel("median error of the final loss (nats)", fontsize=7)
    legend_above(figure, drawn)
    return figure


@styled
def coverage(rows: pd.DataFrame) -> Any:
    """Share of ends inside the 90 % interval, by schedule."""
    figure, ((panel,),) = sheet(DOUBLE, 0.62 * SINGLE, 1, 1)
    kinds = ("constant", "cosine", "wsd", "drop")
    known = rows[rows.inside.notna()]
    kind = known.family.str.split().str[-1]
    kind = kind.where(kind.isin(kinds), "cosine")  # llm.c's, and Megatron's, which is nearly constant
    inside = known.assign(kind=kind).groupby(["entry", "kind"]).inside.mean().unstack("kind")
    bars: dict[str, Any] = {}
    for k, entry in enumerate(DRAWN):
        at = np.arange(len(kinds)) + (k - (len(DRAWN) - 1) / 2) * WIDE
        bars[entry] = panel.bar(at, inside.loc[entry, list(kinds)], WIDE, color=colour(k))
    panel.axhline(LEVEL, color=INK, linewidth=0.8, linestyle="--")
    panel.set_xticks(range(len(kinds)), kinds)
    panel.set_ylabel("ends inside 90 % intervals")
    panel.set_ylim(0, 1.02)
    legend_above(figure, bars)
    return figure


def main() -> None:
    """Draw both."""
    rows = pd.read_parquet(ROWS)
    save(errors(rows), ROWS.with_name("errors"))
    save(coverage(rows), ROWS.with_name("coverage"))


if __name__ == "__main__":
    main()
