"""Forecasts: planted laws are continued, the future is never seen, a wrong position law does not shift the mean."""

import re

import numpy as np
import pytest
import xarray as xr
from conftest import PLAN, TOTAL, planted, simulate, token_grid

import tsl_jax as tsl
from tsl_jax import baselines
from tsl_jax.forecasting import ForecastFlag, ForecastStatus, backtest, covered, winkler
from tsl_jax.forecasting.position_route import Reach, surface_of

METHODS = ("temporal", "temporal_joint")
CONTINUED = ("annealing", "mean_annealing", "mean_multi_power", "mean_area_power")
ALL = (*CONTINUED, *METHODS, "paper", *baselines.ALL)


def past_of(surface: xr.Dataset, share: float) -> xr.Dataset:
    return surface.sel(tokens=slice(None, share * TOTAL))


@pytest.mark.parametrize(("method", "a2"), [("temporal", "reciprocal"), ("temporal_joint", "power")])
def test_planted_laws_are_continued(method, a2):
    surface = simulate(a2)
    forecast = tsl.forecast(past_of(surface, 0.4), at=surface.tokens, method=method)
    ahead = surface.tokens.values > 0.4 * TOTAL
    truth = planted(surface.tokens.values[ahead], surface.position.values, a2)
    np.testing.assert_allclose(forecast.surface.sel(split="id")[ahead], truth, atol=0.03)
    np.testing.assert_allclose(forecast.surface.sel(split="ood")[ahead], truth + 0.5, atol=0.03)
    assert forecast.mean.dims == ("split", "tokens")
    assert forecast.cutoff <= 0.4 * TOTAL


def with_another_future(surface: xr.Dataset, share: float) -> xr.Dataset:
    """Beyond the share the loss rises instead: finite numbers, which any fit that sees them would follow."""
    return surface.assign(loss=surface.loss.where(surface.tokens <= share * TOTAL, 9 - surface.loss))


COSINE = {**PLAN, "kind": "cosine"}


@pytest.fixture(scope="module")
def past_only(simulated):
    return backtest(simulated, cutoffs=(0.2, 0.4), schedule=COSINE).forecasts


@pytest.mark.parametrize("cutoff", [0.2, 0.4])
def test_a_backtest_never_sees_the_future(simulated, past_only, cutoff):
    """Whole runs that differ beyond the cut-off: every method forecasts the same numbers, bit for bit."""
    other = with_another_future(simulated, cutoff)
    altered = backtest(other, cutoffs=(cutoff,), schedule=COSINE).forecasts
    for method in (getattr(method, "name", method) for method in ALL):
        assert np.isfinite(past_only[cutoff, method].mean).all(), method
        np.testing.assert_array_equal(past_only[cutoff, method].mean, altered[cutoff, method].mean, method)
        np.testing.assert_array_equal(past_only[cutoff, method].quantiles, altered[cutoff, method].quantiles, method)


def test_the_baselines_of_a_score_never_see_the_future(simulated):
    past = past_of(simulated, 0.3)
    table = tsl.score(
        tsl.forecast(past, at=simulated.tokens, method="temporal"), simulated, against=baselines.POWER_LAW
    )
    alone = tsl.forecast(past, at=simulated.tokens[past.sizes["tokens"] :], method=baselines.POWER_LAW)
    for split in ("id", "ood"):
        assert table.loc[(split, "power"), "final"] == float(alone.mean.sel(split=split)[-1])


@pytest.mark.parametrize("method", METHODS)
def test_the_forecast_is_anchored_where_the_position_law_is_wrong(method):
    """Positions follow a power law with waves, not a hyperbola: the mean forecast still starts at the observed mean."""
    tokens, position = token_grid(), np.arange(1, 65)
    level = 4.0 / (1 + 5e-6 * tokens) + 3.5 if method == "temporal" else 60 * tokens**-0.3 + 2.5
    loss = level[:, None] + 1.5 * position**-0.4 + 0.05 * np.sin(position)  # no hyperbola has waves
    two = np.stack([loss, loss + 0.5])  # as many splits as the other tests have: their programs serve here too
    surface = tsl.from_losses(two, tokens=tokens, split=["id", "ood"], schedule={**PLAN, "kind": "constant"})
    forecast = tsl.forecast(past_of(surface, 0.4), at=surface.tokens, method=method)
    observed = surface.loss.mean("position")
    ahead = surface.tokens > 0.4 * TOTAL
    np.testing.assert_allclose(forecast.mean.where(ahead, drop=True), observed.where(ahead, drop=True), atol=0.02)
    # by position too: the waves are carried forward
    np.testing.assert_allclose(forecast.surface[:, -1], surface.loss[:, -1], atol=0.02)


def test_the_mean_is_anchored_where_the_temporal_law_is_wrong():
    """The level steps up by 0.2 nats and, late, down again, which no temporal law does: the last third counts."""
    tokens, position = np.linspace(60_000, TOTAL, 76).astype(int), np.arange(1, 65)
    raised = (np.arange(76) >= 11) & (np.arange(76) < 20)
    noise = 1e-3 * np.random.default_rng(0).standard_normal((76, 64))
    loss = planted(tokens, position) + 0.2 * raised[:, None] + noise
    surface = tsl.from_losses(loss, tokens=tokens, schedule={**PLAN, "kind": "constant"})
    past, first, observed = past_of(surface, 0.4), surface.tokens.values[29:30], float(surface.loss[0, 29].mean())
    assert past.sizes["tokens"] == 29
    forecast = tsl.forecast(past, at=first, method="temporal")
    assert abs(float(surface_of(forecast.fits, first, surface.position).mean()) - observed) > 0.05  # the laws alone
    assert float(forecast.mean[0, 0]) == pytest.approx(observed, abs=0.02)


def test_checkpoints_count_by_the_precision_of_their_fits(simulated):
    """One early checkpoint has 200 times the noise, its fit is usable and far off: the forecast stays where it was."""
    noisy = simulated.copy(deep=True)
    noisy.loss[:, 3, :] += 0.2 * np.random.default_rng(1).standard_normal((2, 64))
    forecast, clean = (
        tsl.forecast(past_of(surface, 0.4), at=simulated.tokens[17:], method="temporal")
        for surface in (noisy, simulated)
    )
    assert (forecast.fits["position"].status.isel(tokens=1) == tsl.Status.WEAKLY_IDENTIFIED).all()
    np.testing.assert_allclose(forecast.mean, clean.mean, atol=0.005)  # with equal weights 0.02 off


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_with_a_gap_is_left_out(simulated, method):
    gap = simulated.copy(deep=True)
    gap.loss[0, 5, 7] = np.nan
    forecast, without = (
        tsl.forecast(past_of(surface, 0.4), at=simulated.tokens, method=method)
        for surface in (gap, simulated.drop_isel(tokens=5))
    )
    assert np.isfinite(forecast.surface).all()
    np.testing.assert_allclose(forecast.mean.sel(split="id"), without.mean.sel(split="id"), rtol=1e-4)
    assert forecast.status["id"].ok


@pytest.mark.parametrize("method", [baselines.RECIPROCAL, baselines.LAST], ids=lambda m: m.name)
def test_a_baseline_leaves_out_a_checkpoint_with_a_gap_and_says_so(simulated, method):
    gap = simulated.copy(deep=True)
    gap.loss[0, 16, 7] = np.nan  # the last one of the past
    forecast = tsl.forecast(past_of(gap, 0.4), at=simulated.tokens, method=method)
    without = tsl.forecast(past_of(simulated.drop_isel(tokens=16), 0.4), at=simulated.tokens, method=method)
    np.testing.assert_allclose(forecast.mean.sel(split="id"), without.mean.sel(split="id"), rtol=1e-6)
    assert forecast.status["id"].flags == ForecastFlag.INCOMPLETE_PAST
    assert str(forecast.status["id"]) == "1 of 15 checkpoints lack positions and are left out"
    assert forecast.status["ood"].ok


def test_a_score_leaves_out_a_checkpoint_with_a_gap_and_says_so(simulated):
    gap = simulated.copy(deep=True)
    gap.loss[0, -1, 7] = np.nan
    forecast = tsl.forecast(past_of(simulated, 0.4), at=simulated.tokens, method=baselines.LAST)
    table, without = tsl.score(forecast, gap), tsl.score(forecast, simulated.isel(tokens=slice(-1)))
    numbers = ["final", "observed", "error", "mse", "r2"]
    np.testing.assert_array_equal(table.loc["id", numbers], without.loc["id", numbers])
    reason = "of those unseen, 1 of 14 checkpoints lack positions and are left out"
    assert table.status.tolist() == [reason, "ok"]
    assert table["flags"].tolist() == [ForecastFlag.INCOMPLETE_FUTURE, 0]
    gap.loss[0, 18:, 7] = np.nan
    assert tsl.score(forecast, gap).loc["id", numbers].isna().all(axis=None)


# The joint fit compiles two programs more for the same decision about splits.
@pytest.mark.parametrize("method", ["temporal", pytest.param("temporal_joint", marks=pytest.mark.slow)])
def test_a_split_that_cannot_be_forecast_leaves_the_others_alone(simulated, method):
    """Nearly all checkpoints of ood are steps (a1 at the bound): id is forecast as if it were alone."""
    broken = simulated.copy(deep=True)
    broken.loss[1, 4:] = np.where(np.arange(64) < 1, 9.0, 7.0)
    forecast = tsl.forecast(past_of(broken, 0.4), at=simulated.tokens, method=method)
    alone = tsl.forecast(past_of(broken.sel(split=["id"]), 0.4), at=simulated.tokens, method=method)
    np.testing.assert_allclose(forecast.surface.sel(split="id"), alone.surface.sel(split="id"), rtol=1e-6)
    assert forecast.mean.sel(split="ood").isnull().all()
    assert forecast.surface.sel(split="ood").isnull().all()
    assert forecast.status["id"].ok
    assert forecast.status["ood"].flags == ForecastFlag.NO_FORECAST
    assert str(forecast.status["ood"]) == "2 usable position fits, 4 are needed"


def test_a_status_names_the_parameter_whose_law_is_not_determined(simulated):
    tokens = simulated.tokens
    straight = simulated.assign(loss=simulated.loss - 4 / (1 + 5e-6 * tokens) + 2.5 - 1e-6 * tokens)
    forecast = tsl.forecast(past_of(straight, 0.4), at=[TOTAL, 8 * TOTAL], method="temporal")
    for split, status in forecast.status.items():  # noise decides which of the two
        assert re.match("falls below zero, which no loss does, a2 (straight_line|lower_bound), ", str(status))
        doubts = ForecastFlag.BELOW_ZERO | ForecastFlag.FIT_NOT_CONVERGED | ForecastFlag.BEYOND_PLAN
        assert status.flags == doubts
        assert f"{split}: {status}" in repr(forecast)
    clean = tsl.forecast(past_of(simulated, 0.4), at=[TOTAL], method="temporal")
    assert all(status.ok for status in clean.status.values())


def test_a_status_says_that_the_checkpoints_are_too_few_for_a_cosine(simulated):
    """Four checkpoints are enough for the hyperbola that goes on instead, and too few for the break of the cosine."""
    schedule = {**PLAN, "kind": "cosine"}
    past = simulated.isel(tokens=slice(2, 6))
    paper = tsl.forecast(past, at=[TOTAL], schedule=schedule, method="paper")
    np.testing.assert_array_equal(paper.mean, tsl.forecast(past, at=[TOTAL], schedule=schedule, method="temporal").mean)
    for status in paper.status.values():
        assert status.flags & ForecastFlag.COSINE_NOT_IDENTIFIED
        assert str(status).startswith("the cosine piece is not identified: too few checkpoints to find N_sep")


def test_checkpoints_whose_fit_is_at_a_bound_are_left_out(simulated):
    """One early checkpoint is a step (its a1 at the bound): the forecast is the one without it."""
    broken = simulated.copy(deep=True)
    broken.loss[:, 3, :] = np.where(np.arange(64) < 1, 9.0, 7.0)
    forecast = tsl.forecast(past_of(broken, 0.4), at=simulated.tokens, method="temporal")
    assert (forecast.fits["position"].status.isel(tokens=1) == tsl.Status.UPPER_BOUND).all()
    without = tsl.forecast(past_of(simulated.drop_isel(tokens=3), 0.4), at=simulated.tokens, method="temporal")
    np.testing.assert_allclose(forecast.mean, without.mean, rtol=1e-6)


def test_too_few_checkpoints_give_no_number_and_say_so(simulated):
    forecast = tsl.forecast(simulated.isel(tokens=slice(0, 4)), at=simulated.tokens, method="temporal")
    assert forecast.mean.isnull().all()
    assert "checkpoints past the warm-up" in str(forecast.status["id"])
    assert "nan" in repr(forecast)


@pytest.mark.parametrize("positions", [1, 3])
def test_too_few_positions_for_a_law_over_them_leave_the_methods_of_the_mean(simulated, positions):
    past = past_of(simulated.isel(position=slice(positions)), 0.4)
    for method in (*METHODS, "paper"):
        forecast = tsl.forecast(past, method=method)
        assert forecast.mean.isnull().all()
        assert str(forecast.status["id"]) == f"a law over positions needs 4 of them, the surface has {positions}"
    assert np.isfinite(tsl.forecast(past, method=baselines.LAST).mean).all()


def test_without_tokens_the_end_of_the_plan_is_meant(simulated):
    forecast = tsl.forecast(past_of(simulated, 0.4), method=tsl.baselines.LAST)
    assert forecast.mean.tokens.values.tolist() == [TOTAL]
    other = tsl.forecast(past_of(simulated, 0.4), schedule={**PLAN, "total_tokens": 10**7}, method=tsl.baselines.LAST)
    assert other.mean.tokens.values.tolist() == [10**7]


def test_a_forecast_below_zero_is_flagged(simulated):
    falling = tsl.from_losses(np.linspace(5, 1, 12)[:, None] * [[1.0, 1.1]], tokens=np.geomspace(1e5, 1e6, 12))
    near, far = (tsl.forecast(falling, at, method=tsl.baselines.LOGARITHMIC) for at in (1.1e6, 1e8))
    assert near.status["id"].ok
    assert far.status["id"] == ForecastStatus(ForecastFlag.BELOW_ZERO, ("falls below zero, which no loss does",))


def test_a_baseline_is_its_law():
    tokens = np.geomspace(1e5, TOTAL, 20)
    loss = np.broadcast_to((50 * tokens**-0.3 + 2.0)[:, None], (20, 4))
    surface = tsl.from_losses(loss, tokens=tokens)
    at = tokens[12:]
    forecast = tsl.forecast(surface.isel(tokens=slice(12)), at=at, method=tsl.baselines.POWER_LAW)
    np.testing.assert_allclose(forecast.mean[0], 50 * at**-0.3 + 2.0, rtol=1e-6)
    last = tsl.forecast(surface.isel(tokens=slice(12)), at=at, method=tsl.baselines.LAST)
    np.testing.assert_allclose(last.mean[0], loss[11, 0])
    straight = tsl.from_losses(np.log(tokens)[:, None] * [[-0.5, -0.5]] + 9, tokens=tokens)
    forecast = tsl.forecast(straight.isel(tokens=slice(12)), at=at, method=tsl.baselines.LOGARITHMIC)
    np.testing.assert_allclose(forecast.mean[0], 9 - 0.5 * np.log(at), rtol=1e-9)


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


def test_interval_scores_and_coverage_by_hand():
    """Inside it costs the width, outside 2/(1 - level) times the distance more."""
    low, high, observed = np.array([[1.0, 1.0, 1.0, np.nan], [2.0, 3.0, 2.0, 2.0], [1.5, 0.9, 2.0, 1.0]])
    np.testing.assert_allclose(winkler(low, high, observed), [1, 2 + 20 * 0.1, 1, np.nan])
    np.testing.assert_allclose(winkler(1.0, 2.0, 2.3, level=0.5), 1 + 4 * 0.3)
    assert covered(low, high, observed) == pytest.approx(2 / 3)
    assert np.isnan(covered(np.nan, np.nan, 1.0))


def test_a_score_tells_of_intervals_at_the_checkpoints(simulated):
    past = past_of(simulated, 0.4)
    forecast = tsl.forecast(past, at=simulated.tokens, method="mean_annealing")
    truth = simulated.loss.mean("position")[:, past.sizes["tokens"] :]
    held_out = forecast.quantiles.sel(tokens=truth.tokens)
    table = tsl.score(forecast, simulated, against=baselines.LAST)
    for split in ("id", "ood"):
        low, high, observed = held_out.sel(split=split)[:, 0], held_out.sel(split=split)[:, -1], truth.sel(split=split)
        assert table.loc[(split, "mean_annealing"), "covered_90"] == covered(low, high, observed)
        score = float(winkler(low, high, observed).mean())
        assert table.loc[(split, "mean_annealing"), "interval_score"] == pytest.approx(score)
        assert np.isfinite(table.loc[(split, "last"), ["covered_90", "interval_score"]].astype(float)).all()


def test_a_backtest_has_every_split_cutoff_and_method(simulated):
    result = backtest(simulated, cutoffs=(0.2, 0.4))
    methods = {getattr(method, "name", method) for method in ALL}
    assert set(result.scores.index) == {(s, c, m) for s in ("id", "ood") for c in (0.2, 0.4) for m in methods}
    row = result.scores.loc["id", 0.4, "power"]
    alone = tsl.forecast(past_of(simulated, 0.4), at=simulated.tokens, method=tsl.baselines.POWER_LAW)
    assert row.final == pytest.approx(float(alone.mean.sel(split="id")[-1]))
    assert result.scores.loc["id", 0.4, "mean_cosine"].status == "needs a cosine schedule"
    assert np.isnan(result.scores.loc["id", 0.4, "mean_cosine"].final)
    assert result.scores.loc["id", 0.4, "temporal"].r2 > 0.9


def test_a_score_refuses_what_it_would_have_to_invent_and_what_saw_more(simulated):
    past = past_of(simulated, 0.4)
    last = tsl.forecast(past, at=simulated.tokens, method=baselines.LAST)
    for at in ([TOTAL], [past.tokens[-1], simulated.tokens[-2]]):
        short = tsl.forecast(past, at=at, method=baselines.LAST)
        for wanted in ((short, simulated), (last, simulated, short)):
            with pytest.raises(ValueError, match=r"forecast last spans .* checkpoints 1\.0\d+e\+06 to 2\.5e\+06"):
                tsl.score(*wanted)
    later = tsl.forecast(past_of(simulated, 0.5), at=simulated.tokens, method=baselines.LAST)
    with pytest.raises(ValueError, match=r"in against= was made from .* make it from the same past"):
        tsl.score(last, simulated, against=[later])
    assert len(tsl.score(later, simulated, against=last)) == 4  # one that saw less may stand beside it


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


def test_an_exploded_fit_gives_no_number():
    values = xr.DataArray(np.full((2, 3, 4), 5.0), {"split": ["id", "ood"]}, ("split", "tokens", "position"))
    values[1, 2, 0] = -1e16
    for parts in ([values], [values[..., :1], values[..., 1:]]):  # whole, or some positions after the other
        plausible = Reach.over([Reach.of(part) for part in parts]).plausible(highest=8.0)
        assert plausible.values.tolist() == [True, False]
