"""Several laws of one curve, mixed in the shares in which backtests believe them.

Each law forecasts the last point of the past from origins within the past, and the ends of reference runs from the
others where there are enough of them. With p_kt the density that law k gave to what came in trial t, the weights

    w = argmax sum_t log sum_k w_k p_kt + (1/K) sum_k log w_k

(stacking of predictive distributions; the second term keeps every law in where trials are few) are the shares of each
law's draws in the forecast. How well a law fits the past counts for nothing.
Source: Yao, Vehtari, Simpson & Gelman, Using Stacking to Average Bayesian Predictive Distributions (2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tsl_jax.forecasting import extrapolation, priors
from tsl_jax.forecasting.extrapolation import Extrapolation, RunCurve
from tsl_jax.laws import Law

ORIGINS = (0.3, 0.5, 0.7)  # shares of the tokens seen from which the last point seen is forecast
ROUNDS = 200  # of the EM algorithm, which has long settled by then


def stacked(
    laws: Sequence[Law], run: RunCurve, at: np.ndarray, reference_runs: Sequence[RunCurve] = ()
) -> Extrapolation:
    """The curve continued by all laws together; arguments as of `curve.extrapolate`. `shares` tells the weights."""
    found = [extrapolation.calibrated(law, priors.of_loss(law), run, at, reference_runs) for law in laws]
    share = weights(np.stack([_log_density(law, run, at, reference_runs) for law in laws]))
    which = np.searchsorted(np.cumsum(share), (np.arange(extrapolation.DRAWS) + 0.5) / extrapolation.DRAWS).clip(
        0, len(laws) - 1
    )
    which = np.random.default_rng(11).permutation(which)
    pick = which, np.arange(extrapolation.DRAWS)
    draws, alone = np.stack([one.draws for one in found])[pick], np.stack([one.law_alone for one in found])[pick]
    best = found[int(np.argmax(share))]
    told = dict(zip((law.name for law in laws), share.tolist(), strict=True))
    decay_unseen = any(one.decay_unseen for one in found)
    return replace(best, draws=draws, law_alone=alone, shares=told, decay_unseen=decay_unseen)


def weights(log_density: np.ndarray) -> np.ndarray:
    """The weights (law,) from log densities (law, trial); equal ones where there is no trial."""
    count = len(log_density)
    density = np.exp(log_density - log_density.max(axis=0, initial=-np.inf))
    share = np.full(count, 1 / count)
    for _ in range(ROUNDS):
        mixed = share[:, None] * density
        share = 1 / count + (mixed / mixed.sum(0)).sum(1)
        share = share / share.sum()
    return share


def _log_density(law: Law, run: RunCurve, at: np.ndarray, reference_runs: Sequence[RunCurve]) -> np.ndarray:
    """Of what came, for each trial (trial,); trials are the same for all laws that share a clock."""
    prior, last = priors.of_loss(law), run.tokens.max(initial=0.0)
    within = [(run, origin * last, reference_runs) for origin in ORIGINS]
    across = extrapolation.backtest_cases(law, run, at, reference_runs)
    found = [extrapolation.backtest_case(law, prior, *trial) for trial in [*within, *across]]
    error, sd = np.array(found).T
    return np.where(np.isfinite(error), -0.5 * (error / sd) ** 2 - np.log(sd), 0.0)
