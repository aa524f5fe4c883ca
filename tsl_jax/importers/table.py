"""Tables of losses measured elsewhere: each run of a CSV, Parquet or JSONL file becomes a loss surface.

A row is a checkpoint of a run, or one position of it where a column says which. Tables of trainers and published curves
know the mean over positions alone: such a surface has the one position 1, and says so in its attribute `loss_is`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from tsl_jax.importers.arrays import from_losses
from tsl_jax.importers.columns import missing, numbers, read_columns

MEAN = "mean over positions"
WHOLE_MOST = 9e15  # float64 counts exactly up to here
WHOLE = ("tokens", "step", "n_params", "position")  # columns that count
PLAN_ENTRIES = "a plan has kind, peak, warmup_tokens, total_tokens, and perhaps final_ratio and decay_start_tokens"


def read_table(
    path: str | Path,
    *,
    loss: str | Sequence[str] = "loss",
    tokens: str | None = "tokens",
    step: str | None = "step",
    lr: str | None = "lr",
    run: str | Sequence[str] = "run",
    n_params: str | None = "n_params",
    position: str | None = None,
    tokens_per_step: int | None = None,
    schedule: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    warmup_tokens: int | None = None,
    allow_missing: bool = False,
) -> dict[str, xr.Dataset]:
    """The runs of a table, each as a surface (split, tokens, position); rows may come in any order.

    Args:
        path: a .csv, .jsonl or .parquet file.
        loss: columns of losses, nats per token; each is a split of its name.
        tokens: column of training tokens seen. step, lr: columns that become coordinates on tokens.
        run: columns whose cells, joined by "-", name the run; without one the table is one run, named as the file.
        n_params: column with the parameters of the run's model, without embeddings.
        position: column of positions, from 1; every checkpoint of a run then has the same.
        tokens_per_step: where only steps are known, tokens = step * tokens_per_step; 1 makes steps the clock.
        schedule: the learning-rate plan (a mapping, or a list where it changed), as `Schedule.from_plan` reads it, a
            `Schedule`, or a mapping of runs to one of these.
        warmup_tokens: length of a warm-up that was over before the first row.
        allow_missing: drop rows without any loss, and let others lack some. With positions none is dropped.

    A column named as its role may be absent, but for losses, and tokens where steps do not give them; None passes it
    over.

    Returns:
        Name of the run -> surface, in the order of the table. Attrs, where known: run, n_params, schedule,
        warmup_tokens, batch_tokens (tokens_per_step), loss_is, and source, the file's name and sha256.

    Raises:
        ValueError: for columns, cells or options that make no sense; it names the run and the row, counted from 1
            without the header. OSError: if the file cannot be read.
    """
    path = Path(path)
    roles = {"tokens": tokens, "step": step, "lr": lr, "n_params": n_params, "position": position}
    losses, keys = ([names] if isinstance(names, str) else list(names) for names in (loss, run))
    table, runs = _read(path, roles, losses, keys, tokens_per_step)
    attrs: dict[str, Any] = {} if tokens_per_step is None else {"batch_tokens": tokens_per_step}
    attrs |= {} if position is not None else {"loss_is": MEAN}  # so that no page calls it a loss at position 1
    attrs["source"] = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    # All runs are read before any plan is looked at: a bad cell is the more likely mistake.
    surfaces = {name: surface_of(table, name, rows, allow_missing, attrs) for name, rows in runs.items()}
    add_plans(surfaces, schedule, warmup_tokens)
    return surfaces


def add_plans(surfaces: Mapping[str, xr.Dataset], schedule: Any, warmup_tokens: int | None) -> None:
    """Keep the plan and the warm-up of each run with its surface; see `read_table`.

    Raises:
        ValueError: for a plan that cannot be read or ends before its run, or a warm-up that rows are part of.
    """
    plans = _plans(schedule, list(surfaces))
    for name, surface in surfaces.items():
        first, last = int(surface.tokens[0]), int(surface.tokens[-1])
        if name in plans:
            plan, end = plans[name]
            if end < last:  # the plan of another run, or in other units
                found = f"run {name} has seen {last} tokens, its schedule ends at {end}"
                raise ValueError(f"table: {found}; give each run its own plan, as in run: plan")
            surface.attrs["schedule"] = plan
        if warmup_tokens is not None:
            if not 0 <= warmup_tokens <= first:
                found = f"run {name} begins at {first} tokens, within a warm-up of {warmup_tokens}"
                raise ValueError(f"table: {found}; a warm-up that rows are part of belongs into schedule")
            surface.attrs["warmup_tokens"] = warmup_tokens


@dataclass(frozen=True)
class Table:
    """The numbers of a file.

    Attributes:
        file: its name. columns: role -> (row,): tokens, and step, lr, n_params, position where known.
        loss: (row, split). splits: their names.
    """

    file: str
    columns: Mapping[str, np.ndarray]
    loss: np.ndarray
    splits: list[str]


def _read(
    path: Path, roles: Mapping[str, str | None], losses: list[str], keys: list[str], tokens_per_step: int | None
) -> tuple[Table, dict[str, np.ndarray]]:
    """The numbers of the table, with tokens from a column or from steps, and run -> rows."""
    named = {role: name for role, name in roles.items() if name is not None}
    names, cells = read_columns(path, list(dict.fromkeys([*losses, *named.values(), *keys])))
    keys = [] if keys == ["run"] and "run" not in cells else keys  # the default need not be there
    found = f"found {', '.join(names)}"
    # Columns named as their role may be absent, but for losses and positions.
    expected = [*losses, *keys, *(name for role, name in named.items() if name != role or role == "position")]
    absent = ", ".join(name for name in expected if name not in cells)
    if absent:
        fix = "name those that are there, as in loss= (--loss)"
        raise ValueError(f"table: {path.name}: expected {absent} among the columns, {found}; {fix}")
    named = {role: name for role, name in named.items() if name in cells}
    _check_tokens(path, named, tokens_per_step, found)
    runs = rows_of_runs(path, [cells[key] for key in keys], len(cells[losses[0]]))

    def read(name: str) -> np.ndarray:
        def refuse(k: int, word: str) -> None:
            run = next(run for run, rows in runs.items() if k in rows)
            raise ValueError(f"table: {path.name}, run {run}, row {k + 1}: {name} is {word!r}, expected a number")

        return numbers(cells[name], refuse)

    columns = {role: read(name) for role, name in named.items()}
    if tokens_per_step is not None:
        columns["tokens"] = columns["step"] * tokens_per_step  # exact in float64 up to 9e15
    return Table(path.name, columns, np.stack([read(name) for name in losses], axis=1), losses), runs


def _check_tokens(path: Path, named: Mapping[str, str], tokens_per_step: int | None, found: str) -> None:
    """Tokens come from a column or from steps, never from both."""
    if tokens_per_step is None:
        if "tokens" not in named:
            fix = "or give tokens_per_step= (--tokens-per-step; 1: steps are the clock)"
            found = f"{found}; name it with tokens= (--tokens), {fix}"
            raise ValueError(f"table: {path.name}: expected a column of tokens, {found}")
        return
    if tokens_per_step < 1 or tokens_per_step % 1:
        raise ValueError(f"table: tokens_per_step must be a whole number from 1, found {tokens_per_step}")
    if tokens_per_step > WHOLE_MOST:
        raise ValueError(f"table: tokens_per_step must be at most {WHOLE_MOST:g}, found {tokens_per_step:.3g}")
    if "tokens" in named:
        fix = "leave tokens_per_step out, or pass the column over with tokens=None (--tokens None)"
        raise ValueError(f"table: {path.name}: tokens_per_step beside a column of tokens, {named['tokens']}; {fix}")
    if "step" not in named:
        raise ValueError(f"table: {path.name}: tokens_per_step needs a column of steps, {found}; name it with step=")


def rows_of_runs(path: Path, keys: list[list[Any]], count: int) -> dict[str, np.ndarray]:
    """Name of the run -> its rows. Cells that are empty take no part in a name."""
    if not keys:
        return {path.stem: np.arange(count)}
    by_cells: dict[tuple[str, ...], list[int]] = {}
    for k, cells in enumerate(zip(*keys, strict=True)):
        by_cells.setdefault(tuple("" if missing(cell) else str(cell).strip() for cell in cells), []).append(k)
    runs: dict[str, np.ndarray] = {}
    for cells, rows in by_cells.items():
        name = "-".join(filter(None, cells))
        if not name or name in runs:  # (a, b-c) and (a-b, c) are two runs of one name
            what = f"a second run is called {name}" if name else "the run has no name"
            raise ValueError(f"table: {path.name}, row {rows[0] + 1}: {what}; name other columns with run= (--run)")
        if not name.isprintable():
            raise ValueError(f"table: {path.name}, row {rows[0] + 1}: the run {name!r:.80} has control characters")
        runs[name] = np.array(rows)
    return runs


def _plans(schedule: Any, runs: list[str]) -> dict[str, tuple[Any, int]]:
    """Run -> its plan as JSON has it, and where that ends, of the runs that have one."""
    if schedule is None:
        return {}
    from tsl_jax.schedules import Schedule  # late: it brings jax

    by_run: dict[str, Any] = dict.fromkeys(runs, schedule)  # one plan for all, unless it maps runs to plans
    plan_types = Mapping | list | tuple | Schedule
    if isinstance(schedule, Mapping) and all(isinstance(plan, plan_types) for plan in schedule.values()):
        by_run = {str(name): plan for name, plan in schedule.items()}
        unknown = [name for name in by_run if name not in runs]
        if unknown or len(by_run) < len(schedule):
            which = f"the run {unknown[0]}, expected one of {', '.join(runs[:20])}" if unknown else "a run twice"
            raise ValueError(f"table: schedule names {which}")
    plans: dict[str, tuple[Any, int]] = {}
    for name, plan in by_run.items():
        own: Any = plan.to_plan() if isinstance(plan, Schedule) else plan  # a surface keeps JSON values
        try:
            end = Schedule.from_plan(own).total_tokens
        except ValueError as error:
            raise ValueError(f"table: the schedule cannot be read ({error}); {PLAN_ENTRIES}") from None
        plans[name] = (dict(own) if isinstance(own, Mapping) else list(map(dict, own))), end
    return plans


@dataclass(frozen=True)
class RunRows:
    """A run of a table: its name and its rows, numbered from 0."""

    table: Table
    name: str
    rows: np.ndarray

    def values(self, role: str) -> np.ndarray:
        """A column, (row,)."""
        return self.table.columns[role][self.rows]

    @property
    def position(self) -> np.ndarray:
        """The position of each row, 1 where the table has none."""
        return self.values("position") if "position" in self.table.columns else np.ones(len(self.rows))

    def refuse(self, bad: np.ndarray, found: Callable[[int], str], fix: str) -> None:
        """An error about the first of the rows that are bad, if any is; found(k) says what stands there."""
        if bad.any():
            k = int(np.flatnonzero(bad)[0])
            where = f"{self.table.file}, run {self.name}, row {self.rows[k] + 1}"
            more = f" ({int(bad.sum())} such rows)" if bad.sum() > 1 else ""
            raise ValueError(f"table: {where}: {found(k)}{more}; {fix}")

    def shared(self, role: str, groups: int) -> np.ndarray:
        """The value that the rows of each of so many groups of equal size agree on, (group,)."""
        values = self.values(role)
        first = values[:: len(values) // groups]
        expected = np.repeat(first, len(values) // groups)
        what = "a run has one" if groups == 1 else "a checkpoint has one"
        self.refuse(
            values != expected,
            lambda k: f"{role} is {values[k]:.10g}, in a row before {expected[k]:.10g}",
            f"{what}: fix the row, or name the columns that tell runs apart with run= (--run)",
        )
        return first.astype(np.int64) if role in WHOLE else first


def surface_of(table: Table, name: str, rows: np.ndarray, allow_missing: bool, attrs: Mapping[str, Any]) -> xr.Dataset:
    """The surface (split, tokens, position) of the rows of a run, with step and lr as coordinates.

    Raises:
        ValueError: for cells that make no sense, a checkpoint that comes twice, or one that lacks a position.
    """
    if allow_missing:
        table.loss[table.loss == 0] = np.nan
    if allow_missing and "position" not in table.columns:
        rows = rows[~np.isnan(table.loss[rows]).all(axis=1)]  # training logs have rows between evaluations
        if not len(rows):
            raise ValueError(f"table: {table.file}: run {name} has no loss at all; leave its rows out")
    run = RunRows(table, name, rows)
    if allow_missing and "lr" in table.columns:
        _fill_rates(run)
    for role in table.columns:
        _check_column(run, role)
    for split, losses in zip(table.splits, table.loss[rows].T, strict=True):

        def found(k: int, split: str = split, losses: np.ndarray = losses) -> str:
            return f"{split} is {losses[k]:g}, expected a loss"

        zero = (losses == 0) & (not allow_missing)  # what some trainers write once a loss is NaN
        fix = "a loss is a cross-entropy in nats per token, above 0"
        run.refuse((losses < 0) | np.isinf(losses) | zero, found, fix + (" (--allow-missing)" if zero.any() else ""))
        if not allow_missing:
            run.refuse(np.isnan(losses), found, "leave the row out, or give allow_missing=True (--allow-missing)")
    # By tokens, then position: rows become a grid by a reshape, once it is known to be full.
    run = RunRows(table, name, rows[np.lexsort((run.position, run.values("tokens")))])
    tokens, position = np.unique(run.values("tokens")), np.unique(run.position)
    _check_grid(run, len(tokens), len(position))
    loss = table.loss[run.rows].reshape(len(tokens), len(position), -1).transpose(2, 0, 1)
    coordinates = {role: ("tokens", run.shared(role, len(tokens))) for role in ("step", "lr") if role in table.columns}
    if "n_params" in table.columns:
        attrs = {"n_params": int(run.shared("n_params", 1)[0]), **attrs}
    labels = {"tokens": tokens.astype(np.int64), "position": position.astype(np.int64), "split": table.splits}
    return from_losses(loss, **labels, allow_missing=allow_missing, run=name, **attrs).assign_coords(coordinates)


def _fill_rates(run: RunRows) -> None:
    """Rates that rows of evaluations lack, between their neighbours in tokens."""
    tokens, lr = run.values("tokens"), run.values("lr")
    known = np.isfinite(lr) & np.isfinite(tokens)
    if known.any() and not known.all():
        order = np.argsort(tokens[known], kind="stable")
        lacking = np.isnan(lr) & np.isfinite(tokens)
        filled = np.interp(tokens[lacking], tokens[known][order], lr[known][order])
        run.table.columns["lr"][run.rows[lacking]] = filled


def _check_column(run: RunRows, role: str) -> None:
    """Every number but the losses is there, finite, not negative, and whole where it counts something."""
    values, least = run.values(role), int(role == "position")
    without = f", or leave the column out with {role}=None (--{role.replace('_', '-')} None)"
    run.refuse(
        ~(np.isfinite(values) & (values >= least)),
        lambda k: f"{role} is {values[k]:g}, expected a number from {least}",
        "fix the row" + (without if role in ("lr", "n_params") else ""),
    )
    if role in WHOLE:
        run.refuse(
            values > WHOLE_MOST,
            lambda k: f"{role} is {values[k]:g}, expected at most 9e15",
            "fix the row" + (without if role == "n_params" else ""),
        )
        run.refuse(
            values % 1 != 0,
            lambda k: f"{role} is {values[k]:.10g}, expected a whole number",
            "multiply the column if it counts thousands, millions or billions",
        )


def _check_grid(run: RunRows, checkpoints: int, positions: int) -> None:
    """No checkpoint comes twice, and each has every position. The rows are sorted."""
    tokens, position = run.values("tokens"), run.position
    twice = np.concatenate([[False], (np.diff(tokens) == 0) & (np.diff(position) == 0)])

    def found(k: int) -> str:
        where = f"position {position[k]:g} of " if positions > 1 else ""
        return f"{where}tokens {tokens[k]:.0f} stands in row {run.rows[k - 1] + 1} too"

    fix = "keep one of them, or name the columns that tell runs apart with run= (--run)"
    run.refuse(twice, found, f"{fix}; tsl import stitches a run that was started again, --repeated last")
    if len(run.rows) < checkpoints * positions:  # none comes twice, so some are missing
        at, count = np.unique(tokens, return_counts=True)
        few = f"tokens {at[count.argmin()]:.0f} has {count.min()} positions, the run {positions}"
        fix = "add the rows: with positions, every checkpoint has the same"
        raise ValueError(f"table: {run.table.file}, run {run.name}: {few}; {fix}")
