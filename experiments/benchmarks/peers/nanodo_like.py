"""A plain decoder in flax.linen of the shape that nanodo publishes (github.com/google-deepmind/nanodo).

Learned positions, LayerNorm without bias, attention over the whole square with a mask, a GELU feed-forward of 4 d, the
embedding tied, logits of the whole batch at once, optax AdamW with clipping, one jitted step. Written for
train_throughput.py; no line is nanodo's.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
import timing
from flax import linen as nn


class Block(nn.Module):
    d: int
    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        normed = nn.LayerNorm(use_bias=False)(x)
        each = partial(nn.DenseGeneral, features=(self.heads, self.d // self.heads), use_bias=False)
        q, k, v = (each(name=name)(normed) for name in ("query", "key", "value"))
        score = jnp.einsum("bthx,bshx->bhts", q / q.shape[-1] ** 0.5, k)
        seen = jnp.tril(jnp.ones((1, 1, x.shape[1], x.shape[1]), bool))
        share = jax.nn.softmax(jnp.where(seen, score, jnp.finfo(score.dtype).min))
        mixed = jnp.einsum("bhts,bshx->bthx", share, v)
        x = x + nn.DenseGeneral(self.d, axis=(-2, -1), use_bias=False, name="out")(mixed)
        wide = nn.gelu(nn.Dense(4 * self.d, use_bias=False)(nn.LayerNorm(use_bias=False)(x)))
        return x + nn.Dense(self.d, use_bias=False)(wide)


class Decoder(nn.Module):
    shape: Any

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        d, n = self.shape["d"], tokens.shape[1]
        embed = nn.Embed(self.shape["vocabulary"], d)
        x = embed(tokens) + nn.Embed(self.shape["context"], d)(jnp.arange(n))[None]
        for _ in range(self.shape["layers"]):
            x = Block(d, self.shape["heads"])(x)
        return embed.attend(nn.LayerNorm(use_bias=False)(x))


def main() -> None:
    shape = timing.given()
    model = Decoder(shape)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, shape["context"]), jnp.int32))
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, b2=0.99, weight_decay=0.1))
    state = (params, adam.init(params))

    def loss(params: Any, batch: jax.Array) -> jax.Array:
        logits = model.apply(params, batch[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean()

    @partial(jax.jit, donate_argnums=0)
    def step(state: Any, batch: jax.Array) -> Any:
        params, moments = state
        value, gradient = jax.value_and_grad(loss)(params, batch)
        update, moments = adam.update(gradient, moments, params)
        return (optax.apply_updates(params, update), moments), value

    def advance(batch: Any) -> Any:
        nonlocal state
        state, value = step(state, batch)
        return value

    timing.measure(shape, advance, float)


if __name__ == "__main__":
    main()
