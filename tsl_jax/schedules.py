"""The learning-rate schedule: a plan in tokens, known before the run ends, read by training, laws and forecasts.

With n tokens seen, W warm-up tokens, T total tokens, final ratio r, wsd's decay from D on and c cycles, the step that
brings the tokens seen to n has the learning rate

    lr(n) = peak * n / W                                            n < W
    constant:  peak
    cosine:    peak * (r + (1 - r) (1 + cos(pi p)) / 2)             p = (n - W) / (T - W)
    restarts:  the cosine over each of c equal parts of W..T        (SGDR, Loshchilov and Hutter, arXiv 1608.03983)
    wsd:       peak until D, then with p = (n - D) / (T - D)
               linear:       peak * (1 - (1 - r) p)
               exponential:  peak * r^p
               sqrt:         peak * (1 - (1 - r) sqrt(p))           (Haegele et al., arXiv 2405.18392)
    table:     linear between knots

A cycle ends at r * peak and the step after it begins the next. A schedule that was changed in mid-run is a list of
plans, each with the from_tokens at which it begins to hold: the last one that has begun holds. As JSON a plan is a
mapping (`Schedule.from_plan`, `Schedule.to_plan`); it stands in the `schedule` attribute of a loss surface.
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
# Share of the run: a step at most this far beyond the end of a cycle belongs to it, as float32 tokens may put it there.
ROUNDING = 1e-6
_WRITTEN = ("kind", "peak", "warmup_tokens", "total_tokens", "final_ratio", "decay_start_tokens")
_WRITTEN_UNLESS = {"decay_form": "linear", "cycles": 1}  # entries left out of a plan where they have these values
PLAN_KEYS = (*_WRITTEN, *_WRITTEN_UNLESS, "from_tokens", "tokens", "lr")


@dataclass(frozen=True)
class Schedule:
    """A learning-rate schedule, by the equations above; `from_plan` reads one, also a table or a list of plans.

    Attributes:
        kind: one of KINDS, or "changing". peak: the highest learning rate.
        warmup_tokens: end of the warm-up, of the first plan. total_tokens: end of the run, by the last plan.
        final_ratio: the last learning rate over the peak. decay_start_tokens, decay_form: of wsd. cycles: of restarts.
        from_tokens: where this plan begins to hold, in a list; its warm-up then starts there.
        table: knots (tokens, lr). plans: what a changing schedule consists of.

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
        if self.kind != "wsd":
            return
        if not self.warmup_tokens <= self.decay_start_tokens < self.total_tokens:
            raise ValueError(f"schedule: wsd decays from {self.decay_start_tokens}, expected between warm-up and end")
        if self.decay_form not in DECAY_FORMS:
            raise ValueError(f"schedule: decay_form must be one of {DECAY_FORMS}, found {self.decay_form!r}")
        if self.decay_form == "exponential" and not self.final_ratio:
            raise ValueError("schedule: an exponential decay never reaches 0; give a final_ratio above it, or linear")

    # ------------------------------------------------------------------------------------------------ from and to JSON

    @classmethod
    def from_plan(cls, plan: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Schedule:
        """From a surface's `schedule` attribute; entries that are not in PLAN_KEYS are ignored.

        Args:
            plan: a mapping with kind, peak, warmup_tokens, total_tokens and what its kind has besides, or with kind
                "table", tokens and lr, linear in between; or a list of such mappings, each with the from_tokens at
                which it begins to hold, 0 for the first. All tokens count from the start of the run; a later plan
                that names no warmup_tokens starts its curve at its from_tokens.

        Raises:
            ValueError: for what is missing, no number, out of order, or makes no sense.
        """
        if isinstance(plan, Mapping):
            schedule = _read(plan)
            if schedule.from_tokens:
                raise ValueError(f"schedule: a plan alone begins at 0, found from_tokens {schedule.from_tokens}")
            return schedule
        if not isinstance(plan, Sequence) or isinstance(plan, str) or not plan:
            raise ValueError(
                f"schedule: expected a plan (kind, peak, ...) or a list of plans, found {str(plan)[:40]!r}"
            )
        schedules = []
        for number, entry in enumerate(plan, start=1):
            try:
                if not isinstance(entry, Mapping):
                    raise ValueError(f"schedule: expected a mapping of names to values, found {str(entry)[:40]!r}")
                if "from_tokens" not in entry:
                    raise ValueError("schedule: it needs from_tokens, the tokens seen at which it begins to hold")
                schedules.append(_read(entry))
            except ValueError as error:
                message = str(error).removeprefix("schedule: ")
                raise ValueError(f"schedule: plan {number} of {len(plan)}: {message}") from None
        return _in_sequence(schedules)

    def to_plan(self) -> dict[str, Any] | list[dict[str, Any]]:
        """JSON values that `from_plan` reads as the same schedule."""
        if self.plans:
            return [{"from_tokens": plan.from_tokens, **plan._entries()} for plan in self.plans]
        return self._entries()

    def _entries(self) -> dict[str, Any]:
        """The JSON values of one plan."""
        if self.table:
            tokens, lr = map(list, zip(*self.table, strict=True))
            return {"kind": "table", "tokens": tokens, "lr": lr, "warmup_tokens": self.warmup_tokens}
        optional = {key: getattr(self, key) for key, value in _WRITTEN_UNLESS.items() if getattr(self, key) != value}
        return {key: getattr(self, key) for key in _WRITTEN} | optional

    # ------------------------------------------------------------------------------------------------ learning rates

    def known_at(self, tokens: float) -> Schedule:
        """The schedule as known when `tokens` have been seen: changes that begin later are not in it."""
        if not self.plans:
            return self
        return _in_sequence([plan for plan in self.plans if plan.from_tokens <= max(tokens, 0)])

    def lr(self, tokens: Any) -> Array:
        """Learning rate of the step that brings the tokens seen to `tokens`, any shape; float64 where jax has it."""
        return self.rate(jnp.asarray(tokens, float))

    def rate(self, tokens: Any, xp: Any = jnp) -> Any:
        """The same in the precision of `tokens`, by numpy or by jax.numpy inside jit, as training takes it.

        Args:
            tokens: tokens seen after the step, any shape. xp: the array module, numpy or jax.numpy.
        """
        if self.plans:
            lr = self.plans[0].rate(tokens, xp)
            for plan in self.plans[1:]:
                lr = xp.where(tokens >= float(plan.from_tokens), plan.rate(tokens, xp), lr)
            return lr
        if self.table:
            return xp.interp(tokens, *xp.asarray(self.table, float).T)
        # Floats, as jax takes no int beyond 2^31.
        begin, warmup, total = float(self.from_tokens), float(self.warmup_tokens), float(self.total_tokens)
        start = float(self.decay_start_tokens) if self.kind == "wsd" else warmup
        progress = xp.clip((tokens - start) / (total - start), 0.0, 1.0)
        r = self.final_ratio
        if self.kind == "restarts":
            # Progress within its cycle, in (0, 1]: the end of a cycle is 1 of it, not 0 of the next.
            turns = self.cycles * progress
            progress = turns - xp.maximum(xp.ceil(turns - self.cycles * ROUNDING) - 1, 0)
        if self.kind in ("cosine", "restarts"):
            decayed = r + (1 - r) * 0.5 * (1 + xp.cos(math.pi * progress))
        elif self.kind == "wsd" and self.decay_form == "exponential":
            decayed = r**progress
        elif self.kind == "wsd":
            decayed = 1 - (1 - r) * (xp.sqrt(progress) if self.decay_form == "sqrt" else progress)
        else:
            decayed = 1.0
        return self.peak * xp.where(tokens < warmup, (tokens - begin) / max(warmup - begin, 1.0), decayed)

    def knots(self, tolerance: float = 1e-4) -> tuple[Any, Any]:
        """The schedule from token 0 to total_tokens as straight lines.

        Args:
            tolerance: how far the lines may be from `lr`, as a share of the peak.

        Returns:
            Two float64 numpy arrays (knot,): tokens, increasing, and the learning rates there. A jump is two knots
            that 1e-12 of the run lie between; only there are the lines further from the schedule.

        Raises:
            ValueError: for a tolerance that is not positive.
        """
        if not tolerance > 0:
            raise ValueError(f"schedule: tolerance is a positive share of the peak, found {tolerance}")
        near, plans = 1e-12 * self.total_tokens, self.plans or (self,)
        ends = [*(plan.from_tokens - near for plan in plans[1:]), self.total_tokens]
        knots = {
            float(knot)
            for plan, end in zip(plans, ends, strict=True)
            for knot in (plan.from_tokens, *_knots_of_plan(plan, tolerance, near), end)
            if plan.from_tokens <= knot <= end
        }
        with jax.enable_x64(True):
            tokens = jnp.asarray(sorted(knots), float)
            return jax.device_get((tokens, self.lr(tokens)))


def _knots_of_plan(plan: Schedule, tolerance: float, near: float) -> list[float]:
    """Tokens between which one plan is straight within tolerance * peak; a jump has one `near` either side of it.

    A chord of length h is off by at most h^2 max|f''| / 8. The knots keep that within half the tolerance.
    """
    if plan.table:
        return [tokens for tokens, _ in plan.table]
    drop, power = 2 * abs(1 - plan.final_ratio) / tolerance, 1
    if plan.kind in ("cosine", "restarts"):
        chords = math.pi / 4 * math.sqrt(drop)  # f'' = (1 - r)/2 pi^2 cos
    elif plan.kind == "wsd" and plan.decay_form == "exponential":
        chords = abs(math.log(plan.final_ratio)) * math.sqrt(max(plan.final_ratio, 1) / (4 * tolerance))
    elif plan.kind == "wsd" and plan.decay_form == "sqrt":
        # The slope is infinite at 0: with knots at (k/n)^4 every chord errs alike.
        chords, power = math.sqrt(drop / 2), 4
    else:
        chords = 1
    n = max(math.ceil(chords), 1)
    shares = [(k / n) ** power for k in range(n + 1)]
    start = plan.decay_start_tokens if plan.kind == "wsd" else plan.warmup_tokens
    span, cycles = plan.total_tokens - start, plan.cycles if plan.kind == "restarts" else 1
    jumps = [start + span * (k / cycles + ROUNDING) for k in range(1, cycles)]
    smooth = [start + span * (k + share) / cycles for k in range(cycles) for share in shares]
    return [plan.warmup_tokens, *smooth, *(jump + side for jump in jumps for side in (-near, near))]


def _in_sequence(plans: Sequence[Schedule]) -> Schedule:
    """One schedule of plans that follow each other."""
    begins = [plan.from_tokens for plan in plans]
    if begins[0] or any(later <= earlier for earlier, later in pairwise(begins)):
        raise ValueError(f"schedule: from_tokens must begin with 0 and increase from plan to plan, found {begins}")
    if len(plans) == 1:
        return plans[0]
    peak = max(plan.peak for plan in plans)
    return Schedule(CHANGING, peak, plans[0].warmup_tokens, plans[-1].total_tokens, plans=tuple(plans))


def _read(plan: Mapping[str, Any]) -> Schedule:
    """One plan; its numbers must be numbers, and those of tokens and cycles whole."""
    values = {key: plan[key] for key in (*_WRITTEN, *_WRITTEN_UNLESS, "from_tokens") if key in plan}
    for key in values.keys() - {"kind", "decay_form"}:
        values[key] = _number(key, values[key], whole=key not in ("peak", "final_ratio"))
    if values.get("kind") == "table":
        return _read_table(plan, values)
    if values.get("from_tokens"):
        values.setdefault("warmup_tokens", values["from_tokens"])
    missing = [key for key in ("kind", "peak", "warmup_tokens", "total_tokens") if key not in values]
    if missing:
        raise ValueError(f"schedule: it needs {' and '.join(missing)}; found {', '.join(map(str, plan)) or 'nothing'}")
    return Schedule(**values)


def _read_table(plan: Mapping[str, Any], values: Mapping[str, Any]) -> Schedule:
    """A table; its peak and its end are those of its knots."""
    columns = []
    for key in ("tokens", "lr"):
        column: Any = plan.get(key)
        column = column.tolist() if hasattr(column, "tolist") else column  # a numpy array
        if not isinstance(column, Sequence) or isinstance(column, str) or len(column) < 2:
            raise ValueError(
                f"schedule: a table needs {key}, a list of at least two numbers, found {str(column)[:40]!r}"
            )
        columns.append([_number(f"one of {key}", value) for value in column])
    tokens, lr = columns
    if len(tokens) != len(lr):
        raise ValueError(f"schedule: a table needs as many lr as tokens, found {len(lr)} and {len(tokens)}")
    if tokens[0] < 0 or any(later <= earlier for earlier, later in pairwise(tokens)):
        raise ValueError("schedule: the tokens of a table must increase from 0 or later")
    if min(lr) < 0:
        raise ValueError(f"schedule: the lr of a table must not be negative, found {min(lr)}")
    begin = values.get("from_tokens", 0)
    total = _number("the last of tokens", tokens[-1], whole=True)
    table = tuple(zip(tokens, lr, strict=True))
    return Schedule("table", max(lr), values.get("warmup_tokens", begin), total, from_tokens=begin, table=table)


def _number(name: str, value: Any, *, whole: bool = False) -> Any:
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not math.isfinite(number):
        raise ValueError(f"schedule: {name} is {value!r}, expected a number")
    if whole and not number.is_integer():
        raise ValueError(f"schedule: {name} is {value!r}, expected a whole number")
    return int(number) if whole else number
