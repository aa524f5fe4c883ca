"""Laws that read the learning rate of every step, and not only tokens.

MOMENTUM_ANNEALING (Tissue et al., arXiv 2408.11029) sums the rates eta_k of the steps, and their smoothed decreases:

    L(t) = L0 + A S1(t)^-alpha - C S2(t),   S1 = sum_{k<=t} eta_k,
    S2 = sum_{i<=t} m_i,   m_i = lambda m_{i-1} + (eta_{i-1} - eta_i).

Decreases count from the end of the warm-up, whose rise is no negative annealing: the authors' code is said to hold the
peak rate in its place. (So does its S1; here S1 is the area itself, as below.) A later rise counts as a negative
decrease.

The other three (Luo et al., A Multi-Power Law for Loss Curve Prediction, arXiv 2503.12811) read the covariates of
`forecasting/lr_history.py`: S the area under the learning rate over its peak, warm-up included, d_k its decreases, S_k
and eta_k area and rate where they end:

    AREA_POWER       L0 + A S^-alpha
    AREA_ANNEALING   L0 + A S^-alpha - C sum_{S_k < S} d_k (1 - 1/(1 + c (S - S_k) eta_k^-1/2))
    MULTI_POWER      L0 + A S^-alpha - C sum_{S_k < S} d_k (1 - (1 + c (S - S_k) eta_k^-gamma)^-beta)

AREA_ANNEALING is the multi-power law with beta = 1 and gamma = 1/2: on public runs the full law fits reference runs
better and forecasts worse. At a constant rate all three are the same power law.

The loss does not fall in proportion to the rate: it gains less from the first half of a fall than from the second. With
the excess of a rate eta taken as s(eta) = eta/(eta + h), which levels off where the rate is high,

    SATURATING_ANNEALING   L0 + A S^-alpha - C sum_{S_k < S} f_k (1 - 1/(1 + c (S - S_k) eta_k^-1/2)),
    f_k = (s(eta_k-1) - s(eta_k))/s(1),

eta_k-1 the rate from which a decrease begins. h = inf is AREA_ANNEALING; C is the gain from the peak to zero.
Where several runs are fitted together, those of another peak, p times that of the first (covariate `peak`), share the
parameters by

    S -> p^(1/2) S,   C -> p^(3/10) C,   h -> p^(-3/5) h,   L0 -> L0 + (p^(3/10) - 1) C:

measured on 133 public curves of one model at five peaks (lr_scheduling, 124M).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from tsl_jax.laws.law import Covariates, Law

_LUO = "Luo et al., arXiv 2503.12811"
_COVARIATES = ("area", "decrease", "at_area", "to_rate")
_ALPHA, _RATE = (5e-2, 3.0), (1e-1, 1e5)


def _momentum(shape: Array, x: Covariates) -> Array:
    """Columns 1, S1^-alpha, -S2 at the steps of x, from shapes (alpha, 1 - lambda)."""
    assert isinstance(x, Mapping)
    alpha, forgetting = shape
    lr, at = jnp.asarray(x["lr"]), jnp.asarray(x["step"]).astype(int) - 1  # entry k of the history is step k + 1
    decrease = lr[:-1] - lr[1:]
    warming = jnp.cumprod(decrease <= 0).astype(bool)  # until the rate falls for the first time
    decrease = jnp.concatenate([jnp.zeros(1, lr.dtype), jnp.where(warming, 0, decrease)])
    # S2(t) = sum_{k <= t} decrease_k (1 - lambda^(t - k + 1)) / (1 - lambda): the sum of m in closed form
    age = jnp.maximum(at[:, None] - jnp.arange(len(lr))[None] + 1, 0).astype(shape.dtype)
    s2 = -jnp.expm1(age * jnp.log1p(-forgetting)) / forgetting @ decrease
    return jnp.stack([jnp.ones(at.shape, lr.dtype), jnp.cumsum(lr)[at] ** -alpha, -s2], axis=-1)


def _annealed(x: Mapping[str, Any], decrease: Array, rate: Array, beta: Array | float, gamma: Array | float) -> Array:
    """sum_k d_k (1 - (1 + rate (S - S_k) eta_k^-gamma)^-beta) over the decreases before S, (point,)."""
    since = (
        jnp.maximum(jnp.asarray(x["area"])[:, None] - jnp.asarray(x["at_area"])[None], 0)
        * (x["to_rate"] ** -gamma)[None]
    )
    left = 1 / (1 + rate * since) if isinstance(beta, float) and beta == 1 else (1 + rate * since) ** -beta
    return (1 - left) @ decrease


def _area_columns(shape: Array, x: Covariates, *exponents: float) -> Array:
    """1, S^-alpha, and minus the annealing where there is a rate c; beta, gamma are given or searched as shapes."""
    area = jnp.asarray(x["area"] if isinstance(x, Mapping) else x)
    columns = [jnp.ones_like(area), area ** -shape[0]]
    if len(shape) > 1:
        assert isinstance(x, Mapping)
        columns.append(-_annealed(x, jnp.asarray(x["decrease"]), shape[1], *(exponents or shape[2:])))
    return jnp.stack(columns, axis=-1)


def _saturating_columns(shape: Array, x: Covariates) -> Array:
    """1, S^-alpha, and minus the annealing with the excess s(eta) of each rate, from shapes (alpha, c, h)."""
    assert isinstance(x, Mapping)
    alpha, rate, half = shape
    peak = jnp.asarray(x.get("peak", 1.0))  # p: of this run, over that of the run whose parameters these are
    half, gain = half * peak**-0.6, peak**0.3
    scaled = {**x, "area": x["area"] * peak**0.5, "at_area": x["at_area"] * peak**0.5}
    begin = jnp.asarray(x["from_rate"])
    end = jnp.maximum(begin - x["decrease"], 0)
    fall = (begin / (begin + half) - end / (end + half)) * (1 + half)  # (s(eta_k-1) - s(eta_k))/s(1)
    # what a run at its peak has yet to gain differs with the peak: L0 is shared where all runs end at the rate 0
    annealed = 1 - gain + gain * _annealed(x=scaled, decrease=fall, rate=rate, beta=1.0, gamma=0.5)
    return jnp.stack([jnp.ones_like(annealed), scaled["area"] ** -alpha, -annealed], axis=-1)


MOMENTUM_ANNEALING = Law(
    name="momentum_annealing",
    formula="L0 + A S1^-alpha - C S2(lambda)",
    params=("L0", "A", "alpha", "C", "lambda"),
    shapes=("alpha", "forgetting"),
    coefs=("L0", "A", "C"),
    basis=_momentum,
    # lambda from .9999 to .5: a memory of 10,000 steps down to 2
    bounds=lambda x: jnp.asarray([[1e-2, 1e1], [1e-4, 0.5]]),
    covariates=("step", "lr"),
    params_from_raw=lambda v: {**v, "lambda": 1 - v["forgetting"]},
    raw_from_params=lambda v: {**v, "forgetting": 1 - v["lambda"]},
    source="Tissue et al., Scaling Law with Learning Rate Annealing, arXiv 2408.11029",
)

AREA_POWER = Law(
    name="area_power",
    formula="L0 + A S^-alpha",
    params=("L0", "A", "alpha"),
    shapes=("alpha",),
    coefs=("L0", "A"),
    basis=_area_columns,
    bounds=lambda x: jnp.asarray([_ALPHA]),
    covariates=("area",),
    source=f"{_LUO}, without its annealing term",
)

AREA_ANNEALING = Law(
    name="area_annealing",
    formula="L0 + A S^-alpha - C sum_k d_k (1 - 1/(1 + c (S - S_k) eta_k^-1/2))",
    params=("L0", "A", "alpha", "C", "c"),
    shapes=("alpha", "c"),
    coefs=("L0", "A", "C"),
    basis=lambda shape, x: _area_columns(shape, x, 1.0, 0.5),
    bounds=lambda x: jnp.asarray([_ALPHA, _RATE]),
    covariates=_COVARIATES,
    source=f"{_LUO}, with beta = 1 and gamma = 1/2",
)

SATURATING_ANNEALING = Law(
    name="saturating_annealing",
    formula="L0 + A S^-alpha - C sum_k (s(eta_k-1) - s(eta_k))/s(1) (1 - 1/(1 + c (S - S_k) eta_k^-1/2))",
    params=("L0", "A", "alpha", "C", "c", "h"),
    shapes=("alpha", "c", "h"),
    coefs=("L0", "A", "C"),
    basis=_saturating_columns,
    bounds=lambda x: jnp.asarray([_ALPHA, _RATE, (1e-1, 1e2)]),
    covariates=(*_COVARIATES, "from_rate", "peak"),
    source="this project; the shape of the multi-power law of Luo et al., arXiv 2503.12811",
)

MULTI_POWER = Law(
    name="multi_power",
    formula="L0 + A S^-alpha - C sum_k d_k (1 - (1 + c (S - S_k) eta_k^-gamma)^-beta)",
    params=("L0", "A", "alpha", "C", "c", "beta", "gamma"),
    shapes=("alpha", "c", "beta", "gamma"),
    coefs=("L0", "A", "C"),
    basis=_area_columns,
    bounds=lambda x: jnp.asarray([_ALPHA, _RATE, (5e-2, 5.0), (1e-2, 2.0)]),
    covariates=_COVARIATES,
    source=_LUO,
)
