"""The loss as a function of the mixture and of the size of a run, by Gaussian process regression.

The logarithm of the loss of a run of mixture x and scale s (half the log of its FLOPs, about the log of its size):

    y(x, s) = level(s) + g(x, s) + noise,
    level(s) = b0 + b1 log N + b2 log T + (b2 + b3) log w + a step of its own at each size
    cov(g(x, s), g(x', s')) = exp(-kappa (s + s')) exp(-|s - s'|/lambda)
                              (v_lin <x, x'> + v_smooth Matern52(|sqrt x - sqrt x'|_l) + v_own [x = x'])

linear in the shares, and smooth in their square roots (the first percent of a domain counts most), with a length a
domain. Across sizes the effects of mixtures shrink or grow by exp(-kappa s) and agree the less the further sizes are
apart: small runs give the mean, the target's own runs correct it (in the manner of multi-fidelity regression, Kennedy
and O'Hagan 2000). v_own is what a mixture has beyond the smooth function: where none was run twice the prior on the
noise, what seeds of published runs differ by, tells it from luck. Without mixtures candidates are names, and it is all
there is.

Where text is read again, x are the shares of what it is worth in new tokens (`mixture_columns.worth`), w is the sum of
that over the tokens read, and a mixture whose text repeats has an own effect apart from that of the same without.

The 6 + 2 + domains numbers are those of the highest posterior density under broad priors (`PRIORS`), found by L-BFGS
with exact gradients on at most MOST rows; all rows are then conditioned on. Chosen on simulated tables:
experiments/selection_simulations.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

MOST = 400  # rows that parameters are fitted on: a Cholesky factor of these for each of some 60 steps
REPETITION_SD = 0.3  # prior sd of b3, log loss by e-folds of w: small models lose far more than by b2 alone
ALIKE = 0.01  # of log w: mixtures that repeat their text as much
LEVEL = 100.0  # prior sd of b0 in standard deviations of the losses of one size
SLOPE, SLOPE_SD = -0.06, 0.06  # prior of b1 and b2, log loss by e-folds of parameters or tokens: of published laws
JITTER = 1e-7
# log of each: prior mean and sd, in units of the standard deviation of y within a size
PRIORS = {
    "linear": (0.0, 1.5),
    "smooth": (np.log(0.5), 1.5),
    "length": (np.log(0.7), 0.8),
    "noise": (np.log(0.002), 0.7),  # of log loss itself: seeds of one run differ by about .2 %
    "own": (np.log(0.2), 1.0),
    "step": (np.log(1.0), 1.5),
    "kappa": (0.0, 0.2),  # itself, not its log: effects shrink by e^-kappa for each e-fold of parameters
    "range": (np.log(20.0), 1.0),  # lambda: e-folds of parameters over which orders of mixtures agree
}
NAMES = tuple(PRIORS)
LENGTHS = 0.7  # prior sd of the log of a domain's length beside the common one


@dataclass(frozen=True)
class MixturePoints:
    """Runs, or mixtures at a size, as the regression reads them.

    Attributes:
        shares: (point, domain), or None where candidates are names. candidate: (point,) codes.
        log_params, log_tokens: (point,), 0 where not known.
        worth: (point, domain), new tokens that a token read is worth; None where no text is read again.
    """

    shares: np.ndarray | None
    candidate: np.ndarray
    log_params: np.ndarray
    log_tokens: np.ndarray
    worth: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.candidate)

    @property
    def scale(self) -> np.ndarray:
        """Half the log of the FLOPs; the log of what is known, where one alone is."""
        known = [part for part in (self.log_params, self.log_tokens) if np.any(part != 0)]
        return np.mean(known, axis=0) if known else np.zeros(len(self))

    @property
    def size(self) -> np.ndarray:
        """(point,) whole numbers: points of one are of one size and length; see `evidence` for what counts as one."""
        rounded = np.round(np.stack([self.log_params, self.log_tokens], axis=1) * 1e4).astype(int)
        return rounded[:, 0] * 10_000_019 + rounded[:, 1]

    @property
    def log_worth(self) -> np.ndarray:
        """(point,) log w: of the tokens read, how many new ones they are worth; 0 where nothing is read again."""
        if self.shares is None or self.worth is None:
            return np.zeros(len(self))
        return np.log((self.shares * self.worth).sum(1))

    @property
    def effective(self) -> np.ndarray:
        """(point, domain) shares of what the text is worth; of points that have shares."""
        if self.shares is None:
            raise ValueError("select: effective shares need mixtures; these points have none")
        return self.shares if self.worth is None else self.shares * self.worth / np.exp(self.log_worth)[:, None]

    def joined(self, others: MixturePoints) -> MixturePoints:
        """These points, then others of the same kind."""

        def both(own: np.ndarray | None, other: np.ndarray | None) -> np.ndarray | None:
            return None if own is None or other is None else np.concatenate([own, other])

        return MixturePoints(
            both(self.shares, others.shares),
            np.r_[self.candidate, others.candidate],
            np.r_[self.log_params, others.log_params],
            np.r_[self.log_tokens, others.log_tokens],
            both(self.worth, others.worth),
        )

    def take(self, rows: Any) -> MixturePoints:
        """Some of the points."""
        shares = None if self.shares is None else self.shares[rows]
        worth = None if self.worth is None else self.worth[rows]
        return MixturePoints(shares, self.candidate[rows], self.log_params[rows], self.log_tokens[rows], worth)


@dataclass(frozen=True)
class MixtureRegression:
    """A fitted regression.

    Attributes:
        points, y, errors: its runs, their log losses, and the covariance of what is wrong with these beside noise.
        theta: the parameters. center, unit: y = center + unit * (what is modelled). origin: as in `_parts`.
    """

    points: MixturePoints
    y: np.ndarray
    errors: np.ndarray
    theta: np.ndarray
    center: float
    unit: float
    origin: np.ndarray

    def predict(self, points: MixturePoints, of_run: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance of the log loss.

        Args:
            points: where. of_run: for each point the row whose own run it is, -1 for none: then the noise of that run,
                which it keeps to its end, is predicted with it; without, the expected loss of a new run.
        """
        from scipy.linalg import cho_factor, cho_solve

        own = np.full(len(points), -1) if of_run is None else of_run
        noise = np.exp(2 * self.theta[NAMES.index("noise")])
        cross = self._kernel(points, self.points) + noise * (own[:, None] == np.arange(len(self.points))[None])
        prior = self._kernel(points, points) + noise * np.diag((own >= 0).astype(float))
        observed = self._kernel(self.points, self.points) + self.errors / self.unit**2
        factor = cho_factor(observed + (noise + JITTER) * np.eye(len(self.points)), lower=True)
        found = (self.y - _trend(self.points, self.origin) - self.center) / self.unit
        mean = self.center + self.unit * (cross @ cho_solve(factor, found)) + _trend(points, self.origin)
        covariance = self.unit**2 * (prior - cross @ cho_solve(factor, cross.T))
        return mean, (covariance + covariance.T) / 2

    def own_variance(self, point: MixturePoints) -> float:
        """Prior variance of what the mixture of one point has beyond the smooth function."""
        parts = _parts(self.theta, point, point, self.origin)
        return float(self.unit**2 * parts["sizes"][0, 0] * parts["own"][0, 0])

    def without(self, rows: np.ndarray) -> MixtureRegression:
        """The same, its parameters kept, without some of its rows (a mask)."""
        kept = np.flatnonzero(~rows)
        return replace(self, points=self.points.take(kept), y=self.y[kept], errors=self.errors[np.ix_(kept, kept)])

    def _kernel(self, first: MixturePoints, second: MixturePoints) -> np.ndarray:
        parts = _parts(self.theta, first, second, self.origin)
        mixture = parts["linear"] + parts["smooth"] + parts["own"]
        return LEVEL**2 + parts["trend"] / self.unit**2 + parts["step"] + parts["sizes"] * mixture


def fit_regression(
    points: MixturePoints,
    y: np.ndarray,
    errors: np.ndarray | None = None,
    start: Any = None,
    noise: float | None = None,
) -> MixtureRegression:
    """The regression of log losses on mixtures and sizes.

    Args:
        points: a run each. y: (run,) log loss. errors: (run, run) covariance of what is wrong with y beside the noise
            of runs, such as that of an extrapolated end; default none.
        start: parameters to begin at, those of a fit to similar rows. noise: sd of log loss over seeds, where known.
    """
    from scipy.optimize import minimize

    errors = np.zeros((len(y), len(y))) if errors is None else errors
    size = points.size
    spread = y - np.array([y[size == group].mean() for group in size])
    freedom = max(len(y) - len(np.unique(size)), 1)
    unit = max(float(np.sqrt(np.sum(spread**2) / freedom)), 1e-5)
    shares = np.zeros(0) if points.shares is None else points.effective.mean(0)
    origin = np.r_[points.log_params.mean(), points.log_tokens.mean(), points.scale.mean(), shares]
    detrended = y - _trend(points, origin)
    center = float(detrended.mean())
    chosen = np.sort(np.random.default_rng(0).permutation(len(y))[:MOST])
    prior = mean, sd, free = _prior(points, unit)
    if noise is not None:
        place = NAMES.index("noise")
        mean[place], free[place] = np.log(noise / unit), False
    begin = mean if start is None else np.where(free, start, mean)
    bounds = [(m - 4 * s, m + 4 * s) if moves else (m, m) for m, s, moves in zip(mean, sd, free, strict=True)]
    steps = 80 if start is None else 20  # from near by
    few = errors[np.ix_(chosen, chosen)] / unit**2
    arguments = (points.take(chosen), (detrended[chosen] - center) / unit, few, unit, origin, prior)
    found = minimize(_objective, begin, arguments, "L-BFGS-B", jac=True, bounds=bounds, options={"maxiter": steps})
    return MixtureRegression(points, y, errors, found.x, center, unit, origin)


def _trend(points: MixturePoints, origin: np.ndarray) -> np.ndarray:
    """The level by the prior's slopes."""
    return SLOPE * (points.log_params - origin[0] + points.log_tokens - origin[1] + points.log_worth)


def _prior(points: MixturePoints, unit: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Prior mean and sd of the parameters, and which of them the data have a say in; the others are switched off."""
    mixed, sizes = points.shares is not None, len(np.unique(points.size)) > 1
    domains = points.shares.shape[1] if points.shares is not None else 0
    mean = np.r_[[PRIORS[name][0] for name in NAMES], np.zeros(domains)]
    sd = np.r_[[PRIORS[name][1] for name in NAMES], np.full(domains, LENGTHS)]
    on = {"linear": mixed, "smooth": mixed, "length": mixed, "own": True, "noise": True}
    on |= dict.fromkeys(("step", "kappa", "range"), sizes)
    free = np.r_[[on[name] for name in NAMES], np.ones(domains, bool)].astype(bool)
    mean[NAMES.index("noise")] -= np.log(unit)
    if not mixed:
        mean[NAMES.index("own")] = 0.0  # all there is: as wide as the losses are apart
    for name in ("linear", "smooth", "step"):
        if not on[name]:
            mean[NAMES.index(name)] = -50.0
    return mean, sd, free


def _parts(theta: np.ndarray, first: MixturePoints, second: MixturePoints, origin: np.ndarray) -> dict[str, Any]:
    """The summands and factors of the covariance between two sets of points, and what their gradients need.

    Args:
        theta: the logarithms of NAMES (kappa itself), then those of the domains' lengths beside the common one.
        origin: means of log_params, log_tokens, scale, then of the shares, of the rows that were fitted.
    """
    value: Any = dict(zip(NAMES, np.exp(theta[: len(NAMES)]), strict=True))
    basis = []
    for p in (first, second):
        slopes = [p.log_params - origin[0], p.log_tokens - origin[1] + p.log_worth]
        basis.append(np.stack([*(SLOPE_SD * slope for slope in slopes), REPETITION_SD * p.log_worth], axis=1))
    apart = np.abs(first.scale[:, None] - second.scale[None])
    together = first.scale[:, None] + second.scale[None] - 2 * origin[2]
    parts: dict[str, Any] = {"apart": apart / value["range"], "together": together}
    parts["trend"] = basis[0] @ basis[1].T
    parts["step"] = value["step"] ** 2 * (first.size[:, None] == second.size[None])
    parts["sizes"] = np.exp(-theta[NAMES.index("kappa")] * together - parts["apart"])
    repeats = [np.round(p.log_worth / ALIKE) for p in (first, second)]
    same = (first.candidate[:, None] == second.candidate[None]) & (repeats[0][:, None] == repeats[1][None])
    parts["own"] = value["own"] ** 2 * same
    parts["linear"] = parts["smooth"] = np.zeros_like(apart)
    if first.shares is not None and second.shares is not None:
        rates = np.exp(-2 * theta[len(NAMES) :]) / value["length"] ** 2
        x, x2 = first.effective, second.effective
        z, z2 = np.sqrt(x), np.sqrt(x2)
        squares = ((z * z) @ rates)[:, None] + ((z2 * z2) @ rates)[None] - 2 * (z * rates) @ z2.T
        distance = np.sqrt(5 * np.maximum(squares, 0.0))
        decay = value["smooth"] ** 2 * np.exp(-distance)
        parts["smooth"] = decay * (1 + distance + distance**2 / 3)
        parts["slope"] = decay * (5 / 6) * (1 + distance)  # minus the derivative of smooth by the squared distance
        parts["linear"] = value["linear"] ** 2 * (x - origin[3:]) @ (x2 - origin[3:]).T
        parts["rates"], parts["roots"] = rates, z
    return parts


def _objective(
    theta: np.ndarray,
    points: MixturePoints,
    y: np.ndarray,
    errors: np.ndarray,
    unit: float,
    origin: np.ndarray,
    prior: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> tuple[float, np.ndarray]:
    """Minus the log posterior density of the parameters, and its gradient: 1/2 sum (K^-1 - a a') dK, a = K^-1 y."""
    from scipy.linalg import cho_solve, cholesky

    mean, sd, free = prior
    parts = _parts(theta, points, points, origin)
    noise = np.exp(2 * theta[NAMES.index("noise")])
    mixture = parts["linear"] + parts["smooth"] + parts["own"]
    covariance = LEVEL**2 + parts["trend"] / unit**2 + parts["step"] + parts["sizes"] * mixture + errors
    covariance[np.diag_indices(len(y))] += noise + JITTER
    try:
        root = cholesky(covariance, lower=True)
    except np.linalg.LinAlgError:
        return 1e10, np.zeros_like(theta)
    inverse = cho_solve((root, True), np.eye(len(y)))
    solved = inverse @ y
    away = np.where(free, (theta - mean) / sd, 0.0)
    value = 0.5 * y @ solved + np.log(np.diag(root)).sum() + 0.5 * away @ away
    weight = inverse - np.outer(solved, solved)
    of_mixture = weight * parts["sizes"]
    gradient = dict.fromkeys(NAMES, 0.0)
    for name in ("linear", "smooth", "own"):
        gradient[name] = float((of_mixture * parts[name]).sum())
    gradient["step"] = float((weight * parts["step"]).sum())
    gradient["noise"] = float(np.trace(weight) * noise)
    gradient["kappa"] = -0.5 * float((of_mixture * mixture * parts["together"]).sum())
    gradient["range"] = 0.5 * float((of_mixture * mixture * parts["apart"]).sum())
    by_domain = np.zeros(len(theta) - len(NAMES))
    if "roots" in parts:
        slopes, z = of_mixture * parts["slope"], parts["roots"]
        by_domain = 2 * parts["rates"] * (slopes.sum(1) @ (z * z) - ((slopes @ z) * z).sum(0))
        gradient["length"] = float(by_domain.sum())
    total = np.r_[[gradient[name] for name in NAMES], by_domain] + np.where(free, away / sd, 0.0)
    return float(value), np.where(free, total, 0.0)
