"""Tables of losses measured elsewhere: each run of a CSV, Parquet or JSONL file becomes a loss surface.

A row is a checkpoint of a run, or one position of it where a column says which. Tables of trainers and published curves
know the mean over positions alone: such a surface has the one position 1, and says so in its attribute `loss_is`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from tsl_jax.importers.columns import missing, numbers, read_columns
from tsl_jax.importers.runs import Table, surface_of

MEAN = "mean over positions"


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
        schedule: the learning-rate plan (a mapping, or a list where it changed), as `laws.Schedule.from_plan` reads
            it, or a mapping of runs to plans.
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
    named = {"tokens": tokens, "step": step, "lr": lr, "n_params": n_params, "position": position}
    losses, keys = ([one] if isinstance(one, str) else list(one) for one in (loss, run))
    table, runs = _read(path, named, losses, keys, tokens_per_step)
    attrs: dict[str, Any] = {} if tokens_per_step is None else {"batch_tokens": tokens_per_step}
    attrs |= {} if position is not None else {"loss_is": MEAN}
    attrs["source"] = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    surfaces = {name: surface_of(table, name, rows, allow_missing, attrs) for name, rows in runs.items()}
    plans = _plans(schedule, list(runs))
    return {name: _with_plan(one, plans.get(name), warmup_tokens) for name, one in surfaces.items()}


def _read(
    path: Path, named: Mapping[str, str | None], losses: list[str], keys: list[str], tokens_per_step: int | None
) -> tuple[Table, dict[str, np.ndarray]]:
    """The numbers of the table, with tokens however they are known, and run -> rows."""
    named = {role: name for role, name in named.items() if name is not None}
    names, cells = read_columns(path, list(dict.fromkeys([*losses, *named.values(), *keys])))
    keys = [] if keys == ["run"] and "run" not in cells else keys
    expected = [*losses, *keys, *(name for role, name in named.items() if name != role or role == "position")]
    _need_columns(path, [name for name in expected if name not in cells], names)
    known = {role: name for role, name in named.items() if name in cells}
    _need_tokens(path, known, tokens_per_step, names)
    runs = _runs(path, [cells[key] for key in keys], len(cells[losses[0]]))

    def read(name: str) -> np.ndarray:
        def refuse(k: int, word: str) -> None:
            run = next(run for run, rows in runs.items() if k in rows)
            raise ValueError(f"table: {path.name}, run {run}, row {k + 1}: {name} is {word!r}, expected a number")

        return numbers(cells[name], refuse)

    columns = {role: read(name) for role, name in known.items()}
    if tokens_per_step is not None:
        columns["tokens"] = columns["step"] * tokens_per_step
    return Table(path.name, columns, np.stack([read(name) for name in losses], axis=1), losses), runs


def _need_columns(path: Path, absent: Sequence[str], names: Sequence[str]) -> None:
    if absent:
        expected = f"expected {', '.join(absent)} among the columns, found {', '.join(names)}"
        raise ValueError(f"table: {path.name}: {expected}; name those that are there, as in loss= (--loss)")


def _need_tokens(path: Path, known: Mapping[str, str], tokens_per_step: int | None, names: Sequence[str]) -> None:
    """Tokens come from a column or from steps, never from both."""
    found = f"found {', '.join(names)}"
    if tokens_per_step is None:
        if "tokens" not in known:
            mend = (
                "name it with tokens= (--tokens), or give tokens_per_step= (--tokens-per-step; 1: steps are the clock)"
            )
            raise ValueError(f"table: {path.name}: expected a column of tokens, {found}; {mend}")
        return
    if tokens_per_step < 1:
        raise ValueError(f"table: tokens_per_step must be a whole number from 1, found {tokens_per_step}")
    if "tokens" in known:
        mend = "leave tokens_per_step out, or pass the column over with tokens=None (--tokens None)"
        raise ValueError(f"table: {path.name}: tokens_per_step beside a column of tokens, {known['tokens']}; {mend}")
    if "step" not in known:
        raise ValueError(f"table: {path.name}: tokens_per_step needs a column of steps, {found}; name it with step=")


def _runs(path: Path, keys: list[list[Any]], count: int) -> dict[str, np.ndarray]:
    """Name of the run -> its rows. Cells that are empty take no part in a name."""
    if not keys:
        return {path.stem: np.arange(count)}
    rows: dict[tuple[str, ...], list[int]] = {}
    for k, parts in enumerate(zip(*keys, strict=True)):
        rows.setdefault(tuple("" if missing(part) else str(part).strip() for part in parts), []).append(k)
    runs: dict[str, np.ndarray] = {}
    for parts, found in rows.items():
        name = "-".join(filter(None, parts))
        if not name or name in runs:
            what = f"a second run is called {name}" if name else "the run has no name"
            raise ValueError(f"table: {path.name}, row {found[0] + 1}: {what}; name other columns with run= (--run)")
        runs[name] = np.array(found)
    return runs


def _plans(schedule: Any, runs: list[str]) -> dict[str, Any]:
    """Run -> plan, of the runs that have one."""
    if schedule is None:
        return {}
    plan = Mapping | list | tuple
    if not isinstance(schedule, Mapping) or not all(isinstance(one, plan) for one in schedule.values()):
        return {run: _own(schedule) for run in runs}
    unknown = [name for name in schedule if name not in runs]
    if unknown:
        raise ValueError(f"table: schedule names the run {unknown[0]}, expected one of {', '.join(runs[:20])}")
    return {name: _own(plan) for name, plan in schedule.items()}


def _own(plan: Any) -> Any:
    """A copy of a plan, or of a list of them."""
    return dict(plan) if isinstance(plan, Mapping) else list(plan)


def _with_plan(surface: xr.Dataset, plan: Any, warmup_tokens: int | None) -> xr.Dataset:
    """The surface with its plan and warm-up, once they are known to fit its tokens."""
    run, first, last = surface.attrs["run"], int(surface.tokens[0]), int(surface.tokens[-1])
    if plan is not None:
        end = _end(plan)
        if end < last:
            found = f"run {run} has seen {last} tokens, its schedule ends at {end}"
            raise ValueError(f"table: {found}; give each run its own plan, as in run: plan")
        surface = surface.assign_attrs(schedule=plan)
    if warmup_tokens is not None:
        if not 0 <= warmup_tokens <= first:
            found = f"run {run} begins at {first} tokens, within a warm-up of {warmup_tokens}"
            raise ValueError(f"table: {found}; a warm-up that rows are part of belongs into schedule")
        surface = surface.assign_attrs(warmup_tokens=warmup_tokens)
    return surface


def _end(plan: Any) -> int:
    """Tokens at the end of a plan, once it is known that it can be read."""
    from tsl_jax.laws import Schedule  # late: it brings jax

    has = "a plan has kind, peak, warmup_tokens, total_tokens, and perhaps final_ratio and decay_start_tokens"
    try:
        return Schedule.from_plan(plan).total_tokens
    except ValueError as error:
        raise ValueError(f"table: the schedule cannot be read ({error}); {has}") from None
