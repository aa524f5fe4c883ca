"""Laws of a loss over tokens that know the learning rate: they read the covariates of `forecasting/lr_history.py`.

With S the area under the learning rate (over its peak), d_k its decreases, S_k and eta_k area and rate where they end:

    AREA_POWER       L0 + A S^-alpha
    AREA_ANNEALING   L0 + A S^-alpha - C sum_{S_k < S} d_k (1 - 1/(1 + c (S - S_k) eta_k^-1/2))
    MULTI_POWER      L0 + A S^-alpha - C sum_{S_k < S} d_k (1 - (1 + c (S - S_k) eta_k^-gamma)^-beta)

AREA_ANNEALING is the multi-power law with beta = 1 and gamma = 1/2: on public runs the full law fits siblings better
and forecasts worse. At a constant rate all three are the same power law.
Source: Luo et al., A Multi-Power Law for Loss Curve Prediction, arXiv 2503.12811, with the warm-up inside the area.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
from jax import Array

from tsl_jax.laws.law import Covariates, Law

_LUO = "Luo et al., arXiv 2503.12811"
_COVARIATES = ("area", "decrease", "at_area", "to_rate")
_ALPHA, _RATE = (5e-2, 3.0), (1e-1, 1e5)


def _powers(alpha: Array, area: Array) -> tuple[Array, Array]:
    return jnp.ones_like(area), area**-alpha


def _annealed(x: Mapping[str, Array], rate: Array, beta: Array | float, gamma: Array | float) -> Array:
    since = jnp.maximum(x["area"][:, None] - x["at_area"], 0) * x["to_rate"] ** -gamma
    left = 1 / (1 + rate * since) if isinstance(beta, float) and beta == 1 else (1 + rate * since) ** -beta
    return (1 - left) @ x["decrease"]


def _area_power(shape: Array, x: Covariates) -> Array:
    assert isinstance(x, Mapping)
    return jnp.stack(_powers(shape[0], x["area"]), axis=-1)


def _area_annealing(shape: Array, x: Covariates) -> Array:
    assert isinstance(x, Mapping)
    return jnp.stack([*_powers(shape[0], x["area"]), -_annealed(x, shape[1], 1.0, 0.5)], axis=-1)


def _multi_power(shape: Array, x: Covariates) -> Array:
    assert isinstance(x, Mapping)
    return jnp.stack([*_powers(shape[0], x["area"]), -_annealed(x, shape[1], shape[2], shape[3])], axis=-1)


AREA_POWER = Law(
    name="area_power",
    formula="L0 + A S^-alpha",
    params=("L0", "A", "alpha"),
    shapes=("alpha",),
    coefs=("L0", "A"),
    basis=_area_power,
    bounds=lambda x: jnp.asarray([_ALPHA]),
    covariates=("area",),
    source=f"{_LUO}, without its annealing term",
)

AREA_ANNEALING = Law(
    name="area_annealing",
    formula="L0 + A S^-alpha - C sum_k d_k (1 - 1/(1 + c (S - S_k) eta_k^-1/2))",
    params=("L0", "A", "alpha", "C", "c"),
    shapes=("alpha", "c"),
    coefs=("L0", "A", "C"),
    basis=_area_annealing,
    bounds=lambda x: jnp.asarray([_ALPHA, _RATE]),
    covariates=_COVARIATES,
    source=f"{_LUO}, with beta = 1 and gamma = 1/2",
)

MULTI_POWER = Law(
    name="multi_power",
    formula="L0 + A S^-alpha - C sum_k d_k (1 - (1 + c (S - S_k) eta_k^-gamma)^-beta)",
    params=("L0", "A", "alpha", "C", "c", "beta", "gamma"),
    shapes=("alpha", "c", "beta", "gamma"),
    coefs=("L0", "A", "C"),
    basis=_multi_power,
    bounds=lambda x: jnp.asarray([_ALPHA, _RATE, (5e-2, 5.0), (1e-2, 2.0)]),
    covariates=_COVARIATES,
    source=_LUO,
)
