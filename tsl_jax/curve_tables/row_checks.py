"""Rows of a long table, checked: numbers in float64, and a sentence for each row that is malformed.

Malformed is text where a number is expected, a missing cell, an x that is not finite, a weight that is negative or not
finite. A y that is NaN or infinite is a number: the fit gives its curve a status. A point of weight zero is not there,
and its y may be missing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute

from tsl_jax.curve_tables.ragged import Chunk

pc: Any = pyarrow.compute  # made at import, so a type checker does not see it


def checked(columns: dict[str, pa.Array], problems: dict[int, str]) -> Chunk:
    """The chunk in columns of text or numbers; `problems` are those that the reader has met already."""
    numbers, found = {}, {}
    for name in [name for name in columns if name != "curve"]:
        numbers[name], found[name] = _numbers(name, columns[name])
    weight = numbers.get("weight")
    if weight is not None:
        absent = weight == 0
        found["y"] = {row: text for row, text in found["y"].items() if not absent[row]}
        for row in np.flatnonzero(~(weight >= 0) | np.isinf(weight)):
            found["weight"].setdefault(int(row), f"weight is {weight[row]:g}, expected finite and not negative")
    for row in np.flatnonzero(~np.isfinite(numbers["x"])):
        found["x"].setdefault(int(row), f"x is {numbers['x'][row]:g}, expected a finite number")
    curve = columns["curve"]
    if curve.null_count:
        unnamed = np.flatnonzero(curve.is_null().to_numpy(zero_copy_only=False))
        found["curve"] = dict.fromkeys(unnamed.tolist(), "curve is missing")
    first: dict[int, str] = {}  # the first thing wrong with a row is enough
    for each in (problems, *(found[name] for name in columns if name in found)):
        for row, text in each.items():
            first.setdefault(row, text)
    return Chunk(curve, numbers["x"], numbers["y"], weight, dict(sorted(first.items())))


def _numbers(name: str, column: pa.Array) -> tuple[np.ndarray, dict[int, str]]:
    """Float64 values, NaN where there is none, and what was found there."""
    text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    try:
        values = pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        words = pd.Series(column.to_pylist(), dtype=object)
        values = np.asarray(pd.to_numeric(words, errors="coerce"), float)
        text = True
    problems: dict[int, str] = {}
    if column.null_count:
        missing = np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))
        problems = dict.fromkeys(missing.tolist(), f"{name} is missing")
    if text:  # NaN written as a word is a number
        for row in np.flatnonzero(np.isnan(values)).tolist():
            word = column[row].as_py()
            if row not in problems and not (isinstance(word, str) and word.strip().lower() in ("nan", "-nan", "+nan")):
                problems[row] = f"{name} is {word!r}, not a number"
    return values, problems
