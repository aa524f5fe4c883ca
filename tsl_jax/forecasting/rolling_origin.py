"""Intervals for forecasts that give points: how far the method was off from earlier origins of the same past.

The past is cut at about 40, 50, 60, 70 and 80 % of the tokens seen, forecast from there, and compared with what came
until the cut-off. With h = log(tokens / tokens at the origin), errors are taken to grow in proportion to h:

    error(h) = T sqrt((s h)^2 + d^2) + w Z,    s^2 = mean over origins of (error / h)^2,

each error over h being that of the last third of the checkpoints beyond its origin. T is Student's with one degree of
freedom less than origins (they overlap), one number for all tokens of a draw; Z is normal, one number for each token.
w^2 is the larger of two: the scatter of each checkpoint about the line between its neighbours, and the mean square of
what the method is off at the last checkpoint that it has seen. d is `Forecast.model_discrepancy_sd`, or 0. The fit's
own errors, which take residuals for independent, are not used; nor is anything beyond the cut-off.

All origins are forecast at once, as further splits of one surface whose later checkpoints are NaN: no law is compiled
for them. Source: rolling-origin evaluation, Tashman, Out-of-sample tests of forecasting accuracy (2000).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import xarray as xr
from scipy.special import stdtrit

from tsl_jax.forecasting.baselines import mean_loss
from tsl_jax.forecasting.result import QUANTILES, Forecast, ForecastStatus, population_quantiles, quantiles

SHARES = (0.4, 0.5, 0.6, 0.7, 0.8)  # of the tokens seen, at which the past is cut
FEW_SHARES = (0.5, 0.7)  # for a method whose every origin costs much
FEWEST = 5  # checkpoints before an origin: one more than a temporal law has parameters
DRAWS = 512
NONE = "none: too few checkpoints"

# (positions, loss surface (split, tokens, position) there, sd of the model's discrepancy there or None)
Blocks = Callable[[], Iterator[tuple[slice, xr.DataArray, xr.DataArray | None]]]


@dataclass(frozen=True)
class Points:
    """What a method says at some tokens, of the past and ahead, without intervals.

    Attributes:
        mean: (split, tokens), nats. status: by split. fits: as in `Forecast`.
        discrepancy: mean over positions of `Forecast.model_discrepancy_sd`, (split, tokens), or None.
        blocks: the loss surface, some positions after the other, as a whole it may not fit into memory; None for
            methods that know the mean alone.
    """

    mean: xr.DataArray
    status: Mapping[str, ForecastStatus]
    fits: Mapping[str, Any] = field(default_factory=dict)
    discrepancy: xr.DataArray | None = None
    blocks: Blocks | None = None


def with_intervals(
    points: Callable[[Copies, np.ndarray], Points],
    name: str,
    past: xr.Dataset,
    learned: xr.Dataset,
    at: np.ndarray,
    shares: Sequence[float] = SHARES,
    by_position: bool = True,
) -> Forecast:
    """The forecast of a method at tokens `at`, with quantiles and draws where the past allows one origin or more.

    Args:
        points: (copies, tokens) -> what the method says there of every split and its copies. name: of the method.
        past: the whole past. learned: the checkpoints of it that the method may see. shares: of the origins.
        by_position: whether the surface is wanted beside the mean.
    """
    splits, seen, cutoff = learned.split.values.tolist(), learned.tokens.values, float(past.tokens[-1])
    places = origins(seen, cutoff, shares)
    copies = Copies(tuple(places), len(shares) if places else 0)
    of_all = points(copies, np.concatenate([seen, at]) if places else at)
    mean, discrepancy = (
        None if values is None else values.sel(split=splits).isel(tokens=slice(-len(at), None))
        for values in (of_all.mean, of_all.discrepancy)
    )
    assert mean is not None
    status = {split: of_all.status[split] for split in splits}
    own = Forecast(name, cutoff, mean, None, status, _without_origins(of_all.fits, splits))
    intervals = dict.fromkeys(splits, NONE)
    width = _Width.of(mean_loss(learned), of_all.mean, places) if places else None  # s and w^2
    if width is not None:
        for split in splits:
            count = int(width.origins.sel(split=split))
            intervals[split] = f"rolling origins ({count})" if count else NONE
            if bool(mean.sel(split=split).isnull().all()):
                intervals[split] = "none: no forecast"
    own = replace(own, intervals=intervals)
    known = width is not None and bool((width.origins > 0).any())  # else there are points only
    if by_position and of_all.blocks is not None:
        own = replace(own, **_surface(of_all.blocks, learned.loss, splits, len(at), places, cutoff, known))
    if width is None or not known:
        return own
    draws = _draws(mean, discrepancy, cutoff, width)
    every = population_quantiles(past, draws)
    return replace(own, draws=draws, quantiles=quantiles(draws), population_quantiles=every)


def _surface(
    blocks: Blocks, loss: xr.DataArray, splits: list[str], ahead: int, places: Sequence[int], cutoff: float, known: bool
) -> dict[str, xr.DataArray | None]:
    """The fields of a forecast by position at the last `ahead` tokens, with quantiles where they are known."""
    parts: dict[str, list[xr.DataArray]] = {"surface": [], "model_discrepancy_sd": [], "surface_quantiles": []}
    for positions, predicted, sd in blocks():
        surface = predicted.sel(split=splits).isel(tokens=slice(-ahead, None))
        parts["surface"].append(surface)
        if sd is not None:
            parts["model_discrepancy_sd"].append(sd.sel(split=splits).isel(tokens=slice(-ahead, None)))
        if known:
            width = _Width.of(loss.isel(position=positions), predicted, places)
            own = None if sd is None else parts["model_discrepancy_sd"][-1]
            parts["surface_quantiles"].append(_surface_quantiles(surface, own, cutoff, width))
    return {name: xr.concat(of_blocks, "position") if of_blocks else None for name, of_blocks in parts.items()}


# --------------------------------------------------------------------------------- one surface of all origins, and back


def origins(tokens: np.ndarray, cutoff: float, shares: Sequence[float]) -> list[int]:
    """Places in tokens, increasing, of the last checkpoints that are seen from each origin."""
    last = {int(np.searchsorted(tokens, share * cutoff, side="right")) - 1 for share in shares}
    return sorted(place for place in last if FEWEST - 1 <= place < len(tokens) - 1)


def _name(split: Any, place: int) -> str:
    return f"{split}, first {place + 1}"


@dataclass(frozen=True)
class Copies:
    """What is known at each origin, as further splits.

    Attributes:
        places: of the origins, see `origins`. count: copies of each split: those beyond `places` are all NaN, so that
            cut-offs with fewer origins share the compiled programs.
    """

    places: tuple[int, ...] = ()
    count: int = 0

    def of(self, values: xr.DataArray) -> xr.DataArray:
        """The values (split, tokens, ...), and after them those of each origin as further splits, NaN beyond it."""
        if not self.count:
            return values
        order, splits = xr.DataArray(np.arange(values.sizes["tokens"]), dims="tokens"), values.split.values
        cuts = [*self.places, *range(-1, len(self.places) - self.count - 1, -1)]  # below 0: all NaN
        earlier = [values.where(order <= k).assign_coords(split=[_name(split, k) for split in splits]) for k in cuts]
        return xr.concat([values, *earlier], "split")


def _without_origins(fits: Mapping[str, Any], splits: Sequence[str]) -> dict[str, Any]:
    """The fits of these splits alone."""
    own = {}
    for name, fit in fits.items():
        arrays = {key: values for key, values in vars(fit).items() if isinstance(values, xr.DataArray)}
        own[name] = replace(fit, **{key: a.sel(split=a.split.isin(splits)) for key, a in arrays.items()})
    return own


# ------------------------------------------------------------------------------------------------------- how wide it is


@dataclass(frozen=True)
class _Width:
    """s, w^2 and how many origins they rest on, each (split,) or (split, position)."""

    rate: xr.DataArray
    white: xr.DataArray
    origins: xr.DataArray

    @classmethod
    def of(cls, observed: xr.DataArray, predicted: xr.DataArray, places: Sequence[int]) -> _Width:
        """From the past (split, tokens, ...), and what was forecast of it with the splits of all origins."""
        observed = observed.reset_coords(drop=True)
        splits, last = observed.split.values, observed.sizes["tokens"] - 1
        of_past = predicted.isel(tokens=slice(last + 1)).assign_coords(tokens=observed.tokens)
        rates: list[xr.DataArray] = []
        at_origin: list[xr.DataArray] = []
        for place in (*places, last):
            names = splits if place == last else [_name(split, place) for split in splits]
            error = observed - of_past.sel(split=names).assign_coords(split=splits)
            at_origin.append(error.isel(tokens=place, drop=True))  # of a checkpoint that was seen: the bias of the fit
            if place != last:  # beyond the whole past nothing is known
                rates.append(_rate(error, place))
        rate = xr.concat(rates, "origin")
        scatter, bias = _scatter(observed), (xr.concat(at_origin, "origin") ** 2).mean("origin").fillna(0)
        return cls((rate**2).mean("origin") ** 0.5, bias.where(bias > scatter, scatter), rate.notnull().sum("origin"))

    def grown(self, tokens: xr.DataArray, cutoff: float, discrepancy: xr.DataArray | None) -> xr.DataArray:
        """sqrt((s h)^2 + d^2) at the tokens (token,)."""
        folds = np.log(tokens / cutoff).clip(min=0)  # h, in e-folds of tokens
        return ((self.rate * folds) ** 2 + (0 if discrepancy is None else discrepancy**2)) ** 0.5

    @property
    def freedom(self) -> xr.DataArray:
        """Degrees of freedom of T."""
        return (self.origins - 1).clip(min=2)  # the 95 % quantile of T is 6.3 at 1, 2.9 at 2


def _rate(error: xr.DataArray, place: int) -> xr.DataArray:
    """Error for each e-fold of tokens beyond an origin (split, ...), over the last third of the checkpoints there:

    sum error / sum h, so that a checkpoint just beyond the origin, where h is small, does not count for much.
    """
    later = error.sizes["tokens"] - 1 - place
    last = error.isel(tokens=slice(-max(later // 3, 1), None))  # one checkpoint at least
    folds = np.log(last.tokens / float(error.tokens[place])).where(last.notnull()).sum("tokens")
    return last.sum("tokens") / folds.where(folds > 0)


def _scatter(observed: xr.DataArray) -> xr.DataArray:
    """Variance (split, ...) of the later half of the checkpoints about the line, in log tokens, of their neighbours.

    With the share p of the way, y1 - (1 - p) y0 - p y2 has (1 + p^2 + (1 - p)^2) times the variance of one checkpoint.
    """
    count = observed.sizes["tokens"]
    late = observed.isel(tokens=slice(min(count // 2, count - 3), None))  # three at least, for one with neighbours
    x = np.log(late.tokens)
    (y0, y1, y2), (x0, x1, x2) = ([values.shift(tokens=k) for k in (2, 1, 0)] for values in (late, x))
    share = (x1 - x0) / (x2 - x0)  # p
    line = (1 - share) * y0 + share * y2
    return ((y1 - line) ** 2 / (1 + share**2 + (1 - share) ** 2)).mean("tokens").fillna(0)


def _draws(mean: xr.DataArray, discrepancy: xr.DataArray | None, cutoff: float, width: _Width) -> xr.DataArray:
    """(draw, split, tokens). The second half mirrors the first, so that the median is the forecast."""
    half = 0.5 + (np.arange(DRAWS // 2) + 0.5) / DRAWS  # upper half of even probabilities, for T
    z = np.random.default_rng(11).standard_normal((DRAWS // 2, mean.sizes["split"], mean.sizes["tokens"]))
    t = stdtrit(width.freedom.values, half[:, None])[:, :, None]  # (DRAWS / 2, split, 1): one number for all tokens
    grown = width.grown(mean.tokens, cutoff, discrepancy).transpose("split", "tokens")
    error = t * grown.values + z * width.white.values[:, None] ** 0.5  # T sqrt((s h)^2 + d^2) + w Z
    draws = mean + xr.DataArray(np.concatenate([error, -error]), dims=("draw", "split", "tokens"))
    return draws.transpose("draw", "split", "tokens")


def _surface_quantiles(
    surface: xr.DataArray, discrepancy: xr.DataArray | None, cutoff: float, width: _Width
) -> xr.DataArray:
    """(split, tokens, position, quantile), as if both kinds of error were Student's."""
    grown = width.grown(surface.tokens, cutoff, discrepancy)
    q = xr.DataArray(np.array(QUANTILES), {"quantile": np.array(QUANTILES)}, "quantile")
    t = xr.apply_ufunc(stdtrit, width.freedom, q)
    at_quantile = surface + t * (grown**2 + width.white) ** 0.5
    return at_quantile.transpose("split", "tokens", "position", "quantile")
