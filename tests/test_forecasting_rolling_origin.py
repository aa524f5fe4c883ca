"""Intervals from earlier origins within the past: right by hand, wider with the horizon, never of the future."""

import numpy as np
import pytest
import xarray as xr
from conftest import TOTAL
from scipy.stats import t as student

import tsl_jax as tsl
from tsl_jax import baselines
from tsl_jax.forecasting import covered, rolling_origin


def run(loss: np.ndarray, tokens: np.ndarray) -> xr.Dataset:
    """Curves (curve, tokens) as splits of one position."""
    names = [f"run {k}" for k in range(len(loss))]
    return tsl.from_losses(loss[..., None], tokens=tokens, split=names)


def width(forecast: tsl.Forecast) -> np.ndarray:
    """Of the 90 % interval, (split, tokens)."""
    low, *_, high = forecast.quantiles.transpose("quantile", ...).values
    return high - low


def test_errors_that_grow_with_the_logarithm_of_tokens_are_carried_on_by_hand():
    """A loss that falls by .3 an e-fold: repeating the last value is off by .3 h from every origin."""
    tokens = np.linspace(1e6, 2e7, 20)
    at = np.array([2e7, 4e7, 3e7, 1e6])
    forecast = tsl.forecast(run(9 - 0.3 * np.log(tokens)[None], tokens), at, method=baselines.LAST)
    assert forecast.intervals == {"run 0": "rolling origins (5)"}
    np.testing.assert_allclose(forecast.quantiles.sel(quantile=0.5), forecast.mean, rtol=1e-12)
    off = 0.3 * np.log(np.maximum(at / 2e7, 1))
    expected = 2 * student.ppf(0.95, df=4) * off[None]
    np.testing.assert_allclose(
        width(forecast), expected, rtol=0.02, atol=0.003
    )  # of 512 draws; curvature counts as scatter
    later = (forecast.draws.values - forecast.mean.values)[:, 0, 1:3]  # comonotone: one number a draw
    np.testing.assert_allclose(later[:, 0] / off[1], later[:, 1] / off[2], atol=0.03)


def test_scatter_alone_gives_intervals_that_do_not_vanish_at_the_cut_off():
    noise = 0.02 * np.random.default_rng(0).standard_normal((8, 40))
    tokens = np.linspace(1e6, 4e7, 40)
    forecast = tsl.forecast(run(3 + noise, tokens), [4e7, 4.1e7], method=baselines.LAST)
    usual = np.median(width(forecast), axis=0) / 0.02
    assert (usual > 2).all()  # 3.3 for the noise alone, were its size known
    assert (usual < 6).all()


def test_intervals_hold_what_they_promise_on_runs_whose_noise_remembers():
    """75 runs of a law with an autoregressive residual, from half of each."""
    tokens, random, inside = np.linspace(1e6, 6e7, 60), np.random.default_rng(1), []
    for _ in range(15):
        noise = np.zeros((5, 60))
        for k in range(1, 60):
            noise[:, k] = 0.9 * noise[:, k - 1] + 0.01 * random.standard_normal(5)
        surface = run(2.5 + 1.5 / (1 + 2e-7 * tokens) + noise, tokens)
        forecast = tsl.forecast(surface.isel(tokens=slice(30)), tokens[30:], method=baselines.RECIPROCAL)
        lowest, low, _, high, highest = forecast.quantiles.transpose("quantile", ...).values
        truth = surface.loss[:, 30:, 0].values
        inside.append([covered(low, high, truth), covered(lowest, highest, truth)])
    half, most = np.mean(inside, axis=0)
    assert 0.35 < half < 0.75, half
    assert 0.8 < most < 0.99, most


@pytest.mark.parametrize(
    "method", ["temporal", "temporal_joint", baselines.RECIPROCAL], ids=lambda m: getattr(m, "name", m)
)
def test_intervals_widen_with_the_horizon_keep_their_unit_and_never_see_the_future(simulated, method):
    past = simulated.sel(tokens=slice(None, 0.4 * TOTAL))
    at = [TOTAL, 4 * TOTAL]
    forecast = tsl.forecast(past, at, method=method)
    wide = width(forecast)
    assert (wide[:, 1] > wide[:, 0]).all()
    assert set(forecast.intervals.values()) <= {"rolling origins (2)", "rolling origins (4)"}
    in_bits = tsl.forecast(past.assign(loss=past.loss / np.log(2)), at, method=method)
    np.testing.assert_allclose(width(in_bits), wide / np.log(2), rtol=1e-3)
    beyond = simulated.assign(loss=simulated.loss.where(simulated.tokens <= 0.4 * TOTAL, 9 - simulated.loss))
    again = tsl.forecast(beyond.sel(tokens=slice(None, 0.4 * TOTAL)), at, method=method)
    np.testing.assert_array_equal(forecast.quantiles, again.quantiles)
    if forecast.surface is not None:
        by_position = forecast.surface_quantiles
        assert by_position.dims == ("split", "tokens", "position", "quantile")
        np.testing.assert_allclose(by_position.sel(quantile=0.5), forecast.surface, rtol=1e-12)
        assert (by_position.diff("quantile") > 0).all()
        assert set(forecast.fits["a2"].status.split.values) == {"id", "ood"}  # the origins stay inside


def test_origins_leave_enough_before_them_and_one_after():
    tokens = np.arange(1, 21) * 1e6
    assert rolling_origin.origins(tokens, 2e7, rolling_origin.SHARES) == [7, 9, 11, 13, 15]
    assert rolling_origin.origins(tokens[:7], 7e6, rolling_origin.SHARES) == [4]
    assert rolling_origin.origins(tokens[:5], 5e6, rolling_origin.SHARES) == []
    assert rolling_origin.origins(tokens[9:], 2e7, rolling_origin.SHARES) == [4, 6]  # as after a warm-up


def test_too_few_checkpoints_give_no_interval_and_say_so():
    tokens = np.arange(1, 9) * 1e6
    surface = run(np.full((1, 8), 3.0), tokens)
    forecast = tsl.forecast(surface.isel(tokens=slice(5)), tokens, method=baselines.LAST)
    assert (forecast.quantiles, forecast.draws) == (None, None)
    assert forecast.intervals == {"run 0": "none: too few checkpoints"}
    assert tsl.score(forecast, surface).covered_90.isna().all()
    gaps = surface.assign(loss=surface.loss.where(surface.tokens < 6e6))  # nothing is known beyond the origin
    assert tsl.forecast(gaps, tokens, method=baselines.LAST).intervals == {"run 0": "none: too few checkpoints"}


def test_a_forecast_that_is_no_number_has_no_interval(simulated):
    forecast = tsl.forecast(simulated, method=baselines.MEAN_COSINE)
    assert forecast.intervals == dict.fromkeys(("id", "ood"), "none: no forecast")
    assert forecast.quantiles is None


def test_the_interval_of_all_texts_is_wider_than_that_of_these():
    random, tokens = np.random.default_rng(0), np.arange(1, 13) * 1e6
    by_document = 3 + 0.5 * random.standard_normal((8, 1, 1)) - 0.1 * np.log(tokens)[:, None] + np.zeros((8, 12, 3))
    sums = xr.DataArray(by_document[:, None], dims=("cluster", "split", "tokens", "position"))
    ones = xr.ones_like(sums)
    loss = tsl.from_losses(by_document.mean(0), tokens=tokens)
    past = loss.assign(cluster_sum=sums, cluster_count=ones, count=ones.sum("cluster"))
    forecast = tsl.forecast(past, [2e7], method=baselines.LAST)
    these, everywhere = (q[0, 0, -1] - q[0, 0, 0] for q in (forecast.quantiles, forecast.population_quantiles))
    assert everywhere > these + 0.05
