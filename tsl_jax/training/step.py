"""One training step: a pure function of the state and a batch, compiled once, the state donated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from tsl_jax.models.build import Params, hidden_and_auxiliary, unembedding
from tsl_jax.training.objective import weighted_loss

DROPOUT = 0x64726F70  # sets its random numbers apart from those of the initial parameters


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


def make_step(
    graphdef: nnx.GraphDef, optimizer: optax.GradientTransformation, weights: np.ndarray, seed: int = 0
) -> Any:
    """The step as a jitted function: state, batch (B, T + 1) int32 -> state, metrics.

    Metrics are "loss", the cross-entropy alone, and "grad_norm"; "auxiliary" too, where the architecture adds a loss
    of its own to the objective.

    Args:
        graphdef: of the model.
        optimizer: its learning rate follows its own count of steps.
        weights: of positions, mean one; constants of the program.
        seed: of dropout, whose masks are a function of seed and step.
    """
    weight_T = np.asarray(weights, np.float32)

    def objective(params: Params, batch_BxN: jax.Array, key: jax.Array) -> tuple[jax.Array, Metrics]:
        h_BxTxD, auxiliary = hidden_and_auxiliary(graphdef, params, batch_BxN[:, :-1], key)
        loss = weighted_loss(h_BxTxD, unembedding(params), batch_BxN[:, 1:], jnp.asarray(weight_T))
        if auxiliary is None:
            return loss, {"loss": loss}
        return loss + auxiliary, {"loss": loss, "auxiliary": auxiliary}

    def step(state: TrainState, batch_BxN: jax.Array) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), DROPOUT), state.step)
        gradient, metrics = jax.grad(objective, has_aux=True)(state.params, batch_BxN, key)
        update, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, update)
        metrics["grad_norm"] = optax.tree.norm(gradient)
        return TrainState(params, opt_state, state.step + 1), metrics  # pyright: ignore[reportArgumentType]

    return jax.jit(step, donate_argnums=0)
