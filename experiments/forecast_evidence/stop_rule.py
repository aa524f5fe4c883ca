"""How often does the rule of `tsl watch --stop-above` stop a run that it should not, and what does it save?

    python -m experiments.forecast_evidence.stop_rule [--out results/stop_rule.csv]

Every run of the kept pool (experiments/kept_runs/base.parquet, whole) is looked at LOOKS times between 20 and 90 % of
its plan; at each look the forecast says the chance that its end is at most L, as `watching.outlook` does. With L the
loss at which it did end, plus .00, .02 and .05 nats, a stop at any look is false; with L below its end by .05, .1 and
.2 nats a stop is right, and what is left of the run is saved. Decided 2026-11-29: alpha .05; false stops at L = the end
itself of at most 5 % of the runs count as valid. The pool served the development of the forecasts: this is no locked
test.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from tsl_jax.forecasting import forecast
from tsl_jax.forecasting.watching import ALPHA
from tsl_jax.sweeps.archive import read_archive

KEPT = Path(__file__).parent.parent / "kept_runs" / "base.parquet"
OUT = Path(__file__).parent / "results" / "stop_rule.csv"
LOOKS = np.linspace(0.2, 0.9, 15)
MARGINS = (0.05, 0.02, 0.0, -0.05, -0.1, -0.2)  # of L over the true end


def chances(name: str, surface: object, split: str) -> pd.DataFrame:
    """A row a look and margin: the chance that the end is at most L."""
    run = surface.sel(split=[split])  # type: ignore[attr-defined]
    total, end = float(run.tokens[-1]), float(run.loss.isel(tokens=-1).mean())
    rows = []
    for share in LOOKS:
        past = run.sel(tokens=run.tokens <= share * total)
        draws = forecast(past, [total], by_position=False).draws.sel(split=split).values.ravel()
        for margin in MARGINS:
            chance = (np.sum(draws <= end + margin) + 1) / (len(draws) + 2)
            rows.append({"run": name, "split": split, "share": share, "margin": margin, "chance": chance})
    return pd.DataFrame(rows)


def summary(rows: pd.DataFrame, alpha: float = ALPHA) -> pd.DataFrame:
    """A row a margin: runs, how many were stopped, and the mean share of the run that a stop saved."""
    table = []
    for margin, part in rows.groupby("margin"):
        first = part[part.chance < alpha].groupby(["run", "split"]).share.min()
        runs = part.groupby(["run", "split"]).ngroups
        saved = float((1 - first).sum() / runs)
        table.append(
            {"margin": margin, "runs": runs, "stopped": len(first), "share": len(first) / runs, "saved": saved}
        )
    return pd.DataFrame(table)


def main() -> None:
    """Print a line a run, and the summary; write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    tables = []
    for name, surface in read_archive(KEPT).items():
        tables.append(chances(name, surface, "id"))
        print(name, tables[-1].query("margin == 0").chance.min().round(3), flush=True)
        pd.concat(tables).to_csv(options.out, index=False, float_format="%.5g")
    print(summary(pd.concat(tables)).to_string(index=False))


if __name__ == "__main__":
    main()
