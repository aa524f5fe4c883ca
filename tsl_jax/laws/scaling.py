"""Laws over model size, data, compute, batch and steps: Kaplan et al., Scaling Laws for Neural Language Models, and
Hoffmann et al., Training Compute-Optimal Large Language Models.

`n_params` is without embeddings; `tokens` is the size D of the data set, or the tokens seen where each is seen once.
This N is no number of tokens, as that of `temporal.py` is: a fit over a dimension checks its name against `covariates`.
Compute is in PF-days, 8.64e19 FLOPs; batches are in tokens. `Law.published` has the constants of the papers, which
belong to their text and tokenizer: exponents carry over, scales do not.
"""

from collections.abc import Mapping

import jax.numpy as jnp
from jax import Array

from tsl_jax.laws import families
from tsl_jax.laws.law import Covariates, Law

_KAPLAN = "Kaplan et al., arXiv 2001.08361"
_HOFFMANN = "Hoffmann et al., Training Compute-Optimal Large Language Models, arXiv 2203.15556"
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


def _size_and_steps(shape: Array, x: Covariates) -> Array:
    """N^-alpha_N, S_min^-alpha_S."""
    assert isinstance(x, Mapping)
    n_params, steps = jnp.asarray(x["n_params"]), jnp.asarray(x["steps_min"])
    return jnp.stack([n_params ** -shape[0], steps ** -shape[1]], axis=-1)


def _time_against_data(shape: Array, x: Covariates) -> Array:
    """S/(S - S_min), the tokens E over E_min."""
    steps = jnp.asarray(x)
    return (steps / (steps - shape[0]))[:, None]


def _inverse_power(shape: Array, x: Covariates) -> Array:
    """L^(-1/alpha)."""
    return (jnp.asarray(x) ** (-1 / shape[0]))[:, None]


def _sum_of_powers(shape: Array, x: Covariates) -> Array:
    """N^-alpha, D^-beta, 1."""
    assert isinstance(x, Mapping)
    n_params, tokens = jnp.asarray(x["n_params"]), jnp.asarray(x["tokens"])
    return jnp.stack([n_params ** -shape[0], tokens ** -shape[1], jnp.ones_like(n_params)], axis=-1)


def _pure_power(
    name: str, scale: str, exponent: str, covariate: str, where: str, reference: tuple[float, float]
) -> Law:
    """(scale/x)^exponent."""
    symbol = scale.partition("_")[0]
    return Law(
        name=name,
        formula=f"({scale}/{symbol})^{exponent}",
        params=(scale, exponent),
        shapes=(exponent,),
        coefs=("scale",),
        basis=families.pure_power,
        bounds=families.exponent,
        covariates=(covariate,),
        params_from_raw=lambda v: {exponent: v[exponent], scale: jnp.abs(v["scale"]) ** (1 / v[exponent])},
        raw_from_params=lambda v: {exponent: v[exponent], "scale": v[scale] ** v[exponent]},
        source=f"{_KAPLAN}, {where}",
        reference=tuple(zip((scale, exponent), reference, strict=True)),
    )


KAPLAN_N = _pure_power("kaplan_n", "N_c", "alpha_N", "n_params", "eq. 1.1", (8.8e13, 0.076))
KAPLAN_D = _pure_power("kaplan_d", "D_c", "alpha_D", "tokens", "eq. 1.2", (5.4e13, 0.095))
KAPLAN_C = _pure_power("kaplan_c", "C_c", "alpha_C", "pf_days", "fig. 13, at a fixed batch", (1.6e7, 0.057))
KAPLAN_C_MIN = _pure_power("kaplan_c_min", "C_c", "alpha_C_min", "pf_days_min", "eq. 1.3", (3.1e8, 0.050))

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
    reference=(("N_c", 6.4e13), ("D_c", 1.8e13), ("alpha_N", 0.076), ("alpha_D", 0.103)),
)

KAPLAN_NS = Law(
    name="kaplan_ns",
    formula="(N_c/N)^alpha_N + (S_c/S_min)^alpha_S",
    params=("N_c", "S_c", "alpha_N", "alpha_S"),
    shapes=("alpha_N", "alpha_S"),
    coefs=("scale_N", "scale_S"),
    basis=_size_and_steps,
    bounds=lambda x: jnp.asarray([_EXPONENT, _EXPONENT]),
    covariates=("n_params", "steps_min"),
    covariate_params=(("n_params", ("alpha_N", "scale_N")), ("steps_min", ("alpha_S", "scale_S"))),
    params_from_raw=lambda v: {
        **{name: v[name] for name in ("alpha_N", "alpha_S")},
        **{f"{k}_c": jnp.abs(v[f"scale_{k}"]) ** (1 / v[f"alpha_{k}"]) for k in "NS"},
    },
    raw_from_params=lambda v: {
        **{name: v[name] for name in ("alpha_N", "alpha_S")},
        **{f"scale_{k}": v[f"{k}_c"] ** v[f"alpha_{k}"] for k in "NS"},
    },
    source=f"{_KAPLAN}, eq. 1.6",
    starts=8,
    reference=(("N_c", 6.5e13), ("S_c", 2.1e3), ("alpha_N", 0.077), ("alpha_S", 0.76)),
)

# At one loss, runs of other batch sizes: tokens E against steps S. At the critical batch S = 2 S_min and E = 2 E_min.
STEPS_TOKENS = Law(
    name="steps_tokens",
    formula="E_min S/(S - S_min)",
    params=("S_min", "E_min"),
    shapes=("S_min",),
    coefs=("E_min",),
    basis=_time_against_data,
    bounds=lambda x: jnp.min(jnp.asarray(x)) * jnp.asarray([[1e-3, 1 - 1e-6]]),
    covariates=("steps",),
    source=f"{_KAPLAN}, eq. 5.1: (S/S_min - 1)(E/E_min - 1) = 1",
)

CRITICAL_BATCH = Law(
    name="critical_batch",
    formula="B_star/L^(1/alpha_B)",
    params=("B_star", "alpha_B"),
    shapes=("alpha_B",),
    coefs=("B_star",),
    basis=_inverse_power,
    bounds=lambda x: jnp.asarray([(5e-2, 2.0)]),
    covariates=("loss",),
    source=f"{_KAPLAN}, eq. 1.4",
    reference=(("B_star", 2e8), ("alpha_B", 0.21)),
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
    source=f"{_HOFFMANN}, eq. 2; constants as corrected by Besiroglu et al., arXiv 2404.10102",
    starts=8,
    reference=(("E", 1.8172), ("A", 482.01), ("B", 2085.43), ("alpha", 0.3478), ("beta", 0.3658)),
)
