"""Forecasts from the mean loss alone, on the same checkpoints as the forecasts by position.

Two kinds. The usual ones: a power law with and without constant, a reciprocal, a logarithm, the last value. And the
controls, each temporal form of the position route fitted to the mean itself: only if the route by position beats these
do positions help, and not just flexibility. (RECIPROCAL is both.)

A checkpoint that lacks the loss of a position has no mean that compares with the others: it is left out, and the status
says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import xarray as xr

from tsl_jax import laws
from tsl_jax.fitting import Fit, Status, fit
from tsl_jax.fitting.problem import PAD
from tsl_jax.forecasting.result import ForecastFlag, ForecastStatus, Reason
from tsl_jax.laws import Law, Schedule

LONG, PADDED = 128, 1024  # checkpoints: fits of more than LONG are padded to PADDED
NEEDS_COSINE: Reason = ForecastFlag.NOT_APPLICABLE, "needs a cosine schedule"
BELOW_ZERO: Reason = ForecastFlag.BELOW_ZERO, "falls below zero, which no loss does"


@dataclass(frozen=True)
class Baseline:
    """A way to forecast the mean loss over tokens.

    Attributes:
        name: short name, as in tables.
        law: the law for a plan, or None where it does not apply; a baseline without law repeats the last value.
    """

    name: str
    law: Callable[[Schedule | None], Law | None] | None

    def predict(
        self, mean: xr.DataArray, at: np.ndarray, plan: Schedule | None
    ) -> tuple[xr.DataArray, dict[str, ForecastStatus], dict[str, Fit]]:
        """Forecast (split, tokens), status by split, and the fits, from mean (split, tokens), NaN where not known."""
        splits = mean.split.values.tolist()

        def constant(values: np.ndarray | float) -> xr.DataArray:
            filled = np.broadcast_to(values, (len(splits), len(at))).astype(float)
            return xr.DataArray(filled, {"split": mean.split.values, "tokens": at}, ("split", "tokens"))

        def statuses(*reasons: Reason) -> dict[str, ForecastStatus]:
            return dict.fromkeys(splits, ForecastStatus.of(reasons))

        if mean.sizes["tokens"] == 0:
            return constant(np.nan), statuses((ForecastFlag.NO_FORECAST, "no checkpoint past the warm-up")), {}
        incomplete = {split: incomplete_checkpoints(mean.sel(split=split)) for split in splits}
        if self.law is None:
            last_known = (mean.notnull() * np.arange(mean.sizes["tokens"])).argmax("tokens")
            return constant(mean.isel(tokens=last_known).values[:, None]), incomplete, {}
        law = self.law(plan)
        if law is None:
            return constant(np.nan), statuses(NEEDS_COSINE), {}
        # weights by split, as the route by position has them: both then share the compiled program of a law
        weights = mean.notnull().astype(float)
        mean_fit = fit(law, mean, over="tokens", weights=weights, points=padded(mean.sizes["tokens"]))
        predicted = predict(mean_fit, at)
        status = {}
        for split in splits:
            reasons: list[Reason] = [BELOW_ZERO] if bool((predicted.sel(split=split) < 0).any()) else []
            of_fit = Status(int(mean_fit.status.sel(split=split)))
            if of_fit != Status.CONVERGED:
                reasons.append((ForecastFlag.FIT_NOT_CONVERGED, of_fit.short))
            status[split] = ForecastStatus.of(reasons) | incomplete[split]
        return predicted, status, {"mean": mean_fit}


def padded(checkpoints: int) -> int:
    """How many points a fit over these checkpoints is padded to, at least.

    Compiling a law takes seconds, and fitting it to PADDED points less than a tenth of one: the cut-offs of a long run
    share one program.
    """
    return PADDED if checkpoints > LONG else 0


def predict(fitted: Fit, tokens: np.ndarray) -> xr.DataArray:
    """`fitted.predict(tokens)`, with the program of many tokens for few more and few fewer."""
    count = len(tokens)
    more = -count % (PADDED if count > LONG else PAD)
    return fitted.predict(np.pad(tokens, (0, more), mode="edge")).isel(tokens=slice(count))


def mean_loss(surface: xr.Dataset) -> xr.DataArray:
    """Mean over positions (split, tokens), nats: the number that researchers watch. NaN where a position is."""
    return surface.loss.mean("position", skipna=False).transpose("split", "tokens")


def incomplete_checkpoints(
    mean: xr.DataArray, flag: ForecastFlag = ForecastFlag.INCOMPLETE_PAST, where: str = ""
) -> ForecastStatus:
    """How many checkpoints of mean (tokens,) cannot be used, as a status; ok where all can."""
    missing = int(mean.isnull().sum())
    detail = f"{where}{missing} of {mean.size} checkpoints lack positions and are left out"
    return ForecastStatus(flag, (detail,)) if missing else ForecastStatus()


POWER_LAW = Baseline("power", lambda plan: laws.POWER)
POWER_PURE = Baseline("power_pure", lambda plan: laws.POWER_PURE)
RECIPROCAL = Baseline("reciprocal", lambda plan: laws.RECIPROCAL)
LOGARITHMIC = Baseline("logarithmic", lambda plan: laws.LOGARITHMIC)
LAST = Baseline("last", None)
MEAN_LOG = Baseline("mean_log", lambda plan: laws.LOG)
MEAN_COSINE = Baseline(
    "mean_cosine", lambda plan: laws.piecewise_cosine(plan) if plan and plan.kind == "cosine" else None
)

ALL = (POWER_LAW, POWER_PURE, RECIPROCAL, LOGARITHMIC, LAST, MEAN_LOG, MEAN_COSINE)
