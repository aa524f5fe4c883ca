"""The learning rate over a run, as schedule-aware laws read it: its area, and its decreases.

With eta(n) the learning rate over its peak at n tokens seen, the clock of these laws is the area

    S(n) = int_0^n eta dn',

in tokens at full rate, and what they know of annealing is each decrease d_k of eta after the warm-up, the area S_k and
the rate eta_k where it ends. The warm-up counts in the area; its rise counts as no decrease (Luo et al., arXiv
2503.12811, let W be its area).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import xarray as xr

from tsl_jax.laws import Schedule

DECREASES = 64  # a smooth decay is cut into parts of this share of the peak; 200 fit a whole curve within 1e-4 nats
FINE = 4000  # points on which its parts are found
UNUSED = {"decrease": 0.0, "from_rate": 1.0, "at_area": 1.0, "to_rate": 1.0}
TOP = 1e-3  # the warm-up is over where eta comes so near to its peak
LATE = 0.1  # share of the tokens seen: a log that begins later, at its highest rate, lacks the warm-up


@dataclass(frozen=True)
class LearningRate:
    """The learning rate of a run, past and planned: linear between knots.

    Attributes:
        tokens: knots (knot,), increasing from 0, in tokens seen. lr: learning rate (knot,) there, any unit.
        peak: what it is measured in; 0, the default: the highest. One that is planned for later does not count for a
            past. The rate as optimisers take it where the log or the plan gives that, else in any unit.
        warmed: tokens at the end of the warm-up, where they are known; default where eta first comes to its peak. A
            burst later in the run, above the peak, then is no warm-up of what came before.
    """

    tokens: np.ndarray
    lr: np.ndarray
    peak: float = 0.0
    warmed: float | None = None

    def __post_init__(self) -> None:
        tokens, lr = np.asarray(self.tokens, float), np.asarray(self.lr, float)
        if tokens.ndim != 1 or tokens.shape != lr.shape or len(tokens) < 2:
            raise ValueError(f"learning rate: expected two knots or more, found {tokens.shape} tokens and {lr.shape}")
        if tokens[0] != 0 or np.any(np.diff(tokens) <= 0):
            raise ValueError(f"learning rate: knots must increase strictly from 0 tokens, found {tokens[:4]}...")
        if not np.all(np.isfinite(lr)) or lr.min() < 0 or lr.max() <= 0:
            raise ValueError("learning rate: expected finite numbers, none negative and not all of them zero")
        object.__setattr__(self, "tokens", tokens)
        object.__setattr__(self, "peak", float(self.peak or lr.max()))
        object.__setattr__(self, "lr", lr / self.peak)

    @property
    def warmup(self) -> float:
        """Tokens at the end of the warm-up."""
        return self.warmed if self.warmed is not None else float(self.tokens[np.argmax(self.lr >= 1 - TOP)])

    def fallen(self, tokens: float) -> float:
        """How far eta has come down from its highest value, in shares of the peak; a burst above it does not count."""
        eta = np.minimum(self.lr, 1.0)
        now = float(np.interp(tokens, self.tokens, eta))
        return float(eta[self.tokens <= tokens].max(initial=now)) - now

    def area(self, tokens: np.ndarray) -> np.ndarray:
        """S at the tokens given; beyond the last knot eta stays as it is there."""
        at, steps = np.asarray(tokens, float), np.diff(self.tokens) * (self.lr[1:] + self.lr[:-1]) / 2  # trapezoids
        before = np.searchsorted(self.tokens, at, side="right") - 1  # the last knot at or before
        rest = (at - self.tokens[before]) * (self.lr[before] + np.interp(at, self.tokens, self.lr)) / 2  # beyond it
        return np.concatenate([[0.0], np.cumsum(steps)])[before] + rest

    def covariates(self, tokens: np.ndarray, reference: float, edges: Sequence[float] = ()) -> Mapping[str, np.ndarray]:
        """What laws of `annealing.py` read: areas in units of `reference`, and the decreases after the warm-up.

        Args:
            edges: tokens (edge,), increasing; default the ends of the run. Decreases between two edges are
                summed apart, so that what a law reads up to an edge does not depend on what is planned beyond it.

        Returns:
            tokens, area: (point,); decrease, from_rate, at_area, to_rate: ((edge - 1) DECREASES,) d_k, eta before it,
            S_k, eta_k, of size zero where unused; peak: (1,), 1: over that of the run itself.
        """
        pieces = [self._decreases(begin, end, reference) for begin, end in pairwise(edges or (0.0, self.tokens[-1]))]
        decreases = {name: np.concatenate([piece[name] for piece in pieces]) for name in UNUSED}
        clocks = {"tokens": np.asarray(tokens, float) / reference, "area": self.area(tokens) / reference}
        return {**clocks, **decreases, "peak": np.ones(1)}

    def _decreases(self, begin: float, end: float, reference: float) -> dict[str, np.ndarray]:
        """decrease, from_rate, at_area, to_rate (DECREASES,) between two numbers of tokens.

        On a fine grid eta moves by d_j at the area S_j. Moves are summed in parts of equal share of all that moved:

            d_k = sum_j d_j,   S_k = sum_j |d_j| S_j / sum_j |d_j|,   eta_k likewise.
        """
        within = self.tokens[(self.tokens > begin) & (self.tokens < end)]
        grid = np.union1d(np.linspace(begin, max(begin, end), FINE), within)  # with the knots: a jump stays sharp
        eta, area = np.interp(grid, self.tokens, self.lr), self.area(grid)
        fall = np.where(grid[1:] > self.warmup, -np.diff(eta), 0.0)  # the rise of the warm-up is no decrease
        parts = {name: np.full(DECREASES, value) for name, value in UNUSED.items()}
        moved = np.flatnonzero(np.abs(fall) > 1e-9)  # less is rounding
        if len(moved):
            below = np.abs(np.diff(np.minimum(eta, 1.0)))[moved]  # the part of each move that is below the peak
            above = np.abs(fall[moved]) - below
            # ups and downs can move further than the peak; those of a burst above it must not take all parts
            share = np.cumsum(below + above / max(above.sum(), 1.0))
            each = max(share[-1], 1.0) / DECREASES
            part = np.minimum((share / each).astype(int), DECREASES - 1)
            size = np.bincount(part, np.abs(fall[moved]), DECREASES)  # sum_j |d_j|
            moving = size > 0
            parts["decrease"] = np.bincount(part, fall[moved], DECREASES)  # d_k, negative where eta rises
            parts["from_rate"][moving] = eta[moved[np.searchsorted(part, np.flatnonzero(moving))]]
            for name, values in (("at_area", (area[1:] + area[:-1]) / 2 / reference), ("to_rate", eta[1:])):
                mean = np.bincount(part, np.abs(fall[moved]) * values[moved], DECREASES)
                parts[name][moving] = mean[moving] / size[moving]  # S_k, eta_k
        parts["to_rate"] = np.maximum(parts["to_rate"], 1e-3)  # laws divide by it
        return parts


def schedule_of(surface: xr.Dataset) -> Schedule | None:
    """The learning-rate schedule stored in the attributes of a surface, or None.

    Raises:
        ValueError: if it cannot be read.
    """
    plan = surface.attrs.get("schedule")
    if plan is None or isinstance(plan, Schedule):
        return plan
    try:
        return Schedule.from_plan(plan)
    except ValueError as error:
        run = surface.attrs.get("run", "")
        raise ValueError(f"{error}; it is the attribute schedule of the surface of the run {run!r:.80}") from None


def of_run(past: xr.Dataset, plan: Schedule | None) -> LearningRate:
    """The learning rate of a run: what it was up to the last checkpoint, and from there on as planned.

    The past is read from the schedule stored in the surface (if none is, from `plan`); the rates recorded in its
    coordinate `lr` replace it where they differ by more than 5 % of the peak. So two plans for the future share one
    past, bit for bit. Without a plan the last rate goes on; without any record it is constant.
    """
    now = float(past.tokens.values.max(initial=0))
    own = schedule_of(past) or plan
    tokens, lr, warmed = _until(past, own and own.known_at(now), now)  # changes after `now` are not known yet
    ahead, planned = _beyond(plan, now) if plan is not None else (np.zeros(0), np.zeros(0))
    if not len(ahead):
        ahead, planned = np.array([max(1.001 * now, 1.0)]), lr[-1:]  # the last rate goes on
    # the peak is what has been reached, and, while the rate still rises, the top of that rise: a burst that is planned
    # for later must not rescale the past
    warming = lr[0] < lr[-1] if len(lr) < 3 else lr[-2] < lr[-1]
    rise = planned[: np.argmax(np.append(np.diff(planned), -1) < 0) + 1] if warming or not now else planned[:0]
    known, rates = np.append(tokens, ahead[: len(rise)]), np.append(lr, rise)
    if warmed is None or warmed > known[-1]:
        return LearningRate(np.append(tokens, ahead), np.append(lr, planned), float(rates.max()))
    top = float(np.interp(warmed, known, rates))
    return LearningRate(np.append(tokens, ahead), np.append(lr, planned), top, warmed)


def _beyond(plan: Schedule, now: float) -> tuple[np.ndarray, np.ndarray]:
    """Knots and learning rates of a plan after `now`; the first stands so near that a change of plan is a jump."""
    tokens, lr = plan.knots()
    begin = now * (1 + 1e-12)  # just after `now`: knots increase strictly
    first = np.full(int(0 < now < tokens[-1]), begin)
    ahead = np.append(first, tokens[tokens > begin])
    return ahead, np.interp(ahead, tokens, lr)


def _until(past: xr.Dataset, own: Schedule | None, now: float) -> tuple[np.ndarray, np.ndarray, float | None]:
    """Knots and learning rates up to the last checkpoint, and the end of the warm-up where the plan states it."""
    seen = past.tokens.values.astype(float)
    recorded = past.lr.values.astype(float) if "lr" in past.coords and len(seen) else None
    if own is None:
        tokens = np.unique([0.0, now])
        return (tokens, np.ones(len(tokens)), None) if recorded is None else _recorded(past, seen, recorded)
    drawn, first = own.knots(), (own.plans or (own,))[0]
    if recorded is not None and not np.allclose(np.interp(seen, *drawn), recorded, atol=0.05 * first.peak, rtol=0):
        return _recorded(past, seen, recorded)
    tokens = np.append(drawn[0][drawn[0] < now], now)  # knots of the plan, cut at `now`
    return tokens, np.interp(tokens, *drawn), None if first.table else float(first.warmup_tokens)


def _recorded(past: xr.Dataset, tokens: np.ndarray, lr: np.ndarray) -> tuple[np.ndarray, np.ndarray, float | None]:
    """Knots at the checkpoints, after a warm-up as in the attribute `warmup_tokens`; its end (None: where lr is top).

    A log that begins in mid-run at its highest rate lacks the warm-up: the rate is taken to have been there from the
    start. A rate that is raised again long after the warm-up is a burst, no longer warm-up: that ends where lr first
    stops rising, at a third of its highest or more.
    """
    warmup = float(past.attrs.get("warmup_tokens", 0))
    if not warmup and tokens[0] > LATE * tokens[-1] and lr[0] >= (1 - TOP) * lr.max():
        return np.append(0.0, tokens), np.append(lr[0], lr), 0.0
    first = np.array([0.0, warmup]) if 0 < warmup < tokens[0] else np.zeros(int(tokens[0] > 0))
    rates = np.append(0.0, np.full(len(first) - 1, lr[0])) if len(first) else first
    stops = np.flatnonzero((np.append(lr[1:], 0.0) <= (1 + TOP) * lr) & (3 * lr >= lr.max()))
    raised = len(stops) and lr[stops[0]] < (1 - TOP) * lr.max() and tokens[np.argmax(lr)] > LATE * tokens[-1]
    return np.append(first, tokens), np.append(rates, lr), float(tokens[stops[0]]) if raised else None
