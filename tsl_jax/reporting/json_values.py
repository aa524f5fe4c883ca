"""Results as JSON values with stable keys: summary.json of a run, forecasts, and plans compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr

from tsl_jax.forecasting.backtesting import Backtest
from tsl_jax.forecasting.plan_comparison import Comparison
from tsl_jax.forecasting.result import Forecast


def summary(
    surface: xr.Dataset, r2: xr.Dataset, backtest: Backtest | None, facts: Mapping[str, Any], stamp: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything a script may want of a run; null where there is no number.

    Args:
        surface: the run. r2: plain, additive and expected over (split, tokens), as far as known.
        backtest: scores by (split, cutoff, method), or None.
        facts: what was recorded during training; stamp: which command and options made this.
    """
    splits = {str(split): _split(surface, r2, backtest, split) for split in surface.split.values}
    return {
        "splits": splits,
        "tokens_per_second": facts.get("tokens_per_second"),
        "seconds": {stage: round(float(value), 3) for stage, value in facts.get("seconds", {}).items()},
        "corpus": facts.get("corpus", surface.attrs.get("corpus")),
        "versions": surface.attrs.get("versions"),
        "config_hash": facts.get("config_hash", surface.attrs.get("config_hash")),
        "made_by": dict(stamp),
    }


def _split(surface: xr.Dataset, r2: xr.Dataset, backtest: Backtest | None, split: str) -> dict[str, Any]:
    mean = surface.loss.sel(split=split).mean("position")
    estimates = {"r2": "plain", "r2_additive": "additive", "r2_expected": "expected"}
    by_cutoff: dict[str, Any] = {}
    for (cutoff, method), row in backtest.scores.loc[split].iterrows() if backtest is not None else ():
        names = ("final", "mse", "r2", "covered_50", "covered_90")
        scores = {name: number(row[name]) for name in names if name in row}
        forecast = None if backtest is None else backtest.forecasts.get((cutoff, method))
        ends = None
        if forecast is not None and forecast.quantiles is not None:
            last = forecast.quantiles.sel(split=split).isel(tokens=-1)
            ends = {f"{q:g}": number(last.sel(quantile=q)) for q in last["quantile"].values}
        # str, as two cut-offs that differ never share a key
        status = {"status": row["status"], "flags": int(row["flags"])}
        by_cutoff.setdefault(str(float(cutoff)), {})[method] = {**scores, "intervals": ends, **status}
    return {
        "tokens": [int(t) for t in surface.tokens.values],
        # those that R2 and the law's parameters belong to
        "positions": [int(surface.position[0]), int(surface.position[-1])],
        **{key: numbers(r2[name].sel(split=split)) if name in r2 else None for key, name in estimates.items()},
        "loss": numbers(mean),
        "final_loss": number(mean[-1]),
        "forecast": by_cutoff,
    }


def forecasts(results: Sequence[Forecast]) -> list[dict[str, Any]]:
    """Forecasts: method, split, tokens, mean loss, its intervals, what they rest on and assume, status, flags, cut-off.

    Intervals are quantiles over the tokens by their name, of the mean loss on these validation texts and on all such
    texts (population); null where a method knows none.
    """
    return [
        {
            "method": forecast.method,
            "split": str(split),
            "cutoff": float(forecast.cutoff),
            "tokens": [float(t) for t in forecast.mean.tokens.values],
            "loss": numbers(forecast.mean.sel(split=split)),
            "intervals": _by_quantile(forecast.quantiles, split),
            "population_intervals": _by_quantile(forecast.population_quantiles, split),
            "intervals_rest_on": "; ".join(filter(None, (forecast.intervals.get(str(split)), *forecast.notes))),
            "assumes": list(forecast.notes),
            "status": str(forecast.status[str(split)]),
            "flags": int(forecast.status[str(split)].flags),
        }
        for split in (results[0].mean.split.values if results else ())
        for forecast in results
    ]


def _by_quantile(quantiles: xr.DataArray | None, split: Any) -> dict[str, list[float | None]] | None:
    if quantiles is None:
        return None
    return {f"{q:g}": numbers(quantiles.sel(split=split, quantile=q)) for q in quantiles["quantile"].values}


def plans(comparison: Comparison) -> list[dict[str, Any]]:
    """Plans compared: each as in `forecasts`, with its name and the quantiles of the difference to the first plan."""
    rows = []
    for name, forecast in comparison.forecasts.items():
        for row in forecasts([forecast]):
            apart = comparison.differences.sel(plan=name, split=row["split"])
            difference = {f"{q:g}": number(apart.sel(quantile=q)) for q in apart["quantile"].values}
            rows.append({"plan": name, **row, "difference": difference})
    return rows


def numbers(values: xr.DataArray) -> list[float | None]:
    """JSON values over tokens."""
    return [number(value) for value in values.transpose("tokens").values]


def number(value: Any) -> float | None:
    """A JSON value; None where it is not finite."""
    value = float(value)
    return value if math.isfinite(value) else None
