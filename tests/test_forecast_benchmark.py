"""The benchmark of forecasts: files by hash, entries that see the past alone, rows that are kept, the tables."""

import json

import numpy as np
import pytest

import tsl_jax as tsl
from experiments.forecast_benchmark import data, entries, races, run
from experiments.forecast_evidence.curves import Curve

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
    made = run.make(tmp_path, ["last value", "logarithm, last half"], [], again=False)
    assert len(made) == 2 * len(run.SHARES)
    run.make(tmp_path, ["last value"], ["family"], again=False)
    assert "0 forecasts to make" in capsys.readouterr().out
    assert list(run.leaderboard(made).entry) == ["logarithm, last half", "last value"]
    assert set(run.by_family(made, "error").columns) == {"family", "last value", "logarithm, last half"}
    assert list(run.by_share(made).columns) == ["entry", "from 10%", "from 20%", "from 30%", "from 40%"]


def test_a_file_that_is_another_is_refused(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.csv").write_text("1\n")
    hashes = tmp_path / "hashes.json"
    monkeypatch.setattr(data, "HASHES", hashes)
    hashes.write_text(json.dumps({"a.csv": data.hash_of(tmp_path / "a.csv")}))
    data.check(tmp_path)
    (tmp_path / "a.csv").write_text("2\n")
    with pytest.raises(ValueError, match="is another file"):
        data.check(tmp_path)
    hashes.write_text(json.dumps({"b.csv": "0"}))
    with pytest.raises(ValueError, match="is missing"):
        data.check(tmp_path)


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
