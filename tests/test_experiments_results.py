"""The kept results: claims are what the kept tables say, and a number that changed is found."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.by_position import study as by_position
from experiments.compare_results import cells, main
from experiments.kaplan import claims as kaplan
from experiments.mixture_selection import study as mixture_selection
from experiments.position_law import claims as position_law
from experiments.selection_cost import study as selection_cost
from experiments.shared.findings import table_path
from experiments.shared.labels import COLUMNS, PATTERNS, column
from experiments.shared.tables import cells as rendered
from experiments.shared.tables import is_number, rounded
from experiments.temporal_fit import study as temporal_fit
from experiments.temporal_prediction import study as temporal_prediction

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
CLAIMS = {
    "position_law": lambda tables: position_law.claims(tables["position_law"], tables["checkpoints"], tables),
    "temporal_fit": lambda tables: temporal_fit.claims(
        tables["fit"], tables["differences"], temporal_fit.first_cosine(tables["runs"])
    ),
    "temporal_prediction": lambda tables: temporal_prediction.claims(tables["pairs"], "small-cosine"),
    "by_position": lambda tables: by_position.claims(tables["comparisons"]),
    "selection_cost": lambda tables: selection_cost.claims(tables["selection"], tables["costs"]),
    "mixture_selection": lambda tables: mixture_selection.claims(tables["strategies"], tables["differences"]),
    "kaplan": kaplan.all_claims,
}


@pytest.mark.parametrize("name", CLAIMS)
def test_claims_and_verdicts_follow_from_the_kept_tables(name):
    folder = EXPERIMENTS / name / "results" / "cpu"
    findings = json.loads((folder / "findings.json").read_text())
    tables = {table: pd.read_csv(table_path(folder, table)) for table in findings["tables"]}
    assert [asdict(claim) for claim in CLAIMS[name](tables)] == findings["claims"]


def test_results_of_a_study_are_no_more_than_a_megabyte():
    for folder in EXPERIMENTS.glob("*/results"):
        files = [path for path in folder.rglob("*") if path.suffix in (".csv", ".gz", ".json", ".png", ".parquet")]
        assert sum(path.stat().st_size for path in files) <= 1e6, folder


def test_a_number_that_differs_beyond_four_digits_is_found():
    table = pd.DataFrame({"arm": ["a", "b"], "loss": [1.0, 2.0], "lm_sse_excess": [1e-15, 0.0], "moves": ["", "a2"]})
    assert not list(cells(table, table.assign(loss=[1.0001, 2.0], lm_sse_excess=[-3e-15, 1e-14])))
    (difference,) = cells(table, table.assign(loss=[1.0, 2.01]))
    assert difference == "row 1 (b, a2), loss: kept 2.0, now 2.01"
    assert len(list(cells(table, table.assign(moves=["a0", "a2"])))) == 1
    assert "now 1 of" in next(cells(table, table.iloc[:1]))


def test_kept_findings_are_of_a_commit_without_changes():
    for path in EXPERIMENTS.glob("*/results/*/findings.json"):
        commit = json.loads(path.read_text())["made"]["git_commit"]
        assert re.fullmatch("[0-9a-f]{40}", commit), (path, commit)


def test_an_interval_is_one_cell_and_a_column_has_decimals_in_common():
    table = pd.DataFrame({
        "arm": ["a", "b", "c"],
        "loss": [1.23456, -10.5, np.nan], "loss_low": [1.0, np.nan, np.nan], "loss_high": [2.0, np.nan, np.nan],
        "cutoff": [0.1, 0.25, 0.4], "tokens": [1e6, 2e6, np.nan], "lm_sse_excess": [2.22e-16, 0.0, 0.5],
        "converged": [True, False, True], "method": ["power", None, "paper"],
    })  # fmt: skip
    head, rows = rendered(table)
    assert head[:3] == ["arm", "loss", "cut-off, share of the tokens"]
    assert head[-1] == "method"
    assert rows == [
        ["a", "1.235 [1.000, 2.000]", "0.10", "1,000,000", "2.22e−16", "yes", "power"],
        ["b", "−10.500", "0.25", "2,000,000", "0", "no", "–"],
        ["c", "–", "0.40", "–", "0.5", "yes", "paper"],
    ]
    assert [is_number(cell) for cell in ("–", "−1.2 [0, 1]", "1,000", "id", "a0")] == [True, True, True, False, False]


def test_every_column_of_the_kept_tables_has_words():
    for path in EXPERIMENTS.glob("*/results/cpu/*.csv*"):
        for name in pd.read_csv(path, nrows=0).columns:
            assert "_" not in column(name), (path, name)
            assert name in COLUMNS or any(re.fullmatch(pattern, name) for pattern in PATTERNS), (path, name)


def test_numbers_of_a_claim_have_four_digits_and_no_nan():
    table = pd.DataFrame({"law": ["a", "b"], "r2": [0.123456, np.nan], "seeds": [3, 4], "more": [1, 2]})
    assert rounded(table, "law", "r2", "seeds") == [
        {"law": "a", "r2": 0.1235, "seeds": 3},
        {"law": "b", "r2": None, "seeds": 4},
    ]


def test_a_name_that_is_no_study_is_refused_with_those_there_are(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["position_laws"])
    assert "expected some of position_law, " in capsys.readouterr().err
