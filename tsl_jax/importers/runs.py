"""The rows of one run of a table become its loss surface, once every cell is known to make sense."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from tsl_jax.importers.arrays import from_losses

WHOLE = ("tokens", "step", "n_params", "position")  # columns that count


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

    def refuse(self, bad: np.ndarray, found: Callable[[int], str], mend: str) -> None:
        """An error about the first of the rows that are bad, if any is; found(k) tells what is there."""
        if bad.any():
            k = int(np.flatnonzero(bad)[0])
            where = f"{self.table.file}, run {self.name}, row {self.rows[k] + 1}"
            more = f" ({int(bad.sum())} such rows)" if bad.sum() > 1 else ""
            raise ValueError(f"table: {where}: {found(k)}{more}; {mend}")


def surface_of(table: Table, name: str, rows: np.ndarray, allow_missing: bool, attrs: Mapping[str, Any]) -> xr.Dataset:
    """The surface (split, tokens, position) of the rows of a run, with step and lr as coordinates.

    Raises:
        ValueError: for cells that make no sense, a checkpoint that comes twice, or one that lacks a position.
    """
    if allow_missing and "position" not in table.columns:
        rows = rows[~np.isnan(table.loss[rows]).all(axis=1)]
        if not len(rows):
            raise ValueError(f"table: {table.file}: run {name} has no loss at all; leave its rows out")
    run = RunRows(table, name, rows)
    _check_numbers(run)
    _check_losses(run, allow_missing)
    run = RunRows(table, name, rows[np.lexsort((run.position, run.values("tokens")))])
    tokens, position = np.unique(run.values("tokens")), np.unique(run.position)
    _check_grid(run, len(tokens), len(position))
    loss = table.loss[run.rows].reshape(len(tokens), len(position), -1).transpose(2, 0, 1)
    known = [role for role in ("step", "lr") if role in table.columns]
    coordinates = {role: ("tokens", _shared(run, role, len(tokens))) for role in known}
    if "n_params" in table.columns:
        attrs = {"n_params": int(_shared(run, "n_params", 1)[0]), **attrs}
    labels = {"tokens": tokens.astype(np.int64), "position": position.astype(np.int64), "split": table.splits}
    return from_losses(loss, **labels, allow_missing=allow_missing, run=name, **attrs).assign_coords(coordinates)


def _check_numbers(run: RunRows) -> None:
    """Every number but the losses is there, finite, not negative, and whole where it counts something."""
    for role in run.table.columns:
        values, least = run.values(role), int(role == "position")
        option = f"leave the column out with {role}=None (--{role.replace('_', '-')} None)"
        mend = "mend the row" + (f", or {option}" if role in ("lr", "n_params") else "")
        run.refuse(
            ~(np.isfinite(values) & (values >= least)),
            lambda k, role=role, values=values, least=least: f"{role} is {values[k]:g}, expected a number from {least}",
            mend,
        )
        if role in WHOLE:
            run.refuse(
                values % 1 != 0,
                lambda k, role=role, values=values: f"{role} is {values[k]:.10g}, expected a whole number",
                "multiply the column if it counts thousands, millions or billions",
            )


def _check_losses(run: RunRows, allow_missing: bool) -> None:
    for split, values in zip(run.table.splits, run.table.loss[run.rows].T, strict=True):

        def found(k: int, split: str = split, values: np.ndarray = values) -> str:
            return f"{split} is {values[k]:g}, expected a loss"

        run.refuse((values < 0) | np.isinf(values), found, "a loss is a cross-entropy in nats per token, from 0 up")
        if not allow_missing:
            mend = "leave the row out, or give allow_missing=True (--allow-missing)"
            run.refuse(np.isnan(values), found, mend)


def _check_grid(run: RunRows, checkpoints: int, positions: int) -> None:
    """No checkpoint comes twice, and each has every position. The rows are sorted."""
    tokens, position = run.values("tokens"), run.position
    twice = np.concatenate([[False], (np.diff(tokens) == 0) & (np.diff(position) == 0)])

    def found(k: int) -> str:
        where = f"position {position[k]:g} of " if positions > 1 else ""
        return f"{where}tokens {tokens[k]:.0f} stands in row {run.rows[k - 1] + 1} too"

    run.refuse(twice, found, "keep one of them, or name the columns that tell runs apart with run= (--run)")
    if len(run.rows) < checkpoints * positions:
        at, count = np.unique(tokens, return_counts=True)
        few = f"tokens {at[count.argmin()]:.0f} has {count.min()} positions, the run {positions}"
        mend = "add the rows: with positions, every checkpoint has the same"
        raise ValueError(f"table: {run.table.file}, run {run.name}: {few}; {mend}")


def _shared(run: RunRows, role: str, groups: int) -> np.ndarray:
    """What the rows of each of so many groups of equal size agree on, (group,)."""
    values = run.values(role)
    expected = np.repeat(values[:: len(values) // groups], len(values) // groups)
    what = "a run has one" if groups == 1 else "a checkpoint has one"
    run.refuse(
        values != expected,
        lambda k: f"{role} is {values[k]:.10g}, in a row before {expected[k]:.10g}",
        f"{what}: mend the row, or name the columns that tell runs apart with run= (--run)",
    )
    shared = values[:: len(values) // groups]
    return shared.astype(np.int64) if role in WHOLE else shared
