"""Are the GPU's numbers right? Each is compared with float64, or with this machine's CPU; a table, exit code 1 if not.

    python3 experiments/gpu/correctness.py [--tiny]

Relative errors are |ours - reference| / |reference| in the Euclidean norm over the whole array. Bounds: 2e-6 in float32
with exact products, 2e-2 in bfloat16, whose unit roundoff is 4e-3; fits by the SSE they reach.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tsl_jax import laws
from tsl_jax.fitting import prepare, solve_curves
from tsl_jax.models.attention import causal_attention
from tsl_jax.models.build import build, for_platform
from tsl_jax.models.config import ModelConfig, resolve
from tsl_jax.models.moe import Experts
from tsl_jax.models.sharding import platform_of
from tsl_jax.training.evaluation import make_forward
from tsl_jax.training.objective import token_losses, weighted_loss

Row = tuple[str, float, float]  # what, error, bound
SINGLE, HALF = 2e-6, 2e-2


def error(ours: Any, reference: Any) -> float:
    """Of a tree against another, relative, by the Euclidean norm."""
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(reference), strict=True)
    apart = [(np.asarray(a, np.float64) - np.asarray(b, np.float64), np.asarray(b, np.float64)) for a, b in pairs]
    return float(max(np.linalg.norm(d) / max(np.linalg.norm(b), 1e-30) for d, b in apart))


def naive_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Attention as it is written down."""
    T, groups = q.shape[1], q.shape[2] // k.shape[2]
    scores = jnp.einsum("bthx,bshx->bhts", q, jnp.repeat(k, groups, axis=2)) * q.shape[-1] ** -0.5
    seen = jnp.tril(jnp.ones((T, T), bool))[None, None]
    return jnp.einsum(
        "bhts,bshx->bthx", jax.nn.softmax(jnp.where(seen, scores, -jnp.inf)), jnp.repeat(v, groups, axis=2)
    )


def in_float64(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function on the CPU in float64: value and gradients with respect to all arguments of floats."""
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        wide = [jnp.asarray(np.asarray(a, np.float64)) for a in arguments]
        return jax.device_get(value_and_pullback(function, *wide))


def value_and_pullback(function: Callable[..., Any], *arguments: Any) -> Any:
    """The value, and the gradients of the sum of its entries times fixed numbers."""
    value, pull = jax.vjp(function, *arguments)
    weight = jnp.asarray(np.cos(np.arange(value.size)).reshape(value.shape), value.dtype)
    return value, pull(weight)


def attention(T: int) -> Iterator[Row]:
    """Kernels and blocks of queries against float64."""
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (2, T, heads, 64)) for key, heads in zip(keys, (4, 2, 2), strict=True))
    exact = in_float64(naive_attention, q, k, v)
    for kind in ("chunks", "fused"):
        with jax.default_matmul_precision("highest"):
            ours = jax.jit(partial(value_and_pullback, lambda q, k, v, kind=kind: causal_attention(q, k, v, kind)))(
                q, k, v
            )
        yield f"attention in {kind}, float32, T {T}: value and gradients", error(ours, exact), 5 * SINGLE
    kind = for_platform(
        resolve(ModelConfig("tiny", dtype="bfloat16"), vocabulary=64, context=T), platform_of(None)
    ).attention
    low = [x.astype(jnp.bfloat16) for x in (q, k, v)]
    ours = jax.jit(partial(value_and_pullback, lambda q, k, v: causal_attention(q, k, v, kind)))(*low)
    yield f"attention by {kind}, bfloat16, T {T}: value and gradients", error(ours, exact), HALF


def cross_entropy(T: int) -> Iterator[Row]:
    """The loss in chunks against the whole logits in float64."""
    keys = jax.random.split(jax.random.key(1), 3)
    h, w = jax.random.normal(keys[0], (2, T, 96)), 0.2 * jax.random.normal(keys[1], (1000, 96))
    y = jax.random.randint(keys[2], (2, T), 0, 1000)

    def whole(h: jax.Array, w: jax.Array) -> jax.Array:
        return -jnp.take_along_axis(jax.nn.log_softmax(h @ w.T), y[..., None], axis=-1)[..., 0].mean()[None]

    exact = in_float64(whole, h, w)
    with jax.default_matmul_precision("highest"):
        ours = jax.jit(partial(value_and_pullback, lambda h, w: weighted_loss(h, w, y, jnp.ones(T), chunk=300)[None]))(
            h, w
        )
        single = jax.jit(lambda h, w: token_losses(h, w, y).mean()[None])(h, w)
    yield "cross-entropy in chunks, float32: value and gradients", error(ours, exact), SINGLE
    yield "cross-entropy of tokens, float32", error(single, exact[0]), SINGLE
    low = jax.jit(lambda h, w: token_losses(h.astype(jnp.bfloat16), w, y).mean()[None])(h, w)
    yield "cross-entropy of tokens, bfloat16", error(low, exact[0]), HALF


def experts() -> Iterator[Row]:
    """Ragged products of experts against dense ones."""
    from flax import nnx

    config = resolve(ModelConfig("tiny", architecture="moe"), vocabulary=64, context=64)
    x = jax.random.normal(jax.random.key(2), (4, 64, config.d_model))
    made = {}
    for kind in ("dense", "ragged"):
        module = Experts(replace(config, experts=kind), nnx.Rngs(0))
        graphdef, state = nnx.split(module)
        with jax.default_matmul_precision("highest"):
            made[kind] = jax.jit(partial(value_and_pullback, lambda x, g=graphdef, s=state: nnx.merge(g, s)(x)[0]))(x)
    yield "experts: ragged against dense, float32: value and gradient", error(made["ragged"], made["dense"]), 5 * SINGLE


def position_losses(T: int, size: str) -> Iterator[Row]:
    """Losses by position of one model, here and on the CPU."""
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, 512, (8, T + 1)).astype(np.int32)
    for architecture in ("llama", "gpt_neox", "moe", "universal", "lstm"):
        shape = ModelConfig(size, architecture=architecture, vocabulary=512, context=T)
        if architecture == "lstm":
            shape = ModelConfig(architecture="lstm", d_model=128, n_layers=2, vocabulary=512, context=T)
        losses = {}
        with jax.default_matmul_precision("highest"):
            graphdef, params = build(shape, 0)
            losses["here"] = jax.device_get(make_forward(graphdef)(params, tokens))
            with jax.default_device(jax.devices("cpu")[0]):
                cpu = build(for_platform(resolve(shape), "cpu"), 0)[0]
                losses["cpu"] = jax.device_get(make_forward(cpu, "cpu")(jax.device_get(params), tokens))
        apart = losses["here"].mean(axis=0) - losses["cpu"].mean(axis=0)
        yield f"{architecture}: losses by position, float32, here against CPU (nats)", float(abs(apart).max()), 1e-5
        low, _ = build(replace(shape, dtype="bfloat16"), 0)
        half = jax.device_get(make_forward(low)(params, tokens)).mean(axis=0)
        yield (
            f"{architecture}: losses by position, bfloat16 against CPU (nats)",
            float(abs(half - losses["cpu"].mean(0)).max()),
            0.05,
        )


def fits(curves: int) -> Iterator[Row]:
    """The engine in float32 here against float64 on the CPU, by the SSE that it reaches."""
    rng, x = np.random.default_rng(4), np.arange(1.0, 513.0)
    a1 = np.exp(rng.uniform(np.log(0.02), np.log(2.0), (curves, 1)))
    y = 1.5 / (1 + a1 * x) + 4 + 0.02 * rng.normal(size=(curves, len(x)))
    ours = jax.device_get(
        jax.jit(solve_curves)(prepare(laws.HYPERBOLIC, x, np.ones(len(x)), dtype="float32"), y.astype(np.float32))
    )
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        best = jax.device_get(jax.jit(solve_curves)(prepare(laws.HYPERBOLIC, x, np.ones(len(x))), jnp.asarray(y)))
    a0, a1, a2 = np.asarray(ours.params, np.float64).T[:, :, None]  # (curve, 1) each
    reached = np.sum((y - a0 / (1 + a1 * x) - a2) ** 2, axis=1)
    above = float((reached / best.sse - 1).max())
    yield f"fits of {curves} curves in float32: SSE above the best of float64, relative", above, 1e-5


def main() -> None:
    """Print every row; exit code 1 where one is beyond its bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small shapes, for a machine without a GPU")
    tiny = parser.parse_args().tiny
    T = 128 if tiny else 1024
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    print("| what | error | bound | |\n|---|---|---|---|")
    bad = 0
    for rows in (
        attention(T),
        cross_entropy(T),
        experts(),
        position_losses(64 if tiny else 512, "tiny"),
        fits(256 if tiny else 4096),
    ):
        for what, apart, bound in rows:
            bad += not apart <= bound
            print(f"| {what} | {apart:.1e} | {bound:.0e} | {'' if apart <= bound else 'WRONG'} |", flush=True)
    sys.exit(f"{bad} beyond their bounds" if bad else 0)


if __name__ == "__main__":
    main()
