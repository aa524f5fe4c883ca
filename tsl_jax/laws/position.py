"""Laws over token position i (tokens of context, from 1): how the loss falls as context grows.

HYPERBOLIC is the dynamic hyperbolic law of the Temporal Scaling Law (Xiong et al., arXiv 2404.17785), POSITION_POWER
its alternative (Kaplan et al., arXiv 2001.08361, appendix D.5); POSITION_EXPONENTIAL and POSITION_LOG are controls with
as many parameters. All describe positions 1..n: fits over different n are not comparable, and the constant is not the
loss at infinite context.
"""

import jax.numpy as jnp

from tsl_jax.laws import families
from tsl_jax.laws.law import Law

HYPERBOLIC = Law(
    name="hyperbolic",
    formula="a0/(1 + a1 i) + a2",
    params=("a0", "a1", "a2"),
    shapes=("a1",),
    coefs=("a0", "a2"),
    basis=families.hyperbola,
    bounds=families.rate,
    covariates=("position",),
    decreasing_coefs=("a0",),
    source="Xiong et al., Temporal Scaling Law for Large Language Models, arXiv 2404.17785",
)

POSITION_POWER = Law(
    name="position_power",
    formula="c0 + c1 i^-c2",
    params=("c0", "c1", "c2"),
    shapes=("c2",),
    coefs=("c1", "c0"),
    basis=families.power,
    bounds=families.exponent,
    covariates=("position",),
    decreasing_coefs=("c1",),
    source="Kaplan et al., Scaling Laws for Neural Language Models, arXiv 2001.08361, appendix D.5",
)

POSITION_EXPONENTIAL = Law(
    name="position_exponential",
    formula="c0 + c1 exp(-c2 i)",
    params=("c0", "c1", "c2"),
    shapes=("c2",),
    coefs=("c1", "c0"),
    basis=families.exponential,
    bounds=families.decay,
    covariates=("position",),
    decreasing_coefs=("c1",),
    # c1 exp(-c2 (i - i0)) = (c1 exp(c2 i0)) exp(-c2 i)
    shift=lambda shape, x0: jnp.stack([jnp.exp(shape[0] * x0), jnp.ones_like(shape[0])]),
    source="a control: a scale of context instead of none",
)

POSITION_LOG = Law(
    name="position_log",
    formula="c0 - c1 log(1 + c2 i)",
    params=("c0", "c1", "c2"),
    shapes=("c2",),
    coefs=("c1", "c0"),
    basis=lambda shape, x: families.logarithm(shape, x) * jnp.asarray([[-1.0, 1.0]]),
    bounds=families.rate,
    covariates=("position",),
    decreasing_coefs=("c1",),
    source="a control: a loss that falls without end",
)
