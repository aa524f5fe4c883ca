"""One case and one method: the forecast is made, and judged against what came."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import xarray as xr

import tsl_jax as tsl
from experiments.forecast_evidence import cases
from experiments.forecast_evidence.cases import Case
from tsl_jax.forecasting import ForecastMethod, covered, lr_history, winkler
from tsl_jax.forecasting.baselines import mean_loss
from tsl_jax.forecasting.result import QUANTILES
from tsl_jax.forecasting.scoring import GRID

KEY = ["protocol", "data", "run", "split", "method", "cutoff"]


def rows(case: Case, method: Any) -> list[dict[str, Any]]:
    """A row for each split; NaN, and the reason in its status, where a method can say nothing."""
    start = time.perf_counter()
    at = case.future.tokens.values
    try:
        mean, draws, facts_by_split = _made(case, method, at)
    except ValueError as error:
        splits = case.target.surface.split.values.tolist()
        nothing = xr.DataArray(np.full((len(splits), len(at)), np.nan), {"split": splits}, ("split", "tokens"))
        mean, draws, facts_by_split = nothing, None, {split: {"status": str(error)} for split in splits}
    facts = _facts(case) | {"seconds": (time.perf_counter() - start) / mean.sizes["split"]}
    observed = mean_loss(case.future)
    made = []
    for split in observed.split.values.tolist():
        own = None if draws is None else draws.sel(split=split).transpose("draw", "tokens").values
        judged = judge(at, observed.sel(split=split).values, mean.sel(split=split).values, own, case.target.last)
        name = {"split": split, "method": cases.name_of(method), "cutoff": case.cutoff} | facts_by_split[split]
        made.append(
            {"protocol": case.protocol, "data": case.target.data, "run": case.target.run} | name | judged | facts
        )
    return made


def _made(case: Case, method: Any, at: np.ndarray) -> tuple[xr.DataArray, xr.DataArray | None, dict[str, Any]]:
    """Expected mean loss (split, tokens), draws of it where the method has them, and what it says of each split."""
    siblings = [sibling.surface for sibling in case.siblings]
    if case.past.sizes["tokens"]:
        forecast = tsl.forecast(case.past, at, method=method, reference_runs=siblings)
        facts_by_split = {
            split: {"status": str(status), "intervals": forecast.intervals.get(split)}
            for split, status in forecast.status.items()
        }
        return forecast.mean, forecast.draws, facts_by_split
    return _from_siblings(case, method, at)


def _from_siblings(
    case: Case, method: ForecastMethod, at: np.ndarray
) -> tuple[xr.DataArray, xr.DataArray, dict[str, Any]]:
    """A run of which nothing is seen: `tsl.forecast` refuses it, the mixed model beneath does not."""
    target, (split,) = case.target.surface, case.target.surface.split.values.tolist()
    plan, others = lr_history.schedule_of(target), [sibling.surface.sel(split=split) for sibling in case.siblings]
    values, parts = method.through(method.law, case.past.sel(split=split), at.astype(float), plan, others)
    part = parts["mean"]
    draws = xr.DataArray(values[:, None], {"split": [split], "tokens": at}, ("draw", "split", "tokens"))
    status = "ok" if part.posterior.converged else "the sampler did not converge (mean)"
    facts_of_split = {
        "status": status,
        "intervals": f"calibrated on {n} reference runs" if (n := len(part.backtest_z)) else "model-based",
    }
    return draws.median("draw"), draws, {split: facts_of_split}


def judge(
    tokens: np.ndarray, observed: np.ndarray, predicted: np.ndarray, draws: np.ndarray | None, last: int
) -> dict[str, float]:
    """The numbers of a row, from (token,) arrays beyond the cut-off and draws (draw, token).

    MSE, MAE and R2 on an even grid of tokens; the final loss is the mean of the `last` checkpoints; shares covered and
    the mean interval score are over checkpoints. NaN where nothing is known.
    """
    there = np.isfinite(observed)
    if not there.any():
        return dict.fromkeys((*POINTS, *INTERVALS), np.nan)
    tokens, observed, predicted = tokens[there].astype(float), observed[there], predicted[there]
    grid = np.linspace(tokens[0], tokens[-1], GRID)
    y, f = (np.interp(grid, tokens, values) for values in (observed, predicted))
    mse = float(np.mean((f - y) ** 2))
    final, came = (float(values[-last:].mean()) for values in (predicted, observed))
    r2 = 1 - mse / float(np.var(y)) if np.ptp(observed) > 0 else np.nan
    points = dict(zip(POINTS, (final - came, came, mse, float(np.mean(abs(f - y))), r2), strict=True))
    if draws is None:
        return points | dict.fromkeys(INTERVALS, np.nan)
    draws = draws[:, there]
    return points | dict(zip(INTERVALS, _intervals(draws, observed) + _intervals(_end(draws, last), came), strict=True))


POINTS = ("final_error", "final_observed", "mse", "mae", "r2")
INTERVALS = tuple(f"{what}{of}" for of in ("", "_final") for what in ("covered_50", "covered_90", "interval_score"))


def _end(draws: np.ndarray, last: int) -> np.ndarray:
    return draws[:, -last:].mean(1, keepdims=True)


def _intervals(draws: np.ndarray, observed: Any) -> tuple[float, float, float]:
    """Shares inside the 50 and the 90 % interval, and the mean interval score of the latter."""
    lowest, low, _, high, highest = np.quantile(draws, QUANTILES, axis=0)
    score = float(np.mean(winkler(lowest, highest, observed)))
    observed = np.broadcast_to(observed, low.shape)
    return covered(low, high, observed), covered(lowest, highest, observed), score


def _facts(case: Case) -> dict[str, Any]:
    """What was seen: the information set."""
    past = case.past
    return {
        "prefix_tokens": float(past.tokens[-1]) if past.sizes["tokens"] else 0.0,
        "prefix_checkpoints": past.sizes["tokens"],
        "total_tokens": float(case.target.surface.tokens[-1]),
        "siblings": cases.siblings_of(case),
        "sibling_compute": cases.sibling_compute(case),
        "cluster": cases.cluster(case.target),
    }
