"""Laws over model size and data: Kaplan et al., Scaling Laws for Neural Language Models, and Hoffmann et al.

`n_params` is without embeddings; `tokens` is the size D of the data set. This N is no number of tokens, as that of
`temporal.py` is: a fit over a dimension checks its name against `covariates`.
"""

from collections.abc import Mapping

import jax.numpy as jnp
from jax import Array

from tsl_jax.laws import families
from tsl_jax.laws.law import Covariates, Law

_KAPLAN = "Kaplan et al., arXiv 2001.08361"
_EXPONENT = (5e-3, 2.0)


def _size_and_data_bounds(x: Covariates) -> Array:
    # The constants are where the loss would be one nat, far beyond the data: L = 4 with exponent .05 is 4^20 = 1e12.
    assert isinstance(x, Mapping)
    smallest = jnp.stack([jnp.min(jnp.asarray(x[name])) for name in ("n_params", "tokens")])
    return jnp.concatenate([jnp.outer(smallest, jnp.asarray([1.0, 1e15])), jnp.asarray([_EXPONENT, _EXPONENT])])


def _size_and_data(shape: Array, x: Covariates) -> Array:
    """((N_c/N)^(alpha_N/alpha_D) + D_c/D)^alpha_D."""
    assert isinstance(x, Mapping)
    n_c, d_c, alpha_n, alpha_d = shape
    return ((n_c / x["n_params"]) ** (alpha_n / alpha_d) + d_c / x["tokens"]) ** alpha_d


def _sum_of_powers(shape: Array, x: Covariates) -> Array:
    """N^-alpha, D^-beta, 1."""
    assert isinstance(x, Mapping)
    n_params, tokens = jnp.asarray(x["n_params"]), jnp.asarray(x["tokens"])
    return jnp.stack([n_params ** -shape[0], tokens ** -shape[1], jnp.ones_like(n_params)], axis=-1)


KAPLAN_N = Law(
    name="kaplan_n",
    formula="(N_c/N)^alpha_N",
    params=("N_c", "alpha_N"),
    shapes=("alpha_N",),
    coefs=("scale",),
    basis=families.pure_power,
    bounds=families.exponent,
    covariates=("n_params",),
    params_from_raw=lambda v: {**v, "N_c": jnp.abs(v["scale"]) ** (1 / v["alpha_N"])},
    raw_from_params=lambda v: {**v, "scale": v["N_c"] ** v["alpha_N"]},
    source=f"{_KAPLAN}, eq. 1.1",
)

KAPLAN_ND = Law(
    name="kaplan_nd",
    formula="((N_c/N)^(alpha_N/alpha_D) + D_c/D)^alpha_D",
    params=("N_c", "D_c", "alpha_N", "alpha_D"),
    shapes=("N_c", "D_c", "alpha_N", "alpha_D"),
    coefs=(),
    curve=_size_and_data,
    bounds=_size_and_data_bounds,
    covariates=("n_params", "tokens"),
    covariate_params=(("n_params", ()), ("tokens", ())),
    source=f"{_KAPLAN}, eq. 1.5",
    starts=8,
)

CHINCHILLA = Law(
    name="chinchilla",
    formula="E + A/N^alpha + B/D^beta",
    params=("E", "A", "B", "alpha", "beta"),
    shapes=("alpha", "beta"),
    coefs=("A", "B", "E"),
    basis=_sum_of_powers,
    bounds=lambda x: jnp.asarray([_EXPONENT, _EXPONENT]),
    covariates=("n_params", "tokens"),
    covariate_params=(("n_params", ("alpha", "A")), ("tokens", ("beta", "B"))),
    source="Hoffmann et al., Training Compute-Optimal Large Language Models, arXiv 2203.15556, eq. 2",
    starts=8,
)
