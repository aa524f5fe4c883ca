"""Parameters belong to a range: it is written on every fit, other ranges are refused, and i90 carries its own."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import tsl_jax as tsl
from tsl_jax.curve_tables import fit_table, write_fit
from tsl_jax.diagnostics import align_params, bootstrap, effective_context, effective_context_resampled, expected_r2
from tsl_jax.fitting import fit
from tsl_jax.laws import HYPERBOLIC, KAPLAN_ND, POSITION_POWER


def curves(n: int = 64, a1: float = 0.3, noise: float = 0.01, count: int = 1, seed: int = 0) -> xr.DataArray:
    position = np.arange(1.0, n + 1)
    y = 1.5 / (1 + a1 * position) + 3 + noise * np.random.default_rng(seed).standard_normal((count, n))
    return xr.DataArray(y, {"tokens": np.arange(1, count + 1), "position": position}, ("tokens", "position"))


def fitted(**how) -> tsl.Fit:
    return fit(HYPERBOLIC, curves(**how), over="position")


def test_a_fit_says_over_which_range_it_was_made():
    result = fitted(n=48)
    assert result.range == {"position": (1.0, 48.0)}
    assert "position 1..48" in repr(result)
    ladder = {"n_params": np.geomspace(1e3, 1e6, 9), "tokens": np.full(9, 1e9)}
    assert fit(KAPLAN_ND, np.linspace(4, 3, 9), x=ladder).range["n_params"] == (1e3, pytest.approx(1e6))


def test_a_table_of_fits_holds_the_range(tmp_path):
    write_fit(HYPERBOLIC, fitted(n=48, count=3), tmp_path / "fits.csv", {})
    result = pd.read_csv(tmp_path / "fits.csv")
    assert result.position_low.tolist() == [1, 1, 1]
    assert result.position_high.tolist() == [48, 48, 48]


def test_every_curve_of_a_long_table_has_its_own_range(tmp_path):
    parts = [pd.DataFrame({"curve": n, "x": np.arange(2.0, n), "y": curves().values[0, 1 : n - 1]}) for n in (20, 33)]
    pd.concat(parts).to_csv(tmp_path / "t.csv", index=False)
    fit_table(HYPERBOLIC, tmp_path / "t.csv", tmp_path / "fits.csv")
    result = pd.read_csv(tmp_path / "fits.csv")
    assert result[["position_low", "position_high"]].to_numpy().tolist() == [[2, 19], [2, 32]]


def test_fits_over_one_range_are_joined_even_where_a_checkpoint_is_missing():
    result = align_params({"a": fitted(count=3), "b": fitted(count=2, a1=0.1)}, dim="run")
    assert result.params.sizes == {"run": 2, "tokens": 3, "param": 3}
    assert result.attrs["range"] == "position 1..64"
    assert np.isnan(result.params.sel(run="b", tokens=3)).all()
    assert not bool(result.converged.sel(run="b", tokens=3))
    np.testing.assert_allclose(result.params.sel(param="a1", tokens=1), [0.3, 0.1], rtol=0.1)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (fit(HYPERBOLIC, curves(n=32), over="position"), "position 1..64, b over position 1..32.*same range"),
        (fit(POSITION_POWER, curves(), over="position"), "hyperbolic, b of position_power; compare one law"),
    ],
)
def test_what_is_not_comparable_is_refused_with_both_named(other, words):
    with pytest.raises(ValueError, match=words):
        align_params({"a": fitted(), "b": other})


def test_nothing_to_join_is_refused():
    with pytest.raises(ValueError, match="one fit or more"):
        align_params({})


def test_i90_is_where_nine_tenths_of_the_gap_are_closed():
    result = effective_context(fitted(a1=0.3, noise=0.0))
    i90 = float(result.i90[0])
    assert i90 == pytest.approx(30, rel=1e-6)
    assert float(HYPERBOLIC(np.array([i90]), a0=1.5, a1=0.3, a2=3.0)[0]) - 3 == pytest.approx(0.1 * 1.5)
    assert result.attrs["range"] == "position 1..64"


def test_i90_has_intervals_that_cover_under_correlated_noise_where_those_of_the_fit_are_too_narrow():
    lag = np.abs(np.subtract.outer(np.arange(64), np.arange(64)))
    sigma = 0.02**2 * np.exp(-lag / 8)
    noise = np.random.default_rng(0).multivariate_normal(np.zeros(64), sigma, 400)
    result = fit(HYPERBOLIC, curves(noise=0.0) + xr.DataArray(noise, dims=("draw", "position")), over="position")
    covariance = xr.DataArray(
        np.broadcast_to(sigma, (*result.status.shape, 64, 64)), dims=(*result.status.dims, "p", "q")
    )
    informed, naive = effective_context(result, covariance), effective_context(result)
    covered = float(((informed.low <= 30) & (informed.high >= 30)).mean())
    assert abs(covered - 0.9) < 0.05
    assert float(((naive.low <= 30) & (naive.high >= 30)).mean()) < covered - 0.1
    wider = effective_context(result, covariance, clusters=4)
    assert bool((wider.high > informed.high).all())


def test_i90_of_resampled_clusters_holds_the_truth_in_the_right_order():
    sums = curves(count=16, noise=0.05).values
    low, high = effective_context_resampled(
        bootstrap(HYPERBOLIC, sums, np.ones_like(sums), np.arange(1.0, 65), resamples=100)
    )
    assert low < 30 < high


def test_i90_belongs_to_the_hyperbolic_law():
    with pytest.raises(ValueError, match="hyperbolic law, found a fit of position_power"):
        effective_context(fit(POSITION_POWER, curves(), over="position"))


def test_i90_is_a_number_of_positions():
    by_tokens = curves(count=40).isel(position=0)
    with pytest.raises(ValueError, match="expected a fit over position, found one over tokens"):
        effective_context(fit(HYPERBOLIC, by_tokens, over="tokens", x=by_tokens.tokens))


def test_formulas_of_plain_least_squares_refuse_a_weighted_fit():
    y, weights = curves(), xr.DataArray(np.linspace(1, 2, 64), dims="position")
    weighted = fit(HYPERBOLIC, y, over="position", weights=weights)
    covariance = xr.DataArray(1e-4 * np.eye(64)[None], dims=("tokens", "position", "position_"))
    with pytest.raises(ValueError, match=r"expected_r2: .* unweighted .* found a weighted fit"):
        expected_r2(weighted, y, covariance)
    with pytest.raises(ValueError, match=r"effective_context: .* unweighted .* found a weighted fit"):
        effective_context(weighted, covariance)
    assert np.isfinite(effective_context(weighted).high).all()  # by the errors of the fit itself


def test_there_is_no_expected_r2_where_a_coefficient_is_at_its_limit():
    """A fit that cannot follow the noise in all directions leaves more of it than the formula says."""
    y = curves(noise=0.0)
    covariance = xr.DataArray(1e-4 * np.eye(64)[None], dims=("tokens", "position", "position_"))
    held = fit(HYPERBOLIC, y, over="position", coef_limits={"a2": (3.2, None)})
    assert np.isnan(expected_r2(held, y, covariance).to_array()).all()
    free = fit(HYPERBOLIC, y, over="position", coef_limits={"a2": (0, None)})
    xr.testing.assert_equal(
        expected_r2(free, y, covariance), expected_r2(fit(HYPERBOLIC, y, over="position"), y, covariance)
    )


def test_the_order_of_dimensions_of_a_covariance_does_not_matter_and_other_shapes_are_named():
    y = curves(count=2)
    covariance = xr.DataArray(1e-4 * np.eye(64) * np.ones((2, 1, 1)), dims=("tokens", "position", "position_"))
    result = fit(HYPERBOLIC, y, over="position")
    turned = covariance.transpose("position", "position_", "tokens")
    xr.testing.assert_equal(expected_r2(result, y, turned), expected_r2(result, y, covariance))
    with pytest.raises(ValueError, match=r"covariance of shape \(2, 64, 64\), found \(2, 63, 63\)"):
        expected_r2(result, y, covariance[:, 1:, 1:])
    with pytest.raises(ValueError, match=r"y has dimensions \('position',\)"):
        expected_r2(result, y[0], covariance)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"level": 90}, "level must lie between 0 and 1, found 90"),
        ({"clusters": 1, "covariance": True}, "two or more of a covariance, found 1"),
        ({"clusters": 8}, "two or more of a covariance, found 8"),
    ],
)
def test_a_level_or_clusters_that_make_no_sense_are_refused(options, sentence):
    if "covariance" in options:
        options = options | {"covariance": xr.DataArray(np.eye(64)[None], dims=("tokens", "p", "q"))}
    with pytest.raises(ValueError, match=sentence):
        effective_context(fitted(), **options)


def test_a_bootstrap_of_counts_that_are_none_is_refused():
    sums = np.ones((4, 64))
    with pytest.raises(ValueError, match="expected counts from 0 up, and a finite sum"):
        bootstrap(HYPERBOLIC, sums, -sums, np.arange(1.0, 65))
    with pytest.raises(ValueError, match="expected counts from 0 up, and a finite sum"):
        bootstrap(HYPERBOLIC, sums * np.nan, sums, np.arange(1.0, 65))
    with pytest.raises(ValueError, match="one resample or more, found 0"):
        bootstrap(HYPERBOLIC, sums, sums, np.arange(1.0, 65), resamples=0)


def test_fits_that_only_share_a_name_are_not_joined():
    """Another law of the same name, other dimensions, or a name for the new dimension that is taken."""
    other = fit(dataclasses.replace(HYPERBOLIC, starts=5), curves(), over="position")
    with pytest.raises(ValueError, match="a and b are fits of two laws called hyperbolic"):
        align_params({"a": fitted(), "b": other})
    with pytest.raises(ValueError, match="compare one axis"):
        align_params({"a": fitted(), "b": fit(HYPERBOLIC, curves()[0], over="position")})
    with pytest.raises(ValueError, match="have a dimension tokens already"):
        align_params({"a": fitted()}, dim="tokens")
