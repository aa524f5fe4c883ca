"""Coverage over runs by horizon, and `tsl backtest`."""

import json

import numpy as np
import pytest
import xarray as xr
from test_cli import tsl_command

import tsl_jax as tsl
from tsl_jax.forecasting import Backtest, Forecast, coverage
from tsl_jax.forecasting.result import QUANTILES


def whole(seed: int) -> xr.Dataset:
    tokens = np.geomspace(1e6, 1e8, 41)
    loss = 2 + (tokens / 1e8) ** -0.3 + 0.003 * np.random.default_rng(seed).standard_normal(41)
    return tsl.from_losses(loss[None, :, None], tokens=tokens, split=["id"])


def shifted(surface: xr.Dataset, share: float, off: float) -> Forecast:
    """A forecast from that share of the tokens that is wrong by `off`, with intervals of +-.1 and +-.2."""
    cutoff = share * float(surface.tokens[-1])
    ahead = surface.loss.mean("position").sel(tokens=slice(cutoff + 1, None)) + off
    q = xr.DataArray([-0.2, -0.1, 0.0, 0.1, 0.2], {"quantile": list(QUANTILES)}, "quantile")
    return Forecast("plain", cutoff, ahead, None, {"id": "ok"}, quantiles=ahead + q)


def test_coverage_counts_checkpoints_by_horizon_and_runs_as_clusters():
    runs = [whole(seed) for seed in range(4)]
    offs = (0.0, 0.15, 0.25, 0.0)  # inside both, inside the wide one, outside, inside both
    tested = [
        Backtest(None, {(0.1, "plain"): shifted(surface, 0.1, off), (0.5, "plain"): shifted(surface, 0.5, off)})
        for surface, off in zip(runs, offs, strict=True)
    ]
    table = coverage(runs, tested)
    assert list(table.index.get_level_values("horizon")) == ["up to 2 x", "2 to 4 x", "beyond 4 x", "all"]
    assert (table.runs == 4).all()
    np.testing.assert_allclose(table.covered_50, 0.5)
    np.testing.assert_allclose(table.covered_90, 0.75)
    np.testing.assert_allclose(table.interval_score, 0.4 + 20 * 0.05 / 4, rtol=1e-6)
    assert (table.low < 0.5).all()
    assert (table.high == 1).all()
    late = runs[0].tokens.values
    assert table.checkpoints["plain", "beyond 4 x"] == 4 * (late > 4e7).sum(), "from a tenth alone, beyond .4"
    single = coverage(runs[:1], tested[:1])
    assert single.low.isna().all(), "one run does not tell how runs differ"


def test_the_verb_judges_several_runs_and_writes_both_tables(tmp_path, capsys):
    for seed in (0, 1):
        tsl.save_surface(whole(seed), tmp_path / f"{seed}.npz")
    paths = [tmp_path / "0.npz", tmp_path / "1.npz"]
    options = ["--cutoffs", 0.2, 0.4, "--methods", "mean_area_power", "last", "--out", tmp_path / "found.json"]
    assert tsl_command("backtest", *paths, *options) == 0
    output, result = capsys.readouterr().out, json.loads((tmp_path / "found.json").read_text())
    assert "later checkpoints inside their intervals" in output
    assert "…" not in output, "a table wider than the terminal"
    assert len(result["scores"]) == 2 * 2 * 2
    assert {row["method"] for row in result["coverage"]} == {"mean_area_power", "last"}
    assert {row["runs"] for row in result["coverage"]} == {2}
    error = {row["method"]: abs(row["error"]) for row in result["scores"] if row["cutoff"] == 0.4}
    assert error["mean_area_power"] < 0.1 < error["last"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cutoffs", 0.99], "checkpoints beyond the first 99%"),
        (["--cutoffs", 0.001], "no checkpoint within the first 0.1%"),
        (["REPEATED"], "each once"),
        (["--cutoffs", 1.5], "between 0 and 1"),
        (["--methods", "none"], "--methods are of annealing, mean_annealing"),
        (["--out", "x.txt"], "a .json file"),
    ],
)
def test_mistakes_are_refused_before_any_work(tmp_path, capsys, arguments, message):
    tsl.save_surface(whole(0), tmp_path / "0.npz")
    again = [tmp_path / "0.npz" if path == "REPEATED" else path for path in arguments]
    assert tsl_command("backtest", tmp_path / "0.npz", *again) == 2
    assert message in capsys.readouterr().err
