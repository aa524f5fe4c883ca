"""Fits: every law is recovered from its own curve, two solvers agree, errors are right, bad curves get a status."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import curve_fit

import tsl_jax as tsl
from tsl_jax import Status, laws
from tsl_jax.diagnostics import expected_r2
from tsl_jax.laws import Schedule

POSITION = np.arange(1.0, 129.0)
TOKENS = np.geomspace(6e4, 2.5e6, 32)
COSINE = laws.piecewise_cosine(Schedule("cosine", 5e-3, 50_000, 2_500_000, 0.1))


def hyperbola(i, a0, a1, a2):
    return a0 / (1 + a1 * i) + a2


def noisy(curves: int, sd: float = 0.02, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    a1 = np.exp(rng.uniform(np.log(0.05), np.log(2), (curves, 1)))
    return hyperbola(POSITION, 1.5, a1, 4.0) + sd * rng.standard_normal((curves, len(POSITION)))


def logs(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(np.log(low), np.log(high)).map(lambda v: float(np.exp(v)))


@settings(max_examples=40, deadline=None)
@given(a0=logs(0.1, 10), a1=logs(0.01, 10), a2=st.floats(-5, 5))
def test_the_hyperbolic_law_is_recovered_from_its_own_curve(tolerance, a0, a1, a2):
    fit = tsl.fit(laws.HYPERBOLIC, hyperbola(POSITION, a0, a1, a2), x=POSITION)
    np.testing.assert_allclose(fit.params, [a0, a1, a2], rtol=tolerance["solver"], atol=tolerance["solver"])
    assert bool(fit.converged)


# For each law: a range of every solved parameter in which 32 points identify it.
RANGES = {
    laws.POSITION_POWER: (POSITION, {"c2": (0.1, 2), "c1": (0.5, 5), "c0": (1, 5)}),
    laws.LOG: (TOKENS, {"alpha1": (1e-6, 1e-4), "alpha0": (0.1, 5), "alpha2": (1, 5)}),
    laws.RECIPROCAL: (TOKENS, {"beta1": (1e-6, 1e-4), "beta0": (0.1, 5), "beta2": (1, 5)}),
    laws.POWER: (TOKENS, {"delta1": (0.1, 1), "delta0": (1, 100), "delta2": (1, 5)}),
    laws.KAPLAN_N: (np.geomspace(1e5, 1e9, 32), {"alpha_N": (0.03, 0.3), "scale": (3, 30)}),
    COSINE: (TOKENS, {"gamma1": (1e-6, 1e-5), "n_sep": (5e5, 1.5e6), "gamma0": (1, 5), "gamma2": (1, 5)}),
}


@pytest.mark.parametrize("law", RANGES, ids=lambda law: law.name)
def test_every_law_is_recovered_from_its_own_curve(law, tolerance):
    x, ranges = RANGES[law]

    @settings(max_examples=15, deadline=None)
    @given(values=st.fixed_dictionaries({name: logs(*ranges[name]) for name in law.raw_params}))
    def recovered(values):
        with tsl_x64():
            y = np.asarray(law(x, **values))
        fit = tsl.fit(law, y, x=x)
        # the curve always; the parameters as far as noise-free float64 data identify them
        np.testing.assert_allclose(fit.predict(), y, rtol=tolerance["solver"])
        if bool(fit.converged):
            expected = [values[name] for name in law.raw_params]
            np.testing.assert_allclose(fit.raw_params, expected, rtol=1e-4)

    recovered()


def tsl_x64():
    import jax

    return jax.enable_x64(True)


def test_the_joint_law_of_size_and_data_is_recovered():
    """A law that does not separate, on two labelled dimensions."""
    n_params, tokens = np.geomspace(1e6, 1e9, 6), np.geomspace(1e8, 1e10, 5)
    loss = ((6.4e13 / n_params[:, None]) ** (0.076 / 0.103) + 1.8e13 / tokens) ** 0.103
    table = xr.DataArray(loss, {"n_params": n_params, "tokens": tokens}, ("n_params", "tokens"))
    fit = tsl.fit(laws.KAPLAN_ND, table, over=("n_params", "tokens")).raise_if_failed()
    np.testing.assert_allclose(fit.params, [6.4e13, 1.8e13, 0.076, 0.103], rtol=1e-4)


def test_the_annealing_law_is_recovered_from_a_history_longer_than_the_data():
    step, seen = np.arange(1, 401), np.arange(20, 401, 10)
    lr = np.asarray(Schedule("cosine", 1.0, 20, 400, 0.1).lr(step))
    history = {"lr": lr, "step": seen}
    with tsl_x64():
        y = np.asarray(laws.MOMENTUM_ANNEALING(history, alpha=0.5, forgetting=0.05, L0=2.0, A=1.0, C=0.3))
    fit = tsl.fit(laws.MOMENTUM_ANNEALING, y, x=history)
    assert fit.params.param.values.tolist() == ["L0", "A", "alpha", "C", "lambda"]
    np.testing.assert_allclose(fit.predict(), y, rtol=1e-5)
    np.testing.assert_allclose(fit.params, [2.0, 1.0, 0.5, 0.3, 0.95], rtol=2e-2)
    assert np.isfinite(fit.stderr).all()  # lambda's through the delta method


def test_variable_projection_and_levenberg_marquardt_agree(tolerance):
    y = noisy(40)
    varpro, lm = (tsl.fit(laws.HYPERBOLIC, y, x=POSITION, method=method) for method in ("varpro", "lm"))
    np.testing.assert_allclose(varpro.sse, lm.sse, rtol=tolerance["solver"])
    np.testing.assert_array_equal(varpro.status, lm.status)


def test_no_start_beats_the_global_search(tolerance):
    """scipy from many starts never finds a smaller sum of squares."""
    y = noisy(6, sd=0.05, seed=3)
    fit = tsl.fit(laws.HYPERBOLIC, y, x=POSITION)
    for k in range(len(y)):
        best = np.inf
        for start in np.geomspace(1e-3, 10, 9):
            try:
                p, _ = curve_fit(hyperbola, POSITION, y[k], p0=[1.0, start, 4.0], maxfev=5000)
            except RuntimeError:
                continue
            best = min(best, float(np.sum((y[k] - hyperbola(POSITION, *p)) ** 2)))
        assert float(fit.sse[k]) <= best * (1 + tolerance["solver"])


@pytest.mark.parametrize("weighted", [False, True])
def test_standard_errors_and_covariance_are_those_of_scipy(weighted):
    y = noisy(1, seed=5)[0]
    sigma = np.linspace(1, 3, len(y)) if weighted else np.ones(len(y))
    p, cov = curve_fit(hyperbola, POSITION, y, p0=[1.5, 0.3, 4.0], sigma=sigma, ftol=1e-14, xtol=1e-14)
    fit = tsl.fit(laws.HYPERBOLIC, y, x=POSITION, weights=sigma**-2)
    np.testing.assert_allclose(fit.params, p, rtol=1e-5)
    np.testing.assert_allclose(fit.stderr, np.sqrt(np.diag(cov)), rtol=1e-4)
    np.testing.assert_allclose(fit.covariance, cov, rtol=1e-3)


def test_errors_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(2)
    y = hyperbola(POSITION, 1.5, 0.3, 4.0) + 0.02 * rng.standard_normal((600, len(POSITION)))
    fit = tsl.fit(laws.HYPERBOLIC, y, x=POSITION)
    inside = np.abs(fit.params - [1.5, 0.3, 4.0]) < fit.stderr
    assert (np.abs(inside.mean("curve") - 0.683) < 4 * np.sqrt(0.683 * 0.317 / 600)).all()


def test_published_constants_carry_errors_by_the_delta_method():
    """N_c = scale^(1/alpha): its error against the spread over noisy repetitions."""
    n_params = np.geomspace(1e5, 1e9, 20)
    rng = np.random.default_rng(4)
    y = (8.8e13 / n_params) ** 0.076 * (1 + 1e-3 * rng.standard_normal((200, 20)))
    fit = tsl.fit(laws.KAPLAN_N, y, x=n_params)
    log_error = fit.stderr.sel(param="N_c") / fit.params.sel(param="N_c")
    spread = np.log(fit.params.sel(param="N_c")).std()
    assert abs(float(log_error.mean() / spread) - 1) < 0.2


def bad_curves() -> dict[str, tuple[np.ndarray, Status]]:
    i = POSITION
    gap = hyperbola(i, 1.5, 0.3, 4.0)
    return {
        "constant": (np.full_like(i, 3.0), Status.FLAT),
        "line": (10 - 0.01 * i, Status.STRAIGHT_LINE),
        "rising": (4 - 1.5 / (1 + 0.3 * i), Status.RISING),
        "step": (4.0 + (i < 2), Status.UPPER_BOUND),
        "nan": (np.where(i == 7, np.nan, gap), Status.NON_FINITE),
        "infinite": (np.where(i == 7, np.inf, gap), Status.NON_FINITE),
        "good": (gap, Status.CONVERGED),
    }


@pytest.mark.parametrize("method", ["varpro", "lm"])
def test_every_bad_curve_has_a_status_and_leaves_its_neighbours_alone(method):
    curves = bad_curves()
    y = np.stack([curve for curve, _ in curves.values()])
    fit = tsl.fit(laws.HYPERBOLIC, y, x=POSITION, method=method)
    assert [Status(v).name for v in fit.status.values] == [s.name for _, s in curves.values()]
    alone = tsl.fit(laws.HYPERBOLIC, y[-1:], x=POSITION, method=method)
    np.testing.assert_allclose(fit.params[-1], alone.params[0], rtol=1e-9)
    assert all(len(sentence) > 20 for sentence in fit.message().values)
    with pytest.raises(ValueError, match="straight_line: a straight line fits as well"):
        fit.raise_if_failed()


def test_pure_noise_is_never_called_converged():
    y = np.random.default_rng(0).standard_normal((100, len(POSITION)))
    assert not tsl.fit(laws.HYPERBOLIC, y, x=POSITION).converged.any()


def test_too_few_points_have_a_status():
    assert int(tsl.fit(laws.HYPERBOLIC, [3.0, 2.0, 1.5], x=[1, 2, 3]).status) == Status.TOO_FEW_POINTS


def test_a_point_of_weight_zero_is_not_there():
    y = hyperbola(POSITION, 1.5, 0.3, 4.0) + 0.01 * np.random.default_rng(0).standard_normal(len(POSITION))
    broken, weights = y.copy(), np.ones(len(y))
    broken[[3, 50]], weights[[3, 50]] = (np.nan, 1e9), 0
    fit = tsl.fit(laws.HYPERBOLIC, broken, x=POSITION, weights=weights)
    without = tsl.fit(laws.HYPERBOLIC, np.delete(y, [3, 50]), x=np.delete(POSITION, [3, 50]))
    np.testing.assert_allclose(fit.params, without.params, rtol=1e-8)
    np.testing.assert_allclose(fit.stderr, without.stderr, rtol=1e-8)
    np.testing.assert_allclose(fit.r2, without.r2, rtol=1e-8)


def test_weights_of_each_curve_and_their_scale(tolerance):
    y = noisy(3)
    weights = np.random.default_rng(0).uniform(0.5, 2, y.shape)
    together = tsl.fit(laws.HYPERBOLIC, y, x=POSITION, weights=weights)
    for k in range(3):
        alone = tsl.fit(laws.HYPERBOLIC, y[k], x=POSITION, weights=1000 * weights[k])
        np.testing.assert_allclose(together.params[k], alone.params, rtol=tolerance["solver"])
        np.testing.assert_allclose(together.stderr[k], alone.stderr, rtol=tolerance["solver"])


def test_labels_survive(simulated):
    fit = tsl.fit(laws.HYPERBOLIC, simulated.loss, over="position")
    assert fit.params.dims == ("split", "tokens", "param")
    assert fit.params.param.values.tolist() == ["a0", "a1", "a2"]
    assert fit.status.dtype == np.int8
    bare = tsl.fit(laws.HYPERBOLIC, simulated.loss.values[0], x=simulated.position)
    assert bare.params.dims == ("curve", "param")
    np.testing.assert_allclose(bare.params, fit.params.sel(split="id"), rtol=1e-9)
    moved = tsl.fit(laws.HYPERBOLIC, simulated.loss.transpose("position", "tokens", "split"), over="position")
    np.testing.assert_allclose(moved.params.transpose("split", "tokens", "param"), fit.params, rtol=1e-9)
    curves = fit.predict()
    assert curves.dims == ("split", "tokens", "position")
    np.testing.assert_allclose(((simulated.loss - curves) ** 2).sum("position"), fit.sse, rtol=1e-8)
    assert "a0/(1 + a1 i) + a2" in repr(fit)


def test_float32_stays_close_to_float64():
    y = noisy(40)
    single = tsl.fit(laws.HYPERBOLIC, y, x=POSITION, dtype="float32")
    double = tsl.fit(laws.HYPERBOLIC, y, x=POSITION)
    np.testing.assert_allclose(single.sse, double.sse, rtol=1e-4)


@pytest.mark.wrong_types
def test_requests_that_make_no_sense_are_refused_in_words(simulated):
    loss = simulated.loss
    with pytest.raises(ValueError, match=r"over='positon' is not a dimension of loss; it has \('split'"):
        tsl.fit(laws.HYPERBOLIC, loss, over="positon")
    with pytest.raises(ValueError, match=r"y is a Dataset of .*give one of them, such as surface.loss"):
        tsl.fit(laws.HYPERBOLIC, simulated, over="position")
    with pytest.raises(ValueError, match="law must be a Law such as"):
        tsl.fit("hyperbolic", loss, over="position")
    with pytest.raises(ValueError, match="name the dimension"):
        tsl.fit(laws.HYPERBOLIC, loss)
    with pytest.raises(ValueError, match="give x="):
        tsl.fit(laws.HYPERBOLIC, loss.values)
    with pytest.raises(ValueError, match="x has 3 points, y has 64"):
        tsl.fit(laws.HYPERBOLIC, loss.values, x=[1, 2, 3])
    with pytest.raises(ValueError, match="method must be one of"):
        tsl.fit(laws.HYPERBOLIC, loss, over="position", method="newton")
    with pytest.raises(ValueError, match="needs a separable law"):
        tsl.fit(laws.KAPLAN_ND, loss, over="position", method="varpro", x={"n_params": 1, "tokens": 1})
    with pytest.raises(ValueError, match="weights must be finite and not negative"):
        tsl.fit(laws.HYPERBOLIC, loss, over="position", weights=-np.ones(64))
    with pytest.raises(ValueError, match="not finite at every x"):
        tsl.fit(laws.POWER, np.ones(4), x=[0.0, 1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="nothing to fit"):
        tsl.fit(laws.HYPERBOLIC, np.zeros((0, 4)), x=[1, 2, 3, 4])
    with pytest.raises(ValueError, match="kaplan_nd reads 'n_params', found the coordinates"):
        tsl.fit(laws.KAPLAN_ND, loss, over=("tokens", "position"))


def test_the_expected_r2_is_that_of_a_law_that_is_true():
    rng = np.random.default_rng(0)
    covariance = 4e-4 * (0.6 * np.ones((128, 128)) + 0.4 * np.eye(128))  # positions correlate, as they do in text
    truth = hyperbola(POSITION, 1.5, 0.3, 4.0)
    y = truth + rng.multivariate_normal(np.zeros(128), covariance, size=200)
    labelled = xr.DataArray(y, {"position": POSITION}, ("draw", "position"))
    fit = tsl.fit(laws.HYPERBOLIC, labelled, over="position")
    noise = xr.DataArray(np.broadcast_to(covariance, (200, 128, 128)), dims=("draw", "position", "position_"))
    expected = expected_r2(fit, labelled, noise)
    missed = (1 - fit.r2).mean() / (1 - expected["mean"]).mean()
    assert abs(float(missed) - 1) < 0.05
    assert 0.85 < float(((expected.low < fit.r2) & (fit.r2 < expected.high)).mean()) < 0.95


def test_the_interval_of_the_expected_r2_allows_for_a_covariance_from_few_clusters():
    """Of 8 clusters the mean SSE itself is uncertain: the interval by F is wider, and holds."""
    rng, clusters = np.random.default_rng(1), 8
    truth = hyperbola(POSITION, 1.5, 0.3, 4.0)
    each = truth + 0.1 * rng.standard_normal((400, clusters, 128)) + 0.1 * rng.standard_normal((400, clusters, 1))
    each += 0.1 * rng.standard_normal((400, clusters, 8)) @ rng.standard_normal((8, 128))  # few directions
    mean = xr.DataArray(each.mean(1), {"position": POSITION}, ("draw", "position"))
    root = (each - each.mean(1, keepdims=True)) / np.sqrt(clusters * (clusters - 1))
    fit = tsl.fit(laws.HYPERBOLIC, mean, over="position")
    expected = expected_r2(fit, mean, xr.DataArray(root, dims=("draw", "cluster", "position")))
    assert 0.85 < float(((expected.low < fit.r2) & (fit.r2 < expected.high)).mean()) < 0.97


def test_a_covariate_is_known_by_its_name():
    """Tokens are no parameters, nor positions: a law reads its own covariate, or x= says what stands for it."""
    tokens = np.geomspace(1e6, 1e9, 12)
    loss = xr.DataArray(60 * tokens**-0.3 + 2, {"tokens": tokens}, ("tokens",), name="loss")
    for law, name in ((laws.KAPLAN_N, "n_params"), (laws.HYPERBOLIC, "position")):
        with pytest.raises(ValueError, match=f"reads '{name}', found the coordinates .'tokens',. .* give x="):
            tsl.fit(law, loss, over="tokens")
        assert tsl.fit(law, loss, over="tokens", x=tokens).status.shape == ()
    generic = laws.Law(**{**vars(laws.POWER), "covariates": ("x",)})
    fit = tsl.fit(generic, loss, over="tokens").raise_if_failed()
    assert list(fit.range) == ["tokens"]


def test_weights_and_covariates_follow_the_dimensions_of_the_data_and_not_their_order():
    """A bare array of y's shape has y's order, whichever dimension is fitted; DataArrays have names."""
    rng = np.random.default_rng(0)
    y, weights = noisy(5), rng.uniform(0.5, 2, (5, 128))
    table = xr.DataArray(y, {"position": POSITION}, ("run", "position"))
    expected = tsl.fit(laws.HYPERBOLIC, table, over="position", weights=weights)
    turned = tsl.fit(laws.HYPERBOLIC, table.T, over="position", weights=weights.T)
    np.testing.assert_array_equal(expected.params, turned.params)
    with pytest.raises(ValueError, match="weights have shape"):
        tsl.fit(laws.HYPERBOLIC, table, over="position", weights=weights.T)
    n_params, tokens = np.geomspace(1e7, 1e10, 6), np.geomspace(1e9, 1e12, 5)
    loss = 1.7 + 400 * n_params[:, None] ** -0.34 + 410 * tokens**-0.28
    grid = xr.DataArray(loss, {"n_params": n_params, "tokens": tokens}, ("n_params", "tokens"))
    x = {name: grid[name].broadcast_like(grid).transpose("tokens", "n_params") for name in grid.dims}
    fit = tsl.fit(laws.CHINCHILLA, grid, over=("n_params", "tokens"), x=x).raise_if_failed()
    np.testing.assert_allclose(fit.params, [1.7, 400, 410, 0.34, 0.28], rtol=1e-4)


def test_covariates_of_another_length_are_refused():
    with pytest.raises(ValueError, match="for the 9 points of y, found the lengths"):
        tsl.fit(laws.CHINCHILLA, np.linspace(4, 3, 9), x={"n_params": np.geomspace(1e7, 1e9, 9), "tokens": np.ones(4)})
