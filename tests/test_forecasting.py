"""Forecasts: planted laws are continued, the future is never seen, a wrong position law does not shift the mean."""

import numpy as np
import pytest
import xarray as xr
from conftest import PLAN, TOTAL, planted, simulate, token_grid

import tsl_jax as tsl
from tsl_jax import baselines
from tsl_jax.forecasting import backtest

METHODS = ("temporal", "temporal_joint")
ALL = (*METHODS, "temporal_cosine", *baselines.ALL)


def past_of(surface: xr.Dataset, share: float) -> xr.Dataset:
    return surface.sel(tokens=slice(None, share * TOTAL))


@pytest.mark.parametrize(("method", "a2"), [("temporal", "reciprocal"), ("temporal_joint", "power")])
def test_planted_laws_are_continued(method, a2):
    surface = simulate(a2)
    found = tsl.forecast(past_of(surface, 0.4), at=surface.tokens, method=method)
    ahead = surface.tokens.values > 0.4 * TOTAL
    truth = planted(surface.tokens.values[ahead], surface.position.values, a2)
    np.testing.assert_allclose(found.surface.sel(split="id")[ahead], truth, atol=0.03)
    np.testing.assert_allclose(found.surface.sel(split="ood")[ahead], truth + 0.5, atol=0.03)
    assert found.mean.dims == ("split", "tokens")
    assert found.cutoff <= 0.4 * TOTAL


@pytest.mark.parametrize("method", ALL, ids=lambda m: getattr(m, "name", m))
def test_the_future_does_not_change_a_forecast(simulated, method):
    """From a whole run cut at the present, whatever came after: the same numbers, bit for bit."""
    changed = simulated.copy(deep=True)
    changed["loss"] = changed.loss.where(changed.tokens <= 0.3 * TOTAL, np.nan)
    schedule = {**PLAN, "kind": "cosine"}
    one, other = (
        tsl.forecast(past_of(surface, 0.3), at=simulated.tokens, schedule=schedule, method=method)
        for surface in (simulated, changed)
    )
    np.testing.assert_array_equal(one.mean, other.mean)


@pytest.mark.parametrize("method", METHODS)
def test_the_forecast_is_anchored_where_the_position_law_is_wrong(method):
    """Positions follow a power law with waves, not a hyperbola: the mean forecast still starts at the observed mean."""
    tokens, position = token_grid(), np.arange(1, 65)
    level = 4.0 / (1 + 5e-6 * tokens) + 3.5 if method == "temporal" else 60 * tokens**-0.3 + 2.5
    loss = level[:, None] + 1.5 * position**-0.4 + 0.05 * np.sin(position)  # no hyperbola has waves
    surface = tsl.from_losses(loss, tokens=tokens, schedule={**PLAN, "kind": "constant"})
    found = tsl.forecast(past_of(surface, 0.4), at=surface.tokens, method=method)
    observed = surface.loss.mean("position")
    ahead = surface.tokens > 0.4 * TOTAL
    np.testing.assert_allclose(found.mean.where(ahead, drop=True), observed.where(ahead, drop=True), atol=0.02)
    # by position too: the waves are carried forward
    np.testing.assert_allclose(found.surface[0, -1], surface.loss[0, -1], atol=0.02)


def test_checkpoints_whose_fit_is_at_a_bound_are_left_out(simulated):
    """One early checkpoint is a step (its a1 at the bound): the forecast is the one without it."""
    broken = simulated.copy(deep=True)
    broken.loss[:, 3, :] = np.where(np.arange(64) < 1, 9.0, 7.0)
    found = tsl.forecast(past_of(broken, 0.4), at=simulated.tokens)
    assert (found.fits["position"].status.isel(tokens=1) == tsl.Status.UPPER_BOUND).all()
    without = tsl.forecast(past_of(simulated.drop_isel(tokens=3), 0.4), at=simulated.tokens)
    np.testing.assert_allclose(found.mean, without.mean, rtol=1e-6)


def test_too_few_checkpoints_give_no_number_and_say_so(simulated):
    found = tsl.forecast(simulated.isel(tokens=slice(0, 4)), at=simulated.tokens)
    assert found.mean.isnull().all()
    assert "checkpoints past the warm-up" in found.status["id"]
    assert "nan" in repr(found)


def test_without_tokens_the_end_of_the_plan_is_meant(simulated):
    found = tsl.forecast(past_of(simulated, 0.4), method=tsl.baselines.LAST)
    assert found.mean.tokens.values.tolist() == [TOTAL]
    other = tsl.forecast(past_of(simulated, 0.4), schedule={**PLAN, "total_tokens": 10**7}, method=tsl.baselines.LAST)
    assert other.mean.tokens.values.tolist() == [10**7]


def test_a_forecast_below_zero_is_doubted(simulated):
    falling = tsl.from_losses(np.linspace(5, 1, 12)[:, None] * [[1.0, 1.1]], tokens=np.geomspace(1e5, 1e6, 12))
    near, far = (tsl.forecast(falling, at, method=tsl.baselines.LOGARITHMIC) for at in (1.1e6, 1e8))
    assert near.status["id"] == "ok"
    assert far.status["id"] == "falls below zero, which no loss does"


def test_a_baseline_is_its_law():
    tokens = np.geomspace(1e5, TOTAL, 20)
    loss = np.broadcast_to((50 * tokens**-0.3 + 2.0)[:, None], (20, 4))
    surface = tsl.from_losses(loss, tokens=tokens)
    at = tokens[12:]
    found = tsl.forecast(surface.isel(tokens=slice(12)), at=at, method=tsl.baselines.POWER_LAW)
    np.testing.assert_allclose(found.mean[0], 50 * at**-0.3 + 2.0, rtol=1e-6)
    last = tsl.forecast(surface.isel(tokens=slice(12)), at=at, method=tsl.baselines.LAST)
    np.testing.assert_allclose(last.mean[0], loss[11, 0])
    straight = tsl.from_losses(np.log(tokens)[:, None] * [[-0.5, -0.5]] + 9, tokens=tokens)
    found = tsl.forecast(straight.isel(tokens=slice(12)), at=at, method=tsl.baselines.LOGARITHMIC)
    np.testing.assert_allclose(found.mean[0], 9 - 0.5 * np.log(at), rtol=1e-9)


def test_a_score_weighs_tokens_evenly_and_looks_at_the_future_only():
    """The forecast is off by a constant, then by a ramp: MSE and R2 by hand, however the checkpoints are spaced."""
    tokens = np.array([1.0, 2.0, 3.0, 3.1, 3.2, 3.3, 7.0])
    loss = 10 - np.tile(tokens[:, None], (1, 3))
    surface = tsl.from_losses(loss, tokens=tokens)
    shifted = surface.copy(deep=True)
    shifted["loss"] = surface.loss + 0.5
    last = tsl.forecast(surface.isel(tokens=slice(2)), at=tokens, method=tsl.baselines.LAST)
    table = tsl.score(last, surface)
    row = table.loc["id", "last"]
    ramp = 8 - (10 - np.linspace(3, 7, 200))  # predicted 8, observed 10 - N
    assert row.error == pytest.approx(8 - 3)
    assert row.mse == pytest.approx(np.mean(ramp**2))
    assert row.r2 == pytest.approx(1 - np.mean(ramp**2) / np.var(np.linspace(3, 7, 200)))
    with pytest.raises(ValueError, match="beyond the cut-off"):
        tsl.score(tsl.forecast(surface, at=tokens, method=tsl.baselines.LAST), surface)


def test_a_backtest_has_every_split_cutoff_and_method(simulated):
    found = backtest(simulated, cutoffs=(0.2, 0.4))
    methods = {getattr(one, "name", one) for one in ALL}
    assert set(found.scores.index) == {(s, c, m) for s in ("id", "ood") for c in (0.2, 0.4) for m in methods}
    one = found.scores.loc["id", 0.4, "power"]
    alone = tsl.forecast(past_of(simulated, 0.4), at=simulated.tokens, method=tsl.baselines.POWER_LAW)
    assert one.final == pytest.approx(float(alone.mean.sel(split="id")[-1]))
    assert found.scores.loc["id", 0.4, "mean_cosine"].status == "needs a cosine schedule"
    assert np.isnan(found.scores.loc["id", 0.4, "mean_cosine"].final)
    assert found.scores.loc["id", 0.4, "temporal"].r2 > 0.9


def test_requests_that_make_no_sense_are_refused_in_words(simulated):
    with pytest.raises(ValueError, match="method must be one of"):
        tsl.forecast(simulated, at=1e6, method="crystal ball")
    with pytest.raises(ValueError, match="past holds no checkpoint"):
        tsl.forecast(simulated.isel(tokens=slice(0)), at=1e6)
    with pytest.raises(ValueError, match="must be tokens seen, positive"):
        tsl.forecast(simulated, at=[0, 1])
    with pytest.raises(ValueError, match="must be tokens seen, positive, found 'later'"):
        tsl.forecast(simulated, at="later")
    with pytest.raises(ValueError, match=r"no plan whose end could be meant; name tokens, as in at="):
        tsl.forecast(simulated.drop_attrs())
    with pytest.raises(ValueError, match="no checkpoint within the first"):
        backtest(simulated, cutoffs=(0.001,))
