"""What a forecast gives back: the predicted rest of a run, its intervals, and what speaks against it.

A forecast never raises for one bad split: its numbers are NaN and its `ForecastStatus` says why, as data (flags to test
for) and in words (details to read). The quantiles of draws, which several methods share, are taken here too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntFlag, auto
from html import escape
from importlib import import_module
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from tsl_jax.surface import position_noise

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)  # the ends of the 90 and the 50 % interval, and the median
SHOWN = 3  # token counts that the printed form of a forecast names; of more, the first and the last


class ForecastFlag(IntFlag):
    """What speaks against a forecast; 0 where nothing does. With the first three its numbers are NaN."""

    NO_FORECAST = auto()  # too few checkpoints, positions or fits, or a learning rate that cannot be read
    NOT_APPLICABLE = auto()  # the method does not serve this learning-rate schedule
    DISCARDED = auto()  # the prediction exceeds any plausible loss, or is not finite
    BELOW_ZERO = auto()  # some predicted loss is negative
    ABOVE_OBSERVED = auto()  # some predicted loss is twice the highest observed one or more
    INCOMPLETE_PAST = auto()  # checkpoints that lack the loss of a position were left out of the fit
    INCOMPLETE_FUTURE = auto()  # the same of the unseen checkpoints: in scores only
    FIT_NOT_CONVERGED = auto()  # a law that the forecast rests on has another status than CONVERGED
    COSINE_NOT_IDENTIFIED = auto()  # the hyperbola stands in for the cosine piece of the paper's law
    JOINT_NOT_CONVERGED = auto()  # the joint fit of all parameters stopped at its iteration limit
    SAMPLER_NOT_CONVERGED = auto()  # the posterior rests on too few effective draws
    REFERENCE_RUNS_IGNORED = auto()  # some reference runs have other positions
    PAST_THINNED = auto()  # of very many checkpoints some were picked, and the others left out of the fit
    RATE_UNKNOWN = auto()  # the learning rate falls, and how it goes on is not known
    BEYOND_PLAN = auto()  # tokens beyond the end of the learning-rate plan
    LOSS_RISES = auto()  # the loss has been rising: divergence, overfitting, other data; laws that fall do not know it
    TOO_WIDE = auto()  # the 90 % interval says nothing


NOTHING = ForecastFlag(0)
Reason = tuple[ForecastFlag, str]


@dataclass(frozen=True)
class ForecastStatus:
    """Whether a forecast can be trusted: `flags` for programs, `details` (a sentence each) for people.

    `str(status)` is "ok" or the sentences.
    """

    flags: ForecastFlag = NOTHING
    details: tuple[str, ...] = ()

    @classmethod
    def of(cls, reasons: Iterable[Reason]) -> ForecastStatus:
        """From pairs of a flag and its sentence; ok without any."""
        flags, details = NOTHING, []
        for flag, detail in reasons:
            flags |= flag
            details.append(detail)
        return cls(flags, tuple(details))

    def __or__(self, other: ForecastStatus) -> ForecastStatus:
        return ForecastStatus(self.flags | other.flags, self.details + other.details)

    @property
    def ok(self) -> bool:
        """Whether nothing speaks against the forecast."""
        return self.flags == 0

    def message(self) -> str:
        """What is wrong or doubtful, in words; "ok" where nothing is."""
        return ", ".join(self.details) or "ok"

    def __str__(self) -> str:
        return self.message()


@dataclass(frozen=True)
class Forecast:
    """What is expected of the rest of a run.

    Attributes:
        method: its name, as in `METHODS`. cutoff: tokens of the last checkpoint that was seen.
        mean: DataArray (split, tokens), nats: the mean loss over positions; NaN where the method found no forecast.
        surface: DataArray (split, tokens, position), or None for methods that know the mean alone.
        status: split -> `ForecastStatus`.
        fits: curve -> its fit in all splits. The curves: "mean" for laws of the mean loss; "position" (the hyperbolic
            law at every checkpoint), "a0", "a1", "a2", "a2_hyperbola" and "joint" for laws by position. A fit is a
            `Fit` or `JointFit` with dimension split (those that have a forecast), or, of methods that know the
            learning rate, a mapping split -> `Extrapolation`.
        quantiles: DataArray (split, tokens, quantile) of the mean loss on these validation texts; None where the past
            is too short to know errors. surface_quantiles: the same by position. population_quantiles: of the mean
            loss on all texts of this kind, wider by the error of the validation set.
        draws: DataArray (draw, split, tokens) of the mean loss, from which the quantiles are read.
        intervals: split -> what their width rests on: "model-based", "calibrated on n reference runs",
            "rolling origins (n)", or "none" and why.
        model_discrepancy_sd: DataArray (split, tokens, position), or None: sd of the error that a method knows its
            law to make, beyond what its errors from earlier origins show.
        notes: sentences on what was assumed, the learning rate to come first, and on how the rows were used.
    """

    method: str
    cutoff: float
    mean: xr.DataArray
    surface: xr.DataArray | None
    status: Mapping[str, ForecastStatus]
    fits: Mapping[str, Any] = field(default_factory=dict, repr=False)
    quantiles: xr.DataArray | None = None
    surface_quantiles: xr.DataArray | None = None
    population_quantiles: xr.DataArray | None = None
    draws: xr.DataArray | None = None
    intervals: Mapping[str, str] = field(default_factory=dict, repr=False)
    model_discrepancy_sd: xr.DataArray | None = None
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Every split at every token count asked for, in order; of more than SHOWN at the first and the last."""
        tokens = np.sort(self.mean.tokens.values)
        shown = tokens if len(tokens) <= SHOWN else tokens[[0, -1]]
        ends = [f"at {at:.4g} tokens: {', '.join(self._value(s, at) for s in self.status)} nats" for at in shown]
        head = f"{self.method} from {self.cutoff:.4g} tokens · mean loss {' · '.join(ends)}"
        return " · ".join([head, *(f"{split}: {status}" for split, status in self.status.items() if not status.ok)])

    @property
    def usable(self) -> dict[str, bool]:
        """Split -> whether it has a forecast at all; `status` says what else speaks against it."""
        return {split: bool(np.isfinite(self.mean.sel(split=split)).all()) for split in self.status}

    def to_dataframe(self) -> pd.DataFrame:
        """A row a split and token count: the mean loss, the ends of its 50 and 90 % intervals, the status in words."""
        mean = self.mean.sortby("tokens")
        rows = mean.stack(row=("split", "tokens"))
        columns: dict[str, Any] = {"split": rows.split.values, "tokens": rows.tokens.values, "mean": rows.values}
        if self.quantiles is not None:
            ends = self.quantiles.sortby("tokens").stack(row=("split", "tokens"))
            names = {0.05: "low90", 0.25: "low50", 0.75: "high50", 0.95: "high90"}
            columns |= {name: ends.sel(quantile=q).values for q, name in names.items()}
        columns["status"] = [str(self.status[split]) for split in rows.split.values.tolist()]
        return pd.DataFrame(columns)

    def report(self) -> str:
        """The forecast as text: every split at every token count asked for, and what speaks against it."""
        head = f"{self.method}: mean loss in nats/token, from the checkpoints up to {self.cutoff:.4g} tokens"
        table = self.to_dataframe().drop(columns="status")
        table = table.assign(tokens=[f"{tokens:.4g}" for tokens in table["tokens"]]).set_index(["split", "tokens"])
        notes = [*self.notes, *(f"{split}: {status}" for split, status in self.status.items() if not status.ok)]
        notes += [f"{split}: intervals {basis}" for split, basis in self.intervals.items()]
        return "\n".join([head, table.to_string(float_format="{:.4f}".format), *notes])

    def _repr_html_(self) -> str:
        """The report as a table, for notebooks."""
        lines = [escape(line) for line in self.report().splitlines()]
        return f"<b>{lines[0]}</b><pre>" + "\n".join(lines[1:]) + "</pre>"

    def plot(self, observed: xr.DataArray | None = None, split: str | None = None) -> Any:
        """A matplotlib figure of one split: the forecast with its 50 and 90 % intervals, over the observed losses.

        Args:
            observed: mean losses (split, tokens) or (tokens,), such as `surface.loss.mean("position")`. split: default
                the first.
        """
        # drawn by the layer above, which this one must not know when it is imported
        return import_module("tsl_jax.reporting.plots").fan(self, observed, split)

    def _value(self, split: str, at: float) -> str:
        """The mean loss, with its 90 % interval where there is one."""
        where = {"split": split, "tokens": at}
        value = f"{split} {float(self.mean.sel(where)):.3f}"
        if self.quantiles is None:
            return value
        low, high = (float(self.quantiles.sel(where).sel(quantile=q)) for q in (0.05, 0.95))
        return f"{value} ({low:.3f} to {high:.3f})"


def quantiles(draws: xr.DataArray) -> xr.DataArray:
    """QUANTILES of draws (draw, ...), as the last dimension; NaN where a draw is."""
    dims = [dim for dim in draws.dims if dim != "draw"]
    return draws.quantile(QUANTILES, "draw", skipna=False).transpose(*dims, "quantile")


def mixture(forecasts: Sequence[Forecast], past: xr.Dataset) -> Forecast:
    """One forecast of several by one method, of equal weight: the draws of the mean of all; the first's fits.

    A surface by position keeps the first's median; its quantiles are the outermost of all.
    """
    first = forecasts[0]
    draws = xr.concat([made.draws for made in forecasts if made.draws is not None], "draw")
    mean_quantiles = quantiles(draws)
    status, surface_quantiles = dict(first.status), first.surface_quantiles
    for made in forecasts[1:]:
        for split, own in made.status.items():
            if own != status[split]:
                status[split] = status[split] | own
        if surface_quantiles is not None and made.surface_quantiles is not None:
            lower = xr.DataArray(surface_quantiles["quantile"] < 0.5)
            outer = [f(surface_quantiles, made.surface_quantiles) for f in (np.minimum, np.maximum)]
            middle = surface_quantiles["quantile"] == 0.5
            surface_quantiles = surface_quantiles.where(middle, xr.where(lower, *outer)).transpose(
                *surface_quantiles.dims
            )
    return replace(
        first,
        mean=mean_quantiles.sel(quantile=0.5, drop=True),
        status=status,
        draws=draws,
        quantiles=mean_quantiles,
        surface_quantiles=surface_quantiles,
        population_quantiles=population_quantiles(past, draws),
        intervals={
            split: f"{basis}; a mixture of {len(forecasts)} learning rates to come"
            for split, basis in first.intervals.items()
        },
    )


def population_quantiles(past: xr.Dataset, draws: xr.DataArray) -> xr.DataArray | None:
    """Quantiles of the mean loss on all texts of this kind, from draws (draw, split, tokens) of that on these texts.

    The error from the choice of texts is normal and common to all tokens, with the variance

        sem^2 = mean over positions i, j of cov_ij = sum over documents c of (mean over i of noise_ci)^2,

    cov the covariance of the mean losses by position over documents, at the last checkpoint. None where the surface
    holds no sums by document.
    """
    if "cluster_sum" not in past:
        return None
    noise = position_noise(past.isel(tokens=[-1])).isel(tokens=0, drop=True)  # cov = noise' noise, over clusters
    sem = (noise.mean("position").fillna(0) ** 2).sum("cluster") ** 0.5
    normal = xr.DataArray(np.random.default_rng(9).standard_normal(draws.sizes["draw"]), dims=("draw",))
    return quantiles(draws + normal * sem.sel(split=draws.split))
