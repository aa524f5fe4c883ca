"""`tsl fit --law all`: several laws on every curve of a file, a row a curve and law, and one table over all curves."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest

from tsl_jax import cli, laws
from tsl_jax.curve_tables import compare_table, comparison, read_comparison
from tsl_jax.diagnostics import compare_laws
from tsl_jax.diagnostics.law_comparison import summarise, verdict

TWO = (laws.HYPERBOLIC, laws.POSITION_POWER)
POSITION = np.arange(1.0, 33.0)


def noisy(n: int) -> np.ndarray:
    random = np.random.default_rng(0)
    rates = random.uniform(0.1, 0.8, (n, 1))
    return 1.5 / (1 + rates * POSITION) + 3 + 0.01 * random.standard_normal((n, len(POSITION)))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streaming is tested without the cost of fitting: numbers that follow from y and its weights alone."""

    def moments(self: Any, y: np.ndarray, x: np.ndarray, weights: np.ndarray | None) -> dict[str, np.ndarray]:
        w = np.ones_like(y) if weights is None else weights
        total = (w * np.where(w > 0, y, 0)).sum(axis=1)
        values = {name: total + k for k, name in enumerate(self.names()[:-1])}
        values |= {name: np.zeros(len(y)) for name in values if name.endswith(".status")}
        return values | {"status": np.zeros(len(y), np.int8)}

    monkeypatch.setattr(comparison.LawComparer, "__call__", moments)


def run(*arguments: Any) -> int:
    return cli.run_verb("fit", [str(argument) for argument in arguments], debug=False)


def test_the_rows_are_those_of_compare_laws_and_the_verb_says_which_law_to_take(tmp_path, capsys):
    y = np.vstack([noisy(12), 3 + 0.01 * POSITION])  # the last rises
    np.save(tmp_path / "c.npy", y)
    out = tmp_path / "laws.csv"
    assert run(tmp_path / "c.npy", "--law", "hyperbolic,position_power", "--out", out) == 0
    printed = capsys.readouterr().out
    assert "2 laws (hyperbolic, position_power), each fitted 11 times" in printed
    assert "22 fits a curve" in printed
    assert "no law is usable on 1 of 13 curves" in printed
    direct = compare_laws(y, TWO, x=POSITION)
    assert verdict(direct.per_curve()) in printed
    assert "take hyperbolic" in printed
    rows = pd.read_csv(out)
    assert list(rows["law"].unique()) == ["hyperbolic", "position_power"]
    assert len(rows) == 26
    assert rows["a1"].notna().tolist() == [True, False] * 13
    expected = direct.per_curve()
    for name in ("sse", "relative_error", "weight", "held_out"):
        np.testing.assert_allclose(rows[name], expected[name], rtol=1e-4, atol=1e-9)
    table = summarise(read_comparison(out, TWO))
    pd.testing.assert_frame_equal(table, direct.to_dataframe(), rtol=1e-4, check_index_type=False)


def test_the_relative_error_is_the_residual_over_the_size_of_the_data() -> None:
    y = noisy(3)
    weights = np.ones_like(y)
    weights[0, 3:9] = 0
    compared = compare_laws(y, [laws.HYPERBOLIC], x=POSITION, weights=weights)
    residual = np.where(weights > 0, compared.fits["hyperbolic"].residuals.values, 0)
    size = (weights * y).sum(axis=1) / weights.sum(axis=1)
    error = np.sqrt((residual**2).sum(axis=1) / weights.sum(axis=1)) / size
    np.testing.assert_allclose(compared.per_curve()["relative_error"], error, rtol=1e-6)


@pytest.mark.parametrize(
    ("wins", "sentence"),
    [
        ((18, 2), r"on 18 of 20 curves \(sign test p = 0.0004\); take a"),
        ((12, 8), r"the curves do not tell these two apart"),
        ((3, 0), "too few curves to say how sure that is"),
    ],
)
def test_the_advice_is_as_sure_as_the_curves_are_many_and_agree(wins, sentence):
    better = np.repeat([True, False], wins)
    held_out = np.stack([np.where(better, 1.0, 2.0), np.where(better, 2.0, 1.0)], axis=1).ravel()
    n = len(better)
    zero = np.zeros(2 * n)
    rows = pd.DataFrame({"curve": np.repeat(np.arange(n), 2), "law": ["a", "b"] * n, "parameters": 3, "usable": True})
    rows = rows.assign(sse=zero, relative_error=zero, aic=zero, bic=zero, weight=0.5, held_out=held_out)
    assert re.search(sentence, verdict(rows))


def test_no_curve_is_extrapolated_where_its_neighbours_are_longer() -> None:
    """A law that fits the inside but not the ends: errors of the ends must not count for a shorter curve either."""
    y = noisy(2)
    weights = np.ones_like(y)
    weights[0, 20:] = 0
    alone = compare_laws(y[:1, :20], [laws.HYPERBOLIC], x=POSITION[:20])
    both = compare_laws(y, [laws.HYPERBOLIC], x=POSITION, weights=weights)
    assert float(both.held_out[0, 0]) < 2 * float(alone.held_out[0, 0])
    changed = y.copy()
    changed[0, 19] += 0.001  # its last point is never predicted, only fitted
    again = compare_laws(changed, [laws.HYPERBOLIC], x=POSITION, weights=weights)
    assert abs(float(again.held_out[0, 0] - both.held_out[0, 0])) < 1e-3


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("shard_bytes", [60, 1 << 20])
def test_a_table_in_any_shards_gives_a_row_a_curve_and_law(tmp_path, quick, suffix, shard_bytes):
    lines = ["run,step,loss"]
    for k in range(30):
        lines += [f"r{k},{i},{'oops' if k == 4 and i == 2 else k}" for i in range(1, 4 + k % 3)]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    out = tmp_path / f"o.{suffix}"
    names = {"curve": "run", "x": "step", "y": "loss"}
    two = (laws.LOG, laws.POWER)
    with pytest.warns(UserWarning, match="loss is 'oops'"):
        summary = compare_table(two, tmp_path / "t.csv", out, **names, shard_bytes=shard_bytes)
    assert summary.curves == 30
    rows = pd.read_csv(out) if suffix == "csv" else pyarrow.parquet.read_table(out).to_pandas()
    assert rows["curve"].tolist() == [f"r{k}" for k in range(30) for _ in two]
    assert rows["law"].tolist() == ["log", "power"] * 30
    assert {"step_low", "step_high", "alpha0", "delta1_stderr", "held_out"} <= set(rows)
    assert list(rows)[-1] == "status"
    bad = rows["curve"] == "r4"
    assert rows["status"].eq("non_finite").tolist() == bad.tolist()
    assert rows.loc[bad, "sse"].isna().all()
    first = [3 * k if k % 3 == 0 else (4 * k if k % 3 == 1 else 5 * k) for k in range(30) if k != 4]
    assert rows.loc[~bad & (rows["law"] == "log"), "alpha0"].tolist() == first


OVER_TOKENS = ["log", "reciprocal", "power", "power_pure", "logarithmic", "kaplan_d"]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["t.csv", "--x", "step", "--law", "all"], OVER_TOKENS),
        (["t.csv", "--x", "k", "--law", "all:tokens"], OVER_TOKENS),
        (["c.npy", "--law", "all"], ["hyperbolic", "position_power", "position_exponential", "position_log"]),
    ],
)
def test_all_are_the_laws_of_the_covariate(tmp_path, quick, monkeypatch, arguments, names):
    (tmp_path / "t.csv").write_text("curve,step,k,y\na,1,1,3\na,2,2,2\nb,1,1,3\nb,2,2,2\n")
    np.save(tmp_path / "c.npy", noisy(2))
    monkeypatch.chdir(tmp_path)
    assert run(*arguments, "--out", "o.csv") == 0
    assert list(pd.read_csv("o.csv")["law"].unique()) == names


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["t.csv", "--law", "all"], "no law reads 'x'; say what x is by --law all:position, all:tokens"),
        (["t.csv", "--law", "all:tokens", "--method", "lm"], "--method is of one law"),
        (["t.csv", "--law", "power,powr"], "--law 'powr' is unknown"),
        (["t.csv", "--law", "power,power"], "two or more laws of different names, found power, power"),
        (["t.csv", "--law", "all:n_params"], "fewer than two laws read 'n_params'"),
        ([".", "--law", "all"], "compares them from Python"),
        (["c.npy", "--law", "all:tokens"], "is a law over tokens, which c.npy does not hold"),
    ],
)
def test_requests_that_make_no_sense_are_refused_before_any_work(tmp_path, capsys, monkeypatch, arguments, sentence):
    (tmp_path / "t.csv").write_text("curve,x,y\na,1,3\na,2,2\n")
    np.save(tmp_path / "c.npy", noisy(2))
    monkeypatch.chdir(tmp_path)
    assert run(*arguments, "--out", "o.csv") == 2
    assert sentence in capsys.readouterr().err.replace("\n", " ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.npy", "t.csv"]
