"""The status of the fit of one curve: a number for every curve, each with a sentence.

Several statements may be true of a curve; the worst is the status. Nothing in a batch raises: a bad curve gets a status
and leaves its neighbours untouched.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int, Int8

from tsl_jax.laws import Law

WEAK = 0.2  # standard error of a log shape beyond which Wald intervals of the shape no longer cover
EDGE = 1e-4  # share of the range of a shape that counts as its bound
STILL = 1e-2  # a covariate varies by more than 1 %, and by more than 1 % beside the others, or it identifies nothing


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
    COVARIATE_CONSTANT = 10
    COVARIATES_COLLINEAR = 11

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
    Status.UPPER_BOUND: "the shape is at its upper bound: the curve is flat before the first point",
    Status.STRAIGHT_LINE: "a straight line fits as well: only slope and level are known",
    Status.FLAT: "the data are constant: any shape fits; the level alone is known",
    Status.RISING: "the fitted curve rises where the law falls: check the sign and the order of the data",
    Status.TOO_FEW_POINTS: "no more points than parameters: the standard errors are unknown; add points",
    Status.NON_FINITE: "NaN or infinity in the data: give these points weight zero, or fix them",
    Status.MAX_ITERATIONS: "the solver stopped at its limit of iterations: scale the data, or choose another method",
    Status.COVARIATE_CONSTANT: "a covariate does not vary: what depends on it is not identified; "
    "add points where it differs",
    Status.COVARIATES_COLLINEAR: "the covariates move together: only the curve along their line is known; "
    "add points where one differs and the other does not",
}
USABLE = (Status.CONVERGED, Status.WEAKLY_IDENTIFIED)  # the curve is known, if not always the parameters
UNSOLVED = (Status.NON_FINITE, Status.TOO_FEW_POINTS)  # no number of the fit means anything

Design = tuple[Status, tuple[str, ...]]  # what is wrong with the covariates of a curve, and which of them


def judge(
    law: Law,
    log_bounds: Float[Array, "shape 2"],
    *,
    log_shape: Float[Array, "shape curve"],
    coef: Float[Array, "coef curve"],
    log_error: Float[Array, "shape curve"],
    count: Int[Array, "*curve"],
    size: Float[Array, " curve"],
    sst: Float[Array, " curve"],
    line: Bool[Array, " curve"],
    finite: Bool[Array, " curve"],
    converged: Bool[Array, " curve"],
) -> Int8[Array, " curve"]:
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
    # From the worst to the best. First what makes every number void, then data on which no shape can be seen, then
    # shapes that the range cuts off (a straight line is why they are), then the solver, then precision.
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
    # Written from the best to the worst, so that the worst has the last word.
    status = jnp.full(finite.shape, int(Status.CONVERGED), jnp.int8)
    for code, true in reversed(cases.items()):
        status = jnp.where(true, jnp.asarray(int(code), jnp.int8), status)
    return status


def judge_design(law: Law, x: Any, weights: Float[np.ndarray, "*curve point"]) -> list[Design | None]:
    """What the covariates of each row of weights do not identify: those that do not vary, or all that move together.

    The effects of N and D in E + A/N^alpha + B/D^beta are powers, so what counts is how log N and log D vary: alone,
    and beside each other, that is the deviation of one from its regression on the other.

    Returns:
        One entry for shared weights (point,), else one for each curve: None where all is well.
    """
    rows = np.atleast_2d(np.asarray(weights) > 0)
    names = tuple(name for name, _ in law.covariate_params)
    if not names:
        return [None] * len(rows)
    with np.errstate(all="ignore"):  # a covariate of zero or less: the law itself is refused there
        logs = np.log(np.stack([np.asarray(x[name], float) for name in names]))
    patterns, of_row = np.unique(rows, axis=0, return_inverse=True)
    designs: list[Design | None] = []
    for seen in patterns:
        centred = logs[:, seen] - logs[:, seen].mean(axis=1, keepdims=True) if seen.any() else np.ones((len(names), 1))
        sd = np.sqrt(np.mean(centred**2, axis=1))
        constant = tuple(name for name, deviation in zip(names, sd, strict=True) if deviation <= STILL)
        # With singular values s of the centred logs over sqrt(n), the least is how far they are from a line (plane).
        apart = np.linalg.svd(centred / np.sqrt(centred.shape[1]), compute_uv=False)
        if constant:
            designs.append((Status.COVARIATE_CONSTANT, constant))
        elif len(names) > 1 and (len(apart) < len(names) or apart[-1] <= STILL):
            designs.append((Status.COVARIATES_COLLINEAR, names))
        else:
            designs.append(None)
    return [designs[k] for k in np.ravel(of_row)]


def design_message(law: Law, design: Design) -> str:
    """The sentence of a design by name: what is not identified, what still holds, and which data would identify it."""
    status, names = design
    listed = " and ".join(names)
    if status == Status.COVARIATES_COLLINEAR:
        return (
            f"{listed} move together: only the loss along their line is known, and none of {', '.join(law.params)}; "
            f"add points where one of them differs and the other does not"
        )
    identified = [name for other, own in law.covariate_params if other not in names for name in own]
    lost = [name for name in law.params if name not in identified]
    holds = f"; {', '.join(identified)} hold" if identified else ""
    does = "does" if len(names) == 1 else "do"
    return f"{listed} {does} not vary: {', '.join(lost)} are not identified{holds}; add points where {listed} differs"
