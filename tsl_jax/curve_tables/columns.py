"""Columns of long tables: which plays which role, and whether their cells are names and numbers.

A law of several covariates reads a column for each of them. Then, where no column names the curve, all rows are one.

The roles are curve, x, y and weight; what is read is known by its role, and problems name the column.
Malformed is text where a number is expected, a missing name, x or weight, an x that is not finite, a weight that is
negative or not finite; the row then has a sentence. A y may be missing (an empty cell, null or NaN): such a point is
left out, as one of weight zero is. An infinite y is a number: the fit gives its curve a status.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute

from tsl_jax.curve_tables.curve_blocks import Chunk

pc: Any = pyarrow.compute  # made at import, so a type checker does not see it
ONE_CURVE = "all"  # what the curve is called where no column names it
NAN_WORDS = ("nan", "-nan", "+nan")  # NaN written as a word is a number


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a long table; curve or weight None: the column of that name, if it is there.

    `covariates` are what a law of several reads, one for each column of x.
    """

    curve: str | None = "curve"
    x: tuple[str, ...] = ("x",)
    y: str = "y"
    weight: str | None = None
    covariates: tuple[str, ...] = ("x",)

    def among(self, path: Path, names: list[str]) -> Columns:
        """The same, with the curve and the weight that a file with columns of these `names` has.

        Raises:
            ValueError: where one of them is not there once, or plays two roles.
        """

        def default(name: str) -> str | None:
            return name if name in names and name not in (self.curve, *self.x, self.y, self.weight) else None

        chosen = replace(self, curve=self.curve or default("curve"), weight=self.weight or default("weight"))
        own = chosen.names()
        missing = [name for name in own if name not in names]
        if missing:
            wanted, option = "curve,x,y[,weight]", "--x"
            if len(self.x) > 1:
                wanted = f"[curve,]{','.join(self.covariates)},y[,weight]"
                option = " ".join(f"--x {name}=COLUMN" for name in self.covariates)
            expected = f"{wanted}, or others named by --curve, {option}, --y and --weight"
            raise ValueError(f"fit: {path} lacks the columns {missing}; it has {names}, expected {expected}")
        twice = [name for name in own if names.count(name) > 1]
        if twice:
            raise ValueError(f"fit: {path} has several columns {twice[0]}; it has {names}; expected one of each")
        shared = [name for name in own if own.count(name) > 1]
        if shared:
            raise ValueError(
                f"fit: the column {shared[0]} of {path} is named twice, found {','.join(own)}; expected a column each "
                "for --curve, --x, --y and --weight"
            )
        return chosen

    def names(self) -> tuple[str, ...]:
        """Those that are read."""
        return tuple(self.by_role().values())

    def by_role(self) -> dict[str, str]:
        """Role -> name, for those that are there: curve, x (and x1, x2, ... of several covariates), y, weight."""
        curve = {} if self.curve is None else {"curve": self.curve}
        x = {f"x{k}" if k else "x": name for k, name in enumerate(self.x)}
        return {**curve, **x, "y": self.y, **({} if self.weight is None else {"weight": self.weight})}


def decode(column: pa.Array, *, names: bool = False) -> pa.Array:
    """The column without a dictionary, and null where a cell is missing: empty text, and NaN among numbers as names."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if _is_text(column):
        return pc.if_else(pc.equal(column, ""), pa.scalar(None, column.type), column)
    if names and pa.types.is_floating(column.type):
        return pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    return column


def _is_text(column: pa.Array) -> bool:
    return pa.types.is_string(column.type) or pa.types.is_large_string(column.type)


def check(columns: dict[str, pa.Array], problems: dict[int, str], named: Columns) -> Chunk:
    """The chunk in columns of text or numbers, by role; `problems` are what the reader has already found, by row."""
    called = named.by_role()
    numbers: dict[str, np.ndarray] = {}
    by_column: dict[str, dict[int, str]] = {}
    for role in [role for role in columns if role != "curve"]:
        numbers[role], by_column[role] = _as_numbers(called[role], columns[role], may_be_missing=role == "y")
    weight = numbers.get("weight")
    if weight is not None:
        left_out = weight == 0
        by_column["y"] = {row: text for row, text in by_column["y"].items() if not left_out[row]}
        for row in np.flatnonzero(~(weight >= 0) | np.isinf(weight)):
            by_column["weight"].setdefault(
                int(row), f"{called['weight']} is {weight[row]:g}, expected finite and not negative"
            )
    x_roles = [role for role in columns if role.startswith("x")]
    for role in x_roles:
        for row in np.flatnonzero(~np.isfinite(numbers[role])):
            by_column[role].setdefault(int(row), f"{called[role]} is {numbers[role][row]:g}, expected a finite number")
    x = numbers["x"] if len(x_roles) == 1 else np.stack([numbers[role] for role in x_roles], axis=-1)
    curve = columns["curve"] if "curve" in columns else pa.repeat(ONE_CURVE, len(x))
    if curve.null_count:
        unnamed = np.flatnonzero(curve.is_null().to_numpy(zero_copy_only=False))
        by_column["curve"] = dict.fromkeys(unnamed.tolist(), f"{called['curve']} is missing")
    first: dict[int, str] = {}  # the first problem of a row is enough
    for column_problems in (problems, *(by_column[role] for role in columns if role in by_column)):
        for row, text in column_problems.items():
            first.setdefault(row, text)
    return Chunk(curve, x, numbers["y"], weight, dict(sorted(first.items())))


def _as_numbers(name: str, column: pa.Array, *, may_be_missing: bool) -> tuple[np.ndarray, dict[int, str]]:
    """Float64 values, NaN where there is none, and by row what stands there instead."""
    text = _is_text(column)
    try:
        values = pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        cells = pd.Series(column.to_pylist(), dtype=object)
        values = np.asarray(pd.to_numeric(cells, errors="coerce"), float)
        text = True
    missing = set(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False)).tolist()) if column.null_count else ()
    problems = {} if may_be_missing else dict.fromkeys(sorted(missing), f"{name} is missing")
    if text:
        words = (*NAN_WORDS, "null") if may_be_missing else NAN_WORDS
        for row in np.flatnonzero(np.isnan(values)).tolist():
            cell = column[row].as_py()
            if row not in missing and not (isinstance(cell, str) and cell.strip().lower() in words):
                problems[row] = f"{name} is {cell!r:.60}, not a number"
    return values, problems
