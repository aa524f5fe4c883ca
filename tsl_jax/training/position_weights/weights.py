"""Weights over positions in the training objective, mean one: how much the loss of each context length counts.

    objective = mean over sequences and positions i of w_i * loss_i,   mean_i w_i = 1

Down-weighting the head, the middle or the tail is the ablation of Temporal Scaling Law (arXiv 2404.17785); there none
of them beats the plain mean. A factor above one stresses the positions instead. Adaptive rules follow the run, see
`adaptive`. A text names them, on the command line and in YAML:

    uniform   linear   head:16@0.1   tail:32@4   middle:33-64@0.1
    inverse_loss   learnable_excess   gradient_noise
    weights.npy   weights.csv   weights.json         one weight a position
    package.module:function   ./file.py:function     a rule of one's own

A file, or the source of a function, belongs to the run by its content: once read, its text ends in `#` and a hash.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tsl_jax.training.position_weights import sources

if TYPE_CHECKING:
    import numpy as np

KINDS = ("uniform", "head", "middle", "tail", "linear")
FIELDS = ("kind", "k", "a", "b", "factor")  # of a formula
_FORMULA = re.compile(r"(?P<kind>head|tail|middle):(?P<first>\d+)(-(?P<last>\d+))?(@(?P<factor>[^@]+))?")


@dataclass(frozen=True)
class PositionWeights:
    """A rule that gives every position its weight: whatever the run does, or following it."""

    kind: str = "uniform"  # uniform, head, middle, tail or linear; the name of an adaptive rule; file; rule
    k: int = 0  # head: positions 1..k; tail: the last k
    a: int = 0  # middle: positions a..b, both included
    b: int = 0
    factor: float = 0.1  # weight of the chosen positions relative to the others
    source: str = ""  # of kind file: its path; of kind rule: module:function or ./file.py:function
    sha256: str = ""  # of the file, or of the function's source file, its first 16 digits

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

    @staticmethod
    def parse(text: str) -> PositionWeights:
        """The rule that a text names, see the top of this file; a file, or a function's source, is read for its hash.

        Raises:
            ValueError: for a text that names none, a file that cannot be read, or a module that is not there.
        """
        if text in ("uniform", "linear", *sources.RULES):
            return PositionWeights(text)
        if match := _FORMULA.fullmatch(text):
            kind, first, last, factor = match.group("kind", "first", "last", "factor")
            try:
                by = 0.1 if factor is None else float(factor)
            except ValueError:
                raise ValueError(f"training: position weights {text!r}: {factor!r} after @ is no number") from None
            if (kind == "middle") != (last is not None):
                form = {"middle": "middle:A-B, as middle:33-64@0.1"}.get(kind, f"{kind}:K, as {kind}:16@0.1")
                raise ValueError(f"training: position weights {text!r}: expected {form}")
            if kind == "middle":
                return PositionWeights.middle(int(first), int(last), by)
            return PositionWeights(kind, k=int(first), factor=by)
        source, _, sha256 = text.partition("#")
        kind = sources.kind(source)
        if kind:
            return PositionWeights(kind, source=source, sha256=sha256 or sources.sha256(kind, source))
        names = f"uniform, linear, head:K@FACTOR, tail:K@FACTOR, middle:A-B@FACTOR, {', '.join(sources.RULES)}"
        paths = "a .npy, .csv or .json file, module:function or ./file.py:function"
        raise ValueError(f"training: position weights {text!r} are unknown; they are one of {names}, {paths}")

    def __str__(self) -> str:
        """The text that `parse` reads."""
        if self.source:
            return f"{self.source}#{self.sha256}" if self.sha256 else self.source
        positions = {"head": self.k, "tail": self.k, "middle": f"{self.a}-{self.b}"}
        if self.kind not in positions:
            return self.kind
        return f"{self.kind}:{positions[self.kind]}@{repr(self.factor).removesuffix('.0')}"

    @property
    def adaptive(self) -> bool:
        """Whether the weights follow the run."""
        return self.kind == "rule" or self.kind in sources.RULES

    @property
    def runs_code(self) -> bool:
        """Whether these weights run Python that is not the library's own."""
        return sources.is_of_others(self.kind, self.source)

    def written(self) -> Any:
        """The text for a file; a mapping, where entries that the rule does not read have been set too."""
        try:
            is_text = PositionWeights.parse(str(self)) == self
        except ValueError:
            is_text = False
        return str(self) if is_text else asdict(self)

    def identity(self) -> dict[str, Any]:
        """What enters the hash of a run: of files and functions the content, not the place."""
        if self.kind == "file":
            return {"kind": "file", "sha256": self.sha256}
        if self.kind == "rule":
            return {"kind": "rule", "function": self.source.rpartition(":")[2], "sha256": self.sha256}
        return {"kind": self.kind} if self.adaptive else {name: getattr(self, name) for name in FIELDS}

    def check(self, context: int, *, run_code: bool = True) -> None:
        """Nothing, where a run can have these weights; a function is tried on a made-up observation.

        Args:
            run_code: False: a function is neither imported nor called.

        Raises:
            ValueError: naming what is wrong.
        """
        if self.source:
            sources.verify(self.kind, self.source, self.sha256)
        if self.kind == "rule" and (run_code or not self.runs_code):
            from tsl_jax.training.position_weights import adaptive

            adaptive.try_rule(sources.load_rule(self.kind, self.source), self.source, context)
        self.values(context)

    def values(self, context: int) -> np.ndarray:
        """The weights of positions 1..context, float64, mean one; of an adaptive rule those before its first update.

        Raises:
            ValueError: for an unknown kind, positions outside 1..context, a file that cannot be read, and what
                `validated` refuses.
        """
        import numpy as np

        if self.adaptive:
            return np.ones(context)
        if self.kind == "file":
            return mean_one(sources.read_file(self.source), f"position weights {self.source}", context)
        if self.kind not in KINDS:
            kinds = ", ".join((*KINDS, *sources.RULES))
            raise ValueError(f"training: position weights are one of {kinds}; found {self.kind!r}")
        n, position = context, np.arange(1, context + 1)
        ranges = {"head": (1, self.k), "middle": (self.a, self.b), "tail": (n - self.k + 1, n)}
        first, last = ranges.get(self.kind, (1, 0))  # uniform and linear: the factor applies to none
        if self.kind in ranges and not 1 <= first <= last <= n:
            given = f"a {self.a} and b {self.b}" if self.kind == "middle" else f"k {self.k}"
            request = f"position weights {self.kind!r} with {given} asks for positions {first}..{last}"
            fix = "choose 1 <= a <= b <= context" if self.kind == "middle" else "choose k from 1 to the context"
            raise ValueError(f"training: {request}; the context has 1..{n}: {fix}")
        chosen = (first <= position) & (position <= last)
        raw = position if self.kind == "linear" else np.where(chosen, self.factor, 1.0)
        raw = validated(raw, f"position weights {self}", context)
        return raw / raw.mean()


def validated(weights: Any, origin: str, context: int) -> np.ndarray:
    """The weights as float64, whether a formula, a file or a rule gave them: here they are refused, and nowhere else.

    Raises:
        ValueError: naming the origin of what is not one finite weight of 0 or more a position, with some weight left.
    """
    import numpy as np

    try:
        w = np.asarray(weights, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"training: {origin} gave {type(weights).__name__}, expected {context} numbers") from None
    if w.shape != (context,):
        raise ValueError(f"training: {origin} gave shape {w.shape}, expected ({context},): one weight a position")
    wrong = np.flatnonzero(~np.isfinite(w) | (w < 0))
    if len(wrong):
        entry = f"weight {w[wrong[0]]} at position {wrong[0] + 1}"
        raise ValueError(f"training: {origin} gave {entry}; weights must be finite, and 0 or more")
    if not w.any():
        raise ValueError(f"training: {origin} gave no weight to any position; some weight must be left")
    return w


def mean_one(weights: Any, origin: str, context: int) -> np.ndarray:
    """Weights that `validated` accepts, (position,) float64, brought to mean one."""
    w = validated(weights, origin, context)
    w = w / w.max()  # the sum of large ones could overflow
    return w / w.mean()
