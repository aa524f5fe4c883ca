"""The critical batch size, from runs of one model at several batch sizes (Kaplan et al., arXiv 2001.08361, section 5).

A run of batch B reaches a loss L after S steps and E = B S tokens. Over batch sizes, at one loss,

    (S/S_min - 1)(E/E_min - 1) = 1,    B_crit(L) = E_min/S_min,

so that a run at B_crit takes 2 S_min steps and 2 E_min tokens. Over losses B_crit(L) = B_star/L^(1/alpha_B).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from tsl_jax.fitting import Fit, fit
from tsl_jax.laws import CRITICAL_BATCH, STEPS_TOKENS

FEWEST = 3  # batch sizes that reach a loss: one more than the hyperbola has parameters


@dataclass(frozen=True)
class BatchTrade:
    """Steps against tokens at each loss.

    Attributes:
        points: a row a loss and run: loss, run, batch_tokens, steps, tokens at which that run reached it.
        trades: a row a loss: s_min, e_min, b_crit, their standard errors as NAME_se, status in words.
        critical: CRITICAL_BATCH fitted to b_crit over the losses with a usable fit; None for fewer than three.
    """

    points: pd.DataFrame
    trades: pd.DataFrame
    critical: Fit | None

    @property
    def constants(self) -> dict[str, float] | None:
        """B_star and alpha_B, as `critical_batch` reads them."""
        return (
            None if self.critical is None else {str(k): float(v) for k, v in self.critical.params.to_series().items()}
        )


def fit_batch_trade(curves: pd.DataFrame, losses: Sequence[float]) -> BatchTrade:
    """Fit the hyperbola of steps and tokens at each loss, and the critical batch over losses.

    Args:
        curves: a row a checkpoint: run, batch_tokens, steps, loss; runs of one model that differ in their batch alone,
            each at the learning rate that suits it. losses: nats, at which runs are compared.

    Raises:
        ValueError: for missing columns, or where no loss is reached by FEWEST batch sizes.
    """
    missing = [name for name in ("run", "batch_tokens", "steps", "loss") if name not in curves]
    if missing:
        raise ValueError(f"critical batch: the curves lack {', '.join(missing)}; they have {', '.join(curves.columns)}")
    points = pd.DataFrame([point for loss in losses for point in _reached(curves, float(loss))])
    reaching = {} if points.empty else dict(iter(points.groupby("at")))
    enough = {at: part for at, part in reaching.items() if part.batch_tokens.nunique() >= FEWEST}
    if not enough:
        reached = f"{len(points)} pairs of run and loss" if len(points) else "none of the losses by any run"
        raise ValueError(f"critical batch: {FEWEST} batch sizes must reach a loss, found {reached}; give higher losses")
    trades = pd.DataFrame([_trade(float(str(at)), part) for at, part in enough.items()])
    usable = trades[trades.usable]
    critical = None
    if len(usable) >= FEWEST:
        weights = 1 / np.maximum(usable.log_b_crit_se.to_numpy(float), 1e-3) ** 2
        critical = fit(
            CRITICAL_BATCH, usable.b_crit.to_numpy(float), x=usable.loss.to_numpy(float), weights=weights, loss="log"
        )
    return BatchTrade(points.rename(columns={"at": "loss"}), trades, critical)


def _reached(curves: pd.DataFrame, loss: float) -> list[dict[str, float]]:
    """Where each run first reached a loss, interpolated in log steps between two checkpoints."""
    points = []
    for run, curve in curves.groupby("run", sort=False):
        curve = curve.query("steps > 0").sort_values("steps")
        values, steps = curve.loss.to_numpy(float), curve.steps.to_numpy(float)
        below = np.flatnonzero(values <= loss)
        if not len(below) or below[0] == 0:
            continue  # never, or before the first checkpoint
        after = below[0]
        share = (values[after - 1] - loss) / (values[after - 1] - values[after])
        at = float(np.exp((1 - share) * np.log(steps[after - 1]) + share * np.log(steps[after])))
        batch = float(curve.batch_tokens.iloc[0])
        points.append({"at": loss, "run": run, "batch_tokens": batch, "steps": at, "tokens": batch * at})
    return points


def _trade(loss: float, points: pd.DataFrame) -> dict[str, object]:
    """S_min, E_min and B_crit at one loss, errors of logarithms by the delta method."""
    made = fit(STEPS_TOKENS, points.tokens.to_numpy(float), x=points.steps.to_numpy(float), loss="log")
    s_min, e_min = made.params.values
    covariance = made.covariance.values
    relative = covariance / np.outer(made.params.values, made.params.values)
    log_error = float(np.sqrt(max(relative[0, 0] + relative[1, 1] - 2 * relative[0, 1], 0)))
    errors = made.stderr.values
    return {
        "loss": loss, "runs": len(points), "s_min": s_min, "s_min_se": errors[0], "e_min": e_min, "e_min_se": errors[1],
        "b_crit": e_min / s_min, "log_b_crit_se": log_error, "usable": bool(made.usable),
        "status": made.message().item(),
    }  # fmt: skip
