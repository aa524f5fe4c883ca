"""One curve over a run, extrapolated: from its own past, and from reference runs where there are any.

A law over tokens or over the area under the learning rate is fitted by the mixed model of `mixed_model.py`; reference
runs are further curves of that model, whose coefficients scatter about a trend in log n_params. What comes out are
draws of the future curve, from which any interval can be read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tsl_jax.forecasting import mixed_model, priors
from tsl_jax.forecasting.lr_history import LearningRate
from tsl_jax.forecasting.priors import Prior
from tsl_jax.laws import Law

POINTS = 64  # of a curve that are used, at most: evenly spaced in the logarithm of tokens
OLDEST = 0.05  # share of the tokens seen: earlier checkpoints mislead about the later ones
AFTER_WARMUP = 1.25  # times its tokens: the loss still recovers from it
DRAWS = 512
FEWEST = 3
ENOUGH_REFERENCE_RUNS = 3
WORST = 6.0  # no backtest counts as more sds than these
MUCH, FAR = 0.05, 3.0  # of its peak must the rate fall, and times further than it was ever seen to, to be called unseen
TRUST = 4.0  # backtests that the model's own word is worth


@dataclass(frozen=True)
class RunCurve:
    """A curve of a run as far as it is known.

    Attributes:
        tokens, y: (n,) where and what. rate: its learning rate, past and planned. n_params: of its model, or None.
        noise: (n,) factors of the variance of the white residual, or None for equal ones.
    """

    tokens: np.ndarray
    y: np.ndarray
    rate: LearningRate
    n_params: float | None = None
    noise: np.ndarray | None = None


@dataclass(frozen=True)
class Extrapolation:
    """A continued curve.

    Attributes:
        draws: (draw, at) at the tokens asked for. law_alone: the same without residuals. posterior: of the parameters.
        backtest_z: of each backtest on reference runs the error over the sd that was claimed. factor: by which the
            draws were spread about their median in consequence. shares: of each law, where several are stacked.
        decay_unseen: whether the learning rate will fall further than it did in any curve that is known: what that
            does to the loss is then the prior's word.
    """

    draws: np.ndarray
    law_alone: np.ndarray
    posterior: mixed_model.Posterior
    backtest_z: tuple[float, ...] = ()
    factor: float = 1.0
    shares: Mapping[str, float] = field(default_factory=dict)
    decay_unseen: bool = False


def usable(run: RunCurve) -> np.ndarray:
    """Which points of a run are learned from."""
    finite = np.isfinite(run.y)
    last = run.tokens[finite].max(initial=0)
    return finite & (run.tokens >= max(AFTER_WARMUP * run.rate.warmup, OLDEST * last))


def extrapolate(
    law: Law, belief: Prior, run: RunCurve, at: np.ndarray, reference_runs: Sequence[RunCurve] = (), seed: int = 0
):
    """Continue a curve at tokens `at`, increasing and beyond its last point.

    Args:
        law: over ("tokens",) or the covariates of the learning rate. belief: about its parameters.
        run: the past, perhaps empty where there are reference_runs. reference_runs: other runs, whole or not.

    Returns:
        `Extrapolation`.

    Raises:
        ValueError: if run and reference runs together hold fewer than FEWEST points.
    """
    every = [_thinned(one) for one in (run, *reference_runs)]
    if sum(len(one.tokens) for one in every) < FEWEST:
        raise ValueError(f"forecast: {FEWEST} checkpoints past the warm-up are needed")
    here = every[0] if len(every[0].tokens) else every[int(np.argmax([one.tokens[-1] for one in every[1:]])) + 1]
    level = float(here.y[-1])
    start, unit = level if belief.centred else 0.0, belief.unit or abs(level) or 1.0
    reference = _clock(law, run.rate, here.tokens[-1:])[0]
    curves, prior = _problem(law, belief, [_in_units(one, start, unit) for one in every], reference)
    posterior = mixed_model.sample(law, curves, prior)
    ahead = [_last(every[0]), max(float(at[-1]), run.rate.tokens[-1])]
    now = float(here.tokens[-1])
    every_at = np.union1d(at, now)
    x, log_clock = _covariates(law, run.rate, every_at, reference, [0.0, *ahead])
    draws, alone = posterior.paths(0, x, log_clock, DRAWS, seed)
    wrong = np.random.default_rng(seed + 1).standard_normal((DRAWS, 1)) * priors.MODEL_ERROR
    change = alone - alone[:, np.searchsorted(every_at, now)][:, None]
    draws = draws + wrong * np.where(every_at > now, change, 0.0)
    draws, alone = (paths[:, np.searchsorted(every_at, at)] for paths in (draws, alone))
    decay_unseen = "decrease" in law.covariates and _blind(every, float(at[-1]))
    return Extrapolation(start + unit * draws, start + unit * alone, posterior, decay_unseen=decay_unseen)


def _blind(every: Sequence[RunCurve], end: float) -> bool:
    """Whether the rate of the first run will fall by MUCH of its peak or more, and far more than in any known curve."""
    seen = max(one.rate.fallen(_last(one)) for one in every)
    return every[0].rate.fallen(end) > max(MUCH, FAR * seen)


def calibrated(
    law: Law, belief: Prior, run: RunCurve, at: np.ndarray, reference_runs: Sequence[RunCurve] = (), seed: int = 0
):
    """`extrapolate`, with intervals as wide as backtests on the reference runs ask for.

    With ENOUGH_REFERENCE_RUNS, each is forecast to its end by the others, from the share of its clock that the cut-off
    is of this one. With z the errors over the sds that were claimed, draws are spread about their median by the square
    root of (TRUST + sum z^2)/(TRUST + count): the model's own word counts as TRUST backtests. With fewer reference
    runs the intervals are the model's own.
    """
    found = extrapolate(law, belief, run, at, reference_runs, seed)
    found_out = [backtest_case(law, belief, *trial) for trial in backtest_cases(law, run, at, reference_runs)]
    z = [float(np.clip(error / sd, -WORST, WORST)) for error, sd in found_out if np.isfinite(error)]
    factor = float(np.sqrt((TRUST + sum(one**2 for one in z)) / (TRUST + len(z))))
    middle = np.median(found.draws, axis=0)
    return replace(found, draws=middle + factor * (found.draws - middle), backtest_z=tuple(z), factor=factor)


def backtest_cases(
    law: Law, run: RunCurve, at: np.ndarray, reference_runs: Sequence[RunCurve]
) -> list[tuple[RunCurve, float, Sequence[RunCurve]]]:
    """(run, tokens to forecast it from, others) of each backtest on reference_runs; none with too few of them."""
    if len(reference_runs) < ENOUGH_REFERENCE_RUNS:
        return []
    seen = _clock(law, run.rate, run.tokens[-1:]).sum()  # zero where nothing was seen
    share = float(seen / _clock(law, run.rate, at[-1:])[0])
    found = []
    for k, one in enumerate(reference_runs):
        clock = _clock(law, one.rate, one.tokens)
        others = (*reference_runs[:k], *reference_runs[k + 1 :])
        found.append((one, float(np.interp(share * clock[-1], clock, one.tokens)), others))
    return found


def backtest_case(
    law: Law, belief: Prior, run: RunCurve, origin: float, others: Sequence[RunCurve]
) -> tuple[float, float]:
    """Error (observed minus forecast) at the last point of a run, forecast from tokens up to `origin`, and its sd.

    NaN where one side of the origin holds too little.
    """
    seen, kept = run.tokens <= origin, usable(run)
    past = RunCurve(run.tokens[seen], run.y[seen], run.rate, run.n_params, None)
    if usable(past).sum() < FEWEST or not (kept & ~seen).any():
        return np.nan, np.nan
    last = np.flatnonzero(kept)[-1]
    draws = extrapolate(law, belief, past, run.tokens[last : last + 1], others).draws[:, 0]
    return float(run.y[last] - np.median(draws)), max(float(draws.std()), 1e-12)


def _thinned(run: RunCurve) -> RunCurve:
    kept = np.flatnonzero(usable(run))
    if len(kept) > POINTS:
        tokens = run.tokens[kept]
        even = np.geomspace(tokens[0], tokens[-1], POINTS)
        kept = kept[np.unique(np.searchsorted(tokens, even).clip(0, len(tokens) - 1))]
    noise = np.ones(len(kept)) if run.noise is None else run.noise[kept]
    return RunCurve(run.tokens[kept], run.y[kept], run.rate, run.n_params, noise)


def _in_units(run: RunCurve, start: float, unit: float) -> RunCurve:
    return replace(run, y=(run.y - start) / unit)


def _clock(law: Law, rate: LearningRate, tokens: np.ndarray) -> np.ndarray:
    return rate.area(tokens) if "area" in law.covariates else np.asarray(tokens, float)


def _last(run: RunCurve) -> float:
    """Tokens at the last point."""
    return float(run.tokens[-1]) if len(run.tokens) else 0.0


def _covariates(
    law: Law, rate: LearningRate, tokens: np.ndarray, reference: float, edges: Sequence[float]
) -> tuple[Any, np.ndarray]:
    """What the law reads at these tokens, and the logarithm of its clock; edges as in `LearningRate.covariates`."""
    clock = _clock(law, rate, tokens) / reference
    x = rate.covariates(tokens, reference, edges) if "area" in law.covariates else clock
    return x, np.log(clock)


def _problem(law: Law, belief: Prior, every: Sequence[RunCurve], reference: float):
    """Curves and prior of the mixed model; the run itself is the first curve."""
    points = -(-max(len(one.tokens) for one in every) // 16) * 16  # few sizes: programs are compiled for each
    filled = [_filled(one, points, reference) for one in every]
    told = [
        _covariates(law, one.rate, full.tokens, reference, [0.0, _last(one)])
        for one, full in zip(every, filled, strict=True)
    ]
    known = np.stack([np.arange(points) < len(one.tokens) for one in every])
    size = _sizes(every)
    names = told[0][0].keys() if isinstance(told[0][0], dict) else None
    x = np.stack([x for x, _ in told]) if names is None else {n: np.stack([x[n] for x, _ in told]) for n in names}
    mix, prior = _effects(belief, size)
    curves = mixed_model.CurveBatch(
        y=np.stack([one.y for one in filled]),
        x=x,
        log_clock=np.stack([clock for _, clock in told]),
        known=known,
        noise=np.stack([one.noise for one in filled if one.noise is not None]),
        mix=mix,
        size=size,
    )
    return curves, prior


def _filled(run: RunCurve, points: int, reference: float) -> RunCurve:
    """The run with its last point repeated up to `points`; an empty one with points at the reference."""
    more = points - len(run.tokens)
    edge = run.tokens[-1] if len(run.tokens) else reference
    noise = run.noise if run.noise is not None else np.ones(len(run.tokens))
    tokens = np.concatenate([run.tokens, np.full(more, float(edge))])
    return RunCurve(
        tokens, np.pad(run.y, (0, more)), run.rate, run.n_params, np.pad(noise, (0, more), constant_values=1.0)
    )


def _sizes(every: Sequence[RunCurve]) -> np.ndarray:
    """log n_params over the run's own, (R,); zero where it is not known for all."""
    known = [one.n_params for one in every]
    if any(n is None for n in known):
        return np.zeros(len(known))
    sizes = np.log(np.asarray(known, float))
    return sizes - sizes[0]


def _effects(belief: Prior, size: np.ndarray) -> tuple[np.ndarray, mixed_model.ModelPrior]:
    """How the runs' coefficients mix effects (a level, a trend in size, each run's own part), and the prior."""
    mean, sd = (np.array(column) for column in zip(*belief.coefs, strict=True))
    drift = np.where(np.ptp(size) > 0, np.array(belief.shape_drift), 1e-6)
    tail = (priors.ELL, priors.SIGMA, priors.NU, priors.TAU)
    eta = np.array([m for m, _ in belief.shapes] + [0.0] * len(drift) + [m for m, _ in tail])
    eta_sd = np.array([s for _, s in belief.shapes] + drift.tolist() + [s for _, s in tail])
    runs = len(size)
    if runs == 1:
        return np.ones((1, 1)), mixed_model.ModelPrior(eta, eta_sd, mean[None], sd[None], np.zeros(1, bool))
    mix = np.concatenate([np.ones((runs, 1)), size[:, None], np.eye(runs)], axis=1)
    effect = np.concatenate([mean[None], np.zeros((1 + runs, len(mean)))])
    effect_sd = np.concatenate([2 * sd[None], np.array([belief.drift]), np.tile(sd, (runs, 1))])
    return mix, mixed_model.ModelPrior(eta, eta_sd, effect, effect_sd, np.arange(2 + runs) >= 2)
