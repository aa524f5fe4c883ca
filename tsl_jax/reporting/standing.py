"""How far a run has come and how that is said; the later half of its checkpoints. Page and terminal share these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from tsl_jax.laws import Schedule


def plan(attrs: Mapping[str, Any]) -> Schedule | None:
    """The plan a surface carries, or None where it has none that can be read."""
    found = attrs.get("schedule")
    try:
        return found if isinstance(found, Schedule) else Schedule.from_plan(found)  # pyright: ignore[reportArgumentType]
    except (AttributeError, TypeError, ValueError):
        return None


def unfinished(surface: xr.Dataset | None) -> float | None:
    """Share of the planned tokens that the checkpoints have reached; None once it is all, or where no plan is known.

    Of a plan that is changed later than the last checkpoint only what was known by then counts, as for a forecast.
    """
    if surface is None or not surface.sizes["tokens"]:
        return None
    planned, last = plan(surface.attrs), float(surface.tokens[-1])
    share = 1.0 if planned is None else last / planned.known_at(last).total_tokens
    return share if share < 1 else None


def last_loss(share: float | None) -> str:
    """What the loss of the last checkpoint is called."""
    return "final loss" if share is None else "last loss so far"


def how_far(share: float) -> str:
    """An unfinished run in words."""
    return f"unfinished: {percent(min(share, 0.99))} of the plan"


def percent(cutoff: float) -> str:
    """A cut-off as people read it."""
    return f"{100 * cutoff:.3g}%" if cutoff < 0.095 else f"{100 * cutoff:.0f}%"


def late_median(values: Sequence[float | None] | np.ndarray) -> float:
    """Median of the known values among the later half of the checkpoints, by their number; NaN without any."""
    late = np.array([np.nan if value is None else value for value in values[len(values) // 2 :]], float)
    return float(np.nanmedian(late)) if np.isfinite(late).any() else float("nan")
