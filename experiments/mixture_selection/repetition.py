"""Does a regression that counts what is read again rank mixtures on little text?

Small models and target runs on all text read it about once; the target on a twentieth of it reads domains up to five
times. The regression of `tsl select` sees the first two, and of the last 0, 3 or 6 runs drawn at random; the others are
predicted, with what repeated text is worth in new tokens and without.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from experiments.mixture_selection.losses import CHOICE, JUDGE, Group
from tsl_jax.selection.cross_validation import spearman
from tsl_jax.selection.mixture_columns import epochs, worth
from tsl_jax.selection.mixture_regression import MixturePoints, fit_regression

SEEN = (0, 3, 6)  # runs on little text that the regression has
DRAWS = 20  # of which runs these are
Z90 = 1.6449


def predicted(groups: Mapping[str, Group], available: Mapping[str, float], target: str) -> pd.DataFrame:
    """A row for each number of runs seen, with and without counting: means over draws.

    Args:
        groups: proxy, target and limited. available: domain -> tokens of the little text. target: that is judged.

    Returns:
        repeating, counted, spearman, regret, bias and sd_about_bias (nats), inside (share within 90 %).
    """
    rows = []
    for seen in SEEN:
        for counted in (False, True):
            made = pd.DataFrame(_draws(groups, available, target, seen, counted)).mean()
            rows.append({"target": target, "repeating": seen, "counted": counted, **made.to_dict()})
    return pd.DataFrame(rows)


def _draws(
    groups: Mapping[str, Group], available: Mapping[str, float], target: str, seen: int, counted: bool
) -> Iterator[dict[str, float]]:
    """The scores of each draw; one draw where no run on little text is seen."""
    little = groups["limited"]
    truth, mixtures = little.ends(JUDGE, target), list(groups["proxy"].shares.index)
    code = np.array([mixtures.index(name) for name in little.shares.index])
    read = worth(epochs(little.shares, little.facts["tokens"], available)[list(little.shares)].to_numpy())
    known = [_points(groups[name], mixtures) for name in ("proxy", "target")]
    y = np.concatenate([np.log(groups[name].ends(CHOICE, target)) for name in ("proxy", "target")])
    repeated = _points(little, mixtures, read)
    log_loss = np.log(little.ends(CHOICE, target).to_numpy())
    rng = np.random.default_rng(0)
    for _ in range(DRAWS if seen else 1):
        own = np.isin(np.arange(len(code)), rng.permutation(len(code))[:seen])
        points = known[0].joined(known[1]).joined(repeated.take(own))
        wanted = repeated.take(~own)
        if not counted:
            points, wanted = _uncounted(points), _uncounted(wanted)
        mean, covariance = fit_regression(points, np.r_[y, log_loss[own]]).predict(wanted)
        loss, sd, actual = np.exp(mean), np.sqrt(np.diag(covariance)), truth.to_numpy()[~own]
        yield {
            "spearman": spearman(loss, actual),
            "regret": float(actual[np.argmin(loss)] - actual.min()),
            "bias": float((loss - actual).mean()),
            "sd_about_bias": float((loss - actual).std()),
            "inside": float((np.abs(mean - np.log(actual)) < Z90 * sd).mean()),
        }


def _points(runs: Group, mixtures: list[str], read: np.ndarray | None = None) -> MixturePoints:
    """The runs of a group; nothing is read again by default."""
    shares = runs.shares.to_numpy(float)
    code = np.array([mixtures.index(name) for name in runs.shares.index])
    size, tokens = (np.full(len(code), np.log(runs.facts[name])) for name in ("n_params", "tokens"))
    return MixturePoints(shares, code, size, tokens, np.ones_like(shares) if read is None else read)


def _uncounted(points: MixturePoints) -> MixturePoints:
    """The same points, as if no text were read again."""
    return MixturePoints(points.shares, points.candidate, points.log_params, points.log_tokens)
