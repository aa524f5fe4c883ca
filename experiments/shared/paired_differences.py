"""Arms compared with a control in pairs that share initialisation and data order: tests, verdicts, power.

equivalence     two one-sided tests: the (1 - 2 alpha) interval lies within (-margin, margin)
                (Schuirmann 1987, Journal of Pharmacokinetics and Biopharmaceutics 15)
holm            p values adjusted for several arms (Holm 1979)
detectable      the effect that a two-sided test at alpha finds with the given power:
                (t_{1 - alpha/2, n-1} + t_{power, n-1}) s / sqrt(n), within 2 % of the noncentral t for n >= 5
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from experiments.shared.seeds_and_intervals import Interval, interval

EQUIVALENT, DIFFERENT, UNDECIDED = "equivalent", "different", "undecided"
ALPHA = 0.05


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided tests of |mean| < margin, beside the two-sided test of mean = 0.

    Attributes:
        interval: at 1 - 2 alpha. p_equivalent: of the worse one-sided test. p_different: two-sided, of zero.
        verdict: "equivalent" (inside the margin), "different" (equivalence is not shown, and zero is excluded at
            alpha), "undecided".
    """

    interval: Interval
    margin: float
    p_equivalent: float
    p_different: float
    verdict: str

    def columns(self, name: str) -> dict[str, Any]:
        """As a table has it: the difference with its interval, pairs, p values and the verdict on equivalence."""
        tests = {"pairs": self.interval.n, "p_equivalent": self.p_equivalent, "p": self.p_different}
        return {**self.interval.columns(name), **tests, "equivalence": self.verdict}


def equivalence(values: Any, margin: float, alpha: float = ALPHA) -> Equivalence:
    """Whether the mean of independent differences (seed,) lies within a margin that was set beforehand.

    Raises:
        ValueError: for a margin that is not positive.
    """
    if not margin > 0:
        raise ValueError(f"equivalence: the margin must be positive, found {margin}")
    values = np.asarray(values, float)
    mean = interval(values, 1 - 2 * alpha)
    if mean.n < 2:
        return Equivalence(mean, margin, np.nan, np.nan, UNDECIDED)
    sem = max(float(values.std(ddof=1)) / np.sqrt(mean.n), 1e-300)
    worse = float(stats.t.sf((margin - abs(mean.mean)) / sem, mean.n - 1))
    zero = float(2 * stats.t.sf(abs(mean.mean) / sem, mean.n - 1))
    verdict = EQUIVALENT if worse < alpha else DIFFERENT if zero < alpha else UNDECIDED
    return Equivalence(mean, margin, worse, zero, verdict)


def detectable(sd: float, n: int, power: float = 0.8, alpha: float = ALPHA) -> float:
    """The smallest mean difference that n pairs whose differences have standard deviation `sd` would show."""
    return float((stats.t.ppf(1 - alpha / 2, n - 1) + stats.t.ppf(power, n - 1)) * sd / np.sqrt(n))


def holm(p: Any) -> np.ndarray:
    """p values (test,) adjusted for being several (Holm 1979)."""
    p = np.asarray(p, float)
    order = np.argsort(p)
    stepped = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def verdicts(table: pd.DataFrame, name: str, words: tuple[str, str], groups: Sequence[str] = ()) -> pd.DataFrame:
    """A table of `Equivalence.columns(name)`, a row an arm, with "p_holm" and "verdict" beside "p".

    Args:
        words: of a difference below zero and above. groups: columns; p values are adjusted within each group.

    Returns:
        The verdict is one of the words where the adjusted p is below ALPHA (", within the margin" where equivalence is
        shown too), else "no difference: equivalent" or "undecided".
    """
    by = table.groupby(list(groups)).p if groups else None
    adjusted = pd.Series(holm(table.p), table.index) if by is None else by.transform(lambda p: holm(p))

    def verdict(row: Any, p: float) -> str:
        equivalent = row.equivalence == EQUIVALENT
        if p < ALPHA:
            return words[int(row[name] > 0)] + (", within the margin" if equivalent else "")
        return "no difference: equivalent" if equivalent else UNDECIDED

    words_by_arm = [verdict(row, p) for (_, row), p in zip(table.iterrows(), adjusted, strict=True)]
    at = list(table.columns).index("p") + 1
    table = table.copy()
    table.insert(at, "p_holm", adjusted)
    table.insert(at + 1, "verdict", words_by_arm)
    return table
