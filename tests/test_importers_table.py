"""Tables of losses become surfaces: from any kind of file, in any order of rows, or a sentence that names the row."""

import hashlib
import json
import os
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from conftest import PLAN
from test_cli import tsl_command

import tsl_jax as tsl
from tsl_jax.commands import analysis
from tsl_jax.forecasting import METHODS, backtest, methods
from tsl_jax.importers import json_logs

KINDS = ("csv", "jsonl", "parquet")
CURVES = os.environ.get("TSL_JAX_CURVES")
public = pytest.mark.skipif(not CURVES, reason="TSL_JAX_CURVES does not name the folder of public loss curves")


def table(**columns: list) -> pd.DataFrame:
    """Two runs of three checkpoints and two losses, unless a column is replaced, or removed by None."""
    defaults = {
        "size": ["1M"] * 3 + ["2M"] * 3,
        "rerun": [None] * 3 + ["again"] * 3,
        "n_params": [1_000_000] * 3 + [2_000_000] * 3,
        "step": [10, 20, 30, 10, 20, 30],
        "tokens": [1000, 2000, 3000, 1000, 2000, 3000],
        "lr": [3e-4, 2e-4, 1e-4] * 2,
        "web": [4.0, 3.5, 3.25, 3.9, 3.4, 3.1],
        "code": [3.0, 2.5, 2.25, 2.9, 2.4, 1 / 3],
    }
    return pd.DataFrame({name: cells for name, cells in {**defaults, **columns}.items() if cells is not None})


def written(folder: Path, rows: pd.DataFrame, kind: str = "csv") -> Path:
    file = folder / f"runs.{kind}"
    if kind == "jsonl":  # to_json would round
        file.write_text("".join(json.dumps(row) + "\n" for row in rows.to_dict("records")))
    else:
        rows.to_csv(file, index=False) if kind == "csv" else rows.to_parquet(file)
    return file


NAMED = {"loss": ["web", "code"], "run": ["size", "rerun"]}


@pytest.mark.parametrize("kind", KINDS)
def test_runs_and_splits_of_any_kind_of_file(kind, tmp_path):
    file = written(tmp_path, table().iloc[[5, 0, 4, 2, 1, 3]], kind)
    surfaces = tsl.read_table(file, **NAMED)
    assert list(surfaces) == ["2M-again", "1M"]
    surface = surfaces["2M-again"]
    assert surface.loss.dims == ("split", "tokens", "position")
    assert surface.split.values.tolist() == ["web", "code"]
    assert surface.tokens.values.tolist() == [1000, 2000, 3000]
    assert surface.position.values.tolist() == [1]
    np.testing.assert_array_equal(surface.loss[:, :, 0], [[3.9, 3.4, 3.1], [2.9, 2.4, 1 / 3]])
    np.testing.assert_array_equal(surface.lr, [3e-4, 2e-4, 1e-4])
    assert surface.step.dims == ("tokens",)
    assert surface.step.values.tolist() == [10, 20, 30]
    sha = hashlib.sha256(file.read_bytes()).hexdigest()
    source = {"file": file.name, "sha256": sha}
    facts = {"run": "2M-again", "n_params": 2_000_000, "loss_is": "mean over positions", "source": source}
    assert surface.attrs == {"units": "nats/token", **facts}
    assert tsl.load_surface(tsl.save_surface(surface, tmp_path / "one")).identical(surface)


def test_a_table_without_runs_is_one_and_steps_may_be_the_clock(tmp_path):
    rows = table(tokens=None, size=None, rerun=None, n_params=None, lr=None).iloc[:3]
    file = written(tmp_path, rows)
    (surface,) = tsl.read_table(file, loss="web", tokens_per_step=512).values()
    assert surface.attrs["run"] == "runs"
    assert surface.tokens.values.tolist() == [5120, 10240, 15360]
    assert surface.attrs["batch_tokens"] == 512
    assert "lr" not in surface.coords
    surface = tsl.read_table(file, loss="web", tokens_per_step=1, warmup_tokens=10, schedule=PLAN)["runs"]
    assert surface.tokens.values.tolist() == surface.step.values.tolist() == [10, 20, 30]
    assert (surface.attrs["warmup_tokens"], surface.attrs["schedule"]) == (10, PLAN)


def test_a_column_of_positions_makes_a_grid(tmp_path):
    rows = pd.DataFrame({"tokens": [2, 1, 1, 2], "position": [8, 8, 2, 2], "loss": [1.0, 3.0, 4.0, 2.0]})
    surface = tsl.read_table(written(tmp_path, rows), position="position")["runs"]
    assert surface.position.values.tolist() == [2, 8]
    np.testing.assert_array_equal(surface.loss[0], [[4.0, 3.0], [2.0, 1.0]])
    assert "loss_is" not in surface.attrs
    with pytest.raises(ValueError, match="run runs: tokens 1 has 1 positions, the run 2; add the rows"):
        tsl.read_table(written(tmp_path, rows.drop(index=1)), position="position")


def test_missing_losses_are_dropped_only_if_that_is_allowed(tmp_path):
    gaps = table(web=[4.0, np.nan, 3.25, 3.9, 3.4, np.nan], code=[3.0, np.nan, 2.25, 2.9, 2.4, 2.1])
    for kind in KINDS:
        file = written(tmp_path, gaps, kind)
        with pytest.raises(ValueError, match=rf"runs\.{kind}, run 1M, row 2: web is nan, .* \(--allow-missing\)"):
            tsl.read_table(file, **NAMED)
        surfaces = tsl.read_table(file, **NAMED, allow_missing=True)
        assert surfaces["1M"].tokens.values.tolist() == [1000, 3000]
        assert surfaces["2M-again"].loss.isnull().values.ravel().tolist() == [False, False, True, False, False, False]


REPLACED = {
    "twice": ({"tokens": [1, 2, 2, 1, 2, 3]}, "run 1M, row 3: tokens 2 stands in row 2 too; keep one of them"),
    "negative": ({"web": [4, 3, 2, 1, -2, -1]}, r"run 2M-again, row 5: web is -2, .* \(2 such rows\); a loss is a"),
    "infinite": ({"code": [4, 3, 2, 1, np.inf, 1]}, "run 2M-again, row 5: code is inf, expected a loss"),
    "word": ({"lr": ["0", "0", "x", "0", "0", "0"]}, "run 1M, row 3: lr is 'x', expected a number"),
    "hole": ({"lr": [0, 0, None, 0, 0, 0]}, r"run 1M, row 3: lr is nan, .* or leave the column out with lr=None"),
    "billions": ({"tokens": [1, 2, 2.5, 1, 2, 3]}, "row 3: tokens is 2.5, expected a whole number; multiply"),
    "models": ({"n_params": [1, 2, 2, 3, 3, 3]}, r"run 1M, row 2: n_params is 2, in a row before 1 \(2 such rows\)"),
    "no column": ({"code": None}, "expected code among the columns, found size, .*, web; name those that are there"),
    "no tokens": ({"tokens": None}, r"expected a column of tokens, found size, .* \(--tokens-per-step; 1: steps are"),
    "no name": ({"size": [None] * 6}, "row 1: the run has no name; name other columns"),
    "same name": ({"size": ["a", "a-again"] * 3, "rerun": ["again", None] * 3}, "a second run is called a-again"),
}


@pytest.mark.parametrize("what", REPLACED)
def test_a_cell_that_makes_no_sense_is_named(what, tmp_path):
    columns, sentence = REPLACED[what]
    with pytest.raises(ValueError, match=rf"table: runs\.csv.*{sentence}"):
        tsl.read_table(written(tmp_path, table(**columns)), **NAMED)


ASKED = {
    "both clocks": ({"tokens_per_step": 2}, "tokens_per_step beside a column of tokens, tokens; leave tokens_per_step"),
    "no step": ({"tokens_per_step": 2, "tokens": None, "step": None}, "tokens_per_step needs a column of steps, found"),
    "half a batch": ({"tokens_per_step": 1.5, "tokens": None}, r"must be a whole number from 1, found 1\.5"),
    "no batch": ({"tokens_per_step": 0, "tokens": None}, "must be a whole number from 1, found 0"),
    "runs": ({"run": "size", "schedule": {"3M": PLAN}}, "schedule names the run 3M, expected one of 1M, 2M"),
    "plan": ({"schedule": {"kind": "cosine"}}, "schedule cannot be read .* a plan has kind, peak"),
    "text": ({"schedule": {**PLAN, "peak": "3e-4"}}, "schedule: peak is '3e-4', expected a number"),
    "end": ({"schedule": {**PLAN, "warmup_tokens": 1, "total_tokens": 9}}, "seen 3000 tokens, its schedule ends at 9"),
    "warm-up": ({"warmup_tokens": 1001}, "run 1M begins at 1000 tokens, within a warm-up of 1001; .* into schedule"),
}


@pytest.mark.parametrize("what", ASKED)
def test_a_request_that_makes_no_sense_is_refused(what, tmp_path):
    options, sentence = ASKED[what]
    with pytest.raises(ValueError, match=sentence):
        tsl.read_table(written(tmp_path, table()), **{**NAMED, **options})


DAMAGED = {
    "runs.csv": {
        "a,b\n1,2,3\n": r"row 1 of runs\.csv has 3 cells, the header 2",
        "": "no rows",
        "tokens,loss\n": "no rows",
    },
    "runs.jsonl": {
        '{"loss": 1\n': r"line 1 of runs\.jsonl is not JSON",
        "[1]\n": r"line 1 of .* is no object, found '\[1\]",
    },
    "runs.parquet": {"no": "is not a whole .parquet file"},
    "runs.xlsx": {"no": "expected a .csv, .jsonl or .parquet file, found runs.xlsx"},
}


def test_a_file_that_is_no_table_is_named(tmp_path):
    for name, texts in DAMAGED.items():
        for text, sentence in texts.items():
            (tmp_path / name).write_text(text)
            with pytest.raises(ValueError, match=sentence):
                tsl.read_table(tmp_path / name)
    (tmp_path / "runs.csv").write_bytes(b"loss\n\xff\n")
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        tsl.read_table(tmp_path / "runs.csv")


REPEATED = {
    "runs.csv": "tokens,loss,loss,note,note\n1,2,3,x,y\n",
    "runs.jsonl": '{"tokens": 1, "loss": 2, "loss": 3}\n',
}


@pytest.mark.parametrize("name", REPEATED)
def test_one_of_several_columns_of_a_name_is_never_chosen_in_silence(name, tmp_path):
    (tmp_path / name).write_text(REPEATED[name])
    with pytest.raises(ValueError, match=rf"{name} has several columns loss; rename or remove all but one"):
        tsl.read_table(tmp_path / name)
    assert tsl.read_table(tmp_path / name, loss="tokens")["runs"].sizes["tokens"] == 1  # a name that is not read


@pytest.mark.parametrize("cell", ["1_0", True])
def test_a_cell_that_only_python_takes_for_a_number_is_none(cell, tmp_path):
    rows = [{"tokens": 1, "loss": 2.0}, {"tokens": 2, "loss": cell}]
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=f"row 2: loss is '{cell}', expected a number"):
        tsl.read_table(tmp_path / "runs.jsonl")


def test_a_plan_may_be_any_mapping_or_a_schedule_and_runs_may_be_numbers(tmp_path):
    file = written(tmp_path, table(size=[1] * 3 + [2] * 3, rerun=None))
    options = {"loss": "web", "run": "size"}
    plain = tsl.read_table(file, **options, schedule=PLAN)
    for schedule in (MappingProxyType(PLAN), tsl.Schedule.from_plan(PLAN), {1: PLAN, 2: MappingProxyType(PLAN)}):
        surfaces = tsl.read_table(file, **options, schedule=schedule)
        for run, surface in surfaces.items():
            assert tsl.Schedule.from_plan(surface.schedule) == tsl.Schedule.from_plan(PLAN)
            assert tsl.load_surface(tsl.save_surface(surface, tmp_path / "s")).loss.identical(plain[run].loss)
    with pytest.raises(ValueError, match="schedule names a run twice"):
        tsl.read_table(file, **options, schedule={1: PLAN, "1": PLAN})


def test_a_labelled_array_is_read_by_its_names_and_a_masked_one_by_its_mask():
    loss = np.array([[4.0, 3.0], [2.0, 1.0]])
    labelled = xr.DataArray(loss, dims=("tokens", "position"))
    for given in (labelled, labelled.transpose("position", "tokens")):
        assert tsl.from_losses(given, tokens=[1, 2]).loss.values.tolist() == [loss.tolist()]
    with pytest.raises(ValueError, match=r"DataArray over \('tokens', 'position'\), found \('step', 'position'\)"):
        tsl.from_losses(labelled.rename(tokens="step"), tokens=[1, 2])
    masked = np.ma.masked_array(loss, [[False, True], [False, False]])
    with pytest.raises(ValueError, match="1 of 4 losses is NaN, the first at split id, tokens 1, position 2"):
        tsl.from_losses(masked, tokens=[1, 2])
    assert np.isnan(tsl.from_losses(masked, tokens=[1, 2], allow_missing=True).loss[0, 0, 1])


def test_other_units_complex_losses_and_two_splits_of_one_name_are_refused():
    loss = np.ones((2, 1, 1))
    with pytest.raises(ValueError, match="losses are in nats/token, found units 'bits/token'; multiply bits"):
        tsl.from_losses(loss[0], tokens=[1], units="bits/token")
    with pytest.raises(ValueError, match="loss must be numbers"):
        tsl.from_losses(loss[0] * 1j, tokens=[1])
    with pytest.raises(ValueError, match=r"two splits have one name, found \['id', 'id'\]"):
        tsl.from_losses(loss, tokens=[1], split=["id", "id"])
    assert tsl.from_losses(loss[0], tokens=["100"]).tokens.values.tolist() == [100]


COLUMNS = ("--loss", "web", "code", "--run", "size", "rerun")


def test_the_verb_writes_a_file_a_run_and_never_over_another(tmp_path, capsys):
    file, out = written(tmp_path, table()), tmp_path / "new" / "surfaces"
    assert tsl_command("import", file, "--out", out, *COLUMNS) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1M: 3 checkpoints, 1,000 to 3,000 tokens; web 4.000 to 3.250, code 3.000 to 2.250"
    assert sorted(path.name for path in out.iterdir()) == ["1M.npz", "2M-again.npz"]
    expected = tsl.read_table(file, **NAMED)
    assert all(tsl.load_surface(out / f"{run}.npz").identical(surface) for run, surface in expected.items())

    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert tsl_command("import", file, "--out", out, *COLUMNS) == 0
    assert capsys.readouterr().out.count("the file was there") == 2
    file = written(tmp_path, table(web=[4.5, 3.5, 3.25, 3.9, 3.4, 3.1]))
    (out / "1M.npz").unlink()
    assert tsl_command("import", file, "--out", out, *COLUMNS) == 2
    assert "2M-again.npz holds another surface, and is left as it is; remove it" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()}.items() < before.items()  # nor is 1M written


def test_the_verb_takes_a_plan_and_one_file(tmp_path, capsys):
    file, out = written(tmp_path, table(size=["a/b"] * 6, tokens=[1, 2, 3, 4, 5, 6])), tmp_path / "one.npz"
    (tmp_path / "plan.yaml").write_text("kind: cosine\npeak: 3e-4\nwarmup_tokens: 1\ntotal_tokens: 1e3\n")
    arguments = ("--loss", "web", "--schedule", tmp_path / "plan.yaml", "--n-params", "None", "--run", "size")
    assert tsl_command("import", file, "--out", out, *arguments) == 0
    assert tsl.laws.Schedule.from_plan(tsl.load_surface(out).schedule) == tsl.laws.Schedule("cosine", 3e-4, 1, 1000)
    assert tsl_command("import", file, "--out", tmp_path / "runs", *arguments) == 0
    assert (tmp_path / "runs" / "a_b.npz").exists()
    capsys.readouterr()
    assert tsl_command("import", file, "--out", out, *arguments, "rerun") == 2
    assert "the table has 2 runs" in capsys.readouterr().err
    (tmp_path / "plan.yaml").write_text("kind: cosine\npeek: 3\n")
    assert tsl_command("import", file, "--out", out, *arguments) == 2
    assert "plan.yaml: a plan has no 'peek'; it has kind, peak" in capsys.readouterr().err


def test_an_imported_run_is_forecast_and_reported(tmp_path, capsys, monkeypatch):
    few = {name: METHODS[name] for name in ("mean_area_power", "power", "logarithmic", "temporal")}  # laws to compile
    monkeypatch.setattr(methods, "METHODS", few)
    monkeypatch.setattr(analysis, "backtest", partial(backtest, methods=tuple(few)))
    tokens = np.linspace(1e5, 2e6, 20).astype(int)
    rows = pd.DataFrame({"tokens": tokens, "loss": 50 * tokens**-0.3 + 2, "lr": 1e-3})
    file = tsl.save_surface(tsl.read_table(written(tmp_path, rows))["runs"], tmp_path / "run")
    assert tsl_command("report", file) == 0
    assert "a law over positions needs 4 of them" in capsys.readouterr().out.replace("\n", " ")
    assert tsl_command("forecast", file, "--cutoff", "0.4", "--methods", "power") == 0
    forecasts = json.loads((tmp_path / "run" / "forecast.json").read_text())["forecasts"]
    (power,) = (surface for surface in forecasts if surface["method"] == "power")
    assert power["loss"][-1] == pytest.approx(rows.loss.iloc[-1], abs=1e-5)
    page = (tmp_path / "run" / "report.html").read_text()
    assert ">The forecast</h2>" in page
    assert ">Loss by position</h2>" not in page
    assert tsl_command("fit", file, "--out", tmp_path / "fits.csv") == 2  # over position: the page's own program
    assert "fit it over tokens by --law power" in capsys.readouterr().err.replace("\n", " ")
    assert (pd.read_csv(tmp_path / "fits.csv").status == "too_few_points").sum() == len(tokens)


@public
def test_public_curves_are_read(tmp_path):
    root = Path(str(CURVES))
    plan = {"kind": "cosine", "peak": 3e-4, "warmup_tokens": 2160, "total_tokens": 72_000, "final_ratio": 0.1}
    options = {"tokens_per_step": 1, "schedule": plan, "warmup_tokens": 2160}
    (surface,) = tsl.read_table(root / "multipower/25M/cosine_72000.csv", **options).values()
    assert surface.sizes == {"split": 1, "tokens": 546, "position": 1}
    np.testing.assert_allclose(tsl.laws.Schedule.from_plan(plan).lr(surface.tokens.values), surface.lr, rtol=1e-5)
    run = ["size", "chinchilla_multiple", "rerun"]
    ladder = tsl.read_table(root / "olmo_ladder/runs.csv", loss=["c4_en", "pile"], run=run)
    assert len(ladder) == 24
    assert ladder["190M-1-rerun"].sizes["tokens"] == 73
    assert ladder["190M-1"].sizes["tokens"] == 37
    named = {"loss": "final_loss", "run": "run_name", "n_params": "params_active_precise"}
    gemstones = tsl.read_table(root / "gemstones/constant_lr.jsonl", **named)
    assert len(gemstones) == 22
    surface = gemstones["PyGemma-1024x28_pretrain"]
    assert surface.attrs["n_params"] == 543_482_880
    assert float(surface.loss[0, 0, 0]) == 3.1010556221
    assert tsl.load_surface(tsl.save_surface(surface, tmp_path / "one")).identical(surface)


LATE = 900  # rows without an evaluation: more than are looked at before a large file is read


def rows_of_json(kind: str) -> str:
    """Lines of JSON whose evaluations begin late."""
    rows = [{"step": k, "loss": 8 / k**0.2, "lr": 3e-4} for k in range(1, LATE)]
    evals = [{"step": k, "eval_loss": 8.1 / k**0.2} for k in range(100, LATE, 100)]
    if kind == "nested":
        rows = [{"step": row["step"], "train": {"loss": row["loss"], "lr": row["lr"]}} for row in rows]
        evals = [{"step": row["step"], "eval": {"loss": row["eval_loss"]}} for row in evals]
    lines = [json.dumps(row) for row in (*rows, *evals)]
    lines[600:600] = {"nan": ['{"step": 700, "loss": NaN}'], "blank": ["", " "], "text": ['{"note": "a \\": b"}']}.get(
        kind, []
    )
    end = {"open": "", "cut": '\n{"step": 900, "los'}.get(kind, "\n")
    return {"crlf": "\r\n"}.get(kind, "\n").join(lines) + end


@pytest.mark.parametrize("kind", ["flat", "nested", "nan", "blank", "text", "open", "cut", "crlf"])
def test_large_lines_of_json_are_read_as_small_ones(tmp_path: Path, monkeypatch, kind: str):
    """Columns that none of the first lines holds are read, with the line of each row, whichever way is taken."""
    file = tmp_path / "run.jsonl"
    file.write_bytes(rows_of_json(kind).encode())
    small = json_logs.read_json(file)
    monkeypatch.setattr(json_logs, "LARGE", 0)
    large = json_logs.read_json(file)
    assert list(large.columns) == list(small.columns)
    assert any("eval" in name for name in large.columns)
    for name, values in small.columns.items():
        np.testing.assert_array_equal(large.columns[name], values)
    np.testing.assert_array_equal(large.line, small.line)
    assert [f.code for f in large.findings] == [f.code for f in small.findings]
    assert json_logs._by_arrow(file) is not None or kind not in ("flat", "nan", "open", "crlf")
