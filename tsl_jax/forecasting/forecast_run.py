"""From the beginning of a run to the rest of it: the predicted loss surface and mean loss, at tokens not yet seen.

`forecast` is the entry point; `methods.py` lists the methods. Laws that know the learning rate, with reference runs
(`lr_aware.py`), give draws. The paper's temporal laws of a0, a1, a2 (`position_route.py`) and laws of the mean alone
(`baselines.py`) give points, whose intervals come from earlier origins within the past (`rolling_origin.py`). A
forecast sees only `past`, its reference runs, and the learning-rate plan as known at the cut-off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from tsl_jax.forecasting import lr_aware, position_route, rolling_origin
from tsl_jax.forecasting.assumed_rate import AssumedRate, assumed_rate
from tsl_jax.forecasting.baselines import Baseline, mean_loss
from tsl_jax.forecasting.lr_aware import ForecastMethod
from tsl_jax.forecasting.lr_history import schedule_of
from tsl_jax.forecasting.methods import MAIN, METHODS
from tsl_jax.forecasting.position_route import Paper
from tsl_jax.forecasting.result import QUANTILES, Forecast, ForecastFlag, ForecastStatus, Reason, mixture
from tsl_jax.forecasting.rolling_origin import Copies, Points
from tsl_jax.laws import Schedule
from tsl_jax.surface import validate_surface

MOST_LEARNED = 1024  # checkpoints of the past
# What speaks against a forecast whatever its method: a loss that rises, an interval that says nothing.
BLOCKS = 12  # of the rows, in tokens, whose medians are compared
FEWEST = 8  # rows, for which anything can be said
RISE = 0.01  # nats that a loss must rise by, beside its scatter
SIGMAS = 4.0  # standard errors of the difference of two medians
WIDEST = 1.0  # nats: a 90 % interval wider than this, and than
SHARE = 1.0  # this share of the loss, says nothing


def forecast(
    past: xr.Dataset,
    at: Any = None,
    schedule: Any = None,
    method: str | Baseline | ForecastMethod | Paper = MAIN,
    reference_runs: Sequence[xr.Dataset] = (),
    by_position: bool = True,
) -> Forecast:
    """Forecast the loss at tokens `at` from the surface of the past.

    Args:
        past: a surface cut at the present, such as `surface.sel(tokens=slice(None, 20e9))`.
        at: tokens seen at which to forecast, in any order; default the end of the plan. Of tokens that `past` has seen
            the result is what the fitted laws say there, no forecast. Of tokens named twice the first counts: a
            token count is a label of the result.
        schedule: the learning-rate plan as known at the cut-off (`Schedule`, mapping, or list of mappings); default the
            plan that the surface carries; without one what `assumed_rate` recognises in the recorded rates, else the
            last rate goes on, and methods that need a plan do not apply. `Forecast.notes` says which it was. Laws that
            know the learning rate read it beyond the last checkpoint only: they read the past from the surface, if it
            carries a plan.
        method: one of METHODS, one of `tsl.baselines`, or `Paper(n_sep=...)`. The default is of the mean loss alone.
        reference_runs: surfaces of other runs to learn from, of other sizes (attribute n_params), seeds or schedules;
            only the family "lr_aware" uses them. They are used whole: give none that was not known at the cut-off.
        by_position: whether methods by position give the loss of every position, with its quantiles; without, `surface`
            is None and the mean costs no memory that grows with positions times tokens.

    Raises:
        ValueError: for an unknown method, a surface without checkpoints, tokens that are not positive, or none where
            no plan is known, or a loss by position that memory cannot hold. Too few usable checkpoints do not raise:
            the forecast of that split is NaN and its status says why.
    """
    past = validate_surface(past)
    plan = read_schedule(past, schedule)
    if past.sizes["tokens"] == 0:
        raise ValueError("forecast: past holds no checkpoint; check the cut-off against surface.tokens")
    at = _tokens(at, assumed_rate(past, plan, 0.0).end)
    rate = assumed_rate(past, plan, float(at.max()))
    if by_position:
        _check_memory(past, at, method)
    if isinstance(method, str):
        if method not in METHODS:
            names = ", ".join(METHODS)
            raise ValueError(f"forecast: method must be one of {names}, or a value of tsl.baselines, found {method!r}")
        method = METHODS[method].implementation
    if isinstance(method, ForecastMethod):
        others = [validate_surface(run) for run in reference_runs]
        if len(rate.plans) > 1:  # which fit the past alike: it is read by one of them, and fitted once
            past = past.assign_attrs(schedule=next(plan for plan in rate.plans if plan is not None))
        made = [lr_aware.forecast_splits(method, past, at, plan, others, by_position) for plan in rate.plans]
        return _judged(made[0] if len(made) == 1 else mixture(made, past), past, rate)
    plan = rate.plans[0]
    usable = after_warmup(past, plan)
    learned = picked(usable)
    mean = mean_loss(learned)

    def points(copies: Copies, tokens: np.ndarray) -> Points:
        if not isinstance(method, Baseline):
            return position_route.by_position(learned, copies, tokens, plan, method)
        return Points(*method.predict(copies.of(mean), tokens, plan))

    name = method if isinstance(method, str) else method.name
    shares = rolling_origin.FEW_SHARES if method == "temporal_joint" else rolling_origin.SHARES
    made = rolling_origin.with_intervals(points, name, past, learned, at, shares, by_position)
    made = _judged(made, past, rate)
    if learned.sizes["tokens"] == usable.sizes["tokens"]:
        return made
    detail = f"learned from {MOST_LEARNED:,} of {usable.sizes['tokens']:,} checkpoints, evenly picked"
    thinned = ForecastStatus(ForecastFlag.PAST_THINNED, (detail,))
    return replace(made, status={split: status | thinned for split, status in made.status.items()})


def _judged(made: Forecast, past: xr.Dataset, rate: AssumedRate) -> Forecast:
    """The forecast with what it assumes, and with what speaks against it: its rate, a past that rises, its width."""
    status = dict(made.status)
    for split in status:
        if not made.usable[split]:
            continue
        reasons = [*rate.reasons, *rising(past, split), *too_wide(made, split)]
        status[split] = status[split] | ForecastStatus.of(reasons)
    return replace(made, status=status, notes=(rate.sentence, *unit_notes(past), *made.notes))


def _check_memory(past: xr.Dataset, at: np.ndarray, method: Any) -> None:
    """Refuse a surface by position, with its quantiles, that is larger than the memory that is free."""
    info = METHODS.get(method) if isinstance(method, str) else None
    by_position = info.by_position if info is not None else getattr(method, "by_position", isinstance(method, Paper))
    size = 8 * past.sizes["split"] * len(at) * past.sizes["position"] * (2 + len(QUANTILES))
    free = _free_memory()
    if by_position and free is not None and size > free:
        raise ValueError(
            f"forecast: the loss at {past.sizes['position']:,} positions and {len(at):,} token counts takes "
            f"{size / 1e9:.1f} GB with its quantiles, {free / 1e9:.1f} GB are free; name fewer tokens in at=, or take "
            "the mean alone with by_position=False"
        )


def _free_memory() -> float | None:
    """Bytes of memory that can be had without swapping; None where the system does not say (Linux does)."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return 1024.0 * float(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return None


def _tokens(at: Any, end: int | None) -> np.ndarray:
    """The tokens asked for (token,), each once, in the order of the question; default the end of the plan."""
    if at is None and end is None:
        raise ValueError(
            "forecast: the surface carries no plan whose end could be meant; name tokens, as in at=20e9 "
            "(tsl watch --end 20e9)"
        )
    try:
        tokens = np.atleast_1d(np.asarray(end if at is None else at, float))
    except (TypeError, ValueError):
        tokens = np.empty(0)
    if tokens.ndim != 1 or tokens.size == 0 or not np.all((tokens > 0) & np.isfinite(tokens)):
        raise ValueError(f"forecast: at= must be tokens seen, positive, found {at!r}")
    return tokens[np.sort(np.unique(tokens, return_index=True)[1])]


def read_schedule(past: xr.Dataset, schedule: Any = None) -> Schedule | None:
    """The plan given, else the one that the surface carries, as known at its last checkpoint, else None."""
    if schedule is not None:
        return schedule if isinstance(schedule, Schedule) else Schedule.from_plan(schedule)
    plan = schedule_of(past)
    return plan and plan.known_at(float(past.tokens.values.max(initial=0)))


def after_warmup(past: xr.Dataset, plan: Schedule | None) -> xr.Dataset:
    """The checkpoints that every law and baseline learns from: past the warm-up, as far as it is known."""
    return past.sel(tokens=past.tokens > 0 if plan is None else past.tokens >= max(plan.warmup_tokens, 1))


def picked(learned: xr.Dataset) -> xr.Dataset:
    """The checkpoints that laws without learning rate are fitted to: of more than MOST_LEARNED so many, evenly picked.

    First and last are among them. Laws that know the learning rate pick their own, see `extrapolation.POINTS`.
    """
    count = learned.sizes["tokens"]
    if count <= MOST_LEARNED:
        return learned
    return learned.isel(tokens=np.linspace(0, count - 1, MOST_LEARNED).round().astype(int))


def rising(past: xr.Dataset, split: str) -> list[Reason]:
    """The flag LOSS_RISES where the median of the last rows is above the least of those before by SIGMAS errors.

    Every law here falls. A run that diverges, overfits, or reads other data since a while rises for longer than its
    scatter explains, and then the end is not what a law says; how it goes on is not known.
    """
    loss = mean_loss(past).sel(split=split)
    known = np.isfinite(loss.values)
    y, tokens = loss.values[known], loss.tokens.values[known].astype(float)
    if len(y) < FEWEST:
        return []
    blocks = [block for block in np.array_split(np.arange(len(y)), min(BLOCKS, len(y) // 2)) if len(block)]
    medians = np.array([np.median(y[block]) for block in blocks])
    least = int(np.argmin(medians))
    if least >= len(blocks) - 2:  # the last two blocks may be scatter
        return []
    # scatter of a row about its neighbours, robustly: differences have twice the variance
    scatter = 1.4826 * float(np.median(np.abs(np.diff(y)))) / np.sqrt(2)
    error = 1.25 * scatter * np.sqrt(1 / len(blocks[least]) + 1 / len(blocks[-1]))  # of medians
    rise, before = medians[-1] - medians[least], medians[-2] - medians[least]
    if rise <= RISE + SIGMAS * error or before <= RISE:  # the last block alone may be a spike
        return []
    since = float(tokens[blocks[least]].mean())
    return [
        (
            ForecastFlag.LOSS_RISES,
            f"the loss of {split} rises since {since:.3g} tokens, from {medians[least]:.3f} to {medians[-1]:.3f} nats "
            "(divergence, overfitting, other data?): laws that fall do not know where it ends",
        )
    ]


def too_wide(made: Forecast, split: str) -> list[Reason]:
    """The flag TOO_WIDE where the 90 % interval at the furthest tokens says nothing."""
    if made.quantiles is None:
        return []
    at = made.quantiles.sel(split=split).sortby("tokens").isel(tokens=-1)
    low, middle, high = (float(at.sel(quantile=q)) for q in (0.05, 0.5, 0.95))
    if not high - low > max(WIDEST, SHARE * abs(middle)):
        return []
    return [(ForecastFlag.TOO_WIDE, f"the 90 % interval, {low:.3g} to {high:.3g} nats, is too wide to be of use")]


def unit_notes(past: xr.Dataset) -> tuple[str, ...]:
    """Sentences on what is said to be tokens and nats and is not, of a run whose log was imported."""
    log: Any = past.attrs.get("log")
    units: Any = past.attrs.get("split_units")
    clock = str(log.get("clock", "tokens")) if isinstance(log, Mapping) else "tokens"
    notes = () if clock == "tokens" else (f"the log counts {clock}: what is called tokens are {clock}",)
    others = units.items() if isinstance(units, Mapping) else ()
    there = set(past.split.values.tolist())
    return (*notes, *(f"{split} is in {unit}, not nats per token" for split, unit in others if split in there))
