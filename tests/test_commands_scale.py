"""`tsl scale` as a user types it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tsl_jax.cli import run_verb
from tsl_jax.laws import CHINCHILLA


def scale(*arguments: Any) -> int:
    return run_verb("scale", [str(argument) for argument in arguments], debug=False)


@pytest.fixture(name="table", scope="module")
def _table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [(n, n * ratio) for n in np.geomspace(3e7, 3e9, 5) for ratio in (5, 20, 80)]
    runs = pd.DataFrame(rows, columns=["n_params", "tokens"])
    c, random = CHINCHILLA.published, np.random.default_rng(0)
    runs["loss"] = c["E"] + c["A"] / runs.n_params ** c["alpha"] + c["B"] / runs.tokens ** c["beta"]
    runs["loss"] *= np.exp(0.002 * random.standard_normal(len(runs)))
    file = tmp_path_factory.mktemp("runs") / "runs.csv"
    runs.to_csv(file, index=False)
    return file


FAST = ("--resamples", 8, "--loss", "log")


def test_a_ladder_is_fitted_predicted_and_allocated(table: Path, tmp_path: Path, capsys: Any) -> None:
    assert scale("fit", table, *FAST, "--out", tmp_path / "fit.csv") == 0
    assert "held out (n_params 3e+09)" in capsys.readouterr().out
    assert pd.read_csv(tmp_path / "fit.csv").parameter.tolist() == list(CHINCHILLA.params)
    assert scale("predict", table, *FAST, "--at", "n_params=3e10", "tokens=6e11") == 0
    assert "extrapolated 10 times beyond the largest run" in capsys.readouterr().out
    assert scale("allocate", table, *FAST, "--flops", "1e21") == 0
    assert "702 hours of a device" in capsys.readouterr().out
    assert scale("design", table, *FAST, "--at", "n_params=3e10", "tokens=6e11", "--flops", "1e21") == 0
    assert "sd of log loss at the target" in capsys.readouterr().out


def test_laws_of_the_least_steps_and_compute_read_what_follows_from_the_batch(
    table: Path, tmp_path: Path, capsys: Any
) -> None:
    pd.read_csv(table).assign(batch_tokens=5e5).to_csv(tmp_path / "runs.csv", index=False)
    for law in ("kaplan_ns", "kaplan_c", "kaplan_c_min"):
        assert scale("fit", tmp_path / "runs.csv", "--law", law, "--loss", "log", "--resamples", 0) == 0
        out = capsys.readouterr().out
        assert ("by the paper's critical batch" in out) == (law != "kaplan_c")
        assert "intervals" not in out
        assert " low" not in out


def test_budgets_and_planned_runs_need_no_runs(capsys: Any) -> None:
    assert scale("allocate", "--flops", "1e21") == 0
    out = capsys.readouterr().out
    assert "chinchilla, 1e+21 FLOPs" in out
    assert "kaplan_ns, 1e+21 FLOPs" in out
    assert scale("simulate", "--at", "n_params=1e9", "tokens=2e10", "batch_tokens=5e5") == 0
    assert "the end: 2.6876 nats after 40,000 steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fit",), "fit needs runs, a table or folders"),
        (("allocate",), "allocate needs the budget, --flops 1e21"),
        (("simulate", "--at", "n_params=x"), "--at takes NAME=NUMBER, found 'n_params=x'"),
        (("simulate", "--at", "n_params=1e9"), "--at needs n_params=NUMBER tokens=NUMBER batch_tokens=NUMBER"),
        (("simulate", "--at", "n_params=-1"), "--at takes positive numbers"),
        (("allocate", "--flops", "1e21", "--utilisation", "0"), "the utilisation is a share in (0, 1], found 0.0"),
        (("allocate", "--flops", "1e21", "--law", "kaplan_n"), "expected a law over n_params and tokens or steps_min"),
        (("fit", "TABLE", *FAST, "--group", "size"), "there is no column 'size' to group by"),
        (("fit", "TABLE", *FAST, "--held-out", "-1"), "resamples and held_out are 0 or more, found 8 and -1"),
        (("fit", "TABLE", *FAST, "--law", "kaplan_ns"), "need batch_tokens, steps, which the runs lack"),
        (
            ("fit", "TABLE", *FAST, "--critical", "B_star=1", "--law", "kaplan_ns"),
            "--critical needs B_star=NUMBER alpha_B",
        ),
        (("design", "TABLE", *FAST, "--flops", "1", "--at", "n_params=1e9", "tokens=2e10"), "the smallest size, 3e+07"),
    ],
)
def test_mistakes_get_a_sentence(arguments: tuple[str, ...], message: str, table: Path, capsys: Any) -> None:
    assert scale(*(table if argument == "TABLE" else argument for argument in arguments)) == 2
    assert message in capsys.readouterr().err
