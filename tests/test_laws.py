"""Laws are data: their parts agree, and the schedule of the law wing is that of the training wing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tsl_jax import laws
from tsl_jax.laws import Law, Schedule
from tsl_jax.training.optimizer import learning_rate

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
def test_both_wings_read_one_schedule(plan):
    """The training wing makes its learning rate from the plan, the law wing reads the plan: they must agree."""
    tokens = np.array([1, 500, 1000, 1001, 20_000, 40_000, 45_000, 49_999, 50_000])
    trained = [float(learning_rate(plan, t)) for t in tokens]
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


def test_the_annealing_law_sums_the_smoothed_decreases():
    lr = np.array([1.0, 1.0, 0.5, 0.5, 0.25])
    momentum, s2, total = 0.0, 0.0, []
    for k, rate in enumerate(lr):
        momentum = 0.9 * momentum + (lr[k - 1] - rate if k else 0.0)
        s2 += momentum
        total.append(s2)
    law = laws.ANNEALING({"lr": lr, "step": np.array([3, 5])}, alpha=0.5, forgetting=0.1, L0=2.0, A=1.0, C=0.7)
    expected = 2 + np.cumsum(lr)[[2, 4]] ** -0.5 - 0.7 * np.array(total)[[2, 4]]
    np.testing.assert_allclose(law, expected, rtol=1e-6)


def test_a_schedule_that_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="expected one of"):
        Schedule("linear", 1e-3, 10, 100)
    with pytest.raises(ValueError, match="warm-up of 200 tokens"):
        Schedule("constant", 1e-3, 200, 100)
    with pytest.raises(ValueError, match="cosine schedule"):
        laws.piecewise_cosine(Schedule("constant", 1e-3, 10, 100))
