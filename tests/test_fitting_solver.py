"""The engine beneath `fit`: global, exact to its dtype, the same bits in any batch, differentiable."""

import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import tsl_jax as tsl
from tsl_jax import Status, laws
from tsl_jax.diagnostics import bootstrap, expected_r2
from tsl_jax.fitting import lowrank_basis, prepare, solve_curves, varpro

POSITION = np.arange(1.0, 129.0)
TOKENS = np.geomspace(6e4, 2.5e6, 32)


def waves(shape, x):
    x = jnp.asarray(x)
    return jnp.stack([jnp.cos(shape[0] * x), jnp.sin(shape[0] * x), jnp.ones_like(x)], axis=-1)


# Two columns depend on the shape; from a twentieth of a period over the range of x to two.
WAVE = laws.Law(
    name="wave", formula="b0 cos(w x) + b1 sin(w x) + b2", params=("b0", "b1", "b2", "w"), shapes=("w",),
    coefs=("b0", "b1", "b2"), basis=waves, source="a test",
    bounds=lambda x: (2 * jnp.pi * jnp.asarray([0.05, 2.0]) / (jnp.max(x) - jnp.min(x)))[None],
)  # fmt: skip
POINTS = {("position",): POSITION, ("loss",): np.linspace(2, 6, 64), ("steps",): np.geomspace(1e3, 1e5, 64)}
ONE_SHAPE = {law: POINTS.get(law.covariates, TOKENS) for law in (*laws.BY_NAME.values(), WAVE)
             if len(law.shapes) == 1 and law.basis is not None}  # fmt: skip
BITS = ("params", "stderr", "sse", "covariance", "status", "r2")


def hyperbola(i, a0, a1, a2):
    return a0 / (1 + a1 * i) + a2


def noisy(curves: int, sd: float = 0.02, seed: int = 0, low: float = 0.05, high: float = 2) -> np.ndarray:
    rng = np.random.default_rng(seed)
    a1 = np.exp(rng.uniform(np.log(low), np.log(high), (curves, 1)))
    return hyperbola(POSITION, 1.5, a1, 4.0) + sd * rng.standard_normal((curves, len(POSITION)))


def log_range(law, x) -> np.ndarray:
    with jax.enable_x64(True):
        return np.log(np.asarray(law.bounds(jnp.asarray(x))))


# The basis of another law here, over another covariate: a program of its own for the same way.
SAME_BASIS = {
    laws.BY_NAME[name] for name in ("reciprocal", "power", "log", "kaplan_n", "kaplan_d", "kaplan_c", "kaplan_c_min")
}


@pytest.mark.parametrize(
    "law", [pytest.param(law, id=law.name, marks=[pytest.mark.slow] * (law in SAME_BASIS)) for law in ONE_SHAPE]
)
def test_a_curve_of_any_shape_in_the_range_is_explained(law):
    x = ONE_SHAPE[law]
    low, width = log_range(law, x)[0, 0], np.ptp(log_range(law, x))

    rng = np.random.default_rng(0)
    place = np.concatenate([[0.02, 0.98], rng.uniform(0.02, 0.98, 62)])
    with jax.enable_x64(True):
        shapes = jnp.exp(low + place * width)[:, None]
        columns = np.asarray(jax.vmap(law.basis, (0, None))(shapes, jnp.asarray(x)))
    columns = columns / np.abs(columns).max(axis=1, keepdims=True)
    y = np.einsum("cpk,ck->cp", columns, rng.uniform(0.5, 3, (len(place), columns.shape[2])))
    fit = tsl.fit(law, y, x=x)
    assert (fit.sse.values <= 1e-14 * np.sum(y**2, axis=1)).all()


@pytest.mark.parametrize("law", ONE_SHAPE, ids=lambda law: law.name)
def test_the_family_is_low_rank_and_accurate_between_its_nodes(law):
    x = ONE_SHAPE[law]
    tables = lowrank_basis.prepare(law, x, np.ones(len(x)), log_range(law, x), "float64")
    if law is laws.STEPS_TOKENS:
        assert tables is None, "its pole lies at the first point: it takes the general way"
        return
    assert tables is not None
    assert tables.layout.vectors <= 32


# The third compiles programs of its own and takes the way of the first.
@pytest.mark.parametrize(
    "law", [laws.HYPERBOLIC, WAVE, pytest.param(laws.KAPLAN_N, marks=pytest.mark.slow)], ids=lambda law: law.name
)
def test_compressed_and_plain_variable_projection_agree(law, tolerance):
    """Errors and bounds too; with weights, some of them zero over NaN."""
    x = ONE_SHAPE[law]
    rng = np.random.default_rng(1)
    truth = {laws.HYPERBOLIC: lambda x: 1.5 / (1 + 0.2 * x), WAVE: lambda x: np.cos(2e-6 * x + 1),
             laws.KAPLAN_N: lambda x: (8e13 / x) ** 0.076}[law](x)  # fmt: skip
    y = truth + 0.02 * rng.standard_normal((20, len(x)))
    weights = rng.uniform(0.5, 2, len(x))
    weights[3] = 0
    y[:, 3] = np.nan
    fast = tsl.fit(law, y, x=x, weights=weights)
    plain = tsl.fit(law, y, x=x, weights=np.broadcast_to(weights, y.shape))  # weights of each curve: the general path
    np.testing.assert_allclose(fast.sse, plain.sse, rtol=tolerance["solver"])
    np.testing.assert_allclose(fast.r2, plain.r2, rtol=1e-9)
    np.testing.assert_array_equal(fast.status, plain.status)
    good = fast.converged.values
    np.testing.assert_allclose(fast.stderr[good], plain.stderr[good], rtol=1e-4)
    np.testing.assert_allclose(fast.log_shape_stderr[good], plain.log_shape_stderr[good], rtol=1e-4)


def test_float32_stays_within_a_millionth_of_the_best():
    y = noisy(400, low=0.01).astype(np.float32).astype(float)
    best = tsl.fit(laws.HYPERBOLIC, y, x=POSITION)
    single = tsl.fit(laws.HYPERBOLIC, y, x=POSITION, dtype="float32")
    a0, a1, a2 = np.asarray(single.params, float).T[..., None]
    sse = np.sum((y - hyperbola(POSITION, a0, a1, a2)) ** 2, axis=1)
    assert np.max(sse / best.sse.values - 1) < 1e-6
    np.testing.assert_allclose(single.sse, best.sse, rtol=1e-5)  # the sum itself is rounded
    np.testing.assert_array_equal(single.converged, best.converged)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_curve_has_the_same_bits_in_any_batch_order_and_block(dtype):
    y = noisy(1500)
    y[17, 3], y[5] = np.nan, 3.0
    whole = tsl.fit(laws.HYPERBOLIC, y, x=POSITION, dtype=dtype)
    order = np.random.default_rng(0).permutation(len(y))
    mixed = tsl.fit(laws.HYPERBOLIC, y[order], x=POSITION, dtype=dtype)
    part = tsl.fit(laws.HYPERBOLIC, y[:70], x=POSITION, dtype=dtype)
    alone = tsl.fit(laws.HYPERBOLIC, y[40], x=POSITION, dtype=dtype)
    strided = tsl.fit(laws.HYPERBOLIC, np.repeat(y, 2, axis=1)[::-1, ::2], x=POSITION, dtype=dtype)
    for name in BITS:
        expected = getattr(whole, name).values
        for fit, chosen in ((mixed, order), (part, slice(70)), (alone, 40), (strided, slice(None, None, -1))):
            np.testing.assert_array_equal(getattr(fit, name).values, expected[chosen], err_msg=name)


# Each way and each dtype once; the other two pairs compile programs of their own and are slow.
@pytest.mark.parametrize(
    ("how", "dtype"),
    [
        ("weights", "float32"),
        ("lm", "float64"),
        pytest.param("weights", "float64", marks=pytest.mark.slow),
        pytest.param("lm", "float32", marks=pytest.mark.slow),
    ],
)
def test_solvers_of_curves_one_by_one_keep_the_bits_too(how, dtype):
    x = np.arange(1.0, 33.0)
    y = noisy(70)[:, : len(x)]
    own = np.random.default_rng(0).uniform(0.5, 2, y.shape)

    def fit(part):
        options = {"weights": own[part]} if how == "weights" else {"method": "lm"}
        return tsl.fit(laws.HYPERBOLIC, y[part], x=x, dtype=dtype, **options)

    whole = fit(slice(None))
    for part in (slice(40, 41), slice(40, 43), np.arange(69, 29, -1)):
        alone = fit(part)
        for name in BITS:
            # the total sum of squares of R2 is summed over a block, whose last bit depends on the processor's vectors
            close = {"rtol": 4e-16 if dtype == "float64" else 2e-7} if name == "r2" else {"rtol": 0}
            np.testing.assert_allclose(
                getattr(alone, name).values, getattr(whole, name).values[part], err_msg=name, **close
            )


SHARDED = """
import hashlib, jax, numpy as np, tsl_jax as tsl
from tsl_jax import laws
assert len(jax.local_devices()) == {devices}
i, rng = np.arange(1.0, 129.0), np.random.default_rng(0)
y = 1.5 / (1 + np.exp(rng.uniform(-3, 0, (9000, 1))) * i) + 4 + 0.02 * rng.standard_normal((9000, 128))
found = tsl.fit(laws.HYPERBOLIC, y, x=i, dtype="float32")
parts = (found.params, found.stderr, found.sse, found.status)
print(hashlib.sha256(b"".join(np.ascontiguousarray(a.values).tobytes() for a in parts)).hexdigest())
"""


@pytest.mark.slow
def test_eight_devices_give_the_bits_of_one():
    printed, flags = [], os.environ.get("XLA_FLAGS", "")
    for devices in (1, 8):
        environment = {**os.environ, "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}"}
        command = [sys.executable, "-c", SHARDED.format(devices=devices)]
        printed.append(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert printed[0] == printed[1] != ""


def test_gradients_follow_the_implicit_function_theorem():
    y = noisy(3, seed=4)
    step = np.where(POSITION < 2, 6.0, 4.0)  # its shape is at the upper bound, and stays there
    with jax.enable_x64(True):
        plan = prepare(laws.HYPERBOLIC, POSITION, np.ones(len(POSITION)))
        curves = jnp.asarray(np.vstack([y, step]))

        @jax.jit  # one program for the value and all differences
        def read(y):
            fit = solve_curves(plan, y)
            return jnp.concatenate([fit.params, fit.sse[:, None]], axis=1)

        exact = jax.jit(jax.jacrev(read))(curves)
        assert np.asarray(read(curves))[3, 1] == pytest.approx(1000)
        for curve, point in ((0, 0), (1, 5), (2, 100), (3, 0)):
            h = np.zeros(curves.shape)
            h[curve, point] = 1e-5
            moved = (read(curves + h) - read(curves - h)) / 2e-5
            np.testing.assert_allclose(exact[..., curve, point], moved, rtol=2e-4, atol=1e-6)
        batched = jax.jit(jax.vmap(lambda y: solve_curves(plan, y).params))(curves.reshape(2, 2, -1))
        np.testing.assert_allclose(batched.reshape(4, 3), read(curves)[:, :3], rtol=1e-6)


def test_the_cluster_bootstrap_sees_what_clusters_share():
    """100 documents, each with a level of its own: the error of a2 is that of the mean of their levels."""
    rng = np.random.default_rng(9)
    level = rng.normal(0, 0.3, (100, 1))
    sums = 8 * (hyperbola(POSITION, 1.5, 0.3, 4.0) + level + 0.02 * rng.standard_normal((100, len(POSITION))))
    fit = bootstrap(laws.HYPERBOLIC, sums, np.full(sums.shape, 8), POSITION, resamples=1000)
    assert fit.stderr()[2] == pytest.approx(level.std() / 10, rel=0.1)
    low, high = fit.interval(0.9)
    assert low[2] < 4 + level.mean() < high[2]
    naive = tsl.fit(laws.HYPERBOLIC, sums.sum(0) / 800, x=POSITION)
    assert float(naive.stderr[2]) < 0.1 * fit.stderr()[2]


def test_the_bootstrap_bears_points_that_were_never_counted_and_curves_that_were_never_seen():
    sums = np.stack([noisy(5), np.full((5, len(POSITION)), np.nan)])
    counts = np.ones(sums.shape)
    counts[1] = 0  # never seen
    sums[0, 0, 100:], counts[0, 0, 100:] = np.nan, 0
    fit = bootstrap(laws.HYPERBOLIC, sums, counts, POSITION, resamples=8)
    for values in (fit.stderr(), *fit.interval()):
        assert np.isfinite(values[0]).all()
        assert np.isnan(values[1]).all()


def test_the_expected_r2_of_laws_with_several_covariates_and_of_flat_curves():
    n_params, tokens = (a.ravel() for a in np.meshgrid(np.geomspace(1e7, 1e10, 6), np.geomspace(1e9, 1e12, 5)))
    noise = 0.01 * np.random.default_rng(0).standard_normal(30)
    loss = xr.DataArray(1.69 + 406.4 * n_params**-0.34 + 410.7 * tokens**-0.28 + noise, dims="point")
    fit = tsl.fit(laws.CHINCHILLA, loss, over="point", x={"n_params": n_params, "tokens": tokens})
    variance = xr.DataArray(1e-4 * np.eye(30), dims=("point", "point_"))
    assert float(expected_r2(fit, loss, variance)["mean"]) == pytest.approx(float(fit.r2), abs=1e-3)
    flat = xr.DataArray(np.full(30, 4.0), {"position": POSITION[:30]})
    assert np.isnan(expected_r2(tsl.fit(laws.HYPERBOLIC, flat, over="position"), flat, variance)["mean"])


def test_a_plan_without_weights_takes_its_points_from_the_law():
    grid = {"n_params": np.geomspace(1e7, 1e10, 6), "tokens": np.geomspace(1e9, 1e12, 6)}
    history = {"lr": np.ones(400), "step": np.arange(20, 401, 20)}
    for law, x, points in (
        (laws.CHINCHILLA, grid, 6),
        (laws.MOMENTUM_ANNEALING, history, 20),
        (laws.HYPERBOLIC, POSITION, 128),
    ):
        assert prepare(law, x, dtype="float32").weights.shape == (points,)


def test_sum_of_powers_of_size_and_data_is_recovered_and_starts_agree():
    n_params, tokens = (a.ravel() for a in np.meshgrid(np.geomspace(1e7, 1e10, 6), np.geomspace(1e9, 1e12, 5)))
    loss = 1.69 + 406.4 * n_params**-0.34 + 410.7 * tokens**-0.28
    fit = tsl.fit(laws.CHINCHILLA, loss, x={"n_params": n_params, "tokens": tokens}).raise_if_failed()
    np.testing.assert_allclose(fit.params, [1.69, 406.4, 410.7, 0.34, 0.28], rtol=1e-5)
    assert int(fit.n_agreeing_starts) >= 1


def test_doubtful_ends_have_their_own_status():
    rng = np.random.default_rng(10)
    shallow = 4 - 0.001 * POSITION + 1e-6 * POSITION**2 / 2 + 1e-9 * rng.standard_normal(len(POSITION))
    weak = hyperbola(POSITION, 0.25, 0.05, 4.0) + 0.05 * np.random.default_rng(3).standard_normal(len(POSITION))
    fit = tsl.fit(laws.HYPERBOLIC, np.stack([weak, noisy(1)[0]]), x=POSITION)
    assert [Status(v).name for v in fit.status.values] == ["WEAKLY_IDENTIFIED", "CONVERGED"]
    low = tsl.fit(laws.POSITION_POWER, 4 - 0.3 * np.log(POSITION) + 0 * shallow, x=POSITION)
    assert Status(int(low.status)) == Status.LOWER_BOUND


NUMBERS = st.sampled_from([0.0, 1.0, -1.0, 4.0, 1e-30, 1e30, np.nan, np.inf, -np.inf])


@settings(max_examples=60, deadline=None)
@given(
    # few lengths, as each is a program of its own: one point, as many as parameters, one more, many
    data=st.sampled_from([1, 3, 4, 12]).flatmap(lambda n: st.lists(NUMBERS, min_size=n, max_size=n)),
    points=st.sampled_from(["sorted", "reversed", "same", "negative", "zero"]),
    dtype=st.sampled_from([np.float16, np.float32, np.float64, np.int32]),
    law=st.sampled_from([laws.HYPERBOLIC, laws.LOG, laws.POSITION_POWER]),
)
def test_no_input_crashes_or_gets_a_wrong_status(data, points, dtype, law):
    with np.errstate(all="ignore"):
        y = np.array(data).astype(dtype)
    n = np.arange(1.0, len(y) + 1)
    x = {"sorted": n, "reversed": n[::-1], "same": np.ones(len(y)), "negative": -n, "zero": n - 1}[points]
    try:
        fit = tsl.fit(law, y, x=x)
    except ValueError:  # a sentence of ours
        return
    status = Status(int(fit.status))
    values = np.asarray(fit.params)
    assert np.isfinite(values).all() or status in (Status.NON_FINITE, Status.TOO_FEW_POINTS, Status.MAX_ITERATIONS)
    if status == Status.CONVERGED:
        left = np.asarray(y, float) - np.asarray(fit.predict(x))
        np.testing.assert_allclose(
            float(fit.sse), np.sum(left**2), rtol=1e-6, atol=1e-12 * np.sum(np.square(y, dtype=float))
        )


def test_two_laws_of_one_name_are_two_laws():
    """Tables are kept by what a law is, not by its name or place in memory."""
    y = 3 + 2 * np.exp(-0.05 * POSITION)
    fit = []
    for power in (1, 2):
        law = laws.Law(
            name="decay", formula="c1 exp(-(c2 i)^k) + c0", params=("c0", "c1", "c2"), shapes=("c2",),
            coefs=("c1", "c0"), bounds=laws.POSITION_EXPONENTIAL.bounds, source="a test",
            basis=lambda s, x, k=power: jnp.stack([jnp.exp(-((s[0] * x) ** k)), jnp.ones_like(x)], -1),
        )  # fmt: skip
        fit.append(float(tsl.fit(law, y, x=POSITION).sse))
        del law
    assert fit[0] < 1e-12 < 1e-3 < fit[1]


def test_plain_variable_projection_needs_no_compression():
    """A family that is not low-rank (many periods) goes the general way, and is still fitted."""
    x = np.linspace(0, 300, 400)
    fast = laws.Law(
        name="fast_wave", formula="b0 cos(w x) + b1 sin(w x) + b2", params=("b0", "b1", "b2", "w"), shapes=("w",),
        coefs=("b0", "b1", "b2"), basis=waves, bounds=lambda x: jnp.asarray([[0.05, 2.0]]), source="a test",
    )  # fmt: skip
    assert lowrank_basis.prepare(fast, x, np.ones(400), np.log([[0.05, 2.0]]), "float64") is None
    fit = tsl.fit(fast, np.cos(0.3 * x) + 3, x=x)
    assert float(fit.r2) > 0.5
    assert varpro.GRID > 0


@pytest.mark.filterwarnings("error")
def test_data_beyond_float32_have_the_status_non_finite():
    y = noisy(3)
    y[1, 5] = 1e300
    fit = tsl.fit(laws.HYPERBOLIC, y, x=POSITION, dtype="float32")
    assert fit.status.values.tolist()[1] == Status.NON_FINITE
    assert fit.status.values[0] == fit.status.values[2] == Status.CONVERGED


def test_levenberg_marquardt_factors_one_matrix_at_a_time():
    """On CPU a QR of a batch waits for threads of the pool it runs in: two programs at once can wait for ever."""
    x = np.linspace(1.0, 2.0, 64)
    with jax.enable_x64(True):
        prepared = prepare(laws.POWER, jnp.asarray(x), method="lm")
        lowered = jax.jit(solve_curves).lower(prepared, jnp.ones((8, 64)), jnp.ones((8, 64)))
    factored = re.findall(r"lapack_dgeqrf\w*\(.*?: \(tensor<([\dx]+)xf64>", lowered.as_text())
    assert factored
    assert {shape.count("x") for shape in factored} == {1}  # rows x columns
