"""One training step: a pure function of the state and a batch, compiled once, the state donated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from tsl_jax.models.build import Params, hidden, unembedding
from tsl_jax.training.objective import weighted_loss


class TrainState(NamedTuple):
    """All that a continued run needs; the data is a function of `step` alone."""

    params: Params
    opt_state: Any
    step: jax.Array  # optimizer steps taken


Metrics = dict[str, jax.Array]
StepFunction = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


def initial_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(params, jax.jit(optimizer.init)(params), jnp.zeros((), jnp.int32))


def make_step(graphdef: nnx.GraphDef, optimizer: optax.GradientTransformation, weights: np.ndarray) -> Any:
    """The step as a jitted function: state, batch (B, T + 1) int32 -> state, {"loss", "grad_norm"}.

    Args:
        graphdef: of the model.
        optimizer: its learning rate follows its own count of steps.
        weights: of positions, mean one; constants of the program.
    """
    weight_T = np.asarray(weights, np.float32)

    def loss(params: Params, batch_BxN: jax.Array) -> jax.Array:
        h_BxTxD = hidden(graphdef, params, batch_BxN[:, :-1])
        return weighted_loss(h_BxTxD, unembedding(params), batch_BxN[:, 1:], jnp.asarray(weight_T))

    def step(state: TrainState, batch_BxN: jax.Array) -> tuple[TrainState, Metrics]:
        value, gradient = jax.value_and_grad(loss)(state.params, batch_BxN)
        update, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, update)
        metrics = {"loss": value, "grad_norm": optax.tree.norm(gradient)}
        return TrainState(params, opt_state, state.step + 1), metrics  # pyright: ignore[reportArgumentType]

    return jax.jit(step, donate_argnums=0)
