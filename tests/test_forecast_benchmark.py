"""The benchmark of forecasts: files by hash, entries that see the past alone, rows that are kept, the tables."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import tsl_jax as tsl
from experiments.forecast_benchmark import data, entries, races, run
from experiments.forecast_evidence.curves import Curve

CURVES = Path(os.environ.get("TSL_JAX_CURVES", "none"))
TOTAL = 1_000_000_000
PLAN = {"kind": "cosine", "peak": 1e-3, "warmup_tokens": 10_000_000, "total_tokens": TOTAL, "final_ratio": 0.1}


@pytest.fixture
def curve() -> Curve:
    tokens = np.linspace(2e7, TOTAL, 60).astype(int)
    noise = 2e-3 * np.random.default_rng(0).standard_normal(60)
    loss = 2.5 + 0.5 * (tokens / TOTAL) ** -0.4 + noise
    surface = tsl.from_losses(loss[None, :, None], tokens=tokens, split=["loss"], schedule=PLAN, n_params=1e8)
    return Curve(data.PUBLIC, "family cosine", "planted", surface, 2)


def test_every_entry_gives_five_increasing_quantiles_from_the_past_alone(curve: Curve) -> None:
    tokens = curve.surface.tokens.values
    past = curve.surface.sel(tokens=tokens <= 0.4 * TOTAL)
    for name, entry in entries.ENTRIES.items():
        said = entry(entries.Prefix(past, tokens[-2:].astype(float)))
        assert said.shape == entries.QUANTILES.shape, name
        assert (np.diff(said) >= 0).all(), name
        assert 2 < said[2] < 4.5, name


def test_a_row_scores_the_interval_and_silence_is_no_number(curve: Curve, monkeypatch: pytest.MonkeyPatch) -> None:
    end = data.end_of(curve)
    assert end == pytest.approx(float(curve.surface.loss[0, -2:, 0].mean()))
    monkeypatch.setitem(entries.ENTRIES, "near", lambda prefix: end + np.array([0.1, 0.2, 0.3, 0.4, 0.5]))
    row = run.made("near", curve, 0.2)
    assert row["error"] == pytest.approx(0.3)
    assert (row["inside"], row["score"]) == (0, pytest.approx(0.4 + 20 * 0.1))

    def silent(_: entries.Prefix) -> np.ndarray:
        raise ValueError("too little")

    monkeypatch.setitem(entries.ENTRIES, "silent", silent)
    assert np.isnan([run.made("silent", curve, 0.2)[name] for name in ("error", "inside", "score")]).all()


def test_rows_are_kept_and_not_made_again(tmp_path, curve: Curve, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(run, "ROWS", tmp_path / "results" / "rows.parquet")
    monkeypatch.setattr(run, "load", lambda folder: [curve])
    monkeypatch.setattr(run, "check", lambda folder: [])
    made = run.make(tmp_path, ["last value", "logarithm, last half"], [], again=False)
    assert len(made) == 2 * len(run.SHARES)
    run.make(tmp_path, ["last value"], ["family"], again=False)
    assert "0 forecasts to make" in capsys.readouterr().out
    assert list(run.leaderboard(made).entry) == ["logarithm, last half", "last value"]
    assert set(run.by_family(made, "error").columns) == {"family", "last value", "logarithm, last half"}
    assert list(run.by_share(made).columns) == ["entry", "from 10%", "from 20%", "from 30%", "from 40%"]


def test_a_part_of_the_sources_is_labelled_and_leaves_the_kept_rows(
    tmp_path, curve: Curve, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    kept, curves = tmp_path / "results" / "rows.parquet", tmp_path / "curves"
    curves.mkdir()
    other = Curve(data.PUBLIC, "other cosine", "planted", curve.surface, 2)
    monkeypatch.setattr(run, "ROWS", kept)
    monkeypatch.setattr(run, "check", lambda folder: [])
    monkeypatch.setattr(run, "load", lambda folder: [curve, curve, other])  # sizes of a family may share a name
    for _ in range(2):
        assert len(run.make(tmp_path, ["last value"], [], again=False)) == 3 * len(run.SHARES)
    before = kept.read_bytes()
    monkeypatch.setattr(run, "check", lambda folder: ["megatron"])
    monkeypatch.setattr(run, "load", lambda folder: [curve, curve])
    monkeypatch.setitem(entries.ENTRIES, "silent", lambda prefix: np.full(5, np.nan))
    capsys.readouterr()
    run.main(["--curves", str(curves), "--entries", "last value", "silent"])
    printed = capsys.readouterr().out
    assert f"A PART OF THE BENCHMARK: megatron are absent; rows go to {curves / run.PART}" in printed
    assert f"{2 * len(run.SHARES)} forecasts to make" in printed  # those of the entry that is kept are not made again
    assert "without megatron: not comparable with the full one. Over families (1), 4 prefixes" in printed
    assert kept.read_bytes() == before
    assert set(pd.read_parquet(curves / run.PART).family) == {"family cosine"}
    run.main(["--curves", str(curves), "--entries", "silent"])
    assert "2 runs, 8 prefixes, 0 forecasts to make" in capsys.readouterr().out
    assert len(pd.read_parquet(curves / run.PART)) == 4 * len(run.SHARES)


def test_a_file_that_is_another_is_refused(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one/a.csv", "one/b.csv", "two/c.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1\n")
    hashes = tmp_path / "hashes.json"
    monkeypatch.setattr(data, "HASHES", hashes)
    known = {name: data.hash_of(tmp_path / name) for name in ("one/a.csv", "one/b.csv", "two/c.csv")}
    hashes.write_text(json.dumps(known))
    assert data.check(tmp_path) == []
    (tmp_path / "one" / "a.csv").write_bytes(b"1\r\n")  # line ends are no numbers
    assert data.check(tmp_path) == []
    (tmp_path / "two" / "c.csv").unlink()
    assert data.check(tmp_path) == ["two"]
    (tmp_path / "one" / "a.csv").unlink()
    with pytest.raises(ValueError, match="is missing; `fetch one` brings it"):
        data.check(tmp_path)
    (tmp_path / "one" / "a.csv").write_text("2\n")
    with pytest.raises(ValueError, match="is another file"):
        data.check(tmp_path)
    with pytest.raises(ValueError, match=r"no public curves in .*fetch --to"):
        data.check(tmp_path / "none")


@pytest.mark.skipif(not CURVES.is_dir(), reason="TSL_JAX_CURVES names no folder of public loss curves")
@pytest.mark.parametrize("name", ["gemstones", "megatron"])
def test_of_a_part_of_the_curves_the_runs_are_those_of_the_whole(tmp_path, name: str) -> None:
    (tmp_path / name).symlink_to(CURVES / name)
    assert len(data.check(tmp_path)) == 5
    whole = [(run.data, run.run) for run in data.load(CURVES) if run.data.startswith(name)]
    assert [(run.data, run.run) for run in data.load(tmp_path)] == whole != []


def test_a_race_is_judged_by_the_ends_and_beside_the_order_of_the_losses():
    tokens = np.geomspace(1e8, 1e10, 20).astype(int)
    ends = np.array([2.9, 3.0, 3.1])
    losses = ends[:, None] + 30.0 * tokens**-0.2
    surfaces = [tsl.from_losses(loss[None, :, None], tokens=tokens) for loss in losses]
    row = races.judged(races.Race("made", "three", surfaces, True), 0.5)
    assert row is not None
    assert row["spearman"] == row["spearman_by_loss"] == pytest.approx(1.0)
    assert row["regret"] == row["regret_by_loss"] == 0.0
    assert row["log_score"] < row["log_score_by_chance"]
    assert not row["best_stopped"]
    losses[0] += 0.2 * (tokens < 6e9)  # behind at the cut-off, first at the end
    late = [tsl.from_losses(loss[None, :, None], tokens=tokens) for loss in losses]
    other = races.judged(races.Race("made", "late", late, True), 0.5)
    assert other is not None
    assert other["regret_by_loss"] == pytest.approx(0.1)
    assert races.judged(races.Race("made", "early", surfaces, True), 0.01) is None
