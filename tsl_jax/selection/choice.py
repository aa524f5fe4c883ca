"""The choice among candidates: the loss of each at the target, its chance to be the best, what to stop, what to try.

Runs that have ended are their losses; those that run are forecast to the end of their plan (`race`); a regression over
mixtures and sizes (`mixture_regression`) joins them. What is chosen is the candidate of the lowest predicted loss at
the target. Where runs at the target still run, their own ends are predicted, seeds' luck included; else the expected
loss of a new run of each mixture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tsl_jax.selection.candidate_runs import Runs
from tsl_jax.selection.consequences import (
    actual_ends,
    known_tokens,
    last_losses,
    method_in_words,
    repetition,
    saved_by_stopping,
    score,
    states,
)
from tsl_jax.selection.cross_validation import GP, cross_validate
from tsl_jax.selection.evidence import Evidence, find_target, gather
from tsl_jax.selection.mixture_columns import epochs
from tsl_jax.selection.mixture_regression import PRIORS, MixturePoints, MixtureRegression, fit_regression
from tsl_jax.selection.next_candidate import next_candidates
from tsl_jax.selection.race import draws, share_of_least

MOST = 4000  # candidates: their joint covariance is held in memory
FEWEST = 5  # candidates that a regression is fitted to
SURE = 0.95  # chance from which one candidate is said to be better than another
Z90 = 1.6449


@dataclass(frozen=True)
class Choice:
    """Candidates, judged at a target.

    Attributes:
        table: a row a candidate, the best first: candidate, rank (1 + how many are surely better; ties share it),
            loss, low, high (90 %), behind (loss beyond that of the chosen), p_best, regret (expected nats lost by
            choosing it), seen (the last loss of its runs at the target, their mean), state (ended, running, smaller:
            only at other sizes, untried), stop (may be), epochs and epochs_of (of the domain read most often), actual
            (the end that was hidden, or given with untried candidates).
        chosen: its name. tied: names of those that it leads by what may be chance. following: candidates worth trying
            next: candidate, loss, gain (expected improvement, nats), chance, and the shares.
        saved: tokens, flops and gpu_hours of the runs that may be stopped. scores: method -> spearman, regret, p_best
            of the actual best, where ends are known. cross_validation: see `cross_validate`.
        shares: (candidate, domain) or None. target: n_params and tokens, NaN where not known.
        method: how losses were predicted. notes: sentences.
    """

    table: pd.DataFrame
    chosen: str
    tied: tuple[str, ...]
    following: pd.DataFrame
    saved: Mapping[str, float]
    scores: pd.DataFrame
    cross_validation: pd.DataFrame
    shares: pd.DataFrame | None
    target: Mapping[str, float]
    method: str
    notes: tuple[str, ...]


def choose(
    runs: Runs,
    untried: Runs | None = None,
    n_params: float | None = None,
    tokens: float | None = None,
    cutoff: float | None = None,
    available: Mapping[str, float] | None = None,
    sd: float | None = None,
    flops_per_hour: float = 0.4 * 989e12 * 3600,
) -> Choice:
    """Choose among the candidates of runs, or among untried ones by what runs say.

    Args:
        runs: as `read_candidates` gives them. untried: candidates to rank in place of those of the runs; their losses
            are not used, but scored. n_params, tokens: the target; default the largest size and its length.
        cutoff: hide what runs at the target saw beyond this share of their plans, and score; 0 hides all of it.
        available: domain -> tokens that there are. sd: standard deviation of the end over seeds, nats, where known.
        flops_per_hour: of a device, for hours saved where runs do not say their pace.

    Raises:
        ValueError: for a target or cut-off that leaves nothing to go by.
    """
    notes: list[str] = []
    runs, target, at_target = find_target(runs, untried, n_params, tokens)
    full = runs
    if cutoff is not None:
        if not 0 <= cutoff < 1:
            raise ValueError(f"select: --cutoff is a share of the plan, from 0 to below 1, found {cutoff:g}")
        runs = runs.seen(cutoff, at_target)
    runs, names = _with_untried(runs, untried)
    if len(names) > MOST:
        raise ValueError(f"select: {len(names)} candidates, of at most {MOST} that are judged together; leave some out")
    codes = {name: k for k, name in enumerate(dict.fromkeys([*runs.table.candidate, *names]))}
    known = known_tokens(runs.shares, full, available, target)
    evidence, wanted = gather(runs, codes, target, at_target, known)
    wanted = wanted.take(np.array([codes[name] for name in names]))
    if not evidence.at_target.any():
        level = "its level is extrapolated, differences of candidates are known better than losses"
        notes.append(f"no run at the target is seen: {level}")
    regression = _regression(evidence, untried is not None, sd)
    running = bool((evidence.at_target & ~evidence.ended).any())
    validated, widened = pd.DataFrame(), 1.0
    if regression is not None:
        validated = cross_validate(regression, evidence.ended)
        if GP in validated.index and not running:
            widened = max(1.0, float(validated.z2[GP]))
        mean, covariance = regression.predict(wanted, _own_rows(evidence, wanted) if running else None)
        covariance = covariance * widened
    else:
        kept, mean, covariance = _observed(evidence, wanted, sd, notes)
        names, wanted = [names[k] for k in kept], wanted.take(kept)
    table = _judged(names, mean, covariance)
    chosen = int(np.argmin(mean))
    apart = np.sqrt(np.maximum(np.diag(covariance) + covariance[chosen, chosen] - 2 * covariance[chosen], 0.0))
    alike = np.flatnonzero(mean - mean[chosen] <= Z90 * apart + 1e-12)
    tied = tuple(names[k] for k in alike[np.argsort(mean[alike], kind="stable")] if k != chosen)
    table["state"] = ["untried"] * len(names) if untried is not None else states(evidence, wanted)
    stopped = evidence.eliminated & evidence.at_target & (evidence.points.candidate != wanted.candidate[chosen])
    table["stop"] = np.isin(wanted.candidate, evidence.points.candidate[stopped])
    table["seen"] = last_losses(runs, names, at_target)
    table["actual"] = actual_ends(full, untried, names, at_target, cutoff)
    shares = None if runs.shares is None else runs.shares.loc[names]
    counted = epochs(shares, target["tokens"], known) if shares is not None and known else None
    table["epochs"] = np.nan if counted is None else counted.max(axis=1).to_numpy()
    table["epochs_of"] = "" if counted is None else counted.idxmax(axis=1).to_numpy()
    notes += [] if counted is None else repetition(table, chosen, target["tokens"])
    following = pd.DataFrame()
    if regression is not None and untried is None:
        once = {domain: count / target["tokens"] for domain, count in known.items()}
        following = next_candidates(regression, wanted, table, chosen, shares, once, widened)
    return Choice(
        table=table.sort_values("loss", kind="stable", ignore_index=True),
        chosen=names[chosen],
        tied=tied,
        following=following,
        saved=saved_by_stopping(runs.table.iloc[evidence.run[stopped]], flops_per_hour),
        scores=score(table, evidence, wanted, runs, cutoff),
        cross_validation=validated,
        shares=shares,
        target=target,
        method=method_in_words(evidence, regression, running, widened),
        notes=(*full.notes, *notes),
    )


def _with_untried(runs: Runs, untried: Runs | None) -> tuple[Runs, list[str]]:
    """The runs with the shares of untried candidates beside their own, and the names of the candidates to judge.

    Raises:
        ValueError: where the two have other domains, or none.
    """
    if untried is None:
        return runs, list(dict.fromkeys(runs.table.candidate))
    if runs.shares is None or untried.shares is None:
        raise ValueError("select: --candidates needs mixtures, of the runs and of the candidates; see --mixture")
    if set(runs.shares) != set(untried.shares):
        differ = sorted(map(str, set(runs.shares) ^ set(untried.shares)))
        raise ValueError(
            f"select: the runs and --candidates have other domains: {', '.join(differ[:8])}; give both all"
        )
    taken = set(runs.shares.index)
    names = [f"{name} (candidate)" if name in taken else str(name) for name in untried.shares.index]
    others: Any = untried.shares[list(runs.shares)].set_axis(pd.Index(names))
    shares: Any = pd.concat([runs.shares, others])
    return Runs(runs.table, runs.curves, shares, runs.available, runs.notes), names


def _regression(evidence: Evidence, needed: bool, sd: float | None) -> MixtureRegression | None:
    """The regression over mixtures and sizes; None where there is too little for one.

    Raises:
        ValueError: where it is needed all the same.
    """
    points = evidence.points
    count = len(np.unique(points.candidate))
    if count < FEWEST and needed:
        raise ValueError(f"select: candidates without runs are ranked from {FEWEST} mixtures or more, found {count}")
    if count < FEWEST:
        return None
    noise = None if sd is None else max(sd / float(np.exp(evidence.y.mean())), 1e-7)
    return fit_regression(points, evidence.y, evidence.errors, noise=noise)


def _own_rows(evidence: Evidence, wanted: MixturePoints) -> np.ndarray | None:
    """For each candidate the row of its run at the target, -1 for none; None where one has several: seeds."""
    rows = np.flatnonzero(evidence.at_target)
    of = evidence.points.candidate[rows]
    if len(np.unique(of)) < len(of):
        return None
    place = dict(zip(of.tolist(), rows.tolist(), strict=True))
    return np.array([place.get(int(code), -1) for code in wanted.candidate])


def _observed(
    evidence: Evidence, wanted: MixturePoints, sd: float | None, notes: list[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Without a regression: the candidates that have runs at the target, with the means of those and their covariance.

    Raises:
        ValueError: where there are none.
    """
    rows = np.flatnonzero(evidence.at_target)
    of = evidence.points.candidate[rows]
    kept = np.flatnonzero(np.isin(wanted.candidate, of))
    if not len(kept):
        raise ValueError(f"select: no run at the target, and fewer than {FEWEST} candidates to predict it from")
    if len(kept) < len(wanted):
        notes.append(f"{len(wanted) - len(kept)} candidates have no run at the target and are left out")
    average = (wanted.candidate[kept][:, None] == of[None]).astype(float)
    average /= average.sum(1, keepdims=True)
    y, errors = evidence.y[rows], evidence.errors[np.ix_(rows, rows)]
    repeats, assumed = len(of) - len(kept), float(np.exp(PRIORS["noise"][0]))
    variance = assumed**2 if sd is None else (sd / float(np.exp(y.mean()))) ** 2
    if sd is None and repeats:
        own_mean = (average @ y)[np.argmax(average > 0, axis=0)]
        variance = float(np.sum((y - own_mean) ** 2)) / repeats
    elif sd is None:
        notes.append(
            f"seeds of one candidate are assumed to differ by {assumed:.1%} of the loss; --sd NATS says it better"
        )
    if (~evidence.ended[rows]).any():  # their own ends are asked for, luck included
        variance = 0.0
    return kept, average @ y, average @ (errors + variance * np.eye(len(y))) @ average.T


def _judged(names: Sequence[str], mean: np.ndarray, covariance: np.ndarray) -> pd.DataFrame:
    """Losses with intervals, the chance to be the best, expected regret and rank, of normal log losses."""
    from scipy.stats import norm

    drawn = draws(mean, covariance)
    lowest = drawn.min(axis=1, keepdims=True)
    sd = np.sqrt(np.maximum(np.diag(covariance), 0.0))
    apart = np.sqrt(np.maximum(sd[:, None] ** 2 + sd[None] ** 2 - 2 * covariance, 1e-24))
    better = norm.cdf((mean[:, None] - mean[None]) / apart)  # of the column over the row
    return pd.DataFrame(
        {
            "candidate": list(names),
            "rank": 1 + (better > SURE).sum(axis=1),
            "loss": np.exp(mean),
            "low": np.exp(mean - Z90 * sd),
            "high": np.exp(mean + Z90 * sd),
            "behind": np.exp(mean) - np.exp(mean.min()),
            "p_best": share_of_least(drawn),
            "regret": (np.exp(drawn) - np.exp(lowest)).mean(axis=0),
        }
    )
