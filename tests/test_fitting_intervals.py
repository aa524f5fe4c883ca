"""What a fit says of itself: intervals that hold, criteria, residuals, a table."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from scipy.stats import f as f_distribution

import tsl_jax as tsl
from tsl_jax import laws

POSITION = np.arange(1.0, 65.0)
TRUE = {"a0": 1.5, "a1": 3.0, "a2": 4.0}


def noisy(curves: int, sd: float, a1: float = 3.0, seed: int = 0) -> xr.DataArray:
    noise = sd * np.random.default_rng(seed).standard_normal((curves, len(POSITION)))
    return xr.DataArray(1.5 / (1 + a1 * POSITION) + 4 + noise, {"position": POSITION}, ("run", "position"))


def coverage(fit: tsl.Fit, **options) -> xr.DataArray:
    ends, true = fit.interval(0.9, **options), fit.params.isel(run=0, drop=True).copy(data=list(TRUE.values()))
    return ((ends.sel(bound="low") <= true) & (true <= ends.sel(bound="high"))).mean("run")


def test_profile_intervals_of_every_parameter_hold_where_the_shape_is_weak():
    fit = tsl.fit(laws.HYPERBOLIC, noisy(400, 0.1), over="position")
    allowed, covered = 4 * np.sqrt(0.09 / 400), coverage(fit, method="profile")
    assert (covered > 0.9 - allowed).all()
    assert float(covered.max()) < 0.98
    ends = fit.interval(0.9, "profile")
    unknown = np.isinf(ends.sel(param="a1", bound="high")).values  # any larger shape will do, with a larger a0
    assert 0 < unknown.mean() < 1
    assert np.isinf(ends.sel(param="a0", bound="high").values[unknown]).all()
    some_shape_is_too_small = ends.sel(param="a1", bound="low").values > 0  # else a straight line will do
    assert np.isfinite(ends.sel(param="a2").values[some_shape_is_too_small]).all()


def test_ends_of_a_profile_interval_are_where_the_sse_says():
    """Fixed at an end, a coefficient leaves SSE_min (1 + F/(n - p)) at best: by a dense grid of the shape."""
    y = noisy(1, 0.05, 0.3, seed=1)
    fit = tsl.fit(laws.HYPERBOLIC, y, over="position")
    limit = float(fit.sse[0]) * (1 + f_distribution.ppf(0.9, 1, 61) / 61)
    column = 1 / (1 + np.geomspace(0.1, 1, 20_000)[:, None] * POSITION)  # of a0, at each shape

    def least_sse(fixed: np.ndarray, free: np.ndarray) -> float:
        rest = y.values - fixed
        coef = (rest * free).sum(axis=1) / (free**2).sum(axis=1)
        return float(((rest - coef[:, None] * free) ** 2).sum(axis=1).min())

    for a0, a2 in fit.interval(0.9, "profile").sel(run=0, param=["a0", "a2"]).values.T:
        assert least_sse(a0 * column, np.ones_like(column)) == pytest.approx(limit, rel=1e-4)
        assert least_sse(a2 * np.ones_like(column), column) == pytest.approx(limit, rel=1e-4)


@pytest.mark.slow
def test_the_three_intervals_agree_where_the_curve_is_well_known():
    fit = tsl.fit(laws.HYPERBOLIC, noisy(2, 0.003, 0.3), over="position")
    wald, profile, bootstrap = (fit.interval(0.9, method) for method in ("wald", "profile", "bootstrap"))
    width = wald.sel(bound="high") - wald.sel(bound="low")
    assert (np.abs(profile - wald) < 0.05 * width).all()
    assert (np.abs(bootstrap - wald) < 0.15 * width).all()
    xr.testing.assert_identical(bootstrap, fit.interval(0.9, "bootstrap"))  # the seed decides


@pytest.mark.slow
def test_an_interval_after_a_shift_of_x_is_the_same():
    x = np.linspace(0.0, 8000.0, 60)
    y = 3 + 0.5 * np.exp(-x / 1000) + 0.01 * np.random.default_rng(0).standard_normal(60)
    near, far = (
        tsl.fit(laws.POSITION_EXPONENTIAL, y, x=x + x0).interval(method="profile").transpose("param", ...).values
        for x0 in (0.0, 20_000.0)
    )
    kept = [laws.POSITION_EXPONENTIAL.params.index(name) for name in ("c0", "c2")]
    np.testing.assert_allclose(far[kept], near[kept], rtol=1e-3)


def test_intervals_that_cannot_be_given_are_refused():
    y = noisy(1, 0.01)
    fit = tsl.fit(laws.HYPERBOLIC, y, over="position")
    with pytest.raises(ValueError, match=r"method must be one of .*, found 'student'"):
        fit.interval(method="student")
    with pytest.raises(ValueError, match="level must lie between 0 and 1, found 90"):
        fit.interval(90)
    weighted = tsl.fit(laws.HYPERBOLIC, y, over="position", weights=POSITION)
    with pytest.raises(ValueError, match="not exchangeable"):
        weighted.interval(method="bootstrap")
    for options in ({"loss": "huber"}, {"absolute_sigma": True}, {"coef_limits": {"a2": (0, None)}}):
        other = tsl.fit(laws.HYPERBOLIC, y, over="position", **options)
        with pytest.raises(ValueError, match="plain least squares, not of a fit with loss="):
            other.interval(method="profile")
    known = tsl.fit(laws.HYPERBOLIC, y, over="position", absolute_sigma=True)
    with pytest.raises(ValueError, match="from the residuals, not from absolute_sigma="):
        known.interval(method="bootstrap")


def test_intervals_are_those_of_the_fit_as_it_was_made():
    """Known noise: a normal quantile. A bootstrap fits under the same limits."""
    y = noisy(1, 0.01, 0.3)
    known = tsl.fit(laws.HYPERBOLIC, y, over="position", weights=1e4 * np.ones(64), absolute_sigma=True)
    width = known.interval(0.9).sel(bound="high") - known.params
    np.testing.assert_allclose(width, 1.6448536 * known.stderr, rtol=1e-6)
    np.testing.assert_allclose(known.aic, known.sse + 6)
    bounded = tsl.fit(laws.HYPERBOLIC, y, over="position", coef_limits={"a2": (4.0, 4.0)})
    assert bounded.interval(method="bootstrap", resamples=20).sel(param="a2").values.tolist() == [[4.0, 4.0]]
    robust = tsl.fit(laws.HYPERBOLIC, y, over="position", loss="huber")
    assert np.isnan(robust.aic).all()


def test_criteria_are_those_of_lmfit_and_prefer_the_true_law():
    """n log(SSE/n) + 2 p and + p log n, by hand; a coefficient at its limit is no parameter."""
    y = noisy(3, 0.01, 0.3)
    fit = tsl.fit(laws.HYPERBOLIC, y, over="position")
    sse = ((y - fit.predict()) ** 2).sum("position")
    np.testing.assert_allclose(fit.aic, 64 * np.log(sse / 64) + 6, rtol=1e-9)
    np.testing.assert_allclose(fit.bic, 64 * np.log(sse / 64) + 3 * np.log(64), rtol=1e-9)
    other = tsl.fit(laws.POSITION_LOG, y, over="position")
    assert (fit.aic < other.aic).all()
    fixed = tsl.fit(laws.HYPERBOLIC, y, over="position", coef_limits={"a2": (4.0, 4.0)})
    np.testing.assert_allclose(fixed.aic, 64 * np.log(fixed.sse / 64) + 4, rtol=1e-9)
    masked = tsl.fit(laws.HYPERBOLIC, y, over="position", weights=(POSITION > 4).astype(float))
    np.testing.assert_array_equal(masked.n_points, 60)


def test_residuals_and_a_table_of_many_curves():
    y = noisy(4, 0.01, 0.3).expand_dims(split=["id", "ood"])
    fit = tsl.fit(laws.HYPERBOLIC, y, over="position")
    assert fit.residuals.dims == ("split", "run", "position")
    np.testing.assert_allclose(fit.residuals, y - fit.predict(), rtol=0, atol=1e-15)
    table = fit.to_dataframe()
    assert len(table) == 8
    assert list(table.columns) == [
        "split", "run", "a0", "a0_stderr", "a1", "a1_stderr", "a2", "a2_stderr",
        "status", "usable", "sse", "r2", "aic", "bic",
    ]  # fmt: skip
    assert table.status.unique().tolist() == ["converged"]
    row = table[(table.split == "ood") & (table.run == 2)].iloc[0]
    assert row.a1 == float(fit.params.sel(split="ood", param="a1")[2])
    assert len(tsl.fit(laws.HYPERBOLIC, y[0, 0].values, x=POSITION).to_dataframe()) == 1
