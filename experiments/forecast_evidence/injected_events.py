"""Events put into real logs, simple rules of others beside which they are found, and the logs themselves.

A row of a log is one loss of one split: an evaluation, or a training loss. Logs whose curves belong to the locked test
set (`curves.py`) are test logs; of the others every second, by the hash of its name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import tsl_jax as tsl
from tsl_jax.forecasting.course import Course, Event, Rules
from tsl_jax.sweeps.archive import read_archive

KEPT = Path(__file__).parent.parent / "kept_runs"
LONG = 1000  # rows from which on a log is one of training losses, a row a step or nearly so
BEFORE, AFTER = 192, 64  # rows of a log that a trial looks at, before and after the event
LOCKED = ("100M", "760M", "1B", "base-locked-seeds")  # in names: sizes and seeds of the locked test set


@dataclass(frozen=True)
class Log:
    """The losses of one split of a run: tokens, loss and rate by row, the rate NaN where none is recorded."""

    data: str
    run: str
    split: str
    tokens: np.ndarray
    loss: np.ndarray
    lr: np.ndarray

    @property
    def name(self) -> str:
        return f"{self.data}/{self.run}/{self.split}"

    @property
    def kind(self) -> str:
        return "training losses" if len(self.loss) >= LONG else "evaluations"

    @property
    def part(self) -> str:
        """test or development, by the run: its splits stay together."""
        if any(word in f"{self.data}/{self.run}" for word in LOCKED):
            return "test"
        return "test" if hashlib.sha256(f"{self.data}/{self.run}".encode()).digest()[0] % 2 else "development"

    def rows(self, start: int, stop: int) -> Log:
        some = slice(max(start, 0), stop)
        return replace(self, tokens=self.tokens[some], loss=self.loss[some], lr=self.lr[some])


def read_logs(folder: Path | None) -> Iterator[Log]:
    """Every public log of the folder, and the kept runs; `mid_run_changes`, whose runs were changed, is not healthy."""
    if folder is not None:
        for pattern in ("multipower/*/*.csv", "gemstones/constant_lr*.jsonl", "megatron/*.json", "modded_nanogpt/*/*"):
            for path in sorted(folder.glob(pattern)):
                for run, surface in tsl.read_log(path).surfaces.items():
                    data = "/".join(path.relative_to(folder).parts[:2])
                    yield from _of(data, run if "gemstones" in pattern else path.stem, surface)
        for run, surface in tsl.read_log(folder / "lr_scheduling" / "runs.csv").surfaces.items():
            yield from _of("lr_scheduling", run, surface)
        ladder = {"loss": ["c4_en", "pile"], "run": ["size", "chinchilla_multiple", "rerun"]}
        for run, surface in tsl.read_log(folder / "olmo_ladder" / "runs.csv", **ladder).surfaces.items():
            yield from _of("olmo_ladder", run, surface)
    for path in sorted(KEPT.glob("*.parquet")):
        for run, surface in read_archive(path).items():
            yield from _of(f"own/{path.stem}", run, surface)


def _of(data: str, run: str, surface) -> Iterator[Log]:
    for split in surface.split.values.tolist():
        loss = surface.loss.sel(split=split).mean("position").values
        known = np.isfinite(loss)
        lr = surface.lr.values.astype(float) if "lr" in surface.coords else np.full(len(loss), np.nan)
        yield Log(data, run, split, surface.tokens.values[known].astype(float), loss[known], lr[known])


def replayed(log: Log, rules: Rules) -> list[tuple[int, Event]]:
    """(row at which it was said, event) of a whole log, one row at a time."""
    course, said = Course(log.split, rules), []
    for row in range(1, len(log.loss) + 1):
        said += [(row - 1, event) for event in course.update(log.tokens[:row], log.loss[:row], log.lr[:row])]
    return said


# ------------------------------------------------------------------------------------------------- rules of others


def six_sd(loss: np.ndarray) -> np.ndarray:
    """Rows above the mean of the last 128 by 6 standard deviations, once there are 64 (OLMo-core's skipped steps)."""
    flagged = np.zeros(len(loss), bool)
    for row in range(64, len(loss)):
        last = loss[max(0, row - 128) : row]
        flagged[row] = loss[row] > last.mean() + 6 * last.std(ddof=1)
    return flagged


def robust_z(loss: np.ndarray) -> np.ndarray:
    """Rows with 0.6745 |x - median|/MAD > 6 over the last 21 (trainspotter 0.2.6's spikes)."""
    flagged = np.zeros(len(loss), bool)
    for row in range(4, len(loss)):
        last = loss[max(0, row - 20) : row + 1]
        middle = np.median(last)
        mad = float(np.median(np.abs(last - middle)))
        flagged[row] = mad > 0 and 0.6745 * abs(loss[row] - middle) / mad > 6
    return flagged


OTHERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"6 sd over 128": six_sd, "robust z > 6": robust_z}


def groups(flagged: np.ndarray) -> int:
    """How many alarms flagged rows are: those next to each other are one."""
    return int((np.diff(np.flatnonzero(flagged), prepend=-9) > 2).sum())


# ------------------------------------------------------------------------------------------------ events put into logs


def scatter(loss: np.ndarray) -> float:
    """Robust standard deviation of a row about its neighbours, from second differences."""
    return 1.4826 * float(np.median(np.abs(np.diff(loss[-64:], 2)))) / np.sqrt(6)


def smooth(log: Log, width: int) -> np.ndarray:
    """The curve without its scatter: lines in log tokens through `width` rows about each."""
    x, out = np.log(np.maximum(log.tokens, 1.0)), np.empty(len(log.loss))
    for row in range(len(out)):
        near = slice(max(0, row - width // 2), row + width // 2 + 1)
        slope, level = np.polyfit(x[near] - x[row], log.loss[near], 1)
        out[row] = level + 0 * slope
    return out


def injected(log: Log, at: int, event: str, size: float) -> Log:
    """The log with an event at row `at`.

    spike: one row up by `size` nats, of training losses scatters. divergence: scatter x (exp(rows/size) - 1).
    data_switch: `size` nats from there on. plateau: the curve stays at its level, the scatter goes on.
    """
    loss, after = log.loss.copy(), np.arange(len(log.loss) - at)
    sd = max(scatter(log.loss[:at]), 1e-3)
    if event == "spike":
        loss[at] += size * (sd if log.kind != "evaluations" else 1.0)
    elif event == "divergence":
        loss[at:] += sd * np.expm1(np.minimum((after + 1) / size, 8.0))
    elif event == "data_switch":
        loss[at:] += size
    elif event == "plateau":
        curve = smooth(log, 129 if log.kind != "evaluations" else 9)
        loss[at:] += curve[at] - curve[at:]
    return replace(log, loss=loss)


def events_after(log: Log, at: int, rules: Rules) -> list[tuple[int, str]]:
    """(rows since row `at`, 1 for itself, and kind) of each event that is said within AFTER rows."""
    part = log.rows(at - BEFORE, at + AFTER)
    course, begin, said = Course(log.split, rules), min(at, BEFORE), []
    course.update(part.tokens[:begin], part.loss[:begin], part.lr[:begin])
    for row in range(begin + 1, len(part.loss) + 1):
        found = course.update(part.tokens[:row], part.loss[:row], part.lr[:row])
        said += [(row - begin, event.kind) for event in found]
    return said


def first_flag(log: Log, at: int, rule: Callable[[np.ndarray], np.ndarray]) -> float:
    """Rows until a rule of others flags one, as in `events_after`."""
    part = log.rows(at - BEFORE, at + AFTER)
    begin = min(at, BEFORE)
    rows = np.flatnonzero(rule(part.loss)[begin:])
    return float(rows[0] + 1) if len(rows) else np.nan


def rate_falls(log: Log, fewest: int = 16) -> int | None:
    """The row at which a rate that was constant for `fewest` rows begins to fall; None where it never does."""
    lr = log.lr
    if not np.isfinite(lr).all():
        return None
    below = np.flatnonzero(lr < 0.995 * lr.max())
    below = below[below > int(np.argmax(lr))]
    if not len(below) or below[0] < fewest:
        return None
    at = int(below[0])
    return at if (lr[at - fewest : at] >= 0.995 * lr.max()).all() else None
