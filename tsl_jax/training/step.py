"""Training steps, one or several a call: a pure function of the state and batches, compiled once, the state donated.

A batch that does not fit at once is taken in several microbatches, one after the other:

    gradient = 1/A sum_a gradient of microbatch a,   the same up to rounding, as the loss is a mean over sequences

What a model adds to the loss may be no such mean (the balance of experts): it is then that of microbatches.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tsl_jax.models.build import Params, hidden_and_auxiliary, unembedding
from tsl_jax.models.sharding import BATCH, constrain, constrain_tree, data_parts, mean_over_data, shardings
from tsl_jax.training.noise_scale import estimates, squared_norms, with_squares
from tsl_jax.training.objective import weighted_loss

DROPOUT = 0x64726F70  # sets its random numbers apart from those of the initial parameters


class TrainState(NamedTuple):
    """All that a continued run needs; the data is a function of `step` alone."""

    params: Params
    opt_state: Any
    step: jax.Array  # optimizer steps taken


Metrics = dict[str, jax.Array]
Means = Callable[[Any, jax.Array, jax.Array], Any]  # of parameters, batch (B, N) and key
StepFunction = Callable[..., tuple[TrainState, Metrics]]


def initial_state(params: Params, optimizer: optax.GradientTransformation, mesh: Mesh | None = None) -> TrainState:
    """The state before the first step; on a mesh the optimizer's state lies as its parameters do."""
    if mesh is None:
        return TrainState(params, jax.jit(optimizer.init)(params), jnp.zeros((), jnp.int32))
    placed = shardings(jax.eval_shape(optimizer.init, params), mesh)
    step = jax.jit(lambda: jnp.zeros((), jnp.int32), out_shardings=NamedSharding(mesh, PartitionSpec()))()
    return TrainState(params, jax.jit(optimizer.init, out_shardings=placed)(params), step)


def accumulated(means: Means, microbatches: int) -> Means:
    """The same function, by a scan over microbatches; itself where there is one.

    Args:
        means: gives a tree of means over sequences, such as gradients and losses.
        microbatches: A, divides B. Microbatch a is rows a, a + A, ...: on a mesh each device keeps its own rows. Each
            has a key of its own.
    """
    if microbatches == 1:
        return means

    def split(params: Any, batch_BxN: jax.Array, key: jax.Array) -> Any:
        B, N = batch_BxN.shape
        batch_AxMxN = batch_BxN.reshape(B // microbatches, microbatches, N).swapaxes(0, 1)
        parts = (constrain(batch_AxMxN, None, BATCH, None), jax.random.split(key, microbatches))

        def add(total: Any, part: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, constrain_tree(means(params, *part))), None

        shapes = jax.eval_shape(means, params, batch_AxMxN[0], key)
        zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        total, _ = jax.lax.scan(add, constrain_tree(zero), parts)
        return jax.tree.map(lambda leaf: leaf / microbatches, total)

    return split


def make_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    weights: np.ndarray | None,
    steps_per_call: int = 1,
    accumulate: int = 1,
    seed: int = 0,
    platform: str = "",
    noise_scale: str = "off",
) -> Any:
    """The step as a jitted function: state, batch (B, T + 1) int32 -> state, metrics.

    Metrics are "loss", the cross-entropy alone, in the mean that the weights make of positions, and "grad_norm";
    "auxiliary" too, where the architecture adds a loss of its own to the objective, and the estimates of the gradient
    noise, "grad_square" and "grad_variance", where they are asked for.

    With several steps a call it takes batches (steps, B, T + 1) and gives metrics (steps,). On a mesh, trace it where
    the mesh is set.

    Args:
        graphdef: of the model.
        optimizer: its learning rate follows its own count of steps.
        weights: of positions, mean one; constants of the program. None: they change as the run goes, and the function
            takes them as a third argument, (T,) float32, the same in all steps of a call.
        steps_per_call: steps that one call makes, so that a device need not wait for the host between small steps.
        accumulate: microbatches that a batch is taken in, see `accumulated`.
        seed: of dropout, whose masks are a function of seed and step.
        platform: "cpu", "gpu" or "tpu", on which it will run; "" is this machine's.
        noise_scale: `TrainConfig.noise_scale`; not "off" it takes two microbatches at least, or of one two parts of
            the mesh's axis data, each of which then takes the mean of its own sequences, as a microbatch does.
    """
    by_layer = noise_scale == "by_layer"
    constant_T = None if weights is None else np.asarray(weights, np.float32)

    def objective(weight_T: Any, params: Params, batch_BxN: jax.Array, key: jax.Array) -> tuple[jax.Array, Metrics]:
        h_BxTxD, auxiliary = hidden_and_auxiliary(graphdef, params, batch_BxN[:, :-1], key)
        targets_BxT = batch_BxN[:, 1:]
        loss = weighted_loss(h_BxTxD, unembedding(params), targets_BxT, jnp.asarray(weight_T), platform=platform)
        if auxiliary is None:
            return loss, {"loss": loss}
        return loss + auxiliary, {"loss": loss, "auxiliary": auxiliary}

    def step(state: TrainState, batch_BxN: jax.Array, weight_T: Any = constant_T) -> tuple[TrainState, Metrics]:
        weighted = partial(objective, weight_T)
        of_part = jax.grad(weighted, has_aux=True)
        parts = accumulate
        if noise_scale != "off":
            of_part = with_squares(of_part, by_layer)
            if accumulate == 1:
                of_part, parts = mean_over_data(of_part), data_parts()
        gradient_and_metrics = accumulated(of_part, accumulate)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), DROPOUT), state.step)
        gradient, metrics = gradient_and_metrics(state.params, batch_BxN, key)
        gradient = constrain_tree(gradient)
        if noise_scale != "off":
            tokens = float(batch_BxN[:, 1:].size)
            metrics |= estimates(metrics.pop("squares"), squared_norms(gradient, by_layer), tokens / parts, tokens)
        update, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        state = TrainState(optax.apply_updates(state.params, update), opt_state, state.step + 1)  # pyright: ignore[reportArgumentType]
        return constrain_tree(state), metrics | {"grad_norm": optax.tree.norm(gradient)}

    def steps(state: TrainState, batch_KxBxN: jax.Array, weight_T: Any = constant_T) -> tuple[TrainState, Metrics]:
        return jax.lax.scan(lambda state, batch_BxN: step(state, batch_BxN, weight_T), state, batch_KxBxN)

    return jax.jit(step if steps_per_call == 1 else steps, donate_argnums=0)
