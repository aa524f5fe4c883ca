"""Plans compared: one past, one fit, the same random numbers; and a learning rate whose past no plan can change."""

import numpy as np
import pytest
import xarray as xr
from conftest import PLAN, TOTAL

import tsl_jax as tsl
from tsl_jax.forecasting import ForecastFlag, ForecastMethod, compare_plans, lr_aware, mixed_model
from tsl_jax.forecasting.lr_history import LearningRate, of_run
from tsl_jax.laws import Schedule

CONSTANT = {**PLAN, "kind": "constant"}
PLANS = {
    "as planned": CONSTANT,
    "the same": dict(CONSTANT),
    "decayed": {**PLAN, "kind": "wsd", "decay_start_tokens": TOTAL // 2},
    "longer and higher": {**CONSTANT, "peak": 2 * PLAN["peak"], "warmup_tokens": 0, "total_tokens": 2 * TOTAL},
}


@pytest.fixture(scope="module")
def past(simulated: xr.Dataset) -> xr.Dataset:
    return simulated.sel(split=["id"], tokens=slice(None, 0.4 * TOTAL))


def test_identical_plans_differ_by_exactly_nothing_and_all_plans_share_one_fit(past: xr.Dataset) -> None:
    comparison = compare_plans(past, PLANS)
    assert (comparison.differences.sel(plan=["as planned", "the same"]) == 0).all()
    first, *rest = (forecast.fits["mean"]["id"].posterior for forecast in comparison.forecasts.values())
    for other in rest:
        np.testing.assert_array_equal(other.eta, first.eta)
        np.testing.assert_array_equal(other.weight, first.weight)
    ends = {name: each.draws[:, 0, -1] for name, each in comparison.forecasts.items() if each.draws is not None}
    expected = np.quantile((ends["decayed"] - ends["as planned"]).values, 0.95)
    assert float(comparison.differences.sel(plan="decayed", quantile=0.95)[0]) == pytest.approx(expected)
    assert float(comparison.differences.sel(plan="decayed", quantile=0.5)[0]) < 0
    assert float(comparison.forecasts["longer and higher"].mean.tokens[-1]) == 2 * TOTAL


@pytest.mark.parametrize("name", ["decayed", "longer and higher"])
def test_what_is_read_of_the_past_is_the_same_whatever_is_planned(past: xr.Dataset, name: str) -> None:
    """A cosine: its rate falls in the past too. A surface without rates on record knows them by its own plan."""
    past = past.assign_attrs(schedule=PLAN)
    seen = past.tokens.values.astype(float)
    own, other = (of_run(past, Schedule.from_plan(plan)) for plan in (PLAN, PLANS[name]))
    past_rates, also = (history.covariates(seen, seen[-1], [0.0, seen[-1]]) for history in (own, other))
    assert past_rates["decrease"].sum() > 0.1
    for key in past_rates:
        np.testing.assert_array_equal(past_rates[key], also[key])
    whole = other.covariates(seen[-1:], seen[-1], [0.0, seen[-1], 2.0 * TOTAL])
    jump = PLANS[name]["peak"] / PLAN["peak"] - np.interp(seen[-1], own.tokens, own.lr)
    end = -0.9 if name == "decayed" else 0.0
    assert whole["decrease"].sum() - past_rates["decrease"].sum() == pytest.approx(-jump - end, abs=1e-3)


def test_the_area_under_the_learning_rate_is_exact_between_knots_and_goes_on_beyond_them() -> None:
    rate = LearningRate(np.array([0.0, 2.0, 6.0]), np.array([0.0, 4.0, 2.0]))
    np.testing.assert_allclose(rate.area(np.array([0.0, 1.0, 2.0, 4.0, 6.0, 8.0])), [0, 0.25, 1, 2.75, 4, 5])
    assert rate.warmup == 2


def test_a_run_in_its_warm_up_is_measured_by_the_peak_to_come(past: xr.Dataset) -> None:
    early = past.isel(tokens=slice(0, 2))
    history = of_run(early, Schedule.from_plan(CONSTANT))
    assert history.warmup == PLAN["warmup_tokens"]
    assert history.lr.max() == 1


def test_plans_that_cannot_be_compared_are_refused_in_words(past: xr.Dataset) -> None:
    with pytest.raises(ValueError, match="two plans or more, found 1"):
        compare_plans(past, {"one": CONSTANT})
    with pytest.raises(ValueError, match=r"the plan b ends at 60,000 tokens, the past reaches 925,000"):
        compare_plans(past, {"a": CONSTANT, "b": {**CONSTANT, "total_tokens": 60_000}})
    with pytest.raises(ValueError, match=r"method must be one of \('mean_annealing'"):
        compare_plans(past, PLANS, method="annealing")


def test_reference_runs_with_other_positions_are_named(past: xr.Dataset) -> None:
    few, positions = past.isel(position=slice(9)), past.sizes["position"]
    method = ForecastMethod("flat", lr_aware.ANNEALING.law, lambda *_: (np.ones((512, 1, positions)), {}), True)
    mixed, alike = (
        tsl.forecast(past, method=method, reference_runs=runs).status["id"] for runs in ([past, few], [past])
    )
    assert str(mixed) == "1 of 2 reference runs have other positions and are left out"
    assert mixed.flags == ForecastFlag.REFERENCE_RUNS_IGNORED
    assert alike.ok


def test_a_score_counts_the_checkpoints_inside_the_intervals(past: xr.Dataset) -> None:
    forecast = tsl.forecast(past, at=[10**6, 15 * 10**5, 2 * 10**6, TOTAL], method="mean_annealing")
    assert forecast.quantiles is not None
    low, quarter, middle, _, high = forecast.quantiles.values[0].T
    at = forecast.mean.tokens.values
    came = np.array([middle[0], quarter[1] - 1e-9, low[2] + 1e-9, high[3] + 1e-9])
    whole = tsl.from_losses(np.append(past.loss[0, :, 0], came)[:, None], tokens=np.append(past.tokens, at))
    row = tsl.score(forecast, whole, against=tsl.baselines.LAST).loc["id"]
    assert row.loc["mean_annealing", ["covered_50", "covered_90"]].tolist() == [0.25, 0.75]
    assert np.isfinite(row.loc["last", ["covered_50", "covered_90"]].astype(float)).all()


def test_effects_that_are_hardly_identified_are_solved_nevertheless() -> None:
    """A matrix of rank one, of entries 1e40 and 1: at unit diagonal and with a little added it has a factor."""
    column = np.array([1e20, 1.0, 1e-3])
    full = np.stack([np.outer(column, column), np.eye(3)])
    factor, effect = mixed_model._solve_precision(full, np.ones((2, 3)))
    assert np.isfinite(factor).all()
    assert np.isfinite(effect).all()
    np.testing.assert_allclose(effect[1], 1.0)
