"""`tsl fit` of laws of several covariates: columns by the covariates' names, a curve a group or all rows as one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from tsl_jax import cli, laws
from tsl_jax.curve_tables import fit_table, worker
from tsl_jax.fitting import Status

TRUE = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}  # Hoffmann et al., eq. 10


def ladder(points: int = 40) -> pd.DataFrame:
    random = np.random.default_rng(0)
    n, d = (10 ** random.uniform(low, high, points) for low, high in ((7, 10), (9, 12)))
    loss = TRUE["E"] + TRUE["A"] / n ** TRUE["alpha"] + TRUE["B"] / d ** TRUE["beta"]
    return pd.DataFrame({"n_params": n, "tokens": d, "loss": loss})


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is handed to the fit of each group of curves, which costs nothing."""
    calls: list[Any] = []

    def record(self: Any, y: np.ndarray, x: np.ndarray, weights: np.ndarray | None) -> dict[str, np.ndarray]:
        at = worker.covariates(self.laws[0], x)
        calls.append((at, y, weights))
        values = {name: np.ones(len(y)) for name in self.names()}
        ends = worker.fitted_range(x, weights)
        of_range = [f"{name}_{end}" for name in self.laws[0].covariates for end in worker.ENDS]
        values |= {name: np.broadcast_to(end, len(y)) for name, end in zip(of_range, ends, strict=True)}
        return values | {"status": np.zeros(len(y), np.int8)}

    monkeypatch.setattr(worker.LawFitter, "__call__", record)
    return calls


def run(*arguments: Any) -> int:
    return cli.run_verb("fit", [str(argument) for argument in arguments], debug=False)


def test_chinchilla_is_recovered_from_columns_of_any_name_under_a_robust_loss(tmp_path, capsys):
    table = ladder()
    table.loc[3, "loss"] *= 1.5  # a diverged run, which squares would follow
    table.rename(columns={"n_params": "size", "tokens": "D"}).to_csv(tmp_path / "t.csv", index=False)
    columns = ["--x", "n_params=size", "--x", "tokens=D", "--y", "loss"]
    robust = ["--loss", "log_huber", "--delta", "1e-3", "--starts", "4"]
    assert run(tmp_path / "t.csv", "--law", "chinchilla", *columns, *robust, "--out", tmp_path / "o.csv") == 0
    assert "E + A/N^alpha + B/D^beta: 1 curves" in capsys.readouterr().out
    (row,) = pd.read_csv(tmp_path / "o.csv").to_dict("records")
    assert row["curve"] == "all"
    assert row["status"] == "converged"
    assert (row["size_low"], row["size_high"]) == (table["n_params"].min(), table["n_params"].max())
    for name, value in TRUE.items():
        assert row[name] == pytest.approx(value, rel=0.02), name


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("shard_bytes", [200, 1 << 20])
def test_columns_have_the_names_of_the_covariates_and_a_group_is_a_curve(tmp_path, seen, suffix, shard_bytes):
    one = ladder(5)
    table = pd.concat([one.assign(curve=name, loss=one["loss"] + k) for k, name in enumerate("abc")])
    table = pd.concat([table, one[:4].assign(curve="d")]).rename(columns={"loss": "y"})
    table = table[["curve", "y", "tokens", "n_params"]]
    source, out = tmp_path / f"t.{suffix}", tmp_path / "o.csv"
    table.to_csv(source, index=False) if suffix == "csv" else table.to_parquet(source, index=False, row_group_size=3)
    summary = fit_table(laws.CHINCHILLA, source, out, shard_bytes=shard_bytes)
    assert summary.curves == 4
    rows = pd.read_csv(out)
    assert rows["curve"].tolist() == list("abcd")
    assert {"n_params_low", "tokens_high"} <= set(rows)
    np.testing.assert_allclose(rows["tokens_low"][:3], one["tokens"].min())
    total = 0
    for at, y, weights in seen:
        assert len(y[0]) == 32, "curves of other lengths share a program"
        for row in range(len(y)):
            count = 32 if weights is None else int(weights[row].sum())
            total += count
            np.testing.assert_allclose(at["n_params"][:count], one["n_params"][:count])
            np.testing.assert_allclose(at["tokens"][:count], one["tokens"][:count])
            assert weights is not None
            assert not weights[row, count:].any()
    assert total == len(table)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_without_a_column_for_the_curve_all_rows_are_one_however_the_file_is_cut(tmp_path, seen, suffix):
    table = ladder(50)
    source = tmp_path / f"t.{suffix}"
    table.to_csv(source, index=False) if suffix == "csv" else table.to_parquet(source, index=False, row_group_size=7)
    summary = fit_table(laws.KAPLAN_ND, source, tmp_path / "o.csv", y="loss", shard_bytes=100)
    assert summary.curves == 1
    ((_, y, weights),) = seen
    np.testing.assert_allclose(y[0, :50], table["loss"])
    assert weights is not None
    assert weights.sum() == 50


def test_points_where_a_covariate_is_zero_or_y_is_missing_are_left_out_and_counted(tmp_path, seen, capsys):
    table = ladder(10)
    table.loc[2, "tokens"] = 0
    table.loc[4, "loss"] = np.nan
    table.to_csv(tmp_path / "t.csv", index=False)
    assert run(tmp_path / "t.csv", "--law", "chinchilla", "--y", "loss", "--out", tmp_path / "o.csv") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "1 where loss is missing" in text
    assert "1 where n_params or tokens is 0 (the law chinchilla has no value there)" in text
    ((at, _, weights),) = seen
    assert weights.sum() == 8
    assert (at["tokens"] > 0).all()


def test_a_curve_that_has_no_logarithm_costs_itself_alone(monkeypatch):
    def fitted(law: Any, y: np.ndarray, **options: Any) -> Any:
        assert not (y <= 0).any()
        values = {"params": np.ones((len(y), 3)), "sse": np.ones(len(y)), "status": np.zeros(len(y), np.int8)}
        return type("Fit", (), values | {"stderr": values["params"], "r2": values["sse"]})()

    monkeypatch.setattr(worker, "fit", fitted)
    fitter = worker.LawFitter("power", "auto", None, {}, "log_huber", 1e-3)
    y, weights = np.ones((3, 4)), np.ones((3, 4))
    y[0, 1], y[1, 1], weights[1, 1] = -1.0, np.nan, 0.0
    values = fitter(y, np.arange(1.0, 5.0), weights)
    assert values["status"].tolist() == [Status.NON_FINITE, 0, 0]
    assert np.isnan(values["delta0"]).tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "lacks the columns ['n_params', 'tokens']; it has ['size', 'D', 'loss'], expected [curve,]n_params,"),
        (["--x", "n_params=size", "--x", "tokens=T"], "lacks the columns ['T']"),
        (["--x", "size"], "chinchilla reads n_params, tokens; expected --x n_params=COLUMN --x tokens=COLUMN"),
        (["--x", "tokens=D", "--x", "tokens=size"], "--x names the column of tokens twice, D and size"),
        (["--x", "n_params=D", "--x", "tokens=D"], "the column D of"),
        (["--curve", "run"], "lacks the columns ['run', "),
        (
            ["--x", "n_params=size", "--x", "tokens=D", "--delta", "0.1"],
            "delta must be positive and goes with a Huber loss",
        ),
    ],
)
def test_a_mistake_names_the_columns_that_are_missing_and_those_there_are(tmp_path, capsys, arguments, sentence):
    ladder(4).set_axis(["size", "D", "loss"], axis=1).to_csv(tmp_path / "t.csv", index=False)
    wanted = [tmp_path / "t.csv", "--law", "chinchilla", "--y", "loss", "--out", tmp_path / "o.csv"]
    assert run(*wanted, *arguments) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


def test_a_matrix_holds_no_several_covariates(tmp_path, capsys):
    np.save(tmp_path / "c.npy", np.ones((2, 8)))
    assert run(tmp_path / "c.npy", "--law", "chinchilla", "--out", tmp_path / "o.csv") == 2
    assert "a law of n_params, tokens needs a table, found c.npy" in " ".join(capsys.readouterr().err.split())


def test_a_function_of_ones_own_reads_the_covariates_that_x_names(tmp_path, seen):
    ladder(8).to_csv(tmp_path / "t.csv", index=False)
    law = tmp_path / "mine.py"
    law.write_text("def joint(v, e, a, alpha):\n    return e + a * (v['n'] * v['d']) ** -alpha\n")
    columns = ["--x", "n=n_params", "--x", "d=tokens", "--y", "loss"]
    assert run(tmp_path / "t.csv", "--law", f"{law}:joint", *columns, "--out", tmp_path / "o.csv") == 0
    ((at, _, _),) = seen
    assert list(at) == ["n", "d"]


def test_laws_of_one_and_of_two_covariates_are_not_compared(tmp_path, capsys):
    ladder(8).to_csv(tmp_path / "t.csv", index=False)
    wanted = [tmp_path / "t.csv", "--law", "chinchilla,power", "--y", "loss", "--out", tmp_path / "o.csv"]
    assert run(*wanted) == 2
    assert "laws that are compared must read the same covariates" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("without_holes", [True, False])
def test_a_matrix_is_treated_as_a_table_is_at_zero_and_where_values_are_missing(tmp_path, monkeypatch, without_holes):
    """x = 0 is left out where the law has no value, NaN has weight zero; both are counted."""
    calls: list[Any] = []

    y = np.arange(12.0).reshape(3, 4)
    if not without_holes:
        y[1, 2] = np.nan
    np.save(tmp_path / "c.npy", y)
    np.save(tmp_path / "x.npy", np.arange(4.0))

    def numbers(self: Any, y: np.ndarray, x: np.ndarray, weights: Any) -> dict[str, np.ndarray]:
        calls.append((y, x, weights))
        values = {name: np.nansum(y, axis=1) for name in self.names()}
        return values | {"status": np.zeros(len(y), np.int8)}

    monkeypatch.setattr(worker.LawFitter, "__call__", numbers)
    summary = fit_table(laws.POWER, tmp_path / "c.npy", tmp_path / "o.csv", x=tmp_path / "x.npy")
    reasons = {"x is 0 (the law power has no value there)": 3} | ({} if without_holes else {"the value is NaN": 1})
    assert summary.left_out == reasons
    assert all(x.tolist() == [1, 2, 3] for _, x, _ in calls)
    rows = pd.read_csv(tmp_path / "o.csv")
    assert rows["sse"].tolist() == np.nansum(y[:, 1:], axis=1).tolist()
    if without_holes:
        assert [weights for *_, weights in calls] == [None]
    else:
        assert calls[0][2] is None, "curves without gaps are fitted without weights"
        assert calls[1][2].tolist() == [[1, 0, 1]]


def test_a_matrix_without_a_point_left_gets_a_status(tmp_path):
    np.save(tmp_path / "c.npy", np.ones((2, 3)))
    np.save(tmp_path / "x.npy", np.zeros(3))
    summary = fit_table(laws.POWER, tmp_path / "c.npy", tmp_path / "o.csv", x=tmp_path / "x.npy")
    assert summary.status == {"too_few_points": 2}
