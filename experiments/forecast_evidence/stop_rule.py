"""How often does the rule of `tsl watch --stop-above` stop a run that it should not, and what does it save?

    python -m experiments.forecast_evidence.stop_rule [--out results/stop_rule.csv]

A run is looked at LOOKS times between 20 and 90 % of its plan; at each look the forecast says the chance that its end
is at most L (`watching.cautious_chance`, by a distribution `wider` times as wide as the interval). With L the loss at
which it did end, plus .00, .02 and .05 nats, a stop at any look is false; with L below its end by .05, .1 and .2 nats
a stop is right, and what is left of the run is saved. Decided 2026-11-29, before the test runs were looked at: alpha
.05; `wider` is the least of WIDER at which no development run (experiments/kept_runs/base.parquet) is stopped falsely
at L = its end, and the rule is valid if at most 5 % of the test runs are (every tenth of position_weighting.parquet,
other weights and seeds of the smallest model, whose ends no forecast was developed on).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tsl_jax.forecasting import forecast
from tsl_jax.forecasting.watching import ALPHA, cautious_chance
from tsl_jax.sweeps.archive import read_archive

KEPT = Path(__file__).parent.parent / "kept_runs"
OUT = Path(__file__).parent / "results" / "stop_rule.csv"
LOOKS = np.linspace(0.2, 0.9, 8)
MARGINS = (0.05, 0.02, 0.0, -0.05, -0.1, -0.2)  # of L over the true end
WIDER = (1.0, 1.5, 2.0, 3.0)
EVERY = 10  # of the test runs


def looks(kind: str, name: str, surface: Any, split: str) -> list[dict[str, Any]]:
    """A row a look: the end as forecast, its lower end, and the end that came."""
    run = surface.sel(split=[split])
    total, end = float(run.tokens[-1]), float(run.loss.isel(tokens=-1).mean())
    rows = []
    for share in LOOKS:
        made = forecast(run.sel(tokens=run.tokens <= share * total), [total], by_position=False)
        median, low = made.mean.item(), made.quantiles.sel(quantile=0.05).item()
        rows.append({"runs": kind, "run": name, "share": share, "median": median, "low": low, "end": end})
    return rows


def summary(rows: pd.DataFrame, alpha: float = ALPHA) -> pd.DataFrame:
    """A row a kind of runs, width and margin: how many were stopped, and the mean share of the run that this saved."""
    table = []
    for kind, part in rows.groupby("runs"):
        for wider in WIDER:
            for margin in MARGINS:
                chance = [cautious_chance(row.median, row.low, row.end + margin, wider) for row in part.itertuples()]
                first = part[np.array(chance) < alpha].groupby("run").share.min()
                count = part.run.nunique()
                table.append(
                    {"runs": kind, "wider": wider, "margin": margin, "count": count, "stopped": len(first) / count,
                     "saved": float((1 - first).sum() / count)}
                )  # fmt: skip
    return pd.DataFrame(table)


def main() -> None:
    """Print a line a run, and the summary; write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    rows = []
    runs = {("development", name): surface for name, surface in read_archive(KEPT / "base.parquet").items()}
    test = list(read_archive(KEPT / "position_weighting.parquet").items())[::EVERY]
    for (kind, name), surface in (runs | {("test", name): surface for name, surface in test}).items():
        rows += looks(kind, name, surface, "id")
        print(kind, name, flush=True)
        pd.DataFrame(rows).to_csv(options.out, index=False, float_format="%.5g")
    print(summary(pd.DataFrame(rows)).to_string(index=False, float_format="{:.3f}".format))


if __name__ == "__main__":
    main()
