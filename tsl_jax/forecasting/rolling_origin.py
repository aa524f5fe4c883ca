"""Intervals for forecasts that give points: how far the method was off from earlier origins of the same past.

The past is cut at about 40, 50, 60, 70 and 80 % of the tokens seen, forecast from there, and compared with what came
until the cut-off. With h = log(tokens / tokens at the origin), errors are taken to grow in proportion to h:

    error(h) = T sqrt((s h)^2 + d^2) + w Z,    s^2 = mean over origins of (error / h)^2,

each error over h being that of the last third of the checkpoints beyond its origin. T is Student's with one degree of
freedom less than origins (they overlap), one number for all tokens of a draw; Z is normal, one number for each token.
w^2 is the larger of two: the scatter of each checkpoint about the line between its neighbours, and the mean square of
what the method is off at the last checkpoint that it has seen. d is `Forecast.model_discrepancy_sd`, or 0.
The fit's own errors, which take residuals for independent, are not used; nor is anything beyond the cut-off.

All origins are forecast at once, as further splits of one surface whose later checkpoints are NaN: no law is compiled
for them. Source: rolling-origin evaluation, Tashman, Out-of-sample tests of forecasting accuracy (2000).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from scipy.special import stdtrit

from tsl_jax.forecasting.baselines import mean_loss
from tsl_jax.forecasting.result import QUANTILES, Forecast, population_quantiles, quantiles

SHARES = (0.4, 0.5, 0.6, 0.7, 0.8)  # of the tokens seen, at which the past is cut
FEW_SHARES = (0.5, 0.7)  # for a method whose every origin costs much
FEWEST = 5  # checkpoints before an origin: one more than a temporal law has parameters
DRAWS = 512
NONE = "none: too few checkpoints"

# (surface, tokens) -> the method's forecast there, without intervals
Method = Callable[[xr.Dataset, np.ndarray], Forecast]


def with_intervals(
    method: Method, past: xr.Dataset, learned: xr.Dataset, at: np.ndarray, shares: Sequence[float] = SHARES
) -> Forecast:
    """The forecast of a method at tokens `at`, with quantiles and draws where the past allows one origin or more.

    Args:
        past: the whole past. learned: the checkpoints of it that the method may see. shares: of the origins.
    """
    splits = learned.split.values.tolist()
    places = _origins(learned.tokens.values, float(past.tokens[-1]), shares)
    if not places:
        return replace(method(learned, at), intervals=dict.fromkeys(splits, NONE))
    made = method(_copies(learned, places, len(shares)), np.concatenate([learned.tokens.values, at]))
    mine = _own(made, splits, len(at))
    width = _Width.of(mean_loss(learned), made.mean, places)
    known = {split: _basis(mine, int(width.origins.sel(split=split)), split) for split in splits}
    mine = replace(mine, intervals=known)
    if not bool((width.origins > 0).any()):
        return mine
    draws = _draws(
        mine.mean,
        None if mine.model_discrepancy_sd is None else mine.model_discrepancy_sd.mean("position"),
        mine.cutoff,
        width,
    )
    by_position = None if made.surface is None else _Width.of(learned.loss, made.surface, places)
    return replace(
        mine,
        draws=draws,
        quantiles=quantiles(draws),
        population_quantiles=population_quantiles(past, draws),
        surface_quantiles=None if by_position is None else _at_positions(mine, by_position),
    )


def _basis(mine: Forecast, origins: int, split: str) -> str:
    """What the width of the intervals rests on."""
    if bool(mine.mean.sel(split=split).isnull().all()):
        return "none: no forecast"
    return f"rolling origins ({origins})" if origins else NONE


# --------------------------------------------------------------------------------- one surface of all origins, and back


def _origins(tokens: np.ndarray, cutoff: float, shares: Sequence[float]) -> list[int]:
    """Places in tokens, increasing, of the last checkpoints that are seen from each origin."""
    last = {int(np.searchsorted(tokens, share * cutoff, side="right")) - 1 for share in shares}
    return sorted(place for place in last if FEWEST - 1 <= place < len(tokens) - 1)


def _name(split: Any, place: int) -> str:
    return f"{split}, first {place + 1}"


def _copies(learned: xr.Dataset, places: Sequence[int], count: int) -> xr.Dataset:
    """The losses, and after them those of each origin as further splits, NaN beyond it.

    They are `count` copies, the last ones all NaN, so that cut-offs with fewer origins share the compiled programs.
    """
    loss, order = learned.loss, xr.DataArray(np.arange(learned.sizes["tokens"]), dims="tokens")
    splits, cuts = learned.split.values, [*places, *range(-1, len(places) - count - 1, -1)]
    earlier = [loss.where(order <= k).assign_coords(split=[_name(split, k) for split in splits]) for k in cuts]
    return xr.Dataset({"loss": xr.concat([loss, *earlier], "split")})


def _own(made: Forecast, splits: Sequence[str], count: int) -> Forecast:
    """The forecast from the whole past at the last `count` tokens: without the origins, and without the past."""
    ahead = {
        name: None if (one := getattr(made, name)) is None else one.sel(split=splits).isel(tokens=slice(-count, None))
        for name in ("mean", "surface", "model_discrepancy_sd")
    }
    fits = {name: _of_splits(one, splits) for name, one in made.fits.items()}
    return replace(made, **ahead, fits=fits, status={split: made.status[split] for split in splits})


def _of_splits(found: Any, splits: Sequence[str]) -> Any:
    """A fit, of these splits alone."""
    arrays = {name: one for name, one in vars(found).items() if isinstance(one, xr.DataArray)}
    return replace(found, **{name: one.sel(split=one.split.isin(splits)) for name, one in arrays.items()})


# ------------------------------------------------------------------------------------------------------- how wide it is


@dataclass(frozen=True)
class _Width:
    """s, w^2 and how many origins they rest on, each (split,) or (split, position)."""

    rate: xr.DataArray
    white: xr.DataArray
    origins: xr.DataArray

    @classmethod
    def of(cls, observed: xr.DataArray, made: xr.DataArray, places: Sequence[int]) -> _Width:
        """From the past (split, tokens, ...), and what was forecast of it with the splits of all origins."""
        observed = observed.reset_coords(drop=True)
        splits, count = observed.split.values, observed.sizes["tokens"]
        seen = made.isel(tokens=slice(count)).assign_coords(tokens=observed.tokens)
        names = [[_name(split, place) for split in splits] for place in places]
        off = [observed - seen.sel(split=own).assign_coords(split=splits) for own in (*names, splits)]
        pairs = list(zip(off, (*places, count - 1), strict=True))
        rates = xr.concat([_rate(one, place) for one, place in pairs[:-1]], "origin")
        at_the_end = xr.concat([one.isel(tokens=place, drop=True) for one, place in pairs], "origin")
        scatter, bias = _scatter(observed), (at_the_end**2).mean("origin").fillna(0)
        return cls((rates**2).mean("origin") ** 0.5, bias.where(bias > scatter, scatter), rates.notnull().sum("origin"))

    def grown(self, tokens: xr.DataArray, cutoff: float, discrepancy: xr.DataArray | None) -> xr.DataArray:
        """sqrt((s h)^2 + d^2) at the tokens (token,)."""
        folds = np.log(tokens / cutoff).clip(min=0)
        return ((self.rate * folds) ** 2 + (0 if discrepancy is None else discrepancy**2)) ** 0.5

    @property
    def freedom(self) -> xr.DataArray:
        return (self.origins - 1).clip(min=2)


def _rate(off: xr.DataArray, place: int) -> xr.DataArray:
    """Error for each e-fold beyond an origin (split, ...), over the last third of the checkpoints there."""
    later = off.sizes["tokens"] - 1 - place
    last = off.isel(tokens=slice(-max(later // 3, 1), None))
    folds = np.log(last.tokens / float(off.tokens[place])).where(last.notnull()).sum("tokens")
    return last.sum("tokens") / folds.where(folds > 0)


def _scatter(observed: xr.DataArray) -> xr.DataArray:
    """Variance (split, ...) of the later half of the checkpoints about the line, in log tokens, of their neighbours."""
    count = observed.sizes["tokens"]
    late = observed.isel(tokens=slice(min(count // 2, count - 3), None))
    x = np.log(late.tokens)
    (first, here, last), (x0, x1, x2) = ([one.shift(tokens=k) for k in (2, 1, 0)] for one in (late, x))
    share = (x1 - x0) / (x2 - x0)
    line = (1 - share) * first + share * last
    return ((here - line) ** 2 / (1 + share**2 + (1 - share) ** 2)).mean("tokens").fillna(0)


def _draws(mean: xr.DataArray, discrepancy: xr.DataArray | None, cutoff: float, width: _Width) -> xr.DataArray:
    """(draw, split, tokens). The second half mirrors the first, so that the median is the forecast."""
    half = 0.5 + (np.arange(DRAWS // 2) + 0.5) / DRAWS
    z = np.random.default_rng(11).standard_normal((DRAWS // 2, mean.sizes["split"], mean.sizes["tokens"]))
    t = stdtrit(width.freedom.values, half[:, None])[:, :, None]
    grown = width.grown(mean.tokens, cutoff, discrepancy).transpose("split", "tokens")
    error = t * grown.values + z * width.white.values[:, None] ** 0.5
    draws = mean + xr.DataArray(np.concatenate([error, -error]), dims=("draw", "split", "tokens"))
    return draws.transpose("draw", "split", "tokens")


def _at_positions(mine: Forecast, width: _Width) -> xr.DataArray:
    """(split, tokens, position, quantile), as if both kinds of error were Student's."""
    assert mine.surface is not None
    grown = width.grown(mine.surface.tokens, mine.cutoff, mine.model_discrepancy_sd)
    q = xr.DataArray(np.array(QUANTILES), {"quantile": np.array(QUANTILES)}, "quantile")
    t = xr.apply_ufunc(stdtrit, width.freedom, q)
    found = mine.surface + t * (grown**2 + width.white) ** 0.5
    return found.transpose("split", "tokens", "position", "quantile")
