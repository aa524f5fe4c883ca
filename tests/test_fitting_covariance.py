"""Errors cover as often as they say; where the shape is weak, profile intervals do."""

import numpy as np
import pytest
from scipy.optimize import curve_fit

import tsl_jax as tsl
from tsl_jax import Status, laws
from tsl_jax.fitting import profile_interval

POSITION = np.arange(1.0, 129.0)


def hyperbola(i, a0, a1, a2):
    return a0 / (1 + a1 * i) + a2


def noisy(curves: int, sd: float = 0.02, seed: int = 0, low: float = 0.05, high: float = 2) -> np.ndarray:
    rng = np.random.default_rng(seed)
    a1 = np.exp(rng.uniform(np.log(low), np.log(high), (curves, 1)))
    return hyperbola(POSITION, 1.5, a1, 4.0) + sd * rng.standard_normal((curves, len(POSITION)))


@pytest.mark.parametrize(("level", "share"), [(1.0, 0.6827), (1.96, 0.95)])
def test_errors_cover_as_often_as_they_say_where_the_shape_is_identified(level, share):
    rng = np.random.default_rng(2)
    y = hyperbola(POSITION, 1.5, 0.3, 4.0) + 0.02 * rng.standard_normal((2000, len(POSITION)))
    fit = tsl.fit(laws.HYPERBOLIC, y, x=POSITION)
    inside = (np.abs(fit.params - [1.5, 0.3, 4.0]) < level * fit.stderr).mean("curve")
    assert (np.abs(inside - share) < 4 * np.sqrt(share * (1 - share) / 2000)).all()
    logs = np.abs(np.log(fit.params.sel(param="a1") / 0.3)) < level * fit.log_shape_stderr.sel(shape="a1")
    assert abs(float(logs.mean()) - share) < 4 * np.sqrt(share * (1 - share) / 2000)


def test_profile_intervals_cover_where_wald_intervals_do_not():
    rng = np.random.default_rng(3)
    y = hyperbola(POSITION, 1.5, 3.0, 4.0) + 0.1 * rng.standard_normal((400, len(POSITION)))
    fit = tsl.fit(laws.HYPERBOLIC, y, x=POSITION)
    assert (fit.status == Status.WEAKLY_IDENTIFIED).mean() > 0.5
    low, high = profile_interval(laws.HYPERBOLIC, y, POSITION, level=0.9)
    covered = np.mean((low <= 3) & (high >= 3))
    wald = np.abs(fit.params.sel(param="a1") - 3) < 1.645 * fit.stderr.sel(param="a1")
    assert abs(covered - 0.9) < 4 * np.sqrt(0.09 / 400)
    assert float(wald.mean()) < 0.8


def test_profile_intervals_cover_shapes_known_better_than_their_grid():
    y = hyperbola(POSITION, 1.5, 0.3, 4.0) + 5e-4 * np.random.default_rng(8).standard_normal((400, len(POSITION)))
    low, high = profile_interval(laws.HYPERBOLIC, y, POSITION, level=0.9)
    assert abs(np.mean((low <= 0.3) & (high >= 0.3)) - 0.9) < 4 * np.sqrt(0.09 / 400)
    for weights in (None, np.ones((2, 3))):  # three points of three parameters, and a constant: any shape will do
        ends = profile_interval(laws.HYPERBOLIC, y[:2, :3], POSITION[:3], weights)
        np.testing.assert_array_equal(ends, [[0, 0], [np.inf, np.inf]])
    np.testing.assert_array_equal(profile_interval(laws.HYPERBOLIC, 0 * POSITION + 4, POSITION), [[0], [np.inf]])


def test_inverse_variances_give_the_errors_of_absolute_sigma():
    y = noisy(1, seed=5)[0]
    sigma = np.linspace(0.02, 0.06, len(y))
    p, cov = curve_fit(hyperbola, POSITION, y, p0=[1.5, 0.3, 4.0], sigma=sigma, absolute_sigma=True, xtol=1e-14)
    fit = tsl.fit(laws.HYPERBOLIC, y, x=POSITION, weights=sigma**-2, absolute_sigma=True)
    np.testing.assert_allclose(fit.params, p, rtol=1e-5)
    np.testing.assert_allclose(fit.covariance, cov, rtol=1e-3)
    relative = tsl.fit(laws.HYPERBOLIC, y, x=POSITION, weights=sigma**-2)
    assert float(relative.stderr[0] / fit.stderr[0]) < 0.8  # the data are less noisy than sigma says
