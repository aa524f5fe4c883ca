"""Which mixture to run next: the one whose expected improvement on the chosen one is largest.

    EI(x) = E max(0, f(chosen) - f(x)) = sd phi(u) + (m_chosen - m_x) Phi(u),     u = (m_chosen - m_x)/sd,

with sd that of the difference of the two (Jones, Schonlau and Welch 1998). Candidates that have no run at the target
are offered where there are any, else mixtures between those that were tried: averages of three of them with random
weights, so that no share leaves the range which the regression has seen.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from tsl_jax.selection.mixture_columns import MOST_EPOCHS, worth
from tsl_jax.selection.mixture_regression import MixturePoints, MixtureRegression

DRAWN = 1000  # mixtures between those that were tried
PARENTS = 3
APART = 0.01  # in some share, from every mixture that was tried: a new one
OFFERED = 3  # that are named
BEST = 0.1  # share of the tried mixtures from which one parent of each is taken: improvements lie near these


def between(shares: np.ndarray, losses: np.ndarray, seed: int = 0) -> np.ndarray:
    """(DRAWN, domain) averages of PARENTS tried mixtures, one of them among the best."""
    rng = np.random.default_rng(seed)
    good = np.argsort(losses)[: max(int(BEST * len(losses)), PARENTS)]
    parents = rng.integers(len(shares), size=(DRAWN, PARENTS))
    parents[:, 0] = rng.choice(good, DRAWN)
    weights = rng.dirichlet(np.ones(PARENTS), DRAWN)
    return np.einsum("np,npd->nd", weights, shares[parents])


def next_candidates(
    regression: MixtureRegression,
    wanted: MixturePoints,
    table: pd.DataFrame,
    chosen: int,
    shares: pd.DataFrame | None,
    once: Mapping[str, float],
    widened: float = 1.0,
) -> pd.DataFrame:
    """The OFFERED candidates of the largest expected improvement: candidate, loss, gain (nats), chance, and its shares.

    Args:
        wanted: the candidates at the target, `table` their losses and states. chosen: the row of the chosen one.
        shares: (candidate, domain). once: the share that a domain can give without being read again; MOST_EPOCHS times
            that is the most that is offered.
        widened: factor on variances, by cross-validation.
    """
    waiting = np.flatnonzero(table.state == "smaller")
    limit = np.array([once.get(str(domain), np.inf) for domain in ([] if shares is None else shares)])
    if len(waiting):
        offered, names = wanted.take(waiting), table.candidate.to_numpy()[waiting]
    elif wanted.shares is not None and len(wanted) >= PARENTS:
        mixtures = between(wanted.shares, table.loss.to_numpy())
        nearest = np.array([np.abs(wanted.shares - mixture).max(axis=1).min() for mixture in mixtures])
        mixtures = mixtures[nearest >= APART]
        unknown = np.full(len(mixtures), wanted.candidate.max() + 1)
        params, tokens = (np.full(len(mixtures), v[chosen]) for v in (wanted.log_params, wanted.log_tokens))
        read = worth(mixtures / limit) if wanted.worth is not None else None
        offered = MixturePoints(mixtures, unknown, params, tokens, read)
        names = np.full(len(mixtures), "a new mixture", dtype=object)
    else:
        return pd.DataFrame()
    if shares is not None and offered.shares is not None:
        allowed = (offered.shares <= MOST_EPOCHS * limit).all(axis=1)
        offered, names = offered.take(allowed), names[allowed]
    if not len(offered):
        return pd.DataFrame()
    # what a new mixture has of its own is luck that nobody can aim at: it is no reason to try one
    luck = 0.0 if len(waiting) else regression.own_variance(wanted.take([chosen]))
    gains = _expected_improvements(regression, wanted.take([chosen]), offered, widened, luck)
    best = gains.sort_values("gain", ascending=False, kind="stable").index[:OFFERED]
    found = gains.loc[best].reset_index(drop=True)
    found.insert(0, "candidate", names[best])
    if shares is not None and offered.shares is not None:
        found = found.join(pd.DataFrame(offered.shares[best], columns=list(shares)).add_prefix("share "))
    return found


def _expected_improvements(
    regression: MixtureRegression, chosen: MixturePoints, offered: MixturePoints, widened: float, luck: float
) -> pd.DataFrame:
    """Loss, gain (EI, nats) and the chance of one, a row a mixture."""
    from scipy.stats import norm

    mean, covariance = regression.predict(chosen.joined(offered))
    variance = widened * (covariance[0, 0] + np.diag(covariance) - 2 * covariance[0] - luck)[1:]
    sd = np.sqrt(np.maximum(variance, 1e-18))
    ahead = mean[0] - mean[1:]
    gain = np.exp(mean[0]) * (sd * norm.pdf(ahead / sd) + ahead * norm.cdf(ahead / sd))
    return pd.DataFrame({"loss": np.exp(mean[1:]), "gain": gain, "chance": norm.cdf(ahead / sd)})
