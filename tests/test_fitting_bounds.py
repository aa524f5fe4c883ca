"""Coefficients within limits or fixed; covariates that do not vary or move together: the optimum, and what is known."""

import numpy as np
import pytest
from scipy.optimize import least_squares

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


def test_limits_of_coefficients_give_the_bounded_optimum():
    rng = np.random.default_rng(8)
    y = hyperbola(POSITION, 1.5, 0.3, 0.01) + 0.02 * rng.standard_normal((6, len(POSITION)))
    fit = tsl.fit(laws.HYPERBOLIC, y, x=POSITION, coef_limits={"a2": (0.02, None), "a0": (0, None)})
    for k in range(len(y)):
        ends = least_squares(
            lambda p, k=k: y[k] - hyperbola(POSITION, p[0], np.exp(p[1]), p[2]),
            (1.5, -1.2, 0.03),
            bounds=([0, -9, 0.02], [np.inf, 6, np.inf]),
            xtol=1e-14,
            ftol=1e-14,
        )
        assert float(fit.sse[k]) <= 2 * ends.cost * (1 + 1e-6)
    at = fit.active.sel(coef="a2") == -1
    assert at.any()
    assert (fit.params.sel(param="a2")[at] == 0.02).all()
    assert (fit.stderr.sel(param="a2")[at] == 0).all()
    free = tsl.fit(laws.HYPERBOLIC, y, x=POSITION, coef_limits={"a2": (-1, 1)})
    assert not free.active.any()
    np.testing.assert_array_equal(free.params, tsl.fit(laws.HYPERBOLIC, y, x=POSITION).params)


def test_limits_hold_in_both_precisions_and_in_any_unit():
    y = hyperbola(POSITION, 1.5, 0.3, -0.01) + 1e-3 * np.random.default_rng(0).standard_normal((2, 128))
    for dtype in ("float64", "float32"):  # in one process: the law of one mode serves the other
        fit = tsl.fit(laws.HYPERBOLIC, y, x=POSITION, dtype=dtype, coef_limits={"a2": (0.02, None)})
        assert (fit.active.sel(coef="a2") == -1).all()
        np.testing.assert_allclose(fit.params.sel(param="a2"), 0.02, rtol=1e-7)
    tiny = tsl.fit(laws.HYPERBOLIC, 1e-12 * (y - 0.1), x=POSITION, coef_limits={"a2": (0, None)})
    assert (tiny.params.sel(param="a2") == 0).all()


def test_what_a_limit_fixes_has_no_error_and_flat_data_stay_flat():
    y = np.stack([-noisy(1)[0], np.full(len(POSITION), 4.0)])
    fit = tsl.fit(laws.HYPERBOLIC, y, x=POSITION, coef_limits={"a0": (0, None), "a2": (None, 3)})
    assert (fit.active.sel(coef="a0")[0], fit.stderr.sel(param="a0")[0]) == (-1, 0)
    assert Status(int(fit.status[1])) == Status.FLAT
    assert np.isnan(fit.r2[1])


@pytest.mark.wrong_types
def test_limits_that_cannot_be_kept_are_refused():
    with pytest.raises(ValueError, match=r"limits of a2 must be \(low, high\).*found 0"):
        tsl.fit(laws.HYPERBOLIC, noisy(1), x=POSITION, coef_limits={"a2": 0})
    with pytest.raises(ValueError, match="limits are for coefficients"):
        tsl.fit(laws.HYPERBOLIC, noisy(1), x=POSITION, coef_limits={"a1": (0, 1)})
    with pytest.raises(ValueError, match="would depend on the shape"):
        tsl.fit(laws.HYPERBOLIC, noisy(1), x=POSITION, coef_limits={"a0": (2.0, None)})


CASE_24 = (np.array([1e18, 3e18, 1e19, 3e19, 1e20, 3e20]), np.array([3.52, 3.34, 3.155, 3.0, 2.85, 2.725]))


def test_a_coefficient_can_be_fixed_and_is_not_counted_as_free():
    compute, loss = CASE_24
    fixed = tsl.fit(laws.POWER, loss, x=compute, coef_limits={"delta2": (1.6, 1.6)})
    narrow = tsl.fit(laws.POWER, loss, x=compute, coef_limits={"delta2": (1.6, 1.6 + 1e-12)})
    assert float(fixed.params.sel(param="delta1")) == pytest.approx(0.094, abs=5e-4)
    np.testing.assert_allclose(fixed.params, narrow.params, rtol=1e-9)
    np.testing.assert_allclose(fixed.r2, narrow.r2, rtol=1e-12)
    alone = tsl.fit(laws.POWER_PURE, loss - 1.6, x=compute)  # two free parameters: SSE/(n - 2)
    np.testing.assert_allclose(fixed.stderr.values[:2], alone.stderr, rtol=1e-9)
    assert (float(fixed.stderr[2]), int(fixed.active.sel(coef="delta2"))) == (0, -1)
    three = tsl.fit(laws.POWER, loss[:3], x=compute[:3], coef_limits={"delta2": (1.6, 1.6)})
    assert np.isfinite(three.params).all(), "three points determine two parameters"
    none_free = tsl.fit(laws.POWER, loss, x=compute, coef_limits={"delta2": (1.6, 1.6), "delta0": (None, 0)})
    assert float(none_free.sse) == pytest.approx(np.sum((loss - 1.6) ** 2))
    with pytest.raises(ValueError, match="low <= high"):
        tsl.fit(laws.POWER, loss, x=compute, coef_limits={"delta2": (1.7, 1.6)})


N_PARAMS = np.geomspace(1e7, 1e10, 10)
ONE_D = {"n_params": N_PARAMS, "tokens": np.full(10, 1e10)}
LINE = {"n_params": N_PARAMS, "tokens": 20 * N_PARAMS}


def chinchilla(x):
    return 1.7 + 400 * x["n_params"] ** -0.34 + 410.7 * x["tokens"] ** -0.28


def test_tokens_that_do_not_vary_leave_what_depends_on_parameters():
    fit = tsl.fit(laws.CHINCHILLA, chinchilla(ONE_D), x=ONE_D)
    assert Status(int(fit.status)) == Status.COVARIATE_CONSTANT
    params = fit.params.to_series()
    np.testing.assert_allclose(params[["A", "alpha"]], [400, 0.34], rtol=1e-4)
    assert params[["E", "B", "beta"]].isna().all()
    assert "tokens does not vary: E, B, beta are not identified; alpha, A hold" in fit.message().item()
    with pytest.raises(ValueError, match="tokens does not vary"):
        fit.raise_if_failed()
    assert not fit.usable.item()
    np.testing.assert_allclose(fit.predict(), chinchilla(ONE_D), rtol=1e-6)
    assert np.isnan(fit.predict({**ONE_D, "tokens": 2 * ONE_D["tokens"]})).all(), "nothing is known at other tokens"
    larger = {"n_params": 3 * N_PARAMS, "tokens": ONE_D["tokens"]}
    np.testing.assert_allclose(fit.predict(larger), chinchilla(larger), rtol=1e-4)


def test_parameters_that_do_not_vary_leave_what_depends_on_tokens():
    x = {"n_params": 1e9, "tokens": np.geomspace(1e9, 1e12, 10)}  # a number: the same for all
    fit = tsl.fit(laws.CHINCHILLA, chinchilla(x), x=x)
    np.testing.assert_allclose(fit.params.sel(param=["B", "beta"]), [410.7, 0.28], rtol=1e-3)
    assert "n_params does not vary: E, A, alpha are not identified; beta, B hold" in fit.message().item()


def test_covariates_that_move_together_leave_the_curve_along_their_line():
    for law in (laws.CHINCHILLA, laws.KAPLAN_ND):
        fit = tsl.fit(law, chinchilla(LINE), x=LINE)
        assert Status(int(fit.status)) == Status.COVARIATES_COLLINEAR
        assert "n_params and tokens move together" in fit.message().item()
        assert np.isnan(fit.params).all()
        np.testing.assert_allclose(fit.predict(), chinchilla(LINE), rtol=5e-3)
        off = {"n_params": N_PARAMS, "tokens": 40 * N_PARAMS}
        assert np.isnan(fit.predict(off)).all()


def test_the_joint_law_says_that_tokens_do_not_vary():
    fit = tsl.fit(laws.KAPLAN_ND, chinchilla(ONE_D), x=ONE_D)
    assert Status(int(fit.status)) == Status.COVARIATE_CONSTANT
    assert "tokens does not vary" in fit.message().item()
    assert np.isnan(fit.params).all()


def test_each_curve_is_judged_by_the_points_it_has():
    """Zero weights leave one value of D to the second of two curves; the first is as if alone."""
    n_params, tokens = (a.ravel() for a in np.meshgrid(np.geomspace(1e7, 1e10, 6), np.geomspace(1e9, 1e12, 4)))
    x = {"n_params": n_params, "tokens": tokens}
    weights = np.stack([np.ones(24), tokens == tokens.min()]).astype(float)
    fit = tsl.fit(laws.CHINCHILLA, np.stack([chinchilla(x)] * 2), x=x, weights=weights)
    assert [Status(s) for s in fit.status.values] == [Status.CONVERGED, Status.COVARIATE_CONSTANT]
    np.testing.assert_allclose(fit.params[0], [1.7, 400, 410.7, 0.34, 0.28], rtol=1e-4)
    np.testing.assert_allclose(fit.params[1].sel(param=["A", "alpha"]), [400, 0.34], rtol=1e-3)
    assert "tokens does not vary" in fit.message().values[1]
    beyond = fit.predict(x).values
    assert np.isfinite(beyond[0]).all()
    np.testing.assert_array_equal(np.isfinite(beyond[1]), tokens == tokens.min())


def test_an_exponential_is_the_same_law_after_a_shift_of_x():
    """y = 3 + .5 exp(-(x - 20000)/1000): the range of the rate came from the origin of x, and ended at R2 .91."""
    x = np.linspace(1.0, 8000.0, 60).round()
    y = 3 + 0.5 * np.exp(-x / 1000)
    for x0, dtype in ((0.0, None), (20_000.0, None), (1e6, None), (-50_000.0, None), (20_000.0, "float32")):
        fit = tsl.fit(laws.POSITION_EXPONENTIAL, y, x=x + x0, dtype=dtype)
        np.testing.assert_allclose(fit.params.sel(param=["c0", "c2"]), [3, 0.001], rtol=1e-3 if dtype else 1e-6)
        assert float(fit.r2) == pytest.approx(1, abs=1e-6)
    far = tsl.fit(laws.POSITION_EXPONENTIAL, y, x=x + 20_000.0)
    np.testing.assert_allclose(far.predict(), y, rtol=1e-9)
    assert float(far.params.sel(param="c1")) == pytest.approx(0.5 * np.exp(20), rel=1e-6)
    rng = np.random.default_rng(0)
    noise = y + 0.01 * rng.standard_normal((3, 60))
    near, moved = (tsl.fit(laws.POSITION_EXPONENTIAL, noise, x=x + x0) for x0 in (0.0, 20_000.0))
    errors = [fit.stderr.sel(param=["c0", "c2"]) for fit in (near, moved)]
    np.testing.assert_allclose(*errors, rtol=1e-5)
    low, high = profile_interval(laws.POSITION_EXPONENTIAL, noise, x + 1e6)
    np.testing.assert_allclose((low, high), profile_interval(laws.POSITION_EXPONENTIAL, noise, x), rtol=1e-3)
    limited = tsl.fit(laws.POSITION_EXPONENTIAL, y, x=x + 20_000.0, coef_limits={"c0": (3.1, None)})
    assert float(limited.params.sel(param="c0")) == 3.1
