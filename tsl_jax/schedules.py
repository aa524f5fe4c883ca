"""The learning-rate schedule as the laws see it: a plan known before the run ends.

`Schedule` is the law wing's reading of the plan in a surface's `schedule` attribute; tokens, not steps, are its
clock. With n tokens seen, W warm-up tokens, T total tokens, final ratio r, wsd's decay from D on and c cycles,

    lr(n) = peak * n / W                                              n < W
    constant:  peak
    cosine:    peak * (r + (1 - r) (1 + cos(pi p)) / 2)               p = (n - W) / (T - W)
    restarts:  the cosine over each of c equal parts of W..T          (SGDR, Loshchilov and Hutter, arXiv 1608.03983)
    wsd:       peak until D, then with q = (n - D) / (T - D)
               linear:       peak * (1 - (1 - r) q)
               exponential:  peak * r^q
               sqrt:         peak * (1 - (1 - r) sqrt(q))             (Haegele et al., arXiv 2405.18392)
    table:     linear between knots

A cycle ends at r * peak and the step after it begins the next. A plan that was changed in mid-run is a list of plans:
the last one that has begun holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

KINDS = ("constant", "cosine", "wsd", "restarts", "table")
DECAY_FORMS = ("linear", "exponential", "sqrt")
CHANGING = "changing"  # the kind of a list of plans
# A share of the run: steps at most this far beyond the end of a cycle belong to it, whatever the precision of tokens.
ROUNDING = 1e-6
_PLAIN = ("kind", "peak", "warmup_tokens", "total_tokens", "final_ratio", "decay_start_tokens")
_YOUNGER = {"decay_form": "linear", "cycles": 1}  # written where they say something, so that old plans stay as they are
_WORDS, _SHARES = {"kind", "decay_form"}, {"peak", "final_ratio"}
PLAN_KEYS = (*_PLAIN, *_YOUNGER, "from_tokens", "tokens", "lr")


@dataclass(frozen=True)
class Schedule:
    """A learning-rate plan, by the equations above; `from_plan` reads one, also a table or a list of plans.

    Attributes:
        kind: one of KINDS, or "changing". peak: the highest learning rate.
        warmup_tokens: end of the warm-up, of the first plan. total_tokens: end of the run, by the last plan.
        final_ratio: the last learning rate over the peak. decay_start_tokens, decay_form: of wsd. cycles: of restarts.
        from_tokens: where this plan begins to hold, in a list; its warm-up then starts there.
        table: knots (tokens, lr). plans: what a changing plan consists of.

    Raises:
        ValueError: for an unknown kind, or numbers that make no sense together.
    """

    kind: str
    peak: float
    warmup_tokens: int
    total_tokens: int
    final_ratio: float = 1.0
    decay_start_tokens: int = 0
    decay_form: str = "linear"
    cycles: int = 1
    from_tokens: int = 0
    table: tuple[tuple[float, float], ...] = ()
    plans: tuple[Schedule, ...] = ()

    def __post_init__(self) -> None:
        expected = (CHANGING,) if self.plans else KINDS
        if self.kind not in expected:
            raise ValueError(f"schedule: expected one of {expected}, found {self.kind!r}")
        if not 0 <= self.warmup_tokens < self.total_tokens:
            raise ValueError(
                f"schedule: warm-up of {self.warmup_tokens} tokens does not fit a run of {self.total_tokens}"
            )
        if not 0 < self.peak < math.inf or not 0 <= self.final_ratio < math.inf:
            found = f"peak {self.peak} and final_ratio {self.final_ratio}"
            raise ValueError(f"schedule: expected a positive peak and a final_ratio of at least 0, found {found}")
        if not 0 <= self.from_tokens < self.total_tokens:
            raise ValueError(f"schedule: it begins at {self.from_tokens} tokens and ends at {self.total_tokens}")
        if self.kind == "restarts" and self.cycles < 1:
            raise ValueError(f"schedule: restarts needs cycles of at least 1, found {self.cycles}")
        if (self.kind == "table") != bool(self.table):
            raise ValueError("schedule: a table has knots, and no other kind has; read it with from_plan")
        if self.kind == "wsd":
            self._check_decay()

    def _check_decay(self) -> None:
        if not self.warmup_tokens <= self.decay_start_tokens < self.total_tokens:
            raise ValueError(f"schedule: wsd decays from {self.decay_start_tokens}, expected between warm-up and end")
        if self.decay_form not in DECAY_FORMS:
            raise ValueError(f"schedule: decay_form must be one of {DECAY_FORMS}, found {self.decay_form!r}")
        if self.decay_form == "exponential" and not self.final_ratio:
            raise ValueError("schedule: an exponential decay never reaches 0; give a final_ratio above it, or linear")

    @classmethod
    def from_plan(cls, plan: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Schedule:
        """From a surface's `schedule` attribute; keys that a plan keeps for others are passed over.

        Args:
            plan: a mapping with kind, peak, warmup_tokens, total_tokens and what its kind has besides, or with kind
                "table", tokens and lr, linear in between; or a list of such mappings, each with the from_tokens at
                which it begins to hold, 0 for the first. All tokens count from the start of the run; a later plan
                that names no warmup_tokens starts its curve at its from_tokens.

        Raises:
            ValueError: for what is missing, no number, out of order, or makes no sense.
        """
        if isinstance(plan, Mapping):
            one = _read(plan)
            if one.from_tokens:
                raise ValueError(f"schedule: a plan alone begins at 0, found from_tokens {one.from_tokens}")
            return one
        if not isinstance(plan, Sequence) or isinstance(plan, str) or not plan:
            raise ValueError(
                f"schedule: expected a plan (kind, peak, ...) or a list of plans, found {str(plan)[:40]!r}"
            )
        return _joined(tuple(_read_entry(entry, k, len(plan)) for k, entry in enumerate(plan, 1)))

    def to_plan(self) -> dict[str, Any] | list[dict[str, Any]]:
        """JSON values that `from_plan` reads as the same schedule."""
        if self.plans:
            return [{"from_tokens": one.from_tokens, **_written(one)} for one in self.plans]
        return _written(self)

    def known_at(self, tokens: float) -> Schedule:
        """The plan as known when `tokens` have been seen: changes that begin later are not in it."""
        return _joined(tuple(one for one in self.plans if one.from_tokens <= max(tokens, 0))) if self.plans else self

    def lr(self, tokens: Any) -> Array:
        """Learning rate of the step that brings the tokens seen to `tokens`, any shape."""
        tokens = jnp.asarray(tokens, float)
        if self.table:
            return jnp.interp(tokens, *jnp.asarray(self.table, float).T)
        if not self.plans:
            return self._formula(tokens)
        lr = self.plans[0].lr(tokens)
        for one in self.plans[1:]:
            lr = jnp.where(tokens >= float(one.from_tokens), one.lr(tokens), lr)
        return lr

    def _formula(self, tokens: Array) -> Array:
        # floats, as jax takes no int beyond 2^31
        begin, warmup = float(self.from_tokens), float(self.warmup_tokens - self.from_tokens)
        warm = jnp.clip((tokens - begin) / warmup, 0, 1) if warmup > 0 else jnp.ones_like(tokens)
        start = float(self.decay_start_tokens if self.kind == "wsd" else self.warmup_tokens)
        progress = jnp.clip((tokens - start) / (self.total_tokens - start), 0, 1)
        if self.kind == "wsd" and self.decay_form == "exponential":
            return self.peak * warm * self.final_ratio**progress
        return self.peak * warm * (1 - (1 - self.final_ratio) * self._fall(progress))

    def _fall(self, progress: Array) -> Array:
        """From 0 at the peak to 1 at the end."""
        if self.kind == "constant":
            return jnp.zeros_like(progress)
        if self.kind == "wsd":
            return jnp.sqrt(progress) if self.decay_form == "sqrt" else progress
        if self.kind == "restarts":
            turns = self.cycles * progress
            progress = turns - jnp.maximum(jnp.ceil(turns - self.cycles * ROUNDING) - 1, 0)
        return (1 - jnp.cos(jnp.pi * progress)) / 2

    def knots(self, tolerance: float = 1e-4) -> tuple[Any, Any]:
        """The plan from token 0 to total_tokens, drawn as straight lines.

        Args:
            tolerance: how far the lines may be from `lr`, as a share of the peak.

        Returns:
            Two float64 numpy arrays (knot,): tokens, increasing, and the learning rates there. A jump is two knots
            that 1e-12 of the run lie between; only there is the drawing further from the plan.

        Raises:
            ValueError: for a tolerance that is not positive.
        """
        if not tolerance > 0:
            raise ValueError(f"schedule: tolerance is a positive share of the peak, found {tolerance}")
        near, plans = 1e-12 * self.total_tokens, self.plans or (self,)
        ends = [*(one.from_tokens - near for one in plans[1:]), self.total_tokens]
        found = {
            float(at)
            for one, end in zip(plans, ends, strict=True)
            for at in (one.from_tokens, *_bends(one, tolerance, near), end)
            if one.from_tokens <= at <= end
        }
        with jax.enable_x64(True):
            tokens = jnp.asarray(sorted(found), float)
            return jax.device_get((tokens, self.lr(tokens)))


def _bends(plan: Schedule, tolerance: float, near: float) -> list[float]:
    """Tokens between which one plan is straight within tolerance * peak, both sides of its jumps among them."""
    if plan.table:
        return [tokens for tokens, _ in plan.table]
    start = plan.decay_start_tokens if plan.kind == "wsd" else plan.warmup_tokens
    span, cycles = plan.total_tokens - start, plan.cycles if plan.kind == "restarts" else 1
    curve = _curved(plan, tolerance)
    jumps = [start + span * (k / cycles + ROUNDING) for k in range(1, cycles)]
    smooth = [start + span * (k + share) / cycles for k in range(cycles) for share in curve]
    return [plan.warmup_tokens, *smooth, *(jump + side for jump in jumps for side in (-near, near))]


def _curved(plan: Schedule, tolerance: float) -> list[float]:
    """Shares of a decay or a cycle whose chords stay within half the tolerance: a chord of h errs by h^2 f''/8."""
    drop, power = 2 * abs(1 - plan.final_ratio) / tolerance, 1
    if plan.kind in ("cosine", "restarts"):
        count = math.pi / 4 * math.sqrt(drop)
    elif plan.kind == "wsd" and plan.decay_form == "exponential":
        count = abs(math.log(plan.final_ratio)) * math.sqrt(max(plan.final_ratio, 1) / (4 * tolerance))
    elif plan.kind == "wsd" and plan.decay_form == "sqrt":
        count, power = math.sqrt(drop / 2), 4  # spaced so that every chord errs alike, where the slope is infinite too
    else:
        count = 1
    n = max(math.ceil(count), 1)
    return [(k / n) ** power for k in range(n + 1)]


# ------------------------------------------------------------------------------------------------- from and to a plan


def _joined(plans: tuple[Schedule, ...]) -> Schedule:
    """One schedule of plans that follow each other."""
    begun = [one.from_tokens for one in plans]
    if begun[0] or any(later <= earlier for earlier, later in pairwise(begun)):
        raise ValueError(f"schedule: from_tokens must begin with 0 and increase from plan to plan, found {begun}")
    if len(plans) == 1:
        return plans[0]
    peak = max(one.peak for one in plans)
    return Schedule(CHANGING, peak, plans[0].warmup_tokens, plans[-1].total_tokens, plans=plans)


def _read_entry(entry: Any, number: int, count: int) -> Schedule:
    """A plan of a list."""
    try:
        if not isinstance(entry, Mapping):
            raise ValueError(f"schedule: expected a mapping of names to values, found {str(entry)[:40]!r}")
        if "from_tokens" not in entry:
            raise ValueError("schedule: it needs from_tokens, the tokens seen at which it begins to hold")
        return _read(entry)
    except ValueError as error:
        raise ValueError(f"schedule: plan {number} of {count}: {str(error).removeprefix('schedule: ')}") from None


def _read(plan: Mapping[str, Any]) -> Schedule:
    """One plan; its numbers must be numbers, and those of tokens whole."""
    known = {key: plan[key] for key in (*_PLAIN, *_YOUNGER, "from_tokens") if key in plan}
    for key in known.keys() - _WORDS:
        known[key] = _number(key, known[key], whole=key not in _SHARES)
    if known.get("kind") == "table":
        return _read_table(plan, known)
    if known.get("from_tokens"):
        known.setdefault("warmup_tokens", known["from_tokens"])
    missing = [key for key in ("kind", "peak", "warmup_tokens", "total_tokens") if key not in known]
    if missing:
        raise ValueError(f"schedule: it needs {' and '.join(missing)}; found {', '.join(map(str, plan)) or 'nothing'}")
    return Schedule(**known)


def _read_table(plan: Mapping[str, Any], known: Mapping[str, Any]) -> Schedule:
    """A table; its peak and its end are those of its knots."""
    columns = []
    for key in ("tokens", "lr"):
        values: Any = plan.get(key)
        values = values.tolist() if hasattr(values, "tolist") else values  # a numpy array
        if not isinstance(values, Sequence) or isinstance(values, str) or len(values) < 2:
            raise ValueError(
                f"schedule: a table needs {key}, a list of at least two numbers, found {str(values)[:40]!r}"
            )
        columns.append([_number(f"one of {key}", value) for value in values])
    tokens, lr = columns
    if len(tokens) != len(lr):
        raise ValueError(f"schedule: a table needs as many lr as tokens, found {len(lr)} and {len(tokens)}")
    if tokens[0] < 0 or any(later <= earlier for earlier, later in pairwise(tokens)):
        raise ValueError("schedule: the tokens of a table must increase from 0 or later")
    if min(lr) < 0:
        raise ValueError(f"schedule: the lr of a table must not be negative, found {min(lr)}")
    begin = known.get("from_tokens", 0)
    total = _number("the last of tokens", tokens[-1], whole=True)
    table = tuple(zip(tokens, lr, strict=True))
    return Schedule("table", max(lr), known.get("warmup_tokens", begin), total, from_tokens=begin, table=table)


def _number(name: str, value: Any, *, whole: bool = False) -> Any:
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not math.isfinite(number):
        raise ValueError(f"schedule: {name} is {value!r}, expected a number")
    if whole and not number.is_integer():
        raise ValueError(f"schedule: {name} is {value!r}, expected a whole number")
    return int(number) if whole else number


def _written(one: Schedule) -> dict[str, Any]:
    if one.table:
        tokens, lr = map(list, zip(*one.table, strict=True))
        return {"kind": "table", "tokens": tokens, "lr": lr, "warmup_tokens": one.warmup_tokens}
    younger = {key: getattr(one, key) for key, default in _YOUNGER.items() if getattr(one, key) != default}
    return {key: getattr(one, key) for key in _PLAIN} | younger
