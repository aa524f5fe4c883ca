"""Forecasts and plans compared, as JSON values and as tables in the terminal, with the result in a sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from tsl_jax.forecasting.methods import MAIN
from tsl_jax.reporting.inputs import quantiles_of
from tsl_jax.reporting.tables import number, numbers, readable
from tsl_jax.reporting.words import count

LEVELS = {"50 %": (0.25, 0.75), "90 %": (0.05, 0.95)}


def forecasts(made: Sequence[Any]) -> list[dict[str, Any]]:
    """Forecasts as JSON values: method, split, tokens, mean loss, its intervals and what they rest on, status, cut-off.

    Intervals are quantiles over the tokens by their name, of the mean loss on these validation texts and on all such
    texts (population); null where a method knows none.
    """
    return [
        {
            "method": one.method,
            "split": str(split),
            "cutoff": float(one.cutoff),
            "tokens": [float(t) for t in one.mean.tokens.values],
            "loss": numbers(one.mean.sel(split=split)),
            "intervals": _by_quantile(quantiles_of(one), split),
            "population_intervals": _by_quantile(quantiles_of(one, "population_quantiles"), split),
            "intervals_rest_on": one.intervals.get(str(split)),
            "status": str(one.status[str(split)]),
            "flags": int(one.status[str(split)].flags),
        }
        for split in (made[0].mean.split.values if made else ())
        for one in made
    ]


def _by_quantile(known: xr.DataArray | None, split: Any) -> dict[str, list[float | None]] | None:
    if known is None:
        return None
    one = known.sel(split=split)
    return {f"{q:g}": numbers(one.sel(quantile=q)) for q in one["quantile"].values}


def show_forecasts(made: Sequence[Any], past: xr.Dataset, where: str) -> None:
    """Print each method's mean loss at the last token count asked for, those with intervals first, and the main one's
    in a sentence.

    Args:
        where: what that token count is called, such as "at the end".
    """
    from rich.console import Console

    ordered = sorted(made, key=lambda one: (one.method != MAIN, quantiles_of(one) is None))
    for split in past.split.values:
        seen = float(past.loss.sel(split=split).mean("position")[-1])
        at = float(made[0].mean.tokens[-1])
        title = f"{split}: {seen:.3f} nats at {made[0].cutoff:.4g} tokens; forecast at {at:.4g} tokens"
        table = _table(title, "method", "nats", *LEVELS)
        table.add_column("status")
        for one in ordered:
            value = number(one.mean.sel(split=split)[-1])
            within = [_interval(quantiles_of(one), split, level) or "-" for level in LEVELS]
            status = readable(one.status[str(split)])
            table.add_row(one.method, "-" if value is None else f"{value:.3f}", *within, status)
        Console().print(table)
    for split in map(str, past.split.values):
        said, rest = sentence(ordered[0], split, where), ordered[0].intervals.get(split)
        if said:
            print(f"{said} ({rest})" if rest else said)


def show_backtests(scores: Any, covered: Any) -> None:
    """Print the errors of the final loss by split, cut-off and method, over runs, and how often intervals held."""
    from rich.console import Console

    by = scores.error.abs().groupby(["split", "method", "cutoff"], sort=False).median().unstack("cutoff")
    table = _table("size of the error of the final loss, nats, median over runs", "split", "method", *by.columns)
    for (split, method), row in by.iterrows():
        table.add_row(split, method, *(f"{value:.3f}" if np.isfinite(value) else "-" for value in row))
    Console().print(table)
    names = ("method", "ahead", "runs", "50 %", "90 %", "over runs", "score")
    table = _table("later checkpoints inside their intervals, by tokens over those at the cut-off", *names)
    for (method, horizon), row in covered.iterrows():
        within = f"{row.low:.2f} to {row.high:.2f}" if np.isfinite(row.low) else "-"
        shares = (f"{row.covered_50:.2f}", f"{row.covered_90:.2f}", within, f"{row.interval_score:.3f}")
        table.add_row(method, horizon, f"{row.runs:.0f}", *shares)
    Console().print(table)


def _table(title: str, *columns: str) -> Any:
    """A table whose columns are not broken."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(str(name), no_wrap=True)
    return table


def _interval(known: xr.DataArray | None, split: Any, level: str) -> str:
    """Both ends of an interval at the last tokens; empty where they are not known."""
    if known is None:
        return ""
    low, high = (float(known.sel(split=split, quantile=q)[-1]) for q in LEVELS[level])
    return f"{low:.3f} to {high:.3f}" if math.isfinite(low) else ""


def sentence(one: Any, split: str, where: str) -> str:
    """The end of a forecast with its 90 % interval, in words; empty for a method that knows none."""
    known = quantiles_of(one)
    if known is None:
        return ""
    here = _interval(known, split, "90 %")
    if not here:
        return f"{split}: no interval, as {readable(one.status[split])}"
    everywhere = _interval(quantiles_of(one, "population_quantiles"), split, "90 %")
    also = f" ({everywhere} on all such texts)" if everywhere else ""
    doubt = "" if one.status[split].ok else f"; doubtful: {readable(one.status[split])}"
    return f"{split}: {float(one.mean.sel(split=split)[-1]):.3f} nats {where}, 90 %: {here} on these texts{also}{doubt}"


def show_finished(surface: xr.Dataset) -> None:
    """Print that there is nothing left to forecast, and what was observed."""
    for split in surface.split.values:
        value = number(surface.loss.sel(split=split).mean("position")[-1])
        observed = "unknown" if value is None else f"{value:.3f}"
        print(f"{split}: {observed} nats observed at {int(surface.tokens[-1]):,} tokens, the end of the plan")
    print("the run is finished: nothing to forecast (--cutoff 0.4 forecasts from its beginning, --at goes beyond)")


# ------------------------------------------------------------------------------------------------------ plans compared


def plans(found: Any) -> list[dict[str, Any]]:
    """Plans compared, as JSON values: each as in `forecasts`, with its name and the difference to the first plan.

    Args:
        found: `forecasts` by plan, and `differences` (plan, split, quantile) in nats.
    """
    return [
        {"plan": name, **row, "difference": _difference(found.differences, name, row["split"])}
        for name, one in found.forecasts.items()
        for row in forecasts([one])
    ]


def _difference(differences: xr.DataArray, plan: str, split: str) -> dict[str, float | None]:
    one = differences.sel(plan=plan, split=split)
    return {f"{q:g}": number(one.sel(quantile=q)) for q in one["quantile"].values}


def show_plans(found: Any) -> None:
    """Print where the run would end under each plan, how far from the first one, and what that means."""
    from rich.console import Console

    rows = plans(found)
    for split in dict.fromkeys(row["split"] for row in rows):
        first, *others = mine = [row for row in rows if row["split"] == split]
        title = f"{split}: the end of each plan, forecast from {first['cutoff']:.4g} tokens"
        table = _table(title, "plan", "ends at", "nats (90 %)", f"beside {first['plan']} (90 %)")
        for row in mine:
            within = _interval(quantiles_of(found.forecasts[row["plan"]]), split, "90 %")
            end = f"{row['loss'][-1]:.3f} ({within})" if within else "-"
            table.add_row(row["plan"], count(row["tokens"][-1]), end, "" if row is first else _beside(row))
        Console().print(table)
        for row in others:
            print(apart(first["plan"], row))
    print("A difference is the law's: what two runs differ by through chance alone is not in it.")


def _beside(row: Mapping[str, Any]) -> str:
    low, middle, high = (row["difference"][q] for q in ("0.05", "0.5", "0.95"))
    return "-" if middle is None else f"{middle:+.3f} ({low:+.3f} to {high:+.3f})"


def apart(first: str, row: Mapping[str, Any]) -> str:
    """How a plan ends beside the first one, in words; row as in `plans`."""
    low, middle, high = (row["difference"][q] for q in ("0.05", "0.5", "0.95"))
    doubt = f"; doubtful: {readable(row['status'])}" if row["flags"] else ""
    if middle is None:
        return f"{row['split']}: {row['plan']} cannot be compared{doubt}"
    verdict = "as far as the law is right" if low > 0 or high < 0 else "but which ends lower is not certain"
    away = f"{abs(middle):.3f} nats {'higher' if middle > 0 else 'lower'}"
    return f"{row['split']}: {row['plan']} ends {away} than {first} (90 %: {low:+.3f} to {high:+.3f}), {verdict}{doubt}"
