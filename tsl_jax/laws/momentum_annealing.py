"""A law that reads the learning rate of every step, and not only tokens.

ANNEALING (Tissue et al., arXiv 2408.11029): with eta_k the learning rate of step k, S1 its sum, and m_k the smoothed
decrease,

    L(t) = L0 + A S1(t)^-alpha - C S2(t),   m_k = lambda m_{k-1} + (eta_{k-1} - eta_k),   S2 = sum_k m_k.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
from jax import Array

from tsl_jax.laws.law import Covariates, Law


def _annealing(shape: Array, x: Covariates) -> Array:
    assert isinstance(x, Mapping)
    alpha, forgetting = shape
    lr, at = jnp.asarray(x["lr"]), jnp.asarray(x["step"]).astype(int) - 1  # entry k of the history is step k + 1
    decrease = jnp.concatenate([jnp.zeros(1, lr.dtype), lr[:-1] - lr[1:]])
    # S2(t) = sum_{k <= t} decrease_k (1 - lambda^(t - k + 1)) / (1 - lambda): a decrease tells more as it ages
    age = jnp.maximum(at[:, None] - jnp.arange(len(lr)) + 1, 0)
    s2 = -jnp.expm1(age * jnp.log1p(-forgetting)) / forgetting @ decrease
    return jnp.stack([jnp.ones(at.shape, lr.dtype), jnp.cumsum(lr)[at] ** -alpha, -s2], axis=-1)


def _annealing_bounds(x: Covariates) -> Array:
    # lambda from .9999 to .5: a memory of 10,000 steps down to 2
    return jnp.asarray([[1e-2, 1e1], [1e-4, 0.5]])


ANNEALING = Law(
    name="annealing",
    formula="L0 + A S1^-alpha - C S2(lambda)",
    params=("L0", "A", "alpha", "C", "lambda"),
    shapes=("alpha", "forgetting"),
    coefs=("L0", "A", "C"),
    basis=_annealing,
    bounds=_annealing_bounds,
    covariates=("step", "lr"),
    params_from_raw=lambda v: {**v, "lambda": 1 - v["forgetting"]},
    source="Tissue et al., Scaling Law with Learning Rate Annealing, arXiv 2408.11029",
)
