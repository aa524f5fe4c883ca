"""Forecasts and a plan that was changed in mid-run: the change is known from when it began, and not before."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from conftest import PLAN, TOTAL

import tsl_jax as tsl
from tsl_jax.forecasting import ForecastStatus, backtest
from tsl_jax.forecasting.baselines import MEAN_COSINE, NEEDS_COSINE, Baseline
from tsl_jax.forecasting.lr_history import LearningRate, of_run
from tsl_jax.laws import Schedule

CHANGED = [
    {"from_tokens": 0, **PLAN},
    {"from_tokens": TOTAL // 2, **PLAN, "kind": "constant", "peak": 1e-3, "warmup_tokens": 0},
]


def recorder(seen: list[Schedule | None]) -> Baseline:
    """A baseline that records the plans it is given, and forecasts nothing."""
    return Baseline("recorder", lambda plan: seen.append(plan))


@pytest.mark.parametrize("given", [None, CHANGED])
def test_a_backtest_tells_each_cut_off_the_plan_of_its_time(simulated: xr.Dataset, given: list | None) -> None:
    seen: list[Schedule | None] = []
    surface = simulated.assign_attrs(schedule=CHANGED) if given is None else simulated
    backtest(surface, cutoffs=(0.2, 0.6), schedule=given, methods=[recorder(seen)])
    assert seen == [Schedule.from_plan(PLAN), Schedule.from_plan(CHANGED)]


def test_a_forecast_knows_the_plan_of_its_past_or_the_one_it_is_given(simulated: xr.Dataset) -> None:
    """A given plan is used as it is: it may include changes to come."""
    seen: list[Schedule | None] = []
    past = simulated.assign_attrs(schedule=CHANGED).sel(tokens=slice(None, 0.4 * TOTAL))
    tsl.forecast(past, method=recorder(seen))
    tsl.forecast(past, method=recorder(seen), schedule=CHANGED)
    assert seen == [Schedule.from_plan(PLAN), Schedule.from_plan(CHANGED)]
    late = simulated.assign_attrs(schedule=CHANGED)
    for method in ("paper", MEAN_COSINE):
        assert tsl.forecast(late, at=[2 * TOTAL], method=method).status["id"] == ForecastStatus.of([NEEDS_COSINE])


def test_a_plan_of_a_surface_that_cannot_be_read_names_the_run(simulated: xr.Dataset) -> None:
    with pytest.raises(ValueError, match="attribute schedule of the surface of the run 'strange'"):
        tsl.forecast(simulated.assign_attrs(schedule=[1, "a"], run="strange"))


def test_a_burst_of_the_learning_rate_is_no_warm_up(simulated: xr.Dataset) -> None:
    """Checkpoints before it are learned from as before it, and the rate is measured in the top of the first rise."""
    constant = {**PLAN, "kind": "constant"}
    burst = [
        {"from_tokens": 0, **constant},
        {"from_tokens": TOTAL // 2, **constant, "peak": 5 * PLAN["peak"], "warmup_tokens": 0},
        {"from_tokens": TOTAL // 2 + TOTAL // 100, **constant, "warmup_tokens": 0},
    ]
    past = simulated.assign_attrs(schedule=burst).drop_vars("lr", errors="ignore")
    rate = of_run(past.sel(tokens=slice(None, 0.7 * TOTAL)), Schedule.from_plan(burst))
    assert rate.warmup == PLAN["warmup_tokens"]
    assert rate.lr[rate.tokens == PLAN["warmup_tokens"]] == 1
    assert rate.lr.max() == 5
    assert rate.fallen(TOTAL) == rate.fallen(TOTAL // 2) == 0  # nothing of an annealing has been seen
    for begin in (11, 15, 19):  # hundredths of the run, the warm-up being two: before or after twice of it
        early = [{**entry} for entry in burst]
        early[1]["from_tokens"], early[2]["from_tokens"] = begin * TOTAL // 400, (begin + 1) * TOTAL // 400
        history = of_run(past.assign_attrs(schedule=early), Schedule.from_plan(early))
        assert (history.warmup, history.lr[-1]) == (PLAN["warmup_tokens"], 1)
    forecast = tsl.forecast(past.sel(tokens=slice(None, 0.7 * TOTAL)), [TOTAL], method="mean_annealing")
    assert np.isfinite(forecast.mean).all()


def test_a_burst_does_not_take_the_pieces_of_the_annealing() -> None:
    tokens = np.array([0.0, 10, 50, 50.01, 51, 51.01, 80, 100])
    rates = np.array([0.0, 1, 1, 5, 5, 1, 1, 0.1])
    plain, burst = (
        LearningRate(tokens, lr, 1.0, 10.0).covariates(tokens, 100.0) for lr in (np.minimum(rates, 1.0), rates)
    )
    late = [(cov["at_area"] > cov["area"][-2]) & (cov["decrease"] > 0) for cov in (plain, burst)]
    assert late[0].sum() == 64 - 6  # parts of a 64th of the peak each, of a decay by .9
    assert late[1].sum() > 20
    for cov, mask in zip((plain, burst), late, strict=True):
        assert cov["decrease"][mask].sum() == pytest.approx(0.9, abs=0.02)
