"""A running job: where it will end as known now, whether it should stop, and whether it left its course.

The chance that the end is at most L, given what was seen, is a martingale under the forecast's own model: by Ville's
inequality a run whose end is at most L is stopped at all, at any number of looks, with a probability of `alpha` at
most if it is stopped when that chance first falls below `alpha`. Looking at every checkpoint does not inflate that
error. It is as true as the model, and forecasts of small runs are surer than they should be: with their own draws 29
% of 21 development runs were stopped falsely at alpha = .05. So the chance is that of a normal distribution WIDER
times as wide as the lower half of the 90 % interval says, at which one of them was (5 %) and none of 19 other runs;
see `experiments/forecast_evidence/stop_rule.py`, which counts false stops on whole runs.

Where a run left its course (`course.py`) the forecast begins again: it learns from the checkpoints since, once there
are FEWEST, and its interval is as wide as so few leave it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from tsl_jax.forecasting.baselines import mean_loss
from tsl_jax.forecasting.forecast_run import forecast, unit_notes
from tsl_jax.forecasting.methods import MAIN

ALPHA = 0.05
WIDER = 3.0  # times the sd that the interval has, for the chance of a stop; chosen on development runs
RUN_LENGTH = 3  # checkpoints beyond an interval, in a row, that are off a registered forecast
FEWEST = 6  # checkpoints from which anything is said


@dataclass(frozen=True)
class Outlook:
    """Where a run will end, as known at `tokens`.

    Attributes:
        tokens, loss: of the last checkpoint. end: tokens forecast at. expected, low, high: the end, 90 %.
        chance_below: that the end is at most the loss asked for, see the module; NaN where none was.
        status, note: in words.
    """

    tokens: float
    loss: float
    end: float
    expected: float
    low: float
    high: float
    chance_below: float
    status: str
    note: str


def outlook(
    past: xr.Dataset,
    split: str = "",
    end: float | None = None,
    below: float | None = None,
    schedule: Any = None,
    reference_runs: Sequence[xr.Dataset] = (),
    since: float = 0.0,
) -> Outlook:
    """The end of a run as known now.

    Args:
        past: its surface so far. split: default the first; no other is fitted. end: tokens; default the end of the
            plan. below: a loss. since: tokens at which the run left its course: checkpoints before are not learned
            from, unless there are fewer than FEWEST since.
    """
    split = split or str(past.split.values[0])
    past = past.sel(split=[split])
    made = forecast(course_since(past, since), end, schedule, MAIN, reference_runs, by_position=False)
    at = float(made.mean.tokens.max())
    seen = mean_loss(past).sel(split=split).dropna("tokens")
    low = high = chance = np.nan
    if made.quantiles is not None:
        ends = made.quantiles.sel(split=split, tokens=at)
        low, high = (float(ends.sel(quantile=q)) for q in (0.05, 0.95))
    if below is not None and np.isfinite(low):
        chance = cautious_chance(float(made.mean.sel(split=split, tokens=at)), low, below)
    expected = float(made.mean.sel(split=split, tokens=at))
    last = float(seen[-1]) if seen.size else np.nan
    note = "; ".join([*made.notes[:1], *unit_notes(past)])
    count = int((past.tokens >= since).sum())
    if since and count < FEWEST:
        note = f"the run left its course {count} checkpoints ago, {FEWEST} are needed to forecast from; {note}"
    return Outlook(float(past.tokens[-1]), last, at, expected, low, high, chance, str(made.status[split]), note)


def course_since(past: xr.Dataset, since: float) -> xr.Dataset:
    """The checkpoints since `since` tokens, all where there are fewer than FEWEST."""
    later = past.sel(tokens=past.tokens >= since)
    return later if later.sizes["tokens"] >= FEWEST else past


def cautious_chance(median: float, low: float, below: float, wider: float = WIDER) -> float:
    """The chance that the end is at most `below`, by a normal distribution `wider` times as wide as the interval.

    Args:
        median, low: of the forecast, `low` the lower end of its 90 % interval.
    """
    from scipy.stats import norm  # late: a second to import

    sd = wider * max(median - low, 1e-12) / norm.ppf(0.95)
    return float(norm.cdf((below - median) / sd))
