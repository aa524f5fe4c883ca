"""Evidence about forecasts: one table of what was forecast from what, and how it came.

    python experiments/forecast_backtest.py --curves FOLDER                development data
    python experiments/forecast_backtest.py --curves FOLDER --open-seal    sealed data: counted, and from a clean tree
    python experiments/forecast_backtest.py --summarise sealed             the summary of the rows that are kept

The curves are public ones (multipower, olmo_ladder, gemstones: see the README beside them; the folder may also be named
by TSL_JAX_CURVES) and finished runs of the pool. What belongs to which part stands in forecast_evidence/curves.py, what
is forecast from what in cases.py. Each row of the table is a forecast of one split by one method: R2, MSE and MAE on an
even grid of the later tokens, the error of the final loss (nats, forecast minus observed), shares of the later
checkpoints inside the 50 and 90 % intervals, interval scores (Winkler, 90 %), the same of the final loss, and what was
seen. Rows that are in the table already are not made again.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from forecast_evidence import cases, curves, seal
from forecast_evidence.rows import KEY, rows
from forecast_evidence.summary import summary
from rich.progress import track

from tsl_jax.atomic_write import write_atomically
from tsl_jax.training.provenance import git_commit

HOME = Path(__file__).parent
PROTOCOLS = (
    "alone", "fit_three", "three_siblings", "ladder", "cooldown", "cooldown_alone", "earlier_seeds", "other_schedules"
)  # fmt: skip
TABLES = {part: f"results/forecast_backtest-{part}.csv" for part in ("dev", "sealed")}


def main(arguments: list[str] | None = None, home: Path = HOME) -> None:
    wanted = _options(arguments)
    try:
        if wanted.summarise:
            print(_kept(home / TABLES[wanted.summarise]))
            return
        folder = _folder(wanted.curves)
        if wanted.open_seal:
            _sealed(wanted, folder, home)
        else:
            parts = (curves.DEVELOPMENT,)
            print(_evidence(home / TABLES["dev"], wanted, folder, parts, {"commit": git_commit()}))
    except (ValueError, OSError) as error:
        sys.stderr.write(f"forecast_backtest: {error}\n")
        raise SystemExit(2) from None


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", type=Path, help="folder of the public curves; else TSL_JAX_CURVES")
    parser.add_argument("--pool", type=Path, default=HOME / "pool", help="folder of the run pool")
    parser.add_argument("--only", choices=PROTOCOLS, action="append", help="one protocol; may be given several times")
    parser.add_argument("--data", help="only data sets whose name begins so")
    parser.add_argument("--fresh", action="store_true", help="forget the rows there are (development only)")
    parser.add_argument("--open-seal", action="store_true", help="the sealed data instead of the development data")
    parser.add_argument("--summarise", choices=TABLES, help="forecast nothing; the summary of a table that is kept")
    wanted = parser.parse_args(arguments)
    if wanted.fresh and wanted.open_seal:
        parser.error("--fresh: sealed rows are kept; an opening makes all of its own")
    return wanted


def _folder(named: Path | None) -> Path | None:
    name = named or os.environ.get("TSL_JAX_CURVES")
    if name is not None and not Path(name).is_dir():
        raise ValueError(f"--curves (or TSL_JAX_CURVES) must be a folder of curves, found {name}")
    return None if name is None else Path(name)


def _kept(path: Path) -> str:
    """The summary of a table; of the sealed one, of its last opening."""
    rows = pd.read_csv(path)
    return summary(rows if "opening" not in rows else rows[rows.opening == rows.opening.max()])


def _sealed(wanted: argparse.Namespace, folder: Path | None, home: Path) -> None:
    """Say what will happen, count the opening, make the rows, log them."""
    head = seal.commit(home, own=(seal.RECORD, TABLES["sealed"]))
    before = len(seal.openings(home))
    print(
        f"The sealed part will be opened at commit {head}; openings before: {before}. Read will be the sealed runs of "
        f"{folder or 'no folder of curves'} and of {wanted.pool}, and the development runs as their siblings. The "
        f"rows go to {home / TABLES['sealed']}, their summary into {home / seal.LOG}, the count into "
        f"{home / seal.RECORD}: commit all three.",
        flush=True,
    )
    opening = seal.open_seal(home, head)
    facts = {"commit": head, "opening": opening["number"]}
    text = _evidence(home / TABLES["sealed"], wanted, folder, curves.PARTS, facts)
    print(text)
    seal.close(home, opening, _command(), text)


def _command() -> str:
    return " ".join(["python", "experiments/forecast_backtest.py", *sys.argv[1:]])


def _evidence(
    path: Path, wanted: argparse.Namespace, folder: Path | None, parts: tuple[str, ...], facts: dict[str, Any]
) -> str:
    """The summary of all rows of the last of these parts, those made that were not there, and what is left out."""
    every, said = curves.load(parts, folder, wanted.pool)
    for sentence in said:
        print(sentence, flush=True)
    chosen = [
        case
        for case in cases.cases(every, parts[-1])
        if case.protocol in (wanted.only or PROTOCOLS) and case.target.data.startswith(wanted.data or "")
    ]
    made = pd.read_csv(path).to_dict("records") if path.exists() and not wanted.fresh else []
    there = _there(made, facts)
    todo = [(case, method) for case in chosen for method in case.methods if not _names(case, method) <= there]
    print(f"{cases.count(chosen)} forecasts, {len(todo)} to make: some seconds each beside siblings, else about one")
    path.parent.mkdir(parents=True, exist_ok=True)
    for case, method in track(todo, "forecasts"):
        made += [row | facts for row in rows(case, method)]
        text = pd.DataFrame(made).to_csv(index=False, float_format="%.8g").encode()
        write_atomically(path, lambda file, text=text: file.write(text))
    mine = pd.DataFrame([row for row in made if row.get("opening") == facts.get("opening")])
    if mine.empty:
        raise ValueError("no run is there to forecast; name a folder of curves with --curves")
    return "\n\n".join([*said, summary(mine)])


def _there(made: list[dict[str, Any]], facts: dict[str, Any]) -> set[tuple[Any, ...]]:
    """The names of the rows of this opening."""
    return {tuple(row[name] for name in KEY) for row in made if row.get("opening") == facts.get("opening")}


def _names(case: cases.Case, method: Any) -> set[tuple[Any, ...]]:
    """The names of the rows that a method makes of a case, in the order of KEY."""
    target = case.target
    splits = target.surface.split.values.tolist()
    return {(case.protocol, target.data, target.run, split, cases.name_of(method), case.cutoff) for split in splits}


if __name__ == "__main__":
    main()
