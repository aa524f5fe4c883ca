"""The evidence about forecasts, on synthetic curves: locked data stay unread, rows are made once and judged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import tsl_jax as tsl
from experiments.forecast_evidence import backtest as program
from experiments.forecast_evidence import cases, controls, curves, rows
from tsl_jax.forecasting import baselines, lr_aware
from tsl_jax.forecasting.backtesting import clustered_mean
from tsl_jax.training.config import TrainConfig, to_dict

EXPERIMENTS = Path(__file__).parents[1] / "experiments"

THREE_AND_A_TARGET = (*cases.THREE, "cosine_72000")


def write_curves(folder: Path, unlocked: bool) -> Path:
    """A few runs of every data set; locked cells hold losses, or words that no reader takes for numbers."""
    noise = np.random.default_rng(0)
    for size in ("25M", "100M"):
        (folder / "multipower" / size).mkdir(parents=True)
        for name in THREE_AND_A_TARGET if unlocked or size == "25M" else ():
            step = np.arange(2160, 8000, 128)
            lines = [f"{t},0.0003,{2.5 + 20 * t**-0.4 + 1e-3 * noise.standard_normal():.5f}" for t in step]
            (folder / "multipower" / size / f"{name}.csv").write_text("\n".join(["step,lr,loss", *lines]))
    if not unlocked:
        (folder / "multipower" / "100M" / "cosine_72000.csv").write_text("locked")
    lines = ["size,chinchilla_multiple,rerun,step,tokens,lr,c4_en,pile"]
    for size, multiple in (("190M", 2), ("190M", 5), ("760M", 5)):
        for tokens in np.linspace(0.1, 4 * multiple, 20) * 1e9:
            loss = 2.5 + 500 * tokens**-0.3 + 1e-3 * noise.standard_normal()
            loss = loss if unlocked or size == "190M" else "locked"
            lines.append(f"{size},{multiple},,{int(tokens / 1e6)},{int(tokens)},0.001,{loss},{loss}")
    (folder / "olmo_ladder").mkdir()
    (folder / "olmo_ladder" / "runs.csv").write_text("\n".join(lines) + "\n")
    (folder / "gemstones").mkdir()
    for kind, stretch in (("constant_lr", 1.0), ("constant_lr_half", 1.0), ("cooldown_end", 1.1)):
        lines = []
        for k, (width, size) in enumerate([(256, 5e7), (384, 9e7), (1024, 9e8)]):
            for tokens in np.arange(1, 11) * 1e10 * stretch:
                loss = 2.5 + 500 * tokens**-0.3 - 0.1 * k + 1e-3 * noise.standard_normal()
                loss = loss if unlocked or size < 6e8 else "locked"
                row = {"width": width, "depth": 8, "params_active_precise": int(size), "tokens": int(tokens)}
                lines.append(json.dumps({**row, "step": int(tokens / 4e6), "final_loss": loss}))
        (folder / "gemstones" / f"{kind}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def write_pool(folder: Path, simulated, unlocked: bool) -> Path:
    folder.mkdir()
    runs = {"one-s1": 1, "one-s50": 50, "one-s100": 100, "small-wsd": 0, "small-cosine@1": 1, "small-wsd@2": 2}
    for k, (name, seed) in enumerate({**runs, "small-wsd@100": 100}.items()):
        config = to_dict(TrainConfig(seed=seed, tokens=10_000 + k))
        (folder / f"{name}.json").write_text(json.dumps({"seed": seed, "config": config}))
        if unlocked or seed < 5:
            few = simulated.isel(position=slice(0, 64, 8)).assign_attrs(n_params=1000)
            tsl.save_surface(few, folder / f"{name}.npz")
        else:
            (folder / f"{name}.npz").write_text("locked")
    return folder


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two methods that need no long compilation."""
    monkeypatch.setattr(cases, "MEAN", (lr_aware.MEAN_AREA_POWER,))
    monkeypatch.setattr(cases, "LR_AWARE", (lr_aware.MEAN_AREA_POWER,))
    monkeypatch.setattr(lr_aware, "MEAN_ANNEALING", lr_aware.MEAN_AREA_POWER)
    monkeypatch.setattr(controls, "ALL", ())
    monkeypatch.setattr(cases, "PAPER", ())
    monkeypatch.setattr(baselines, "ALL", (baselines.LAST,))
    monkeypatch.setattr(cases, "CUTOFFS", (0.4,))
    monkeypatch.setattr(cases, "ENDS", (0.2, 1.0))


def test_a_development_run_opens_no_locked_file_and_makes_each_row_once(tmp_path, quick, simulated, capsys):
    folder, pool = write_curves(tmp_path / "curves", unlocked=False), write_pool(tmp_path / "pool", simulated, False)
    home, opened = tmp_path / "home", []
    recording = True
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if recording and event == "open" else None)
    arguments = ["--curves", str(folder), "--pool", str(pool)]
    program.main([*arguments, "--only", "fit_three"], home)
    program.main(arguments, home)
    recording = False
    assert any("25M" in path for path in opened), "the recorder sees what is opened"
    assert not any(name in path for path in opened for name in ("100M", "s50.npz", "100.npz"))
    output = capsys.readouterr().out
    assert "left out" not in output, "words in place of locked losses were read"
    table = pd.read_parquet(home / "forecast_evidence" / "results" / "development.parquet")
    assert set(table.protocol) == set(program.PROTOCOLS)
    assert set(table.data) == {"multipower/25M", "olmo_ladder", "pool", "gemstones/cooldown"} | {
        f"gemstones/constant_lr{half}" for half in ("", "_half")
    }
    assert not table[rows.KEY].duplicated().any()
    assert set(table[table.data == "pool"].split) == {"id", "ood"}
    nothing = table[table.final_error.isna()]
    assert nothing.run.str.endswith("@22B").all(), "two checkpoints are too few, and the row says so"
    assert nothing.status.str.contains("3 checkpoints past the warm-up are needed").all()
    grouped = table[table.method == "last"].set_index("intervals").covered_90.notna().groupby("intervals").unique()
    assert {why: inside.tolist() for why, inside in grouped.items()} == {
        "none: too few checkpoints": [False],
        "rolling origins (1)": [True],
        "rolling origins (4)": [True],
    }
    silent = table.final_error.isna() | table.intervals.fillna("none").str.startswith("none")
    assert table[silent].interval_score_final.isna().all()
    assert table[~silent].interval_score_final.notna().all()
    assert 0.5 < (~silent).mean() < 1
    assert (table[table.protocol == "fit_three"].prefix_checkpoints == 0).all()
    (ladder,) = table[(table.protocol == "ladder") & (table.split == "pile")].itertuples()
    assert (ladder.run, ladder.siblings) == ("190M-5", "190M-2 (8e+09)")
    assert ladder.sibling_compute == pytest.approx(0.4)
    cooled = table[(table.protocol == "cooldown") & (table.run == "256-8@110B")].iloc[0]
    assert (cooled.siblings, cooled.cutoff, cooled.prefix_checkpoints) == ("384-8@110B (1.1e+11)", 0.909, 10)
    program.main(arguments, home)
    forecasts = table.groupby(["protocol", "data", "run", "method", "cutoff"]).ngroups
    output = capsys.readouterr().out
    assert f"{forecasts} forecasts, 0 to make" in output
    program.main(["--summarise", "development"], home)
    assert capsys.readouterr().out.strip() in output
    assert table[table.protocol.str.startswith("cooldown")].r2.isna().all(), "one point has no spread"
    assert table[table.run == "small-wsd@2"].cluster.unique().tolist() == ["pool small-wsd@2"]


def test_locked_rows_need_the_option_a_clean_tree_and_are_counted(tmp_path, quick, simulated, capsys):
    folder, pool = write_curves(tmp_path / "curves", unlocked=True), write_pool(tmp_path / "pool", simulated, True)
    home = tmp_path / "checkout" / "experiments"
    home.mkdir(parents=True)
    (home / "LOG.md").write_text("# Log\n\nNewest first.\n\n## An older entry\n\nText.\n")

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=n", "-c", "user.email=e"]
        subprocess.run(["git", "-C", str(home), *identity, *arguments], check=True, capture_output=True)

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "a log")
    arguments = ["--open-locked-test-set", "--curves", str(folder), "--pool", str(pool), "--only", "fit_three"]
    (home / "changed").write_text("")
    with pytest.raises(SystemExit) as stopped:
        program.main(arguments, home)
    assert stopped.value.code == 2
    assert "commit first" in capsys.readouterr().err
    assert not (home / "forecast_evidence" / "openings.json").exists()
    (home / "changed").unlink()
    program.main(arguments, home)
    output = capsys.readouterr().out
    assert output.index("will be opened") < output.index("forecasts,")
    (opening,) = json.loads((home / "forecast_evidence" / "openings.json").read_text())["openings"]
    assert opening["finished"]
    log = (home / "LOG.md").read_text()
    assert log.index("opening 1") < log.index("| fit_three |") < log.index("## An older entry")
    assert opening["commit"] in log
    assert opening["hardware"] in log
    table = pd.read_parquet(home / "forecast_evidence" / "results" / "locked_test_set.parquet")
    assert set(table.data) == {"multipower/100M"}
    assert (table.commit == opening["commit"]).all()
    with pytest.raises(SystemExit):  # the log has changed
        program.main(arguments, home)
    git("add", ".")
    git("commit", "-qm", "the first opening")
    program.main(arguments, home)
    assert pd.read_parquet(home / "forecast_evidence" / "results" / "locked_test_set.parquet").opening.tolist() == [
        1,
        2,
    ]
    assert not (home / "forecast_evidence" / "results" / "development.parquet").exists()


def test_what_is_locked_comes_apart_by_name_size_and_seed(tmp_path, simulated):
    folder, pool = write_curves(tmp_path / "curves", unlocked=True), write_pool(tmp_path / "pool", simulated, True)
    loaded, notes = curves.load(curves.PARTS, folder, pool)
    assert notes == []
    by_part = {part: {(case.data, case.run) for case in loaded if case.part == part} for part in curves.PARTS}
    assert {run for data, run in by_part["locked_test_set"] if data in ("olmo_ladder", "pool")} == {
        "760M-5",
        "one-s100",
        "small-wsd@100",
    }
    assert {run for data, run in by_part["locked_test_set"] if data == "gemstones/constant_lr"} == {"1024-8"}
    assert {data for data, _ in by_part["locked_test_set"] if data.startswith("multi")} == {"multipower/100M"}
    small = {"small-wsd", "small-cosine@1", "small-wsd@2"}
    assert {run for data, run in by_part["development"] if data == "pool"} == {"one-s1"} | small
    locked = cases.cases(loaded, "locked_test_set")
    seeded = {case.protocol: case for case in locked if case.target.run == "small-wsd@100"}
    assert {case.run for case in seeded["earlier_seeds"].siblings} == {"small-wsd", "small-cosine@1"}
    assert {case.run for case in seeded["other_schedules"].siblings} == {"small-cosine@1"}
    (big,) = (case for case in locked if case.protocol == "cooldown" and "110B" in case.target.run)
    assert [case.run for case in big.siblings] == ["384-8@110B", "256-8@110B"]  # of the development part, nearest first
    (ladder,) = (case for case in locked if case.protocol == "ladder")
    assert [case.run for case in ladder.siblings] == ["190M-5", "190M-2"]


def test_the_second_locked_test_set_is_runs_of_seeds_from_200_on_that_no_other_part_reads(tmp_path, simulated, capsys):
    pool = write_pool(tmp_path / "pool", simulated, True)
    (pool / "new.json").write_text(json.dumps({"seed": 200, "config": to_dict(TrainConfig(seed=200, tokens=9_000))}))
    (pool / "new.npz").write_text("locked")
    loaded, notes = curves.load(curves.PARTS, None, pool)
    assert notes == ["no folder of public curves: they are left out"]
    assert "new" not in {curve.run for curve in loaded}
    tsl.save_surface(simulated.isel(position=slice(0, 64, 8)), pool / "new.npz")
    loaded, notes = curves.load((curves.SECOND,), tmp_path / "no curves are read", pool)
    assert ([(curve.part, curve.run) for curve in loaded], notes) == ([("second_locked_test_set", "new")], [])
    with pytest.raises(SystemExit):
        program.main(["--second"])
    assert "give --open-locked-test-set with it" in capsys.readouterr().err


def test_siblings_of_the_ladder_are_at_most_eight_in_turns_from_the_nearest_size():
    def run(size: str, multiple: str) -> curves.Curve:
        n_params = {"190M": 190e6, "370M": 370e6, "760M": 760e6}[size]
        surface = tsl.from_losses(np.ones((2, 1)), tokens=[1.0, 20 * n_params * float(multiple)], n_params=n_params)
        return curves.Curve("development", "olmo_ladder", f"{size}-{multiple}", surface)

    runs = [run(size, multiple) for size in ("190M", "370M", "760M") for multiple in ("0.5", "1", "2", "5", "10")]
    (target,) = (case for case in runs if case.run == "760M-10")
    siblings = [case.run for case in cases._shorter_and_smaller(target, runs)]
    assert siblings == ["760M-5", "760M-2", "760M-1", "370M-10", "190M-10", "370M-5", "190M-5", "370M-2"]


def test_the_plan_is_the_lr_column_and_a_cosine_where_it_is_one():
    tokens = np.arange(200, 1001, 100)
    plan = tsl.laws.Schedule("cosine", 2.0, 200, 1000, final_ratio=0.1)
    lr = np.asarray(plan.lr(tokens))
    surface = tsl.from_losses(np.ones((9, 1)), tokens=tokens).assign_coords(lr=("tokens", lr))
    schedule = tsl.laws.Schedule.from_plan(curves.plan_of(surface, 200))
    assert schedule.kind == "cosine"
    np.testing.assert_allclose(schedule.lr(tokens), lr, rtol=1e-5)
    dropped = surface.assign_coords(lr=("tokens", np.where(tokens > 500, 0.5, 2.0)))
    schedule = tsl.laws.Schedule.from_plan(curves.plan_of(dropped, 200))
    np.testing.assert_allclose(schedule.lr(np.array([100, 200, 500, 550, 600, 1000])), [1, 2, 2, 1.25, 0.5, 0.5])


def test_a_row_is_judged_by_hand():
    """Forecast .1 above a straight line; draws within .2 of the forecast, evenly."""
    tokens, observed = np.array([1.0, 2.0, 4.0]), np.array([3.0, 2.0, 0.0])
    draws = (observed + 0.1)[None] + np.linspace(-0.2, 0.2, 401)[:, None]
    row = rows.judge(tokens, observed, observed + 0.1, draws, last=2)
    assert row["mse"] == pytest.approx(0.01)
    assert row["mae"] == pytest.approx(0.1)
    assert row["r2"] == pytest.approx(1 - 0.01 / np.var(np.linspace(0, 3, 200)))
    assert (row["final_error"], row["final_observed"]) == (pytest.approx(0.1), 1.0)
    assert (row["covered_90"], row["covered_90_final"]) == (1.0, 1.0)
    assert row["interval_score"] == pytest.approx(0.36)
    narrow = rows.judge(tokens, observed, observed + 0.1, observed + 0.1 + 0.3 * (draws - observed - 0.1), last=1)
    assert (narrow["covered_50_final"], narrow["covered_90_final"]) == (0.0, 0.0)
    assert narrow["interval_score_final"] == pytest.approx(0.3 * 0.36 + 20 * (0.1 - 0.3 * 0.18))
    missing = rows.judge(tokens, np.array([3.0, np.nan, 0.0]), observed + 0.1, None, last=1)
    assert missing["mae"] == pytest.approx(0.1)
    assert np.isnan(missing["covered_90"])
    assert np.isnan(rows.judge(tokens, np.full(3, np.nan), observed, draws, last=1)["mae"])


def test_bootstrap_intervals_are_of_whole_clusters():
    values, clusters = pd.Series([0.0] * 10 + [1.0] * 10), pd.Series(["a"] * 10 + ["b"] * 10)
    assert clustered_mean(values, clusters) == (0.5, 0.0, 1.0)  # twenty independent rows would say .3 to .7
    assert np.isnan(clustered_mean(values[:10], clusters[:10])[1:]).all()
    mean, low, high = clustered_mean(pd.Series(np.arange(100.0)), pd.Series(np.arange(100)))
    assert mean == 49.5
    assert (49.5 - low, high - 49.5) == (pytest.approx(1.96 * 2.89, rel=0.1),) * 2


def test_components_and_positions_alone_continue_a_planted_surface():
    """Every position falls by a power law of tokens, in two components."""
    tokens, position = np.geomspace(1e6, 1e8, 60), np.arange(1, 6)
    fall = (tokens[:, None] / 1e8) ** -0.4
    loss = 2.5 + 0.5 * fall + position**-0.5 * (1 + 0.1 * fall)
    surface = tsl.from_losses(loss, tokens=tokens, position=position)
    for method in controls.ALL:
        forecast = tsl.forecast(surface.sel(tokens=slice(None, 4e7)), tokens[-1:], method=method)
        assert forecast.surface is not None
        np.testing.assert_allclose(forecast.surface[0, 0], loss[-1], atol=0.03)
        low, high = (forecast.surface_quantiles[0, 0].sel(quantile=q).values for q in (0.05, 0.95))
        assert (low < loss[-1]).all()
        assert (loss[-1] < high).all()
