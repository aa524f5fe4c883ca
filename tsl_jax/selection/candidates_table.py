"""Candidates among runs, read from tables and runs: what was mixed, how large, how long, and the losses so far.

A table has a row a run (its end) or a row a checkpoint of one (tokens and loss: a curve). Several tables are joined on
the column that names the run where one has columns which another lacks (mixtures here, losses there), else stacked.
Runs of one mixture are one candidate, whatever their size or seed; without mixtures a candidate is what a column names
(recipe, data, ...), or the run.
"""

from __future__ import annotations

import ast
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_float_dtype, is_numeric_dtype

from tsl_jax.importers.delimited_logs import sniff_delimiter
from tsl_jax.importers.log_roles import FACTORS, TOKENS, loss_unit, normal
from tsl_jax.importers.log_rows import COMPRESSED, as_text, open_log
from tsl_jax.scaling.runs_table import NAMES
from tsl_jax.selection.candidate_runs import Runs, runs_of_rows, surface_rows
from tsl_jax.selection.mixture_columns import checked_shares, find_mixture, percentages, wide

SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson", ".json")
KEYS = ("run", "run_name", "run_id", "name", "index", "id", "idx", "model_name", "exp_name", "Unnamed: 0")
CANDIDATES = ("candidate", "mixture", "mixture_name", "mix", "recipe", "data", "dataset", "data_mix", "mixture_id")
SIZES = ("model_size", "size", "params_total", "parameters")  # in tables of mixtures, beside NAMES
FACTS = ("run", "candidate", "n_params", "tokens", "planned", "schedule", "seed", "pace")
DIFFERENT = (
    "{} was measured on other text in some runs, so that their losses do not compare; train with "
    "--evaluation.by-domain and give --target DOMAIN=WEIGHT ..."
)
PLANNED = ("total_tokens", "planned_tokens", "max_tokens", "target_tokens")
SEEDS = ("seed", "random_seed")
UNITS = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}


def read_candidates(
    sources: Sequence[str | Path],
    loss: str = "",
    target: Mapping[str, float] | None = None,
    mixture: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
    split: str = "",
    needs_loss: bool = True,
) -> Runs:
    """The runs of tables (CSV, TSV, Parquet, JSON lines), run folders and surface files.

    Args:
        loss: the column of the loss, or a part of its name that no other has. target: column -> weight, to be summed
            in its place: a validation mixture. Of surfaces: splits.
        mixture: the columns of the mixture, or their common prefix; default recognised by `find_mixture`.
        columns: {"tokens": "my column"} for n_params, tokens, run, candidate, planned.
        needs_loss: False for candidates that have not been trained: rows without a loss are kept.

    Raises:
        ValueError: for what cannot be read, joined or understood. OSError: for a file that cannot be read.
    """
    notes: list[str] = []
    weights = dict(target or {})
    if not all(0 < weight < float("inf") for weight in weights.values()):
        raise ValueError(f"select: weights of --target are positive numbers, found {weights}")
    tables, available, windows = [], {}, {}
    for source in map(Path, sources):
        if is_table(source):
            tables.append(_read_table(source))
        else:
            rows, known, digests = surface_rows(source, split or loss, weights)
            tables.append(rows)
            available |= known
            for column, digest in digests.items():
                windows.setdefault(column, set()).add(digest)
    if not tables:
        raise ValueError("select: give runs or tables; see tsl select --help")
    table = _joined(tables, notes)
    if table.empty:
        raise ValueError("select: there is no row in what was given")
    table = _tokens_in_units(table, columns or {}, notes)
    table, known = _named(table, columns or {})
    table = _without_copies(table, notes)
    values, used = _losses(table, loss, weights, needs_loss, notes)
    notes += [f"warning: {DIFFERENT.format(column)}" for column in used if len(windows.get(column, ())) > 1]
    keys = [name for name in FACTS if name in table]
    domains = find_mixture(table, mixture, [*keys, *used, "table", *known])
    row_names = _row_names(table)
    shares = None
    if domains:
        shares, said = checked_shares(table, domains, row_names)
        notes += said
    left = [str(c) for c in table if c not in (*keys, *used, *domains, "table") and c not in known]
    if left:
        shown = ", ".join(left[:8]) + (f" and {len(left) - 8} more" if len(left) > 8 else "")
        notes.append(f"columns not used: {shown}")
    return runs_of_rows(table.assign(loss=values), shares, available, needs_loss, notes)


# ------------------------------------------------------------------------------------------------------------- reading


def _read_table(path: Path) -> pd.DataFrame:
    """A table, its mappings ({"web": .6, "code": .4}) as columns of their own."""
    suffix = _suffix(path)
    try:
        if suffix == ".parquet":
            table = pd.read_parquet(path)
        elif suffix in (".csv", ".tsv"):
            table = _read_text(path)
        else:
            table = _read_json(path, lines=suffix != ".json")
    except (ValueError, TypeError, AttributeError) as error:
        found = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"select: {path} is no table that can be read: {found}") from None
    table.columns = [str(name).strip() for name in table.columns]
    table = wide(percentages(table))
    for name in list(table):
        mappings = [_mapping(value) for value in table[name]] if not is_numeric_dtype(table[name]) else []
        if any(value is not None for value in mappings):
            inner = pd.DataFrame([value or {} for value in mappings], index=table.index)
            absent = inner.isna() & inner.notna().any(axis=1).to_numpy()[:, None]
            inner = inner.mask(absent, 0.0)  # a domain that a mapping does not name is not in the mixture
            table = table.drop(columns=name).join(inner.add_prefix(f"{name}."))
    return table.assign(table=path.name)


def is_table(path: Path) -> bool:
    """Whether a file is read as a table, by its name; others are surfaces and run folders."""
    return _suffix(path) in SUFFIXES and not path.is_dir()


def _suffix(path: Path) -> str:
    """What a name ends in, in lower case, before .gz and the like."""
    return Path(path.stem if path.suffix.lower() in COMPRESSED else path.name).suffix.lower()


def _read_text(path: Path) -> pd.DataFrame:
    """A table of text, with the sign that separates its cells and its decimal sign as they are."""
    with open_log(path) as file:
        text = as_text(file.read()).decode("utf-8", "replace")
    if not text.strip():
        raise ValueError("No columns to parse from file")
    sign, comma = sniff_delimiter(text[: 1 << 16])
    return pd.read_csv(io.StringIO(text), sep=r"\s+" if sign == " " else sign, decimal="," if comma else ".")


def _read_json(path: Path, lines: bool) -> pd.DataFrame:
    with open_log(path) as file:
        data = as_text(file.read())
    try:
        return pd.read_json(io.BytesIO(data), lines=lines)
    except ValueError as error:
        if lines or "Trailing data" not in str(error):
            raise
        return pd.read_json(io.BytesIO(data), lines=True)  # lines in a file that is called .json


def _mapping(value: Any) -> dict[str, Any] | None:
    """A mapping in a cell, as such or written as JSON or Python; None for any other value."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except ValueError:
            try:
                value = ast.literal_eval(value.strip())
            except (ValueError, SyntaxError):
                return None
    return value if isinstance(value, dict) else None


# ------------------------------------------------------------------------------------------------------------- joining


def _joined(tables: Sequence[pd.DataFrame], notes: list[str]) -> pd.DataFrame:
    """One table: joined on the column of the run where one has what another lacks, else stacked."""
    groups: list[pd.DataFrame] = []
    for table in tables:
        places = [(k, key) for k, group in enumerate(groups) if (key := _key_to_join(group, table))]
        if not places:
            groups.append(table)
            continue
        k, key = max(places, key=lambda place: (groups[place[0]][place[1]].isin(table[place[1]]).mean(), -place[0]))
        groups[k] = _join(groups[k], table, key, notes)
    if len(groups) > 1:
        names = [str(group["table"].iloc[0]) for group in groups]
        for group, name in zip(groups, names, strict=True):
            run = next((key for key in KEYS if key in group), None)
            others = [other for other in groups if other is not group and run in other]
            if run and any(other[run].isin(group[run]).any() for other in others) and "n_params" not in group:
                group[run] = name + ":" + group[run].astype(str)
    return pd.concat(groups, ignore_index=True)


def _key_to_join(first: pd.DataFrame, second: pd.DataFrame) -> str:
    """The column on which two tables are parts of one; empty where they are not."""
    shared = [name for name in first if name in second.columns and name != "table"]
    known = {other for names in NAMES.values() for other in names if other not in NAMES["loss"]} | set(KEYS)
    known |= {*SEEDS, *PLANNED, *SIZES}
    if any(name not in known for name in shared):  # both have losses, or mixtures: rows of the same kind
        return ""
    lacking = len(first.columns) > len(shared) + 1 and len(second.columns) > len(shared) + 1
    keys = [name for name in KEYS if name in shared]
    return keys[0] if keys and lacking else ""


def _join(first: pd.DataFrame, second: pd.DataFrame, key: str, notes: list[str]) -> pd.DataFrame:
    """Rows of both with the same key, and the same of what else identifies a run.

    Raises:
        ValueError: where no key is in both, or the key is there twice in both.
    """
    names = " and ".join(str(part["table"].iloc[0]) if len(part) else "an empty table" for part in (first, second))
    on = [name for name in first if name in second.columns and name != "table"]
    left, right = first, second.drop(columns="table")
    for name in on:
        if is_numeric_dtype(left[name]) != is_numeric_dtype(right[name]):
            left, right = left.astype({name: str}), right.astype({name: str})
    if bool(left.duplicated(on).any()) and bool(right.duplicated(on).any()):
        row: Any = left[left.duplicated(on)].iloc[0]
        raise ValueError(f"select: {names} both have {key} {row[key]} twice: which rows belong together is not known")
    both = left.merge(right, on=on, how="inner")
    if both.empty:
        raise ValueError(f"select: {names} have no {key} in common, on which they would be joined")
    lost = [int(np.sum(~part[key].isin(both[key]).to_numpy(bool))) for part in (left, right)]
    if any(lost):
        notes.append(f"{names}: {lost[0]} and {lost[1]} rows have no partner by {key} and are left out")
    return both


# ------------------------------------------------------------------------------------------------------------- columns


def _named(table: pd.DataFrame, columns: Mapping[str, str]) -> tuple[pd.DataFrame, list[str]]:
    """The table with its known columns under our names, and the names of those of ours that it does not use."""
    wanted = {
        "run": KEYS,
        "candidate": CANDIDATES,
        "n_params": (*NAMES["n_params"], *SIZES),
        "tokens": NAMES["tokens"],
        "planned": PLANNED,
        "seed": SEEDS,
    }
    for name, column in columns.items():
        if name not in wanted or column not in table:
            there = ", ".join(map(str, table)) if name in wanted else ", ".join(wanted)
            raise ValueError(f"select: --columns {name}={column}: there is no such column; there are {there}")
    by_word = {normal(str(column)): str(column) for column in table}  # `model size` is model_size
    renamed = {}
    for name, names in wanted.items():
        found = columns.get(name) or next((other for other in names if other in table), None)
        found = found or next((by_word[other] for other in names if other in by_word), None)
        if found and name == "candidate" and not columns.get(name) and is_float_dtype(table[found]):
            continue  # a share, not a name
        if found and found not in renamed:
            renamed[found] = name
    clash = [name for name in renamed.values() if name in table and name not in renamed]
    table = table.rename(columns={name: f"{name} (column)" for name in clash}).rename(columns=renamed)
    steps = next((name for name in NAMES["steps"] if name in table), None)
    used = [f"{name} (column)" for name in clash]
    if "tokens" not in table and steps is not None and "tokens" not in columns:  # the clock, where there is no other
        batch = next((name for name in NAMES["batch_tokens"] if name in table), None)
        per_step = 1.0 if batch is None else _numbers(table, batch)
        table["tokens"] = _numbers(table, steps) * per_step
        used += [steps, *([] if batch is None else [batch])]
    for name in ("n_params", "tokens", "planned"):
        if name in table:
            table[name] = _counts(table, name)
    return table, used


def _tokens_in_units(table: pd.DataFrame, columns: Mapping[str, str], notes: list[str]) -> pd.DataFrame:
    """The table with `tokens` where a column counts them in another unit: `tokens (B)`."""
    if "tokens" in columns or any(name in table for name in NAMES["tokens"]):
        return table
    for column in map(str, table):
        match = TOKENS.fullmatch(normal(column))
        word = (match["after"] or match["before"] or "").strip("_").removesuffix("s") if match else ""
        if word in FACTORS and is_numeric_dtype(table[column]):
            notes.append(f"{column} counts tokens in {FACTORS[word]:g}, by its name: multiplied")
            return table.assign(tokens=_numbers(table, column) * FACTORS[word]).drop(columns=column)
    return table


def _without_copies(table: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """The table without rows that repeat another one of the same run entirely: no second measurement of it."""
    if "run" not in table:
        return table
    copies = table.drop(columns="table").astype(str).duplicated().to_numpy(bool)
    if not copies.any():
        return table
    notes.append(f"{int(copies.sum())} rows repeat another row entirely: left out")
    return table.take(np.flatnonzero(~copies)).reset_index(drop=True)


def _counts(table: pd.DataFrame, name: str) -> np.ndarray:
    """Numbers of parameters or tokens, where words such as 122M count too.

    Raises:
        ValueError: for what is no positive number.
    """
    values = []
    for row, value in enumerate(table[name].tolist()):
        match = re.fullmatch(r"([0-9.]+(?:[eE][+-]?\d+)?)\s*([kKmMbBtT]?)", str(value).strip().replace(",", ""))
        missing = value is None or (isinstance(value, float) and np.isnan(value))
        try:
            number = np.nan if missing else float(match[1]) * UNITS.get(match[2].lower(), 1.0) if match else -1.0
        except ValueError:
            number = -1.0
        if number <= 0 and not (name == "tokens" and number == 0):
            raise ValueError(f"select: {name} must be a positive number, found {value!r} in row {row + 1}")
        values.append(number)
    return np.array(values)


def _numbers(table: pd.DataFrame, column: str) -> np.ndarray:
    """A column as numbers, NaN for what is none."""
    given: Any = table[column]
    return np.asarray(pd.to_numeric(given, errors="coerce"), float)


def _losses(
    table: pd.DataFrame, loss: str, weights: Mapping[str, float], needed: bool, notes: list[str]
) -> tuple[np.ndarray, list[str]]:
    """The loss of every row, NaN where there is none, and the columns that it is made of.

    Raises:
        ValueError: where it is not known which column is meant, or losses are not positive numbers.
    """
    columns = [str(name) for name in table if str(name) != "table"]
    alike = [name for name in columns if "loss" in name.lower()]
    known = next((name for name in NAMES["loss"] if name in columns), alike[0] if len(alike) == 1 else "")
    asked = dict(weights) or {loss or known: 1.0}
    if not needed and not all(any(name.lower() in column.lower() for column in columns) for name in asked):
        asked = {}  # candidates that have not been trained: they need none
    if needed and not weights and not (loss or known):
        some = ", ".join((alike or columns)[:12]) + (" ..." if len(alike or columns) > 12 else "")
        raise ValueError(
            f"select: which column is the loss? --loss COLUMN, or --target A=.5 B=.5 of several; there are {some}"
        )
    parts = {_column(columns, name): weight / sum(asked.values()) for name, weight in asked.items() if name}
    values = np.zeros(len(table)) if parts else np.full(len(table), np.nan)
    for name, weight in parts.items():
        values = values + weight * _in_nats(_numbers(table, name), name, notes)
    if (values <= 0).any():
        row = int(np.argmax(values <= 0))
        raise ValueError(f"select: a loss in nats is positive, found {values[row]:g} in row {row + 1}; see --loss")
    summed = " + ".join(f"{weight:.3g} {name}" for name, weight in parts.items())
    notes.append(f"loss: {summed if len(parts) > 1 else next(iter(parts))}" if parts else "no losses")
    return values, list(parts)


def _in_nats(values: np.ndarray, name: str, notes: list[str]) -> np.ndarray:
    """Losses in nats where their name says that they are a perplexity or in bits."""
    unit = loss_unit(name)
    if unit == "perplexity":
        notes.append(f"{name} is a perplexity: its logarithm is the loss in nats")
        return np.log(np.where(values > 0, values, np.nan))
    if unit is not None and unit.startswith("bits/"):
        notes.append(f"{name} is in {unit.replace('/', ' per ')}: times ln 2, nats per {unit.partition('/')[2]}")
        return values * np.log(2)
    return values


def _column(columns: Sequence[str], name: str) -> str:
    """The column of that name, or the only one whose name has it as a part."""
    if name in columns:
        return name
    alike = [other for other in columns if name.lower() in other.lower()]
    of_losses = [other for other in alike if "loss" in other.lower()]
    alike = of_losses if len(of_losses) == 1 else alike
    if len(alike) != 1:
        some = ", ".join((alike or list(columns))[:12])
        raise ValueError(
            f"select: {name!r} is {'the name of no column' if not alike else 'a part of several'}: {some}; give one"
        )
    return alike[0]


def _row_names(table: pd.DataFrame) -> list[str]:
    """What messages call a row."""
    several = len(set(table["table"])) > 1
    runs = table["run"].tolist() if "run" in table else [None] * len(table)
    names = [f"row {k + 1}" + ("" if run is None else f" ({run})") for k, run in enumerate(runs)]
    return [f"{name} of {of}" if several else name for name, of in zip(names, table["table"], strict=True)]
