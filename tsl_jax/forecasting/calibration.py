"""Do the intervals hold? Coverage over many runs and forecasts, by how far ahead they looked.

The checkpoints of one run err together, so that shares are known only as well as runs are many: the interval of a share
is a bootstrap over whole runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from tsl_jax.forecasting.backtesting import Backtest
from tsl_jax.forecasting.baselines import mean_loss
from tsl_jax.forecasting.result import Forecast
from tsl_jax.forecasting.scoring import winkler

HORIZONS = {"up to 2 x": 2.0, "2 to 4 x": 4.0, "beyond 4 x": np.inf}  # tokens over those at the cut-off
BOOTSTRAPS = 4000


def coverage(surfaces: Sequence[xr.Dataset], backtests: Sequence[Backtest]) -> pd.DataFrame:
    """How often the later checkpoints of several runs lay inside their intervals.

    Args:
        surfaces: the runs, whole. backtests: of each, by `backtest`.

    Returns:
        DataFrame indexed by (method, horizon), with "all" after the HORIZONS: runs, checkpoints, covered_50,
        covered_90, low and high (the 95 % interval of covered_90, clustered by run; NaN for one run), interval_score
        (mean `winkler` at 90 %, nats). Methods without intervals are left out.
    """
    pairs = enumerate(zip(surfaces, backtests, strict=True))
    told = [row for k, (one, tested) in pairs for made in tested.forecasts.values() for row in _judged(k, one, made)]
    rows: Any = pd.DataFrame(told, columns=["run", "method", "horizon", "in_50", "in_90", "score"])
    rows = pd.concat([rows, rows.assign(horizon="all")])
    order = {name: place for place, name in enumerate((*HORIZONS, "all"))}
    found = [_line(group) for _, group in rows.groupby(["method", "horizon"], sort=False)]
    table: Any = pd.DataFrame(found, columns=["method", "horizon", *COLUMNS])
    first = {name: place for place, name in enumerate(dict.fromkeys(rows.method))}
    table = table.sort_values(by=["method", "horizon"], key=lambda names: names.map({**first, **order}))
    return table.set_index(["method", "horizon"])


COLUMNS = ("runs", "checkpoints", "covered_50", "covered_90", "low", "high", "interval_score")


def _judged(run: int, surface: xr.Dataset, made: Forecast) -> list[tuple[Any, ...]]:
    """A row for each later checkpoint that has an interval and a loss."""
    if made.quantiles is None:
        return []
    known = made.quantiles.dropna("tokens", how="all").sortby("tokens")
    observed = mean_loss(surface).sel(tokens=known.tokens)
    rows = []
    for split in known.split.values:
        lowest, low, _, high, highest = known.sel(split=split).transpose("quantile", "tokens").values
        truth, ahead = observed.sel(split=split).values, known.tokens.values / made.cutoff
        horizon = np.array(list(HORIZONS))[np.searchsorted(list(HORIZONS.values()), ahead)]
        inside = (low <= truth) & (truth <= high), (lowest <= truth) & (truth <= highest)
        score = winkler(lowest, highest, truth)
        kept = np.isfinite(score) & (ahead > 1)
        columns = (one[kept] for one in (horizon, *inside, score))
        rows += [(run, made.method, *row) for row in zip(*columns, strict=True)]
    return rows


def _line(group: Any) -> tuple[Any, ...]:
    share, low, high = clustered_mean(group.in_90, group.run)
    counts = group.run.nunique(), len(group)
    name = group.method.iloc[0], group.horizon.iloc[0]
    return *name, *counts, float(group.in_50.mean()), share, low, high, float(group.score.mean())


def clustered_mean(values: Any, clusters: Any) -> tuple[float, float, float]:
    """Mean of the known values (a Series), and its 95 % interval when whole clusters are drawn anew with replacement.

    The interval is NaN with fewer than two clusters, for then nothing is known of their differences.
    """
    known = values.notna()
    by = values[known].astype(float).groupby(clusters[known])
    sums, counts = by.sum().to_numpy(), by.count().to_numpy()
    if not len(sums):
        return np.nan, np.nan, np.nan
    mean = float(sums.sum() / counts.sum())
    if len(sums) < 2:
        return mean, np.nan, np.nan
    chosen = np.random.default_rng(0).integers(len(sums), size=(BOOTSTRAPS, len(sums)))
    low, high = np.quantile(sums[chosen].sum(1) / counts[chosen].sum(1), (0.025, 0.975))
    return mean, float(low), float(high)
