"""The mixed model: its filter is generalised least squares, its sampler integrates, its paths start where data end."""

import numpy as np
import pytest
from conftest import TOLERANCE
from scipy.linalg import cholesky, solve_triangular
from scipy.stats import multivariate_normal

from tsl_jax import laws
from tsl_jax.forecasting import mixed_model

TAIL = ((np.log(0.1), 0.3), (np.log(0.01), 0.5), (np.log(0.005), 0.5), (np.log(0.1), 0.5))


def problem(runs: int = 2, points: int = 12, seed: int = 0) -> tuple[mixed_model.CurveBatch, mixed_model.ModelPrior]:
    """Noisy power laws, the second curve two points shorter."""
    random = np.random.default_rng(seed)
    x = np.stack([np.geomspace(0.1, 1, points)] * runs)
    y = 0.4 * x**-0.5 + 0.6 + 0.01 * random.standard_normal(x.shape)
    observed = np.ones((runs, points), bool)
    observed[1:, -2:] = False
    noise = random.uniform(0.5, 2, x.shape)
    mix = np.concatenate([np.ones((runs, 1)), np.eye(runs)], 1) if runs > 1 else np.ones((1, 1))
    effect = np.zeros((mix.shape[1], 2))
    effect[0] = (0.5, 0.5)
    own = np.arange(mix.shape[1]) > 0
    eta, sd = (np.array(column) for column in zip((np.log(0.5), 0.3), (0.0, 0.05), *TAIL, strict=True))
    curves = mixed_model.CurveBatch(y, x, np.log(x), observed, noise, mix, np.arange(runs) / 2)
    return curves, mixed_model.ModelPrior(eta, sd, effect, np.full(effect.shape, 0.3), own)


def marginal(
    curves: mixed_model.CurveBatch, prior: mixed_model.ModelPrior, eta: np.ndarray
) -> tuple[float, np.ndarray]:
    """Log density of the known points and the mean effects, by dense matrices over all of them."""
    log_shape, drift, log_ell, log_sigma, log_nu, log_tau = eta
    blocks, designs, y = [], [], []
    for r, observed in enumerate(curves.known):
        x, u = curves.x[r, observed], curves.log_clock[r, observed]
        size = np.exp(log_sigma) * np.exp(-mixed_model.KAPPA * u)
        serial = np.exp(-np.abs(u[:, None] - u) / np.exp(log_ell))
        blocks.append(size[:, None] * size * serial + np.diag(np.exp(2 * log_nu) * curves.noise[r, observed]))
        power = x ** -np.exp(log_shape + drift * curves.size[r])
        basis = np.stack([power, np.ones_like(x)], 1)
        designs.append(np.einsum("p,nk->npk", curves.mix[r], basis).reshape(len(x), -1))
        y.append(curves.y[r, observed])
    count = sum(map(len, y))
    covariance, at = np.zeros((count, count)), 0
    for block in blocks:
        covariance[at : at + len(block), at : at + len(block)] = block
        at += len(block)
    design, values = np.concatenate(designs), np.concatenate(y)
    sd = (prior.effect_sd * np.where(prior.own, np.exp(log_tau), 1)[:, None]).ravel()
    total = covariance + design * sd**2 @ design.T
    mean = design @ prior.effect.ravel()
    gain = sd[:, None] ** 2 * design.T @ np.linalg.inv(total)
    density = multivariate_normal(mean, total).logpdf(values) - 0.5 * (((eta - prior.eta) / prior.eta_sd) ** 2).sum()
    return density, prior.effect.ravel() + gain @ (values - mean)


def test_the_filter_is_generalised_least_squares():
    curves, prior = problem()
    eta = prior.eta + 0.3 * np.random.default_rng(1).standard_normal((3, 6))
    effects = mixed_model._integrate_effects(laws.POWER, curves, prior, eta)
    dense = [marginal(curves, prior, vector) for vector in eta]
    density = mixed_model._log_density(laws.POWER, curves, prior, eta)
    np.testing.assert_allclose(np.diff(density), np.diff([d for d, _ in dense]), rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(effects.effect.reshape(3, -1), [e for _, e in dense], rtol=1e-7, atol=1e-8)


def test_the_sampler_integrates():
    """All of eta but the shape is known: the posterior mean of its logarithm, beside an integral on a grid."""
    curves, prior = problem(runs=1)
    narrow = np.where(np.arange(6) == 0, prior.eta_sd, 1e-6)
    prior = mixed_model.ModelPrior(prior.eta, narrow, prior.effect, prior.effect_sd, prior.own)
    grid = np.tile(prior.eta, (400, 1))
    grid[:, 0] = np.linspace(prior.eta[0] - 1.2, prior.eta[0] + 1.2, 400)
    log_density = mixed_model._log_density(laws.POWER, curves, prior, grid)
    weight = np.exp(log_density - log_density.max())
    mean = (weight @ grid[:, 0]) / weight.sum()
    sd = np.sqrt(weight @ (grid[:, 0] - mean) ** 2 / weight.sum())
    posterior = mixed_model.sample(laws.POWER, curves, prior)
    assert posterior.converged
    assert posterior.mean[0] == pytest.approx(mean, abs=0.05 * sd)
    spread = np.sqrt(posterior.weight @ (posterior.eta[:, 0] - posterior.mean[0]) ** 2)
    assert spread == pytest.approx(sd, rel=0.1)


def test_paths_start_where_the_data_end_and_spread():
    curves, prior = problem(runs=1)
    posterior = mixed_model.sample(laws.POWER, curves, prior)
    ahead = np.array([1.0001, 2.0, 8.0])
    draws, alone = posterior.paths(0, ahead, np.log(ahead), draws=400)
    assert draws.shape == alone.shape == (400, 3)
    assert abs(np.median(draws[:, 0]) - curves.y[0, -1]) < 0.01
    assert np.all(np.diff(draws.std(0)) > 0)
    np.testing.assert_array_equal(draws, posterior.paths(0, ahead, np.log(ahead), draws=400)[0])
    seen, law = posterior.paths(0, curves.x[0, :2], curves.log_clock[0, :2], draws=10)
    np.testing.assert_array_equal(seen, law)


def test_whitening_is_a_cholesky_factor():
    """Innovations of white columns through the filter: the same as solving with the factor of the covariance."""
    curves, _ = problem(runs=1)
    columns = np.random.default_rng(2).standard_normal((12, 3, 1, 1))
    ell, sigma, nu = np.array([0.2]), np.array([0.05]), np.array([0.02])
    white = columns.copy()
    log_size, *_ = mixed_model._whiten(white, curves, ell, sigma, nu)
    u = curves.log_clock[0]
    size = sigma * np.exp(-mixed_model.KAPPA * u)
    covariance = size[:, None] * size * np.exp(-np.abs(u[:, None] - u) / ell) + np.diag(nu**2 * curves.noise[0])
    factor = cholesky(covariance, lower=True)
    solved = solve_triangular(factor, columns[..., 0, 0], lower=True)
    np.testing.assert_allclose(white[..., 0, 0], solved, rtol=TOLERANCE["algebra"], atol=1e-10)
    np.testing.assert_allclose(log_size[0, 0], np.log(np.diag(factor)).sum(), rtol=TOLERANCE["algebra"], atol=1e-10)
