"""Adaptive weights over positions: what a rule is given, and what is made of what it returns.

A rule is a function of an `Observed` to weights (position,), or to these and a sentence for the record:

    def rule(observed):
        return observed.loss ** -0.5

What it returns is checked, brought to mean one, and held within LIMITS, so that no rule can silence a position or give
one the whole gradient:  w_i = clip(c r_i, 0.2, 5) with the c for which mean_i w_i = 1. A rule that needs the gradient
noise is marked with `uses_noise`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from tsl_jax.training.position_weights.weights import mean_one

LIMITS = (0.2, 5.0)  # of a weight, relative to the mean
LEAST = 1e-12  # of a weight before c: where most have none, they share what the others may not take
HALVINGS = 200  # of the search for c: to the last bit
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Observed:
    """What a rule is given at an update; arrays are float64, of one entry a position but for `losses`."""

    position: np.ndarray  # 1..context
    loss: np.ndarray  # nats, on batches that come next, smoothed over updates
    tokens: int  # trained on so far
    total_tokens: int  # of the whole run
    noise: np.ndarray | None  # of one sequence's gradient, see `gradient_noise`; None: not asked for
    weights: np.ndarray  # until now, mean one
    losses: np.ndarray  # (updates, position): `loss` at every update so far, this one last


Rule = Callable[[Observed], Any]


def uses_noise(rule: F) -> F:
    """Mark a rule: it is given the gradient noise, which costs gradients at every update."""
    rule.uses_noise = True  # pyright: ignore[reportFunctionMemberAccess]
    return rule


def wants_noise(rule: Rule) -> bool:
    """Whether the rule is marked so."""
    return bool(getattr(rule, "uses_noise", False))


def apply_rule(rule: Rule, name: str, observed: Observed) -> tuple[np.ndarray, str]:
    """The rule's weights, float64, mean one and within LIMITS, and its sentence about them.

    Raises:
        ValueError: where the rule fails, or what it returns is no weights (see `weights.validated`).
    """
    try:
        returned = rule(observed)
    except (Exception, SystemExit) as error:
        raise ValueError(f"training: rule {name} failed: {type(error).__name__}: {error}") from error
    weights, sentence = returned if isinstance(returned, tuple) else (returned, "")
    if weights is observed.weights:
        return observed.weights, str(sentence)
    return limit(mean_one(weights, f"rule {name}", len(observed.position))), str(sentence)


def try_rule(rule: Rule, name: str, context: int) -> None:
    """Nothing, where the rule works on an observation that is made up: a falling loss, halfway through a run.

    Raises:
        ValueError: see `apply_rule`.
    """
    position = np.arange(1, context + 1)
    noise = 1.0 + 1.0 / position if wants_noise(rule) else None
    loss = 3.0 + 3.0 / (1 + 0.3 * position)
    observed = Observed(position, loss, 500_000, 1_000_000, noise, np.ones(context), loss[None])
    try:
        apply_rule(rule, name, observed)
    except ValueError as error:
        raise ValueError(f"{error} (of an observation that was made up, before the run)") from error


def limit(weights: np.ndarray) -> np.ndarray:
    """clip(c w, LIMITS) of mean one, of weights of mean one; those within the limits already stay as they are."""
    low, high = LIMITS
    if weights.min() >= low and weights.max() <= high:
        return weights
    weights = np.maximum(weights, LEAST)
    # Bisection in log c: the mean grows with c, from 0.2 to 5.
    below, above = -60.0, 60.0
    for _ in range(HALVINGS):
        middle = (below + above) / 2
        if np.clip(np.exp(middle) * weights, low, high).mean() < 1:
            below = middle
        else:
            above = middle
    return np.clip(np.exp(above) * weights, low, high)
