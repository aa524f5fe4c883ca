"""The paper's law with its cosine piece: recovered where the past identifies it, flagged and replaced where not."""

import jax
import numpy as np
import pytest
import xarray as xr
from conftest import PLAN, TOTAL, token_grid

import tsl_jax as tsl
from tsl_jax import laws
from tsl_jax.forecasting import Paper
from tsl_jax.laws import Schedule

N_SEP = 0.25 * TOTAL
COSINE = laws.piecewise_cosine(Schedule.from_plan(PLAN))


@pytest.fixture(scope="module")
def surface() -> xr.Dataset:
    """The paper's law exactly, but for a little noise."""
    tokens, position = token_grid().astype(float), np.arange(1, 65)
    with jax.enable_x64(True):
        a2 = np.asarray(COSINE(tokens, gamma1=5e-6, n_sep=N_SEP, gamma0=4.0, gamma2=3.5))
    a0, a1 = 0.1 * np.log1p(1e-5 * tokens) + 0.8, 0.1 + 0.2 / (1 + 3e-6 * tokens)
    noise = 1e-3 * np.random.default_rng(0).standard_normal((len(tokens), 64))
    loss = a0[:, None] / (1 + a1[:, None] * position) + a2[:, None] + noise
    return tsl.from_losses(loss, tokens=tokens, schedule=PLAN)


def past_of(surface: xr.Dataset, share: float) -> xr.Dataset:
    return surface.sel(tokens=slice(None, share * TOTAL))


@pytest.mark.parametrize("method", ["paper", Paper(n_sep=N_SEP)], ids=["searched", "given"])
def test_a_planted_cosine_is_continued_from_beyond_its_beginning(surface, method):
    forecast = tsl.forecast(past_of(surface, 0.4), at=surface.tokens[-8:], method=method)
    np.testing.assert_allclose(forecast.surface[0], surface.loss[0, -8:], atol=0.02)
    assert (forecast.method, str(forecast.status["id"])) == ("paper", "ok")
    parameters = forecast.fits["a2"].params[0]
    assert float(parameters.sel(param="n_sep")) == pytest.approx(N_SEP, rel=0.01)
    assert float(parameters.sel(param="gamma4")) == pytest.approx(np.pi / (TOTAL - PLAN["warmup_tokens"]))
    unaware = tsl.forecast(past_of(surface, 0.4), at=surface.tokens[-8:], method="temporal")
    assert abs(float(unaware.mean[0, -1] - surface.loss[0, -1].mean())) > 1


BEYOND, START = "usable checkpoints beyond N_sep = ", "is so near the start of the cosine"
CASES = {
    "cut-off before": ("paper", 0.2, BEYOND),
    "given, not reached": (Paper(n_sep=N_SEP), 0.2, f"0 {BEYOND}6.25e+05, 3 are needed"),
    "near the start": (Paper(n_sep=PLAN["warmup_tokens"] + 10_000), 0.4, f"N_sep = 6e+04 {START}"),
}


@pytest.mark.parametrize("case", CASES)
def test_where_the_cosine_is_not_identified_the_hyperbola_goes_on_with_wider_intervals(surface, case):
    method, share, why = CASES[case]
    past, at = past_of(surface, share), [share * TOTAL, 0.7 * TOTAL, TOTAL]
    forecast, plain = (tsl.forecast(past, at, method=name) for name in (method, "temporal"))
    assert str(forecast.status["id"]).startswith("the cosine piece is not identified: ")
    assert why in str(forecast.status["id"])
    assert "; the hyperbola goes on instead" in str(forecast.status["id"])
    np.testing.assert_allclose(forecast.mean, plain.mean, rtol=1e-9)
    wide, usual = (result.quantiles[0, :, -1] - result.quantiles[0, :, 0] for result in (forecast, plain))
    assert (wide[1:] > usual[1:] + 0.1).all()
    by_position = forecast.surface_quantiles[0, -1]
    assert (by_position[:, -1] - by_position[:, 0] > 0.1).all()
    moved = float(np.ptp(past.loss.values))
    assert float(abs(forecast.model_discrepancy_sd).max()) <= moved


def test_the_past_alone_decides(surface):
    """Another future changes nothing, and N_sep is searched up to the last checkpoint, however early that is."""
    other = surface.assign(loss=surface.loss.where(surface.tokens <= 0.4 * TOTAL, 9 - surface.loss))
    first, second = (tsl.forecast(past_of(each, 0.4), [TOTAL], method="paper") for each in (surface, other))
    np.testing.assert_array_equal(first.quantiles, second.quantiles)
    with jax.enable_x64(True):
        for last in (0.9 * PLAN["warmup_tokens"], 1.2 * PLAN["warmup_tokens"], 0.3 * TOTAL, TOTAL):
            low, high = np.asarray(COSINE.bounds(np.linspace(0.5 * PLAN["warmup_tokens"], last, 9)))[1]
            assert low < high <= last


def test_a_law_with_n_sep_given_searches_one_shape_and_publishes_it():
    law = laws.piecewise_cosine(Schedule.from_plan(PLAN), 1e6)
    values = {"gamma1": 5e-6, "gamma0": 4.0, "gamma2": 3.5}
    tokens = np.linspace(1e5, TOTAL, 9)
    with jax.enable_x64(True):
        np.testing.assert_allclose(law(tokens, **values), COSINE(tokens, **values, n_sep=1e6), rtol=1e-12)
        published = law.to_params(jax.numpy.asarray([values[name] for name in law.raw_params]))
    assert (law.shapes, float(published[law.params.index("n_sep")])) == (("gamma1",), 1e6)


def test_an_n_sep_that_makes_no_sense_is_refused():
    for n_sep in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="n_sep is a positive number of tokens seen, found"):
            Paper(n_sep=n_sep)
