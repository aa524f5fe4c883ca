"""Which forecasts come true, from how little, and do their intervals hold? One table of forecasts beside what came.

    python -m experiments.forecast_evidence.backtest --curves FOLDER                          development data
    python -m experiments.forecast_evidence.backtest --curves FOLDER --open-locked-test-set   counted, from a clean tree
    python -m experiments.forecast_evidence.backtest --open-locked-test-set --second          the second one, own runs
    python -m experiments.forecast_evidence.backtest --summarise locked_test_set              of the rows that are kept

The curves are public ones (multipower, olmo_ladder, gemstones: see the README beside them; the folder may also be named
by TSL_JAX_CURVES) and finished runs of the pool. What belongs to which part stands in curves.py, what is forecast from
what in cases.py. Each row of the table is a forecast of one split by one method: R2, MSE and MAE on an even grid of the
later tokens, the error of the final loss (nats, forecast minus observed), shares of the later checkpoints inside the 50
and 90 % intervals, interval scores (Winkler, 90 %), the same of the final loss, and what was seen. Rows that are in the
table already are not made again.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from rich.progress import track

from experiments.forecast_evidence import cases, curves, locked_test_set
from experiments.forecast_evidence.rows import KEY, rows
from experiments.forecast_evidence.summary import summary
from tsl_jax.atomic_write import write_atomically
from tsl_jax.training.provenance import git_commit

HOME = Path(__file__).parents[1]
PROTOCOLS = (
    "alone", "fit_three", "three_siblings", "ladder", "cooldown", "cooldown_alone", "earlier_seeds", "other_schedules"
)  # fmt: skip
TABLES = {part: f"forecast_evidence/results/{part}.parquet" for part in curves.EVERY}
COMMAND = "python -m experiments.forecast_evidence.backtest"


def main(arguments: list[str] | None = None, home: Path = HOME) -> None:
    options = _options(arguments)
    try:
        if options.summarise:
            kept = pd.read_parquet(home / TABLES[options.summarise])
            print(summary(kept if "opening" not in kept else kept[kept.opening == kept.opening.max()]))
            return
        name = options.curves or os.environ.get("TSL_JAX_CURVES")
        if name is not None and not Path(name).is_dir():
            raise ValueError(f"--curves (or TSL_JAX_CURVES) must be a folder of curves, found {name}")
        folder = None if name is None else Path(name)
        if options.open_locked_test_set:
            _open(options, folder, home)
        else:
            path = home / TABLES[curves.DEVELOPMENT]
            print(_evidence(path, options, folder, (curves.DEVELOPMENT,), {"commit": git_commit()}))
    except (ValueError, OSError) as error:
        sys.stderr.write(f"forecast_evidence: {error}\n")
        raise SystemExit(2) from None


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", type=Path, help="folder of the public curves; else TSL_JAX_CURVES")
    parser.add_argument("--pool", type=Path, default=HOME / "kept_runs", help="folder of the run pool")
    parser.add_argument("--only", choices=PROTOCOLS, action="append", help="one protocol; may be given several times")
    parser.add_argument("--data", help="only data sets whose name begins so")
    parser.add_argument("--fresh", action="store_true", help="forget the rows there are (development only)")
    parser.add_argument("--open-locked-test-set", action="store_true", help="instead of the development data")
    parser.add_argument("--second", action="store_true", help="with --open-locked-test-set: the second one")
    parser.add_argument("--summarise", choices=TABLES, help="forecast nothing; the summary of a table that is kept")
    options = parser.parse_args(arguments)
    if options.fresh and options.open_locked_test_set:
        parser.error("--fresh: rows of the locked test set are kept; an opening makes all of its own")
    if options.second and not options.open_locked_test_set:
        parser.error("--second says which locked test set is opened; give --open-locked-test-set with it")
    return options


def _open(options: argparse.Namespace, folder: Path | None, home: Path) -> None:
    """Say what will happen, count the opening, make the rows, log them."""
    part = curves.SECOND if options.second else curves.LOCKED
    path = home / TABLES[part]
    commit = locked_test_set.clean_commit(home, own=(locked_test_set.OPENINGS, TABLES[part]))
    print(
        f"The {part.replace('_', ' ')} will be opened at commit {commit}; openings before: "
        f"{len(locked_test_set.openings(home))}. Read will be its runs in {folder or 'no folder of curves'} and in "
        f"{options.pool}, and the development runs as their siblings. The rows go to {path}, their summary into "
        f"{home / locked_test_set.LOG}, the count into {home / locked_test_set.OPENINGS}: commit all three.",
        flush=True,
    )
    opening = locked_test_set.open_once(home, commit)
    parts = (part,) if options.second else curves.PARTS
    text = _evidence(path, options, folder, parts, {"commit": commit, "opening": opening["number"]})
    print(text)
    locked_test_set.close(home, opening, " ".join([COMMAND, *sys.argv[1:]]), text)


def _evidence(
    path: Path, options: argparse.Namespace, folder: Path | None, parts: tuple[str, ...], facts: dict[str, Any]
) -> str:
    """The summary of all rows of the last of these parts, those made that were not there, and what is left out."""
    loaded, left_out = curves.load(parts, folder, options.pool)
    for sentence in left_out:
        print(sentence, flush=True)
    chosen = [
        case
        for case in cases.cases(loaded, parts[-1])
        if case.protocol in (options.only or PROTOCOLS) and case.target.data.startswith(options.data or "")
    ]
    made = pd.read_parquet(path).to_dict("records") if path.exists() and not options.fresh else []

    def of_this_opening(row: dict[str, Any]) -> bool:
        return row.get("opening") == facts.get("opening")

    there = {tuple(row[name] for name in KEY) for row in made if of_this_opening(row)}
    todo = [(case, method) for case in chosen for method in case.methods if not _keys(case, method) <= there]
    print(f"{cases.count(chosen)} forecasts, {len(todo)} to make: some seconds each beside siblings, else about one")
    path.parent.mkdir(parents=True, exist_ok=True)
    for case, method in track(todo, "forecasts"):
        made += [row | facts for row in rows(case, method)]
        table = pd.DataFrame(made)
        write_atomically(path, lambda file, table=table: table.to_parquet(file, compression="zstd"))
    mine = pd.DataFrame(list(filter(of_this_opening, made)))
    if mine.empty:
        raise ValueError("no run is there to forecast; name a folder of curves with --curves")
    return "\n\n".join([*left_out, summary(mine)])


def _keys(case: cases.Case, method: Any) -> set[tuple[Any, ...]]:
    """The KEY of each row that a method makes of a case."""
    target = case.target
    splits = target.surface.split.values.tolist()
    return {(case.protocol, target.data, target.run, split, cases.name_of(method), case.cutoff) for split in splits}


if __name__ == "__main__":
    main()
