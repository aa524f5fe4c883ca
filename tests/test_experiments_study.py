"""A study: from kept runs to its folder of results, and what it says where runs or plans are missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import xarray as xr
import yaml

import tsl_jax as tsl
from experiments.shared import Claim, Findings, Runs, Study, findings
from experiments.shared import solver_comparison as lm
from experiments.shared.tables import markdown
from tsl_jax.sweeps import distribute
from tsl_jax.sweeps.archive import read_manifests

BASE = Path(__file__).parents[1] / "experiments" / "kept_runs" / "base.parquet"


def analyse(runs: Runs) -> Findings:
    """The last losses, drawn."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(2, 2))
    axes = figure.add_subplot()
    ends = {name: float(surface.loss.isel(tokens=-1).sel(split="id").mean()) for name, surface in runs.surfaces.items()}
    axes.plot(list(ends.values()))
    table = pd.DataFrame(
        {"run": list(ends), "loss": list(ends.values()), "n": [runs.manifests[k]["n_params"] for k in ends]}
    )
    count = len(runs.named("a-"))
    claim = Claim("They end", "yes", f"{count} of 2", "agrees", numbers=[{"runs": 2, "ends": count, "missing": None}])
    return Findings({"ends": table}, [claim], ["One | two."], {"drawn": figure}, {"drawn": "What is drawn."})


STUDY = Study(name="made_up", title="Do they end?", decided="2026-11-26", analyse=analyse, minutes=0.1)


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """Two kept runs under other names than the plan's, and a plan of a third that is not kept."""
    monkeypatch.setattr(distribute, "train", None)
    monkeypatch.chdir(tmp_path)
    plans = tmp_path / "made_up" / "plans"
    plans.mkdir(parents=True)
    (tmp_path / "kept_runs").mkdir()
    shutil.copy(BASE, tmp_path / "kept_runs")
    config = read_manifests(BASE)["small-cosine"]["config"]
    plan = {"name": "a-{seed}", "base": config, "grid": {"seed": [0, 1]}}
    (plans / "cpu.yaml").write_text(yaml.safe_dump(plan))
    (plans / "gpu.yaml").write_text(yaml.safe_dump(plan | {"grid": {"seed": [1, 7]}}))
    return tmp_path


def test_a_study_of_kept_runs_trains_nothing_and_writes_its_results(home, capsys):
    STUDY.main([], home)
    folder = home / "made_up" / "results" / "cpu"
    assert {f"drawn.{kind}" for kind in ("png", "svg", "pdf")} <= {path.name for path in folder.iterdir()}
    table = pd.read_csv(folder / "ends.csv")
    assert table.run.tolist() == ["a-0", "a-1"]
    saved = json.loads((folder / "findings.json").read_text())
    assert saved["claims"][0]["ours"] == "2 of 2"
    assert saved["figures"] == {"drawn": "What is drawn."}
    assert (saved["study"], saved["scale"], saved["command"]) == ("made_up", "cpu", "tsl reproduce made_up --scale cpu")
    final_loss = read_manifests(BASE)["small-cosine@1"]["final_loss"]["id"]
    assert table.loss[1] == pytest.approx(final_loss, abs=1e-7)
    output = capsys.readouterr().out
    assert "nothing to train: every run is kept" in output
    assert [line for line in output.splitlines() if not line.startswith("warning: code")][-4:] == [
        "agrees        They end: 2 of 2",
        "1 agrees",
        f"tables, figures: {folder.resolve()}",
        f"page: {home.resolve()}/results/index.html",
    ]
    page = (home / "results" / "index.html").read_text()
    assert "Do they end?" in page
    assert 'src="../made_up/results/cpu/drawn.png"' in page
    assert "* They end: paper yes" not in output
    assert not (home / "runs").exists()


def test_all_of_the_text_comes_on_demand_before_the_verdicts(home, capsys):
    STUDY.main(["--text"], home)
    output = capsys.readouterr().out
    assert "* They end: paper yes; here 2 of 2: agrees.\n" in output
    assert "| runs | ends | without forecast |" in output
    assert "| 2 | 2 | – |" in output


def test_the_verdicts_of_many_claims_end_within_twenty_lines_of_a_terminal():
    claims = [Claim("a claim of many words " * 9, "yes", "no", "out of reach")] * 30
    lines = Findings({}, claims, []).verdict_lines(80)
    assert len(lines) + 4 <= 20  # an empty line, a warning, the folder, the page
    assert max(map(len, lines)) == 80
    assert lines[0].startswith("out of reach  a claim")
    assert lines[0].endswith("…")
    assert lines[-2:] == ["and 16 more claims", "30 out of reach"]


@pytest.mark.parametrize(("commit", "warned"), [("c0ffee-dirty", True), ("c0ffee", False), (None, False)])
def test_results_of_changed_code_come_with_a_warning(home, capsys, monkeypatch, commit, warned):
    monkeypatch.setattr(
        findings, "environment", lambda: {"machine": "a", "cores": 1, "device": "b", "git_commit": commit}
    )
    STUDY.main([], home)
    assert ("warning: code or plans were changed" in capsys.readouterr().out) == warned
    assert json.loads((home / "made_up/results/cpu/findings.json").read_text())["made"]["git_commit"] == commit


def test_cost_says_what_is_there_and_does_nothing(home, capsys):
    STUDY.main(["--scale", "gpu", "--cost"], home)
    output = capsys.readouterr().out
    assert output.splitlines()[:2] == ["a-1  kept", "a-7  to do"]
    assert "to make: 1 runs; what they cost is not known yet: data: runs/corpora/four holds no whole corpus" in output
    assert not (home / "made_up" / "results").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scale", "paper"], "--scale may be: cpu, gpu"),
        (["--scale", "gpu"], "holds no whole corpus"),
        (["--minutes", "-1"], "--minutes not negative"),
    ],
)
def test_what_cannot_work_is_a_sentence_and_exit_code_2(home, capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        STUDY.main(arguments, home)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_an_interrupt_ends_with_130(home, capsys):
    def interrupted(runs):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        Study("made_up", "?", "2026-11-26", interrupted, 1).main([], home)
    assert ended.value.code == 130


def test_a_table_with_bars_in_its_cells_stays_a_table():
    assert markdown(pd.DataFrame({"|q|": ["|x|", np.nan]})).splitlines() == [
        r"| \|q\| |",
        "| --- |",
        r"| \|x\| |",
        "| – |",
    ]


def test_a_verdict_is_one_of_four():
    with pytest.raises(ValueError, match="a verdict is one of"):
        Claim("a", "b", "c", "maybe")


@pytest.mark.parametrize(("dims", "both"), [((), 1), (("run",), 3), (("split", "run"), 7)])
def test_the_columns_of_levenberg_marquardt_take_every_curve_whatever_its_dimensions(monkeypatch, dims, both):
    """Curves with missing values are left out; of the others the first is one that Levenberg-Marquardt fails on."""

    def fit(law, y, over, method="varpro"):
        assert y.dims == ("curve", "position")
        sse = xr.ones_like(y.curve, dtype=float) * (1.5 if method == "lm" else 1.0)
        sse[0] = np.nan if method == "lm" and len(sse) > 1 else sse[0]
        return SimpleNamespace(sse=sse, r2=1 - sse / 10)

    monkeypatch.setattr(lm.tsl, "fit", fit)
    sizes = {"split": 2, "run": 4, "position": 8}
    curves = xr.DataArray(np.ones([sizes[dim] for dim in (*dims, "position")]), dims=(*dims, "position"))
    assert lm.beside(tsl.laws.HYPERBOLIC, curves, "position") == {
        "lm_r2": 0.85, "lm_sse_excess": 0.5, "lm_curves": both
    }  # fmt: skip
    assert lm.beside(tsl.laws.HYPERBOLIC, curves.where(False), "position")["lm_curves"] == 0
