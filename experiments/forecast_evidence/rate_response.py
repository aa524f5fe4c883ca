"""How does the loss answer to a rate that falls: in proportion, as a power, or as a curve that levels off?

    python -m experiments.forecast_evidence.rate_response --curves FOLDER

All curves of lr_scheduling's 124M at one peak are fitted together by L0 + A S^-alpha - C sum_k f_k (1 - 1/(1 + c (S -
S_k) eta_k^-1/2)), `tsl_jax.laws.annealing`, with f_k the difference of s(eta) before and after a decrease:

    proportion  s = eta          power  s = eta^q          saturating  s = eta/(eta + h)

The coefficients by least squares, the shapes by Nelder and Mead from two starts. Printed: RMSE (nats), the third shape,
and C (at the peak, to the rate 0) over the loss at the end. These curves are development data.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

from experiments.forecast_benchmark.data import lr_scheduling
from tsl_jax.forecasting import lr_history
from tsl_jax.laws import Schedule

PEAKS = (1e-4, 5e-4, 1e-3, 2e-3, 3e-3)
UNIT, POINTS, FIRST = 1e9, 60, 0.04  # tokens of the clock's unit; points of a curve; share of it that is left out
STARTS = ((-0.7, 3.0, 0.0), (-0.3, 1.0, -0.5))  # logs of alpha, c and the third shape
WEAK = 1e-4  # penalty on the log of the third shape, which a proportional answer leaves open
EXCESS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "proportion": lambda eta, _: eta,
    "power": lambda eta, q: eta**q,
    "saturating": lambda eta, h: eta / (eta + h) * (1 + h),
}


def curves_of(folder: Path, peak: float) -> list[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Losses and covariates of the 124M runs at one peak."""
    found = []
    for run in lr_scheduling(folder):
        rate = lr_history.of_run(run.surface, Schedule.from_plan(run.surface.attrs["schedule"]))
        if "124M" not in run.run or not np.isclose(rate.peak, peak, rtol=1e-3):
            continue
        tokens, loss = run.surface.tokens.values, run.surface.loss.values[0, :, 0]
        kept = np.flatnonzero(tokens > FIRST * tokens[-1])
        kept = kept[np.unique(np.linspace(0, len(kept) - 1, POINTS).round().astype(int))]
        found.append((loss[kept], dict(rate.covariates(tokens[kept], UNIT))))
    return found


def columns(
    shapes: np.ndarray, x: dict[str, np.ndarray], excess: Callable[[np.ndarray, float], np.ndarray]
) -> np.ndarray:
    """1, S^-alpha and minus the gain (point, 3), from logs of alpha, c and the third shape."""
    alpha, c, third = np.exp(shapes)
    before = x["from_rate"]
    fall = excess(before, third) - excess(np.maximum(before - x["decrease"], 0), third)
    since = np.maximum(x["area"][:, None] - x["at_area"], 0) * x["to_rate"] ** -0.5
    return np.stack([np.ones_like(x["area"]), x["area"] ** -alpha, -(1 - 1 / (1 + c * since)) @ fall], axis=1)


def fitted(curves: list[tuple[np.ndarray, dict[str, np.ndarray]]], name: str) -> tuple[float, float, float]:
    """RMSE, third shape, and C over the mean loss at the ends."""
    y = np.concatenate([loss for loss, _ in curves])

    def solved(shapes: np.ndarray) -> tuple[float, np.ndarray]:
        design = np.concatenate([columns(shapes, x, EXCESS[name]) for _, x in curves])
        coefs = np.linalg.lstsq(design, y, rcond=None)[0]
        return float(np.sqrt(np.mean((y - design @ coefs) ** 2))), coefs

    options = {"maxiter": 400, "xatol": 1e-3, "fatol": 1e-7}
    fits = [
        minimize(lambda p: solved(p)[0] + WEAK * p[2] ** 2, start, method="Nelder-Mead", options=options)
        for start in STARTS
    ]
    best = min(fits, key=lambda fit: fit.fun).x
    rmse, coefs = solved(best)
    return rmse, float(np.exp(best[2])), float(coefs[2] / np.mean([loss[-1] for loss, _ in curves]))


def main() -> None:
    """Print a row a peak and form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", type=Path, required=True, help="the folder of public curves")
    folder = parser.parse_args().curves
    if not (folder / "lr_scheduling" / "runs.csv").is_file():
        parser.error(f"{folder} holds no lr_scheduling/runs.csv")
    print("peak    curves  form        RMSE     shape   C/L")
    for peak in PEAKS:
        curves = curves_of(folder, peak)
        for name in EXCESS:
            rmse, shape, gain = fitted(curves, name)
            print(f"{peak:<7g} {len(curves):<7} {name:<11} {rmse:.5f}  {shape:<6.3f}  {gain:.4f}", flush=True)


if __name__ == "__main__":
    main()
