"""The laws of Kaplan et al. fitted to the runs of the study, with intervals over resampled runs.

L(N), L(D), L(C)     (scale/x)^alpha, Huber's loss on log L                              `power_laws`
L(N, D)              ((N_c/N)^(alpha_N/alpha_D) + D_c/D)^alpha_D                         `size_and_data`
B_crit(L)            B_star/L^(1/alpha_B), from (S/S_min - 1)(E/E_min - 1) = 1           `critical_batch`
L(N, S_min)          (N_c/N)^alpha_N + (S_c/S_min)^alpha_S                               `size_and_steps`
N, B, S over C_min   from the constants: alpha_C/alpha_N, alpha_C/alpha_B, alpha_C/alpha_S with
                     1/alpha_C = 1/alpha_S + 1/alpha_B + 1/alpha_N; and fitted to the envelope `allocation`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from experiments.kaplan.runs_table import (
    by_budget,
    curves_of_sizes,
    early_stops,
    envelope,
    longest_ends,
    of_set,
    resampled_sizes,
)
from tsl_jax.laws import CRITICAL_BATCH, KAPLAN_C, KAPLAN_C_MIN, KAPLAN_D, KAPLAN_N, KAPLAN_ND, KAPLAN_NS, Law
from tsl_jax.scaling import BatchTrade, Ladder, fit_batch_trade, fit_ladder, with_minimal
from tsl_jax.scaling.accounting import PF_DAY, critical_batch

RESAMPLES = 200
FEWEST_BATCHES = 4  # of a resample: a hyperbola has two parameters
LOSSES = 8  # at which batch sizes are compared
LEVEL = 0.9
QUANTITIES = {"n_params": "alpha_N", "batch_tokens": "alpha_B", "steps": "alpha_S"}
FITTED = {"n_params": 0.73, "batch_tokens": 0.24, "steps": 0.03}  # by the paper, to its runs


@dataclass(frozen=True)
class Frontier:
    """A power law of the least loss over runs by compute.

    Attributes:
        law: over one column of the table. table: the least loss at each budget, see `envelope`. params: in the order of
            the law. draws: (resample, param), of runs drawn anew, each draw with a frontier of its own.
    """

    law: Law
    table: pd.DataFrame
    params: np.ndarray
    draws: np.ndarray


@dataclass(frozen=True)
class Fits:
    """All fits of the study.

    Attributes:
        size, data, size_data, size_steps: ladders of the laws. size_data_plain: L(N, D) of runs without dropout, where
            size_data is of those with it. compute, compute_min: power laws of the least loss.
        trade: steps against tokens over batch sizes. trade_draws: (resample, 2), its B_star and alpha_B over resamples.
        critical: constants of B_crit(L) in S_min and C_min: of the gradient noise scale along runs, which covers the
            losses of all sizes; else of the batch sizes; else the paper's. critical_draws: the same over resamples.
        minimal: checkpoints of the sizes with steps_min and pf_days_min. optima: the best size at each budget.
        allocation: a row a quantity: exponents over C_min by constants and fitted, ours with intervals and the paper's.
    """

    size: Ladder
    data: Ladder
    compute: Frontier
    compute_min: Frontier
    size_data: Ladder
    size_data_plain: Ladder | None
    size_steps: Ladder
    trade: BatchTrade
    trade_draws: np.ndarray
    critical: Mapping[str, float]
    critical_draws: np.ndarray
    minimal: pd.DataFrame
    optima: pd.DataFrame
    allocation: pd.DataFrame


def fit_all(table: pd.DataFrame, noise: pd.DataFrame) -> Fits:
    """Every law, in the order in which they need each other; noise: of runs, columns run, loss, noise_scale."""
    sizes = curves_of_sizes(table)
    trade, trade_draws = batch_trade(of_set(table, "batch"))
    critical, draws = trade.constants or CRITICAL_BATCH.published, trade_draws
    if len(noise):
        critical, draws = noise_law(noise)
    minimal = with_minimal(sizes, critical)
    size_steps = fit_ladder(KAPLAN_NS, minimal[minimal.warm], group="run", resamples=RESAMPLES)
    optima = best_sizes(by_budget(minimal, "pf_days_min"), critical)
    without, some_dropout = grid(table, dropout=False), bool(of_set(table, "data").dropout.any())
    return Fits(
        size=fit_ladder(KAPLAN_N, longest_ends(table), group="n_params", resamples=RESAMPLES),
        data=fit_ladder(KAPLAN_D, data_sets(table), group="row", resamples=RESAMPLES, held_out=0),
        compute=frontier(sizes, KAPLAN_C),
        compute_min=frontier(minimal, KAPLAN_C_MIN),
        size_data=fit_ladder(KAPLAN_ND, grid(table), group="run", resamples=RESAMPLES),
        size_data_plain=fit_ladder(KAPLAN_ND, without, group="run", resamples=RESAMPLES) if some_dropout else None,
        size_steps=size_steps,
        trade=trade,
        trade_draws=trade_draws,
        critical=critical,
        critical_draws=draws,
        minimal=minimal,
        optima=optima,
        allocation=allocation(minimal, critical, size_steps, draws),
    )


# ------------------------------------------------------------------------------------------------------------- compute


def frontier(table: pd.DataFrame, law: Law) -> Frontier:
    """The law of compute, (scale/C)^alpha, on the least loss over runs; alpha and scale by a straight line of logs."""
    compute = law.covariates[0]
    losses = by_budget(table, compute)
    best = envelope(losses)
    draws = [power_of(envelope(drawn), compute) for drawn in resampled_sizes(losses, RESAMPLES)]
    return Frontier(law, best, power_of(best, compute), np.array(draws))


def power_of(best: pd.DataFrame, compute: str) -> np.ndarray:
    """scale and alpha; NaN for fewer than three budgets, or where the loss does not fall."""
    if len(best) < 3:
        return np.full(2, np.nan)
    slope, height = np.polyfit(np.log(best[compute]), np.log(best.loss), 1)
    return np.array([np.exp(height / -slope), -slope]) if slope < 0 else np.full(2, np.nan)


# ------------------------------------------------------------------------------------------------------- size and data


def grid(table: pd.DataFrame, dropout: bool | None = None) -> pd.DataFrame:
    """L(N, D): each run of the set data at its early stop; `tokens` is D, or those seen where none repeats.

    Args:
        dropout: runs with it or without; None: with it where there are such, as in the paper.
    """
    sets = of_set(table, "data")
    stopped = early_stops(sets[sets.dropout == (sets.dropout.any() if dropout is None else dropout)])
    return stopped.assign(seen=stopped.tokens, tokens=stopped.unique_tokens)


def data_sets(table: pd.DataFrame) -> pd.DataFrame:
    """L(D): the model with the most data sets that are repeated, the largest of those; without dropout if there are."""
    stopped = grid(table, dropout=of_set(table, "data").dropout.all())
    repeated = stopped[stopped.repeats]
    sets = repeated.groupby("n_params").size()
    return repeated[repeated.n_params == sets[sets == sets.max()].index.max()].reset_index(drop=True)


def overfitting(table: pd.DataFrame) -> pd.DataFrame:
    """dL = L(N, D)/L(N, inf) - 1 of each cell of the grid, inf being the run of the same length that never repeats."""
    stopped = grid(table)
    free = stopped[~stopped.repeats].set_index("n_params").loss
    cells = stopped[stopped.repeats & stopped.n_params.isin(free.index)]
    return cells.assign(free_loss=free.loc[cells.n_params].to_numpy(), above=lambda t: t.loss / t.free_loss - 1)


# --------------------------------------------------------------------------------------------------------------- batch


def common_losses(curves: pd.DataFrame) -> np.ndarray:
    """Losses that every batch size passes, past its warm-up, even in the logarithm: from the highest of the first warm
    losses to the highest of the last ones."""
    warm = curves[curves.warm].groupby("run").loss
    high, low = warm.first().min(), warm.min().max()
    # half a step from either end: interpolation needs a checkpoint on both sides
    edges = np.geomspace(low, high, LOSSES + 1) if high > low else np.array([low, low])
    return np.sqrt(edges[1:] * edges[:-1])


def batch_trade(curves: pd.DataFrame) -> tuple[BatchTrade, np.ndarray]:
    """Hyperbolas at the common losses, and B_star, alpha_B over resampled batch sizes (resample, 2)."""
    trade = fit_batch_trade(curves, common_losses(curves))
    names, random, draws = trade.points.run.unique(), np.random.default_rng(0), []
    while len(draws) < RESAMPLES and len(names) >= FEWEST_BATCHES:
        drawn = np.unique(random.choice(names, len(names)))
        if len(drawn) >= FEWEST_BATCHES:
            draws.append(critical_constants(trade.points[trade.points.run.isin(drawn)]))
    return trade, np.array(draws).reshape(-1, 2)


def noise_law(noise: pd.DataFrame) -> tuple[dict[str, float], np.ndarray]:
    """B_star and alpha_B of the gradient noise scale over the loss, by a line of logs; the same over resampled runs."""

    def constants(part: pd.DataFrame) -> tuple[float, float]:
        slope, height = np.polyfit(np.log(part.loss), np.log(part.noise_scale), 1)
        return (float(np.exp(height)), float(-1 / slope)) if slope < 0 else (np.nan, np.nan)

    names, random = noise.run.unique(), np.random.default_rng(0)
    parts = {name: noise[noise.run == name] for name in names}
    draws = [constants(pd.concat([parts[k] for k in random.choice(names, len(names))])) for _ in range(RESAMPLES)]
    return dict(zip(CRITICAL_BATCH.params, constants(noise), strict=True)), np.array(draws)


def critical_constants(points: pd.DataFrame) -> tuple[float, float]:
    """B_star and alpha_B of some runs, by the line S_min/S + E_min/E = 1 at each loss and a line of logs over losses.

    The same hyperbola as that of `fit_batch_trade`, solved in one step: relative errors of S and E count alike.
    """
    losses, batches = [], []
    for loss, part in points.groupby("loss"):
        design = np.stack([1 / part.steps, 1 / part.tokens], axis=1)
        scale = design.max(0)
        s_min, e_min = np.linalg.lstsq(design / scale, np.ones(len(part)), rcond=None)[0] / scale
        if s_min > 0 and e_min > 0:
            losses.append(float(str(loss)))
            batches.append(e_min / s_min)
    if len(losses) < 3:
        return np.nan, np.nan
    slope, height = np.polyfit(np.log(losses), np.log(batches), 1)
    return (float(np.exp(height)), float(-1 / slope)) if slope < 0 else (np.nan, np.nan)


# ---------------------------------------------------------------------------------------------------------- allocation


def best_sizes(losses: pd.DataFrame, critical: Mapping[str, float]) -> pd.DataFrame:
    """The best size at each budget of C_min, with B = B_crit(L), S = S_min = C_min/(6 N B), D = B S.

    It is the vertex of the parabola of loss over log N through the best of the sizes and both its neighbours, where it
    has both. losses: of `by_budget`.
    """
    rows = []
    for budget, row in losses.iterrows():
        known = row.dropna()
        k = int(known.argmin()) if len(known) else 0
        if not 0 < k < len(known) - 1:
            continue  # the best size may lie beyond those that were tried
        u, loss = np.log(known.index.to_numpy(float))[k - 1 : k + 2], known.to_numpy()[k - 1 : k + 2]
        c2, c1, c0 = np.polyfit(u - u[1], loss, 2)
        vertex = {"n_params": float(np.exp(u[1] - c1 / (2 * c2))), "loss": c0 - c1**2 / (4 * c2)}
        rows.append({"pf_days_min": float(str(budget)), **vertex})
    table = pd.DataFrame(rows, columns=["pf_days_min", "n_params", "loss"])
    table["batch_tokens"] = critical_batch(table.loss, critical)
    table["tokens"] = table.pf_days_min * PF_DAY / (6 * table.n_params)
    table["steps"] = table.tokens / table.batch_tokens
    return table


def slopes(optima: pd.DataFrame) -> dict[str, float]:
    """Exponents of the best size, batch and steps over C_min; NaN for fewer than three budgets."""
    if len(optima) < 3:
        return dict.fromkeys(QUANTITIES, np.nan)
    x = np.log(optima.pf_days_min)
    return {name: float(np.polyfit(x, np.log(optima[name]), 1)[0]) for name in QUANTITIES}


def from_constants(alphas: Mapping[str, float]) -> dict[str, float]:
    """The same exponents from alpha_N, alpha_B, alpha_S."""
    together = 1 / sum(1 / alphas[name] for name in QUANTITIES.values())
    return {quantity: together / alphas[name] for quantity, name in QUANTITIES.items()}


def allocation(
    minimal: pd.DataFrame, critical: Mapping[str, float], size_steps: Ladder, critical_draws: np.ndarray
) -> pd.DataFrame:
    """A row a quantity: exponent by constants and fitted, ours with intervals, beside the paper's."""
    own = size_steps.fit.params.to_series().to_dict()
    constants = from_constants({**{str(k): float(v) for k, v in own.items()}, "alpha_B": critical["alpha_B"]})
    paper = from_constants({**KAPLAN_NS.published, **CRITICAL_BATCH.published})
    known = size_steps.params[np.isfinite(size_steps.params).all(1)]
    critical_draws = critical_draws[np.isfinite(critical_draws).all(1)]
    pairs = min(len(known), len(critical_draws))
    drawn = pd.DataFrame(
        [
            from_constants({**dict(zip(KAPLAN_NS.params, row, strict=True)), "alpha_B": alpha_b})
            for row, (_, alpha_b) in zip(known[:pairs], critical_draws[:pairs], strict=True)
        ],
        columns=list(QUANTITIES),
    )
    losses = by_budget(minimal, "pf_days_min")
    fitted = slopes(best_sizes(losses, critical))
    each = pd.DataFrame([slopes(best_sizes(some, critical)) for some in resampled_sizes(losses, RESAMPLES)])
    rows = []
    for name in QUANTITIES:
        row: dict[str, Any] = {
            "quantity": name,
            "from_constants": constants[name],
            **_ends(drawn[name], "from_constants"),
        }
        row |= {"usable_resamples": float(each[name].notna().mean())}
        row |= {"paper_from_constants": paper[name], "fitted": fitted[name], **_ends(each[name], "fitted")}
        rows.append(row | {"paper_fitted": FITTED[name]})
    return pd.DataFrame(rows)


def _ends(draws: pd.Series, name: str) -> dict[str, float]:
    tail = (1 - LEVEL) / 2
    return {f"{name}_low": float(draws.quantile(tail)), f"{name}_high": float(draws.quantile(1 - tail))}
