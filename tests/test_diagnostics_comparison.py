"""Which law holds: likelihoods are calibrated under the noise of documents, and held-out points are not fitted."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tsl_jax.diagnostics import model_comparison, noise
from tsl_jax.fitting import fit
from tsl_jax.laws import HYPERBOLIC, KAPLAN_ND, POSITION_EXPONENTIAL, POSITION_LOG, POSITION_POWER

X = np.arange(1.0, 65)
TRUE = np.asarray(HYPERBOLIC(X, a0=1.5, a1=0.3, a2=3.0))


def windowed(scale: float = 0.02) -> np.ndarray:
    """Noise as overlapping windows make it: a common mode, a comb of lags, and a slow drift."""
    lag = np.abs(np.subtract.outer(X, X))
    comb = np.maximum(0, 1 - lag / 40) * (lag % 7 == 0)
    return scale**2 * (1.0 + comb + 0.3 * np.exp(-lag / 20))


def draws(covariance: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).multivariate_normal(np.zeros(len(covariance)), covariance, count, method="eigh")


def test_under_a_true_law_what_is_left_is_a_chi2_of_bins_minus_parameters():
    sigma = windowed()
    left = [model_comparison.gls_fit(HYPERBOLIC, TRUE + e, X, sigma) for e in draws(sigma, 300)]
    degrees = left[0].degrees
    assert stats.kstest([result.chi2 for result in left], stats.chi2(degrees).cdf).pvalue > 0.01
    p = np.array([model_comparison.lack_of_fit(result) for result in left])
    assert 0.02 < (p < 0.05).mean() < 0.09  # 300 draws of .05: sigma .013


def test_the_right_law_wins_and_the_log_likelihood_ratio_is_distributed_as_it_says():
    sigma = windowed()
    results = [
        model_comparison.cox_test(HYPERBOLIC, POSITION_EXPONENTIAL, TRUE + e, X, sigma) for e in draws(sigma, 300)
    ]
    apart = np.median([result.apart for result in results])
    z = np.array([result.z_first for result in results])
    error_rate = np.mean([result.log_ratio < 0 for result in results])
    assert abs(error_rate - stats.norm.cdf(-apart / 2)) < 0.06
    assert abs(z.mean()) < 0.25
    assert 0.75 < z.std() < 1.25
    assert np.mean([result.z_second for result in results]) > 1  # not as the exponential would have it


def test_when_the_second_law_is_true_the_ratio_has_the_other_sign_and_the_second_z_is_standard():
    sigma = windowed(0.01)
    power = np.asarray(POSITION_POWER(X, c0=2.5, c1=2.0, c2=0.5))
    results = [model_comparison.cox_test(HYPERBOLIC, POSITION_POWER, power + e, X, sigma) for e in draws(sigma, 100)]
    assert np.mean([result.log_ratio < 0 for result in results]) > 0.9
    assert abs(np.mean([result.z_second for result in results])) < 0.4


def test_likelihood_is_that_of_generalised_least_squares(tolerance):
    """With a bin for every point and white noise it is plain least squares."""
    y = TRUE + draws(1e-4 * np.eye(len(X)), 1)[0]
    gls = model_comparison.gls_fit(HYPERBOLIC, y, X, 1e-4 * np.eye(len(X)), np.eye(len(X)))
    plain = fit(HYPERBOLIC, y, x=X)
    np.testing.assert_allclose(gls.chi2, float(plain.sse) / 1e-4, rtol=1e-4)
    np.testing.assert_allclose(gls.raw_params[0], float(plain.params.sel(param="a1")), rtol=5e-3)


def test_a_stationary_covariance_is_found_from_few_clusters_and_is_positive():
    truth, clusters = windowed(1.0), 8
    estimates = []
    for seed in range(40):
        each = draws(truth, clusters, seed)
        estimates.append(noise.stationary_covariance(np.cov(each, rowvar=False)))
    assert np.linalg.eigvalsh(estimates[0]).min() > -1e-9
    mean = np.mean(estimates, axis=0)
    np.testing.assert_allclose(np.diag(mean), np.diag(truth), rtol=0.2)
    np.testing.assert_allclose(mean[0, 7] - mean[0, 8], truth[0, 7] - truth[0, 8], rtol=0.25)  # the comb


def test_a_stationary_covariance_comes_back_as_it_is(tolerance):
    truth = windowed()
    np.testing.assert_allclose(noise.stationary_covariance(truth), truth, atol=tolerance["algebra"])
    with pytest.raises(ValueError, match="expected finite"):
        noise.stationary_covariance(np.full((3, 3), np.nan))


def test_bins_are_means_that_hold_every_point_once():
    for n, most in ((64, 10), (256, 10), (5, 10)):
        bins = noise.log_bins(np.arange(1.0, n + 1), most)
        np.testing.assert_allclose(bins.sum(axis=1), 1)
        assert ((bins > 0).sum(axis=0) == 1).all()
        assert len(bins) <= most
    with pytest.raises(ValueError, match="positive increasing"):
        noise.log_bins(np.arange(5.0))


def test_the_simulated_reference_is_calibrated_where_the_covariance_is_estimated_and_chi2_is_not():
    """Eight clusters: chi2 rejects a true law too often; held against the reference it does not."""
    sigma, clusters = windowed(), 8
    reference = model_comparison.reference_chi2(HYPERBOLIC, TRUE, X, sigma, clusters, draws=120, seed=1)
    fresh = model_comparison.reference_chi2(HYPERBOLIC, TRUE, X, sigma, clusters, draws=120, seed=2)
    assert abs((fresh > np.quantile(reference, 0.95)).mean() - 0.05) < 0.06
    assert np.mean(fresh) > 7  # the degrees: heavier than chi2
    other_law = np.asarray(POSITION_LOG(X, c0=4.5, c1=0.4, c2=0.5))
    far = model_comparison.gls_fit(HYPERBOLIC, other_law, X, sigma / 100).chi2
    assert far > np.quantile(reference, 0.95)


def test_held_out_points_do_not_touch_their_own_prediction():
    y = TRUE + draws(1e-4 * np.eye(len(X)), 1)[0]
    error = model_comparison.held_out(HYPERBOLIC, y, X)[0]
    block = np.flatnonzero(np.isfinite(error[2]))
    moved = y.copy()
    moved[block] += 1.0
    np.testing.assert_allclose(
        model_comparison.held_out(HYPERBOLIC, moved, X)[0, 2, block], error[2, block] + 1.0, atol=1e-9
    )
    ends = np.isfinite(error).any(axis=0)
    assert not ends[0]
    assert not ends[-1]


@pytest.mark.parametrize("law", [HYPERBOLIC, POSITION_POWER, POSITION_EXPONENTIAL, POSITION_LOG])
def test_the_true_law_extrapolates_its_own_curve(law):
    names = dict(zip(law.raw_params, (0.3, 1.5, 3.0), strict=True))
    y = np.asarray(law(X, **names), float)
    error = model_comparison.extrapolated(law, y, X)[0]
    assert np.isnan(error[:32]).all()
    assert np.abs(error[32:]).max() < 1e-4


def test_a_law_of_several_shapes_is_refused():
    with pytest.raises(ValueError, match="one shape"):
        model_comparison.gls_fit(KAPLAN_ND, TRUE, X, windowed())
    with pytest.raises(ValueError, match="no noise"):
        model_comparison.gls_fit(HYPERBOLIC, TRUE, X, np.zeros((64, 64)))


@pytest.mark.parametrize("blocks", [-1, 0, 1, 2, 65])
def test_blocks_that_make_no_sense_are_refused(blocks):
    with pytest.raises(ValueError, match=rf"blocks must be from 3 .* to 64, .* found {blocks}"):
        model_comparison.held_out(HYPERBOLIC, TRUE, X, blocks=blocks)


def test_three_blocks_hold_out_the_middle_one_and_parts_must_leave_enough_points():
    assert model_comparison.held_out(HYPERBOLIC, TRUE, X, blocks=3).shape == (1, 1, 64)
    with pytest.raises(ValueError, match="without the 1 held-out points 2 are left for the 3 parameters"):
        model_comparison.held_out(HYPERBOLIC, TRUE[:3], X[:3], blocks=3)
    with pytest.raises(ValueError, match="without the 62 held-out points 2 are left"):
        model_comparison.extrapolated(HYPERBOLIC, TRUE, X, share=2.5 / 64)
    with pytest.raises(ValueError, match="share must lie between 0 and 1, found 1"):
        model_comparison.extrapolated(HYPERBOLIC, TRUE, X, share=1)


@pytest.mark.parametrize("function", [model_comparison.held_out, model_comparison.extrapolated])
def test_curves_that_cannot_be_fitted_are_named(function):
    with pytest.raises(ValueError, match="one shape"):
        function(KAPLAN_ND, TRUE, X)
    with pytest.raises(ValueError, match="NaN or infinity"):
        function(HYPERBOLIC, np.where(X == 5, np.nan, TRUE), X)
    with pytest.raises(ValueError, match=r"found y \(1, 64\) and x \(63,\)"):
        function(HYPERBOLIC, TRUE, X[1:])


def test_no_likelihood_without_degrees_of_freedom_numbers_or_clusters():
    with pytest.raises(ValueError, match="3 bins leave no degree of freedom to the 3 parameters"):
        model_comparison.gls_fit(HYPERBOLIC, TRUE, X, windowed(), noise.log_bins(X, 3))
    with pytest.raises(ValueError, match="NaN or infinity"):
        model_comparison.gls_fit(HYPERBOLIC, TRUE * np.nan, X, windowed())
    with pytest.raises(ValueError, match=r"covariance \(63, 63\)"):
        model_comparison.gls_fit(HYPERBOLIC, TRUE, X, windowed()[1:, 1:])
    with pytest.raises(ValueError, match="two clusters or more, found 1"):
        model_comparison.reference_chi2(HYPERBOLIC, TRUE, X, windowed(), clusters=1)
    with pytest.raises(ValueError, match="one bin or more, found 0"):
        noise.log_bins(X, 0)
