"""One renderer of numeric tables: what a CSV file holds as numbers becomes the cells of Markdown and of pages.

Columns NAME, NAME_low and NAME_high are one cell, "value [low, high]". A column of numbers has as many decimals as show
four significant digits of its median, which are the digits that count as reported; one that spans orders of magnitude
has three digits of each. Columns and laws are named in words (`labels.py`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from experiments.shared.labels import column, value
from tsl_jax.fitting import Status

MISSING = "–"
DIGITS = 4
SPAN = 1e5  # largest over smallest number of a column with decimals in common
LARGE = 1e9  # numbers from here on are written with a power of ten


def cells(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of a table, as text: labels in words, an en dash for what is missing."""
    names = [str(name) for name in table.columns]
    ends = {name: (f"{name}_low", f"{name}_high") for name in names}
    ranged = {name for name in names if set(ends[name]) <= set(names)}
    shown = [name for name in names if not any(name in ends[middle] for middle in ranged)]
    columns = []
    for name in shown:
        group = table[[name, *ends[name]]] if name in ranged else table[[name]]
        if name == "status" and pd.api.types.is_integer_dtype(table[name]):
            columns.append([Status(code).short.replace("_", " ") for code in table[name]])
        elif all(
            pd.api.types.is_numeric_dtype(part) and not pd.api.types.is_bool_dtype(part) for _, part in group.items()
        ):
            columns.append(_numbers(group.to_numpy(float)))
        else:
            columns.append([_text(name, entry) for entry in table[name]])
    return [column(name) for name in shown], [list(row) for row in zip(*columns, strict=True)]


def is_number(cell: str) -> bool:
    """Whether a cell of `cells` is a number, an interval, or missing: such cells are aligned on the right."""
    return cell == MISSING or cell.lstrip("−+")[:1].isdigit()


def markdown(table: pd.DataFrame) -> str:
    """A table as Markdown."""
    head, rows = cells(table)
    lines = [[text.replace("|", "\\|") for text in row] for row in (head, *rows)]
    lines.insert(1, ["---"] * len(head))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rounded(table: pd.DataFrame, *names: str) -> list[dict[str, Any]]:
    """Some columns as rows for findings.json: four significant digits, None where a value is missing."""

    def plain(entry: Any) -> Any:
        if isinstance(entry, (float, np.floating)):
            return float(f"{entry:.{DIGITS}g}") if np.isfinite(entry) else None
        return entry.item() if isinstance(entry, np.generic) else entry

    return [{name: plain(entry) for name, entry in row.items()} for row in table[list(names)].to_dict("records")]


def _text(name: str, entry: Any) -> str:
    if entry is None or entry != entry or entry == "":
        return MISSING
    return {True: "yes", False: "no"}[bool(entry)] if isinstance(entry, (bool, np.bool_)) else value(name, str(entry))


def _numbers(group: np.ndarray) -> list[str]:
    """Cells of a column of numbers (row, 1), or of values with their intervals (row, 3)."""
    size = np.abs(group[np.isfinite(group) & (group != 0)])
    if (group[np.isfinite(group)] % 1 == 0).all() and not (size >= LARGE).any():
        form = ",.0f"
    elif not size.size or size.max() >= LARGE or (size.max() > SPAN * size.min() and size.min() < 1e-3):
        form = ".3g"
    else:
        decimals = max(0, DIGITS - 1 - int(np.floor(np.log10(np.median(size)))))
        while decimals and np.allclose(np.round(size, decimals - 1), size, rtol=1e-9):  # cut-offs, shares
            decimals -= 1
        form = f",.{decimals}f"

    def one(number: float) -> str:
        return format(number, form).replace("-", "−") if np.isfinite(number) else MISSING

    def row(values: np.ndarray) -> str:
        middle, *ends = (one(number) for number in values)
        return f"{middle} [{', '.join(ends)}]" if ends and ends != [MISSING, MISSING] else middle

    return [row(values) for values in group]
