"""Adaptive rules of position weights, for `tsl train --position-weights NAME`.

    inverse_loss       w_i ∝ 1 / L(i)
    learnable_excess   w_i ∝ a0 / (1 + a1 i)     of the fit L(i) = a0 / (1 + a1 i) + a2, over the later updates
    gradient_noise     w_i ∝ 1 / tr Sigma_i      of the gradient of one sequence's loss at position i

A rule is given what training measures (`training.position_weights.adaptive.Observed`) and may fit laws to it, which is
why this module stands above both packages.
"""

from __future__ import annotations

import numpy as np

from tsl_jax.fitting.fit_law import fit
from tsl_jax.fitting.status import Status
from tsl_jax.laws import HYPERBOLIC
from tsl_jax.training.position_weights.adaptive import Observed, uses_noise


def inverse_loss(observed: Observed) -> np.ndarray:
    """w_i ∝ 1 / L(i): every position counts the same share of the objective, w_i L(i) being constant."""
    return 1 / observed.loss


def learnable_excess(observed: Observed) -> tuple[np.ndarray, str]:
    """w_i ∝ a0 / (1 + a1 i), the part of the loss at i that more context still removes.

    The law is the dynamic hyperbolic one of Temporal Scaling Law (arXiv 2404.17785), fitted to the mean of the losses
    at the later half of the updates so far: of mean one, the weights depend on a1 alone, which moves slowly with tokens
    and which the 64 sequences of one update are too few to show. The curve must be known, not its parameters: a fit
    that is weakly identified serves, and so does one whose a1 is at its upper bound, where the weights go as 1/i. Else
    they stay as they are.
    """
    later = observed.losses[len(observed.losses) // 2 :]
    hyperbola = fit(HYPERBOLIC, later.mean(axis=0), x=observed.position)
    status = Status(int(hyperbola.status))
    if not (hyperbola.usable or status == Status.UPPER_BOUND):
        return observed.weights, f"weights kept: {status.short}, {status.message()}"
    # a2 is what no context removes, so it has no part in the weights; a sentence of the record names it.
    a0, a1, a2 = (float(hyperbola.params.sel(param=name)) for name in ("a0", "a1", "a2"))
    return a0 / (1 + a1 * observed.position), f"{status.short}: a0 {a0:.4g}, a1 {a1:.4g}, a2 {a2:.4g}"


@uses_noise
def gradient_noise(observed: Observed) -> np.ndarray:
    """w_i ∝ 1 / tr Sigma_i: if all positions estimate one gradient, this sum of theirs has the least variance.

    Those are the weights of the Gauss-Markov theorem; 1 / sqrt(tr Sigma_i) would make the noise of all positions alike,
    and the sum noisier.
    """
    if observed.noise is None:
        raise ValueError("training: rule gradient_noise needs observed.noise, which runs measure for it; found None")
    return 1 / observed.noise  # brought to mean one by `adaptive.apply_rule`
