"""Forecasts of public runs from their beginnings, scored: prefixes in, intervals out.

    python -m experiments.forecast_benchmark.run --curves FOLDER [--entries "tsl_jax" ...] [--families olmo ...]
    python -m experiments.forecast_benchmark.run --table

Every entry forecasts the final loss of every run from SHARES of its tokens, the plan of the learning rate known. Rows
are kept in results/rows.parquet; those there are not made again (--again: those of the entries named are). Where FOLDER
holds a part of the sources, the rows of that part are kept in FOLDER itself, and the tables say what is absent.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich.progress import track

from experiments.forecast_benchmark.data import check, end_of, load
from experiments.forecast_benchmark.entries import ENTRIES, QUANTILES, Prefix
from experiments.forecast_evidence.curves import Curve
from experiments.shared.tables import markdown
from tsl_jax.atomic_write import write_atomically

ROWS = Path(__file__).with_name("results") / "rows.parquet"
SHARES = (0.1, 0.2, 0.3, 0.4)
LEVEL = 0.9  # of the interval that is scored
KEPT_EVERY = 50  # rows
LEAST = 4  # rows of a prefix
PART = "rows_of_a_part.parquet"  # in the folder of curves, where sources are absent


def made(entry: str, run: Curve, share: float) -> dict[str, object]:
    """One row: what an entry says of a run, and how good that was. NaN where it says nothing."""
    tokens = run.surface.tokens.values
    past = run.surface.sel(tokens=tokens <= share * tokens[-1])
    start = time.perf_counter()
    try:
        said = np.asarray(ENTRIES[entry](Prefix(past, tokens[-run.last :].astype(float))), float)
    except (ValueError, FloatingPointError, np.linalg.LinAlgError):
        said = np.full(len(QUANTILES), np.nan)
    seconds = time.perf_counter() - start
    low, middle, high, end = said[0], said[2], said[-1], end_of(run)
    score = high - low + 2 / (1 - LEVEL) * (max(low - end, 0) + max(end - high, 0))
    row = {"entry": entry, "family": run.data, "run": run.run, "share": share, "end": end, "error": middle - end}
    numbers = {
        "low": low,
        "high": high,
        "inside": float(low <= end <= high) if np.isfinite(low) else np.nan,
        "score": score,
        "seconds": seconds,
    }
    return row | {name: value if np.isfinite(middle) else np.nan for name, value in numbers.items()}


def make(folder: Path, entries: Sequence[str], families: Sequence[str], again: bool) -> pd.DataFrame:
    """All rows, those kept and those made now; of a folder with a part of the sources the rows of that part."""
    part = bool(check(folder))
    place, runs = folder / PART if part else ROWS, load(folder)
    kept = _rows(place)
    if part:
        own, there = {_key(row) for row in kept}, {(run.data, run.run) for run in runs}
        kept += [row for row in _rows(ROWS) if _key(row) not in own and (row["family"], row["run"]) in there]
    if again:
        kept = [row for row in kept if row["entry"] not in entries]
    known = {_key(row) for row in kept}
    asked = [run for run in runs if not families or any(name in run.data for name in families)]
    cases = [(run, share) for run in asked for share in SHARES if _enough(run, share)]
    ahead = [
        (name, *case) for name in entries for case in cases if (name, case[0].data, case[0].run, case[1]) not in known
    ]
    print(f"{len(asked)} runs, {len(cases)} prefixes, {len(ahead)} forecasts to make")
    for done, case in enumerate(track(ahead, "forecasts")):
        kept.append(made(*case))
        if done % KEPT_EVERY == KEPT_EVERY - 1:
            _keep(place, kept)
    return _keep(place, kept)


def _rows(path: Path) -> list[dict[str, object]]:
    return pd.read_parquet(path).to_dict("records") if path.exists() else []


def _key(row: dict[str, object]) -> tuple[object, ...]:
    return row["entry"], row["family"], row["run"], row["share"]


def _enough(run: Curve, share: float) -> bool:
    return int((run.surface.tokens <= share * run.surface.tokens[-1]).sum()) >= LEAST


def _keep(place: Path, rows: list[dict[str, object]]) -> pd.DataFrame:
    table = pd.DataFrame(rows).sort_values(["entry", "family", "run", "share"])
    place.parent.mkdir(exist_ok=True)
    write_atomically(place, lambda file: table.to_parquet(file, compression="zstd", index=False))
    return table


def leaderboard(rows: pd.DataFrame) -> pd.DataFrame:
    """One row an entry, over families: each family counts alike. Prefixes on which any entry is silent count against it
    alone, as the share that it answered; scores are over those that it answered."""
    columns = ["error", "inside", "score", "answered"]
    table = pd.DataFrame(_by_family(rows).groupby("entry")[columns].mean())
    table["seconds"] = rows.groupby("entry").seconds.median()
    return table.sort_values("score").reset_index()


def _by_family(rows: pd.DataFrame) -> pd.DataFrame:
    groups = rows.assign(error=rows.error.abs(), answered=rows.error.notna().astype(float)).groupby(["entry", "family"])
    return groups.agg(
        error=("error", "median"), inside=("inside", "mean"), score=("score", "mean"), answered=("answered", "mean")
    )


def by_family(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """A row a family, a column an entry."""
    order = leaderboard(rows).entry
    table = _by_family(rows).reset_index().pivot(index="family", columns="entry", values=column)
    return pd.DataFrame(table[list(order)]).reset_index()


def by_share(rows: pd.DataFrame) -> pd.DataFrame:
    """The median error by the share seen, a row an entry, over families."""
    medians = rows.assign(error=rows.error.abs()).groupby(["entry", "family", "share"], as_index=False).error.median()
    table = pd.pivot_table(medians, values="error", index="entry", columns="share")
    table = table.reindex(list(leaderboard(rows).entry))  # of a part of the families an entry may say nothing
    return table.rename(columns=lambda share: f"from {share:.0%}").reset_index()


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--curves", type=Path, help="the folder of public curves")
    parser.add_argument("--entries", nargs="+", choices=list(ENTRIES), default=list(ENTRIES))
    parser.add_argument("--families", nargs="+", default=[], help="parts of the names of families")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--table", action="store_true", help="print what is kept as Markdown")
    command = parser.parse_args(arguments)
    absent: list[str] = []
    if command.table:
        rows = pd.read_parquet(ROWS)
    elif command.curves is None:
        parser.error("--curves FOLDER, or --table")
    else:
        try:
            absent = check(command.curves)
            if absent:
                print(f"A PART OF THE BENCHMARK: {', '.join(absent)} are absent; rows go to {command.curves / PART}")
            rows = make(command.curves, command.entries, command.families, command.again)
        except (ValueError, OSError) as error:  # another folder, other files in it, or no place for a part
            parser.error(str(error))
    label = (
        f"A PART OF THE BENCHMARK, without {', '.join(absent)}: not comparable with the full one. " if absent else ""
    )
    prefixes = rows.groupby(["family", "run", "share"]).ngroups
    print(f"\n{label}Over families ({rows.family.nunique()}), {prefixes} prefixes\n")
    print(markdown(leaderboard(rows).round(3)))
    for title, table in (
        ("Median error of the end, nats, by family", by_family(rows, "error")),
        ("Mean score of the 90 % interval, nats, by family", by_family(rows, "score")),
        ("Share of ends inside the 90 % interval, by family", by_family(rows, "inside")),
        ("Median error of the end, nats, by share seen", by_share(rows)),
    ):
        print(f"\n{title}\n\n{markdown(table.round(3))}")


if __name__ == "__main__":
    main()
