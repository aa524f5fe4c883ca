"""What runs say, as the regression reads it: the log loss at the end of each, known or forecast, with its errors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from tsl_jax.selection.candidate_runs import ENDED, Runs
from tsl_jax.selection.candidate_runs import FEWEST as CURVE
from tsl_jax.selection.mixture_columns import worth
from tsl_jax.selection.mixture_regression import MixturePoints
from tsl_jax.selection.race import RaceForecast, fall_of_plan, race

ALIKE = 0.1  # in logs: sizes, and lengths, that count as one


@dataclass(frozen=True)
class Evidence:
    """Runs whose end is known or forecast.

    Attributes:
        points: mixture and size of each. y: log loss at the end; errors: covariance of what is wrong with it.
        run: (row,) their place in the table of runs. ended, at_target: masks. eliminated: running ones that may be
            stopped, by the race.
    """

    points: MixturePoints
    y: np.ndarray
    errors: np.ndarray
    run: np.ndarray
    ended: np.ndarray
    at_target: np.ndarray
    eliminated: np.ndarray


def find_target(
    runs: Runs, untried: Runs | None, n_params: float | None, tokens: float | None
) -> tuple[Runs, dict[str, float], np.ndarray]:
    """The runs with their plans; n_params and tokens of the target, NaN where not known; which runs are of that size.

    By default the size of the untried candidates where they say it, else the largest; the length of the runs of that
    size, of the longest where there are none.

    Raises:
        ValueError: for a target of a size where runs do not say theirs.
    """
    for name, value in (("n_params", n_params), ("tokens", tokens)):
        column = runs.table["n_params" if name == "n_params" else "planned"]
        if value is not None and not 0 < value < np.inf:
            raise ValueError(f"select: the target's {name} must be a positive number, found {value:g}")
        if value is not None and name == "n_params" and column.isna().to_numpy().all():
            raise ValueError(
                "select: --params needs runs that say their size: a column n_params, or --columns n_params=COL"
            )
    sizes = [part.table for part in (untried, runs) if part is not None]
    if n_params is None:
        known = [table.n_params.max() for table in sizes if table.n_params.notna().any()]
        n_params = float(known[0]) if known else float("nan")
    at_target = np.ones(len(runs.table), bool)
    if np.isfinite(n_params):
        at_target = (np.abs(np.log(runs.table.n_params.to_numpy(float) / n_params)) < ALIKE).astype(bool)
    if tokens is None:
        lengths = runs.table.planned[at_target] if at_target.any() else runs.table.planned
        own = untried.table.planned.max() if untried is not None else np.nan
        tokens = float(own if np.isfinite(own) else lengths.max())
    else:  # where the target's curves end is given, not guessed from the longest
        table = runs.table.copy()
        guessed = at_target & table.curve.to_numpy(bool) & ~table.has_plan.to_numpy(bool)
        table.loc[guessed, "planned"] = tokens
        table.loc[guessed, "ended"] = table.tokens[guessed] >= ENDED * tokens
        runs = replace(runs, table=table)
    return runs, {"n_params": n_params, "tokens": tokens}, at_target


def gather(
    runs: Runs,
    codes: Mapping[str, int],
    target: Mapping[str, float],
    at_target: np.ndarray,
    available: Mapping[str, float],
) -> tuple[Evidence, MixturePoints]:
    """The evidence of runs, and the point of each candidate of `codes` at the target (in the order of the codes).

    Args:
        available: domain -> tokens that there are, for all runs and for the target; what is not there does not end.

    Raises:
        ValueError: where no run has a loss that may be seen.
    """
    table = runs.table
    y, errors = np.log(table.loss.to_numpy(float)), np.zeros((len(table), len(table)))
    y = np.where(table.ended, y, np.nan)
    eliminated = np.zeros(len(table), bool)
    going = ~table.ended.to_numpy(bool) & np.array([len(tokens) > 0 for tokens, _ in runs.curves])
    size, planned = table.n_params.fillna(0.0).to_numpy(float), table.planned.to_numpy(float)
    for of_size, end in sorted({(n, t) for n, t in zip(size, planned, strict=True) if np.isfinite(t)}):
        index = np.flatnonzero((size == of_size) & (planned == end))
        index = index[[len(runs.curves[k][0]) >= CURVE or going[k] for k in index]]
        if not going[index].any():
            continue
        forecast = _raced([runs.curves[k] for k in index], table.schedule[index].tolist(), float(end))
        running = going[index]
        mean, covariance = np.asarray(forecast.mean), np.asarray(forecast.covariance)
        y[index[running]] = np.log(mean[running])
        block = covariance / np.outer(mean, mean) * np.outer(running, running)
        errors[np.ix_(index, index)] = block
        eliminated[index] = np.asarray(forecast.eliminated) & running
    known = np.flatnonzero(np.isfinite(y))
    if not len(known):
        raise ValueError("select: no run has a loss that may be seen; give a later --cutoff, or smaller runs")
    params = _logs([*table.n_params, target["n_params"]])
    lengths = _logs([*table.planned, target["tokens"]])
    candidate = np.array([codes[name] for name in table.candidate])
    of_runs, read = _shares_and_worth(runs.shares, list(table.candidate), planned, available)
    points = MixturePoints(of_runs, candidate, params[:-1], lengths[:-1], read)
    everyone = np.array(list(codes.values()))
    size, length = (np.full(len(codes), values[-1]) for values in (params, lengths))
    tokens = np.full(len(codes), target["tokens"])
    of_wanted, read = _shares_and_worth(runs.shares, list(codes), tokens, available)
    wanted = MixturePoints(of_wanted, everyone, size, length, read)
    evidence = Evidence(
        points.take(known),
        y[known],
        errors[np.ix_(known, known)],
        known,
        table.ended.to_numpy(bool)[known],
        at_target[known],
        eliminated[known],
    )
    return evidence, wanted


def _shares_and_worth(
    shares: pd.DataFrame | None, names: Sequence[str], tokens: np.ndarray, available: Mapping[str, float]
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(row, domain) shares of some candidates, None without mixtures; what a token is worth in a run of so many."""
    if shares is None:
        return None, None
    own = shares.loc[list(names)].to_numpy(float)
    if not available:
        return own, None
    there = np.array([available.get(str(domain), np.inf) for domain in shares])
    return own, worth(own * np.nan_to_num(tokens)[:, None] / there)


def _raced(curves: Sequence[tuple[np.ndarray, np.ndarray]], schedules: Sequence[Any], end: float) -> RaceForecast:
    """The end of each curve; those of one plan of the learning rate (JSON, or not known) fall alike."""
    tokens, losses = [t for t, _ in curves], [y for _, y in curves]
    kinds = list(dict.fromkeys(s if isinstance(s, str) else "" for s in schedules))
    plan = [kinds.index(s if isinstance(s, str) else "") for s in schedules]
    fall, sd = np.zeros(len(curves)), np.zeros(len(curves))
    for number, schedule in enumerate(kinds):
        alike = [k for k, other in enumerate(plan) if other == number]
        known = json.loads(schedule) if schedule else None
        fall[alike], sd[alike] = fall_of_plan([tokens[k] for k in alike], [losses[k] for k in alike], end, known)
    return race(tokens, losses, end, fall, sd, plan)


def _logs(values: Sequence[float]) -> np.ndarray:
    """Logarithms, those that are ALIKE the same; 0 for all where one is not known."""
    numbers = np.asarray(values, float)
    if not np.isfinite(numbers).all() or (numbers <= 0).any():
        return np.zeros(len(numbers))
    logs = np.log(numbers)
    order = np.argsort(logs)
    group = np.cumsum(np.r_[False, np.diff(logs[order]) > ALIKE])
    means = pd.Series(logs[order]).groupby(group).transform("mean").to_numpy()
    result = np.empty(len(logs))
    result[order] = means
    return result
