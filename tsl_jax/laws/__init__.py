"""What a loss looks like: the laws, as data. Pure mathematics; imports jax only."""

from tsl_jax.laws.law import Covariates, Law
from tsl_jax.laws.momentum_annealing import ANNEALING
from tsl_jax.laws.multi_power import AREA_ANNEALING, AREA_POWER, MULTI_POWER
from tsl_jax.laws.position import HYPERBOLIC, POSITION_EXPONENTIAL, POSITION_LOG, POSITION_POWER
from tsl_jax.laws.scaling import CHINCHILLA, KAPLAN_N, KAPLAN_ND
from tsl_jax.laws.temporal import COSINE, LOG, POWER, RECIPROCAL, cosine, piecewise_cosine
from tsl_jax.schedules import Schedule

_NAMED = (
    *(HYPERBOLIC, POSITION_POWER, POSITION_EXPONENTIAL, POSITION_LOG),
    *(LOG, RECIPROCAL, POWER, COSINE, KAPLAN_N, KAPLAN_ND, CHINCHILLA, ANNEALING),
)
# By the name typed on the command line. Not here: cosine and piecewise_cosine, made from a number and a schedule.
BY_NAME = {law.name: law for law in _NAMED}

__all__ = [
    "ANNEALING",
    "AREA_ANNEALING",
    "AREA_POWER",
    "BY_NAME",
    "CHINCHILLA",
    "COSINE",
    "HYPERBOLIC",
    "KAPLAN_N",
    "KAPLAN_ND",
    "LOG",
    "MULTI_POWER",
    "POSITION_EXPONENTIAL",
    "POSITION_LOG",
    "POSITION_POWER",
    "POWER",
    "RECIPROCAL",
    "Covariates",
    "Law",
    "Schedule",
    "cosine",
    "piecewise_cosine",
]
