"""Does the present code make the kept results again? Each study is analysed anew and compared with NAME/results/cpu.

    python -m experiments.compare_results [NAME ...]        all studies: over half an hour of one core

Nothing is trained and nothing written. Numbers agree where they are the same to the digits that are reported: four
significant ones, as shared/tables.py renders them, or to SMALL of the largest in their column. Every other
difference is printed, and ends the command with exit code 1.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.shared.findings import table_path
from experiments.shared.study import HOME, load_runs
from tsl_jax.sweeps import Pool

STUDIES = (
    "position_law",
    "temporal_fit",
    "temporal_prediction",
    "by_position",
    "learning_dynamics",
    "mid_run_changes",
    "selection_cost",
    "mixture_selection",
    "kaplan",
    "position_weighting",
)
DIGITS, SMALL = 5e-4, 1e-7
ROUNDING = {"lm_sse_excess": 1e-9}  # two solvers at one optimum: what is left is the rounding of the machine


def differences(kept: Path, tables: Mapping[str, pd.DataFrame], claims: list[dict[str, Any]]) -> Iterator[str]:
    """A sentence for each cell, claim or table of a folder of results that is not what was made now."""
    findings = json.loads((kept / "findings.json").read_text())
    if set(findings["tables"]) != set(tables):
        yield f"tables: kept {sorted(findings['tables'])}, now {sorted(tables)}"
    for before, now in zip(findings["claims"], claims, strict=True):
        yield from (f"claim {before['claim']!r}, {key}: kept {before[key]!r}, now {now[key]!r}"
                    for key in ("claim", "verdict") if before[key] != now[key])  # fmt: skip
    for name in set(findings["tables"]) & set(tables):
        before = pd.read_csv(table_path(kept, name))
        now = pd.read_csv(io.StringIO(tables[name].to_csv(index=False)))
        yield from (f"{name}: {sentence}" for sentence in cells(before, now))


def cells(kept: pd.DataFrame, now: pd.DataFrame) -> Iterator[str]:
    """A sentence for each cell of a table that differs beyond the digits that are reported."""
    if list(kept.columns) != list(now.columns) or len(kept) != len(now):
        yield f"kept {len(kept)} rows of {list(kept.columns)}, now {len(now)} of {list(now.columns)}"
        return
    for column in kept.columns:
        before, after = kept[column], now[column]
        if pd.api.types.is_numeric_dtype(before) and pd.api.types.is_numeric_dtype(after):
            before, after = before.to_numpy(float), after.to_numpy(float)
            scale = SMALL * np.nanmax(np.abs(before), initial=0) if np.isfinite(before).any() else 0
            same = np.isclose(before, after, rtol=DIGITS, atol=max(scale, ROUNDING.get(column, 0)), equal_nan=True)
        else:
            same = (before.fillna("").astype(str) == after.fillna("").astype(str)).to_numpy()
        for row in np.flatnonzero(~same):
            where = ", ".join(str(value) for value in kept.iloc[row] if isinstance(value, str))
            yield f"row {row} ({where[:100]}), {column}: kept {kept[column].iloc[row]}, now {now[column].iloc[row]}"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.compare_results", description=__doc__)
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"of {', '.join(STUDIES)}; default all")
    names = parser.parse_args(arguments).names or STUDIES
    if unknown := [name for name in names if name not in STUDIES]:
        parser.error(f"expected some of {', '.join(STUDIES)}, found {unknown[0]!r}")
    different = 0
    for name in names:
        study = importlib.import_module(f"experiments.{name}.study").STUDY
        findings = study.analyse(load_runs(Pool(HOME / "kept_runs", Path("runs/pool")), study.runs("cpu"), "cpu"))
        claims = [{"claim": claim.claim, "verdict": claim.verdict} for claim in findings.claims]
        mismatches = list(differences(HOME / name / "results" / "cpu", findings.tables, claims))
        different += len(mismatches)
        print(
            "\n".join([f"{name}: {len(mismatches)} differences in {len(findings.tables)} tables", *mismatches]),
            flush=True,
        )
    return int(different > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
