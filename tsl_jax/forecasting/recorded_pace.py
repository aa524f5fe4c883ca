"""At what time of day a run will have seen so many tokens, from the times that its log recorded.

    time(D) = t_last + (D - D_last)/pace,    pace = median of (D_k+1 - D_k)/(t_k+1 - t_k) over the later half of times

A median, so that a pause of the job or an evaluation does not count; the job is assumed to go on as it did, without a
pause. Times are those of the attribute `times` that `read_log` gives to surfaces.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

FEWEST = 2  # intervals between times


@dataclass(frozen=True)
class RecordedPace:
    """The pace of a run.

    Attributes:
        tokens_per_second: the median of the later half of the recorded times. tokens, seconds: the last time that was
            recorded, seconds since 1970. clock: "UTC", or "log" where the log says no time zone.
    """

    tokens_per_second: float
    tokens: float
    seconds: float
    clock: str

    def at(self, tokens: Any) -> Any:
        """Seconds since 1970 at which so many tokens have been seen, a number or an array; infinite for infinity."""
        return self.seconds + (tokens - self.tokens) / self.tokens_per_second

    def in_words(self, tokens: float) -> str:
        """`2026-11-29 14:05`, in the clock of the log; `later` for more tokens than dates have words for."""
        try:
            return datetime.datetime.fromtimestamp(self.at(tokens), datetime.UTC).strftime("%Y-%m-%d %H:%M")
        except (OverflowError, ValueError, OSError):
            return "later"

    def __str__(self) -> str:
        clock = "UTC" if self.clock == "UTC" else "the log's own clock"
        return f"{self.tokens_per_second:,.0f} tokens a second, {clock}"


def recorded_pace(surface: xr.Dataset) -> RecordedPace | None:
    """The pace of the run of a surface, as far as its checkpoints reach; None where it has no times.

    Raises:
        ValueError: for an attribute `times` that is none.
    """
    times = surface.attrs.get("times")
    if not times or not surface.sizes["tokens"]:
        return None
    try:
        tokens, seconds = (np.asarray(times[name], float) for name in ("tokens", "seconds"))
        clock = str(times["clock"])
    except (KeyError, TypeError, ValueError):
        found = "forecast: the attribute times must have tokens, seconds and clock"
        raise ValueError(f"{found}; import the log again") from None
    seen = tokens <= float(surface.tokens[-1])
    tokens, seconds = tokens[seen], seconds[seen]
    later = slice(len(tokens) // 2 if len(tokens) > 2 * FEWEST else 0, None)
    gained, took = np.diff(tokens[later]), np.diff(seconds[later])
    forward = (gained > 0) & (took > 0)  # not across a restart
    if forward.sum() < FEWEST:
        return None
    return RecordedPace(float(np.median(gained[forward] / took[forward])), float(tokens[-1]), float(seconds[-1]), clock)
