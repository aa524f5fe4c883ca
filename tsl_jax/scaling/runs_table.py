"""Runs as a table: one row a run, or a checkpoint of one, with n_params, tokens, loss and what else is known.

Columns that are read: n_params (without embeddings), tokens (seen), loss (nats), and where there, batch_tokens, steps,
flops, run. What follows from others is filled in: steps = tokens/batch_tokens, flops = 6 n_params tokens, pf_days, and
by `with_minimal`, given a law of the critical batch, steps_min and pf_days_min.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tsl_jax.scaling.accounting import PF_DAY, critical_batch, minimal_flops, minimal_steps, training_flops
from tsl_jax.surface import load_surface

# The names that tables give these columns; the first that is there is taken.
NAMES: Mapping[str, tuple[str, ...]] = {
    "n_params": ("n_params", "params", "N", "num_params", "params_active_precise", "non_embedding_params"),
    "tokens": ("tokens", "D", "n_tokens", "training_tokens", "tokens_seen"),
    "loss": ("loss", "L", "final_loss", "eval_loss", "val_loss", "validation_loss"),
    "batch_tokens": ("batch_tokens", "B", "batch_size_in_tokens"),
    "steps": ("steps", "S", "step"),
    "flops": ("flops", "C", "training_flops"),
    "run": ("run", "run_name", "name"),
}
NEEDED = ("n_params", "loss")


def read_runs(
    sources: Iterable[str | Path],
    columns: Mapping[str, str] | None = None,
    split: str = "",
    checkpoints: bool = False,
) -> pd.DataFrame:
    """The runs of tables (CSV, Parquet, JSONL) and of run folders or surface files.

    Args:
        columns: {"tokens": "my column"}, where a table has another name for it than those of NAMES.
        split: of surfaces, whose mean loss over positions at the last checkpoint is taken; default the first.
        checkpoints: of surfaces, a row each in place of the last one. Under a rate that decays a checkpoint before the
            end is no run that ended there.

    Returns:
        A row a run: those of NAMES that are known, then the other columns of the tables.

    Raises:
        ValueError: for a table without n_params or loss, values that are not positive numbers, or no row at all.
        OSError: for a file that cannot be read.
    """
    parts = []
    for source in map(Path, sources):
        is_table = source.suffix in (".csv", ".parquet", ".jsonl", ".json")
        part = _table(source, columns or {}) if is_table else _surface(source, split, checkpoints)
        parts.append(part if "run" in part else part.assign(run=[f"{source.stem}:{k}" for k in range(len(part))]))
    runs = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    if runs.empty:
        raise ValueError("scale: there is no run in what was given")
    return complete(runs)


def complete(runs: pd.DataFrame) -> pd.DataFrame:
    """The table with steps and FLOPs filled in where they follow from the other columns.

    Raises:
        ValueError: for values that are not positive numbers.
    """
    runs = runs.copy()
    for name in [name for name in NAMES if name != "run" and name in runs]:
        given = runs[name].tolist()
        values = np.asarray(pd.to_numeric(pd.Series(given, dtype=object), errors="coerce"), float)
        missing = pd.isna(np.array(given, dtype=object))
        bad = ~(values > 0) & (~missing | (name in NEEDED))
        if bad.any():
            row = int(np.argmax(bad))
            found = given[row]
            raise ValueError(f"scale: {name} must be a positive number in every run, found {found!r} in row {row + 1}")
        runs[name] = values
    if {"tokens", "batch_tokens"} <= set(runs) and "steps" not in runs:
        runs["steps"] = runs.tokens / runs.batch_tokens
    if {"steps", "batch_tokens"} <= set(runs) and "tokens" not in runs:
        runs["tokens"] = runs.steps * runs.batch_tokens
    if "tokens" in runs and "flops" not in runs:
        runs["flops"] = training_flops(runs.n_params, runs.tokens)
    if "flops" in runs and "pf_days" not in runs:
        runs["pf_days"] = runs.flops / PF_DAY
    return runs


def with_minimal(runs: pd.DataFrame, critical: Mapping[str, float] | None = None) -> pd.DataFrame:
    """The table with steps_min and pf_days_min, by B_crit of each run's own loss.

    Args:
        critical: B_star and alpha_B, such as `BatchTrade.constants`; default those of Kaplan et al.

    Raises:
        ValueError: where the runs have no batch_tokens, steps or FLOPs.
    """
    missing = [name for name in ("batch_tokens", "steps", "pf_days") if name not in runs]
    if missing:
        there = ", ".join(map(str, runs.columns))
        raise ValueError(f"scale: steps_min and pf_days_min need {', '.join(missing)}, which the runs lack: {there}")
    at = critical_batch(runs.loss, critical)
    least = {"steps_min": minimal_steps(runs.steps, runs.batch_tokens, at)}
    return runs.assign(**least, pf_days_min=minimal_flops(runs.pf_days, runs.batch_tokens, at))


def _table(path: Path, columns: Mapping[str, str]) -> pd.DataFrame:
    read: Any = {".csv": pd.read_csv, ".parquet": pd.read_parquet}.get(path.suffix)
    try:
        table = read(path) if read else pd.read_json(path, lines=path.suffix == ".jsonl")
    except (ValueError, pd.errors.ParserError) as error:
        raise ValueError(f"scale: {path} is no table that can be read: {str(error).splitlines()[0]}") from None
    known = {}
    for name, names in NAMES.items():
        wanted = columns.get(name)
        if wanted is not None and wanted not in table:
            raise ValueError(f"scale: {path} has no column {wanted!r} for {name}; it has {', '.join(map(str, table))}")
        found = wanted or next((other for other in names if other in table), None)
        if found is None and name in NEEDED:
            raise ValueError(
                f"scale: {path} has no column for {name} ({', '.join(names)}); say which one it is, --columns "
                f"{name}=COLUMN, of {', '.join(map(str, table))}"
            )
        if found is not None:
            known[name] = found
    rest = [name for name in table if name not in known.values() and name not in NAMES]
    return pd.concat([table[list(known.values())].set_axis(list(known), axis=1), table[rest]], axis=1)


def _surface(path: Path, split: str, checkpoints: bool) -> pd.DataFrame:
    """The last checkpoint of a run, or all of them."""
    surface = load_surface(path)
    splits = surface.split.values.tolist()
    if split and split not in splits:
        raise ValueError(f"scale: {path} has the splits {', '.join(splits)}, found {split!r}")
    n_params = surface.attrs.get("n_params")
    if not isinstance(n_params, int | float):
        found = f"scale: {path} does not say how many parameters its model has (attribute n_params)"
        raise ValueError(f"{found}; import its log with --n-params N, without embeddings, or give a table")
    clock = surface.attrs.get("log", {}).get("clock", "tokens")
    if clock != "tokens":
        raise ValueError(f"scale: {path} counts {clock}, expected tokens; import its log with --tokens-per-step N")
    known = surface.loss.sel(split=split or splits[0]).dropna("tokens", how="any")  # a log may evaluate now and then
    taken = known.sel(tokens=known.tokens > 0).isel(tokens=slice(None) if checkpoints else slice(-1, None))
    tokens = taken.tokens.values.astype(float)
    rows: dict[str, Any] = {"run": str(surface.attrs.get("run") or path.stem), "n_params": n_params, "tokens": tokens}
    rows["loss"] = taken.mean("position").values
    if "n_params_is" in surface.attrs:
        rows["n_params_is"] = str(surface.attrs["n_params_is"])
    if isinstance(surface.attrs.get("batch_tokens"), int | float):
        rows["batch_tokens"] = surface.attrs["batch_tokens"]
    if isinstance(surface.attrs.get("flops_per_token"), int | float):
        rows["flops"] = surface.attrs["flops_per_token"] * tokens
    return pd.DataFrame(rows)
