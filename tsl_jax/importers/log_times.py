"""When the rows of a log were written, where it says so: in a column, or in the lines themselves.

A few times of a run are enough for its pace, and are kept in the attribute `times` of its surface: {"tokens": [...],
"seconds": [...], "clock": ...}, seconds since 1970, at most MOST of them, the first and the last among them. The clock
is "UTC" for numbers, which trackers count from 1970, and "log" for dates in words, which have no time zone: seconds of
these are as if they were of UTC.
"""

from __future__ import annotations

import datetime
import re
from typing import Any

import numpy as np

from tsl_jax.importers.log_roles import normal
from tsl_jax.importers.log_rows import LogRows, Rows

OF_LINES = "time of the line"  # the column of times that `line_scan` takes from lines
NAMES = ("timestamp", "wall_time", "time", "datetime", "date", "created_at")
DATE = re.compile(rb"(\d{4})-(\d\d)-(\d\d)[ T](\d\d):(\d\d):(\d\d)")
EPOCH = (1e9, 4e9)  # seconds from 2001 to 2096; milliseconds are a thousand times that
MOST = 32
FEWEST = 3


def line_time(line: bytes) -> float:
    """Seconds since 1970 of the first date in a line; NaN where there is none."""
    match = DATE.search(line)
    if match is None:
        return np.nan
    try:
        return datetime.datetime(*map(int, match.groups()), tzinfo=datetime.UTC).timestamp()  # pyright: ignore[reportArgumentType]
    except ValueError:
        return np.nan


def times_of(log: LogRows, rows: Rows, clock: np.ndarray) -> dict[str, Any]:
    """The attribute `times` of a run, of its rows and their clock; empty where fewer than FEWEST times are known.

    Times of an attempt that was abandoned count too: what is asked for is the pace.
    """
    for name in (OF_LINES, *(n for n in [*log.columns, *log.text] if normal(n) in NAMES)):
        if name in log.columns:
            seconds, of = log.columns[name][rows], "log" if name == OF_LINES else "UTC"
            known = np.flatnonzero(np.isfinite(seconds) & np.isfinite(clock))
            seconds = seconds[known]
            seconds = np.where(seconds > EPOCH[0] * 1000, seconds / 1000, seconds)
        elif name in log.text:
            known, of = np.unique(np.linspace(0, len(clock) - 1, MOST).astype(int)), "log"
            cells = log.text[name][rows]
            seconds = np.array([line_time(str(cells[k]).encode()) for k in known])
        else:
            continue
        good = (seconds > EPOCH[0]) & (seconds < EPOCH[1]) & np.isfinite(clock[known])
        known, seconds = known[good], seconds[good]
        if len(known) >= FEWEST and np.ptp(seconds) > 0:
            some = np.unique(np.linspace(0, len(known) - 1, MOST).astype(int))
            return {"times": {"tokens": clock[known[some]].tolist(), "seconds": seconds[some].tolist(), "clock": of}}
    return {}
