"""The table of errors in the terminal, from the JSON values of a summary."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reporting_material as material
import xarray as xr

from tsl_jax.fitting import Fit
from tsl_jax.forecasting import Backtest, ForecastFlag
from tsl_jax.reporting import report
from tsl_jax.reporting.json_values import summary
from tsl_jax.reporting.terminal_tables import show_summary


@pytest.fixture(scope="module")
def run() -> xr.Dataset:
    return material.surface()


@pytest.fixture(scope="module")
def by_position(run: xr.Dataset) -> Fit:
    return material.position_fit(run)


@pytest.fixture(scope="module")
def backtest(run: xr.Dataset) -> Backtest:
    return material.backtest(run, {})


def test_the_later_half_is_one_half_for_page_and_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], run: xr.Dataset, by_position: Fit
) -> None:
    """By number of checkpoints, as they stand in the summary: by tokens, only the last three of these would count."""
    rising = by_position.r2 * 0 + xr.DataArray(np.arange(run.sizes["tokens"]) / 100, dims="tokens")
    r2 = xr.Dataset({"plain": rising})
    later = np.arange(run.sizes["tokens"] // 2, run.sizes["tokens"]) / 100
    page = report(tmp_path / "r2.html", by_position, run, r2=r2).read_text(encoding="utf-8")
    assert f"{np.median(later):.3f} (plain)" in page
    show_summary(summary(run, r2, None, {}, {}), run)
    assert f"R2 over positions {np.median(later):.3f}" in capsys.readouterr().out.replace("\n", " ")


def test_the_terminal_prints_warnings_and_merges_equal_columns(
    capsys: pytest.CaptureFixture[str], run: xr.Dataset, by_position: Fit, backtest: Backtest
) -> None:
    scores = backtest.scores.sort_index()  # a copy
    scores.loc[("id", 0.4, "power"), ["status", "flags"]] = "upper_bound", int(ForecastFlag.FIT_NOT_CONVERGED)
    part = run.isel(tokens=slice(None, -1))
    values = summary(part, xr.Dataset({"plain": by_position.r2}), replace(backtest, scores=scores), {}, {})
    show_summary(values, part)
    printed = capsys.readouterr().out
    assert "unfinished: " in printed
    assert "last loss so far" in printed
    assert "final" not in printed
    assert "† upper bound: power (40%)" in printed
    assert "- 3 usable position fits, 4 are needed: reciprocal" in printed
    assert printed.count("†") == 2, "one number, one line"
    show_summary(values, run.isel(tokens=[0, -2, -1]))
    assert "from 10% = 40%" in capsys.readouterr().out


def test_cut_offs_that_differ_little_have_columns_and_keys_of_their_own(
    capsys: pytest.CaptureFixture[str], run: xr.Dataset, by_position: Fit
) -> None:
    near = material.backtest(run, {}, {"power": 0.1, "last": 0.2}, cutoffs=(0.4, 0.403, 0.40300001))
    values = summary(run, xr.Dataset({"plain": by_position.r2}), near, {}, {})
    assert list(values["splits"]["id"]["forecast"]) == ["0.4", "0.403", "0.40300001"]
    del values["splits"]["id"]["forecast"]["0.40300001"]
    show_summary(values, run)
    assert "from 40.0% = 40.3%" in capsys.readouterr().out, "no checkpoint lies between them"
    between = run.tokens.values.copy()
    between[np.searchsorted(between, 0.4 * material.TOTAL)] = 0.402 * material.TOTAL
    show_summary(values, run.assign_coords(tokens=between))
    printed = capsys.readouterr().out
    assert all(f"from {name} " in printed for name in ("40.0%", "40.3%"))
