"""What follows from a choice, and how it is judged: states, repeated text, what stopping saves, scores by ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from tsl_jax.selection.candidate_runs import Runs
from tsl_jax.selection.cross_validation import spearman
from tsl_jax.selection.evidence import Evidence
from tsl_jax.selection.mixture_columns import MOST_EPOCHS
from tsl_jax.selection.mixture_regression import NAMES, MixturePoints, MixtureRegression


def states(evidence: Evidence, wanted: MixturePoints) -> list[str]:
    """Of each candidate: ended or running at the target, or smaller (it has runs of other sizes alone)."""
    candidate = evidence.points.candidate
    running = set(candidate[evidence.at_target & ~evidence.ended].tolist())
    ended = set(candidate[evidence.at_target & evidence.ended].tolist())
    return ["running" if code in running else "ended" if code in ended else "smaller" for code in wanted.candidate]


def last_losses(runs: Runs, names: Sequence[str], at_target: np.ndarray) -> np.ndarray:
    """The last loss seen of each candidate's runs at the target, their mean; NaN for none."""
    return runs.table[at_target].groupby("candidate").loss.mean().reindex(list(names)).to_numpy(float)


def actual_ends(
    full: Runs, untried: Runs | None, names: Sequence[str], at_target: np.ndarray, cutoff: float | None
) -> np.ndarray:
    """The known end of each candidate: what a cut-off hides, or what came with the untried; NaN where there is none."""
    if untried is not None and untried.shares is not None:
        return untried.table.groupby("candidate").loss.mean().reindex(untried.shares.index).to_numpy(float)
    if cutoff is None:
        return np.full(len(names), np.nan)
    ended = full.table[at_target & full.table.ended.to_numpy(bool)]
    return ended.groupby("candidate").loss.mean().reindex(list(names)).to_numpy(float)


def known_tokens(
    shares: pd.DataFrame | None, runs: Runs, available: Mapping[str, float] | None, target: Mapping[str, float]
) -> dict[str, float]:
    """Domain -> tokens that there are, as the user or the runs say; empty where repetition cannot be counted.

    Raises:
        ValueError: where it is asked for and cannot be counted.
    """
    countable = shares is not None and np.isfinite(target["tokens"])
    if available and not countable:
        raise ValueError(f"select: --available needs {'mixtures' if shares is None else 'the length: --tokens N'}")
    if available or not countable:
        return dict(available or {})
    return {domain: count for domain, count in runs.available.items() if shares is not None and domain in shares}


def repetition(table: pd.DataFrame, chosen: int, tokens: float) -> list[str]:
    """Sentences on text that is read more than once, a warning where it is more often than is known to help."""
    several, many = int((table.epochs > 1).sum()), int((table.epochs > MOST_EPOCHS).sum())
    notes = []
    if several:
        often = f", {many} of them more than {MOST_EPOCHS} times" if many else ""
        notes.append(f"{several} of {len(table)} candidates read a domain more than once in {tokens:.3g} tokens{often}")
    times, domain = table.epochs[chosen], table.epochs_of[chosen]
    if times > MOST_EPOCHS:
        worth = "no prediction from runs that did not repeat it holds there"
        notes.append(f"warning: {table.candidate[chosen]} would read {domain} {times:.1f} times; {worth}")
    elif times > 1:
        worth = f"up to {MOST_EPOCHS} times is nearly as good as new text"
        notes.append(f"{table.candidate[chosen]} would read {domain} {times:.1f} times; {worth}")
    return notes


def saved_by_stopping(stopped: pd.DataFrame, flops_per_hour: float) -> dict[str, float]:
    """Tokens, FLOPs (6 N D) and GPU-hours that runs would still take: by their pace where all say it, else by FLOPs.

    Args:
        stopped: their rows of `Runs.table`. flops_per_hour: of a device.
    """
    left = (stopped.planned - stopped.tokens).clip(lower=0)
    flops = float((6 * stopped.n_params * left).sum(min_count=1)) if len(stopped) else 0.0
    hours = flops / flops_per_hour
    if len(stopped) and stopped.pace.notna().all():
        hours = float((left / stopped.pace).sum() / 3600)
    return {"runs": float(len(stopped)), "tokens": float(left.sum()), "flops": flops, "gpu_hours": hours}


def score(
    table: pd.DataFrame, evidence: Evidence, wanted: MixturePoints, runs: Runs, cutoff: float | None
) -> pd.DataFrame:
    """A row a way to choose: spearman and regret (nats beyond the actual best), p_best of the actual best (ours alone).

    Beside the prediction: the loss at the cut-off, the loss of the next smaller size, and a candidate taken by chance.
    No rows where fewer than two ends are known.
    """
    actual = table.actual.to_numpy(float)
    known = np.isfinite(actual)
    if known.sum() < 2:
        return pd.DataFrame()
    best = float(np.nanmin(actual))
    ways = {"predicted": table.loss.to_numpy(float)}
    code = wanted.candidate
    points, scale = evidence.points, evidence.points.scale
    if cutoff:
        last = runs.table.loss.to_numpy(float)[evidence.run]
        ways["loss at the cut-off"] = _means(last, points.candidate, evidence.at_target, code)
    smaller = ~evidence.at_target & evidence.ended & (scale < wanted.scale.max() - 0.05)
    for size in np.unique(scale[smaller])[::-1]:  # the largest that all of them have
        there = smaller & (scale == size)
        if set(code[known].tolist()) <= set(points.candidate[there].tolist()):
            ways["loss of smaller runs"] = _means(evidence.y, points.candidate, there, code)
            break
    rows = {}
    for name, values in ways.items():
        there = known & np.isfinite(values)
        if there.sum() < 2:
            continue
        taken = np.flatnonzero(there)[np.argmin(values[there])]
        rows[name] = {"spearman": spearman(values[there], actual[there]), "regret": float(actual[taken] - best)}
    rows["predicted"]["p_best"] = float(table.p_best[int(np.nanargmin(actual))])
    rows["by chance"] = {"spearman": 0.0, "regret": float(np.nanmean(actual) - best)}
    return pd.DataFrame(rows).T


def _means(values: np.ndarray, of: np.ndarray, rows: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """For each code the mean of its values over some rows; NaN for none."""
    chosen = [values[rows & (of == code)] for code in codes]
    return np.array([part.mean() if len(part) else np.nan for part in chosen])


def method_in_words(evidence: Evidence, regression: MixtureRegression | None, running: bool, widened: float) -> str:
    """How losses were predicted."""
    what = "the ends of the runs" if running else "the expected loss of a new run of each candidate"
    parts = ["curves forecast to their ends (race)"] if (~evidence.ended).any() else []
    if regression is not None:
        over = [] if evidence.points.shares is None else ["mixtures"]
        over += ["sizes"] if len(np.unique(evidence.points.size)) > 1 else []
        noise = regression.unit * float(np.exp(regression.theta[NAMES.index("noise")] + regression.y.mean()))
        name = f"Gaussian process regression over {' and '.join(over) or 'candidates'}"
        wider = f", intervals widened {widened**0.5:.2g} times by cross-validation" if widened > 1 else ""
        parts.append(f"{name} of {len(regression.y)} runs (noise of a run {noise:.2g} nats{wider})")
    return f"{what}, by {', then '.join(parts) or 'the losses as they are'}"
