"""What a report can be made of, and how it is recognised: a loss surface, fits, forecasts, a backtest, in any order.

Reporting does not import forecasting: a forecast and a backtest are whatever has the attributes written down here.
Whatever comes is sorted into one `Material`; the sections then take what they need, and stay away without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import xarray as xr

from tsl_jax.fitting import Fit
from tsl_jax.forecasting import ForecastStatus
from tsl_jax.laws import Schedule
from tsl_jax.reporting.standing import percent, plan, unfinished
from tsl_jax.surface import validate_surface

NOW = "now"  # the cut-off of a forecast from the last checkpoint there is


@runtime_checkable
class ForecastLike(Protocol):
    """A forecast: mean (split, tokens) in nats, made from tokens <= cutoff."""

    @property
    def method(self) -> str: ...
    @property
    def cutoff(self) -> float: ...
    @property
    def mean(self) -> xr.DataArray: ...
    @property
    def status(self) -> Mapping[str, ForecastStatus]: ...
    @property
    def fits(self) -> Mapping[str, Any]: ...


def quantiles_of(one: Any, name: str = "quantiles") -> xr.DataArray | None:
    """Quantiles (split, tokens, quantile) of a forecast's mean loss; None where its method knows none."""
    return getattr(one, name, None)


@runtime_checkable
class BacktestLike(Protocol):
    """Scores indexed by (split, cutoff, method), and the forecasts behind them by (cutoff, method)."""

    @property
    def scores(self) -> pd.DataFrame: ...
    @property
    def forecasts(self) -> Mapping[tuple[float, str], ForecastLike]: ...


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
        surface: the run. by_position: label -> fit over positions. others: label -> any other fit.
        futures: cut-off label ("40%"; "now" for the last checkpoint) -> method -> forecast, cut-offs increasing.
        scores: as in a backtest; empty where nothing can be judged. total: tokens of the whole run, if known.
    """

    surface: xr.Dataset | None
    by_position: Mapping[str, PositionFit]
    others: Mapping[str, Fit]
    futures: Mapping[str, Mapping[str, ForecastLike]]
    scores: pd.DataFrame
    schedule: Schedule | None
    total: float | None
    attrs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, from whatever knows them."""
        if self.surface is not None:
            return tuple(str(name) for name in self.surface.split.values)
        means = [one.mean for group in self.futures.values() for one in group.values()]
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
    def shown_from(self) -> str:
        """The cut-off of that forecast."""
        return next((label for label, group in self.futures.items() if self.shown in group.values()), "")

    @property
    def shown(self) -> ForecastLike | None:
        """The forecast whose temporal laws are drawn: by position, from the largest cut-off."""
        groups = [group["temporal"] for group in self.futures.values() if "temporal" in group]
        return groups[-1] if groups else None


def sort(results: Iterable[Any]) -> Material:
    """The results by kind.

    Raises:
        ValueError: for no result, a type that a report cannot show, or two of what there can be one of.
    """
    kinds: dict[str, list[Any]] = {"surface": [], "fit": [], "backtest": [], "forecast": []}
    for result in results:
        kinds[_kind(result)].append(validate_surface(result) if isinstance(result, xr.Dataset) else result)
    if not any(kinds.values()):
        raise ValueError("report: nothing to show; give a surface, fits, a forecast or a backtest")
    for name in ("surface", "backtest"):
        if len(kinds[name]) > 1:
            raise ValueError(f"report: found {len(kinds[name])} of the kind {name}; a page shows one, write one a run")
    surface = kinds["surface"][0] if kinds["surface"] else None
    attrs = {} if surface is None else surface.attrs
    schedule = plan(attrs)
    backtest = kinds["backtest"][0] if kinds["backtest"] else None
    total = _total(surface, schedule, kinds["forecast"])
    futures = _futures(surface, backtest, kinds["forecast"], total)
    position = [fit for fit in kinds["fit"] if fit.over == ("position",) and _several(fit.x)]
    others = [fit for fit in kinds["fit"] if fit.over != ("position",)]
    return Material(
        surface=surface,
        by_position=_labelled([arranged(fit) for fit in position or _from_forecasts(futures)]),
        others=_labelled(others),
        futures=futures,
        scores=_finals(surface, futures) if backtest is None else backtest.scores,
        schedule=schedule,
        total=total,
        attrs=attrs,
    )


def _several(x: Any) -> bool:
    """Whether a fit saw more than one point: over a mean, which has one position, it says nothing."""
    return isinstance(x, Mapping) or np.size(x) > 1


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


def _kind(result: Any) -> str:
    if isinstance(result, xr.Dataset):
        return "surface"
    if isinstance(result, Fit):
        return "fit"
    if isinstance(result, BacktestLike):
        return "backtest"
    if isinstance(result, ForecastLike):
        return "forecast"
    raise ValueError(
        f"report: cannot show a {type(result).__name__}; give a loss surface (xr.Dataset), fits, a forecast or a "
        "backtest"
    )


def _total(surface: xr.Dataset | None, schedule: Schedule | None, forecasts: list[ForecastLike]) -> float | None:
    if schedule is not None:
        return float(schedule.total_tokens)
    ends = [float(one.mean.tokens.max()) for one in forecasts if one.mean.sizes["tokens"]]
    if surface is not None and surface.sizes["tokens"]:
        ends.append(float(surface.tokens[-1]))
    return max(ends, default=None)


def _futures(
    surface: xr.Dataset | None, backtest: BacktestLike | None, forecasts: list[ForecastLike], total: float | None
) -> dict[str, dict[str, ForecastLike]]:
    known = [(cutoff, percent(cutoff), one) for (cutoff, _), one in (backtest.forecasts if backtest else {}).items()]
    last = np.nan if surface is None or not surface.sizes["tokens"] else float(surface.tokens[-1])
    for one in forecasts:
        cutoff = one.cutoff / total if total else 1.0
        known.append((cutoff, NOW if one.cutoff == last else percent(cutoff), one))
    groups: dict[str, dict[str, ForecastLike]] = {}
    for _, name, one in sorted(known, key=lambda found: found[0]):
        groups.setdefault(name, {})[one.method] = one
    return groups


def _from_forecasts(futures: Mapping[str, Mapping[str, ForecastLike]]) -> list[Fit]:
    """The position fits behind a forecast, for a page that was given no others."""
    groups = [group["temporal"].fits.get("position") for group in futures.values() if "temporal" in group]
    return [fit for fit in groups if isinstance(fit, Fit)][-1:]


def _labelled(fits: list[Any]) -> dict[str, Any]:
    """Fits by the name of their law, numbered where a name comes twice."""
    labels: dict[str, Any] = {}
    for one in fits:
        name = (one.fit if isinstance(one, PositionFit) else one).law.name.replace("_", " ")
        count = sum(label.split(" (")[0] == name for label in labels)
        labels[name if count == 0 else f"{name} ({count + 1})"] = one
    return labels


def _finals(surface: xr.Dataset | None, futures: Mapping[str, Mapping[str, ForecastLike]]) -> pd.DataFrame:
    """Errors of the last loss where single forecasts meet a surface that reaches beyond them; R2 and MSE unknown."""
    rows = []
    for cutoff, group in futures.items() if surface is not None else ():
        assert surface is not None
        last = surface.loss.mean("position").isel(tokens=-1)
        for one in group.values():
            end = one.mean.isel(tokens=(one.mean.tokens == last.tokens).values)
            both = [split for split in end.split.values if split in last.split.values and end.sizes["tokens"]]
            rows += [_final(one, cutoff, s, float(end.sel(split=s)[-1]), float(last.sel(split=s))) for s in both]
    index = ["split", "cutoff", "method"]
    return pd.DataFrame(rows, columns=[*index, "final", "observed", "error", "mse", "r2", "status", "flags"]).set_index(
        index
    )


def _final(one: ForecastLike, cutoff: str, split: str, final: float, observed: float) -> dict[str, Any]:
    fraction = float(cutoff.removesuffix("%")) / 100
    return {"split": split, "cutoff": fraction, "method": one.method, "final": final, "observed": observed,
            "error": final - observed, "mse": np.nan, "r2": np.nan, "status": str(one.status[split]),
            "flags": int(one.status[split].flags)}  # fmt: skip
