"""Prior distributions of a curve before it is seen: the same for all data sets, chosen on development data alone.

Losses are measured in units of the last loss seen, clocks (tokens, or the area under the learning rate) in units of the
clock at the cut-off, so that neither nats or bits nor the length of a run matter. The development data: the public
curves multipower/25M and olmo_ladder 190M and 370M, and the project's own small runs; for SATURATING_ANNEALING all of
multipower, olmo_ladder, lr_scheduling and gemstones at constant rates, one run of llm.c, three logs of Megatron-LM, and
the small runs of seeds below 200.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log

from tsl_jax import laws
from tsl_jax.laws import Law


@dataclass(frozen=True)
class Residuals:
    """(mean, sd) of the logs of what a curve differs from its law by, relative to the last value; see `mixed_model`.

    Attributes:
        ell: in e-folds of the clock. sigma, nu: sds of the correlated and the white residual. tau: how much runs of one
            kind differ. law_error: sd of a law's error, as a share of the change that it forecasts.
    """

    ell: tuple[float, float] = (log(0.06), 0.1)
    sigma: tuple[float, float] = (log(0.0007), 1.0)
    nu: tuple[float, float] = (log(0.0003), 1.0)
    tau: tuple[float, float] = (log(0.002), 0.4)
    law_error: float = 0.15


@dataclass(frozen=True)
class Prior:
    """Prior of one law for one kind of curve.

    Attributes:
        shapes: (mean, sd) of the log of each shape. coefs: (mean, sd) of each coefficient, in units of the last value.
        drift: (sd of the drift with log n_params) of each coefficient over runs; shape_drift: of each log shape.
        centred: whether the curve is taken from its last value, not from zero. unit: of its values; None, their last.
        residuals: what the curve differs from the law by.
        peak_drift: sd of the drift with the log of the peak rate of each coefficient over runs; none: not looked for.
    """

    shapes: tuple[tuple[float, float], ...]
    coefs: tuple[tuple[float, float], ...]
    drift: tuple[float, ...]
    shape_drift: tuple[float, ...]
    centred: bool = False
    unit: float | None = None
    residuals: Residuals = Residuals()
    peak_drift: tuple[float, ...] = ()


_ALPHA = (log(0.5), 0.6)  # 95 %: .15 to 1.7; small runs go on falling slowly, long runs of large models level off
_LEVEL, _FALL, _ANNEALED = (0.8, 0.3), (0.2, 0.3), (0.06, 0.04)
_NEVER = 1e-5  # sd of a log shape that does not drift with size

# Of SATURATING_ANNEALING, by the peak rate, where that is one of an optimiser of Adam's kind: GAIN (peak/AT)^.3 is the
# share of the loss that the fall from the peak to zero gains (15 families of public runs: sd of the log .2), and
# HALF (peak/AT)^-.6 the share of the peak at which half of a very high rate's excess is reached
ABSOLUTE, AT = (1e-5, 1e-2), 1e-3
GAIN, GAIN_SD, HALF, HALF_SD = 0.06, 0.25, 2.2, 0.5
# c a step of the optimiser, measured from .004 to .2; where steps are not known, c in units of the cut-off
RATE_STEP, RATE_STEP_SD = 0.04, 1.2
# Models below SMALL parameters, with the small batches that they are trained on: they gain more, in proportion
SMALL, SMALL_GAIN, SMALL_HALF = 1e7, (0.10, 0.05), (log(10), 0.7)

_LOSS = {
    laws.AREA_ANNEALING.name: Prior(
        (_ALPHA, (log(300), 1.2)), (_LEVEL, _FALL, _ANNEALED), (0.1, 0.1, 0.02), (0.05, _NEVER)
    ),
    laws.SATURATING_ANNEALING.name: Prior(
        ((log(0.48), 0.3), (log(300), 1.2), (log(HALF), 0.7)),
        (_LEVEL, _FALL, _ANNEALED),
        (0.1, 0.1, 0.02),
        (0.05, _NEVER, _NEVER),
        residuals=Residuals(ell=(log(0.3), 0.1), sigma=(log(0.0015), 1.0), law_error=0.1),
        peak_drift=(0.02, 0.05, 0.01),
    ),
    laws.MULTI_POWER.name: Prior(
        (_ALPHA, (log(300), 1.2), (0.0, 0.5), (log(0.5), 0.5)),
        (_LEVEL, _FALL, _ANNEALED),
        (0.1, 0.1, 0.02),
        (0.05, _NEVER, _NEVER, _NEVER),
    ),
    laws.AREA_POWER.name: Prior((_ALPHA,), (_LEVEL, _FALL), (0.1, 0.1), (0.05,)),
    laws.POWER.name: Prior((_ALPHA,), (_FALL, _LEVEL), (0.1, 0.1), (0.05,)),
    laws.RECIPROCAL.name: Prior(((log(5), 1.5),), ((0.5, 1.0), (0.9, 0.3)), (0.1, 0.1), (0.05,)),
    laws.LOG.name: Prior(((log(30), 2.0),), ((-0.2, 0.3), (1.0, 1.0)), (0.1, 0.1), (0.05,)),
}


def of_loss(law: Law) -> Prior:
    """The prior of a loss."""
    return _LOSS[law.name]


def of_run(prior: Prior, law: Law, peak: float, n_params: float | None, steps: float | None) -> Prior:
    """The prior of one run's loss, from what is known of the run beside its curve.

    Args:
        prior: of the law. peak: of the learning rate. n_params: of the model. steps: optimiser steps at the full rate
            that the clock's unit takes. None: not known.
    """
    if law.name != laws.SATURATING_ANNEALING.name or prior.centred:
        return prior
    alpha, rate, half = prior.shapes
    level, fall, gain = prior.coefs
    if steps:
        rate = (log(RATE_STEP * steps), RATE_STEP_SD)
    if is_absolute(peak):
        mean = GAIN * (peak / AT) ** 0.3
        gain, half = (mean, GAIN_SD * mean), (log(HALF * (peak / AT) ** -0.6), HALF_SD)
    if n_params is not None and n_params < SMALL:
        gain, half = SMALL_GAIN, SMALL_HALF
    return replace(prior, shapes=(alpha, rate, half), coefs=(level, fall, gain))


def is_absolute(peak: float) -> bool:
    """Whether a peak can be the learning rate of an optimiser of Adam's kind, and not a factor or another's."""
    return ABSOLUTE[0] <= peak <= ABSOLUTE[1]


def of_parameter(law: Law, unit: float | None = None) -> Prior:
    """The prior of a parameter of the position law, which need not fall: about its change since the cut-off."""
    loss = of_loss(law)
    coefs = ((0.0, 1.0), (0.0, 1.0), (0.0, 0.1))[: len(loss.coefs)]
    drift = tuple(3 * sd for sd in loss.drift)
    return Prior(loss.shapes, coefs, drift, loss.shape_drift, centred=True, unit=unit)
