"""Rows of a log become curves: runs are separated, restarts stitched, rows of one checkpoint put together.

The clock (tokens, else steps) of the training losses says what happened, in the order of the rows. Where it falls, the
run was started again: rows of the earlier attempt from there on are its abandoned branch. Where it falls to its
beginning, another run starts. A clock that falls at every other row belongs to a table whose rows are in no order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from tsl_jax.importers.log_rows import SAYS_NAN, LogRows, Rows, any_loss, every, rises, rows_where

Repeated = Literal["last", "first", "mean", "apart"]
REPEATED: tuple[Repeated, ...] = ("last", "first", "mean", "apart")


@dataclass
class Curve:
    """The losses of one run or branch, by checkpoint.

    Attributes:
        name: appended to the run's name, empty for the run itself. clock: tokens, or steps, increasing.
        loss: (checkpoint, split), NaN where not measured. step, lr: where known.
        line: a line of each checkpoint, 0 where not known.
        rows: rows of the log that took part.
    """

    name: str
    clock: Float[np.ndarray, " checkpoint"]
    loss: Float[np.ndarray, "checkpoint split"]
    step: Float[np.ndarray, " checkpoint"] | None
    lr: Float[np.ndarray, " checkpoint"] | None
    line: Int[np.ndarray, " checkpoint"]
    rows: int = 0


@dataclass
class RunRecords:
    """The rows of one run before stitching, in the order of the log; `splits` names the columns of `loss`."""

    log: LogRows
    splits: list[str]
    clock: np.ndarray
    loss: np.ndarray
    step: np.ndarray | None
    lr: np.ndarray | None
    line: np.ndarray
    micro: np.ndarray | None = None
    unit: str = "steps"
    evals: list[bool] = field(default_factory=list)

    def take(self, rows: Rows) -> RunRecords:
        """Some of the rows, in the order given."""
        some = {
            name: None if value is None else value[rows]
            for name, value in (("step", self.step), ("lr", self.lr), ("micro", self.micro))
        }
        kept = (self.clock[rows], self.loss[rows])
        return RunRecords(self.log, self.splits, *kept, line=self.line[rows], unit=self.unit, evals=self.evals, **some)


def stitch(records: RunRecords, repeated: Repeated) -> list[Curve]:
    """The curves of the rows of a log that are of one run, as far as the log says, or of several in turn."""
    log = records.log
    has_loss = any_loss(~np.isnan(records.loss))
    usable = np.isfinite(records.clock) & has_loss
    lost = has_loss & ~usable
    if lost.any():
        at = int(records.line[np.flatnonzero(lost)[0]])
        log.note("no_step", f"{int(lost.sum())} losses have no step: left out", at)
    if not usable.all():
        records = records.take(np.flatnonzero(usable))
    if not len(records.clock):
        return []
    _remove_bad_losses(records)
    present = ~np.isnan(records.loss)
    main = _main_split(records, present)
    if not present[:, main].any():
        return []
    of_main = rows_where(records.clock, present[:, main])
    if every(np.less_equal, of_main[:-1], of_main[1:]):
        return _nonempty([_merged(records, "", repeated)])
    rows = np.flatnonzero(present[:, main])
    falls = _falls(records, rows)
    if falls is None:
        note = "rows are in no order: sorted by step" if records.unit != "tokens" else "rows are in no order: sorted"
        log.note("sorted", note, 0, warning=False)
        return _nonempty([_merged(records, "", repeated)])
    starts = [0]
    restarts: list[list[int]] = [[]]
    first = records.clock[rows[0]]
    for fall in falls:
        if records.clock[rows[fall]] <= first:
            starts.append(_begin(records, present, rows, fall))
            restarts.append([])
            first = records.clock[rows[fall]]
        else:
            restarts[-1].append(int(rows[fall]))
    if len(starts) > 1:
        at = ", ".join(f"{int(records.line[start]):,}" for start in starts[1:6])
        where = f", at line {at}" if records.line[starts[1]] else ""
        log.note("several_runs", f"{len(starts)} runs stand one after the other: the step falls back{where}", 0, False)
    curves: list[Curve] = []
    for k, (start, of_run) in enumerate(zip(starts, restarts, strict=True)):
        stop = starts[k + 1] if k + 1 < len(starts) else len(records.clock)
        name = f"-{k + 1}" if len(starts) > 1 else ""
        run = records.take(slice(start, stop))
        curves += _without_abandoned(run, [row - start for row in of_run], name, repeated)
    return _nonempty(curves)


def _nonempty(curves: list[Curve]) -> list[Curve]:
    return [curve for curve in curves if len(curve.clock)]


def _begin(records: RunRecords, present: Bool[np.ndarray, "row split"], rows: np.ndarray, fall: int) -> int:
    """Where a new run begins: an evaluation at its first step may stand before its first training loss."""
    before, here = int(rows[fall - 1]), int(rows[fall])
    between = np.arange(before + 1, here)
    low = between[records.clock[between] <= records.clock[here]]
    return int(low[0]) if len(low) else here


def _main_split(records: RunRecords, present: Bool[np.ndarray, "row split"]) -> int:
    """The split whose clock tells restarts: training losses, which come in order, else the one with most rows."""
    counts = [np.count_nonzero(has_loss) for has_loss in present.T]
    training = [k for k in range(len(counts)) if not (records.evals and records.evals[k]) and counts[k] >= 3]
    return max(training or range(len(counts)), key=lambda k: counts[k])


def _falls(records: RunRecords, rows: Int[np.ndarray, " row"]) -> list[int] | None:
    """Where the clock of these rows falls, as indices into them; None where the rows are in no order at all."""
    clock = records.clock[rows]
    falls = np.flatnonzero(clock[1:] < clock[:-1]) + 1
    twice = len(np.unique(clock)) < len(clock)
    if len(falls) * 4 >= len(clock) and (not twice or len(falls) > 8):
        return None
    kept = []
    for fall in falls.tolist():
        # Two rows may change places where they are logged by several threads: no restart.
        near = clock[max(fall - 2, 0) : fall + 2]
        swapped = len(near) == 4 and np.ptp(np.diff(np.sort(near))) == 0 and near[0] < near[2] < near[1] < near[3]
        if not swapped:
            kept.append(fall)
    return kept


def _without_abandoned(run: RunRecords, restarts: list[int], name: str, repeated: Repeated) -> list[Curve]:
    """The curve of a run that was started again, and its abandoned branches where they are kept apart."""
    if not restarts:
        return [_merged(run, name, repeated)]
    order = np.arange(len(run.clock))
    abandoned = np.zeros(len(order), bool)
    later = np.zeros(len(order), bool)
    branches: list[np.ndarray] = []
    for row in restarts:
        begins = run.clock[row]
        branch = (order < row) & (run.clock >= begins) & ~abandoned
        branches.append(np.flatnonzero(branch))
        abandoned |= branch
        later |= (order >= row) & (run.clock <= run.clock[:row].max())
        _tell_restart(run, row, branches[-1], repeated)
    if repeated == "first":
        return [_merged(run.take(np.flatnonzero(~later)), name, repeated)]
    if repeated == "mean":
        return [_merged(run, name, repeated)]
    curves = [_merged(run.take(np.flatnonzero(~abandoned)), name, repeated)]
    if repeated == "apart":
        for k, branch in enumerate(branches, start=1):
            if len(branch):
                curves.append(_merged(run.take(branch), f"{name}-abandoned-{k}", "last"))
    return curves


def _tell_restart(run: RunRecords, row: int, branch: np.ndarray, repeated: Repeated) -> None:
    """A restart in one sentence: which rows are of the earlier attempt, and what became of them."""
    clock = run.step if run.step is not None and np.isfinite(run.step[branch]).all() else run.clock
    unit = "steps" if clock is run.step else run.unit
    low, high = (f"{value:,.10g}" for value in (clock[branch].min(), clock[branch].max())) if len(branch) else ("", "")
    rows = f"{len(branch)} row{'s' if len(branch) != 1 else ''} of an earlier attempt, {unit} {low} to {high}"
    again = bool(np.isin(run.clock[branch], run.clock[row:]).any())
    code = "restart" if again else "rollback"
    lines = run.line[branch]
    where = f" (lines {lines.min():,} to {lines.max():,})" if len(lines) and lines.min() else ""
    if repeated == "last":
        text = f"{rows}{where}, left out: --repeated first keeps them, --repeated apart makes a run of them"
    elif repeated == "first":
        text = f"{rows}{where}, kept; the rows that log these {unit} again are left out: --repeated last keeps those"
    elif repeated == "mean":
        text = f"{rows}{where}: losses at the same {unit.rstrip('s')} are averaged with those logged again"
    else:
        text = f"{rows}{where}, made a run of their own"
    run.log.note(code, f"{text}; the {unit.rstrip('s')} goes back to {clock[row]:,.10g}", int(run.line[row]))


def _remove_bad_losses(records: RunRecords) -> None:
    """Losses that are none become missing, with a sentence: NaN, infinite, exactly 0, negative."""
    log, loss = records.log, records.loss
    for k, split in enumerate(records.splits):
        values = loss[:, k]
        if every(lambda some: np.isnan(some) | ((some > 0) & (some < np.inf)), values):
            continue
        for code, bad, what in (
            ("nan_loss", values == SAYS_NAN, "NaN"),
            ("inf_loss", values == np.inf, "infinite"),
            ("zero_loss", values == 0, "exactly 0, which no cross-entropy of text is"),
            ("negative_loss", (values < 0) & (values != SAYS_NAN), "negative"),
        ):
            count = int(bad.sum())
            if not count:
                continue
            at = np.flatnonzero(bad)
            finite = np.flatnonzero(np.isfinite(values) & (values > 0))
            among = len(finite) > 0 and finite[-1] > at[0]
            present = int((~np.isnan(values)).sum())
            values[bad] = np.nan
            if code == "nan_loss" and among and count > 0.3 * present and present > 4:
                if not log.eval_rows:
                    found = f"{count} cells of {split} say NaN, more than are lost in a run: nothing was measured there"
                    log.note("nan_cells", found, int(records.line[at[0]]), warning=False)
                continue  # an export that writes NaN where nothing was measured
            step = f" from {records.unit.rstrip('s')} {records.clock[at[0]]:,.10g} on" if not among else ""
            some = "loss is" if count == 1 else "losses are"
            log.note(code, f"{count} {some} {what} ({split}){step}: missing", int(records.line[at[0]]))


def _merged(records: RunRecords, name: str, repeated: Repeated) -> Curve:
    """Rows of one clock as one checkpoint: those of training and of evaluation may stand on lines of their own."""
    rows = len(records.clock)
    if rises(records.clock) and any_loss(np.isfinite(records.loss)).all():
        return Curve(name, records.clock, records.loss, records.step, records.lr, records.line, rows)
    if not every(np.less_equal, records.clock[:-1], records.clock[1:]):
        records = records.take(np.argsort(records.clock, kind="stable"))
    groups = _Groups.by(records.clock)
    loss = np.empty((len(records.splits), np.count_nonzero(groups.first))).T
    differing = example = 0
    most = np.zeros(len(groups.several), np.int64)  # losses of one split at one checkpoint
    for k in range(len(records.splits)):
        values = records.loss[:, k]
        loss[:, k], count = groups.one_of_each(values, "mean" if records.micro is not None else repeated)
        most = np.maximum(most, count)
        differ = groups.differ(values) if (count > 1).any() else np.zeros(0, bool)
        if differ.any():
            differing += int(differ.sum())
            ends = np.append(groups.begins[1:], len(groups.rows)) - 1
            example = example or int(records.line[groups.rows[ends[np.argmax(differ)]]])
    if differing:
        _tell_repeated(records, differing, example, repeated)
    if len(groups.several) and not records.log.eval_rows:
        with_loss = any_loss(np.isfinite(records.loss[groups.rows])).astype(np.int64)
        if (apart := np.add.reduceat(with_loss, groups.begins) > most).any():
            found = f"{int(apart.sum())} checkpoints stand on several lines, each with some of the losses: put together"
            at = groups.rows[groups.begins[np.argmax(apart)]]
            records.log.note("several_lines", found, int(records.line[at]), warning=False)
    measured = any_loss(np.isfinite(loss))
    step, lr = (
        None if values is None else rows_where(groups.one_of_each(values, "last")[0], measured)
        for values in (records.step, records.lr)
    )
    clock, line = (rows_where(values, measured) for values in (records.clock[groups.first], records.line[groups.last]))
    return Curve(name, clock, rows_where(loss, measured), step, lr, line, rows)


@dataclass(frozen=True)
class _Groups:
    """Rows in groups of one clock, which follow each other.

    Attributes:
        first, last: which rows are the first and the last of their group.
        rows: those of groups that have several, which are few in most logs; begins: where each of these groups begins
            among them; of: the number of its group, from 0, of each; several: the same among all groups.
    """

    first: Bool[np.ndarray, " row"]
    last: Bool[np.ndarray, " row"]
    rows: Int[np.ndarray, " some"]
    begins: Int[np.ndarray, " several"]
    of: Int[np.ndarray, " some"]
    several: Int[np.ndarray, " several"]

    @staticmethod
    def by(clock: Float[np.ndarray, " row"]) -> _Groups:
        """The groups of rows whose clock does not fall."""
        first, last = np.ones((2, len(clock)), bool)
        np.greater(clock[1:], clock[:-1], out=first[1:])
        last[:-1] = first[1:]
        rows = np.flatnonzero(~(first & last))
        begins = np.flatnonzero(first[rows])
        others = np.cumsum(~first[rows])  # rows up to each that begin no group
        return _Groups(first, last, rows, begins, np.cumsum(first[rows]) - 1, (rows - others)[begins])

    def one_of_each(self, values: np.ndarray, which: str) -> tuple[np.ndarray, Int[np.ndarray, " several"]]:
        """The last, first or mean of the finite values of each group; and how many, in those of several rows."""
        chosen = values[self.first]
        chosen[~np.isfinite(chosen)] = np.nan
        some = values[self.rows]
        known = np.isfinite(some)
        of, some = rows_where(self.of, known), rows_where(some, known)
        count = np.bincount(of, minlength=len(self.several))
        one = np.full(len(self.several), np.nan)
        if which == "mean":
            np.divide(np.bincount(of, some, len(one)), count, out=one, where=count > 0)
        elif which == "first":
            one[of[::-1]] = some[::-1]  # of several the last that is assigned stays
        else:
            one[of] = some
        chosen[self.several] = one
        return chosen, count

    def differ(self, values: np.ndarray) -> Bool[np.ndarray, " several"]:
        """Which groups of several rows have finite values that are not the same."""
        some = values[self.rows]
        known = np.isfinite(some)
        high = np.maximum.reduceat(np.where(known, some, -np.inf), self.begins)
        return high > np.minimum.reduceat(np.where(known, some, np.inf), self.begins)


def _tell_repeated(records: RunRecords, count: int, line: int, repeated: Repeated) -> None:
    unit = records.unit.rstrip("s")
    if records.micro is not None:
        text = f"micro-batches: {count} {unit}s have several losses, and their mean is taken"
        records.log.note("micro_batches", text, line, warning=False)
        return
    kept = {"last": "the last is kept", "first": "the first is kept", "mean": "their mean is taken"}
    others = " or ".join(f"--repeated {other}" for other in ("last", "first", "mean") if other != repeated)
    chosen = kept.get(repeated, kept["last"])
    text = f"{count} {unit}{'s have' if count > 1 else ' has'} several different losses: {chosen} ({others} otherwise)"
    records.log.note("repeated", text, line)
