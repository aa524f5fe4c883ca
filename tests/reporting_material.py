"""Something to report on: a small made-up run, its fits, and forecasts with errors that are chosen."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from tsl_jax import laws
from tsl_jax.fitting import Fit, fit
from tsl_jax.forecasting import MAIN, Backtest, Forecast, ForecastFlag, ForecastStatus
from tsl_jax.importers import from_losses

TOTAL = 1_000_000
PLAN = {"kind": "cosine", "peak": 5e-3, "warmup_tokens": 20_000, "total_tokens": TOTAL, "final_ratio": 0.1}
METHODS = ("temporal", "temporal_joint", "power", "reciprocal", "last", "of_my_own")
CUTOFFS = (0.1, 0.4)


def surface(splits: tuple[str, ...] = ("id", "ood"), **attrs: Any) -> xr.Dataset:
    """Losses that follow the hyperbolic law but for noise; the first checkpoints are flat, their fits at a bound."""
    tokens = np.unique(np.concatenate([[5000, 10_000], np.geomspace(30_000, TOTAL, 14)]).astype(int))
    position, random = np.arange(1, 33), np.random.default_rng(0)
    grown = np.clip(np.log(tokens / 1.2e4), 0, None)[:, None]
    loss = grown / (1 + 0.3 * position) + 6 - 0.5 * grown + 0.01 * random.standard_normal((len(tokens), 32))
    both = np.stack([loss + 0.4 * k for k in range(len(splits))])
    return from_losses(both, tokens=tokens, split=list(splits), schedule=PLAN, **attrs)


def position_fit(run: xr.Dataset) -> Fit:
    return fit(laws.HYPERBOLIC, run.loss, over="position")


def temporal_fits(by_position: Fit) -> dict[str, Fit]:
    """One temporal law for each parameter, fitted to the usable checkpoints of the past."""
    past = by_position.params.sel(tokens=slice(3e4, 0.4 * TOTAL))
    return {name: fit(laws.RECIPROCAL, past.sel(param=name, drop=True), over="tokens") for name in ("a0", "a1", "a2")}


def forecast(run: xr.Dataset, cutoff: float, method: str, error: float, fits: Mapping[str, Any]) -> Forecast:
    """The observed mean, off by an error that grows to its full size at the end."""
    ahead = run.loss.mean("position").sel(tokens=slice(cutoff * TOTAL + 1, None))
    growing = (ahead.tokens - cutoff * TOTAL) / (TOTAL * (1 - cutoff))
    splits = run.split.values.tolist()
    status = dict.fromkeys(splits, ForecastStatus())
    return Forecast(method, cutoff * TOTAL, ahead + error * growing, None, status, fits)


def backtest(
    run: xr.Dataset,
    fits: Mapping[str, Any],
    errors: Mapping[str, float] | None = None,
    cutoffs: Sequence[float] = CUTOFFS,
) -> Backtest:
    """Forecasts of every method from every cut-off; NaN errors are methods that have no forecast."""
    errors = dict(zip(METHODS, (0.3, 0.02, -0.01, np.nan, 0.2, 40.0), strict=True)) if errors is None else errors
    forecasts = {
        (cutoff, method): forecast(run, cutoff, method, error, fits if method == "temporal" else {})
        for cutoff in cutoffs
        for method, error in errors.items()
    }
    return Backtest(_scores(run, forecasts, errors), forecasts)


def with_interval(run: xr.Dataset, cutoff: float) -> Forecast:
    """The main method: off by 0.05 at the end, with intervals that open from the cut-off."""
    main = forecast(run, cutoff, MAIN, 0.05, {})
    width = xr.DataArray([-0.2, -0.03, 0.0, 0.03, 0.2], {"quantile": [0.05, 0.25, 0.5, 0.75, 0.95]}, ("quantile",))
    opening = (main.mean.tokens - cutoff * TOTAL) / (TOTAL * (1 - cutoff))
    return replace(main, quantiles=main.mean + width * opening)


def with_main_method(backtest: Backtest, run: xr.Dataset) -> Backtest:
    """The backtest with the main method in it: each later checkpoint in its 90 % interval, none in that of 50 %."""
    forecasts = {(cutoff, MAIN): with_interval(run, cutoff) for cutoff in CUTOFFS}
    scores = _scores(run, forecasts, {MAIN: 0.05}).assign(covered_50=0.0, covered_90=1.0)
    return Backtest(pd.concat([backtest.scores, scores]), {**backtest.forecasts, **forecasts})


def _scores(run: xr.Dataset, forecasts: Mapping[tuple[float, str], Forecast], errors: Mapping[str, float]) -> Any:
    rows = []
    too_few = ForecastStatus(ForecastFlag.NO_FORECAST, ("3 usable position fits, 4 are needed",))
    for (cutoff, method), forecast in forecasts.items():
        for split in run.split.values.tolist():
            final, observed = float(forecast.mean.sel(split=split)[-1]), float(run.loss.sel(split=split)[-1].mean())
            status = ForecastStatus() if np.isfinite(final) else too_few
            row = {"final": final, "observed": observed, "error": final - observed, "mse": errors[method] ** 2}
            row |= {"r2": 0.9, "status": str(status), "flags": int(status.flags)}
            rows.append({"split": split, "cutoff": cutoff, "method": method, **row})
    return pd.DataFrame(rows).set_index(["split", "cutoff", "method"])
