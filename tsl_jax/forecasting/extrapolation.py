"""One curve over a run, extrapolated: from its own past, and from reference runs where there are any.

A law over tokens or over the area under the learning rate is fitted by the mixed model of `mixed_model.py`; reference
runs are further curves of that model, whose coefficients scatter about a trend in log n_params. What comes out are
draws of the future curve, from which any interval can be read. The layers:

    extrapolate     one law, with the intervals of the model itself
    calibrated      the same, its intervals widened or narrowed by backtests on the reference runs
"""

from __future__ import annotations

import hashlib
import pickle
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from tsl_jax.forecasting import mixed_model, priors
from tsl_jax.forecasting.lr_history import LearningRate
from tsl_jax.forecasting.priors import Prior
from tsl_jax.laws import Law

POINTS = 64  # of a curve that are used, at most: evenly spaced in the logarithm of tokens
REFERENCE_POINTS = 32  # of each reference run: there are several, and the forecast starts from none
ROWS = 256  # of a log with more of them (training losses, a row a step) the points are means of all rows between two
CLIPPED = 3.0  # robust standard deviations from the median of its neighbours at which a row of such a mean is cut off
OLDEST = 0.05  # share of the tokens seen: earlier checkpoints mislead about the later ones
AFTER_WARMUP = 1.25  # times the tokens of the warm-up: before, the loss still recovers from it
TRANSIENT = 1.2  # a loss above so many times the last one belongs to the start of a run, which follows no power law
LEAST = 4  # points that are left where those are dropped
DRAWS = 512
FEWEST = 3  # points of all curves together
ENOUGH_REFERENCE_RUNS, MOST_BACKTESTS = 3, 8
KEPT = 16  # calibrated forecasts that are remembered
WORST = 6.0  # no backtest counts as more sds than these
MUCH, FAR = 0.05, 3.0  # a decay is unseen beyond this share of the peak and this multiple of any known decrease
TRUST = 4.0  # backtests that the model's own sd is worth


@dataclass(frozen=True)
class RunCurve:
    """A curve of a run as far as it is known.

    Attributes:
        tokens, y: (point,) where and what. rate: its learning rate, past and planned. n_params: of its model, or None.
        noise: (point,) factors of the variance of the white residual, or None for equal ones.
        batch_tokens: of a step of the optimiser, or None. is_loss: whether y is a loss, whose start is left out.
    """

    tokens: Float[np.ndarray, " point"]
    y: Float[np.ndarray, " point"]
    rate: LearningRate
    n_params: float | None = None
    noise: np.ndarray | None = None
    batch_tokens: float | None = None
    is_loss: bool = False

    @property
    def last(self) -> float:
        """Tokens at the last point, 0 without any."""
        return float(self.tokens[-1]) if len(self.tokens) else 0.0


@dataclass(frozen=True)
class Extrapolation:
    """A curve beyond its last point.

    Attributes:
        draws: (draw, at) at the tokens asked for. law_alone: the same without residuals. posterior: of the parameters.
        backtest_z: of each backtest on reference runs the error over the sd that was claimed. factor: by which the
            distance of the draws from their median was multiplied.
        decay_unseen: whether the learning rate will fall further than it did in any known curve: its effect on the
            loss then rests on the prior alone.
        reference: the unit of the posterior's clock.
    """

    draws: Float[np.ndarray, "draw at"]
    law_alone: Float[np.ndarray, "draw at"]
    posterior: mixed_model.Posterior
    backtest_z: tuple[float, ...] = ()
    factor: float = 1.0
    decay_unseen: bool = False
    reference: float = 1.0


def usable(run: RunCurve) -> Bool[np.ndarray, " point"]:
    """Which points of a run are fitted (point,)."""
    finite = np.isfinite(run.y)
    last = run.tokens[finite].max(initial=0)
    late = finite & (run.tokens >= max(AFTER_WARMUP * run.rate.warmup, OLDEST * last))
    if late.sum() < FEWEST:  # rather those just after the warm-up than none
        late = finite & (run.tokens >= max(run.rate.warmup, OLDEST * last))
    if not run.is_loss or late.sum() < LEAST:
        return late
    newest = run.y[late][-max(int(late.sum()) // 20, 1) :]
    beyond_start = late & (run.y <= TRANSIENT * np.median(newest))
    return beyond_start if beyond_start.sum() >= LEAST else late


def extrapolate(
    law: Law,
    prior: Prior,
    run: RunCurve,
    at: np.ndarray,
    reference_runs: Sequence[RunCurve] = (),
    seed: int = 0,
    near: Extrapolation | None = None,
) -> Extrapolation:
    """Extrapolate a curve to tokens `at`, increasing and beyond its last point.

    Args:
        law: over ("tokens",) or the covariates of the learning rate. prior: of its parameters.
        run: the past, perhaps empty where there are reference runs. reference_runs: other runs, whole or not.
        near: one of nearly the same curves, at whose posterior the sampler begins; default the prior.

    Raises:
        ValueError: if run and reference runs together hold fewer than FEWEST points.
    """
    curves = [_thinned(run, POINTS), *(_thinned(curve, REFERENCE_POINTS) for curve in reference_runs)]
    if sum(len(curve.tokens) for curve in curves) < FEWEST:
        # the highest rate recorded is taken for the end of the warm-up, wherever the log begins
        fix = "where the warm-up was over before the first of them, say so: tsl import --warmup-tokens N"
        raise ValueError(f"forecast: {FEWEST} checkpoints past the warm-up are needed; {fix}")
    # Priors are about (y - start)/unit over clock/reference, so that neither the unit of the loss nor the length of the
    # run matters. Both are read at the last point seen: of the run, or of the longest reference run if it has none.
    newest = curves[0] if len(curves[0].tokens) else max(curves[1:], key=lambda curve: curve.last)
    level, now = float(newest.y[-1]), float(newest.tokens[-1])  # value and tokens of the last point
    start, unit = level if prior.centred else 0.0, prior.unit or abs(level) or 1.0
    reference = _clock(law, run.rate, newest.tokens[-1:])[0]
    prior = priors.of_run(prior, law, run.rate.peak, run.n_params, run.batch_tokens and reference / run.batch_tokens)
    scaled = [replace(curve, y=(curve.y - start) / unit) for curve in curves]
    problem = _mixed_problem(law, prior, scaled, reference)
    posterior = _sampled(law, *problem, near and _moved(near, law, problem[1], reference))
    # the past, what is asked for, and the rest of the plan in parts of their own: the law's value at `now` must not
    # depend on how far one looks ahead
    edges = [0.0, curves[0].last, max(float(at[-1]), run.rate.tokens[-1])]
    points = np.union1d(at, now)
    draws, alone = posterior.paths(0, *_covariates(law, run.rate, points, reference, edges), DRAWS, seed)
    # No law is exact: each draw's change since now is off by a share of itself, law_error z with z ~ N(0, 1).
    share = np.random.default_rng(seed + 1).standard_normal((DRAWS, 1)) * prior.residuals.law_error
    change = alone - alone[:, np.searchsorted(points, now)][:, None]
    draws = draws + share * np.where(points > now, change, 0.0)
    draws, alone = (paths[:, np.searchsorted(points, at)] for paths in (draws, alone))
    fallen = max(curve.rate.fallen(curve.last) for curve in curves)  # at the last points, in shares of the peak
    unseen = "decrease" in law.covariates and curves[0].rate.fallen(float(at[-1])) > max(MUCH, FAR * fallen)
    draws, alone = start + unit * draws, start + unit * alone
    return Extrapolation(draws, alone, posterior, decay_unseen=unseen, reference=reference)


def _moved(
    near: Extrapolation, law: Law, prior: mixed_model.ModelPrior, reference: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of a posterior in the units of another clock: rates move as their priors do, sigma as u."""
    mean = near.posterior.mean + prior.eta - near.posterior.prior.eta
    mean[2 * len(law.shapes) + 1] += mixed_model.KAPPA * np.log(near.reference / reference)
    return mean, near.posterior.covariance


_posteriors: OrderedDict[tuple[Law, bytes], mixed_model.Posterior] = OrderedDict()


def _sampled(law: Law, curves: Any, prior: Any, near: tuple[np.ndarray, np.ndarray] | None) -> mixed_model.Posterior:
    """`mixed_model.sample`; the last KEPT are remembered: plans that differ in the future alone have one posterior."""
    key = law, hashlib.sha256(pickle.dumps((curves, prior, near))).digest()
    if key not in _posteriors:
        _posteriors[key] = mixed_model.sample(law, curves, prior, near)
        while len(_posteriors) > KEPT:
            _posteriors.popitem(last=False)
    return _posteriors[key]


def _thinned(run: RunCurve, points: int) -> RunCurve:
    """The usable points: of more than `points`, those at or just after an even grid in log tokens; of ROWS, means."""
    kept = np.flatnonzero(usable(run))
    if len(kept) > ROWS:
        return _binned(run, kept, points)
    if len(kept) > points:
        tokens = run.tokens[kept]
        even = np.geomspace(tokens[0], tokens[-1], points)
        kept = kept[np.unique(np.searchsorted(tokens, even).clip(0, len(tokens) - 1))]
    noise = np.ones(len(kept)) if run.noise is None else run.noise[kept]
    return RunCurve(run.tokens[kept], run.y[kept], run.rate, run.n_params, noise)


def _binned(run: RunCurve, kept: np.ndarray, points: int) -> RunCurve:
    """Means of the rows `kept` in bins, `points` of them, even in log tokens, with their relative variances.

    In each bin residuals r from a line through its rows, the line by least squares once rows beyond CLIPPED robust
    standard deviations are moved there (a spike counts as no more). With the autocorrelation rho of neighbouring rows,
    n rows are worth n (1 - rho)/(1 + rho): a smoothed log has no more to say than the rows it was made of.
    """
    tokens, y = run.tokens[kept], run.y[kept]
    edges = np.geomspace(tokens[0], tokens[-1], points + 1)[1:-1]
    bins = [part for part in np.split(np.arange(len(tokens)), np.searchsorted(tokens, edges)) if len(part)]
    means, places, residuals = np.empty(len(bins)), np.empty(len(bins)), []
    for k, part in enumerate(bins):
        at, rows = tokens[part], y[part]
        middle, span = at.mean(), max(float(np.ptp(at)), 1.0)
        slope = 0.0
        for _ in range(3):
            level = float(np.median(rows - slope * (at - middle) / span))
            line = level + slope * (at - middle) / span
            scale = 1.4826 * float(np.median(np.abs(rows - line)))
            cut = line + np.clip(rows - line, -CLIPPED * scale, CLIPPED * scale) if scale else line
            slope = float(np.polyfit((at - middle) / span, cut, 1)[0]) if len(part) > 2 else 0.0
        means[k], places[k] = cut.mean(), middle
        if len(part) > 2:
            residuals.append(cut - cut.mean() - slope * (at - middle) / span)
    pairs = [(r[:-1] @ r[1:], r @ r * (len(r) - 1) / len(r)) for r in residuals]
    over, under = (sum(part) for part in zip(*pairs, strict=True)) if pairs else (0.0, 0.0)
    rho = float(np.clip(over / under, 0, 0.99)) if under > 0 else 0.0
    worth = np.maximum(np.array([len(part) for part in bins]) * (1 - rho) / (1 + rho), 1.0)
    return RunCurve(places, means, run.rate, run.n_params, float(np.median(worth)) / worth)


def _clock(law: Law, rate: LearningRate, tokens: np.ndarray) -> np.ndarray:
    """What a law counts in: the area under the learning rate, or tokens."""
    return rate.area(tokens) if "area" in law.covariates else np.asarray(tokens, float)


def _covariates(
    law: Law, rate: LearningRate, tokens: np.ndarray, reference: float, edges: Sequence[float]
) -> tuple[Any, np.ndarray]:
    """What the law reads at these tokens, and the logarithm of its clock; edges as in `LearningRate.covariates`."""
    clock = _clock(law, rate, tokens) / reference
    x = rate.covariates(tokens, reference, edges) if "area" in law.covariates else clock
    return x, np.log(clock)


def _mixed_problem(
    law: Law, prior: Prior, curves: Sequence[RunCurve], reference: float
) -> tuple[mixed_model.CurveBatch, mixed_model.ModelPrior]:
    """Curves and prior of the mixed model; the run itself is the first curve.

    Curves are padded with their last point (an empty one with the reference), so that few sizes are compiled.
    """
    points = -(-max(len(curve.tokens) for curve in curves) // 16) * 16  # rounded up to a multiple of 16
    padding = [(0, points - len(curve.tokens)) for curve in curves]
    covariates, log_clocks = [], []
    of_optimiser = all(priors.is_absolute(curve.rate.peak) for curve in curves)
    peaks = np.array([curve.rate.peak / curves[0].rate.peak if of_optimiser else 1.0 for curve in curves])
    for curve, (_, more), peak in zip(curves, padding, peaks, strict=True):
        edge = float(curve.tokens[-1]) if len(curve.tokens) else float(reference)
        tokens = np.concatenate([curve.tokens, np.full(more, edge)])
        x, log_clock = _covariates(law, curve.rate, tokens, reference, [0.0, curve.last])
        covariates.append({**x, "peak": peak[None]} if isinstance(x, dict) else x)
        log_clocks.append(log_clock)
    noises = [np.ones(len(curve.tokens)) if curve.noise is None else curve.noise for curve in curves]
    names = covariates[0].keys() if isinstance(covariates[0], dict) else None
    sizes = [curve.n_params for curve in curves]
    size = np.zeros(len(sizes)) if any(n is None for n in sizes) else np.log(np.asarray(sizes, float))
    size = size - size[0]  # log(n_params / that of the run itself), so that its own drift is 0
    mix, model_prior = _effects(prior, size, np.log(peaks))
    batch = mixed_model.CurveBatch(
        y=np.stack([np.pad(curve.y, pad) for curve, pad in zip(curves, padding, strict=True)]),
        x=np.stack(covariates) if names is None else {n: np.stack([x[n] for x in covariates]) for n in names},
        log_clock=np.stack(log_clocks),
        known=np.stack([np.arange(points) < len(curve.tokens) for curve in curves]),
        noise=np.stack([np.pad(noise, pad, constant_values=1.0) for noise, pad in zip(noises, padding, strict=True)]),
        mix=mix,
        size=size,
    )
    return batch, model_prior


def _effects(prior: Prior, size: np.ndarray, peak: np.ndarray) -> tuple[np.ndarray, mixed_model.ModelPrior]:
    """How the effects mix to the coefficients of the runs, and the prior of all that is sampled.

    beta_r = level + trend size_r + own_r (+ drift peak_r, where peaks differ),        the run alone: beta = level.

    Args:
        size, peak: (run,) logs of n_params and of the peak rate, over those of the run itself.
    """
    mean, sd = (np.array(column) for column in zip(*prior.coefs, strict=True))  # (k,) each
    drift = np.where(np.ptp(size) > 0, np.array(prior.shape_drift), 1e-6)  # equal sizes say nothing of a drift
    of_rest = prior.residuals
    residuals = (of_rest.ell, of_rest.sigma, of_rest.nu, of_rest.tau)
    eta = np.array([m for m, _ in prior.shapes] + [0.0] * len(drift) + [m for m, _ in residuals])
    eta_sd = np.array([s for _, s in prior.shapes] + drift.tolist() + [s for _, s in residuals])
    runs = len(size)
    if runs == 1:
        return np.ones((1, 1)), mixed_model.ModelPrior(eta, eta_sd, mean[None], sd[None], np.zeros(1, bool))
    mix = np.concatenate([np.ones((runs, 1)), size[:, None], np.eye(runs)], axis=1)  # (R, 2 + R)
    effect_sd = np.concatenate([2 * sd[None], np.array([prior.drift]), np.tile(sd, (runs, 1))])
    own = np.arange(2 + runs) >= 2
    if prior.peak_drift and np.ptp(peak) > 0:
        mix = np.concatenate([mix, peak[:, None]], axis=1)
        effect_sd = np.concatenate([effect_sd, [prior.peak_drift]])
        own = np.append(own, False)
    effect = np.zeros_like(effect_sd)
    effect[0] = mean  # only the level has a mean
    return mix, mixed_model.ModelPrior(eta, eta_sd, effect, effect_sd, own)


# ----------------------------------------------------------------------------------------------------------- backtests


_kept: OrderedDict[tuple[Law, bytes], Extrapolation] = OrderedDict()


def calibrated(
    law: Law, prior: Prior, run: RunCurve, at: np.ndarray, reference_runs: Sequence[RunCurve] = (), seed: int = 0
) -> Extrapolation:
    """`extrapolate`, with intervals as wide as backtests on the reference runs ask for.

    With ENOUGH_REFERENCE_RUNS, each is forecast to its end by the others, from the share of its clock that the cut-off
    is of this one; of more than MOST_BACKTESTS so many are, evenly among them as they were given. With z the errors
    over the predicted sds, distances of the draws from their median scale by

        sqrt((TRUST + sum z^2) / (TRUST + count)):

    the model's own sd counts as TRUST backtests with z = 1. With fewer reference runs the intervals are the model's.
    """
    key = law, hashlib.sha256(pickle.dumps((prior, run, at, tuple(reference_runs), seed))).digest()
    found = _kept.get(key)
    if found is not None:
        return found
    own = extrapolate(law, prior, run, at, reference_runs, seed)
    near = own if own.posterior.converged else None
    errors = [backtest_case(law, prior, *case, near) for case in backtest_cases(law, run, at, reference_runs)]
    z = [float(np.clip(error / sd, -WORST, WORST)) for error, sd in errors if np.isfinite(error)]
    factor = float(np.sqrt((TRUST + sum(value**2 for value in z)) / (TRUST + len(z))))
    middle = np.median(own.draws, axis=0)  # (at,): the width changes, the point forecast does not
    scaled = replace(own, draws=middle + factor * (own.draws - middle), backtest_z=tuple(z), factor=factor)
    _kept[key] = scaled
    while len(_kept) > KEPT:
        _kept.popitem(last=False)
    return scaled


def backtest_cases(
    law: Law, run: RunCurve, at: np.ndarray, reference_runs: Sequence[RunCurve]
) -> list[tuple[RunCurve, float, Sequence[RunCurve]]]:
    """(run, tokens to forecast it from, others) of each backtest on reference runs; none with too few of them."""
    count = len(reference_runs)
    if count < ENOUGH_REFERENCE_RUNS:
        return []
    seen = _clock(law, run.rate, run.tokens[-1:]).sum()  # zero where nothing was seen
    share = float(seen / _clock(law, run.rate, at[-1:])[0])  # of the clock at the last token count asked for
    cases = []
    for k in np.unique(np.linspace(0, count - 1, min(count, MOST_BACKTESTS)).round().astype(int)).tolist():
        target = reference_runs[k]
        clock = _clock(law, target.rate, target.tokens)
        others = (*reference_runs[:k], *reference_runs[k + 1 :])
        cases.append((target, float(np.interp(share * clock[-1], clock, target.tokens)), others))
    return cases


def backtest_case(
    law: Law,
    prior: Prior,
    run: RunCurve,
    origin: float,
    others: Sequence[RunCurve],
    near: Extrapolation | None = None,
) -> tuple[float, float]:
    """Error (observed minus forecast) at the last point of a run, forecast from tokens up to `origin`, and its sd.

    NaN where one side of the origin holds too little.
    """
    seen, kept = run.tokens <= origin, usable(run)
    past = replace(run, tokens=run.tokens[seen], y=run.y[seen], noise=None)  # the schedule ahead is known
    if usable(past).sum() < FEWEST or not (kept & ~seen).any():
        return np.nan, np.nan
    last = np.flatnonzero(kept)[-1]
    draws = extrapolate(law, prior, past, run.tokens[last : last + 1], others, near=near).draws[:, 0]
    return float(run.y[last] - np.median(draws)), max(float(draws.std()), 1e-12)
