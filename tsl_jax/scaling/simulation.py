"""The loss curve of a run that is planned, from a law of size and steps, or of size and data.

L(N, S_min) of Kaplan et al. with the critical batch gives the loss after S steps of batch B, since

    L = L(N, S_min),    S_min = S/(1 + B_crit(L)/B),

has one solution L at each step: a larger L means a smaller B_crit, a larger S_min and a smaller right side. A law
of size and data (Chinchilla) gives, at each number of tokens, the end of a run whose schedule ends there; before its
end a run with a decaying learning rate lies above it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from tsl_jax.laws import CHINCHILLA, CRITICAL_BATCH, KAPLAN_NS, Law
from tsl_jax.scaling.accounting import critical_batch, minimal_steps, training_flops
from tsl_jax.scaling.ladder import losses

POINTS = 64
HALVINGS = 60
SPAN = 300  # of the steps that are drawn: earlier ones belong to the warm-up, where no such law holds


def simulate(
    n_params: float,
    tokens: float,
    batch_tokens: float,
    law: Law = KAPLAN_NS,
    params: Mapping[str, float] | None = None,
    critical: Mapping[str, float] | None = None,
    points: int = POINTS,
) -> pd.DataFrame:
    """The loss of a planned run over its steps.

    Args:
        n_params: without embeddings. tokens: of the whole run. batch_tokens: of a step. law: KAPLAN_NS, or one over
            (n_params, tokens). params, critical: constants; default the papers'. points: how many, even in log steps.

    Returns:
        steps, tokens, flops, loss.

    Raises:
        ValueError: for numbers that are not positive, a batch larger than the run, or a law of other covariates.
    """
    numbers = {"n_params": n_params, "tokens": tokens, "batch_tokens": batch_tokens}
    if not all(np.isfinite(value) and value > 0 for value in numbers.values()) or batch_tokens > tokens:
        raise ValueError(f"simulate: expected positive numbers and a batch within the run, found {numbers}")
    steps = np.unique(np.geomspace(max(tokens / batch_tokens / SPAN, 1), tokens / batch_tokens, points))
    values, seen = dict(params or law.published), steps * batch_tokens
    row = np.array([[values[name] for name in law.params]], float)
    if law.covariates == CHINCHILLA.covariates:
        loss = losses(law, {"n_params": np.full(len(seen), float(n_params)), "tokens": seen}, row)[0]
    elif law.covariates == KAPLAN_NS.covariates:
        constants = dict(critical or CRITICAL_BATCH.published)
        size = np.full(len(steps), float(n_params))

        def right(loss: np.ndarray) -> np.ndarray:
            least = minimal_steps(steps, batch_tokens, critical_batch(loss, constants))
            return losses(law, {"n_params": size, "steps_min": least}, row)[0]

        low, high = np.full(len(steps), np.log(1e-3)), np.full(len(steps), np.log(1e6))
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            below = right(np.exp(middle)) > np.exp(middle)
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        loss = np.exp((low + high) / 2)
    else:
        raise ValueError(f"simulate: expected a law over n_params and tokens or steps_min, found {law.name}")
    return pd.DataFrame({"steps": steps, "tokens": seen, "flops": training_flops(n_params, seen), "loss": loss})
