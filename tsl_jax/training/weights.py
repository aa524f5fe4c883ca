"""Weights over positions in the training objective, mean one: how much the loss of each context length counts.

    objective = mean over sequences and positions i of w_i * loss_i,   mean_i w_i = 1

Down-weighting the head, the middle or the tail is the ablation of Temporal Scaling Law (arXiv 2404.17785); there none
of them beats the plain mean. A factor above one stresses the positions instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

KINDS = ("uniform", "head", "middle", "tail", "linear")


@dataclass(frozen=True)
class PositionWeights:
    """A rule that gives every position its weight, whatever the context."""

    kind: str = "uniform"  # uniform, head, middle, tail or linear
    k: int = 0  # head: positions 1..k; tail: the last k
    a: int = 0  # middle: positions a..b, both included
    b: int = 0
    factor: float = 0.1  # weight of the chosen positions relative to the others

    @staticmethod
    def uniform() -> PositionWeights:
        """All positions alike."""
        return PositionWeights()

    @staticmethod
    def head(k: int, factor: float = 0.1) -> PositionWeights:
        """The first k positions count `factor` times as much as the others."""
        return PositionWeights("head", k=k, factor=factor)

    @staticmethod
    def middle(a: int, b: int, factor: float = 0.1) -> PositionWeights:
        """Positions a..b count `factor` times as much as the others."""
        return PositionWeights("middle", a=a, b=b, factor=factor)

    @staticmethod
    def tail(k: int, factor: float = 0.1) -> PositionWeights:
        """The last k positions count `factor` times as much as the others."""
        return PositionWeights("tail", k=k, factor=factor)

    @staticmethod
    def linear() -> PositionWeights:
        """w_i = 2 i / (n + 1): long contexts count more."""
        return PositionWeights("linear")

    def values(self, context: int) -> np.ndarray:
        """The weights of positions 1..context, float64, mean one.

        Raises:
            ValueError: for an unknown kind, positions outside 1..context, or a factor that leaves no weight.
        """
        import numpy as np

        position = np.arange(1, context + 1)
        if self.kind == "linear":
            raw = position.astype(np.float64)
        else:
            raw = np.where(self._chosen(position), self.factor, 1.0)
        if self.factor < 0 or raw.sum() <= 0:
            found = f"factor {self.factor} for {self.kind!r} in a context of {context}"
            raise ValueError(
                f"training: position weights need a factor of 0 or more and some weight left, found {found}"
            )
        return raw / raw.mean()

    def _chosen(self, position: np.ndarray) -> np.ndarray:
        """Which positions the factor applies to."""
        n = len(position)
        ends = {"uniform": (1, 0), "head": (1, self.k), "middle": (self.a, self.b), "tail": (n - self.k + 1, n)}
        if self.kind not in ends:
            raise ValueError(f"training: position weights are one of {', '.join(KINDS)}; found {self.kind!r}")
        first, last = ends[self.kind]
        if self.kind != "uniform" and not 1 <= first <= last <= n:
            given = f"a {self.a} and b {self.b}" if self.kind == "middle" else f"k {self.k}"
            found = f"position weights {self.kind!r} with {given} asks for positions {first}..{last}"
            mend = "choose 1 <= a <= b <= context" if self.kind == "middle" else "choose k from 1 to the context"
            raise ValueError(f"training: {found}; the context has 1..{n}: {mend}")
        return (position >= first) & (position <= last)
