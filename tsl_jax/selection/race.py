"""Which of several runs will end lowest: differences between candidates carried to the end of their plan.

At equal tokens the loss of candidate k is m(x) + d_k(x) + e, x = log tokens: m what all have in common, of any form,
d_k a random walk of variance q (x' - x), e noise of an evaluation of variance r. q and r are shared by all candidates
and averaged over, weighed by the restricted likelihood (Patterson and Thompson 1971) of what was seen, in which m is no
parameter, and a wide prior. So the best guess of a difference at the end is, but for noise, the present one: on the
development data a slope of the difference, in log tokens or along the falling mean loss, ranked ends worse.

Candidates of one plan of the learning rate fall alike from here on. Where plans differ, as for peak rates, how far each
will fall is the forecast of the run, and `race` takes it with its uncertainty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import softmax

from tsl_jax.forecasting import forecast
from tsl_jax.importers import from_losses

POINTS = 32  # of log tokens, on which all curves are read
WALK, NOISE = np.geomspace(1e-8, 1.0, 33), np.geomspace(1e-9, 1e-3, 19)  # q, nats^2 an e-fold of tokens; r, nats^2
PRIOR = {"walk": (-7.5, 2.5), "noise": (-13.0, 3.0)}  # mean and sd of their logs: development data, made wider
OWN_SHARE = 0.3  # of the variance of a forecast fall, what runs of different plans do not share (development data)
STOP = 0.1  # chance that the best of all is ever stopped
DRAWS = 4000
FEWEST = 8  # checkpoints of a forecast
Z90 = 1.6449


@dataclass(frozen=True)
class RaceForecast:
    """Losses at the end.

    Attributes:
        mean: nats (candidate,). covariance: (candidate, candidate). chance: that each has the least loss.
        eliminated: whether it may be stopped: its chance is below STOP over the number of candidates. Should the best
            of all be stopped at some look, then at that look its chance was below that bound; by Ville's inequality
            this happens with probability STOP at most, however often one looks, if the model holds.
        walk: q, posterior median, nats^2 an e-fold of tokens.
    """

    mean: np.ndarray
    covariance: np.ndarray
    chance: np.ndarray
    eliminated: np.ndarray
    walk: float


def race(
    tokens: Sequence[ArrayLike],
    losses: Sequence[ArrayLike],
    at: float,
    fall: ArrayLike = 0.0,
    fall_sd: ArrayLike = 0.0,
    plan: Sequence[int] | None = None,
) -> RaceForecast:
    """Losses of all candidates at `at` tokens.

    Args:
        tokens, losses: of each candidate, increasing tokens and nats; lengths may differ, some may be behind or ended.
        at: tokens of the end. fall: nats, by how much each will fall from the `reference` of its plan to the end, and
            fall_sd the standard deviation of that; the same for candidates of one plan. plan: a number a candidate,
            equal for equal plans; without it all have the same.

    Raises:
        ValueError: for no candidate, losses that are not finite, tokens that do not increase, or curves
            of one plan that have no tokens in common.
    """
    curves = [_checked(k, t, y) for k, (t, y) in enumerate(zip(tokens, losses, strict=True), 1)]
    if not curves:
        raise ValueError("race: expected one candidate or more, found none")
    plan_K = np.zeros(len(curves), int) if plan is None else np.asarray(plan)
    mean, covariance, walk = np.zeros(len(curves)), np.zeros((len(curves), len(curves))), 0.0
    for number in np.unique(plan_K):
        (alike,) = np.nonzero(plan_K == number)
        if len(alike) == 1:  # nothing to compare with: the forecast of its fall says all
            mean[alike] = curves[alike[0]][1][-1]
            continue
        x, loss_KxG = _on_common_tokens([curves[k] for k in alike])
        mean[alike], covariance[np.ix_(alike, alike)], own = _walks(x, loss_KxG, np.log(at))
        walk = max(walk, own)
    falls, sds = (np.broadcast_to(np.asarray(value, float), len(curves)) for value in (fall, fall_sd))
    shared = np.where(plan_K[:, None] == plan_K, 1.0, 1.0 - OWN_SHARE)
    mean, covariance = mean - falls, covariance + shared * np.outer(sds, sds)
    chance = chance_best(mean, covariance)
    behind = np.array([t[-1] < at for t, _ in curves])
    return RaceForecast(mean, covariance, chance, behind & (chance < STOP / len(curves)), walk)


def chance_best(mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """The probability that each has the least value."""
    return share_of_least(draws(mean, covariance))


def draws(mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """(DRAWS, candidate) values of a normal distribution, the same at each call."""
    random = np.random.default_rng(0)
    return random.multivariate_normal(mean, covariance, DRAWS, check_valid="ignore", method="eigh")


def share_of_least(drawn: np.ndarray) -> np.ndarray:
    """How often each column has the least value of its row; equal ones share it."""
    least = drawn <= drawn.min(axis=1, keepdims=True) + 1e-9
    return (least / least.sum(axis=1, keepdims=True)).mean(axis=0)


def _checked(number: int, tokens: ArrayLike, losses: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    tokens, losses = np.asarray(tokens, float), np.asarray(losses, float)
    if not len(tokens) or len(tokens) != len(losses) or not np.isfinite(losses).all():
        raise ValueError(f"race: candidate {number} needs a finite loss for each of its tokens, one at least")
    if tokens[0] <= 0 or (np.diff(tokens) <= 0).any():
        raise ValueError(f"race: tokens of candidate {number} must be positive and increase")
    return tokens, losses


def reference(tokens: Sequence[ArrayLike]) -> float:
    """The tokens up to which candidates of one plan are compared: those that two have reached (of one, its last)."""
    return sorted(float(np.asarray(t)[-1]) for t in tokens)[-min(2, len(tokens))]


def _on_common_tokens(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Log tokens (point,) from where all have begun to the `reference`, and losses there (candidate, point)."""
    first, least, last = max(t[0] for t, _ in curves), min(t[-1] for t, _ in curves), reference([t for t, _ in curves])
    if first > least:
        raise ValueError(f"race: no tokens in common: one candidate begins at {first:.4g}, another ends at {least:.4g}")
    x = np.unique(np.log(np.concatenate([t[(t >= first) & (t <= last)] for t, _ in curves])))
    x = x if len(x) <= POINTS else np.linspace(x[0], x[-1], POINTS)
    return x, np.array([np.interp(x, np.log(t), y, left=np.nan, right=np.nan) for t, y in curves])


def _walks(x: np.ndarray, loss_KxG: np.ndarray, end: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Levels at the end (candidate,), their covariance, in which q and r are averaged over, and the median of q.

    A Kalman filter a candidate, all pairs of q and r at once; at each point the mean over the candidates that are
    there, weighed by precision, takes m's place.
    """
    q, r = (values.ravel() for values in np.meshgrid(WALK, NOISE, indexing="ij"))
    (walk_mean, walk_sd), (noise_mean, noise_sd) = PRIOR["walk"], PRIOR["noise"]
    log_weight = -0.5 * (((np.log(q) - walk_mean) / walk_sd) ** 2 + ((np.log(r) - noise_mean) / noise_sd) ** 2)
    level, variance = np.zeros((len(q), len(loss_KxG))), np.ones((len(q), len(loss_KxG)))
    common = np.zeros(len(q))
    for g, here in enumerate(np.isfinite(loss_KxG).T):
        variance = variance + (q * (x[g] - x[g - 1]))[:, None] if g else variance
        if here.sum() < 2:
            continue
        total = variance[:, here] + r[:, None]
        error = loss_KxG[here, g] - level[:, here]
        common = np.average(error, axis=1, weights=1 / total)
        error = error - common[:, None]
        log_weight -= 0.5 * ((error**2 / total + np.log(total)).sum(1) + np.log((1 / total).sum(1)))
        gain = variance[:, here] / total
        level[:, here] += gain * error
        variance[:, here] *= 1 - gain
    variance = variance + (q * max(end - x[-1], 0.0))[:, None]
    weight = softmax(log_weight)
    level = level + common[:, None]
    mean = weight @ level
    spread = level - mean
    median = WALK[np.searchsorted(np.cumsum(weight.reshape(len(WALK), -1).sum(1)), 0.5)]
    return mean, np.diag(weight @ variance) + (weight[:, None] * spread).T @ spread, float(median)


def fall_of_plan(
    tokens: Sequence[ArrayLike], losses: Sequence[ArrayLike], at: float, schedule: Any = None
) -> tuple[float, float]:
    """By how much candidates of one plan will fall from their `reference` to `at`, nats, and its standard deviation.

    The forecast of their mean loss at the tokens that all have seen. Where too few are seen for a forecast, half of
    the present slope in log tokens goes on, and may be off by as much.

    Args:
        schedule: the plan; None: as `forecast` without one.
    """
    curves = [(np.asarray(t, float), np.asarray(y, float)) for t, y in zip(tokens, losses, strict=True)]
    first, last, start = max(t[0] for t, _ in curves), min(t[-1] for t, _ in curves), reference(tokens)
    if start >= at:
        return 0.0, 0.0
    longest = max((t for t, _ in curves), key=lambda t: ((t >= first) & (t <= last)).sum())
    seen = longest[(longest >= first) & (longest <= last)]
    mean = np.mean([np.interp(np.log(seen), np.log(t), y) for t, y in curves], axis=0)
    if len(seen) >= FEWEST:
        surface = from_losses(mean[None, :, None], tokens=seen.astype(np.int64), schedule=schedule)
        ahead = [int(start), int(at)] if start > seen[-1] else [int(at)]
        made = forecast(surface, ahead, by_position=False)
        if made.quantiles is not None and np.isfinite(made.mean.values).all():
            ends = np.append(mean[-1], made.mean.values.ravel())[-2:]
            low, high = (float(made.quantiles.sel(quantile=q).values.ravel()[-1]) for q in (0.05, 0.95))
            left = np.log(at / start) / np.log(at / seen[-1])  # of the way that is forecast
            return float(ends[0] - ends[1]), float((high - low) / (2 * Z90) * np.sqrt(left))
    slope = (mean[-2] - mean[-1]) / np.log(seen[-1] / seen[-2]) if len(seen) > 1 else 0.0
    fall = 0.5 * max(float(slope), 0.0) * float(np.log(at / start))
    return fall, fall
