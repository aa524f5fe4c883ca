"""Training steps, one or several a call: a pure function of the state and batches, compiled once, the state donated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tsl_jax.models.build import Params, hidden, unembedding
from tsl_jax.models.sharding import constrain_tree, shardings
from tsl_jax.training.accumulate import accumulated
from tsl_jax.training.objective import weighted_loss


class TrainState(NamedTuple):
    """All that a continued run needs; the data is a function of `step` alone."""

    params: Params
    opt_state: Any
    step: jax.Array  # optimizer steps taken


Metrics = dict[str, jax.Array]
StepFunction = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


def initial_state(params: Params, optimizer: optax.GradientTransformation, mesh: Mesh | None = None) -> TrainState:
    """The state before the first step; on a mesh the optimizer's state lies as its parameters do."""
    if mesh is None:
        return TrainState(params, jax.jit(optimizer.init)(params), jnp.zeros((), jnp.int32))
    placed = shardings(jax.eval_shape(optimizer.init, params), mesh)
    step = jax.device_put(jnp.zeros((), jnp.int32), NamedSharding(mesh, PartitionSpec()))
    return TrainState(params, jax.jit(optimizer.init, out_shardings=placed)(params), step)


def make_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    weights: np.ndarray,
    steps_per_call: int = 1,
    accumulate: int = 1,
) -> Any:
    """The step as a jitted function: state, batch (B, T + 1) int32 -> state, {"loss", "grad_norm"}.

    With several steps a call it takes batches (steps, B, T + 1) and gives metrics (steps,). On a mesh, trace it where
    the mesh is set.

    Args:
        graphdef: of the model.
        optimizer: its learning rate follows its own count of steps.
        weights: of positions, mean one; constants of the program.
        steps_per_call: steps that one call makes, so that a device need not wait for the host between small steps.
        accumulate: microbatches that a batch is taken in, see `accumulate`.
    """
    weight_T = np.asarray(weights, np.float32)

    def loss(params: Params, batch_BxN: jax.Array) -> jax.Array:
        h_BxTxD = hidden(graphdef, params, batch_BxN[:, :-1])
        return weighted_loss(h_BxTxD, unembedding(params), batch_BxN[:, 1:], jnp.asarray(weight_T))

    value_and_gradient = accumulated(jax.value_and_grad(loss), accumulate)

    def step(state: TrainState, batch_BxN: jax.Array) -> tuple[TrainState, Metrics]:
        value, gradient = value_and_gradient(state.params, batch_BxN)
        gradient = constrain_tree(gradient)
        update, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, update)
        metrics = {"loss": value, "grad_norm": optax.tree.norm(gradient)}
        return constrain_tree(TrainState(params, opt_state, state.step + 1)), metrics  # pyright: ignore[reportArgumentType]

    def steps(state: TrainState, batch_KxBxN: jax.Array) -> tuple[TrainState, Metrics]:
        return jax.lax.scan(step, state, batch_KxBxN)

    return jax.jit(step if steps_per_call == 1 else steps, donate_argnums=0)
