"""Parameters and compute by the rules of Kaplan et al. (arXiv 2001.08361), and how a batch trades steps for tokens.

With l layers of width d, N parameters without embeddings, B tokens a batch, S steps and D = B S tokens:

    N ~ 12 l d^2                    attention of width d, d_ff = 4 d (section 2.1)
    C ~ 6 N D = 72 B S l d^2        FLOPs, forward and backward; 1 PF-day = 8.64e19 FLOPs
    S_min = S/(1 + B_crit(L)/B)     steps at a batch far above the critical one (eq. 5.4)
    C_min = C/(1 + B/B_crit(L))     compute at a batch far below it (eq. 5.5)

What too little data costs, from L(N, D) = ((N_c/N)^(alpha_N/alpha_D) + D_c/D)^alpha_D (section 4.2):

    dL = L(N, D)/L(N, inf) - 1 = (1 + (N/N_c)^(alpha_N/alpha_D) D_c/D)^alpha_D - 1

so that dL <= t takes D = D_c (N/N_c)^(alpha_N/alpha_D)/((1 + t)^(1/alpha_D) - 1): with the paper's constants and its
t = .02, the spread of its seeds, 5e3 N^.74.

The exact counts of a model here, embeddings, attention and unembedding apart, are those of `tsl_jax.models.cost`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tsl_jax.laws import CRITICAL_BATCH, KAPLAN_ND

PF_DAY = 1e15 * 24 * 3600  # FLOPs


def n_params_of_shape(n_layers: int, d_model: int) -> int:
    """12 l d^2, parameters without embeddings of a Transformer whose d_ff is 4 d_model."""
    return 12 * n_layers * d_model**2


def training_flops(n_params: ArrayLike, tokens: ArrayLike) -> np.ndarray:
    """6 N D, FLOPs of a training run."""
    return 6.0 * np.asarray(n_params, float) * np.asarray(tokens, float)


def critical_batch(loss: ArrayLike, constants: Mapping[str, float] | None = None) -> np.ndarray:
    """B_star/L^(1/alpha_B), tokens, at which a run takes twice the least steps and twice the least tokens.

    Args:
        constants: B_star and alpha_B; default those of Kaplan et al., which belong to their text.
    """
    values = constants or CRITICAL_BATCH.published
    return values["B_star"] / np.asarray(loss, float) ** (1 / values["alpha_B"])


def minimal_steps(steps: ArrayLike, batch: ArrayLike, critical: ArrayLike) -> np.ndarray:
    """S_min: the steps that the same loss would take at a batch far above the critical one; batches in tokens."""
    return np.asarray(steps, float) / (1 + np.asarray(critical, float) / np.asarray(batch, float))


def minimal_flops(flops: ArrayLike, batch: ArrayLike, critical: ArrayLike) -> np.ndarray:
    """C_min: the FLOPs that the same loss would take at a batch far below the critical one; batches in tokens."""
    return np.asarray(flops, float) / (1 + np.asarray(batch, float) / np.asarray(critical, float))


def overfitting(n_params: ArrayLike, tokens: ArrayLike, constants: Mapping[str, float] | None = None) -> np.ndarray:
    """dL, the share by which the loss is above that of unlimited data; constants of KAPLAN_ND, default the paper's."""
    c = constants or KAPLAN_ND.published
    size = (np.asarray(n_params, float) / c["N_c"]) ** (c["alpha_N"] / c["alpha_D"])
    return (1 + size * c["D_c"] / np.asarray(tokens, float)) ** c["alpha_D"] - 1


def tokens_needed(
    n_params: ArrayLike, tolerance: float = 0.02, constants: Mapping[str, float] | None = None
) -> np.ndarray:
    """D at which dL is `tolerance`; constants of KAPLAN_ND, default the paper's.

    Raises:
        ValueError: for a tolerance that is not positive.
    """
    if not tolerance > 0:
        raise ValueError(f"tokens_needed: the tolerance is a positive share of the loss, found {tolerance}")
    c = constants or KAPLAN_ND.published
    size = (np.asarray(n_params, float) / c["N_c"]) ** (c["alpha_N"] / c["alpha_D"])
    return c["D_c"] * size / ((1 + tolerance) ** (1 / c["alpha_D"]) - 1)


def gpu_hours(flops: ArrayLike, peak: float = 989e12, utilisation: float = 0.4) -> Any:
    """Hours of one device that `flops` take, at a share of its peak FLOP/s; default an H100 or H200 in bfloat16.

    Raises:
        ValueError: for a share that is not in (0, 1], or a peak that is not positive.
    """
    if not peak > 0:
        raise ValueError(f"gpu_hours: the peak is a positive number of FLOP/s, found {peak}")
    if not 0 < utilisation <= 1:
        raise ValueError(f"gpu_hours: the utilisation is a share in (0, 1], found {utilisation}")
    return np.asarray(flops, float) / (peak * utilisation * 3600)
