"""Which runs to train next, so that the loss at a target is known best for a budget.

The log loss of run k has the variance sigma^2 of the ladder's residuals. With j_k the slope of log L at run k by the
logarithms of the law's parameters, and g that at the target, what is not known of log L(target) has the variance

    v = sigma^2 g' (sum_k j_k j_k')^-1 g.

Runs are taken one after the other, each candidate once, by what lowers log v most, per FLOP or at all, as long as the
budget lasts; of the two lists the better one is the answer (Khuller, Moss and Naor 1999: of all such sets the better is
within a constant of the best; the criterion is that of a c-optimal design, Pukelsheim 2006).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from tsl_jax.laws import Law
from tsl_jax.scaling.ladder import Ladder, covariates

RIDGE = 1e-6  # of the mean of the diagonal: a ladder that does not tell two parameters apart has no inverse
MOST = 50  # runs


def next_runs(ladder: Ladder, target: Mapping[str, float], candidates: pd.DataFrame, budget: float) -> pd.DataFrame:
    """The runs to train next, in order.

    Args:
        ladder: what is known. target: covariate -> value, where the loss is wanted. candidates: a row a run that could
            be trained: the law's covariates and `flops`. budget: FLOPs.

    Returns:
        Rows of candidates, with `sd`, that of log L at the target once this run and those above are there, and
        `total_flops`. Its attribute `sd_now` (in `.attrs`) is that of the ladder alone.

    Raises:
        ValueError: for missing columns, or where no candidate is within the budget.
    """
    law = ladder.law
    missing = [name for name in (*law.covariates, "flops") if name not in candidates]
    if missing:
        raise ValueError(f"design: the candidates lack {', '.join(missing)}; they have {', '.join(candidates.columns)}")
    if not (candidates.flops <= budget).any():
        raise ValueError(f"design: the cheapest candidate takes {candidates.flops.min():.3g} FLOPs, found {budget:.3g}")
    params = ladder.fit.params.values
    slopes, wanted, offered = (
        _slopes(law, table, params) for table in (ladder.runs, pd.DataFrame([dict(target)]), candidates)
    )
    residual = np.log(ladder.runs.loss.to_numpy(float)) - np.log(ladder.fit.predict().values)
    sigma = max(1.4826 * float(np.median(np.abs(residual))), 1e-6) * np.sqrt(
        len(residual) / max(len(residual) - len(params), 1)
    )
    information = slopes.T @ slopes
    information += RIDGE * np.trace(information) / len(params) * np.eye(len(params))

    lists = [
        _greedy(information, offered, wanted[0], candidates.flops.to_numpy(float), budget, by) for by in (1.0, 0.0)
    ]
    chosen, variances = min(lists, key=lambda pair: pair[1][-1])
    table = candidates.iloc[chosen].assign(sd=sigma * np.sqrt(variances[1:]))
    table["total_flops"] = table.flops.cumsum()
    table.attrs["sd_now"] = float(sigma * np.sqrt(variances[0]))
    return table.reset_index(drop=True)


def _greedy(
    information: np.ndarray, offered: np.ndarray, wanted: np.ndarray, costs: np.ndarray, budget: float, by: float
) -> tuple[list[int], list[float]]:
    """The candidates in order, each the one with the largest gain/cost^by; v/sigma^2 before and after each."""
    chosen: list[int] = []
    variances, left = [float(wanted @ np.linalg.solve(information, wanted))], budget
    while len(chosen) < MOST:
        # v falls by (g' M^-1 j)^2/(1 + j' M^-1 j) when the run j is added
        inverse = np.linalg.inv(information)
        fall = (offered @ inverse @ wanted) ** 2 / (1 + np.einsum("kp,pq,kq->k", offered, inverse, offered))
        open_ = (costs <= left) & ~np.isin(np.arange(len(costs)), chosen)
        gains = np.where(open_, -np.log1p(-np.minimum(fall / variances[-1], 1 - 1e-12)) / costs**by, -np.inf)
        best = int(np.argmax(gains))
        if not gains[best] > 0:
            break
        chosen.append(best)
        information = information + np.outer(offered[best], offered[best])
        variances.append(float(wanted @ np.linalg.solve(information, wanted)))
        left -= costs[best]
    return chosen, variances


def _slopes(law: Law, runs: pd.DataFrame, params: np.ndarray) -> np.ndarray:
    """d log L/d log |parameter| at each run, (run, param)."""
    x: Any = covariates(law, runs)
    signs = np.where(params < 0, -1.0, 1.0)

    def log_loss(logs: jax.Array) -> jax.Array:
        values = dict(zip(law.params, signs * jnp.exp(logs), strict=True))
        raw = law.raw_from_params(values) if law.raw_from_params else values
        shape, coef = (
            jnp.stack([raw[n] for n in names]) if names else jnp.zeros(0) for names in (law.shapes, law.coefs)
        )
        return jnp.log(law.evaluate(shape, coef, x))

    with jax.enable_x64(True):
        return np.asarray(jax.jacfwd(log_loss)(jnp.log(jnp.abs(jnp.asarray(params, float)))))
