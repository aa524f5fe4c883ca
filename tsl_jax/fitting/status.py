"""What can be said of the fit of one curve: a status for every curve, each with a sentence.

Several statements may be true of a curve; the worst is the status. Nothing in a batch raises: a bad curve gets a status
and leaves its neighbours untouched.
"""

from __future__ import annotations

from enum import IntEnum

import jax.numpy as jnp
from jax import Array

from tsl_jax.laws import Law

WEAK = 0.2  # standard error of a log shape beyond which Wald intervals of the shape no longer cover
EDGE = 1e-4  # share of the range of a shape that counts as its bound


class Status(IntEnum):
    """How the fit of one curve ended."""

    CONVERGED = 0
    WEAKLY_IDENTIFIED = 1
    LOWER_BOUND = 2
    UPPER_BOUND = 3
    STRAIGHT_LINE = 4
    FLAT = 5
    RISING = 6
    TOO_FEW_POINTS = 7
    NON_FINITE = 8
    MAX_ITERATIONS = 9

    @property
    def short(self) -> str:
        """The name in files and tables, such as `lower_bound`."""
        return self.name.lower()

    def message(self) -> str:
        """One sentence: what it means, and what to do."""
        return _SENTENCES[self]


_SENTENCES = {
    Status.CONVERGED: "interior optimum, shape identified",
    Status.WEAKLY_IDENTIFIED: "interior optimum, but the log of the shape is known no better than to 0.2: "
    "trust the curve, not the parameters",
    Status.LOWER_BOUND: "the shape is at its lower bound: the data look like the limit of the law",
    Status.UPPER_BOUND: "the shape is at its upper bound: the data settle before their first points can show how",
    Status.STRAIGHT_LINE: "a straight line fits as well: only slope and level are known",
    Status.FLAT: "the data are constant: any shape fits; the level alone is known",
    Status.RISING: "the fitted curve rises where the law falls: check the sign and the order of the data",
    Status.TOO_FEW_POINTS: "no more points than parameters: nothing can be said about errors; add points",
    Status.NON_FINITE: "NaN or infinity in the data: give these points weight zero, or mend them",
    Status.MAX_ITERATIONS: "the solver stopped at its limit of iterations: scale the data, or choose another method",
}
USABLE = (Status.CONVERGED, Status.WEAKLY_IDENTIFIED)  # the curve is known, if not always the parameters
UNSOLVED = (Status.NON_FINITE, Status.TOO_FEW_POINTS)  # no number of the fit means anything


def judge(
    law: Law,
    log_bounds: Array,
    *,
    log_shape: Array,
    coef: Array,
    log_error: Array,
    count: Array,
    size: Array,
    sst: Array,
    line: Array,
    finite: Array,
    converged: Array,
) -> Array:
    """The status of each curve, int8.

    Args:
        log_bounds: (shape, 2). The curve is the last axis of all that follow.
        log_shape: (shape, curve). coef: (coef, curve). log_error: (shape, curve), standard errors of the log shapes.
        count: points of positive weight. size: weighted sum of squares of y. sst: about the weighted mean.
        line: a straight line fits as well. finite: the data are. converged: the solver's stopping rule was met.
    """
    width = log_bounds[:, 1:] - log_bounds[:, :1]
    at_low = jnp.any(log_shape <= log_bounds[:, :1] + EDGE * width, axis=0)
    at_high = jnp.any(log_shape >= log_bounds[:, 1:] - EDGE * width, axis=0)
    rounding = (64 * jnp.finfo(coef.dtype).eps) ** 2
    falling = [law.coefs.index(name) for name in law.decreasing_coefs]
    rising = jnp.any(coef[jnp.asarray(falling, int)] < 0, axis=0) if falling else jnp.zeros(finite.shape, bool)
    cases = {
        Status.NON_FINITE: ~finite,
        Status.TOO_FEW_POINTS: count <= len(law.raw_params),
        Status.FLAT: sst <= rounding * size,
        Status.RISING: rising,
        Status.STRAIGHT_LINE: (at_low | at_high) & line,
        Status.LOWER_BOUND: at_low,
        Status.UPPER_BOUND: at_high,
        Status.MAX_ITERATIONS: ~converged | ~jnp.all(jnp.isfinite(coef), axis=0),
        Status.WEAKLY_IDENTIFIED: ~jnp.all(log_error <= WEAK, axis=0),
    }
    # From the best to the worst, so that the worst has the last word.
    status = jnp.full(finite.shape, int(Status.CONVERGED), jnp.int8)
    for code, true in reversed(cases.items()):
        status = jnp.where(true, jnp.asarray(int(code), jnp.int8), status)
    return status
