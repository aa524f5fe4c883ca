"""Laws are data: their parts agree, and the schedule that laws read is that of training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tsl_jax as tsl
from tsl_jax import laws
from tsl_jax.laws import Law, Schedule

PLANS = [
    {"kind": "cosine", "peak": 3e-3, "warmup_tokens": 1000, "total_tokens": 50_000, "final_ratio": 0.1},
    {"kind": "constant", "peak": 3e-3, "warmup_tokens": 1000, "total_tokens": 50_000, "final_ratio": 0.1},
    {
        "kind": "wsd",
        "peak": 3e-3,
        "warmup_tokens": 1000,
        "total_tokens": 50_000,
        "final_ratio": 0.1,
        "decay_start_tokens": 40_000,
    },
]


def test_the_formula_is_the_curve():
    i = np.arange(1.0, 9.0)
    np.testing.assert_allclose(laws.HYPERBOLIC(i, a0=3.0, a1=0.5, a2=2.0), 3 / (1 + 0.5 * i) + 2, rtol=1e-6)
    np.testing.assert_allclose(laws.POSITION_POWER(i, c0=2.0, c1=4.0, c2=0.5), 2 + 4 * i**-0.5, rtol=1e-6)
    np.testing.assert_allclose(laws.LOG(i, alpha0=2.0, alpha1=0.3, alpha2=1.0), 2 * np.log(1 + 0.3 * i) + 1, rtol=1e-6)


@pytest.mark.parametrize("law", laws.BY_NAME.values(), ids=lambda law: law.name)
def test_every_law_names_its_parts_and_its_source(law):
    assert law.source
    assert law.formula
    assert set(law.decreasing_coefs) <= set(law.coefs)
    if law.params_from_raw is None:
        assert sorted(law.params) == sorted(law.shapes + law.coefs)


def test_a_law_that_does_not_fit_its_names_is_refused():
    with pytest.raises(ValueError, match="are not its shapes and coefs"):
        Law("bad", "f", ("a",), ("b",), ("c",), lambda x: ((1, 2),), "none", basis=lambda s, x: x)
    with pytest.raises(ValueError, match="either basis"):
        Law("bad", "f", ("a",), ("a",), (), lambda x: ((1, 2),), "none")
    with pytest.raises(ValueError, match="expected values for"):
        laws.HYPERBOLIC(np.arange(3.0), a0=1.0)


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan["kind"])
def test_numpy_and_jax_give_one_learning_rate(plan):
    """Training computes it by numpy in float64, laws by jax in float32 unless x64 is on."""
    tokens = np.array([1, 500, 1000, 1001, 20_000, 40_000, 45_000, 49_999, 50_000])
    trained = [float(Schedule.from_plan(plan).rate(t, np)) for t in tokens]
    np.testing.assert_allclose(Schedule.from_plan(plan).lr(tokens), trained, rtol=1e-5)


def test_the_piecewise_law_is_continuous_in_value_and_slope():
    with jax.enable_x64(True):
        law = laws.piecewise_cosine(Schedule.from_plan(PLANS[0]))
        n_sep, step = 20_000.0, 0.5
        values = {"gamma1": 1e-3, "n_sep": n_sep, "gamma0": 3.0, "gamma2": 2.0}
        around = np.asarray(law(jnp.asarray([n_sep - step, n_sep - 1e-9, n_sep + 1e-9, n_sep + step]), **values))
    assert abs(around[2] - around[1]) < 1e-10
    np.testing.assert_allclose((around[1] - around[0]) / step, (around[3] - around[2]) / step, rtol=1e-3)


def test_the_piecewise_law_publishes_the_constants_it_uses():
    """Its cosine piece, from the published gamma3..gamma6, is the curve that the basis draws."""
    with jax.enable_x64(True):
        law = laws.piecewise_cosine(Schedule.from_plan(PLANS[0]))
        values = {"gamma1": 1e-3, "n_sep": 20_000.0, "gamma0": 3.0, "gamma2": 2.0}
        p = dict(zip(law.params, law.to_params(jnp.asarray([values[n] for n in law.raw_params])), strict=True))
        late = jnp.linspace(21_000.0, 50_000.0, 7)
        cosine = p["gamma3"] * jnp.cos(p["gamma4"] * late + p["gamma5"]) + p["gamma6"]
        np.testing.assert_allclose(law(late, **values), cosine, rtol=1e-10)


def test_the_momentum_law_sums_the_smoothed_decreases():
    lr = np.array([1.0, 1.0, 0.5, 0.5, 0.25])
    momentum, s2, total = 0.0, 0.0, []
    for k, rate in enumerate(lr):
        momentum = 0.9 * momentum + (lr[k - 1] - rate if k else 0.0)
        s2 += momentum
        total.append(s2)
    law = laws.MOMENTUM_ANNEALING({"lr": lr, "step": np.array([3, 5])}, alpha=0.5, forgetting=0.1, L0=2.0, A=1.0, C=0.7)
    expected = 2 + np.cumsum(lr)[[2, 4]] ** -0.5 - 0.7 * np.array(total)[[2, 4]]
    np.testing.assert_allclose(law, expected, rtol=1e-6)


def test_the_warm_up_of_the_momentum_law_is_no_negative_annealing():
    """S2 is that of a rate which stands at its peak from the first step; S1 is the area as it was."""
    peak, fall = np.ones(6), np.linspace(1, 0.2, 5)
    steps = np.arange(1, 16)
    values = {"alpha": 0.5, "lambda": 0.9, "L0": 2.0, "C": 1.0}
    with jax.enable_x64(True):
        warmed = {"lr": np.concatenate([np.linspace(0.1, 1, 4), peak, fall]), "step": steps}
        constant = {"lr": np.concatenate([np.ones(4), peak, fall]), "step": steps}
        curve = laws.MOMENTUM_ANNEALING(warmed, {**values, "A": 0.0})
        np.testing.assert_allclose(curve, laws.MOMENTUM_ANNEALING(constant, {**values, "A": 0.0}), rtol=1e-12)
        np.testing.assert_allclose(curve[:10], 2.0, rtol=1e-12)
        area = laws.MOMENTUM_ANNEALING(warmed, {**values, "A": 1.0}) - curve
        np.testing.assert_allclose(area, np.cumsum(warmed["lr"]) ** -0.5, rtol=1e-12)
        again = {"lr": np.concatenate([fall, fall[::-1]]), "step": np.arange(1, 11)}
        rises = laws.MOMENTUM_ANNEALING(again, {**values, "A": 0.0})
        assert rises[6] - rises[5] > rises[5] - rises[4], "a later rise counts as a negative decrease"


READABLE = {
    laws.KAPLAN_N: (np.geomspace(1e6, 1e9, 5), {"scale": 11.0, "alpha_N": 0.076}),
    laws.MOMENTUM_ANNEALING: (
        {"lr": np.linspace(1, 0.2, 9), "step": np.arange(1, 10)},
        {"alpha": 0.5, "forgetting": 0.1, "L0": 2.0, "A": 1.0, "C": 0.3},
    ),
    laws.piecewise_cosine(Schedule("cosine", 5e-3, 50_000, 2_500_000, 0.1)): (
        np.linspace(1e5, 2.4e6, 7),
        {"gamma1": 1e-6, "n_sep": 1e6, "gamma0": 2.0, "gamma2": 1.0},
    ),
    laws.piecewise_cosine(Schedule("cosine", 5e-3, 50_000, 2_500_000, 0.1), 1e6): (
        np.linspace(1e5, 2.4e6, 7),
        {"gamma1": 1e-6, "gamma0": 2.0, "gamma2": 1.0},
    ),
    laws.HYPERBOLIC: (np.arange(1.0, 9.0), {"a0": 1.5, "a1": 0.2, "a2": 3.0}),
}


@pytest.mark.parametrize("law", READABLE, ids=lambda law: law.name)
def test_a_law_reads_its_published_constants_as_well_as_its_raw_parameters(law):
    x, raw = READABLE[law]
    with jax.enable_x64(True):
        values = law.to_params(jnp.asarray([raw[name] for name in law.raw_params]))
        published = {name: float(value) for name, value in zip(law.params, values, strict=True)}
        np.testing.assert_allclose(law(x, **published), law(x, **raw), rtol=1e-12)
        np.testing.assert_allclose(law(x, published), law(x, raw), rtol=1e-12)


def test_the_parameters_of_one_fitted_curve_are_read_as_they_are():
    n_params = np.geomspace(1e6, 1e9, 12)
    loss = np.stack([(8.8e13 / n_params) ** 0.076, (4e13 / n_params) ** 0.08])
    fit = tsl.fit(laws.KAPLAN_N, loss, x=n_params)
    for k, curve in enumerate(loss):
        params = fit.params.isel(curve=k)
        with jax.enable_x64(True):
            np.testing.assert_allclose(laws.KAPLAN_N(n_params, params), curve, rtol=1e-9)
            np.testing.assert_allclose(laws.KAPLAN_N(n_params, **params.to_series()), curve, rtol=1e-9)
    with pytest.raises(ValueError, match="expected values for"):
        laws.KAPLAN_N(n_params, fit.params)  # two curves


def test_the_range_of_an_exponential_follows_from_the_spacing_of_x():
    with jax.enable_x64(True):
        bounds = laws.POSITION_EXPONENTIAL.bounds
        np.testing.assert_array_equal(bounds(np.arange(1.0, 65.0)), [[1e-3 / 64, 10.0]])
        x = 137.0 * np.arange(1.0, 65.0)
        np.testing.assert_allclose(bounds(x), bounds(x + 20_000), rtol=1e-12)


def test_a_schedule_that_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="expected one of"):
        Schedule("linear", 1e-3, 10, 100)
    with pytest.raises(ValueError, match="warm-up of 200 tokens"):
        Schedule("constant", 1e-3, 200, 100)
    with pytest.raises(ValueError, match="cosine schedule"):
        laws.piecewise_cosine(Schedule("constant", 1e-3, 10, 100))
