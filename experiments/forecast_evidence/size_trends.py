"""Do the exponent and the gain of a falling rate change with the size of the model, within a family of runs?

    python -m experiments.forecast_evidence.size_trends --curves FOLDER

The runs of one size and peak of a family are fitted together, as in `rate_response`, by L0 + A S^-alpha - C (gain of
the falls of the rate, in proportion). Then log alpha, and log C/L less what the peak explains by the forecasts' prior,
are regressed on log N with a level for each family,

    log alpha, log C/L - .3 log(peak/1e-3) = family + slope log N + error

Printed: the values by size; the slopes with 90 % intervals (Student's t), and the sd of the error. All of it is
development data, of olmo_ladder the first split.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats
from scipy.optimize import minimize

from experiments.forecast_benchmark.data import check, lr_scheduling
from experiments.forecast_evidence import curves
from experiments.forecast_evidence.curves import Curve
from experiments.forecast_evidence.rate_response import EXCESS, FIRST, POINTS, STARTS, UNIT, columns
from tsl_jax.forecasting import lr_history
from tsl_jax.forecasting.priors import AT
from tsl_jax.laws import Schedule

PEAK_POWER = 0.3  # of the gain, in `priors`
LEAST_FALL = 0.5  # of the rate, as a share of its peak, at the end of some run of a size: less says nothing of the gain


def groups(folder: Path) -> dict[tuple[str, float, float], list[Curve]]:
    """(family, n_params, peak) -> runs, of the data sets that have several sizes.

    Raises:
        ValueError: where the folder lacks curves, or has other files than the benchmark's.
    """
    absent = check(folder)
    if absent:
        raise ValueError(
            f"{folder} lacks {', '.join(absent)}; python -m experiments.forecast_benchmark.fetch brings them"
        )
    found, _ = curves.load(curves.PARTS, folder, Path("no pool"))
    made: dict[tuple[str, float, float], list[Curve]] = {}
    for run in (*found, *lr_scheduling(folder)):
        family = run.data.split("/")[0].replace(" 124M", "").replace(" 33M to 93M", "")
        plan = Schedule.from_plan(run.surface.attrs["schedule"])
        peak = float(np.format_float_positional(lr_history.of_run(run.surface, plan).peak, 2, fractional=False))
        made.setdefault((family, run.n_params, peak), []).append(run)
    return made


def fitted(runs: list[Curve]) -> dict[str, float]:
    """alpha, C over the mean loss at the ends (NaN where no rate falls), and RMSE, of runs of one size and peak."""
    parts = []
    for run in runs:
        rate = lr_history.of_run(run.surface, Schedule.from_plan(run.surface.attrs["schedule"]))
        tokens, loss = run.surface.tokens.values, run.surface.loss.values[0, :, 0]
        kept = np.flatnonzero((tokens > FIRST * tokens[-1]) & np.isfinite(loss))
        kept = kept[np.unique(np.linspace(0, len(kept) - 1, POINTS).round().astype(int))]
        parts.append((loss[kept], dict(rate.covariates(tokens[kept], UNIT))))
    y = np.concatenate([loss for loss, _ in parts])
    falls = max(float(x["decrease"].sum()) for _, x in parts) >= LEAST_FALL

    def solved(shapes: np.ndarray) -> tuple[float, np.ndarray]:
        full = np.r_[shapes, 0.0]
        design = np.concatenate([columns(full, x, EXCESS["proportion"]) for _, x in parts])
        design = design if falls else design[:, :2]
        coefs = np.linalg.lstsq(design, y, rcond=None)[0]
        return float(np.sqrt(np.mean((y - design @ coefs) ** 2))), coefs

    options = {"maxiter": 300, "xatol": 1e-3, "fatol": 1e-7}
    fits = [minimize(lambda p: solved(p)[0], start[:2], method="Nelder-Mead", options=options) for start in STARTS]
    best = min(fits, key=lambda fit: fit.fun).x
    rmse, coefs = solved(best)
    last = float(np.mean([loss[-1] for loss, _ in parts]))
    return {"alpha": float(np.exp(best[0])), "gain": float(coefs[2] / last) if falls else np.nan, "rmse": rmse}


def slope(table: pd.DataFrame, value: str) -> dict[str, float]:
    """Slope of the log of a column on log N with a level for each family, its 90 % interval, and the error's sd."""
    good = table[(table[value] > 0) & np.isfinite(table[value])]
    good = good[good.groupby("family").n_params.transform("nunique") > 1]
    x, y = np.log(good.n_params), np.log(good[value])
    x, y = (column - column.groupby(good.family).transform("mean") for column in (x, y))
    free = len(good) - good.family.nunique() - 1
    estimate = float((x @ y) / (x @ x))
    sd = float(np.sqrt(np.sum((y - estimate * x) ** 2) / free))
    wide = float(stats.t.ppf(0.95, free)) * sd / float(np.sqrt(x @ x))
    return {"slope": estimate, "low": estimate - wide, "high": estimate + wide, "sizes": len(good), "sd": sd}


def main() -> None:
    """Print a row a family, size and peak, then the slopes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", type=Path, required=True, help="the folder of public curves")
    folder, rows = parser.parse_args().curves, []
    try:
        found = groups(folder)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    for (family, n_params, peak), runs in sorted(found.items()):
        row = {"family": family, "n_params": n_params, "peak": peak, "runs": len(runs), **fitted(runs)}
        rows.append(row)
    table = pd.DataFrame(rows)
    table["gain_at_1e-3"] = table.gain / np.where(table.peak < 1, table.peak / AT, 1.0) ** PEAK_POWER
    print(table.to_string(index=False, float_format="{:.4g}".format))
    print(
        pd.DataFrame({name: slope(table, name) for name in ("alpha", "gain", "gain_at_1e-3")}).T.to_string(
            float_format="{:.3f}".format
        )
    )


if __name__ == "__main__":
    main()
