"""One law, several curves, serially correlated residuals (Ornstein-Uhlenbeck): a Bayesian mixed model.

Curve r at point j, with u the log of its clock and s = (shapes of the law),

    y_rj = basis(x_rj; s_r) beta_r + e_rj,       beta_r = sum_p w_rp gamma_p,      log s_r = log s + drift * size_r,
    e_rj = sigma exp(-KAPPA u_rj) z_r(u_rj) + nu sqrt(m_rj) n_rj,

z_r an Ornstein-Uhlenbeck process of unit variance and correlation exp(-|u - u'|/ell), n_rj white. The effects gamma_p
have independent normal priors; those of a curve of its own are scaled by tau. Given eta = (log s, drift, log ell,
log sigma, log nu, log tau) all is linear and Gaussian: residuals are whitened by a Kalman filter, the effects
integrated in closed form. eta, of a few dimensions, is sampled by adaptive importance sampling on a low-discrepancy
sequence: no start values, no gradient, the same numbers at every call. Dimensions: S values of eta, R curves of n
points, k coefficients of the law, p effects.

Source: the filter, Jones & Boadi-Boateng (1991), for unequally spaced serial correlation in mixed models; the sampler,
Bugallo et al., Adaptive Importance Sampling (2017).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import combinations_with_replacement
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from tsl_jax.forecasting.importance_sampling import normalised, student, tempered
from tsl_jax.laws import Law

KAPPA = 0.5  # a law errs more while the loss is high: the sd of the correlated residual is sigma clock^-KAPPA
DRAWS = 256  # values of eta in a round
ROUNDS = 40  # at most
ENOUGH = 0.5  # the sampler stops when its effective draws exceed this share of DRAWS
ROUGHLY = 0.2  # the same near a known place: a backtest asks for a median and an sd alone
FEW = 0.15  # it has not converged if they are no more than this share after the last round
WIDER = 2.0  # times the covariance of a posterior nearby: where the search for another one begins
JITTERS = (1e-13, 1e-10, 1e-7, 1e-4, 1e-2)  # added to a diagonal of ones: the least that lets it factor
UNIDENTIFIED = "mixed: the effects are not identified in float64; give the law fewer coefficients"
AT_ONCE = 256  # points of a forecast at which a law is read together
CACHED = 512  # curves times values of eta at which it is
POINTWISE = ("tokens", "area")  # covariates with a value a point; the others are the history of a run


@dataclass(frozen=True)
class CurveBatch:
    """The observations: R curves of up to n points.

    Attributes:
        y: (R, n). x: the law's covariates: an array (R, n), or a mapping with leaves (R, ...).
        log_clock: (R, n), increasing along each curve. known: (R, n) bool, False for padding.
        noise: (R, n) the factors m of the white variance. mix: (R, p), the w above.
        size: (R,), a covariate of the curves that shapes may drift with.
    """

    y: Float[np.ndarray, "curve point"]
    x: Any
    log_clock: Float[np.ndarray, "curve point"]
    known: Bool[np.ndarray, "curve point"]
    noise: Float[np.ndarray, "curve point"]
    mix: Float[np.ndarray, "curve effect"]
    size: Float[np.ndarray, " curve"]


@dataclass(frozen=True)
class ModelPrior:
    """Independent normal priors.

    Attributes:
        eta, eta_sd: (d,) means and sds of log shapes, drifts of log shapes, log ell, log sigma, log nu, log tau.
        effect, effect_sd: (p, k) means and sds of the effects on the k coefficients. own: (p,) bool, scaled by tau.
    """

    eta: Float[np.ndarray, " eta"]
    eta_sd: Float[np.ndarray, " eta"]
    effect: Float[np.ndarray, "effect coef"]
    effect_sd: Float[np.ndarray, "effect coef"]
    own: Bool[np.ndarray, " effect"]


@dataclass(frozen=True)
class Posterior:
    """Weighted draws of eta (S, d); effective: how many independent draws they are worth; converged: whether enough."""

    law: Law
    curves: CurveBatch
    prior: ModelPrior
    eta: Float[np.ndarray, "draw eta"]
    weight: Float[np.ndarray, " draw"]
    effective: float
    converged: bool

    @property
    def mean(self) -> Float[np.ndarray, " eta"]:
        """Posterior mean of eta (d,)."""
        return self.weight @ self.eta

    @property
    def covariance(self) -> Float[np.ndarray, "eta eta"]:
        """Posterior covariance of eta (d, d)."""
        apart = self.eta - self.mean
        return apart.T @ (apart * self.weight[:, None])

    @property
    def learned(self) -> np.ndarray:
        """How far the data narrowed the prior of each log shape (shape,): 0, not at all, to 1, to a point."""
        count = len(self.law.shapes)
        sd = np.sqrt(self.weight @ (self.eta[:, :count] - self.mean[:count]) ** 2)  # posterior sd of each log s
        return 1 - sd / self.prior.eta_sd[:count]

    @cached_property
    def _given(self) -> dict[int, _GivenEta]:
        return {}

    def paths(
        self, curve: int, x: Any, log_clock: np.ndarray, draws: int, seed: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draws of one curve at points beyond its last (draw, point), and the same without residuals.

        At points up to the last known one, both are the law alone.

        Args:
            curve: which. x: covariates at the points, without the axis of curves. log_clock: (point,), increasing.
            draws: how many, taken evenly from the weights. seed: of the normal numbers.
        """
        # systematic resampling: quantiles (j + 1/2)/draws of the weights, not independent draws from them
        chosen = np.searchsorted(np.cumsum(self.weight), (np.arange(draws) + 0.5) / draws).clip(0, len(self.eta) - 1)
        eta, curves, random = self.eta[chosen], self.curves, np.random.default_rng(seed)  # eta (draw, d)
        ell, sigma, nu, _ = _residual_params(self.law, eta)  # (draw,) each; tau is in the prior of the effects
        if draws not in self._given:  # plans that differ in the future alone ask again
            self._given[draws] = _integrate_effects(self.law, curves, self.prior, eta)
        given = self._given[draws]
        # effects ~ N(mean, precision^-1): with precision = F F', mean + F'^-1 z has that covariance
        mean = given.effect.reshape(len(eta), -1)
        z = random.standard_normal(mean.shape)
        effect = mean + np.linalg.solve(np.swapaxes(given.factor, 1, 2), z[..., None])[..., 0]
        beta = np.einsum("p,spk->sk", curves.mix[curve], effect.reshape(given.effect.shape))  # sum_p w_rp gamma_p
        law_alone = _along(self.law, eta, beta, x, curves.size[curve : curve + 1], len(log_clock))
        # the filter is linear: the residual's state is that of y minus those of the basis columns times beta
        state = given.state[-1, :, curve] - np.einsum("ks,sk->s", given.state[:-1, :, curve], beta)
        state = state + np.sqrt(np.maximum(given.state_variance[:, curve], 0)) * random.standard_normal(len(eta))
        seen = curves.known[curve].any()
        before = given.last[curve] if seen else log_clock[0]  # no past: z is stationary, N(0, 1)
        paths = np.empty_like(law_alone)
        for j, now in enumerate(log_clock):
            if seen and now <= given.last[curve]:  # not beyond the last point: the law alone
                paths[:, j] = law_alone[:, j]
                continue
            decay = np.exp(-(now - before) / ell)  # z(now) = decay z(before) + sqrt(1 - decay^2) n
            state = decay * state + np.sqrt(1 - decay**2) * random.standard_normal(len(eta))
            before = now
            white = nu * random.standard_normal(len(eta))  # m = 1: the typical noise
            paths[:, j] = law_alone[:, j] + sigma * np.exp(-KAPPA * now) * state + white
        return paths, law_alone


class _GivenEta(NamedTuple):
    """For each value of eta: the effects, their factor, and the filters' ends."""

    effect: np.ndarray  # (S, p, k)
    factor: np.ndarray  # (S, pk, pk) Cholesky factor of the precision of the effects
    state: np.ndarray  # (k + 1, S, R) filtered z of each column at the last known point
    state_variance: np.ndarray  # (S, R)
    last: np.ndarray  # (R,) log clock there


def sample(
    law: Law, curves: CurveBatch, prior: ModelPrior, near: tuple[np.ndarray, np.ndarray] | None = None
) -> Posterior:
    """The posterior of eta, by importance sampling from Student distributions fitted to tempered draws.

    Each round draws eta ~ q, weighs it by (p/q)^(1/T), p the posterior, and moves q to the weighted mean and
    covariance. T is the lowest temperature that leaves TEMPERED of the draws effective; it falls to 1 as q nears p.
    Rounds at temperature 1 are kept, each with the weight of its effective draws 1/sum w^2, until they are worth
    ENOUGH. The first q is at the prior, or at the mean and covariance `near` the posterior, where ROUGHLY is enough.
    """
    floor = np.diag((1e-2 * prior.eta_sd) ** 2)  # no proposal collapses to a point
    mean, covariance, kept = prior.eta, np.diag(prior.eta_sd**2), []
    if near is not None:
        mean, covariance = near[0], WIDER * near[1] + floor
    for attempt in range(ROUNDS):
        z, log_proposal = student(DRAWS, len(mean), attempt)
        eta = mean + z @ np.linalg.cholesky(covariance + 1e-14 * np.eye(len(mean))).T  # log|L| cancels in a round
        log_weight = _log_density(law, curves, prior, eta) - log_proposal
        log_weight = np.where(np.isfinite(log_weight), log_weight, -np.inf)  # no density: weight 0
        temperature, weight = tempered(log_weight)
        if temperature == 1 or attempt == ROUNDS - 1:  # the last round is kept at any temperature
            weight = normalised(log_weight)
            kept.append((eta, weight, 1 / float((weight**2).sum())))  # effective draws 1/sum w^2
            if sum(worth for *_, worth in kept) > (ENOUGH if near is None else ROUGHLY) * DRAWS:
                break
        mean = weight @ eta
        covariance = 1.05 * (eta - mean).T @ ((eta - mean) * weight[:, None]) + floor  # q a little wider than p
    worth = np.array([effective for *_, effective in kept])
    shares = zip(kept, worth / worth.sum(), strict=True)  # rounds weigh by their effective draws
    weight = np.concatenate([of_round * share for (_, of_round, _), share in shares])
    total = float(worth.sum())
    return Posterior(law, curves, prior, np.concatenate([eta for eta, *_ in kept]), weight, total, total > FEW * DRAWS)


@partial(jax.jit, static_argnums=0)
def _basis(law: Law, eta: jax.Array, x: Any, size: jax.Array) -> jax.Array:
    """The law's basis (n, k, S, R) at the shapes exp(log s + drift size_r); covariates (R, ...)."""
    basis, count = law.basis, len(law.shapes)
    assert basis is not None
    shape = jnp.exp(eta[:, None, :count] + eta[:, None, count : 2 * count] * size[None, :, None])
    # a law makes a number a draw, curve, point and decrease: those of all draws of many curves would leave the caches
    together = 1 << max(CACHED // len(size), 1).bit_length() - 1  # a power of two, as numbers of draws are
    columns = jax.lax.map(lambda s: jax.vmap(basis)(s, x), shape, batch_size=together)  # (S, R, n, k)
    return jnp.transpose(columns, (2, 3, 0, 1))


def _columns(law: Law, eta: np.ndarray, x: Any, size: np.ndarray) -> np.ndarray:
    """`_basis` in float64."""
    with jax.enable_x64(True):
        return np.asarray(_basis(law, eta, x, size))


def _along(law: Law, eta: np.ndarray, beta: np.ndarray, x: Any, size: np.ndarray, points: int) -> np.ndarray:
    """The law (S, n) of one curve with coefficients beta (S, k), at many points AT_ONCE after the other."""
    each = points if points <= AT_ONCE else AT_ONCE
    parts = []
    for first in range(0, points, each):
        here = np.minimum(np.arange(first, first + each), points - 1)  # the last is repeated: one compiled program
        if isinstance(x, Mapping):
            part = {name: values[None, here] if name in POINTWISE else values[None] for name, values in x.items()}
        else:
            part = x[None, here]
        parts.append(np.einsum("nks,sk->sn", _columns(law, eta, part, size)[..., 0], beta))
    return np.concatenate(parts, axis=1)[:, :points]


def _residual_params(law: Law, eta: np.ndarray) -> np.ndarray:
    """ell, sigma, nu, tau: (4, S)."""
    return np.exp(eta[:, 2 * len(law.shapes) :]).T


def _whitened(law: Law, curves: CurveBatch, eta: np.ndarray):
    """The Gram matrices (S, R, k + 1, k + 1) of whitened basis and y (last), log|V|/2 (S,), and the filters' ends."""
    ell, sigma, nu, _ = _residual_params(law, eta)
    basis = _columns(law, eta, curves.x, curves.size)
    y = np.broadcast_to(curves.y.T[:, None, None], (len(basis), 1, *basis.shape[2:]))
    columns = np.where(curves.known.T[:, None, None], np.concatenate([basis, y], axis=1), 0.0)  # (n, k + 1, S, R)
    log_sd, *ends = _whiten(columns, curves, ell, sigma, nu)
    count, *of = columns.shape[1:]
    gram = np.empty((*of, count, count))
    for i, j in combinations_with_replacement(range(count), 2):  # sums along the first axis: as fast as memory
        gram[..., i, j] = gram[..., j, i] = np.einsum("nsr,nsr->sr", columns[:, i], columns[:, j])
    return gram, log_sd.sum(1), ends


def _effect_precision(law: Law, prior: ModelPrior, eta: np.ndarray) -> np.ndarray:
    """The prior precision D of the effects, diagonal, (S, p, k)."""
    tau = _residual_params(law, eta)[3]
    return 1 / (prior.effect_sd * np.where(prior.own[:, None], tau[:, None, None], 1.0)) ** 2


def _log_density(law: Law, curves: CurveBatch, prior: ModelPrior, eta: np.ndarray) -> np.ndarray:
    """The posterior density of eta (S,), see `_integrate_effects`, at a cost linear in the number of curves."""
    with np.errstate(all="ignore"):  # an eta that overflows is `bad`, of density 0
        gram, log_volume, _ = _whitened(law, curves, eta)
        k, precision = gram.shape[-1] - 1, _effect_precision(law, prior, eta)
        solved, log_size, bad = _eliminated(curves.mix, prior, gram[..., :k, :k], gram[..., :k, k], precision)
        misfit = gram[..., k, k].sum(1) + (precision * prior.effect**2).sum((1, 2)) - solved
        density = -0.5 * misfit - log_size + 0.5 * np.log(precision).sum((1, 2)) - log_volume
        density -= 0.5 * (((eta - prior.eta) / prior.eta_sd) ** 2).sum(1)  # the prior of eta
    return np.where(bad, -np.inf, density)


def _eliminated(mix: np.ndarray, prior: ModelPrior, gram: np.ndarray, along: np.ndarray, precision: np.ndarray):
    """r' P^-1 r and log|P|/2 of P = A'A + D and r = A'b + D m, (S,) each; and which of them are not finite.

    The own effect of a curve meets other effects in the Gram matrix G of that curve alone. So P has an arrow's shape,
    and its Cholesky factor, own effects first, costs as much as there are curves:

        P = [C_r, B_r; B_r', A],   C_r = F_r F_r',   W_r = F_r^-1 B_r,   A - sum_r W_r' W_r = F F'.

    Args:
        mix: (R, p). gram: (S, R, k, k) of the basis. along: (S, R, k), basis times y. precision: (S, p, k), D.
    """
    draws, k, own = len(gram), gram.shape[-1], prior.own
    of_own, right = gram[:, : own.sum()], along[:, : own.sum()]  # no curve where none has an effect of its own
    shared, size = mix[:, ~own], int((~own).sum()) * k
    c = of_own + precision[:, own, :, None] * np.eye(k)
    b = np.einsum("rp,srij->sripj", shared[: own.sum()], of_own).reshape(*of_own.shape[:3], size)
    a = np.einsum("rp,rq,srij->spiqj", shared, shared, gram, optimize=True).reshape(draws, size, size)
    a[:, np.arange(size), np.arange(size)] += precision[:, ~own].reshape(draws, size)
    right = right + precision[:, own] * prior.effect[own]
    of_shared = np.einsum("rp,sri->spi", shared, along) + precision[:, ~own] * prior.effect[~own]
    # scaled to unit diagonal, as precisions differ by orders of magnitude
    scale, scale_c = np.sqrt(np.diagonal(a, axis1=1, axis2=2)), np.sqrt(np.diagonal(c, axis1=2, axis2=3))
    a = a / scale[:, :, None] / scale[:, None]
    c = c / scale_c[..., None] / scale_c[..., None, :]
    b = np.concatenate([b / scale[:, None, None], right[..., None]], axis=-1) / scale_c[..., None]
    end = of_shared.reshape(draws, size) / scale
    bad = ~(np.isfinite(a).all((1, 2)) & np.isfinite(c).all((1, 2, 3)) & np.isfinite(b).all((1, 2, 3)))
    bad |= ~np.isfinite(end).all(1)
    a[bad], c[bad], b[bad], end[bad] = np.eye(size), np.eye(k), 0.0, 0.0
    for jitter in JITTERS:
        try:
            factor_c = np.linalg.cholesky(c + jitter * np.eye(k))
            w, z = np.split(np.linalg.solve(factor_c, b), [size], axis=-1)
            rest = a + jitter * np.eye(size) - np.einsum("srki,srkj->sij", w, w, optimize=True)
            factor = np.linalg.cholesky(rest)
            break
        except np.linalg.LinAlgError:
            continue
    else:
        raise FloatingPointError(UNIDENTIFIED)
    end = np.linalg.solve(factor, (end - np.einsum("srki,srkj->si", w, z))[..., None])
    log_size = np.log(np.diagonal(factor, axis1=1, axis2=2)).sum(1) + np.log(scale).sum(1)
    log_size += (np.log(np.diagonal(factor_c, axis1=2, axis2=3)) + np.log(scale_c)).sum((1, 2))
    return (z**2).sum((1, 2, 3)) + (end**2).sum((1, 2)), log_size, bad


def _integrate_effects(law: Law, curves: CurveBatch, prior: ModelPrior, eta: np.ndarray) -> _GivenEta:
    """The effects gamma given eta, for each eta (S, d); with gamma integrated out the density is `_log_density`.

    With A the whitened design of the effects, b the whitened y, D the prior precision and m the prior mean:

        P = A'A + D,   gamma = P^-1 (A'b + D m),
        -2 log p(eta | y) = b'b + m'D m - (A'b + D m)' gamma + log|P| - log|D| + log|V| + |(eta - m_eta)/sd_eta|^2,

    V the covariance of the residuals. A is the whitened basis (n, k) mixed by w (R, p), so that A'A is assembled from
    the curves' Gram matrices of basis and y alone.
    """
    with np.errstate(all="ignore"):  # an eta that overflows has the density 0
        gram, _, (state, variance, last) = _whitened(law, curves, eta)
        k, precision = gram.shape[-1] - 1, _effect_precision(law, prior, eta)
        size = precision[0].size
        pairs = curves.mix[:, :, None] * curves.mix[:, None]  # w_rp w_rq, (R, p, p)
        full = np.einsum("rpq,srij->spiqj", pairs, gram[..., :k, :k], optimize=True).reshape(len(eta), size, size)
        full[:, np.arange(size), np.arange(size)] += precision.reshape(len(eta), size)
        right = np.einsum("rp,sri->spi", curves.mix, gram[..., :k, k]) + precision * prior.effect
        right = right.reshape(len(eta), size)
        bad = ~np.isfinite(full).all((1, 2)) | ~np.isfinite(right).all(1)
        full[bad], right[bad] = np.eye(size), 0.0
        factor, effect = _solve_precision(full, right)
    return _GivenEta(effect.reshape(precision.shape), factor, state, variance, last)


def _solve_precision(full: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cholesky factors of full (S, n, n), and full^-1 right (S, n).

    Scaled to unit diagonal, as precisions differ by orders of magnitude; the least jitter that lets it factor is added.
    """
    size = np.sqrt(np.diagonal(full, axis1=1, axis2=2))  # (S, n)
    scaled = full / size[:, :, None] / size[:, None]
    for jitter in JITTERS:
        try:
            factor = np.linalg.cholesky(scaled + jitter * np.eye(full.shape[1]))
            break
        except np.linalg.LinAlgError:
            continue
    else:
        raise FloatingPointError(UNIDENTIFIED)
    half = np.linalg.solve(factor, (right / size)[..., None])  # full = S C S, C = F F': x = S^-1 F'^-1 F^-1 S^-1 b
    return factor * size[:, :, None], np.linalg.solve(np.swapaxes(factor, 1, 2), half)[..., 0] / size


def _whiten(columns: np.ndarray, curves: CurveBatch, ell: np.ndarray, sigma: np.ndarray, nu: np.ndarray):
    """The Kalman filter of z over the points, on all columns (n, c, S, R), in place: innovations over their sds.

    With f = exp(-(u_j - u_j-1)/ell), h = sigma exp(-KAPPA u_j) and r = nu^2 m_j, state and variance go through

        predict   z = f z,   v = f^2 v + 1 - f^2,
        observe   s = h^2 v + r,   g = v h / s,   z = z + g (y - h z),   v = v (1 - g h),

    and the whitened column is (y - h z)/sqrt(s): independent, of unit variance, as if weighted by a factor of V^-1.
    What comes back: log(s)/2 summed over points, log|V|/2 (S, R); state (c, S, R), variance (S, R) and clock at the
    last known point. Draws and curves are the last axes: numpy's passes over them are long.
    """
    points, count, draws, runs = columns.shape
    # all that needs no state first, points in front: (n, S, R); a point that is padding changes nothing
    known = curves.known.T[:, None]
    clock = np.maximum.accumulate(np.where(curves.known, curves.log_clock, curves.log_clock[:, :1]), axis=1).T
    step = np.diff(clock, axis=0, prepend=curves.log_clock[None, :, 0])
    decay = np.exp(-step[:, None] / ell[:, None])  # f
    square = decay**2
    scale = np.where(known, sigma[:, None] * np.exp(-KAPPA * clock[:, None]), 0.0)  # h
    noise = nu[:, None] ** 2 * curves.noise.T[:, None]  # r
    total, gain = np.empty((points, draws, runs)), np.empty((points, draws, runs))
    variance = np.ones((draws, runs))  # stationary z
    for j, h in enumerate(scale):
        variance = variance * square[j] + (1 - square[j])  # predict
        along = variance * h
        total[j] = along * h + noise[j]  # s = h^2 v + r
        gain[j] = along / total[j]  # g
        variance = variance - gain[j] * along
    state = np.zeros((count, draws, runs))
    for column, h, f, g in zip(columns, scale, decay, gain, strict=True):
        state *= f
        column -= h * state  # y - h z, of basis columns and y alike
        state += g * column  # gain is 0 at padding
    columns *= np.where(known, 1 / np.sqrt(total), 0.0)[:, None]
    return np.where(known, np.log(total) / 2, 0).sum(0), state, variance, clock[-1]
