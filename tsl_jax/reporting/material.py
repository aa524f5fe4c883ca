"""What a report is made of: a loss surface, fits, forecasts, a backtest, in any order, sorted into one `Material`.

The sections take from it what they need, and are left out without it. A cut-off is a number everywhere, its share of
the whole run, as in a backtest; what it is called is decided where it is drawn (`Material.cutoff_name`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from tsl_jax.fitting import Fit
from tsl_jax.forecasting.backtesting import Backtest
from tsl_jax.forecasting.result import Forecast
from tsl_jax.reporting.wording import percents
from tsl_jax.schedules import Schedule
from tsl_jax.surface import validate_surface


@dataclass(frozen=True)
class PositionFit:
    """A fit over positions with its other dimensions arranged as (split, curve); curves are checkpoints if known."""

    fit: Fit
    splits: tuple[str, ...]
    tokens: np.ndarray | None  # (curve,), or None where the curves are only numbered

    @property
    def at(self) -> np.ndarray:
        """Where each curve stands on the horizontal axis: tokens seen, else its number from 1."""
        return np.arange(1, self.fit.status.sizes["curve"] + 1) if self.tokens is None else self.tokens

    def values(self, name: str, param: str) -> np.ndarray:
        """`params` or `stderr` of one parameter, (split, curve)."""
        return getattr(self.fit, name).sel(param=param).values

    def curves(self, chosen: np.ndarray, x: np.ndarray) -> np.ndarray:
        """The fitted curves (split, chosen, point)."""
        return replace(self.fit, raw_params=self.fit.raw_params.isel(curve=chosen)).predict(x).values


@dataclass(frozen=True)
class Material:
    """The sorted results.

    Attributes:
        surface: the run. by_position: name -> fit over positions. others: name -> any other fit.
        forecasts: cut-off (share of the whole run), increasing -> method -> forecast.
        scores: as in a backtest; empty where nothing can be judged. total: tokens of the whole run, if known.
    """

    surface: xr.Dataset | None
    by_position: Mapping[str, PositionFit]
    others: Mapping[str, Fit]
    forecasts: Mapping[float, Mapping[str, Forecast]]
    scores: pd.DataFrame
    schedule: Schedule | None
    total: float | None
    attrs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, from whatever knows them."""
        if self.surface is not None:
            return tuple(str(name) for name in self.surface.split.values)
        means = [forecast.mean for group in self.forecasts.values() for forecast in group.values()]
        return tuple(str(name) for name in means[0].split.values) if means else ()

    @property
    def mean(self) -> xr.DataArray | None:
        """Observed mean loss over positions (split, tokens)."""
        return None if self.surface is None else self.surface.loss.mean("position").transpose("split", "tokens")

    @property
    def unfinished(self) -> float | None:
        """Share of the plan that an unfinished run has reached."""
        return unfinished(self.surface)

    @property
    def now(self) -> float | None:
        """The cut-off of forecasts from the last checkpoint there is."""
        last = np.nan if self.surface is None or not self.surface.sizes["tokens"] else float(self.surface.tokens[-1])
        for cutoff, group in self.forecasts.items():
            if any(forecast.cutoff == last for forecast in group.values()):
                return cutoff
        return None

    @cached_property
    def cutoff_names(self) -> dict[float, str]:
        """Cut-off -> its name, all different: "40%", or "now" for `now`. Names are drawn, and never compared."""
        # scores may judge cut-offs whose forecasts were not given; columns and buttons must agree in their names
        names = percents([*self.forecasts, *self.scores.index.unique("cutoff")])
        return names if self.now is None else {**names, self.now: "now"}

    @property
    def shown(self) -> tuple[float, Forecast] | None:
        """The forecast whose a0, a1, a2 are drawn, after its cut-off: by the first of PATHS, from the largest one."""
        for name in PATHS:
            forecasts = [(cutoff, group[name]) for cutoff, group in self.forecasts.items() if name in group]
            if forecasts:
                return forecasts[-1]
        return None


# Methods that forecast a0, a1 and a2, the better one first.
PATHS = ("annealing", "temporal")


def forecast_parameters(forecast: Forecast) -> dict[str, xr.DataArray]:
    """What a method of PATHS says of a0, a1 and a2: parameter -> (split, tokens, quantile .05, .5, .95).

    Beyond the cut-off alone for draws, whose quantiles these are; temporal laws are lines, from their first checkpoint
    on, with equal quantiles. Empty for a forecast that has none.
    """
    levels, paths = np.array([0.05, 0.5, 0.95]), {}
    for name in ("a0", "a1", "a2"):
        of_param = forecast.fits.get(name)
        if isinstance(of_param, Fit) and of_param.over == ("tokens",):
            start, end = float(np.min(np.asarray(of_param.x))), float(forecast.mean.tokens.max())
            at = np.unique(np.append(np.geomspace(start, end, 90), forecast.cutoff))
            line = of_param.predict(at)
            paths[name] = line.expand_dims(quantile=levels, axis=-1).transpose("split", "tokens", "quantile")
        elif isinstance(of_param, Mapping) and of_param:
            ends = np.stack([np.quantile(curve.draws, levels, axis=0).T for curve in of_param.values()])
            at = {"split": list(of_param), "tokens": np.sort(forecast.mean.tokens.values), "quantile": levels}
            paths[name] = xr.DataArray(np.exp(ends) if name == "a1" else ends, at, ("split", "tokens", "quantile"))
    return paths


def sort(results: Iterable[Any]) -> Material:
    """The results by kind.

    Raises:
        ValueError: for no result, a type that a report cannot show, two surfaces or backtests, or two forecasts that
            differ, though method and cut-off are the same.
    """
    kinds: dict[str, list[Any]] = {"surface": [], "fit": [], "backtest": [], "forecast": []}
    types = {xr.Dataset: "surface", Fit: "fit", Backtest: "backtest", Forecast: "forecast"}
    for result in results:
        kind = next((name for of, name in types.items() if isinstance(result, of)), None)
        if kind is None:
            raise ValueError(
                f"report: cannot show a {type(result).__name__}; give a loss surface (xr.Dataset), fits, a forecast or "
                "a backtest"
            )
        kinds[kind].append(validate_surface(result) if kind == "surface" else result)
    if not any(kinds.values()):
        raise ValueError("report: nothing to show; give a surface, fits, a forecast or a backtest")
    for name in ("surface", "backtest"):
        if len(kinds[name]) > 1:
            raise ValueError(f"report: found {len(kinds[name])} of the kind {name}; a page shows one, write one a run")
    surface, backtest = (kinds[name][0] if kinds[name] else None for name in ("surface", "backtest"))
    attrs = {} if surface is None else surface.attrs
    schedule = planned(attrs)
    ends = [float(forecast.mean.tokens.max()) for forecast in kinds["forecast"]]
    ends += [] if surface is None else surface.tokens.values[-1:].tolist()
    total = max(ends, default=None) if schedule is None else float(schedule.total_tokens)
    forecasts = _by_cutoff(backtest, kinds["forecast"], total)
    # a mean over positions has one position: a fit over it says nothing
    position = [f for f in kinds["fit"] if f.over == ("position",) and (isinstance(f.x, Mapping) or np.size(f.x) > 1)]
    behind = [group["temporal"].fits.get("position") for group in forecasts.values() if "temporal" in group]
    return Material(
        surface=surface,
        by_position=_named([arranged(fit) for fit in position or [f for f in behind if isinstance(f, Fit)][-1:]]),
        others=_named([fit for fit in kinds["fit"] if fit.over != ("position",)]),
        forecasts=forecasts,
        scores=_last_errors(surface, forecasts) if backtest is None else backtest.scores,
        schedule=schedule,
        total=total,
        attrs=attrs,
    )


def arranged(fit: Fit) -> PositionFit:
    """The fit with dimensions (split, curve, ...), whatever they were called."""
    outer = fit.status.dims
    stacked = [dim for dim in outer if dim != "split"]

    def arrange(array: xr.DataArray) -> xr.DataArray:
        array = array.drop_vars([name for name in array.coords if name not in array.dims])
        array = array if "split" in outer else array.expand_dims(split=[""])
        if len(stacked) == 1:
            array = array.rename({stacked[0]: "curve"}) if stacked != ["curve"] else array
        else:
            array = array.stack(curve=stacked, create_index=False) if stacked else array.expand_dims("curve")
        return array.transpose("split", "curve", ...)

    names = ("params", "stderr", "status", "r2", "raw_params")
    same = replace(fit, **{name: arrange(getattr(fit, name)) for name in names})
    splits = tuple(str(name) for name in same.status.split.values)
    tokens = same.status.curve.values.astype(float) if stacked == ["tokens"] and "tokens" in fit.status.coords else None
    return PositionFit(same, splits, tokens)


def _by_cutoff(
    backtest: Backtest | None, forecasts: Sequence[Forecast], total: float | None
) -> dict[float, dict[str, Forecast]]:
    """Cut-off -> method -> forecast. A forecast that saw the same checkpoints as a backtest's stands beside it."""
    groups: dict[float, dict[str, Forecast]] = {}
    for (cutoff, method), forecast in (backtest.forecasts if backtest else {}).items():
        groups.setdefault(float(cutoff), {})[method] = forecast
    # a backtest names a cut-off by its nominal share; the last checkpoint before it, in tokens, is a little earlier
    backtested = {forecast.cutoff: cutoff for cutoff, group in groups.items() for forecast in group.values()}
    for forecast in forecasts:
        cutoff = backtested.get(forecast.cutoff, forecast.cutoff / total if total else 1.0)
        first = groups.setdefault(cutoff, {}).setdefault(forecast.method, forecast)
        if not first.mean.equals(forecast.mean):
            raise ValueError(
                f"report: found two different forecasts by {forecast.method} from {forecast.cutoff:.6g} tokens; a page "
                "shows one forecast a method and cut-off, write a page for each"
            )
    return dict(sorted(groups.items()))


def _named(fits: Sequence[Any]) -> dict[str, Any]:
    """Fits by the name of their law, numbered where a name comes twice."""
    numbered: dict[str, Any] = {}
    counts: Counter[str] = Counter()
    for fit in fits:
        name = (fit.fit if isinstance(fit, PositionFit) else fit).law.name.replace("_", " ")
        counts[name] += 1
        numbered[name if counts[name] == 1 else f"{name} ({counts[name]})"] = fit
    return numbered


# -------------------------------------------------------------------------------------------------------------- scores


def _last_errors(surface: xr.Dataset | None, forecasts: Mapping[float, Mapping[str, Forecast]]) -> pd.DataFrame:
    """Errors of the last loss where single forecasts meet a surface that reaches beyond them; R2 and MSE unknown."""
    rows, index = [], ["split", "cutoff", "method"]
    if surface is not None and surface.sizes["tokens"]:
        last, end = surface.loss.mean("position").isel(tokens=-1), float(surface.tokens[-1])
        cases = [(cutoff, forecast) for cutoff, group in forecasts.items() for forecast in group.values()]
        for cutoff, forecast in cases:
            if end not in forecast.mean.tokens or forecast.cutoff >= end:
                continue  # nothing to compare, or a loss that it has seen
            at_last = forecast.mean.sel(tokens=end)
            for split in [split for split in at_last.split.values.tolist() if split in last.split.values]:
                final, observed = float(at_last.sel(split=split)), float(last.sel(split=split))
                status = forecast.status[split]
                row = {"split": split, "cutoff": cutoff, "method": forecast.method, "final": final}
                row |= {"observed": observed, "error": final - observed, "mse": np.nan, "r2": np.nan}
                rows.append({**row, "status": str(status), "flags": int(status.flags)})
    columns = [*index, "final", "observed", "error", "mse", "r2", "status", "flags"]
    return pd.DataFrame(rows, columns=columns).set_index(index)


def smallest_errors(scores: pd.DataFrame, split: str) -> pd.DataFrame:
    """The row with the smallest absolute error at each cut-off: cutoff -> method, final, observed, error."""
    rows = scores.xs(split, level="split").reset_index().dropna(subset=["error"])
    if rows.empty:
        return rows.set_index("cutoff")
    best = rows.loc[rows.groupby("cutoff").error.apply(lambda error: error.abs().idxmin())]
    return best.set_index("cutoff").sort_index()


def splits_with_errors(scores: pd.DataFrame) -> list[str]:
    """Splits in which some forecast can be judged."""
    return [str(split) for split in scores.index.unique("split") if len(smallest_errors(scores, split))]


# ----------------------------------------------------------------------------------------------- how far a run has come


def planned(attrs: Mapping[str, Any]) -> Schedule | None:
    """The learning-rate schedule that a surface carries, or None where it has none that can be read."""
    schedule = attrs.get("schedule")
    try:  # a surface from elsewhere may carry anything under this name; the page then has no plan
        return schedule if isinstance(schedule, Schedule) else Schedule.from_plan(schedule)  # pyright: ignore[reportArgumentType]
    except (AttributeError, TypeError, ValueError):
        return None


def unfinished(surface: xr.Dataset | None) -> float | None:
    """Share of the planned tokens that the checkpoints have reached; None once it is all, or where no plan is known.

    Of a plan that is changed later than the last checkpoint only what was known by then counts, as for a forecast.
    """
    if surface is None or not surface.sizes["tokens"]:
        return None
    schedule, last = planned(surface.attrs), float(surface.tokens[-1])
    share = 1.0 if schedule is None else last / schedule.known_at(last).total_tokens
    return share if share < 1 else None


def late_median(values: Sequence[float | None] | np.ndarray) -> float:
    """Median of the finite values among the later half of the checkpoints, by their number; NaN without any."""
    # by number and not by tokens, as a reader of summary.json would take the later half of a list
    late = np.array([np.nan if value is None else value for value in values[len(values) // 2 :]], float)
    return float(np.nanmedian(late)) if np.isfinite(late).any() else float("nan")
