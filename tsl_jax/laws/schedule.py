"""The learning-rate schedule as the laws see it: a plan known before the run ends, and laws that read its history.

`Schedule` is the law wing's reading of the plan in a surface's `schedule` attribute; tokens, not steps, are its
clock. ANNEALING (Tissue et al., arXiv 2408.11029): with eta_k the learning rate of step k, S1 its sum, and m_k the
smoothed decrease,

    L(t) = L0 + A S1(t)^-alpha - C S2(t),   m_k = lambda m_{k-1} + (eta_{k-1} - eta_k),   S2 = sum_k m_k.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import jax.numpy as jnp
from jax import Array

from tsl_jax.laws.law import Covariates, Law

KINDS = ("constant", "cosine", "wsd")


@dataclass(frozen=True)
class Schedule:
    """A learning-rate plan: linear warm-up to `peak`, then constant, cosine, or warm-up-stable-decay (linear decay).

    Raises:
        ValueError: for an unknown kind or an order of tokens that makes no sense.
    """

    kind: str
    peak: float
    warmup_tokens: int
    total_tokens: int
    final_ratio: float = 1.0
    decay_start_tokens: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"schedule: expected one of {KINDS}, found {self.kind!r}")
        if not 0 <= self.warmup_tokens < self.total_tokens:
            raise ValueError(
                f"schedule: warm-up of {self.warmup_tokens} tokens does not fit a run of {self.total_tokens}"
            )
        if self.kind == "wsd" and not self.warmup_tokens <= self.decay_start_tokens < self.total_tokens:
            raise ValueError(f"schedule: wsd decays from {self.decay_start_tokens}, expected between warm-up and end")

    @classmethod
    def from_plan(cls, plan: Mapping[str, Any]) -> Schedule:
        """From a surface's `schedule` attribute; keys that a plan keeps for others are passed over."""
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in plan.items() if key in known})

    def lr(self, tokens: Array) -> Array:
        """Learning rate after `tokens` seen, any shape."""
        tokens = jnp.asarray(tokens, float)
        warm = jnp.clip(tokens / max(self.warmup_tokens, 1), 0, 1) if self.warmup_tokens else jnp.ones_like(tokens)
        start = self.decay_start_tokens if self.kind == "wsd" else self.warmup_tokens
        progress = jnp.clip((tokens - start) / (self.total_tokens - start), 0, 1)
        falls = {"constant": 0 * progress, "cosine": (1 - jnp.cos(jnp.pi * progress)) / 2, "wsd": progress}
        return self.peak * warm * (1 - (1 - self.final_ratio) * falls[self.kind])


def _annealing(shape: Array, x: Covariates) -> Array:
    assert isinstance(x, Mapping)
    alpha, forgetting = shape
    lr, at = jnp.asarray(x["lr"]), jnp.asarray(x["step"]).astype(int) - 1  # entry k of the history is step k + 1
    decrease = jnp.concatenate([jnp.zeros(1, lr.dtype), lr[:-1] - lr[1:]])
    # S2(t) = sum_{k <= t} decrease_k (1 - lambda^(t - k + 1)) / (1 - lambda): a decrease tells more as it ages
    age = jnp.maximum(at[:, None] - jnp.arange(len(lr)) + 1, 0)
    s2 = -jnp.expm1(age * jnp.log1p(-forgetting)) / forgetting @ decrease
    return jnp.stack([jnp.ones(at.shape, lr.dtype), jnp.cumsum(lr)[at] ** -alpha, -s2], axis=-1)


def _annealing_bounds(x: Covariates) -> Array:
    # lambda from .9999 to .5: a memory of 10,000 steps down to 2
    return jnp.asarray([[1e-2, 1e1], [1e-4, 0.5]])


ANNEALING = Law(
    name="annealing",
    formula="L0 + A S1^-alpha - C S2(lambda)",
    params=("L0", "A", "alpha", "C", "lambda"),
    shapes=("alpha", "forgetting"),
    coefs=("L0", "A", "C"),
    basis=_annealing,
    bounds=_annealing_bounds,
    covariates=("step", "lr"),
    publish=lambda v: {**v, "lambda": 1 - v["forgetting"]},
    source="Tissue et al., Scaling Law with Learning Rate Annealing, arXiv 2408.11029",
)
