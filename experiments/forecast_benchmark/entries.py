"""The methods that enter the benchmark. A new one enters in ten lines:

    @entry("my own")
    def my_own(prefix: Prefix) -> np.ndarray:
        sd = np.diff(prefix.loss).std()
        return prefix.loss[-1] + sd * NORMAL

A function of what is known at the cut-off, a `Prefix`, that returns the QUANTILES of the final loss, nats. What is not
known to the function cannot be seen by it: the rest of the run is not in the process's hands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import xarray as xr
from scipy.optimize import least_squares
from scipy.stats import norm, t

import tsl_jax as tsl
from tsl_jax.forecasting import ForecastMethod, lr_aware, lr_history
from tsl_jax.laws import Schedule

QUANTILES = np.array([0.05, 0.25, 0.5, 0.75, 0.95])
NORMAL = norm.ppf(QUANTILES)
LATE, ORIGINS, STARTS = 0.5, (0.5, 0.7), 6
POINTS = 64  # of a prefix that a least-squares fit reads
HUBER = 1e-3  # of the residual of the logarithm, as Hoffmann et al. and Luo et al. take it


@dataclass(frozen=True)
class Prefix:
    """What is known at the cut-off.

    Attributes:
        past: the surface up to there, one split, one position, with the plan as attribute schedule, n_params and
            batch_tokens where known, and recorded rates. at: tokens of the rows whose mean loss is asked for.
    """

    past: xr.Dataset
    at: np.ndarray

    @property
    def tokens(self) -> np.ndarray:
        return self.past.tokens.values.astype(float)

    @property
    def loss(self) -> np.ndarray:
        return self.past.loss.values[0, :, 0]

    @property
    def rate(self) -> lr_history.LearningRate:
        """The learning rate, past and planned."""
        return lr_history.of_run(self.past, Schedule.from_plan(self.past.attrs["schedule"]))

    def cut(self, share: float) -> Prefix:
        """The same from a share of the tokens seen, asked for the last row of this one."""
        seen = self.past.sel(tokens=self.past.tokens <= share * self.tokens[-1])
        return Prefix(seen, self.tokens[-1:])


Entry = Callable[[Prefix], np.ndarray]
ENTRIES: dict[str, Entry] = {}


def entry(name: str) -> Callable[[Entry], Entry]:
    """Enter a method by this name."""

    def enter(method: Entry) -> Entry:
        ENTRIES[name] = method
        return method

    return enter


# --- this project


@entry("tsl_jax")
def ours(prefix: Prefix) -> np.ndarray:
    """The default of `tsl.forecast`."""
    return _by(prefix, "mean_annealing")


@entry("tsl_jax, no plan given")
def ours_without_plan(prefix: Prefix) -> np.ndarray:
    """The same, the rate to come recognised or held."""
    attrs = {name: value for name, value in prefix.past.attrs.items() if name != "schedule"}
    return _by(Prefix(prefix.past.drop_attrs().assign_attrs(attrs), prefix.at), "mean_annealing")


@entry("annealing in proportion to the rate, Bayesian")
def in_proportion(prefix: Prefix) -> np.ndarray:
    """The default of `tsl.forecast` until 2026-11-29: its law and its priors, which do not know the peak."""
    return _by(prefix, ForecastMethod("in_proportion", tsl.laws.AREA_ANNEALING, lr_aware.of_mean))


@entry("multi-power, Bayesian")
def multi_power_prior(prefix: Prefix) -> np.ndarray:
    """The multi-power law with this project's priors."""
    return _by(prefix, "mean_multi_power")


def _by(prefix: Prefix, method: str | ForecastMethod) -> np.ndarray:
    draws = tsl.forecast(prefix.past, at=prefix.at, method=method, by_position=False).draws
    if draws is None:
        return np.full(len(QUANTILES), np.nan)
    return np.quantile(draws.squeeze("split").mean("tokens").values, QUANTILES)


# --- what one would write


def _with_origins(point: Callable[[Prefix], float], prefix: Prefix) -> np.ndarray:
    """Quantiles from how far off the method was from ORIGINS within the past, the error in proportion to log tokens."""
    middle, rates = point(prefix), []
    for share in ORIGINS:
        earlier = prefix.cut(share)
        if len(earlier.tokens) >= 4:
            folds = np.log(prefix.tokens[-1] / earlier.tokens[-1])
            rates.append((point(earlier) - prefix.loss[-1]) / max(folds, 1e-3))
    if not rates:
        return np.array([np.nan, np.nan, middle, np.nan, np.nan])
    ahead = np.log(prefix.at[-1] / prefix.tokens[-1])
    scale = np.sqrt(np.mean(np.square(rates))) * ahead
    return middle + scale * t.ppf(QUANTILES, max(len(rates), 2))


def _late(prefix: Prefix, share: float = LATE) -> tuple[np.ndarray, np.ndarray]:
    """The last part of the past, as tokens and losses."""
    late = prefix.tokens >= share * prefix.tokens[-1]
    late[-4:] = True
    return prefix.tokens[late], prefix.loss[late]


@entry("power law, last half")
def power(prefix: Prefix) -> np.ndarray:
    """L0 + A N^-alpha by soft L1 on the last half of the tokens seen."""
    return _with_origins(_power, prefix)


def _power(prefix: Prefix) -> float:
    tokens, loss = _late(prefix)
    unit = tokens[-1]

    def residual(p: np.ndarray) -> np.ndarray:
        return p[0] + np.exp(p[1]) * (tokens / unit) ** -np.exp(p[2]) - loss

    starts = [(loss[-1] - gap, np.log(gap), np.log(alpha)) for gap in (0.1, 0.5) for alpha in (0.3, 0.8)]
    found = min((least_squares(residual, s, loss="soft_l1", f_scale=0.02) for s in starts), key=lambda fit: fit.cost)
    return float(np.mean(found.x[0] + np.exp(found.x[1]) * (prefix.at / unit) ** -np.exp(found.x[2])))


@entry("logarithm, last half")
def logarithm(prefix: Prefix) -> np.ndarray:
    """a + b log N by least squares on the last half of the tokens seen."""
    return _with_origins(_logarithm, prefix)


def _logarithm(prefix: Prefix) -> float:
    tokens, loss = _late(prefix)
    slope, level = np.polyfit(np.log(tokens), loss, 1)
    return float(np.mean(level + slope * np.log(prefix.at)))


@entry("reciprocal, last half")
def reciprocal(prefix: Prefix) -> np.ndarray:
    """a + b/N by least squares on the last half of the tokens seen."""
    return _with_origins(_reciprocal, prefix)


def _reciprocal(prefix: Prefix) -> float:
    tokens, loss = _late(prefix)
    slope, level = np.polyfit(1 / tokens, loss, 1)
    return float(np.mean(level + slope / prefix.at))


@entry("last value")
def last_value(prefix: Prefix) -> np.ndarray:
    """The mean of the last tenth of the tokens seen; it falls as it fell from the half of the tokens to there."""
    return _with_origins(lambda known: float(_late(known, 0.9)[1].mean()), prefix)


@entry("multi-power, fitted")
def multi_power(prefix: Prefix) -> np.ndarray:
    """The law of Luo et al., every shape free, by Huber's loss of the logarithm from STARTS starts."""
    return _fitted(prefix, np.log([0.4, 300, 1, 0.5]))


@entry("annealing, fitted")
def annealing(prefix: Prefix) -> np.ndarray:
    """The multi-power law with beta = 1 and gamma = 1/2, two shapes, fitted likewise."""
    return _fitted(prefix, np.log([0.4, 300]))


def _multi_power(p: np.ndarray, x: dict[str, np.ndarray]) -> np.ndarray:
    """L0 + A S^-alpha - C sum_k d_k (1 - (1 + c (S - S_k) eta_k^-gamma)^-beta), from the logs of its parameters."""
    alpha, c, beta, gamma = np.exp([*p[:-3], *np.log([1, 0.5])][:4])
    level, fall, gain = np.exp(p[-3:])
    since = np.maximum(x["area"][:, None] - x["at_area"], 0) * x["to_rate"] ** -gamma
    return level + fall * x["area"] ** -alpha - gain * ((1 - (1 + c * since) ** -beta) @ x["decrease"])


def _fitted(prefix: Prefix, shapes: np.ndarray) -> np.ndarray:
    """Quantiles by the covariance of the fit and its residuals, as a curve fit reports them."""
    rate = prefix.rate
    kept = np.flatnonzero((prefix.tokens > 1.25 * rate.warmup) & (prefix.loss > 0))
    if len(kept) < len(shapes) + 3:
        raise ValueError("fewer rows than parameters")
    kept = np.unique(kept[np.linspace(0, len(kept) - 1, min(len(kept), POINTS)).astype(int)])
    unit, y = float(rate.area(prefix.tokens[-1:])[0]), prefix.loss[kept]
    known, ahead = (dict(rate.covariates(tokens, unit)) for tokens in (prefix.tokens[kept], prefix.at))
    bounds = np.array([[-4, 12]] * len(shapes) + [[-20, 3]] * 3, float).T

    def residual(p: np.ndarray) -> np.ndarray:
        return np.log(np.maximum(_multi_power(p, known), 1e-6)) - np.log(y)

    random, fits = np.random.default_rng(0), []
    for _ in range(STARTS):
        start = np.append(shapes + random.normal(0, 0.5, len(shapes)), np.log(np.array([0.8, 0.2, 0.05]) * y[-1]))
        fits.append(least_squares(residual, start, loss="huber", f_scale=HUBER, bounds=bounds, max_nfev=100))
    best = min(fits, key=lambda fit: fit.cost)
    middle = float(_multi_power(best.x, ahead).mean())
    sd = np.sqrt(np.sum(best.fun**2) / max(len(y) - len(best.x), 1))  # of the logarithm
    half = 1e-4 * np.eye(len(best.x))
    slope = np.array([(_multi_power(best.x + e, ahead) - _multi_power(best.x - e, ahead)).mean() / 2e-4 for e in half])
    spread = np.sqrt(slope @ np.linalg.pinv(best.jac.T @ best.jac) @ slope + y[-1] ** 2) * sd
    return middle + min(float(spread), y[-1]) * NORMAL
