"""The decoder: what it may see, that its two ways of running agree, and that it can learn."""

from __future__ import annotations

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tsl_jax.models import build as model_build
from tsl_jax.models.attention import causal_attention
from tsl_jax.models.config import ModelConfig
from tsl_jax.models.layers import rotary_table, rotate

TINY = ModelConfig(preset="tiny", vocabulary=50, context=80)
FLOAT32 = 1e-4  # float32 model: sums of a few hundred terms in another order

build = functools.cache(model_build.build)
hidden = jax.jit(model_build.hidden, static_argnums=0)
attention = jax.jit(causal_attention, static_argnums=3)


def tokens(batch: int, n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, TINY.vocabulary, (batch, n)).astype(np.int32)


def perturbed(params: dict) -> dict:
    """Away from the initial values, at which the branches of a block are nearly silent."""
    keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(params))))
    return jax.tree.map(lambda p: p + 0.2 * jax.random.normal(next(keys), p.shape, p.dtype), params)


@pytest.mark.parametrize("n", [1, 33, 100, 200])
def test_attention_and_its_gradient_equal_the_naive_ones(n: int) -> None:
    rng = np.random.default_rng(0)
    q, k, v, g = (rng.normal(size=(2, n, heads, 8)).astype(np.float32) for heads in (6, 2, 2, 6))

    def naive(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        scores = jnp.einsum("bthx,bshx->bhts", q, jnp.repeat(k, 3, axis=2)) * 8**-0.5
        scores = jnp.where(jnp.tril(jnp.ones((1, 1, n, n), bool)), scores, -jnp.inf)
        return jnp.einsum("bhts,bshx->bthx", jax.nn.softmax(scores), jnp.repeat(v, 3, axis=2))

    expected, pullback = jax.vjp(naive, q, k, v)
    for kind in ("chunks", "fused"):
        out, pull = jax.vjp(lambda q, k, v, kind=kind: attention(q, k, v, kind), q, k, v)
        np.testing.assert_allclose(out, expected, atol=FLOAT32)
        for got, want in zip(pull(g), pullback(g), strict=True):
            np.testing.assert_allclose(got, want, atol=FLOAT32)


def test_grouped_query_heads_share_keys_and_values() -> None:
    config = ModelConfig(vocabulary=50, context=16, d_model=64, n_layers=3, n_heads=8, n_kv_heads=2)
    graphdef, params = build(config, 0)
    assert params["blocks"]["attention"]["qkv"].shape == (3, 64, (8 + 2 * 2) * 8)
    assert params["blocks"]["attention"]["out"].shape == (3, 64, 64)
    assert hidden(graphdef, params, tokens(2, 16)).shape == (2, 16, 64)


def test_rotary_product_depends_on_the_distance_alone() -> None:
    table = rotary_table(40, 8, 10_000.0)
    q, k = (jnp.broadcast_to(jax.random.normal(jax.random.key(i), (8,)), (1, 40, 1, 8)) for i in (0, 1))
    products = np.einsum("tx,sx->ts", rotate(q, table)[0, :, 0], rotate(k, table)[0, :, 0])
    for distance in (0, 3, 17):
        diagonal = np.diagonal(products, -distance)
        np.testing.assert_allclose(diagonal, diagonal[0], atol=FLOAT32)
    assert np.ptp(products) > 0.1


def test_the_same_seed_gives_the_same_parameters_and_another_does_not() -> None:
    (_, a), (_, b), (_, c) = build(TINY, 0), build(TINY, 0), build(TINY, 1)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert not np.array_equal(a["embedding"], c["embedding"])
    qkv = a["blocks"]["attention"]["qkv"]
    assert not np.array_equal(qkv[0], qkv[1]), "layers must start different"


def test_a_context_longer_than_the_models_is_refused() -> None:
    graphdef, params = build(replace(TINY, context=8), 0)
    with pytest.raises(ValueError, match="9 tokens of context, but this model's longest is 8"):
        hidden(graphdef, params, tokens(1, 9))


@pytest.mark.parametrize("layers", ["scan", "unroll"])
def test_what_is_made_again_for_the_backward_pass_changes_no_gradient(layers: str) -> None:
    x, results = tokens(2, 9), {}
    params = perturbed(build(TINY, 0)[1])
    for remat in ("none", "dots", "full"):
        config = replace(TINY, layers=layers, remat=remat, n_heads=1)
        graphdef, _ = model_build.abstract(config)
        loss = jax.jit(jax.value_and_grad(lambda p, g=graphdef: jnp.mean(model_build.hidden(g, p, x) ** 3)))
        text = str(jax.make_jaxpr(loss)(params))
        assert ("checkpoint" in text or "remat" in text) == (remat != "none")
        results[remat] = loss(params)
    for remat in ("dots", "full"):
        np.testing.assert_allclose(results[remat][0], results["none"][0], rtol=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), results[remat][1], results["none"][1])
