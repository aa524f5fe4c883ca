"""Laws over tokens seen N: how a parameter of the position law, or the mean loss, moves during training.

LOG, RECIPROCAL and the piecewise cosine are the temporal laws of a0, a1 and a2 (Xiong et al., arXiv 2404.17785).
Their exact form is *reconstructed*: the paper says logarithmic, hyperbolic, and piecewise with a cosine. POWER is the
fair baseline, a power law with a constant; POWER_PURE and LOGARITHMIC are the paper's own baselines for the mean loss.
N counts tokens, so that a rate is per token.
"""

from functools import lru_cache

import jax.numpy as jnp
from jax import Array

from tsl_jax.laws import families
from tsl_jax.laws.law import Covariates, Law
from tsl_jax.schedules import Schedule

_XIONG = "Xiong et al., arXiv 2404.17785 (form reconstructed)"

LOG = Law(
    name="log",
    formula="alpha0 log(1 + alpha1 N) + alpha2",
    params=("alpha0", "alpha1", "alpha2"),
    shapes=("alpha1",),
    coefs=("alpha0", "alpha2"),
    basis=families.logarithm,
    bounds=families.rate,
    covariates=("tokens",),
    source=_XIONG,
)

RECIPROCAL = Law(
    name="reciprocal",
    formula="beta0/(1 + beta1 N) + beta2",
    params=("beta0", "beta1", "beta2"),
    shapes=("beta1",),
    coefs=("beta0", "beta2"),
    basis=families.hyperbola,
    bounds=families.rate,
    covariates=("tokens",),
    source=_XIONG,
)

POWER = Law(
    name="power",
    formula="delta0 N^-delta1 + delta2",
    params=("delta0", "delta1", "delta2"),
    shapes=("delta1",),
    coefs=("delta0", "delta2"),
    basis=families.power,
    bounds=families.exponent,
    covariates=("tokens",),
    source="a power law with a constant: the baseline of Xiong et al., arXiv 2404.17785, made fair",
)

POWER_PURE = Law(
    name="power_pure",
    formula="epsilon0 N^-epsilon1",
    params=("epsilon0", "epsilon1"),
    shapes=("epsilon1",),
    coefs=("epsilon0",),
    basis=families.pure_power,
    bounds=families.exponent,
    covariates=("tokens",),
    source="the coarse power law of Xiong et al., arXiv 2404.17785",
)

LOGARITHMIC = Law(
    name="logarithmic",
    formula="zeta0 log N + zeta1",
    params=("zeta0", "zeta1"),
    shapes=(),
    coefs=("zeta0", "zeta1"),
    basis=lambda shape, x: jnp.stack([jnp.log(jnp.asarray(x)), jnp.ones_like(jnp.asarray(x))], axis=-1),
    bounds=lambda x: jnp.zeros((0, 2)),
    covariates=("tokens",),
    source="baseline of Xiong et al., arXiv 2404.17785",
)


def piecewise_cosine(schedule: Schedule, n_sep: float | None = None) -> Law:
    """The temporal law of a2 under a cosine schedule, with frequency and phase taken from the schedule.

        gamma0/(1 + gamma1 N) + gamma2              for N < N_sep
        gamma3 cos(gamma4 N + gamma5) + gamma6      for N >= N_sep

    Value and slope are continuous at N_sep, which leaves two coefficients: with phi = gamma4 N_sep + gamma5 and s the
    slope before, gamma3 = -s/(gamma4 sin phi) and gamma6 = value - gamma3 cos phi. N_sep is the one given, or searched
    among the tokens that were observed, never beyond; near sin phi = 0 (the end of warm-up, the end of the run) it is
    not identified.

    Source: Xiong et al., arXiv 2404.17785 (form reconstructed).

    Raises:
        ValueError: if the schedule is not a cosine.
    """
    # Laws are compared by identity: without n_sep the cache must return one law, whether it was left out or None.
    return _piecewise_cosine(schedule, n_sep)


@lru_cache(maxsize=64)
def _piecewise_cosine(schedule: Schedule, n_sep: float | None) -> Law:
    if schedule.kind != "cosine":
        raise ValueError(
            f"piecewise_cosine: expected a cosine schedule, found {schedule.kind!r}; use RECIPROCAL for a2"
        )
    given = n_sep
    gamma4 = jnp.pi / (schedule.total_tokens - schedule.warmup_tokens)
    gamma5 = -gamma4 * schedule.warmup_tokens

    def amplitude(gamma1: Array, n_sep: Array) -> Array:
        slope = -gamma1 / (1 + gamma1 * n_sep) ** 2  # of the hyperbola with gamma0 = 1
        return -slope / (gamma4 * jnp.sin(gamma4 * n_sep + gamma5))

    def basis(shape: Array, x: Covariates) -> Array:
        tokens, gamma1, n_sep = jnp.asarray(x), shape[0], shape[1] if given is None else jnp.asarray(float(given))
        before = 1 / (1 + gamma1 * tokens)
        turned = jnp.cos(gamma4 * tokens + gamma5) - jnp.cos(gamma4 * n_sep + gamma5)
        after = 1 / (1 + gamma1 * n_sep) + amplitude(gamma1, n_sep) * turned
        return jnp.stack([jnp.where(tokens < n_sep, before, after), jnp.ones_like(tokens)], axis=-1)

    def bounds(x: Covariates) -> Array:
        if given is not None:
            return families.rate(x)
        tokens = jnp.asarray(x)
        # A tenth of a radian away from both ends of the cosine, where its amplitude blows up, as far as tokens reach.
        low, high = (schedule.warmup_tokens + 0.1 / gamma4, schedule.total_tokens - 0.1 / gamma4)
        last = jnp.minimum(jnp.max(tokens), high)
        first = jnp.minimum(jnp.clip(jnp.min(tokens), low, high), last * (1 - 1e-6))
        return jnp.concatenate([families.rate(x), jnp.stack([first, last])[None]])

    def params_from_raw(v):
        v = v if given is None else {**v, "n_sep": jnp.full_like(v["gamma1"], given)}
        gamma3 = v["gamma0"] * amplitude(v["gamma1"], v["n_sep"])
        level = v["gamma0"] / (1 + v["gamma1"] * v["n_sep"]) + v["gamma2"]
        gamma6 = level - gamma3 * jnp.cos(gamma4 * v["n_sep"] + gamma5)
        fixed = {"gamma4": jnp.full_like(gamma3, gamma4), "gamma5": jnp.full_like(gamma3, gamma5)}
        return {**v, **fixed, "gamma3": gamma3, "gamma6": gamma6}

    return Law(
        name="piecewise_cosine",
        formula="gamma0/(1 + gamma1 N) + gamma2 until n_sep, then gamma3 cos(gamma4 N + gamma5) + gamma6",
        params=("gamma0", "gamma1", "gamma2", "gamma3", "gamma4", "gamma5", "gamma6", "n_sep"),
        shapes=("gamma1", "n_sep") if given is None else ("gamma1",),
        coefs=("gamma0", "gamma2"),
        basis=basis,
        bounds=bounds,
        params_from_raw=params_from_raw,
        raw_from_params=lambda v: v,  # the others follow from the raw ones, which are published too
        covariates=("tokens",),
        source=_XIONG,
    )
