"""Where a run leaves its course, row by row: spikes, divergence, other data, plateaus, rates that drop, restarts.

A line in log tokens, fitted robustly to the last WINDOW rows, says what the next row is expected to be. Its error over
the robust scatter s of earlier such errors is r: what a healthy run scatters, and bends, is in s. Three rules read it:

    spike        r > SPIKE
    CUSUM        S = max(0, S + clip(r, -CLIP, CLIP) - SLACK) > ALARM, upwards and downwards apart; while S > 0 the
                 line is that of the rows before, and s grows with the distance as the error of a line does
    rate         the recorded rate departs by JUMP of its recent maximum from its own line

An excursion that sets off the CUSUM is named by its shape:

    divergence   above, and rising
    data_switch  above or below, from its first row on or by a gap that settles
    plateau      above what was expected, and not above what was there before
    rate_drop    below by a gap that grows, and no rate is recorded; or the recorded rate falls abruptly
    non_finite   a loss is NaN or infinite
    restart      rows that were read before are gone or have another loss

A fall that a falling rate explains, and a rise where the rate rises, are no event; nor is a loss that stops falling
while the rate goes down, nor what is smaller than SMALLEST nats. After an event its rows are the new course. Which
numbers were chosen, on which half of public logs, and how often they alarm on the other: see
`experiments/forecast_evidence/events.py`.

Source of the CUSUM: Page, Continuous Inspection Schemes (Biometrika 1954).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

KINDS = ("spike", "divergence", "data_switch", "plateau", "rate_drop", "non_finite", "restart")


@dataclass(frozen=True)
class Rules:
    """Numbers of the rules, in units of s, in rows, or in nats."""

    spike: float = 8.0
    alarm: float = 8.0
    slack: float = 1.0
    clip: float = 4.0
    window: int = 128  # rows of the line, and errors of the scatter
    fewest: int = 12  # errors before anything is judged
    new_rows: int = 12  # of a new course before anything is judged again
    most: int = 2000  # rows that are judged when many are new at once: the last ones
    longest: int = 128  # rows of an excursion without an alarm, after which it is the course
    span: float = 1.0  # in log tokens: older rows say nothing of the next one
    bend: float = 0.5  # of slope x distance^2: by how much a healthy curve rises above its line
    smallest: float = 0.01  # nats: a smaller excursion is no event
    jump: float = 0.15  # of the recent highest rate
    fallen: float = 0.02  # share of the rate by which a change explains one of the loss


RULES = Rules()


@dataclass(frozen=True)
class Event:
    """Where a run left its course: the kind, tokens at which it began, and a sentence."""

    kind: str
    tokens: float
    sentence: str


@dataclass
class Line:
    """A line y = level + slope (x - middle) through rows, with what its error needs."""

    level: float
    slope: float
    middle: float
    count: int
    spread: float  # sum of (x - middle)^2

    def at(self, x: float) -> tuple[float, float]:
        """The line at x, and its error there, squared, in units of a row's variance."""
        apart = x - self.middle
        return self.level + self.slope * apart, 1 / self.count + apart**2 / self.spread if self.spread > 0 else 1.0


def fitted_line(x: Float[np.ndarray, " row"], y: Float[np.ndarray, " row"]) -> Line:
    """A line by least squares, rows beyond 2.5 robust deviations weighed down, twice."""
    weight = np.ones(len(x))
    middle = level = slope = spread = 0.0
    for _ in range(3):
        total = weight.sum()
        middle, level = weight @ x / total, weight @ y / total
        dx = x - middle
        spread = float(weight @ (dx * dx))
        slope = float(weight @ (dx * (y - level))) / spread if spread > 0 else 0.0
        apart = np.abs(y - level - slope * dx)
        scale = 2.5 * 1.4826 * float(np.median(apart))
        if scale <= 0:
            break
        weight = np.minimum(1.0, scale / np.maximum(apart, 1e-300))
    return Line(float(level), slope, float(middle), len(x), spread)


@dataclass
class Excursion:
    """Rows since the CUSUM was last zero, with the line of the rows before them."""

    line: Line
    bend_from: float
    x: list[float] = field(default_factory=list)
    y: list[float] = field(default_factory=list)
    gap: list[float] = field(default_factory=list)  # nats above the line
    r: list[float] = field(default_factory=list)


class Course:
    """The course of one split of a run, fed with its rows as they come.

    Args:
        planned: the learning rate at tokens, where a plan is known: its drops are no events.
    """

    def __init__(
        self,
        split: str = "",
        rules: Rules = RULES,
        planned: Callable[[float], float] | None = None,
    ) -> None:
        self.rules = rules
        self.name = f"the loss ({split})" if split not in ("", "loss") else "the loss"
        self.begins = 0.0  # tokens from which on the rows are of the present course
        self.planned = planned
        self._seen = np.empty((0, 2))  # tokens and loss of all rows, to see what changes among them
        self._reset()

    def _reset(self) -> None:
        self._x: deque[float] = deque(maxlen=self.rules.window)
        self._y: deque[float] = deque(maxlen=self.rules.window)
        self._lr: deque[float] = deque(maxlen=self.rules.window)
        self._errors: deque[float] = deque(maxlen=self.rules.window)
        self._out: Excursion | None = None
        self._up = self._down = 0.0
        self._rows = self._easing = 0  # rows of the present course, and of how many of them it may ease off
        self._bad, self._peak = False, 0.0
        self._low: bool | None = None  # whether the last recorded rate was below the plan; unknown before the first

    def update(
        self,
        tokens: Float[np.ndarray, " row"],
        loss: Float[np.ndarray, " row"],
        lr: Float[np.ndarray, " row"] | None = None,
    ) -> list[Event]:
        """What happened in the rows that are new; `tokens` and `loss` are those of the whole run so far."""
        tokens, loss = np.asarray(tokens, float), np.asarray(loss, float)
        rates = np.full(len(tokens), np.nan) if lr is None else np.asarray(lr, float)
        now, found = np.stack([tokens, loss], axis=1), []
        known = len(self._seen)
        if not np.array_equal(now[:known], self._seen, equal_nan=True):
            found = self._restarted(now)
            self._reset()
            known = int(np.searchsorted(tokens, found[0].tokens)) if found else known
            for row in range(max(0, known - self.rules.window), min(known, len(now))):
                self._row(tokens[row], loss[row], rates[row])
        self._seen = now
        for row in range(max(known, len(now) - self.rules.most), len(now)):
            found += self._row(tokens[row], loss[row], rates[row])
        return found

    def _restarted(self, now: Float[np.ndarray, "row 2"]) -> list[Event]:
        """A restart, where the run ends earlier than it did or has another loss at the same tokens."""
        before = self._seen[:-1]  # the last row may have been read before it was whole
        at = np.searchsorted(now[:, 0], before[:, 0]).clip(0, max(len(now) - 1, 0))
        same = now[at, 0] == before[:, 0] if len(now) else np.zeros(len(before), bool)
        other = same & (now[at, 1] != before[:, 1]) & np.isfinite(before[:, 1]) if len(now) else same
        back = not len(now) or now[-1, 0] < self._seen[-1, 0]
        if not other.any() and not back:
            return []
        since = float(before[other, 0].min()) if other.any() else float(now[-1, 0]) if len(now) else 0.0
        return [Event("restart", since, f"restart: the run was started again at about {since:,.0f} tokens")]

    # ------------------------------------------------------------------------------------------------- row by row

    def _row(self, tokens: float, loss: float, rate: float) -> list[Event]:
        """Judge one row, and learn from it."""
        rules = self.rules
        if not np.isfinite(loss):
            first, self._bad = not self._bad, True
            sentence = f"non_finite: {self.name} is {loss} at {tokens:,.0f} tokens"
            return [Event("non_finite", tokens, sentence)] if first else []
        self._bad = False
        if tokens <= 0:
            return []
        x, found = float(np.log(tokens)), self._rate(tokens, rate)
        if len(self._x) < 4:
            self._learn(x, loss, rate)
            return found
        line = self._out.line if self._out is not None else self._line(x)
        expected, error = line.at(x)
        error = float(np.sqrt(1 + error))
        ahead = x - (self._out.bend_from if self._out is not None else self._x[-1])
        bend = rules.bend * abs(line.slope) * ahead * ahead
        # where a rate falls, so does the loss, and no further at its end: that is no plateau
        if self._fallen(rate) or self._rows < self._easing:
            expected = max(expected, line.at(x - ahead)[0])
        gap = loss - expected
        gap = max(gap - bend, 0.0) if gap > 0 else gap
        judged = len(self._errors) >= rules.fewest and self._rows >= rules.new_rows
        scale = self._scale() if judged else np.inf
        r = gap / (scale * error)
        if len(self._x) >= 6:
            self._errors.append(gap / error)
        if not judged:
            self._learn(x, loss, rate)
            return found
        clipped = float(np.clip(r, -rules.clip, rules.clip))
        self._up = max(0.0, self._up + clipped - rules.slack)
        self._down = max(0.0, self._down - clipped - rules.slack)
        if self._up == 0 and self._down == 0:
            self._close()
            self._learn(x, loss, rate)
            return found
        if self._out is None:
            self._out = Excursion(line, self._x[-1])
        out = self._out
        for values, value in ((out.x, x), (out.y, loss), (out.gap, gap), (out.r, r)):
            values.append(value)
        self._lr.append(rate)
        if r > rules.spike and gap > 2 * rules.smallest and not any(value > rules.spike for value in out.r[:-1]):
            sentence = f"{self.name} is {gap:.3f} nats above what was expected at {tokens:,.0f} tokens"
            found.append(Event("spike", tokens, f"spike: {sentence}"))
        if max(self._up, self._down) > rules.alarm:
            found += self._alarm(scale)
        elif len(out.x) > rules.longest:
            self._close()
        return found

    def _fallen(self, rate: float) -> bool:
        """Whether the rate is lower than it was among the rows of the line."""
        known = np.array(self._lr)
        known = known[np.isfinite(known)]
        return bool(len(known) and rate < (1 - self.rules.fallen) * known.max())

    def _line(self, x: float) -> Line:
        xs, ys = np.array(self._x), np.array(self._y)
        first = min(int(np.searchsorted(xs, x - self.rules.span)), len(xs) - 4)
        return fitted_line(xs[max(first, 0) :], ys[max(first, 0) :])

    def _scale(self) -> float:
        """Robust scatter of the errors, more of it while they are few; no less than the losses are rounded to."""
        errors = np.abs(np.array(self._errors))
        return max(1.4826 * float(np.median(errors)) * (1 + 4 / len(errors)), 1e-4 * abs(self._y[-1]))

    def _learn(self, x: float, y: float, rate: float) -> None:
        self._rows += 1
        self._x.append(x)
        self._y.append(y)
        self._lr.append(rate)

    def _close(self) -> None:
        """The excursion was none: its rows but the spikes are of the course."""
        if self._out is not None:
            for x, y, r in zip(self._out.x, self._out.y, self._out.r, strict=True):
                if abs(r) < self.rules.clip:
                    self._x.append(x)
                    self._y.append(y)
        self._out, self._up, self._down = None, 0.0, 0.0

    def _alarm(self, scale: float) -> list[Event]:
        """Name the excursion, and begin a new course with it."""
        out, rules = self._out, self.rules
        assert out is not None
        above = self._up > self._down
        side = np.array(out.r) * (1 if above else -1)
        first = int(np.argmax(side > min(rules.clip, float(side.max())) / 2))  # rows before may be noise
        gap = np.array(out.gap[first:])
        explained, size = self._explained(len(out.x), above), abs(float(np.median(gap[-3:])))
        kind = _shape(np.array(out.y[first:]) - out.line.at(out.bend_from)[0], gap, scale, above)
        if kind == "rate_drop" and np.isfinite(self._lr[-1]):
            kind = "data_switch"  # the rate is recorded, and has not fallen
        begin = float(np.exp(out.x[first]))
        self._x.clear()
        self._y.clear()
        self._x.extend(out.x[first:])
        self._y.extend(out.y[first:])
        self._rows, self._easing = len(gap), 0 if above else 4 * rules.new_rows  # a fall eases off
        self._out, self._up, self._down = None, 0.0, 0.0
        if explained or size < rules.smallest:
            return []
        self.begins = begin
        word = "above" if above else "below"
        sentence = f"{self.name} lies {size:.3f} nats {word} what was expected since {begin:,.0f} tokens"
        return [Event(kind, begin, f"{kind}: {sentence}")]

    def _explained(self, rows: int, above: bool) -> bool:
        """Whether the rate has changed in the direction that explains an excursion of so many rows."""
        rates = np.array(self._lr)
        before, now = rates[:-rows], rates[-1]
        before = before[np.isfinite(before)]
        if not len(before) or not np.isfinite(now):
            return False
        fallen = self.rules.fallen
        return bool(now > (1 + fallen) * np.median(before) if above else now < (1 - fallen) * before.max())

    def _rate(self, tokens: float, rate: float) -> list[Event]:
        """The event of a recorded rate that drops below the plan, or beside its own line where there is none."""
        known = np.array(self._lr)[-16:]
        known = known[np.isfinite(known)]
        if not np.isfinite(rate) or len(known) < 4:
            return []
        self._peak = max(self._peak, rate)
        if self.planned is not None:
            expected, low = self.planned(tokens), self._low
            self._low = bool(expected - rate > self.rules.jump * expected)
            if low is not False or not self._low:
                return []
        else:
            expected = min(2 * known[-1] - known[-2], known[-1])
            if expected - rate <= max(self.rules.jump * known.max(), 0.02 * self._peak):
                return []
        sentence = f"the learning rate falls from {known[-1]:.3g} to {rate:.3g} at {tokens:,.0f} tokens"
        return [Event("rate_drop", tokens, f"rate_drop: {sentence}")]


def _shape(rise: np.ndarray, gap: np.ndarray, scale: float, above: bool) -> str:
    """What an excursion is.

    Args:
        rise: of its rows over the level before, nats. gap: over what was expected.
    """
    third = max(1, len(gap) // 3)
    first, last = float(np.median(gap[:third])), float(np.median(gap[-third:]))
    error = 2.5 * scale / np.sqrt(third)
    grows = abs(last) - abs(first) > max(error, 0.4 * abs(last))
    if not above:
        return "rate_drop" if grows else "data_switch"
    if float(np.median(rise[third:] if len(rise) > 2 else rise)) <= error:
        return "plateau"
    settles = abs(float(np.median(gap[third : max(2 * third, third + 1)]))) > 0.65 * abs(last)
    return "divergence" if grows and not settles else "data_switch"
