"""Forecasts with intervals: planted laws under every schedule, units, spacing, reference runs, unknown changes."""

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import tsl_jax as tsl
from tsl_jax.forecasting import extrapolation, lr_aware, lr_history, priors
from tsl_jax.forecasting.lr_history import LearningRate

TOTAL, PEAK, POSITION = 100_000_000, 1e-3, np.arange(1, 9)
SHARED = {"peak": PEAK, "warmup_tokens": 2_000_000, "total_tokens": TOTAL, "final_ratio": 0.1}
PLANS = {
    "constant": {**SHARED, "kind": "constant", "final_ratio": 1.0},
    "cosine": {**SHARED, "kind": "cosine"},
    "wsd": {**SHARED, "kind": "wsd", "decay_start_tokens": 70_000_000},
    "restarts": {**SHARED, "kind": "restarts", "cycles": 3},
    "changed": [
        {**SHARED, "kind": "constant", "from_tokens": 0, "final_ratio": 1.0},
        {"kind": "table", "from_tokens": 60_000_000, "tokens": [60_000_000, TOTAL], "lr": [3e-4, 3e-4]},
    ],
}


def planted(kind: str, every: int = 1, noise: float = 5e-4, seed: int = 0, level: float = 0.0) -> xr.Dataset:
    """A run whose mean loss follows the annealing law over its own learning rate, positions apart by a hyperbola."""
    tokens = np.unique(np.geomspace(1e6, TOTAL, 61).astype(int))[::every]
    plan = tsl.laws.Schedule.from_plan(PLANS[kind])
    x = LearningRate(*plan.knots()).covariates(tokens, float(TOTAL))
    basis = tsl.laws.SATURATING_ANNEALING.basis
    mean = np.asarray(basis(jnp.array([0.4, 500.0, 2.2]), x), float) @ np.array([2.6 + level, 0.5, 0.18])
    mean += noise * np.random.default_rng(seed).standard_normal(len(tokens))
    gap = 1 / (1 + 0.4 * POSITION)
    loss = mean[:, None] + 1.2 * (gap - gap.mean())
    return tsl.from_losses(loss, tokens=tokens, schedule=PLANS[kind], run=kind, n_params=1e8)


def past_of(surface: xr.Dataset, share: float) -> xr.Dataset:
    return surface.sel(tokens=slice(None, share * TOTAL))


def inside(forecast: tsl.Forecast, truth: float) -> bool:
    low, high = (float(forecast.quantiles.sel(split="id", quantile=q)[-1]) for q in (0.05, 0.95))
    return low < truth < high


@pytest.mark.parametrize("kind", PLANS)
def test_a_planted_law_is_continued_under_every_schedule(kind):
    surface = planted(kind)
    # the change of plan is known once it has begun: before, the old plan is what a forecast can know
    plan = tsl.laws.Schedule.from_plan(PLANS[kind]) if kind != "changed" else None
    share = 0.4 if kind != "changed" else 0.7
    forecast = tsl.forecast(past_of(surface, share), method="mean_annealing", schedule=plan)
    truth = float(surface.loss[0, -1].mean())
    assert abs(float(forecast.mean[0, -1]) - truth) < 0.05
    assert inside(forecast, truth)
    assert forecast.status["id"].ok


def test_reference_runs_tell_what_the_prefix_cannot():
    """The decay has not begun at the cut-off: alone the interval is wide, with two siblings narrow, and both hold."""
    surface = planted("wsd", seed=1)
    truth, past = float(surface.loss[0, -1].mean()), past_of(surface, 0.4)
    siblings = [planted("cosine", seed=2), planted("constant", seed=3)]
    alone, pooled = (tsl.forecast(past, method="mean_annealing", reference_runs=s) for s in ((), siblings))
    widths = [float(f.quantiles[0, -1, -1] - f.quantiles[0, -1, 0]) for f in (alone, pooled)]
    assert inside(alone, truth)
    assert inside(pooled, truth)
    assert widths[1] < 0.7 * widths[0]
    assert abs(float(pooled.mean[0, -1]) - truth) < 0.02


def test_intervals_by_position_widen_and_hold():
    surface = planted("cosine")
    past = past_of(surface, 0.3)
    at = surface.tokens.values[past.sizes["tokens"] :]
    forecast = tsl.forecast(past, at, method="annealing")
    ahead = surface.loss.sel(tokens=at)
    low, high = (forecast.surface_quantiles.sel(quantile=q) for q in (0.05, 0.95))
    assert float(((ahead > low) & (ahead < high)).mean()) > 0.8
    width = (high - low).mean(("split", "position"))
    assert float(width[-1]) > 2 * float(width[0])
    np.testing.assert_allclose(forecast.draws.quantile(0.5, "draw"), forecast.mean)
    assert "to" in repr(forecast)


@pytest.mark.parametrize("method", ["mean_annealing", "mean_area_power"])
def test_units_of_loss_and_tokens_do_not_matter(method):
    """Bits for nats, thousands of tokens for tokens: the same forecast in the new units."""
    surface = planted("cosine")
    forecast = tsl.forecast(past_of(surface, 0.4), method=method)
    bits = surface.assign(loss=surface.loss / np.log(2))
    np.testing.assert_allclose(
        tsl.forecast(past_of(bits, 0.4), method=method).quantiles, forecast.quantiles / np.log(2), rtol=1e-9
    )
    plan = {k: v / 1000 if k.endswith("tokens") else v for k, v in PLANS["cosine"].items()}
    thousands = surface.assign_coords(tokens=surface.tokens / 1000).assign_attrs(schedule=plan)
    past = thousands.sel(tokens=slice(None, 0.4 * TOTAL / 1000))
    np.testing.assert_allclose(tsl.forecast(past, method=method).quantiles, forecast.quantiles, rtol=1e-6)


def test_the_spacing_of_checkpoints_hardly_matters():
    dense, sparse = (tsl.forecast(past_of(planted("cosine", every), 0.5), method="mean_annealing") for every in (1, 2))
    width = float(dense.quantiles[0, -1, -1] - dense.quantiles[0, -1, 0])
    assert abs(float(dense.mean[0, -1] - sparse.mean[0, -1])) < 0.3 * width


def test_a_later_change_of_plan_is_not_known():
    """The run drops its rate at 60 %; from 40 % the old plan is forecast, and another one once it is given."""
    surface = planted("changed")
    past = past_of(surface, 0.4)
    unaware = tsl.forecast(past.assign_attrs(schedule=PLANS["constant"]), method="mean_annealing")
    aware = tsl.forecast(past, method="mean_annealing")
    np.testing.assert_array_equal(aware.draws, unaware.draws)
    plan = {**SHARED, "kind": "wsd", "decay_start_tokens": 60_000_000}
    assert float(tsl.forecast(past, schedule=plan, method="mean_annealing").mean[0, -1]) < float(aware.mean[0, -1])


def test_what_cannot_be_forecast_has_a_status_and_leaves_the_others_alone():
    surface = planted("cosine")
    both = xr.concat([surface, surface.assign_coords(split=["bad"])], "split")
    both.loss[1, 3:] = np.nan
    forecast = tsl.forecast(past_of(both, 0.4), method="mean_annealing")
    assert forecast.mean.sel(split="bad").isnull().all()
    assert "checkpoints past the warm-up are needed; where the warm-up was over before" in str(forecast.status["bad"])
    assert "tsl import --warmup-tokens N" in str(forecast.status["bad"])
    alone = tsl.forecast(past_of(surface, 0.4), method="mean_annealing")
    np.testing.assert_array_equal(forecast.quantiles.sel(split="id"), alone.quantiles.sel(split="id"))


def test_nine_of_ten_intervals_hold():
    """Forty planted runs with serially correlated residuals: a small version of experiments/forecast_coverage."""
    held, law = [], tsl.laws.AREA_ANNEALING
    tokens = np.geomspace(1e6, TOTAL, 41)
    plan = tsl.laws.Schedule.from_plan(PLANS["cosine"])
    rate, seen = LearningRate(*plan.knots()), tokens <= 0.3 * TOTAL
    x = rate.covariates(tokens, float(TOTAL))
    for seed in range(40):
        random = np.random.default_rng(seed)
        shape = np.exp(random.normal(np.log([0.35, 300]), [0.3, 0.5]))
        y = np.asarray(law.basis(jnp.asarray(shape), x), float) @ random.uniform([2, 0.2, 0.05], [3, 0.8, 0.2])
        y += random.normal(0, 0.1) * np.where(seen, 0, y - y[seen][-1])  # no law is quite true
        serial = random.standard_normal(41)
        for k in range(1, 41):
            serial[k] = 0.7 * serial[k - 1] + 0.7 * serial[k]
        y += 0.002 * serial
        run = extrapolation.RunCurve(tokens[seen], y[seen], rate)
        draws = extrapolation.extrapolate(
            tsl.laws.AREA_ANNEALING, priors.of_loss(tsl.laws.AREA_ANNEALING), run, tokens[~seen]
        ).draws
        low, high = np.quantile(draws[:, -1], [0.05, 0.95])
        held.append(low < y[-1] < high)
    assert 0.75 <= np.mean(held) <= 1.0


def test_the_area_counts_the_warm_up_and_every_decrease():
    """Warm-up over 10, constant to 50, then a drop to .4 at 60: areas and decreases by hand."""
    rate = LearningRate(np.array([0.0, 10, 50, 60, 100]), np.array([0.0, 2, 2, 0.8, 0.8]))
    assert rate.warmup == pytest.approx(10, abs=0.05)
    np.testing.assert_allclose(rate.area(np.array([10.0, 50, 60, 100, 200])), [5, 45, 52, 68, 108], rtol=1e-6)
    covariates = rate.covariates(np.array([50.0]), reference=10.0)
    assert covariates["decrease"].sum() == pytest.approx(0.6)
    used = covariates["decrease"] > 0
    assert np.all((covariates["at_area"][used] > 4.5) & (covariates["at_area"][used] < 5.2))
    assert covariates["to_rate"][used].min() == pytest.approx(0.4, abs=0.02)
    for tokens in ([1.0, 2.0], [0.0, 0.0]):
        with pytest.raises(ValueError, match="learning rate"):
            LearningRate(np.array(tokens), np.array([1.0, 1.0]))


def test_the_record_of_a_run_counts_where_it_left_its_plan():
    surface = planted("constant")
    lr = np.where(surface.tokens > 3e7, 5e-4, PEAK)
    lr[: int((surface.tokens < 2e6).sum())] = 5e-4
    past = past_of(surface.assign_coords(lr=("tokens", lr)), 0.5)
    plan = tsl.laws.Schedule.from_plan(PLANS["constant"])
    rate = lr_history.of_run(past, plan)
    assert np.interp(4.5e7, rate.tokens, rate.lr) == pytest.approx(0.5, abs=0.01)
    assert np.interp(0.9e8, rate.tokens, rate.lr) == pytest.approx(1.0)
    without = lr_history.of_run(past, None)
    assert np.interp(4.5e7, without.tokens, without.lr) == pytest.approx(0.5, abs=0.01)


def test_an_unseen_decay_of_the_learning_rate_is_flagged():
    wsd, cosine = planted("wsd"), planted("cosine", seed=1)
    early, late = (tsl.forecast(past_of(wsd, share), method="mean_annealing") for share in (0.4, 0.9))
    assert early.intervals["id"] == "model-based, the learning rate's fall not yet seen"
    assert late.intervals["id"] == "model-based"
    beside = tsl.forecast(past_of(wsd, 0.4), method="mean_annealing", reference_runs=[cosine])
    assert beside.intervals["id"] == "model-based"
    assert "seen" not in tsl.forecast(past_of(planted("constant"), 0.4), method="mean_annealing").intervals["id"]


def test_what_was_learned_of_each_shape_is_reported():
    """Of the exponent much; of how a fall of the rate acts nothing where there was none, and more where there was."""
    constant, wsd = (
        tsl.forecast(past_of(planted(kind), 0.95), method="mean_annealing").fits["mean"]["id"].posterior.learned
        for kind in ("constant", "wsd")
    )
    assert constant[0] > 0.5
    assert abs(constant[1]) < 0.1
    assert wsd[1] > 0.2


def test_the_saturating_law_is_the_annealing_law_where_no_rate_is_high_and_gains_c_from_peak_to_zero():
    x = LearningRate(*tsl.laws.Schedule.from_plan({**PLANS["cosine"], "final_ratio": 0.0}).knots()).covariates(
        np.array([5e7, 1e8]), float(TOTAL)
    )
    plain = np.asarray(tsl.laws.AREA_ANNEALING.basis(jnp.array([0.5, 300.0]), x))
    far = np.asarray(tsl.laws.SATURATING_ANNEALING.basis(jnp.array([0.5, 300.0, 1e6]), x))
    np.testing.assert_allclose(far, plain, rtol=1e-4)
    near = np.asarray(tsl.laws.SATURATING_ANNEALING.basis(jnp.array([0.5, 1e9, 0.7]), x))
    assert near[-1, 2] == pytest.approx(-1, abs=1e-3), "all of C, at the rate 0 and without delay"
    assert near[0, 2] > plain[0, 2], "less is gained from the first half of a fall"


def test_runs_of_another_peak_share_the_level_that_they_end_at():
    x = LearningRate(*tsl.laws.Schedule.from_plan({**PLANS["cosine"], "final_ratio": 0.0}).knots()).covariates(
        np.array([1e8]), float(TOTAL)
    )
    shape = jnp.array([0.5, 1e9, 2.0])
    ours, other = (
        np.asarray(tsl.laws.SATURATING_ANNEALING.basis(shape, x | {"peak": np.array([p])}))[0] for p in (1, 3)
    )
    assert ours[2] == pytest.approx(other[2], abs=2e-3), "all gained: -C in both"
    start = {**x, "decrease": 0 * x["decrease"]}
    high = np.asarray(tsl.laws.SATURATING_ANNEALING.basis(shape, start | {"peak": np.array([3.0])}))[0]
    assert high[2] == pytest.approx(3**0.3 - 1), "at its peak the run of the higher peak stands higher"
    assert high[1] == pytest.approx(float(x["area"][0] * 3**0.5) ** -0.5)


def test_the_prior_knows_the_absolute_peak_the_steps_and_small_models():
    law = tsl.laws.SATURATING_ANNEALING
    general = priors.of_loss(law)
    low, high = (priors.of_run(general, law, peak, 1e9, None).coefs[2] for peak in (1e-4, 1e-3))
    assert high[0] == pytest.approx(0.06)
    assert low[0] == pytest.approx(0.06 * 0.1**0.3)
    assert low[1] / low[0] == pytest.approx(high[1] / high[0])
    for share in (1.0, 0.5):  # rates as shares of the peak say nothing
        assert priors.of_run(general, law, share, None, None) == general
    assert priors.of_run(general, law, 1.0, None, 1000).shapes[1][0] == pytest.approx(np.log(40))
    assert priors.of_run(general, law, 1e-3, 1e5, None).coefs[2] == priors.SMALL_GAIN
    assert priors.of_run(priors.of_loss(tsl.laws.POWER), tsl.laws.POWER, 1e-3, 1e5, 10) == priors.of_loss(
        tsl.laws.POWER
    )


def test_the_start_of_a_loss_is_left_out_and_that_of_a_parameter_is_not():
    rate, tokens = LearningRate(np.array([0.0, 100.0]), np.ones(2)), np.arange(1.0, 21)
    y = np.where(tokens < 6, 9.0, 3.0)
    curve = extrapolation.RunCurve(tokens, y, rate, is_loss=True)
    assert extrapolation.usable(curve).sum() == 15
    assert extrapolation.usable(extrapolation.RunCurve(tokens, y, rate)).all()
    few = extrapolation.RunCurve(tokens[:7], y[:7], rate, is_loss=True)
    assert extrapolation.usable(few).all(), "two points beyond the start are too few"
    warm = LearningRate(np.array([0.0, 18.0, 100.0]), np.array([0.0, 1.0, 1.0]))
    assert extrapolation.usable(extrapolation.RunCurve(tokens, y, warm)).sum() == 3, "those just past the warm-up"


def test_tokens_of_a_step_are_those_stated_else_those_of_the_steps():
    surface = planted("cosine").isel(tokens=slice(3))
    assert lr_aware._batch_tokens(surface) is None
    assert lr_aware._batch_tokens(
        surface.assign_coords(step=("tokens", surface.tokens.values // 512))
    ) == pytest.approx(512, rel=1e-3)
    assert lr_aware._batch_tokens(surface.assign_attrs(batch_tokens=64)) == 64
