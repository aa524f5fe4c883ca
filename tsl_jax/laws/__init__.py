"""What a loss looks like: the laws, as data. Pure mathematics, imports jax only.

law: the record `Law`, and what a law reads (`Covariates`).
families: curves of one shape that several laws share, each with the range of its shape.
position: laws over token position (hyperbolic, power, exponential, logarithm).
temporal: laws over tokens seen, and the piecewise cosine of a schedule.
annealing: laws that read the learning rate (momentum annealing, multi-power).
scaling: laws over model size, data, compute, batch and steps (Kaplan, Chinchilla).
functions: a law from a plain Python function.
"""

from tsl_jax.laws.annealing import AREA_ANNEALING, AREA_POWER, MOMENTUM_ANNEALING, MULTI_POWER, SATURATING_ANNEALING
from tsl_jax.laws.functions import from_function
from tsl_jax.laws.law import Covariates, Law
from tsl_jax.laws.position import HYPERBOLIC, POSITION_EXPONENTIAL, POSITION_LOG, POSITION_POWER
from tsl_jax.laws.scaling import (
    CHINCHILLA,
    CRITICAL_BATCH,
    KAPLAN_C,
    KAPLAN_C_MIN,
    KAPLAN_D,
    KAPLAN_N,
    KAPLAN_ND,
    KAPLAN_NS,
    STEPS_TOKENS,
)
from tsl_jax.laws.temporal import LOG, LOGARITHMIC, POWER, POWER_PURE, RECIPROCAL, piecewise_cosine
from tsl_jax.schedules import Schedule

_NAMED = (
    *(HYPERBOLIC, POSITION_POWER, POSITION_EXPONENTIAL, POSITION_LOG),
    *(LOG, RECIPROCAL, POWER, POWER_PURE, LOGARITHMIC, MOMENTUM_ANNEALING),
    *(KAPLAN_N, KAPLAN_D, KAPLAN_C, KAPLAN_C_MIN, KAPLAN_ND, KAPLAN_NS, STEPS_TOKENS, CRITICAL_BATCH, CHINCHILLA),
)
# By the name typed on the command line. Not here: piecewise_cosine, which is made from a schedule.
BY_NAME = {law.name: law for law in _NAMED}

__all__ = [
    "AREA_ANNEALING",
    "AREA_POWER",
    "BY_NAME",
    "CHINCHILLA",
    "CRITICAL_BATCH",
    "HYPERBOLIC",
    "KAPLAN_C",
    "KAPLAN_C_MIN",
    "KAPLAN_D",
    "KAPLAN_N",
    "KAPLAN_ND",
    "KAPLAN_NS",
    "LOG",
    "LOGARITHMIC",
    "MOMENTUM_ANNEALING",
    "MULTI_POWER",
    "POSITION_EXPONENTIAL",
    "POSITION_LOG",
    "POSITION_POWER",
    "POWER",
    "POWER_PURE",
    "RECIPROCAL",
    "SATURATING_ANNEALING",
    "STEPS_TOKENS",
    "Covariates",
    "Law",
    "Schedule",
    "from_function",
    "piecewise_cosine",
]
