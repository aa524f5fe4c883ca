"""Tables and sentences in the terminal: a run's summary, its forecasts, backtests, and plans compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from tsl_jax.forecasting.methods import MAIN
from tsl_jax.forecasting.plan_comparison import Comparison
from tsl_jax.forecasting.result import Forecast
from tsl_jax.reporting import json_values
from tsl_jax.reporting.json_values import number
from tsl_jax.reporting.material import late_median, planned, unfinished
from tsl_jax.reporting.wording import count, how_far, last_loss, percents, readable, spelled_out

LEVELS = {"50 %": (0.25, 0.75), "90 %": (0.05, 0.95)}


def _table(title: str, *columns: str) -> Any:
    """A table whose columns are not broken. Names are no markup: a split may be called [a]."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left")
    for name in columns:
        table.add_column(Text(str(name)), no_wrap=True)
    return table


def _add_row(table: Any, *cells: str) -> None:
    from rich.text import Text

    table.add_row(*map(Text, map(str, cells)))


# ------------------------------------------------------------------------------------------------------------- summary


def show_summary(summary: Mapping[str, Any], surface: xr.Dataset) -> None:
    """Print the error of each forecast of the last loss, by split, method and cut-off, and the warnings about them.

    Args:
        summary: of `surface`, as in `json_values.summary`.
    """
    from rich.console import Console

    console, share = Console(), unfinished(surface)
    end = last_loss(share)
    for split, values in summary["splits"].items():
        middle = late_median(values["r2"])
        r2 = "unknown" if math.isnan(middle) else f"{middle:.3f}"
        last = "unknown" if values["final_loss"] is None else f"{values['final_loss']:.3f}"
        state = "" if share is None else f"{how_far(share)}; "
        title = f"{spelled_out(split)}: {state}{end} {last} nats, R2 over positions {r2} (median, later half)"
        if values["forecast"]:
            columns = _columns(surface, list(values["forecast"]))
            console.print(_error_table(values, columns, title, f"forecast of the {end}: error, nats"))
            title = "\n".join(_warnings({name: values["forecast"][cutoff] for name, cutoff in columns.items()}))
        if title:
            console.print(title, markup=False, highlight=False)


def _columns(surface: xr.Dataset, cutoffs: Sequence[str]) -> dict[str, str]:
    """Cut-offs as people read them -> one of them; those that see the same checkpoints share a column."""
    plan = planned(surface.attrs)
    total = float(surface.tokens[-1]) if plan is None else plan.total_tokens
    names = percents(map(float, cutoffs))
    same: dict[int, list[str]] = {}
    for cutoff in cutoffs:
        same.setdefault(int((surface.tokens <= float(cutoff) * total).sum()), []).append(cutoff)
    return {" = ".join(names[float(cutoff)] for cutoff in alike): alike[0] for alike in same.values()}


def _error_table(values: Mapping[str, Any], columns: Mapping[str, str], title: str, first_column: str) -> Any:
    """A row a method, a column a cut-off; a dagger where a warning is printed below."""
    from rich.table import Table
    from rich.text import Text

    table, observed = Table(title=Text(title), title_justify="left"), values["final_loss"]
    table.add_column(first_column)
    for name in columns:
        table.add_column(f"from {name}", justify="right")
    for method in next(iter(values["forecast"].values())):
        cells = []
        for cutoff in columns.values():
            entry = values["forecast"][cutoff][method]
            dagger = "†" if entry["flags"] else ""
            unknown = entry["final"] is None or observed is None
            cells.append("-" if unknown else f"{entry['final'] - observed:+.3f}{dagger}")
        _add_row(table, method, *cells)
    return table


def _warnings(by_cutoff: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One line a status that is not ok: which methods have it, from which cut-offs where not from all."""
    having: dict[tuple[str, str], dict[str, list[str]]] = {}
    for cutoff, methods in by_cutoff.items():
        for method, entry in methods.items():
            mark = "-" if entry["final"] is None else "†"
            if entry["flags"]:
                having.setdefault((mark, readable(entry["status"])), {}).setdefault(method, []).append(cutoff)
    return [
        f"{mark} {status}: "
        + ", ".join(name + ("" if len(at) == len(by_cutoff) else f" ({', '.join(at)})") for name, at in methods.items())
        for (mark, status), methods in sorted(having.items())
    ]


# ----------------------------------------------------------------------------------------------------------- forecasts


def show_forecasts(forecasts: Sequence[Forecast], past: xr.Dataset, where: str) -> None:
    """Print each method's mean loss at the last token count asked for, those with intervals first, and the main one's
    in a sentence.

    Args:
        where: what that token count is called, such as "at the end".
    """
    from rich.console import Console

    # False sorts before True: the main method first, then those with intervals
    ordered = sorted(forecasts, key=lambda forecast: (forecast.method != MAIN, forecast.quantiles is None))
    for note in ordered[0].notes:
        print(note)
    for split in past.split.values:
        losses = past.loss.sel(split=split).mean("position")
        known = losses[losses.notnull()]  # a split may not have been measured at the last checkpoint
        at = float(forecasts[0].mean.tokens[-1])
        seen = f"{float(known[-1]):.3f} nats at {float(known.tokens[-1]):.4g} tokens" if known.size else "no loss seen"
        title = f"{spelled_out(str(split))}: {seen}; forecast at {at:.4g} tokens"
        table = _table(title, "method", "nats", *LEVELS)
        table.add_column("status")
        for forecast in ordered:
            value = number(forecast.mean.sel(split=split)[-1])
            within = [_interval(forecast.quantiles, split, level) or "-" for level in LEVELS]
            status = readable(forecast.status[str(split)])
            _add_row(table, forecast.method, "-" if value is None else f"{value:.3f}", *within, status)
        Console().print(table)
    for split in map(str, past.split.values):
        sentence, rest = forecast_sentence(ordered[0], split, where), ordered[0].intervals.get(split)
        if sentence:
            print(f"{sentence} ({rest})" if rest else sentence)


def _interval(quantiles: xr.DataArray | None, split: Any, level: str) -> str:
    """Both ends of an interval at the last tokens; empty where they are not known."""
    if quantiles is None:
        return ""
    low, high = (float(quantiles.sel(split=split, quantile=q)[-1]) for q in LEVELS[level])
    return f"{low:.3f} to {high:.3f}" if math.isfinite(low) else ""


def forecast_sentence(forecast: Forecast, split: str, where: str) -> str:
    """The end of a forecast with its 90 % interval, in words; empty for a method that knows none."""
    if forecast.quantiles is None:
        return ""
    status, here = forecast.status[split], _interval(forecast.quantiles, split, "90 %")
    if not here:
        return f"{split}: no interval, as {readable(status)}"
    everywhere = _interval(forecast.population_quantiles, split, "90 %")
    also = f" ({everywhere} on all such texts)" if everywhere else ""
    warning = "" if status.ok else f"; warning: {readable(status)}"
    end = f"{float(forecast.mean.sel(split=split)[-1]):.3f} nats {where}"
    return f"{split}: {end}, 90 %: {here} on these texts{also}{warning}"


def show_finished(surface: xr.Dataset) -> None:
    """Print that there is nothing left to forecast, and what was observed."""
    for split in surface.split.values:
        value = number(surface.loss.sel(split=split).mean("position")[-1])
        observed = "unknown" if value is None else f"{value:.3f}"
        print(f"{split}: {observed} nats observed at {int(surface.tokens[-1]):,} tokens, the end of the plan")
    print("the run is finished: nothing to forecast (--cutoff 0.4 forecasts from its beginning, --at goes beyond)")


def show_backtests(scores: Any, coverage: Any) -> None:
    """Print absolute errors of the final loss by split, cut-off and method, over runs, and how often intervals held."""
    from rich.console import Console

    # sort=False keeps methods in the order in which they were asked for
    by = scores.error.abs().groupby(["split", "method", "cutoff"], sort=False).median().unstack("cutoff")
    table = _table("absolute error of the final loss, nats, median over runs", "split", "method", *by.columns)
    for (split, method), row in by.iterrows():
        _add_row(table, split, method, *(f"{value:.3f}" if np.isfinite(value) else "-" for value in row))
    Console().print(table)
    names = ("method", "ahead", "runs", "50 %", "90 %", "over runs", "score")
    table = _table("later checkpoints inside their intervals, by tokens over those at the cut-off", *names)
    for (method, horizon), row in coverage.iterrows():
        within = f"{row.low:.2f} to {row.high:.2f}" if np.isfinite(row.low) else "-"
        shares = (f"{row.covered_50:.2f}", f"{row.covered_90:.2f}", within, f"{row.interval_score:.3f}")
        _add_row(table, method, horizon, f"{row.runs:.0f}", *shares)
    Console().print(table)


# ------------------------------------------------------------------------------------------------------ plans compared


def show_plans(comparison: Comparison) -> None:
    """Print where the run would end under each plan, how far from the first one, and what that means."""
    from rich.console import Console

    rows = json_values.plans(comparison)
    for split in dict.fromkeys(row["split"] for row in rows):
        first, *alternatives = of_split = [row for row in rows if row["split"] == split]
        title = f"{split}: the end of each plan, forecast from {first['cutoff']:.4g} tokens"
        table = _table(title, "plan", "ends at", "nats (90 %)", f"beside {first['plan']} (90 %)")
        for row in of_split:
            within = _interval(comparison.forecasts[row["plan"]].quantiles, split, "90 %")
            end = f"{row['loss'][-1]:.3f} ({within})" if within else "-"
            low, middle, high = (row["difference"][q] for q in ("0.05", "0.5", "0.95"))
            beside = "-" if middle is None else f"{middle:+.3f} ({low:+.3f} to {high:+.3f})"
            _add_row(table, row["plan"], count(row["tokens"][-1]), end, "" if row is first else beside)
        Console().print(table)
        for row in alternatives:
            print(difference_sentence(first["plan"], row))
    print("A difference is the law's: what two runs differ by through chance alone is not in it.")


def difference_sentence(first: str, row: Mapping[str, Any]) -> str:
    """How a plan ends beside the first one, in words; row as in `json_values.plans`."""
    low, middle, high = (row["difference"][q] for q in ("0.05", "0.5", "0.95"))
    warning = f"; warning: {readable(row['status'])}" if row["flags"] else ""
    if middle is None:
        return f"{row['split']}: {row['plan']} cannot be compared{warning}"
    verdict = "if the law is right" if low > 0 or high < 0 else "but which ends lower is not certain"
    away = f"{abs(middle):.3f} nats {'higher' if middle > 0 else 'lower'}"
    ends = f"{row['plan']} ends {away} than {first} (90 %: {low:+.3f} to {high:+.3f})"
    return f"{row['split']}: {ends}, {verdict}{warning}"
