"""The best use of a budget of compute: size, data, batch and steps.

Laws of (n_params, tokens), Chinchilla's and Kaplan's L(N, D): with Q tokens read by the trained model later,

    minimise L(N, D) over N,    6 N D + 2 N Q = C.

Kaplan's L(N, S_min) with B_crit(L), a run at the critical batch, which takes 2 S_min steps and twice the least compute:

    minimise L(N, S_min) over N,    6 N S_min B_crit(L) = C_min = C/2,    B = B_crit(L), S = 2 S_min, D = B S.

There N, B and S grow as C^(alpha_C/alpha_N), C^(alpha_C/alpha_B), C^(alpha_C/alpha_S) with 1/alpha_C = 1/alpha_S +
1/alpha_B + 1/alpha_N: from the paper's constants .68, .25 and .07 (.73, .24 and .03 were fitted to its runs).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from tsl_jax.laws import CHINCHILLA, CRITICAL_BATCH, KAPLAN_NS, Law
from tsl_jax.scaling.accounting import critical_batch
from tsl_jax.scaling.ladder import losses

SIZES = np.geomspace(1e3, 1e14, 4401)  # n_params that are tried, 400 a decade; then a parabola through the best three
LEVEL = 0.9


@dataclass(frozen=True)
class Allocation:
    """The best run of a budget, under one law.

    Attributes:
        law: its name. table: a row a quantity (n_params, tokens, tokens_per_param, batch_tokens, steps, loss), columns
            value, low, high: the ends of the interval over resamples of the runs, NaN where there are none. Batch and
            steps are NaN without a law of the critical batch.
        flops: of the budget. inference_tokens: Q.
    """

    law: str
    table: pd.DataFrame
    flops: float
    inference_tokens: float = 0.0

    def __repr__(self) -> str:
        later = f", of which {self.inference_tokens:.3g} tokens are read later" if self.inference_tokens else ""
        table = self.table.dropna(axis=1, how="all").to_string(float_format="{:.4g}".format, na_rep="-")
        return f"{self.law}, {self.flops:.3g} FLOPs{later}\n{table}"


def allocate(
    flops: float,
    law: Law = CHINCHILLA,
    params: Mapping[str, float] | None = None,
    draws: Float[np.ndarray, "resample param"] | None = None,
    critical: Mapping[str, float] | None = None,
    inference_tokens: float = 0.0,
    level: float = LEVEL,
) -> Allocation:
    """The best size, data, batch and steps for a budget.

    Args:
        flops: C, of training, and of inference where there is some. law: over (n_params, tokens) or
            (n_params, steps_min). params: its parameters; default the paper's. draws: other parameters, in the law's
            order, for the interval, such as `Ladder.params`. critical: B_star and alpha_B; default the paper's for
            KAPLAN_NS, none for the others. inference_tokens: Q, for laws over tokens.

    Raises:
        ValueError: for a law of other covariates, a budget that is not positive, or inference that leaves no training.
    """
    values = dict(params or law.published)
    if not (np.isfinite(flops) and flops > 0 and inference_tokens >= 0):
        raise ValueError(
            f"allocate: flops must be positive and inference_tokens not negative, found {flops}, {inference_tokens}"
        )
    if not values:
        raise ValueError(f"allocate: the paper gives no constants of {law.name}; give params")
    if law.covariates == KAPLAN_NS.covariates:
        if inference_tokens:
            raise ValueError("allocate: inference_tokens go with a law over n_params and tokens, such as chinchilla")
        constants = dict(critical or CRITICAL_BATCH.published)
    elif law.covariates == CHINCHILLA.covariates:
        constants = dict(critical) if critical else None
    else:
        raise ValueError(f"allocate: expected a law over n_params and tokens or steps_min, found {law.name}")

    def best(row: np.ndarray) -> dict[str, float]:
        if law.covariates == KAPLAN_NS.covariates:
            assert constants is not None
            return _by_steps(flops, law, row[None], constants)
        return _by_tokens(flops, law, row[None], constants, inference_tokens)

    table = pd.DataFrame({"value": best(np.array([values[name] for name in law.params], float))})
    table["low"] = table["high"] = np.nan
    each = []
    for row in [] if draws is None else draws[np.isfinite(draws).all(1)]:
        with contextlib.suppress(ValueError):  # a resample may have no optimum; the interval is of those that have
            each.append(best(row))
    if each:
        tail = (1 - level) / 2
        table["low"], table["high"] = pd.DataFrame(each).quantile(tail), pd.DataFrame(each).quantile(1 - tail)
    return Allocation(law.name, table, flops, inference_tokens)


def _by_tokens(
    flops: float, law: Law, params: np.ndarray, critical: Mapping[str, float] | None, later: float
) -> dict[str, float]:
    """Of a law over n_params and tokens."""
    sizes = SIZES[2 * SIZES * later < 0.999 * flops]
    if not len(sizes):
        raise ValueError(f"allocate: reading {later:.3g} tokens takes more than {flops:.3g} FLOPs at any size")

    def loss(n_params: np.ndarray) -> np.ndarray:
        tokens = (flops / n_params - 2 * later) / 6
        return losses(law, {"n_params": n_params, "tokens": tokens}, params)[0]

    n_params = _minimum(loss, sizes)
    tokens, least = (flops / n_params - 2 * later) / 6, float(loss(np.array([n_params]))[0])
    batch = float(critical_batch(least, critical)) if critical else np.nan
    return _quantities(n_params, tokens, batch, tokens / batch, least)


def _by_steps(flops: float, law: Law, params: np.ndarray, critical: Mapping[str, float]) -> dict[str, float]:
    """Of L(N, S_min) at the critical batch."""

    def steps_min(n_params: np.ndarray) -> np.ndarray:
        """S_min with 6 N S_min B_crit(L) = C/2: it grows with S_min, so that bisection in log S_min finds it."""
        low, high = np.full(len(n_params), -10.0), np.full(len(n_params), 50.0)
        for _ in range(60):
            middle = (low + high) / 2
            loss = losses(law, {"n_params": n_params, "steps_min": np.exp(middle)}, params)[0]
            over = 6 * n_params * np.exp(middle) * critical_batch(loss, critical) > flops / 2
            low, high = np.where(over, low, middle), np.where(over, middle, high)
        return np.exp((low + high) / 2)

    def loss(n_params: np.ndarray) -> np.ndarray:
        return losses(law, {"n_params": n_params, "steps_min": steps_min(n_params)}, params)[0]

    n_params = _minimum(loss, SIZES)
    least, steps = float(loss(np.array([n_params]))[0]), 2 * float(steps_min(np.array([n_params]))[0])
    batch = float(critical_batch(least, critical))
    return _quantities(n_params, batch * steps, batch, steps, least)


def _quantities(n_params: float, tokens: float, batch: float, steps: float, loss: float) -> dict[str, float]:
    return {
        "n_params": n_params, "tokens": tokens, "tokens_per_param": tokens / n_params, "batch_tokens": batch,
        "steps": steps, "loss": loss,
    }  # fmt: skip


def _minimum(loss: Callable[[np.ndarray], np.ndarray], sizes: np.ndarray) -> float:
    """Where a loss over sizes is least: the best of the grid, then a parabola through it and its neighbours.

    Raises:
        ValueError: where it is least at an end of the grid.
    """
    values = loss(sizes)
    k = int(np.nanargmin(values))
    if k in (0, len(sizes) - 1):
        where = "smallest" if k == 0 else "largest"
        raise ValueError(
            f"allocate: the loss is least at the {where} size tried, {sizes[k]:.3g}: the law has no optimum there"
        )
    left, middle, right = values[k - 1 : k + 2]
    bend = left - 2 * middle + right
    place = k + (0.5 * (left - right) / bend if bend > 0 else 0.0)
    return float(np.exp(np.interp(place, np.arange(len(sizes)), np.log(sizes))))
