"""The kept results: claims are what the kept tables say, and a number that changed is found."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest

from experiments.compare_results import cells
from experiments.position_law import claims as position_law
from experiments.selection_cost import study as selection_cost
from experiments.shared.tables import cells as rendered
from experiments.temporal_fit import study as temporal_fit
from experiments.temporal_prediction import study as temporal_prediction

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
CLAIMS = {
    "position_law": lambda tables: position_law.claims(tables["position_law"], tables["checkpoints"], tables),
    "temporal_fit": lambda tables: temporal_fit.claims(
        tables["fit"], tables["differences"], temporal_fit.first_cosine(tables["runs"])
    ),
    "temporal_prediction": lambda tables: temporal_prediction.claims(tables["pairs"], "small-cosine"),
    "selection_cost": lambda tables: selection_cost.claims(tables["selection"], tables["costs"]),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_claims_and_verdicts_follow_from_the_kept_tables(name):
    folder = EXPERIMENTS / name / "results" / "cpu"
    findings = json.loads((folder / "findings.json").read_text())
    tables = {table: pd.read_csv(folder / f"{table}.csv") for table in findings["tables"]}
    assert [asdict(claim) for claim in CLAIMS[name](tables)] == findings["claims"]


def test_results_of_a_study_are_no_more_than_a_megabyte():
    for folder in EXPERIMENTS.glob("*/results"):
        files = [path for path in folder.rglob("*") if path.suffix in (".csv", ".json", ".png", ".parquet")]
        assert sum(path.stat().st_size for path in files) <= 1e6, folder


def test_a_number_that_differs_beyond_four_digits_is_found():
    table = pd.DataFrame({"arm": ["a", "b"], "loss": [1.0, 2.0], "lm_sse_excess": [1e-15, 0.0], "moves": ["", "a2"]})
    assert not list(cells(table, table.assign(loss=[1.0001, 2.0], lm_sse_excess=[-3e-15, 1e-14])))
    (difference,) = cells(table, table.assign(loss=[1.0, 2.01]))
    assert difference == "row 1 (b, a2), loss: kept 2.0, now 2.01"
    assert len(list(cells(table, table.assign(moves=["a0", "a2"])))) == 1
    assert "now 1 of" in next(cells(table, table.iloc[:1]))


def test_an_interval_is_one_cell_of_four_digits():
    table = pd.DataFrame({"arm": ["a"], "loss": [1.23456], "loss_low": [1.0], "loss_high": [2.0], "n": [5]})
    assert rendered(table) == (["arm", "loss", "n"], [["a", "1.235 [1, 2]", "5"]])
