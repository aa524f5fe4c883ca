"""What adaptive rules are given, measured on the batches that come next: loss and gradient noise by position.

    loss_i  = mean over sequences of the loss at position i
    noise_i = n_k tr Sigma_k    for i in band k of n_k positions, interpolated linearly in log i of log noise

Sigma_k is the covariance, over sequences, of the gradient of the mean loss of band k: the covariance of gradients of
microbatches of b sequences, times b. The trace is estimated without bias from M of them,

    tr Sigma_k = b (sum_m |g_m|^2 - |sum_m g_m|^2 / M) / (M - 1).

The factor n_k makes bands of different width comparable: a mean over n_k positions with independent gradients has
1/n_k of the variance of one. (They are not quite independent; wide bands then have a little more than one position's.)
Bands are spaced evenly in log position. The sequences have not been trained on in this pass over the text.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from tsl_jax.models.build import Params, hidden, unembedding
from tsl_jax.models.sharding import platform_of
from tsl_jax.training import mesh
from tsl_jax.training.evaluation import Forward, window_losses
from tsl_jax.training.objective import weighted_loss

SEQUENCES = 64  # that the losses are measured on
BANDS, MICROBATCHES, ROWS = 8, 8, 2  # the noise: at most 8 bands of positions, in each 8 gradients of 2 sequences

Noise = Callable[..., jax.Array]


def next_sequences(batch_of: Callable[[int], np.ndarray], step: int, sequences: int) -> np.ndarray:
    """The first sequences that are trained on after `step` steps, (sequences, context + 1) int32."""
    rows = [batch_of(step)]
    while sum(map(len, rows)) < sequences:
        rows.append(batch_of(step + len(rows)))
    return np.concatenate(rows)[:sequences]


def mean_losses(forward: Forward, params: Params, tokens: np.ndarray, batch: int) -> np.ndarray:
    """Mean loss at every position in nats, (position,) float64."""
    return window_losses(forward, params, tokens, batch).astype(np.float64).mean(axis=0)


def bands(context: int) -> list[tuple[int, int]]:
    """First and last position of each band: BANDS of them, fewer in a short context."""
    edges = np.unique(np.round(np.geomspace(1, context + 1, BANDS + 1)).astype(int))
    return [(int(first), int(after) - 1) for first, after in pairwise(edges)]


def copies(devices: Mesh | None) -> int:
    """How often a sequence is repeated in its microbatch, so that devices share it evenly; its mean stays the same."""
    parts = 1 if devices is None else devices.shape["data"] * devices.shape["fsdp"]
    return parts // math.gcd(parts, ROWS)


def make_noise(graphdef: nnx.GraphDef, platform: str = "") -> Any:
    """A jitted function: params, microbatches (M, b, T + 1), weights (T,) of mean one on a band -> tr Sigma / b.

    Args:
        graphdef: of the model. platform: "cpu", "gpu" or "tpu", on which it will run; "" is this machine's.
    """

    def loss(params: Params, batch_BxN: jax.Array, weight_T: jax.Array) -> jax.Array:
        h_BxTxD = hidden(graphdef, params, batch_BxN[:, :-1])
        return weighted_loss(h_BxTxD, unembedding(params), batch_BxN[:, 1:], weight_T, platform=platform)

    def noise(params: Params, batch_MxBxN: jax.Array, weight_T: jax.Array) -> jax.Array:
        def add(carry: tuple[Params, jax.Array], batch_BxN: jax.Array) -> tuple[tuple[Params, jax.Array], None]:
            gradient = jax.grad(loss)(params, batch_BxN, weight_T)
            total, squares = carry
            return (jax.tree.map(jnp.add, total, gradient), squares + optax.tree.norm(gradient, squared=True)), None

        start = (jax.tree.map(jnp.zeros_like, params), jnp.zeros((), jnp.float32))
        (total, squares), _ = jax.lax.scan(add, start, batch_MxBxN)
        M = len(batch_MxBxN)
        return (squares - optax.tree.norm(total, squared=True) / M) / (M - 1)

    return jax.jit(noise)


def compiled_noise(graphdef: nnx.GraphDef, params: Params, context: int, devices: Mesh | None) -> Noise:
    """`make_noise`, compiled for the shapes of a run; call it where the mesh is set."""
    placed = mesh.batch_sharding(devices, stacked=True)
    batch = jax.ShapeDtypeStruct((MICROBATCHES, ROWS * copies(devices), context + 1), np.int32, sharding=placed)
    weight = jax.ShapeDtypeStruct((context,), np.float32, sharding=mesh.everywhere(devices))
    return make_noise(graphdef, platform_of(devices)).lower(params, batch, weight).compile()


def noise_by_position(noise: Noise, params: Params, tokens: np.ndarray, devices: Mesh | None) -> np.ndarray:
    """noise_i of every position, (position,) float64, from M b sequences (M b, context + 1)."""
    T = tokens.shape[1] - 1
    edges = bands(T)  # first and last position of each
    rows = np.repeat(tokens.reshape(MICROBATCHES, ROWS, T + 1), copies(devices), axis=1)
    batch = mesh.put(rows, devices)
    traces = []
    for first, last in edges:
        weight = np.zeros(T, np.float32)
        weight[first - 1 : last] = T / (last - first + 1)  # mean one, so that the loss is the mean of the band
        traces.append(ROWS * float(noise(params, batch, mesh.put_everywhere(weight, devices))))
    width = np.array([last - first + 1 for first, last in edges])
    centre = np.array([np.log(first * last) / 2 for first, last in edges])
    log_noise = np.log(np.maximum(width * np.array(traces), np.finfo(np.float32).tiny))  # a trace can be 0 or less
    return np.exp(np.interp(np.log(np.arange(1, T + 1)), centre, log_noise))
