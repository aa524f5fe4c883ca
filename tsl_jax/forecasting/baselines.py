"""Forecasts from the mean loss alone, on the same checkpoints as the forecasts by position.

Two kinds. The usual ones: a power law with and without constant, a reciprocal, a logarithm, the last value. And the
controls, each temporal form of the position route fitted to the mean itself: only if the route by position beats these
do positions help, and not just flexibility. (RECIPROCAL is both.)

A checkpoint that lacks the loss of a position has no mean that compares with the others: it is left out, and said so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from tsl_jax import laws
from tsl_jax.fitting import Fit, Status, fit
from tsl_jax.laws import Law, Schedule

NEEDS_COSINE = "needs a cosine schedule"
BELOW_ZERO = "falls below zero, which no loss does"


@dataclass(frozen=True)
class Baseline:
    """A way to forecast the mean loss over tokens.

    Attributes:
        name: short name, as in tables. label: what to call it in a figure.
        law: the law for a plan, or None where it does not apply; a baseline without law repeats the last value.
        control: whether it is a temporal form of the position route, applied to the mean.
    """

    name: str
    label: str
    law: Callable[[Schedule | None], Law | None] | None
    control: bool = False

    def predict(
        self, mean: xr.DataArray, at: np.ndarray, plan: Schedule | None
    ) -> tuple[xr.DataArray, dict[str, str], dict[str, Any]]:
        """Forecast (split, tokens), status by split, and the fits, from mean (split, tokens), NaN where not known."""
        splits = mean.split.values.tolist()
        if mean.sizes["tokens"] == 0:
            return _constant(mean, at, np.nan), dict.fromkeys(splits, "no checkpoint past the warm-up"), {}
        if self.law is None:
            said = {split: left_out(mean.sel(split=split)) or "ok" for split in splits}
            return _constant(mean, at, _last(mean)), said, {}
        law = self.law(plan)
        if law is None:
            return _constant(mean, at, np.nan), dict.fromkeys(splits, NEEDS_COSINE), {}
        # weights by split, as the route by position has them: both then share the compiled program of a law
        found = fit(law, mean, over="tokens", weights=mean.notnull().astype(float))
        predicted = found.predict(at)
        return predicted, {split: _doubts(found, predicted, mean, split) for split in splits}, {"mean": found}


def mean_loss(surface: xr.Dataset) -> xr.DataArray:
    """Mean over positions (split, tokens), nats: the number that researchers watch. NaN where a position is."""
    return surface.loss.mean("position", skipna=False).transpose("split", "tokens")


def left_out(mean: xr.DataArray) -> str:
    """What to say of the checkpoints of mean (tokens,) that cannot be used; empty where all can."""
    missing = int(mean.isnull().sum())
    return f"{missing} of {mean.size} checkpoints lack positions and are left out" if missing else ""


def _last(mean: xr.DataArray) -> np.ndarray:
    """The last known value (split, 1); NaN where none is."""
    place = (mean.notnull() * np.arange(mean.sizes["tokens"])).argmax("tokens")
    return mean.isel(tokens=place).values[:, None]


def _doubts(found: Fit, predicted: xr.DataArray, mean: xr.DataArray, split: str) -> str:
    """ "ok", or what speaks against the forecast."""
    status = Status(int(found.status.sel(split=split)))
    below = BELOW_ZERO if bool((predicted.sel(split=split) < 0).any()) else ""
    how = "" if status == Status.CONVERGED else status.short
    return ", ".join(filter(None, (below, how, left_out(mean.sel(split=split))))) or "ok"


def _constant(mean: xr.DataArray, at: np.ndarray, values: Any) -> xr.DataArray:
    spread = np.broadcast_to(values, (mean.sizes["split"], len(at))).astype(float)
    return xr.DataArray(spread, {"split": mean.split.values, "tokens": at}, ("split", "tokens"))


def _cosine(plan: Schedule | None) -> Law | None:
    return laws.piecewise_cosine(plan) if plan is not None and plan.kind == "cosine" else None


POWER_LAW = Baseline("power", "power law with constant, on the mean", lambda plan: laws.POWER)
POWER_PURE = Baseline("power_pure", "power law without constant, on the mean", lambda plan: laws.POWER_PURE)
RECIPROCAL = Baseline("reciprocal", "reciprocal law on the mean", lambda plan: laws.RECIPROCAL, control=True)
LOGARITHMIC = Baseline("logarithmic", "logarithm on the mean", lambda plan: laws.LOGARITHMIC)
LAST = Baseline("last", "last value seen", None)
MEAN_LOG = Baseline("mean_log", "temporal log law on the mean", lambda plan: laws.LOG, control=True)
MEAN_COSINE = Baseline("mean_cosine", "temporal piecewise cosine on the mean", _cosine, control=True)

ALL = (POWER_LAW, POWER_PURE, RECIPROCAL, LOGARITHMIC, LAST, MEAN_LOG, MEAN_COSINE)
