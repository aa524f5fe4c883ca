"""A running job: where it will end as known now, whether it should stop, and whether it left its course.

The chance that the end is at most L, given what was seen, is a martingale under the forecast's own model: by Ville's
inequality a run whose end is at most L is stopped at all, at any number of looks, with a probability of `alpha` at
most if it is stopped when that chance first falls below `alpha`. Looking at every checkpoint does not inflate that
error. It is as true as the model, and forecasts of small runs are surer than they should be: with their own draws 29
% of 21 development runs were stopped falsely at alpha = .05. So the chance is that of a normal distribution WIDER
times as wide as the lower half of the 90 % interval says, at which one of them was (5 %) and none of 19 other runs;
see `experiments/forecast_evidence/stop_rule.py`, which counts false stops on whole runs.

A run leaves its course where new losses lie outside the interval that was forecast for them. Each of n new checkpoints
lies above the upper end of a 1 - q interval with the chance q/2, but neighbours err together: RUN_LENGTH of them in a
row, all on one side, are one event. Their shape names it:

    non_finite   a loss is NaN or infinite
    spike        one checkpoint above by SPIKE scatters and the upper end; the forecast stands
    divergence   above and rising
    shift        above or below, parallel: other data, another rate, a restart
    plateau      above, and no longer falling
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from tsl_jax.forecasting.baselines import mean_loss
from tsl_jax.forecasting.forecast_run import forecast
from tsl_jax.forecasting.methods import MAIN
from tsl_jax.forecasting.result import Forecast

ALPHA = 0.05
WIDER = 3.0  # times the sd that the interval has, for the chance of a stop; chosen on development runs
RUN_LENGTH = 3  # new checkpoints beyond an interval, in a row, that are an event
SPIKE = 8.0  # robust standard deviations of the rows' scatter
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


@dataclass(frozen=True)
class Event:
    """Where a run left its course: the kind, tokens at which it began, and a sentence."""

    kind: str
    tokens: float
    sentence: str


def outlook(
    past: xr.Dataset,
    split: str = "",
    end: float | None = None,
    below: float | None = None,
    schedule: Any = None,
    reference_runs: Sequence[xr.Dataset] = (),
) -> Outlook:
    """The end of a run as known now.

    Args:
        past: its surface so far. split: default the first. end: tokens; default the end of the plan. below: a loss.
    """
    split = split or str(past.split.values[0])
    made = forecast(past, end, schedule, MAIN, reference_runs, by_position=False)
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
    note = made.notes[0] if made.notes else ""
    return Outlook(float(past.tokens[-1]), last, at, expected, low, high, chance, str(made.status[split]), note)


def cautious_chance(median: float, low: float, below: float, wider: float = WIDER) -> float:
    """The chance that the end is at most `below`, by a normal distribution `wider` times as wide as the interval.

    Args:
        median, low: of the forecast, `low` the lower end of its 90 % interval.
    """
    from scipy.stats import norm  # late: a second to import

    sd = wider * max(median - low, 1e-12) / norm.ppf(0.95)
    return float(norm.cdf((below - median) / sd))


def events(seen: xr.Dataset, made: Forecast, split: str = "", run_length: int = RUN_LENGTH) -> list[Event]:
    """Where the checkpoints beyond a forecast's cut-off left its 90 % interval.

    Args:
        seen: the run so far, with checkpoints that `made` did not see. made: an earlier forecast, at several tokens.
    """
    split = split or str(seen.split.values[0])
    curve = mean_loss(seen).sel(split=split)
    tokens, loss = curve.tokens.values.astype(float), curve.values
    new = tokens > made.cutoff
    found = [
        Event("non_finite", float(at), f"non_finite: the loss of {split} is {value} at {at:,.0f} tokens")
        for at, value in zip(tokens[new], loss[new], strict=True)
        if not np.isfinite(value)
    ][:1]
    if made.quantiles is None:
        return found
    bands = made.quantiles.sel(split=split).sortby("tokens")
    at = bands.tokens.values.astype(float)
    inside = new & np.isfinite(loss) & (tokens >= at[0]) & (tokens <= at[-1])
    if not inside.any():
        return found
    x, y = tokens[inside], loss[inside]
    low, middle, high = (np.interp(x, at, bands.sel(quantile=q).values) for q in (0.05, 0.5, 0.95))
    before = loss[~new & np.isfinite(loss)]
    scatter = 1.4826 * float(np.median(np.abs(np.diff(before[-50:])))) / np.sqrt(2) if len(before) > 3 else np.inf
    spikes = np.flatnonzero(y - middle > np.maximum(SPIKE * scatter, high - middle))
    side = np.where(y > high, 1, np.where(y < low, -1, 0))
    begin = next((k for k in range(len(y) - run_length + 1) if abs(side[k : k + run_length].sum()) == run_length), None)
    for k in spikes[:1]:
        if begin is None or k < begin:
            above = y[k] - middle[k]
            sentence = f"spike: the loss of {split} is {above:.3f} nats above what was expected at {x[k]:,.0f} tokens"
            found.append(Event("spike", float(x[k]), sentence))
    if begin is not None:
        found.append(_event(split, x[begin:], y[begin:], middle[begin:], int(side[begin]), scatter))
    return found


def _event(split: str, x: np.ndarray, y: np.ndarray, middle: np.ndarray, side: int, scatter: float) -> Event:
    """What a stretch beyond the interval is, by its slope in log tokens beside the expected one."""
    apart = float(np.mean(y - middle))
    slopes = [float(np.polyfit(np.log(x), values, 1)[0]) if len(x) > 1 else 0.0 for values in (y, middle)]
    error = scatter / max(float(np.std(np.log(x))) * np.sqrt(len(x)), 1e-12) if np.isfinite(scatter) else 0.0
    kind = "shift"
    if side > 0 and slopes[0] > 2 * error and slopes[0] > 0:
        kind = "divergence"
    elif side > 0 and slopes[0] - slopes[1] > 2 * error and slopes[0] > 0.2 * slopes[1]:
        kind = "plateau"
    word = "above" if side > 0 else "below"
    sentence = f"the loss of {split} lies {abs(apart):.3f} nats {word} what was expected since {x[0]:,.0f} tokens"
    return Event(kind, float(x[0]), f"{kind}: {sentence}")
