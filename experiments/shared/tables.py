"""One renderer of numeric tables: what a CSV file holds as numbers becomes the cells of Markdown and of pages.

Columns NAME, NAME_low and NAME_high are one cell, "value [low, high]"; numbers have four significant digits, which are
the digits that count as reported.
"""

from __future__ import annotations

from typing import Any

import pandas as pd


def cell(value: Any) -> str:
    """Text of one value: four significant digits of a number with a fraction, nothing where it is missing."""
    if isinstance(value, float):
        return "" if value != value else f"{value:.4g}"
    return "" if value is None else str(value)


def cells(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of a table, as text."""
    names = [str(name) for name in table.columns]
    ends = {name: (f"{name}_low", f"{name}_high") for name in names}
    ranged = {name for name in names if set(ends[name]) <= set(names)}
    head = [name for name in names if not any(name in ends[middle] for middle in ranged)]

    def text(row: dict[str, Any], name: str) -> str:
        low, high = (cell(row.get(end)) for end in ends[name])
        return f"{cell(row[name])} [{low}, {high}]" if name in ranged and low else cell(row[name])

    rows = [dict(zip(names, values, strict=True)) for values in table.itertuples(index=False)]
    return head, [[text(row, name) for name in head] for row in rows]


def markdown(table: pd.DataFrame) -> str:
    """A table as Markdown."""
    head, rows = cells(table)
    lines = [[text.replace("|", "\\|") for text in row] for row in (head, *rows)]
    lines.insert(1, ["---"] * len(head))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
