"""What speaks against a forecast whatever its method: a loss that rises, an interval that says nothing.

Every law here falls. A run that diverges, overfits, or reads other data since a while rises for longer than its scatter
explains, and then the end is not what a law says; how it goes on is not known.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from tsl_jax.forecasting.baselines import mean_loss
from tsl_jax.forecasting.result import Forecast, ForecastFlag, Reason

BLOCKS = 12  # of the rows, in tokens, whose medians are compared
FEWEST = 8  # rows, for which anything can be said
RISE = 0.01  # nats that a loss must rise by, beside its scatter
SIGMAS = 4.0  # standard errors of the difference of two medians
WIDEST = 1.0  # nats: a 90 % interval wider than this, and than
SHARE = 1.0  # this share of the loss, says nothing


def rising(past: xr.Dataset, split: str) -> list[Reason]:
    """The flag LOSS_RISES where the median of the last rows is above the least of those before by SIGMAS errors."""
    loss = mean_loss(past).sel(split=split)
    known = np.isfinite(loss.values)
    y, tokens = loss.values[known], loss.tokens.values[known].astype(float)
    if len(y) < FEWEST:
        return []
    blocks = [block for block in np.array_split(np.arange(len(y)), min(BLOCKS, len(y) // 2)) if len(block)]
    medians = np.array([np.median(y[block]) for block in blocks])
    least = int(np.argmin(medians))
    if least >= len(blocks) - 2:  # the last two blocks may be scatter
        return []
    # scatter of a row about its neighbours, robustly: differences have twice the variance
    scatter = 1.4826 * float(np.median(np.abs(np.diff(y)))) / np.sqrt(2)
    error = 1.25 * scatter * np.sqrt(1 / len(blocks[least]) + 1 / len(blocks[-1]))  # of medians
    rise, before = medians[-1] - medians[least], medians[-2] - medians[least]
    if rise <= RISE + SIGMAS * error or before <= RISE:  # the last block alone may be a spike
        return []
    since = float(tokens[blocks[least]].mean())
    return [
        (
            ForecastFlag.LOSS_RISES,
            f"the loss of {split} rises since {since:.3g} tokens, from {medians[least]:.3f} to {medians[-1]:.3f} nats "
            "(divergence, overfitting, other data?): laws that fall do not know where it ends",
        )
    ]


def too_wide(made: Forecast, split: str) -> list[Reason]:
    """The flag TOO_WIDE where the 90 % interval at the furthest tokens says nothing."""
    if made.quantiles is None:
        return []
    at = made.quantiles.sel(split=split).sortby("tokens").isel(tokens=-1)
    low, middle, high = (float(at.sel(quantile=q)) for q in (0.05, 0.5, 0.95))
    if not high - low > max(WIDEST, SHARE * abs(middle)):
        return []
    return [(ForecastFlag.TOO_WIDE, f"the 90 % interval, {low:.3g} to {high:.3g} nats, is too wide to be of use")]
