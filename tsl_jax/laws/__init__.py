"""What a loss looks like: the laws, as data. Pure mathematics; imports jax only."""

from tsl_jax.laws.law import Covariates, Law
from tsl_jax.laws.position import HYPERBOLIC, POSITION_POWER
from tsl_jax.laws.scaling import KAPLAN_N, KAPLAN_ND
from tsl_jax.laws.schedule import ANNEALING, Schedule
from tsl_jax.laws.temporal import LOG, POWER, RECIPROCAL, piecewise_cosine

# By the name typed on the command line. piecewise_cosine is not here: it is made from a schedule.
BY_NAME = {
    law.name: law for law in (HYPERBOLIC, POSITION_POWER, LOG, RECIPROCAL, POWER, KAPLAN_N, KAPLAN_ND, ANNEALING)
}

__all__ = [
    "ANNEALING",
    "BY_NAME",
    "HYPERBOLIC",
    "KAPLAN_N",
    "KAPLAN_ND",
    "LOG",
    "POSITION_POWER",
    "POWER",
    "RECIPROCAL",
    "Covariates",
    "Law",
    "Schedule",
    "piecewise_cosine",
]
