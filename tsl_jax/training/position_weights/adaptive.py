"""Adaptive weights over positions: what a rule is shown, and what is made of its answer.

A rule is a function of an `Observed` to weights (position,), or to these and a sentence for the record:

    def rule(observed):
        return observed.loss ** -0.5

Its answer is checked, brought to mean one, and held within LIMITS, so that no rule can silence a position or let one
rule the gradient:  w_i = clip(c r_i, 0.2, 5) with the c for which mean_i w_i = 1. A rule that wants the gradient noise
is marked with `uses_noise`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

LIMITS = (0.2, 5.0)  # of a weight, relative to the mean
LEAST = 1e-12  # of a weight before c: where most have none, they share what the others may not take
HALVINGS = 200  # of the search for c: to the last bit
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Observed:
    """What a rule sees at an update; arrays are float64, of one entry a position."""

    position: np.ndarray  # 1..context
    loss: np.ndarray  # nats, on batches that come next, smoothed over updates
    tokens: int  # trained on so far
    total_tokens: int  # of the whole run
    noise: np.ndarray | None  # of one sequence's gradient, see `gradient_noise`; None: not asked for
    weights: np.ndarray  # until now, mean one


Rule = Callable[[Observed], Any]


def uses_noise(rule: F) -> F:
    """Mark a rule: it is shown the gradient noise, which costs gradients at every update."""
    rule.uses_noise = True  # pyright: ignore[reportFunctionMemberAccess]
    return rule


def wants_noise(rule: Rule) -> bool:
    """Whether the rule is marked so."""
    return bool(getattr(rule, "uses_noise", False))


def answer(rule: Rule, name: str, observed: Observed) -> tuple[np.ndarray, str]:
    """The rule's weights, float64, mean one and within LIMITS, and what it says of them.

    Raises:
        ValueError: where the rule fails, or its answer is not one finite weight of 0 or more a position, with some
            weight left.
    """
    try:
        said = rule(observed)
    except Exception as error:
        raise ValueError(f"training: rule {name} failed: {type(error).__name__}: {error}") from error
    weights, sentence = said if isinstance(said, tuple) else (said, "")
    if weights is observed.weights:
        return observed.weights, str(sentence)
    return limited(normalised(weights, f"rule {name}", len(observed.position))), str(sentence)


def try_out(rule: Rule, name: str, context: int) -> None:
    """Nothing, where the rule answers an observation that is made up: a falling loss, halfway through a run.

    Raises:
        ValueError: see `answer`.
    """
    position = np.arange(1, context + 1)
    noise = 1.0 + 1.0 / position if wants_noise(rule) else None
    observed = Observed(position, 3.0 + 3.0 / (1 + 0.3 * position), 500_000, 1_000_000, noise, np.ones(context))
    try:
        answer(rule, name, observed)
    except ValueError as error:
        raise ValueError(f"{error} (of an observation that was made up, before the run)") from error


def normalised(weights: Any, who: str, context: int) -> np.ndarray:
    """Weights of mean one, float64.

    Raises:
        ValueError: naming who gave what is not one finite weight of 0 or more a position, with some weight left.
    """
    try:
        w = np.asarray(weights, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"training: {who} gave {type(weights).__name__}, expected {context} numbers") from None
    if w.shape != (context,):
        raise ValueError(f"training: {who} gave shape {w.shape}, expected ({context},): one weight a position")
    wrong = np.flatnonzero(~np.isfinite(w) | (w < 0))
    if len(wrong):
        found = f"weight {w[wrong[0]]} at position {wrong[0] + 1}"
        raise ValueError(f"training: {who} gave {found}; weights must be finite, and 0 or more")
    if not w.any():
        raise ValueError(f"training: {who} gave no weight to any position; some weight must be left")
    w = w / w.max()  # the sum of large ones could overflow
    return w / w.mean()


def limited(weights: np.ndarray) -> np.ndarray:
    """clip(c w, LIMITS) of mean one, of weights of mean one; those within the limits already stay as they are."""
    low, high = LIMITS
    if weights.min() >= low and weights.max() <= high:
        return weights
    weights = np.maximum(weights, LEAST)
    small, large = -60.0, 60.0  # log c: the mean grows with c, from 0.2 to 5
    for _ in range(HALVINGS):
        middle = (small + large) / 2
        if np.clip(np.exp(middle) * weights, low, high).mean() < 1:
            small = middle
        else:
            large = middle
    return np.clip(np.exp(large) * weights, low, high)
