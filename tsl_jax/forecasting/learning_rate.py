"""The learning rate over a run, as schedule-aware laws read it: its area, and its decreases.

With eta(n) the learning rate over its peak at n tokens seen, the clock of these laws is the area

    S(n) = int_0^n eta dn',

in tokens at full rate, and what they know of annealing is each decrease d_k of eta after the warm-up, the area S_k and
the rate eta_k where it ends. The warm-up counts in the area; its rise counts as no decrease (Luo et al., arXiv
2503.12811, let W be its area).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr

from tsl_jax.laws import Schedule

DECREASES = 64  # a smooth decay is told in so many equal parts; 200 change a fitted curve by less than 1e-4 nats
FINE = 4000  # points on which a smooth decay is integrated
UNUSED = {"decrease": 0.0, "at_area": 1.0, "to_rate": 1.0}
TOP = 1e-3  # the warm-up is over where eta comes so near to its peak


@dataclass(frozen=True)
class LearningRate:
    """The learning rate of a run, past and planned: linear between knots.

    Attributes:
        tokens: knots (knot,), increasing from 0, in tokens seen. lr: learning rate (knot,) there, any unit.
    """

    tokens: np.ndarray
    lr: np.ndarray

    def __post_init__(self) -> None:
        tokens, lr = np.asarray(self.tokens, float), np.asarray(self.lr, float)
        if tokens.ndim != 1 or tokens.shape != lr.shape or len(tokens) < 2:
            raise ValueError(f"learning rate: expected two knots or more, found {tokens.shape} tokens and {lr.shape}")
        if tokens[0] != 0 or np.any(np.diff(tokens) <= 0):
            raise ValueError(f"learning rate: knots must increase strictly from 0 tokens, found {tokens[:4]}...")
        if not np.all(np.isfinite(lr)) or lr.min() < 0 or lr.max() <= 0:
            raise ValueError("learning rate: expected finite numbers, none negative and not all of them zero")
        object.__setattr__(self, "tokens", tokens)
        object.__setattr__(self, "lr", lr / lr.max())

    @property
    def warmup(self) -> float:
        """Tokens at the end of the warm-up."""
        return float(self.tokens[np.argmax(self.lr >= 1 - TOP)])

    def fine(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, eta and area on a fine grid that holds every knot."""
        grid = np.union1d(np.linspace(0, self.tokens[-1], FINE), self.tokens)
        eta = np.interp(grid, self.tokens, self.lr)
        steps = np.diff(grid) * (eta[1:] + eta[:-1]) / 2
        return grid, eta, np.concatenate([[0.0], np.cumsum(steps)])

    def area(self, tokens: np.ndarray) -> np.ndarray:
        """S at the tokens given; beyond the last knot eta stays as it is there."""
        grid, eta, area = self.fine()
        beyond = np.clip(np.asarray(tokens, float) - grid[-1], 0, None) * eta[-1]
        return np.interp(tokens, grid, area) + beyond

    def covariates(self, tokens: np.ndarray, reference: float) -> Mapping[str, np.ndarray]:
        """What laws of `annealing.py` read: areas in units of `reference`, and the decreases after the warm-up.

        Returns:
            tokens, area: (point,); decrease, at_area, to_rate: (DECREASES,) d_k, S_k, eta_k, of size zero where unused.
        """
        grid, eta, area = self.fine()
        fall = np.where(grid[1:] > self.warmup, -np.diff(eta), 0.0)
        told: dict[str, np.ndarray] = {
            "decrease": np.zeros(DECREASES),
            "at_area": np.ones(DECREASES),
            "to_rate": np.ones(DECREASES),
        }
        moved = np.flatnonzero(np.abs(fall) > 1e-9)
        if len(moved):
            share = np.cumsum(np.abs(fall[moved]))
            part = np.minimum((share / share[-1] * DECREASES).astype(int), DECREASES - 1)
            size = np.bincount(part, np.abs(fall[moved]), DECREASES)
            there = size > 0
            told["decrease"] = np.bincount(part, fall[moved], DECREASES)
            for name, values in (("at_area", (area[1:] + area[:-1]) / 2 / reference), ("to_rate", eta[1:])):
                mean = np.bincount(part, np.abs(fall[moved]) * values[moved], DECREASES)
                told[name][there] = mean[there] / size[there]
        told["to_rate"] = np.maximum(told["to_rate"], 1e-3)
        here = {"tokens": np.asarray(tokens, float) / reference, "area": self.area(tokens) / reference}
        return {**here, **told}


def of_run(past: xr.Dataset, plan: Schedule | None) -> LearningRate:
    """The learning rate of a run: as planned, or as recorded at its checkpoints and from there on as planned.

    Where the coordinate `lr` of the past differs from the plan by more than a twentieth of the peak, the record counts.
    Without a plan the last rate recorded goes on, and without either the rate is constant.
    """
    tokens = past.tokens.values.astype(float)
    recorded = past.lr.values.astype(float) if "lr" in past.coords else None
    if plan is None:
        if recorded is None:
            return LearningRate(np.array([0.0, max(tokens[-1], 1.0)]), np.ones(2))
        return _recorded(tokens, recorded, float(past.attrs.get("warmup_tokens", 0)))
    grid, planned = plan.knots()
    if recorded is None or np.allclose(np.interp(tokens, grid, planned), recorded, atol=0.05 * plan.peak, rtol=0):
        return LearningRate(grid, planned)
    then, peak = _recorded(tokens, recorded, float(past.attrs.get("warmup_tokens", 0))), float(np.max(recorded))
    later = grid > tokens[-1]
    first = max(tokens[-1] * (1 + 1e-9), tokens[-1] + 1e-3)  # from the next token on the plan holds
    rest = np.append(first, grid[later]), np.append(np.interp(first, grid, planned), planned[later])
    return LearningRate(np.append(then.tokens, rest[0]), np.append(then.lr * peak, rest[1]))


def _recorded(tokens: np.ndarray, lr: np.ndarray, warmup: float) -> LearningRate:
    """Linear between checkpoints; before the first one linear from zero to the end of the warm-up, then constant."""
    begin = [(0.0, 0.0), (warmup, lr[0])] if 0 < warmup < tokens[0] else [(0.0, lr[0])]
    first = np.array(begin if tokens[0] > 0 else np.empty((0, 2)))
    return LearningRate(np.append(first[:, 0], tokens), np.append(first[:, 1], lr))
