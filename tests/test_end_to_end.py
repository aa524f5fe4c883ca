"""The main job through the command line, tiny: text -> run -> surface -> fits -> forecasts -> page and summary."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from test_cli import tsl_command

import tsl_jax as tsl
from tsl_jax.forecasting import METHODS
from tsl_jax.forecasting.methods import REPORTED

WORDS = (
    *("the", "loss", "of", "a", "token", "falls", "with", "its", "context", "as", "hyperbola", "and", "training"),
    *("power", "tokens", "seen"),
)
TINY = (
    *("--tokens", 40_000, "--context", 32, "--batch-size", 8, "--evaluations", 14, "--evaluation-batch", 32),
    *("--model.d-model", 16, "--model.n-layers", 1, "--model.n-heads", 2, "--data.vocabulary", 300),
    *("--evaluation.id-stretches", 12, "--evaluation.id-offsets", 4),
    *("--evaluation.ood-stretches", 8, "--evaluation.ood-offsets", 2),
)


def write_text(folder: Path) -> tuple[str, ...]:
    """Two domains of random sentences; `other` is not trained on."""
    rng = np.random.default_rng(0)
    for name, words in (("main", WORDS), ("other", WORDS[::-2])):
        (folder / name).mkdir(parents=True)
        for k in range(80):
            (folder / name / f"{k}.txt").write_text(" ".join(rng.choice(words, 400)))
    return f"main={folder}/main/*.txt@1", f"other={folder}/other/*.txt@0"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("end_to_end")
    text = write_text(folder / "text")
    assert tsl_command("train", "--text", *text, "--out", folder / "run", *TINY) == 0
    assert tsl_command("report", folder / "run") == 0
    return folder / "run"


def test_the_surface_says_what_it_is(run):
    surface = tsl.load_surface(run)
    assert surface.loss.dims == ("split", "tokens", "position")
    assert surface.split.values.tolist() == ["id", "ood"]
    assert surface.sizes["tokens"] == 14
    assert surface.position.values[[0, -1]].tolist() == [1, 32]
    assert int(surface.tokens[-1]) == 40_000 // 256 * 256
    for name in ("run", "model", "n_params", "schedule", "windows", "document_boundary", "seed", "versions", "corpus"):
        assert surface.attrs[name] not in (None, {}, ""), name
    assert float(surface.loss[0, -1].mean()) < float(surface.loss[0, 0].mean()) - 0.5  # it has learnt
    assert (surface.sem > 0).all()


def test_the_summary_has_its_stable_keys(run):
    summary = json.loads((run / "summary.json").read_text())
    methods = set(REPORTED)
    assert set(summary["splits"]) == {"id", "ood"}
    for split in summary["splits"].values():
        for key in ("tokens", "r2", "r2_additive", "r2_expected", "loss"):
            assert len(split[key]) == 14, key
        assert split["final_loss"] == split["loss"][-1]
        assert set(split["forecast"]) == {"0.1", "0.2", "0.3", "0.4"}
        for by_method in split["forecast"].values():
            assert set(by_method) == methods
            assert all({"final", "mse", "r2", "status"} <= set(scores) for scores in by_method.values())
    assert summary["tokens_per_second"] > 0
    assert {"prepare", "train", "evaluate", "analyse", "report"} <= set(summary["seconds"])
    assert {"hash", "bytes", "tokens", "shared_block_rate"} <= set(summary["corpus"])
    assert summary["versions"]["jax"]
    assert summary["config_hash"]


def test_the_summary_is_what_the_library_says(run):
    summary = json.loads((run / "summary.json").read_text())["splits"]["id"]
    surface = tsl.load_surface(run)
    fit = tsl.fit(tsl.laws.HYPERBOLIC, surface.loss, over="position")
    np.testing.assert_allclose(summary["r2"], fit.r2.sel(split="id"), rtol=1e-6)
    total = surface.attrs["schedule"]["total_tokens"]
    past = surface.sel(tokens=surface.tokens <= 0.4 * total)
    power = tsl.forecast(past, at=surface.tokens, method=tsl.baselines.POWER_LAW)
    expected = float(power.mean.sel(split="id")[-1])
    assert summary["forecast"]["0.4"]["power"]["final"] == pytest.approx(expected, rel=1e-6)


def test_the_page_is_there(run):
    page = (run / "report.html").read_text()
    assert "plotly" in page.lower()
    assert "temporal" in page


@pytest.mark.slow
def test_figures_for_print_are_written_on_request(run, tmp_path, capsys):
    assert not (run / "figures").exists()
    assert tsl_command("report", run, "--out", tmp_path, "--methods", "powr") == 2
    assert tsl_command("report", run, "--out", tmp_path, "--figures", "--methods", "power", "mean_annealing") == 0
    tested = json.loads((tmp_path / "summary.json").read_text())["splits"]["id"]["forecast"]["0.4"]
    assert set(tested) == {"power", "mean_annealing"}
    assert f"figures: {tmp_path / 'figures'}" in "".join(capsys.readouterr().out.split("\n"))
    names = {file.name for file in (tmp_path / "figures").iterdir()}
    for stem in ("position-curves-id", "parameters", "residual-ood", "r2-id", "prediction-10-id", "prediction-40-ood"):
        assert {f"{stem}.pdf", f"{stem}.svg", f"{stem}.png"} <= names, stem


def test_fit_reads_a_run(run, tmp_path):
    assert tsl_command("fit", run, "--out", tmp_path / "fits.parquet") == 0
    rows = pd.read_parquet(tmp_path / "fits.parquet")
    assert len(rows) == 28
    assert rows.curve[0] == f"id/{int(tsl.load_surface(run).tokens[0])}"


def test_forecast_of_a_run_from_its_beginning(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal, to rich
    assert tsl_command("forecast", run, "--cutoff", 0.4, "--methods", "all", "--out", tmp_path / "f.json") == 0
    forecasts = json.loads((tmp_path / "f.json").read_text())["forecasts"]
    power = next(forecast for forecast in forecasts if forecast["method"] == "power" and forecast["split"] == "id")
    summary = json.loads((run / "summary.json").read_text())
    output = capsys.readouterr().out
    assert "nats" in output
    assert "forecast  " in output, "its progress"
    count = len(METHODS)
    assert f"{count}/{count}" in output
    assert power["loss"][-1] == pytest.approx(summary["splits"]["id"]["forecast"]["0.4"]["power"]["final"])


def test_a_forecast_looks_ahead_only(run, tmp_path, capsys):
    assert tsl_command("forecast", run, "--out", tmp_path / "f.json") == 0
    output = capsys.readouterr().out
    assert "nats observed at 39,936 tokens, the end of the plan" in output
    assert "the run is finished" in output
    assert tsl_command("forecast", run, "--cutoff", 0.4, "--at", "1e4", "2e4", "--out", tmp_path / "f.json") == 2
    assert "--at 10,000 is not beyond the last checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "f.json").exists()


def test_evaluate_measures_the_kept_checkpoints_again(run, tmp_path, capsys):
    """On the same text and windows the numbers are the same, bit for bit; on other text they are its own."""
    assert tsl_command("evaluate", run, "--out", tmp_path / "same") == 0
    same, original = tsl.load_surface(tmp_path / "same"), tsl.load_surface(run)
    np.testing.assert_array_equal(same.loss, original.loss.sel(tokens=same.tokens))
    text = [part.split("@")[0] for part in write_text(tmp_path / "more")]
    capsys.readouterr()
    assert tsl_command("evaluate", run, "--out", tmp_path / "else", "--text", *text) == 0
    other = tsl.load_surface(tmp_path / "else")
    assert other.split.values.tolist() == ["main", "other"]
    assert not np.allclose(other.loss[1, -1], original.loss[0, -1])
    windows = other.attrs["windows"]["other"]
    output = " ".join(capsys.readouterr().out.split())
    assert f"{windows['documents']} documents of other, {windows['stretches'] * 2 * 32:,} token losses" in output


def test_a_run_is_exported_and_measured_as_a_published_model(run, tmp_path, capsys):
    """The same windows of the same text: same losses, whether parameters come from the run or from safetensors."""
    text = ("--text", f"other={run.parent}/text/other/*.txt")
    assert tsl_command("export", run, "--out", tmp_path / "published") == 0
    assert tsl_command("export", run, "--out", tmp_path / "published") == 2
    assert "published is there; name a new folder" in capsys.readouterr().err
    assert tsl_command("export", run, "--out", tmp_path / "none", "--step", 1) == 2
    assert "keeps the steps" in capsys.readouterr().err
    assert tsl_command("evaluate", run, "--out", tmp_path / "own", *text) == 0
    own = tsl.load_surface(tmp_path / "own").isel(tokens=[-1])
    options = ("--tokens", int(own.tokens[0]), "--out", tmp_path / "theirs", *text)
    windows = ("windows:eval-config", "--windows.ood-stretches", 8, "--windows.ood-offsets", 2)
    assert tsl_command("evaluate", "--hf", tmp_path / "published", *options, *windows) == 0
    theirs = tsl.load_surface(tmp_path / "theirs")
    np.testing.assert_allclose(theirs.loss, own.loss, atol=2e-6)
    np.testing.assert_array_equal(theirs.cluster_count, own.cluster_count)


def test_a_surface_of_too_few_checkpoints_explains_its_empty_table(run, tmp_path, capsys):
    assert tsl_command("evaluate", run, "--out", tmp_path / "few") == 0
    assert tsl_command("report", tmp_path / "few") == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "no forecast from 10%, 20%, 30%, 40%: it takes a checkpoint before and two after; there are 2 at" in output
    assert "forecast of the final loss" not in output


def test_a_complete_run_is_left_alone_and_another_is_refused(run, capsys):
    before = (run / "record.json").read_text()
    assert tsl_command("train", "--config", run / "config.yaml", "--out", run) == 0
    text = [f"{part}={run.parent}/text/{part}/*.txt@{w}" for part, w in (("main", 1), ("other", 0))]
    assert tsl_command("train", "--text", *text, "--out", run, *TINY) == 0
    assert tsl_command("train", "--text", *text, "--out", run, *TINY, "--seed", 1) == 2
    assert "another configuration" in capsys.readouterr().err
    assert (run / "record.json").read_text() == before


def unfinished(run: Path, out: Path, checkpoints: int) -> Path:
    """A copy of the run as it was before its last checkpoints."""
    shutil.copytree(run, out)
    for file in sorted((out / "surface").glob("tokens-*.npz"))[-checkpoints:]:
        file.unlink()
    shutil.rmtree(max((out / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name)))
    record = json.loads((out / "record.json").read_text())
    (out / "record.json").write_text(json.dumps({**record, "complete": False}))
    return out


def test_resume_needs_the_folder_alone_and_names_what_differs(run, tmp_path, capsys):
    out = unfinished(run, tmp_path / "my run", 1)
    assert tsl_command("train", "--out", out, *TINY) == 2
    assert "another configuration (data.text []" in capsys.readouterr().err
    assert tsl_command("train", "--out", out, "--resume", "--seed", 1, "--model.d-ff=8") == 2
    output = capsys.readouterr()
    assert "(model.d_ff 8, there 0, seed 1, there 0)" in output.err.replace("\n", " ")
    assert output.out == ""
    assert tsl_command("train", "--config", out / "config.yaml", "--out", out) == 2
    assert f"go on with: tsl train --out '{out}' --resume" in capsys.readouterr().err
    assert tsl_command("train", "--out", out, "--resume") == 0
    assert tsl.load_surface(out).drop_attrs().identical(tsl.load_surface(run).drop_attrs())


def test_a_report_of_an_unfinished_run_says_so_and_keeps_its_keys(run, tmp_path, capsys):
    out = unfinished(run, tmp_path / "part", 4)
    assert tsl_command("report", out) == 0
    output = " ".join(capsys.readouterr().out.split())
    share = float(tsl.load_surface(out).tokens[-1] / tsl.load_surface(run).tokens[-1])
    assert f"in-distribution text (id): unfinished: {share:.0%} of the plan; last loss so far" in output
    assert (
        f"no forecast from 40%: it takes a checkpoint before and two after; there are 10 at 1% to {share:.0%}" in output
    )
    part, whole = (json.loads((folder / "summary.json").read_text()) for folder in (out, run))
    assert set(part) == set(whole)
    assert set(part["splits"]["id"]) == set(whole["splits"]["id"])
    page = (out / "report.html").read_text()
    assert f"Unfinished: {share:.0%} of the plan." in page
    assert "final loss" not in page
    assert "no forecast from 40%" in page


def test_resume_where_there_is_no_run_is_a_mistake(tmp_path, capsys):
    assert tsl_command("train", "--out", tmp_path / "none", "--resume") == 2
    assert "holds no run to continue" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


ROOT = Path(__file__).parents[1]
DOCUMENTS = (
    "README.md",
    "notebooks/01_read_a_surface.ipynb",
    "notebooks/02_fit_curves.ipynb",
    "notebooks/03_forecast.ipynb",
    pytest.param("notebooks/04_position_weighting.ipynb", marks=pytest.mark.slow),
    pytest.param("notebooks/05_scaling.ipynb", marks=pytest.mark.slow),
    pytest.param("notebooks/06_kaplan.ipynb", marks=pytest.mark.slow),
    pytest.param("notebooks/07_your_own_logs.ipynb", marks=pytest.mark.slow),
    pytest.param("notebooks/08_mixtures.ipynb", marks=pytest.mark.slow),
)


def code_of(document: Path) -> str:
    """The snippet of the README, or all code of a notebook."""
    if document.suffix == ".md":
        return document.read_text().split("```python\n")[1].split("```")[0]
    cells = json.loads(document.read_text())["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_the_documents_show_runs(name, run, tmp_path, monkeypatch):
    document = ROOT / name
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(run)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    here = tmp_path / document.relative_to(ROOT).parent
    here.mkdir(exist_ok=True)
    monkeypatch.chdir(here)
    with mpl.rc_context():  # some set the style of their own figures
        exec(compile(code_of(document), document.name, "exec"), {})
    if "tsl.report(" in code_of(document):
        assert "mean_annealing" in (here / "report.html").read_text()


def test_ctrl_c_ends_with_130_and_keeps_what_is_done(run, tmp_path):
    text = [f"{part}={run.parent}/text/{part}/*.txt@{w}" for part, w in (("main", 1), ("other", 0))]
    options = [*TINY, "--tokens", 4_000_000]  # the last one counts: far longer than the test
    command = [sys.executable, "-m", "tsl_jax.cli", "train", "--text", *text, "--out", tmp_path / "run", *options]
    child = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    surface = tmp_path / "run" / "surface"
    deadline = time.time() + 120
    while time.time() < deadline and len(list(surface.glob("tokens-*.npz"))) < 1 and child.poll() is None:
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    _, stderr = child.communicate(timeout=60)
    assert child.returncode == 130, stderr
    assert f"interrupted; go on with: tsl train --out {tmp_path / 'run'} --resume" in stderr
    assert "Traceback" not in stderr
    assert tsl.load_surface(tmp_path / "run").sizes["tokens"] >= 1
