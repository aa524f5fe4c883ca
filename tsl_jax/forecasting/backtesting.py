"""Every method from several cut-offs of finished runs: what would have been forecast, and did the intervals hold?

`backtest` forecasts one run from several cut-offs and scores the forecasts. `coverage` counts over many runs, by how
far ahead the forecasts looked. The checkpoints of one run err together, so that shares are known only as well as runs
are many: the interval of a share is a bootstrap over whole runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from tsl_jax.forecasting.baselines import Baseline, mean_loss
from tsl_jax.forecasting.forecast_run import forecast, read_schedule
from tsl_jax.forecasting.methods import METHODS
from tsl_jax.forecasting.result import Forecast
from tsl_jax.forecasting.scoring import score, winkler

CUTOFFS = (0.1, 0.2, 0.3, 0.4)
HORIZONS = {"up to 2 x": 2.0, "2 to 4 x": 4.0, "beyond 4 x": np.inf}  # tokens over those at the cut-off
MOST_AHEAD = 128  # unseen checkpoints at which forecasts are made
BOOTSTRAPS = 4000


@dataclass(frozen=True)
class Backtest:
    """The result.

    Attributes:
        scores: DataFrame indexed by (split, cutoff, method); columns as in `score`.
        forecasts: (cutoff, method) -> Forecast over the checkpoints beyond that cut-off; of more than MOST_AHEAD at so
            many, evenly picked, the last among them. `score` interpolates between them.
    """

    scores: pd.DataFrame
    forecasts: dict[tuple[float, str], Forecast]

    def __repr__(self) -> str:
        return self.scores.error.unstack("method").to_string(float_format="{:+.3f}".format)


def backtest(
    surface: xr.Dataset,
    cutoffs: Sequence[float] = CUTOFFS,
    schedule: Any = None,
    methods: Sequence[Any] = tuple(METHODS),
    progress: Callable[[str, int, int], None] | None = None,
    by_position: bool = True,
) -> Backtest:
    """Forecast from each fraction of the planned tokens and score against what came.

    Args:
        surface: a whole run. cutoffs: fractions of the planned tokens (of the last checkpoint where no plan is known).
        schedule, by_position: as for `forecast`. methods: names and baselines. progress: called with (stage, done,
            total).

    Raises:
        ValueError: if a cut-off leaves no checkpoint before it, or fewer than two after it; without a method, or for
            two of one name, of which one would replace the other.
    """
    names = [method if isinstance(method, str) else method.name for method in methods]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or twice:
        names_found = f"{', '.join(twice)} twice" if twice else "none"
        raise ValueError(f"backtest: expected methods with distinct names, found {names_found}; test them in turn")
    plan = read_schedule(surface, schedule)
    # Compiling a law takes far longer than fitting it, and compilers run in parallel. Laws of the mean come first:
    # the routes by position share them, and would compile them twice.
    of_mean = [name for name, info in METHODS.items() if info.is_baseline]
    mean_first = sorted(methods, key=lambda method: not (isinstance(method, Baseline) or method in of_mean))
    tables, forecasts = [], {}
    seen = pasts(surface, cutoffs, schedule)
    for k, (cutoff, past) in enumerate(seen.items()):
        ahead = surface.tokens.values[past.sizes["tokens"] :]  # the unseen checkpoints
        at = ahead[np.linspace(0, len(ahead) - 1, min(len(ahead), MOST_AHEAD)).round().astype(int)]
        plan_then = None if plan is None else plan.known_at(float(past.tokens[-1]))  # without later changes
        with ThreadPoolExecutor(max_workers=_cores()) as pool:
            tasks = [pool.submit(forecast, past, at, plan_then, method, (), by_position) for method in mean_first]
        of_method = {made.method: made for made in (task.result() for task in tasks)}
        forecasts |= {(cutoff, name): of_method[name] for name in names}
        table = score(of_method[names[0]], surface, [of_method[name] for name in names[1:]])
        tables.append(table.reset_index().assign(cutoff=cutoff))
        if progress is not None:
            progress("forecast", k + 1, len(seen))
    scores = pd.concat(tables).set_index(["split", "cutoff", "method"])
    return Backtest(scores.replace([np.inf, -np.inf], np.nan), forecasts)


def _cores() -> int:
    """Cores that this process may use, which a container or `taskset` can make fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pasts(surface: xr.Dataset, cutoffs: Sequence[float] = CUTOFFS, schedule: Any = None) -> dict[float, xr.Dataset]:
    """What is seen from each cut-off; arguments and errors as of `backtest`, before any work."""
    plan = read_schedule(surface, schedule)
    total = plan.total_tokens if plan is not None else float(surface.tokens[-1])
    seen = {cutoff: surface.sel(tokens=surface.tokens <= cutoff * total) for cutoff in cutoffs}
    for cutoff, past in seen.items():
        where = f"{100 * cutoff:g}% ({cutoff * total:.4g} tokens)"
        later = surface.sizes["tokens"] - past.sizes["tokens"]
        if past.sizes["tokens"] == 0:
            raise ValueError(f"backtest: no checkpoint within the first {where}")
        if later < 2:
            raise ValueError(
                f"backtest: {later} checkpoints beyond the first {where}, 2 are needed; name earlier cut-offs"
            )
    return seen


# ------------------------------------------------------------------------------------------------------------ coverage


def coverage(surfaces: Sequence[xr.Dataset], backtests: Sequence[Backtest]) -> pd.DataFrame:
    """How often the later checkpoints of several runs lay inside their intervals.

    Args:
        surfaces: the runs, whole. backtests: of each, by `backtest`.

    Returns:
        DataFrame indexed by (method, horizon), with "all" after the HORIZONS: runs, checkpoints, covered_50,
        covered_90, low and high (the 95 % interval of covered_90, clustered by run; NaN for one run), interval_score
        (mean `winkler` at 90 %, nats). Methods without intervals are left out.
    """
    checkpoints = []
    for k, (surface, tested) in enumerate(zip(surfaces, backtests, strict=True)):
        for made in tested.forecasts.values():
            checkpoints += _checkpoints(k, surface, made)
    rows: Any = pd.DataFrame(checkpoints, columns=["run", "method", "horizon", "in_50", "in_90", "score"])
    rows = pd.concat([rows, rows.assign(horizon="all")])
    lines = []
    for (method, horizon), group in rows.groupby(["method", "horizon"], sort=False):
        share, low, high = clustered_mean(group.in_90, group.run)
        counts = group.run.nunique(), len(group), float(group.in_50.mean())
        lines.append((method, horizon, *counts, share, low, high, float(group.score.mean())))
    columns = ("runs", "checkpoints", "covered_50", "covered_90", "low", "high", "interval_score")
    table: Any = pd.DataFrame(lines, columns=["method", "horizon", *columns])
    # methods as they came, horizons from near to far
    order = {name: place for place, name in enumerate((*dict.fromkeys(rows.method), *HORIZONS, "all"))}
    table = table.sort_values(by=["method", "horizon"], key=lambda names: names.map(order))
    return table.set_index(["method", "horizon"])


def _checkpoints(run: int, surface: xr.Dataset, made: Forecast) -> list[tuple[Any, ...]]:
    """A row for each later checkpoint that has an interval and a loss."""
    if made.quantiles is None:
        return []
    intervals = made.quantiles.dropna("tokens", how="all").sortby("tokens")
    observed = mean_loss(surface).sel(tokens=intervals.tokens)
    rows = []
    for split in intervals.split.values:
        lowest, low, _, high, highest = intervals.sel(split=split).transpose("quantile", "tokens").values
        truth, ahead = observed.sel(split=split).values, intervals.tokens.values / made.cutoff
        horizon = np.array(list(HORIZONS))[np.searchsorted(list(HORIZONS.values()), ahead)]
        inside = (low <= truth) & (truth <= high), (lowest <= truth) & (truth <= highest)
        score = winkler(lowest, highest, truth)
        kept = np.isfinite(score) & (ahead > 1)  # beyond the cut-off
        columns = (column[kept] for column in (horizon, *inside, score))
        rows += [(run, made.method, *row) for row in zip(*columns, strict=True)]
    return rows


def clustered_mean(values: Any, clusters: Any) -> tuple[float, float, float]:
    """Mean of the known values (a Series), and its 95 % interval when whole clusters are drawn anew with replacement.

    The interval is NaN with fewer than two clusters, for then nothing is known of their differences.
    """
    known = values.notna()
    by = values[known].astype(float).groupby(clusters[known])
    sums, counts = by.sum().to_numpy(), by.count().to_numpy()
    if not len(sums):
        return np.nan, np.nan, np.nan
    mean = float(sums.sum() / counts.sum())  # a ratio of sums: long runs count for more
    if len(sums) < 2:
        return mean, np.nan, np.nan
    chosen = np.random.default_rng(0).integers(len(sums), size=(BOOTSTRAPS, len(sums)))  # whole runs
    low, high = np.quantile(sums[chosen].sum(1) / counts[chosen].sum(1), (0.025, 0.975))
    return mean, float(low), float(high)
