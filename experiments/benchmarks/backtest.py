"""How long does a backtest take? A run of 75 checkpoints, every method and baseline, four cut-offs.

    python experiments/benchmarks/backtest.py

The run is simulated: an annealing law for the level, a hyperbola over 64 positions, two splits, a cosine plan. The
first call compiles; the second, of another run of the same shape, is what counts. Then each method alone.
"""

from __future__ import annotations

import argparse
import os
import time

import numpy as np

import tsl_jax as tsl
from tsl_jax.forecasting import METHODS, backtest
from tsl_jax.forecasting.lr_history import LearningRate

CHECKPOINTS, POSITIONS, TOTAL = 75, 64, 100_000_000
PLAN = {"kind": "cosine", "peak": 1e-3, "warmup_tokens": 1_000_000, "total_tokens": TOTAL, "final_ratio": 0.1}


def simulate(seed: int):
    """A surface (2 splits, CHECKPOINTS, POSITIONS)."""
    random = np.random.default_rng(seed)
    tokens = np.linspace(TOTAL // CHECKPOINTS, TOTAL, CHECKPOINTS).astype(int)
    covariates = LearningRate(*tsl.laws.Schedule.from_plan(PLAN).knots()).covariates(tokens, float(TOTAL))
    basis = np.asarray(tsl.laws.AREA_ANNEALING.basis(np.array([0.4, 500.0]), covariates), float)
    level = basis @ np.array([2.5, 0.5, 0.1])
    position = np.arange(1, POSITIONS + 1)
    gap = (1.2 + 0.1 * np.log(covariates["area"]))[:, None] / (1 + 0.3 * position)
    loss = np.stack([level[:, None] + gap + 0.003 * random.standard_normal(gap.shape) + extra for extra in (0.0, 0.4)])
    return tsl.from_losses(loss, tokens=tokens, split=["id", "ood"], schedule=PLAN)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(f"{CHECKPOINTS} checkpoints x {POSITIONS} positions x 2 splits, 4 cut-offs, {os.cpu_count()} cores")
    for what, seed in (("first call", 0), ("second call", 1)):
        print(f"{what}: {_seconds(simulate(seed), tuple(METHODS)):.1f} s")
    for method in METHODS:
        print(f"  {method:<18}{_seconds(simulate(1), (method,)):.2f} s")


def _seconds(surface, methods) -> float:
    start = time.perf_counter()
    backtest(surface, methods=methods)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
