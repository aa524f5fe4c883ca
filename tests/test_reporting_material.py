"""What a page is made of: forecasts by cut-off, fits by name, and how far a run has come."""

import math
from dataclasses import replace

import numpy as np
import pytest
import reporting_material as material
import xarray as xr

from tsl_jax import laws
from tsl_jax.fitting import fit
from tsl_jax.reporting.material import late_median, sort, unfinished
from tsl_jax.reporting.wording import percents


@pytest.fixture(scope="module")
def run() -> xr.Dataset:
    return material.surface()


def test_shares_have_as_few_decimals_as_tell_them_apart() -> None:
    assert percents([0.4, 0.1, 0.1]) == {0.1: "10%", 0.4: "40%"}
    assert percents([0.4, 0.403, 0.1]) == {0.1: "10.0%", 0.4: "40.0%", 0.403: "40.3%"}
    assert percents([0.005, 0.4]) == {0.005: "0.5%", 0.4: "40%"}
    close = percents([0.4, 0.4 + 1e-12])
    assert len(set(close.values())) == 2


def test_forecasts_are_grouped_by_numbers_and_a_cut_off_is_named_when_it_is_drawn(run: xr.Dataset) -> None:
    from_40, last = material.forecast(run, 0.4, "power", 0.1, {}), float(run.tokens[-1])
    ahead = replace(from_40, cutoff=last)
    sorted_ = sort([run, from_40, replace(from_40, method="last"), ahead])
    assert list(sorted_.forecasts) == [0.4, 1.0]
    assert sorted_.cutoff_names == {0.4: "40%", 1.0: "now"}
    assert list(sorted_.forecasts[0.4]) == ["power", "last"]
    assert sorted_.scores.index.get_level_values("cutoff").unique().tolist() == [0.4]


def test_a_forecast_from_the_past_of_a_backtest_stands_beside_its_forecasts(run: xr.Dataset) -> None:
    last_seen = float(run.tokens.sel(tokens=slice(None, 0.4 * material.TOTAL))[-1])
    backtest = material.backtest(run, {}, {"power": 0.1})
    backtest = replace(backtest, forecasts={k: replace(f, cutoff=last_seen) for k, f in backtest.forecasts.items()})
    mine = replace(backtest.forecasts[(0.4, "power")], method="mine")
    assert list(sort([backtest, mine]).forecasts[0.4]) == ["power", "mine"]


def test_two_different_forecasts_by_one_method_from_one_cut_off_are_refused(run: xr.Dataset) -> None:
    first = material.forecast(run, 0.4, "power", 0.1, {})
    assert len(sort([run, first, replace(first)]).forecasts[0.4]) == 1
    with pytest.raises(ValueError, match="two different forecasts by power from 400000 tokens; a page shows one"):
        sort([run, first, material.forecast(run, 0.4, "power", 0.2, {})])


def test_fits_of_laws_of_one_name_are_numbered(run: xr.Dataset) -> None:
    x = np.geomspace(1e5, 1e9, 8)
    kaplan = fit(replace(laws.KAPLAN_N, name="kaplan (mine)"), (8.8e13 / x) ** 0.076, x=x)
    assert list(sort([kaplan, replace(kaplan)]).others) == ["kaplan (mine)", "kaplan (mine) (2)"]


def test_the_later_half_without_a_number_has_no_median() -> None:
    assert math.isnan(late_median([0.5, None]))


def test_a_later_change_of_plan_does_not_count_before_it_begins(run: xr.Dataset) -> None:
    total = int(run.tokens[-1])
    plan = {"kind": "constant", "peak": 1e-3, "warmup_tokens": 0, "total_tokens": total}
    changed = [{**plan, "from_tokens": 0}, {**plan, "from_tokens": int(0.8 * total), "total_tokens": 2 * total}]
    whole = run.assign_attrs(schedule=changed)
    assert unfinished(whole) == pytest.approx(0.5)
    half = whole.sel(tokens=slice(None, total // 2))
    assert unfinished(half) == pytest.approx(float(half.tokens[-1]) / total)
