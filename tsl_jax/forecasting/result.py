"""What a forecast gives back: the expected rest of a run, how sure it is, and what speaks against it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import xarray as xr

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)  # the ends of the 90 and the 50 % interval, and the median


@dataclass(frozen=True)
class Forecast:
    """What is expected of the rest of a run.

    Attributes:
        method: how it was made. cutoff: tokens of the last checkpoint that was seen.
        mean: DataArray (split, tokens), nats: the mean loss over positions; NaN where the method found no forecast.
        surface: DataArray (split, tokens, position), or None for methods that know the mean alone.
        status: split -> "ok", or a sentence that says what is wrong or doubtful.
        fits: what it rests on, by name; the temporal ones hold the splits that have a forecast.
        quantiles: DataArray (split, tokens, quantile) of the mean loss on these validation texts; None where the past
            is too short to know errors. surface_quantiles: the same by position. population_quantiles: of the mean
            loss on all texts of this kind, wider by the error of the validation set.
        draws: DataArray (draw, split, tokens) of the mean loss, from which the quantiles are read.
        intervals: split -> what their width rests on: "model-based", "checked on n siblings", "rolling origins (n)",
            or "none" and why.
        doubt: DataArray (split, tokens, position), or None: how far off a method itself says that it may be.
    """

    method: str
    cutoff: float
    mean: xr.DataArray
    surface: xr.DataArray | None
    status: Mapping[str, str]
    fits: Mapping[str, Any] = field(default_factory=dict, repr=False)
    quantiles: xr.DataArray | None = None
    surface_quantiles: xr.DataArray | None = None
    population_quantiles: xr.DataArray | None = None
    draws: xr.DataArray | None = None
    intervals: Mapping[str, str] = field(default_factory=dict, repr=False)
    doubt: xr.DataArray | None = None

    def __repr__(self) -> str:
        ends = ", ".join(f"{split} {self._end(split)}" for split in self.mean.split.values)
        last = float(self.mean.tokens[-1])
        doubts = [f"{split}: {text}" for split, text in self.status.items() if text != "ok"]
        head = f"{self.method} from {self.cutoff:.4g} tokens · mean loss at {last:.4g} tokens: {ends} nats"
        return " · ".join([head, *doubts])

    def _end(self, split: str) -> str:
        """The last value, with its 90 % interval where there is one."""
        value = f"{float(self.mean.sel(split=split)[-1]):.3f}"
        if self.quantiles is None:
            return value
        low, high = (float(self.quantiles.sel(split=split, quantile=q)[-1]) for q in (0.05, 0.95))
        return f"{value} ({low:.3f} to {high:.3f})"
