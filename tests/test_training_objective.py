"""The objective in chunks against the naive one, and the weights of positions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tsl_jax.training import objective
from tsl_jax.training.objective import token_losses, weighted_loss
from tsl_jax.training.position_weights.weights import PositionWeights

B, T, D, V = 3, 14, 8, 37
FLOAT32 = 1e-5  # relative: float32 sums of at most B T terms in another order


@pytest.fixture(name="problem")
def _problem() -> tuple[jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    h, w = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((B, T, D), (V, D)))
    return h, w, jnp.asarray(rng.integers(0, V, (B, T)), jnp.int32)


def naive(h: jax.Array, w: jax.Array, y: jax.Array, weights: np.ndarray) -> jax.Array:
    losses = optax.softmax_cross_entropy_with_integer_labels(h @ w.T, y)
    return jnp.mean(losses * jnp.asarray(weights, jnp.float32)[None, :])


WEIGHTS = [PositionWeights.uniform(), PositionWeights.head(4), PositionWeights.linear()]


@pytest.mark.parametrize("chunk", [5, 21, 42, 1000])
@pytest.mark.parametrize("rule", WEIGHTS)
def test_chunked_loss_and_gradient_equal_the_naive_ones(problem: tuple, chunk: int, rule: PositionWeights) -> None:
    h, w, y = problem
    weights = rule.values(T)

    def chunked(h: jax.Array, w: jax.Array) -> jax.Array:
        return weighted_loss(h, w, y, jnp.asarray(weights, jnp.float32), chunk)

    value, gradient = jax.jit(jax.value_and_grad(chunked, argnums=(0, 1)))(h, w)
    expected, expected_gradient = jax.value_and_grad(naive, argnums=(0, 1))(h, w, y, weights)
    np.testing.assert_allclose(value, expected, rtol=FLOAT32)
    np.testing.assert_allclose(jax.jit(chunked)(h, w), expected, rtol=FLOAT32)
    for got, want in zip(gradient, expected_gradient, strict=True):
        np.testing.assert_allclose(got, want, rtol=FLOAT32, atol=1e-7)


def test_gradient_of_a_scaled_loss_is_scaled(problem: tuple) -> None:
    h, w, y = problem
    ones = jnp.ones(T, jnp.float32)
    once = jax.grad(lambda h, w: weighted_loss(h, w, y, ones, chunk=10), argnums=(0, 1))(h, w)
    thrice = jax.grad(lambda h, w: 3 * weighted_loss(h, w, y, ones, chunk=10), argnums=(0, 1))(h, w)
    for got, want in zip(thrice, once, strict=True):
        np.testing.assert_allclose(got, 3 * want, rtol=FLOAT32)


@pytest.mark.parametrize("rule", [*WEIGHTS, PositionWeights.middle(3, 9), PositionWeights.tail(2, factor=5.0)])
def test_weighted_mean_of_position_losses_equals_the_scalar_loss(problem: tuple, rule: PositionWeights) -> None:
    h, w, y = problem
    weights = rule.values(T)
    by_position = np.asarray(token_losses(h, w, y, chunk=10), np.float64).mean(axis=0)
    scalar = weighted_loss(h, w, y, jnp.asarray(weights, jnp.float32))
    np.testing.assert_allclose((weights * by_position).mean(), scalar, rtol=FLOAT32)


def test_huge_logits_overflow_nothing(problem: tuple) -> None:
    h, w, y = problem
    value, gradient = jax.value_and_grad(lambda h: weighted_loss(h, w, y, jnp.ones(T, jnp.float32)))(1e4 * h)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_bfloat16_hidden_states_give_a_float32_loss_close_to_the_exact_one(problem: tuple) -> None:
    h, w, y = problem
    low = weighted_loss(h.astype(jnp.bfloat16), w, y, jnp.ones(T, jnp.float32))
    assert low.dtype == jnp.float32
    assert float(low) == pytest.approx(float(naive(h, w, y, np.ones(T))), rel=0.02)


@pytest.mark.parametrize("v", [4096, 50_304, 256_000])
def test_memory_beside_the_gradients_is_bounded_at_any_vocabulary(v: int) -> None:
    h, w, y = (
        jax.ShapeDtypeStruct(shape, t) for shape, t in (((8, 1024, 16), "f4"), ((v, 16), "f4"), ((8, 1024), "i4"))
    )
    train = jax.value_and_grad(lambda h, w, y: weighted_loss(h, w, y, jnp.ones(1024)), argnums=(0, 1))
    for program in (train, token_losses):
        temporary = jax.jit(program).lower(h, w, y).compile().memory_analysis().temp_size_in_bytes
        assert 1e6 < temporary <= 128e6


@pytest.mark.parametrize("rows", [1, 6, 37])  # 6: six times, and one row left over
def test_gradient_of_the_unembedding_by_rows_is_the_same(
    problem: tuple, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    h, w, y = problem
    monkeypatch.setattr(objective, "WHOLE_DW", 0)
    monkeypatch.setattr(objective, "DW_ROWS", rows)
    gradient = jax.jit(jax.grad(lambda w: weighted_loss(h, w, y, jnp.ones(T), chunk=10)))(w)
    np.testing.assert_allclose(gradient, jax.grad(naive, argnums=1)(h, w, y, np.ones(T)), rtol=FLOAT32, atol=1e-7)


def test_weights_have_mean_one_and_fall_on_the_named_positions() -> None:
    for rule in (PositionWeights.head(3), PositionWeights.middle(4, 6), PositionWeights.tail(3)):
        assert rule.values(10).mean() == pytest.approx(1.0, abs=1e-12)
    low = {kind: np.flatnonzero(rule.values(10) < 0.5) + 1 for kind, rule in NAMED.items()}
    assert {kind: places.tolist() for kind, places in low.items()} == {
        "head": [1, 2, 3],
        "middle": [4, 5, 6],
        "tail": [8, 9, 10],
    }
    assert PositionWeights.uniform().values(10).tolist() == [1.0] * 10
    np.testing.assert_allclose(PositionWeights.linear().values(4), [0.4, 0.8, 1.2, 1.6])


NAMED = {"head": PositionWeights.head(3), "middle": PositionWeights.middle(4, 6), "tail": PositionWeights.tail(3)}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (PositionWeights("heads"), "one of uniform, head, middle, tail, linear, .*; found 'heads'"),
        (PositionWeights.head(11), r"'head' with k 11 asks for positions 1\.\.11; the context has 1\.\.10: choose k"),
        (PositionWeights.middle(5, 4), r"'middle' with a 5 and b 4 asks for positions 5\.\.4"),
        (PositionWeights.tail(10, factor=0.0), "tail:10@0 gave no weight to any position; some weight must be left"),
        (
            PositionWeights.head(2, factor=-1.0),
            "head:2@-1 gave weight -1.0 at position 1; weights must be finite",
        ),
    ],
)
def test_weights_that_cannot_be_are_refused(rule: PositionWeights, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        rule.values(10)
    assert "PositionWeights(" not in str(error.value)
