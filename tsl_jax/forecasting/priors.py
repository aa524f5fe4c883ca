"""Prior distributions of a curve before it is seen: the same for all data sets, chosen on development data alone.

Losses are measured in units of the last loss seen, clocks (tokens, or the area under the learning rate) in units of the
clock at the cut-off, so that neither nats or bits nor the length of a run matter. The development data: the public
curves multipower/25M and olmo_ladder 190M and 370M, and the project's own small runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

from tsl_jax import laws
from tsl_jax.laws import Law


@dataclass(frozen=True)
class Prior:
    """Prior of one law for one kind of curve.

    Attributes:
        shapes: (mean, sd) of the log of each shape. coefs: (mean, sd) of each coefficient, in units of the last value.
        drift: (sd of the drift with log n_params) of each coefficient over runs; shape_drift: of each log shape.
        centred: whether the curve is taken from its last value, not from zero. unit: of its values; None, their last.
    """

    shapes: tuple[tuple[float, float], ...]
    coefs: tuple[tuple[float, float], ...]
    drift: tuple[float, ...]
    shape_drift: tuple[float, ...]
    centred: bool = False
    unit: float | None = None


# Residuals, relative to the last value: logs of ell, sigma, nu; and tau, how much runs of one kind differ.
ELL, SIGMA, NU, TAU = (log(0.06), 0.1), (log(0.0007), 1.0), (log(0.0003), 1.0), (log(0.002), 0.4)
MODEL_ERROR = 0.15  # sd of a law's error, as a share of the change that it forecasts
_ALPHA = (log(0.5), 0.6)  # 95 %: .15 to 1.7; small runs go on falling slowly, long runs of large models level off
_LEVEL, _FALL, _ANNEALED = (0.8, 0.3), (0.2, 0.3), (0.06, 0.04)
_NEVER = 1e-5  # sd of a log shape that does not drift with size

_LOSS = {
    laws.AREA_ANNEALING.name: Prior(
        (_ALPHA, (log(300), 1.2)), (_LEVEL, _FALL, _ANNEALED), (0.1, 0.1, 0.02), (0.05, _NEVER)
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


def of_parameter(law: Law, unit: float | None = None) -> Prior:
    """The prior of a parameter of the position law, which need not fall: about its change since the cut-off."""
    loss = of_loss(law)
    coefs = ((0.0, 1.0), (0.0, 1.0), (0.0, 0.1))[: len(loss.coefs)]
    drift = tuple(3 * sd for sd in loss.drift)
    return Prior(loss.shapes, coefs, drift, loss.shape_drift, centred=True, unit=unit)
