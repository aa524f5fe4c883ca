"""Large surfaces and many reference runs: the same numbers as at once, in memory and work that do not explode."""

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import xarray as xr
from conftest import PLAN, TOTAL

import tsl_jax as tsl
from tsl_jax import baselines, laws
from tsl_jax.diagnostics import expected_r2, surface_expected_r2
from tsl_jax.diagnostics import noise as noise_of
from tsl_jax.fitting import batching, fit
from tsl_jax.forecasting import (
    ForecastFlag,
    backtest,
    backtesting,
    extrapolation,
    forecast_run,
    joint_surface,
    lr_aware,
    mixed_model,
    position_route,
    priors,
)
from tsl_jax.forecasting.lr_history import LearningRate
from tsl_jax.forecasting.result import population_quantiles
from tsl_jax.surface import position_covariance, position_noise

CUTOFF = 0.4 * TOTAL


def same(one: tsl.Forecast, other: tsl.Forecast, rtol: float = 1e-12) -> None:
    for name in ("mean", "quantiles", "surface", "surface_quantiles", "model_discrepancy_sd", "draws"):
        first, second = getattr(one, name), getattr(other, name)
        assert (first is None) == (second is None), name
        if first is not None:
            xr.testing.assert_allclose(first, second, rtol=rtol)
    assert one.status == other.status
    assert one.intervals == other.intervals


@pytest.mark.parametrize("method", ["paper", "annealing"])
def test_some_positions_after_the_other_give_what_all_at_once_give(simulated, method, monkeypatch):
    past, at = simulated.sel(tokens=slice(None, CUTOFF)), [TOTAL, 2 * TOTAL]
    whole = tsl.forecast(past, at, method=method)
    monkeypatch.setattr(position_route, "BLOCK", 1500)
    monkeypatch.setattr(lr_aware, "BLOCK", 1500)
    same(tsl.forecast(past, at, method=method), whole)
    without = tsl.forecast(past, at, method=method, by_position=False)
    nothing = {"surface": None, "surface_quantiles": None, "model_discrepancy_sd": None}
    same(without, replace(whole, **nothing))


def test_draws_of_a_large_surface_are_never_in_memory_at_once():
    random, (draws, tokens, positions) = np.random.default_rng(0), (512, 24, 4096)
    a0, log_a1, a2 = (random.uniform(low, low + 1, (draws, tokens)) for low in (1, -3, 2))
    residual = 0.01 * random.standard_normal((draws, positions))
    made = lr_aware.SurfaceDraws(a0, log_a1, a2, np.arange(1.0, positions + 1), residual)
    tracemalloc.start()
    mean, of_surface, below = lr_aware._summarised(made, by_position=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * 8 * lr_aware.BLOCK < 8 * draws * tokens * positions
    assert (of_surface, below) == (None, False)
    np.testing.assert_allclose(mean[:, 3:4], made.at(slice(3, 4)).mean(axis=2), rtol=1e-12)
    beyond = replace(made, log_a1=np.full_like(log_a1, 12.0))  # where no few positions say the others
    np.testing.assert_allclose(beyond.mean()[:, 3:4], beyond.at(slice(3, 4)).mean(axis=2), rtol=1e-12)
    assert (made.least <= made.at(slice(None, 2)).min()).any()


def test_a_median_below_zero_is_seen_without_the_surface():
    ones = np.ones((512, 3))
    level = np.stack([ones[:, 0], -ones[:, 0], ones[:, 0]], axis=1)
    made = lr_aware.SurfaceDraws(0.1 * ones, -ones, level, np.arange(1.0, 9), np.zeros((512, 8)))
    assert lr_aware._summarised(made, by_position=False)[2]
    assert lr_aware._summarised(made, by_position=True)[2]


def test_positions_are_compressed_exactly():
    position, random = np.arange(1.0, 513), np.random.default_rng(0)
    a1 = np.exp(random.uniform(np.log(1e-7), np.log(100), 50))[:, None]
    curves = 0.7 / (1 + a1 * position) + 2.5
    loss = xr.DataArray(curves[None], {"split": ["id"], "position": position}, ("split", "tokens", "position"))
    compressed = joint_surface._compress(loss)
    assert compressed.loss.sizes["position"] < 40
    at_pivots = 0.7 / (1 + a1 * compressed.loss.position.values) + 2.5
    np.testing.assert_allclose(compressed.loss.values[0], at_pivots @ compressed.mixing.T, atol=1e-9)
    assert float(compressed.beyond.max()) < 1e-9
    noise = random.standard_normal(loss.shape)
    missed = joint_surface._compress(loss + noise)
    of_noise = joint_surface._compress(loss * 0 + noise)
    np.testing.assert_allclose(missed.beyond, of_noise.beyond, rtol=1e-9)


@pytest.mark.slow
def test_a_joint_forecast_of_compressed_positions_is_that_of_all(simulated, monkeypatch):
    past = simulated.sel(tokens=slice(None, CUTOFF))
    every = tsl.forecast(past, [TOTAL], method="temporal_joint")
    monkeypatch.setattr(joint_surface, "LARGE", 0)
    few = tsl.forecast(past, [TOTAL], method="temporal_joint")
    np.testing.assert_allclose(few.quantiles, every.quantiles, rtol=1e-6)
    np.testing.assert_allclose(few.fits["joint"].sse, every.fits["joint"].sse, rtol=1e-8)


def with_clusters(positions: int = 24, checkpoints: int = 5, clusters: int = 6) -> xr.Dataset:
    random = np.random.default_rng(0)
    grown = np.log(np.arange(1, checkpoints + 1))[:, None, None]
    curve = 4 - 0.3 * grown + (1 + 0.1 * grown) / (1 + 0.3 * np.arange(1, positions + 1))
    count = random.integers(2, 5, (1, checkpoints, clusters, positions)).astype(float)
    sums = count * (curve + 0.1 * random.standard_normal((1, checkpoints, clusters, positions)))
    dims = ("split", "tokens", "cluster", "position")
    stored = xr.Dataset(
        {"cluster_sum": (dims, sums), "cluster_count": (dims, count)},
        {"split": ["id"], "tokens": np.arange(1, checkpoints + 1) * 1e6, "position": np.arange(1, positions + 1)},
    )
    stored = stored.assign(loss_sum=stored.cluster_sum.sum("cluster"), count=stored.cluster_count.sum("cluster"))
    return tsl.surface.with_losses(stored)


def test_noise_by_cluster_is_a_root_of_the_covariance_and_enough_for_expected_r2_and_population(monkeypatch):
    surface = with_clusters()
    noise, covariance = position_noise(surface), position_covariance(surface)
    np.testing.assert_allclose(np.einsum("stci,stcj->stij", noise, noise), covariance, rtol=1e-10)
    by_position = fit(laws.HYPERBOLIC, surface.loss, over="position")
    monkeypatch.setattr(noise_of, "BLOCK", 2 * noise.isel(tokens=0).size)  # two checkpoints at once
    compiled = noise_of._of_each._cache_size()
    expected = surface_expected_r2(by_position, surface, position_noise)
    assert noise_of._of_each._cache_size() - compiled <= 2  # a program for all blocks, and one for the last
    at_once = expected_r2(by_position, surface.loss, covariance)
    np.testing.assert_allclose(expected["mean"], at_once["mean"], rtol=1e-9)
    assert ((expected.low < expected["mean"]) & (expected["mean"] < expected.high)).all()
    draws = xr.DataArray(np.zeros((4000, 1, 1)), {"split": ["id"]}, ("draw", "split", "tokens"))
    sem = float(covariance[0, -1].mean()) ** 0.5
    last = population_quantiles(surface, draws)
    normal = np.random.default_rng(9).standard_normal(4000)
    assert last is not None
    np.testing.assert_allclose(last[0, 0], np.quantile(sem * normal, [0.05, 0.25, 0.5, 0.75, 0.95]), rtol=1e-9)


def test_a_surface_that_memory_cannot_hold_is_refused_before_any_work(simulated, monkeypatch):
    monkeypatch.setattr(forecast_run, "_free_memory", lambda: 1e6)
    past, at = simulated.sel(tokens=slice(None, CUTOFF)), np.linspace(TOTAL / 2, TOTAL, 1000)
    with pytest.raises(ValueError, match=r"positions and 1,000 token counts takes .* free; name fewer tokens in at="):
        tsl.forecast(past, at, method="temporal")
    assert tsl.forecast(past, at, method=baselines.LAST).mean.sizes["tokens"] == 1000


# ------------------------------------------------------------------------------------------ very many checkpoints


def long_log(checkpoints: int = 300) -> xr.Dataset:
    tokens = np.linspace(TOTAL / checkpoints, TOTAL, checkpoints)
    loss = 2.5 + (tokens / 1e5) ** -0.4 + 0.003 * np.random.default_rng(0).standard_normal(checkpoints)
    return tsl.from_losses(loss[:, None], tokens=tokens, schedule=PLAN)


def test_of_very_many_checkpoints_some_are_learned_from_and_the_status_says_so(monkeypatch):
    surface = long_log()
    usual = tsl.forecast(surface, [2 * TOTAL], method=baselines.LAST)
    assert not usual.status["id"].flags & ForecastFlag.PAST_THINNED
    monkeypatch.setattr(forecast_run, "MOST_LEARNED", 100)
    learned = forecast_run.picked(surface)
    assert learned.tokens.values[[0, -1]].tolist() == surface.tokens.values[[0, -1]].tolist()
    thinned = tsl.forecast(surface, [2 * TOTAL], method=baselines.LAST)
    assert thinned.status["id"].flags == ForecastFlag.PAST_THINNED | ForecastFlag.BEYOND_PLAN
    assert "learned from 100 of 294 checkpoints, evenly picked" in str(thinned.status["id"])
    np.testing.assert_allclose(thinned.mean, usual.mean)


def test_fits_of_long_pasts_share_a_compiled_program_and_give_the_same(monkeypatch):
    pasts = [long_log(100).isel(tokens=slice(count)) for count in (50, 70)]  # 64 and 96 points
    alone = [tsl.forecast(past, [TOTAL], method=baselines.LOGARITHMIC) for past in pasts]
    monkeypatch.setattr(baselines, "LONG", 40)
    monkeypatch.setattr(baselines, "PADDED", 128)
    compiled = batching._program("cpu")._cache_size()
    padded = [tsl.forecast(past, [TOTAL], method=baselines.LOGARITHMIC) for past in pasts]
    assert batching._program("cpu")._cache_size() == compiled + 1
    for one, other in zip(alone, padded, strict=True):
        same(one, other, rtol=1e-9)


def test_a_backtest_of_very_many_held_out_checkpoints_is_judged_at_all_of_them(monkeypatch):
    surface = long_log()
    monkeypatch.setattr(backtesting, "MOST_AHEAD", 20)
    result = backtest(surface, cutoffs=(0.4,), methods=("last",))
    ahead = result.forecasts[(0.4, "last")].mean.tokens.values
    assert len(ahead) == 20
    assert ahead[-1] == TOTAL
    held_out = surface.loss.sel(tokens=slice(0.4 * TOTAL + 1, None))[0, :, 0]
    low, high = (result.forecasts[(0.4, "last")].quantiles.sel(quantile=q)[0] for q in (0.05, 0.95))
    low, high = (np.interp(held_out.tokens, ahead, end) for end in (low, high))
    inside = (low <= held_out) & (held_out <= high)
    assert float(result.scores.covered_90.iloc[0]) == pytest.approx(float(inside.mean()))


def test_a_law_is_read_at_many_points_as_at_few(monkeypatch):
    rate = LearningRate(*tsl.laws.Schedule.from_plan(PLAN).knots())
    at = np.linspace(0.5 * TOTAL, TOTAL, 11)
    eta = np.log([[0.5, 300.0], [0.4, 200.0]])
    eta = np.concatenate([eta, np.zeros((2, 6))], axis=1)
    beta = np.array([[2.0, 0.5, 0.1], [2.1, 0.4, 0.1]])
    x = rate.covariates(at, TOTAL, [0.0, 0.4 * TOTAL, TOTAL])
    whole = mixed_model._along(laws.AREA_ANNEALING, eta, beta, x, np.zeros(1), len(at))
    monkeypatch.setattr(mixed_model, "AT_ONCE", 4)
    parts = mixed_model._along(laws.AREA_ANNEALING, eta, beta, x, np.zeros(1), len(at))
    np.testing.assert_allclose(parts, whole, rtol=1e-12)


# ------------------------------------------------------------------------------------------------ many reference runs


def curve(seed: int, points: int = 12) -> extrapolation.RunCurve:
    tokens = np.geomspace(0.05 * TOTAL, TOTAL, points)
    rate = LearningRate(np.array([0.0, TOTAL]), np.ones(2))
    noise = 0.002 * np.random.default_rng(seed).standard_normal(points)
    return extrapolation.RunCurve(tokens, 2 + 0.5 * (tokens / TOTAL) ** -0.4 + noise, rate)


def counted(monkeypatch: pytest.MonkeyPatch, of: Any, name: str, what: Callable[..., int]) -> list[int]:
    counts: list[int] = []
    original = getattr(of, name)

    def counting(*arguments: Any, **more: Any) -> Any:
        counts.append(what(*arguments))
        return original(*arguments, **more)

    monkeypatch.setattr(of, name, counting)
    return counts


def test_the_work_of_a_round_grows_linearly_with_reference_runs(monkeypatch):
    numbers = {}
    for count in (5, 10, 20):
        problem = extrapolation._mixed_problem(
            laws.AREA_POWER, priors.of_loss(laws.AREA_POWER), [curve(k) for k in range(count + 1)], TOTAL
        )
        eta = problem[1].eta + 0.1 * np.random.default_rng(0).standard_normal((4, len(problem[1].eta)))
        with monkeypatch.context() as patch:
            sizes = counted(patch, np.linalg, "cholesky", lambda matrix: matrix.size * matrix.shape[-1])
            mixed_model._log_density(laws.AREA_POWER, *problem, eta)
        numbers[count] = sum(sizes)
    assert numbers[20] - numbers[10] == 2 * (numbers[10] - numbers[5])


def test_backtests_on_reference_runs_are_few_and_none_is_made_twice(monkeypatch):
    at, law = np.array([2.0 * TOTAL]), laws.AREA_POWER
    fake = extrapolation.extrapolate(law, priors.of_loss(law), curve(0), at)
    made: list[int] = []

    def instead(law, prior, run, at, reference_runs=(), seed=0, near=None):
        made.append(len(reference_runs))
        return replace(fake, draws=np.full((extrapolation.DRAWS, 1), run.y[-1]))

    monkeypatch.setattr(extrapolation, "extrapolate", instead)
    past = curve(0, 20)
    past = extrapolation.RunCurve(past.tokens[:10], past.y[:10], past.rate)
    for count, backtests in ((2, 0), (3, 3), (8, 8), (20, 8), (40, 8)):
        made.clear()
        runs = [curve(k + 1) for k in range(count)]
        found = extrapolation.calibrated(law, priors.of_loss(law), past, at, runs)
        assert len(found.backtest_z) == backtests
        assert len(made) == 1 + backtests
        assert extrapolation.calibrated(law, priors.of_loss(law), past, at, runs) is found  # it is remembered
        assert len(made) == 1 + backtests
