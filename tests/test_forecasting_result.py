"""What a forecast gives back: its printed form, its status, and the registry of methods that it can be made by."""

import os

import numpy as np
import pytest
import xarray as xr
from conftest import TOTAL

import tsl_jax as tsl
from tsl_jax import laws
from tsl_jax.forecasting import (
    METHODS,
    ForecastFlag,
    ForecastStatus,
    Paper,
    backtest,
    backtesting,
    baselines,
    extrapolation,
    priors,
)
from tsl_jax.forecasting.lr_aware import mean_runs
from tsl_jax.forecasting.lr_history import schedule_of
from tsl_jax.forecasting.methods import MAIN
from tsl_jax.forecasting.position_route import FEWEST


@pytest.fixture
def past(simulated: xr.Dataset) -> xr.Dataset:
    return simulated.sel(tokens=slice(None, 0.4 * TOTAL))


@pytest.mark.parametrize("method", [MAIN, "temporal", baselines.LAST], ids=str)
def test_tokens_named_twice_are_answered_once_where_they_stand_first(past, method):
    at = [2.0e6, 2.5e6, 2.0e6, 2.2e6]
    forecast, without = (tsl.forecast(past, tokens, method=method) for tokens in (at, [2.0e6, 2.5e6, 2.2e6]))
    assert forecast.mean.tokens.values.tolist() == [2.0e6, 2.5e6, 2.2e6]
    np.testing.assert_array_equal(forecast.quantiles, without.quantiles)


def test_a_printed_forecast_names_all_token_counts_in_order_or_the_first_and_the_last(past):
    few = repr(tsl.forecast(past, [2.5e6, 1.5e6, 2e6], method=baselines.LAST))
    assert few.index("at 1.5e+06") < few.index("at 2e+06") < few.index("at 2.5e+06")
    assert few.count("id ") == few.count("ood ") == 3
    many = repr(tsl.forecast(past, [2.5e6, 1.5e6, 2e6, 1.7e6], method=baselines.LAST))
    assert "at 1.5e+06" in many
    assert "at 2.5e+06" in many
    assert "at 2e+06" not in many
    assert many.count("nats") == 2


def test_a_status_is_data_and_a_sentence():
    fine = ForecastStatus()
    below = ForecastStatus.of([(ForecastFlag.BELOW_ZERO, "falls below zero")])
    both = below | ForecastStatus(ForecastFlag.INCOMPLETE_PAST, ("one checkpoint is left out",))
    assert (fine.ok, str(fine), int(fine.flags)) == (True, "ok", 0)
    assert not below.ok
    assert both.flags == ForecastFlag.BELOW_ZERO | ForecastFlag.INCOMPLETE_PAST
    assert str(both) == "falls below zero, one checkpoint is left out"


def test_the_registry_says_of_each_method_its_name_and_whether_it_forecasts_positions(simulated):
    """Of too few checkpoints nothing is forecast, by any method, in the shape that it would have."""
    short = simulated.isel(tokens=slice(3))
    for name, info in METHODS.items():
        forecast = tsl.forecast(short, TOTAL, method=name)
        assert forecast.method == info.name == name
        assert (forecast.surface is not None) == info.by_position
        assert info.is_baseline == (info.implementation in baselines.ALL)
    assert {info.family for info in METHODS.values()} == {"lr_aware", "position", "mean"}
    assert len({info.description for info in METHODS.values()}) == len(METHODS)


def test_a_baseline_can_be_named(past):
    by_name, by_value = (tsl.forecast(past, TOTAL, method=method) for method in ("last", baselines.LAST))
    np.testing.assert_array_equal(by_name.quantiles, by_value.quantiles)


def test_a_split_without_forecast_has_no_interval(past):
    broken = past.assign(loss=past.loss.where(past.split == "id"))
    forecast = tsl.forecast(broken, TOTAL, method=MAIN)
    assert forecast.status["ood"].flags == ForecastFlag.NO_FORECAST
    assert forecast.intervals["ood"] == "none: no forecast"
    assert forecast.status["id"].ok
    assert set(forecast.fits["mean"]) == {"id"}


def test_a_reference_run_of_which_nothing_is_usable_is_as_good_as_none(past):
    """Nothing of the run itself is seen either: the other reference run alone is learned from."""
    whole = past.sel(split="id")
    nothing, gap = whole.isel(tokens=slice(0)), whole.assign(loss=whole.loss * np.nan)
    own, *others = mean_runs(nothing, schedule_of(past), [gap, whole])
    forecast = extrapolation.extrapolate(laws.AREA_POWER, priors.of_loss(laws.AREA_POWER), own, np.array([2e6]), others)
    assert np.isfinite(forecast.draws).all()


def test_two_methods_of_one_name_cannot_be_tested_at_once(simulated):
    for methods, sentence in ((("paper", Paper(n_sep=1e6)), "paper twice"), ((), "found none")):
        with pytest.raises(ValueError, match=sentence):
            backtest(simulated, cutoffs=(0.4,), methods=methods)


def test_a_backtest_uses_the_cores_that_it_is_allowed(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert backtesting._cores() == 1
    monkeypatch.delattr(os, "sched_getaffinity")
    assert backtesting._cores() == 64


def test_a_law_over_positions_needs_as_many_as_it_says(past):
    forecast = tsl.forecast(past.isel(position=slice(FEWEST - 1)), TOTAL, method="annealing")
    assert forecast.status["id"].flags == ForecastFlag.NO_FORECAST
