"""What a forecast takes for the learning rate beyond its past, and the sentence that says so.

A plan that is known is taken. Without one the schedule is recognised from the rates that were recorded, where these are
those of a cosine, a line, a WSD decay or an inverse square root, within what rates are rounded to:

    cosine          r P + (1 - r) P (1 + cos(pi (t - s)/(T - s)))/2
    linear          P (1 - (1 - r)(t - s)/(T - s))
    1 - sqrt        P (1 - (1 - r) sqrt((t - s)/(T - s)))
    inverse sqrt    P sqrt(s/t)

with peak P, start of the decay s, end T and final ratio r. An early part does not tell T and r apart: the pairs that
fit it are kept, and a forecast is the mixture of up to MOST plans, so that its interval holds this uncertainty.
A rate that falls in no known way is held in one half of the mixture, and goes down a line to zero in the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import xarray as xr

from tsl_jax.forecasting.result import ForecastFlag, Reason
from tsl_jax.laws import Schedule

FALLEN = 0.02  # share of the highest rate by which the last is below it: less is no decay yet
ROWS = 4  # of the decay, from which a schedule may be recognised
ROUNDED = 1e-3  # root mean square over the peak of what a schedule may miss: rates have three or four digits
RATIOS = (0.0, 0.1, 0.01, 0.05, 0.2)  # final ones that are tried, the usual first
MOST = 3  # plans of a mixture
LONGEST = 20.0  # times the tokens seen: a decay whose end would be beyond is not recognised
APART = 0.02  # of T: plans nearer than this are one
MOST_ROWS, STARTS, ENDS = 256, 5, 60  # of the search: rows, and its grid of starts and ends
STEP, MOST_NEW = 1.05, 2  # see `_recognised_early`
HOPELESS = 0.03  # root mean square over the peak on the grid, from where the solver comes to no ROUNDED


@dataclass(frozen=True)
class AssumedRate:
    """The learning rate of a forecast.

    Attributes:
        plans: one, or those that the past does not tell apart; None among them holds the last rate.
        sentence: what is assumed. reasons: what speaks against a forecast that assumes it.
    """

    plans: tuple[Schedule | None, ...]
    sentence: str
    reasons: tuple[Reason, ...] = ()

    @property
    def end(self) -> int | None:
        """Tokens at the end of the likeliest plan; None where none is known or recognised."""
        plan = self.plans[0]
        return None if plan is None or plan.kind == "table" else plan.total_tokens


def assumed_rate(past: xr.Dataset, plan: Schedule | None, furthest: float) -> AssumedRate:
    """What is taken for the learning rate from the last checkpoint of `past` to `furthest` tokens.

    Args:
        plan: as known at the last checkpoint, or None.
    """
    if plan is not None:
        return _of_plan(plan, furthest)
    if "lr" not in past.coords or not past.sizes["tokens"]:
        return AssumedRate((None,), "no learning rate is known: a constant one is assumed")
    tokens, lr = past.tokens.values.astype(float), past.lr.values.astype(float)
    known = np.isfinite(lr) & (tokens > 0)
    tokens, lr = tokens[known], lr[known]
    if not len(lr) or lr.max() <= 0:
        return AssumedRate((None,), "no learning rate is known: a constant one is assumed")
    held = f"the last rate, {lr[-1]:.3g}, is held"
    if lr[-1] >= (1 - FALLEN) * lr.max():
        return AssumedRate((None,), f"no plan of the learning rate is known: {held}; a decay to come is left out")
    recognised = _recognised_early(tokens, lr)
    if recognised:
        name, plans = recognised
        ends = sorted(plan.total_tokens for plan in plans)
        to = f" (or {ends[0]:.3g} to {ends[-1]:.3g})" if ends[0] < ends[-1] else ""
        where = "" if plans[0].kind == "table" else f" that ends at {plans[0].total_tokens:.4g} tokens{to}"
        sentence = f"no plan of the learning rate is known: the recorded rates are those of {name}{where}"
        ended = plans[0].total_tokens
        beyond = _of_plan(plans[0], furthest).reasons if furthest > ended * 1.05 else ()
        return AssumedRate(plans, sentence, beyond)
    end = max(furthest, 1.001 * tokens[-1])
    knots = ((0.0, float(lr[0])), *((float(at), float(rate)) for at, rate in zip(tokens, lr, strict=True)), (end, 0.0))
    line = Schedule("table", float(lr.max()), 0, int(end), table=knots)
    detail = (
        f"the recorded rate falls, from {lr.max():.3g} to {lr[-1]:.3g}, in no way that is recognised: the interval is "
        f"for a rate held or falling to zero at {end:.4g} tokens; give the plan (--schedule)"
    )
    return AssumedRate((None, line), detail, ((ForecastFlag.RATE_UNKNOWN, detail),))


def _of_plan(plan: Schedule, furthest: float) -> AssumedRate:
    """A plan that is known, and a sentence about tokens beyond its end."""
    last = float(plan.rate(np.asarray(float(plan.total_tokens)), np))
    sentence = f"the plan of the learning rate: {plan.kind}, {last:.3g} at its end, {plan.total_tokens:.4g} tokens"
    if furthest <= plan.total_tokens * (1 + 1e-6):
        return AssumedRate((plan,), sentence)
    still = ", at which nothing is learned" if last <= 1e-3 * plan.peak else ""
    detail = (
        f"{furthest:.4g} tokens lie beyond the end of the plan of the learning rate, {plan.total_tokens:.4g}: its last "
        f"rate, {last:.3g}{still}, is held there"
    )
    return AssumedRate((plan,), detail, ((ForecastFlag.BEYOND_PLAN, detail),))


def _recognised_early(tokens: np.ndarray, lr: np.ndarray) -> tuple[str, tuple[Schedule, ...]] | None:
    """`_recognised` from all rows, or from all but the newest few where those go on as the plans of the others say.

    Numbers of rows from which plans are made grow by STEP, so that a watched job is searched anew now and then only.
    """
    enough = int(STEP ** np.floor(np.log(len(lr)) / np.log(STEP) + 1e-9))
    if enough >= MOST_NEW / (STEP - 1):  # below, every row counts
        found = _recognised(tokens[:enough].tobytes(), lr[:enough].tobytes())
        near = ROUNDED * lr.max()
        if found and all(
            np.abs(np.asarray(plan.rate(tokens[enough:], np)) - lr[enough:]).max(initial=0) < 3 * near
            for plan in found[1]
        ):
            return found
    return _recognised(tokens.tobytes(), lr.tobytes())


@lru_cache(maxsize=64)
def _recognised(tokens: bytes, lr: bytes) -> tuple[str, tuple[Schedule, ...]] | None:
    """The name of the schedule of recorded rates, and the plans that fit them, the best first; None without any."""
    t, rate = np.frombuffer(tokens), np.frombuffer(lr)
    peak = rate.max()
    top = int(np.flatnonzero(rate >= (1 - 2e-3) * peak)[-1])  # the last row at the peak
    first = int(np.argmax(rate >= (1 - 2e-3) * peak))  # the warm-up ends at or before
    later, rows = t[first:], rate[first:] / peak
    if len(t) - 1 - top < ROWS:
        return None
    # a form that is flat at first begins anywhere between two rows; where the log begins in mid-run, after a short
    # warm-up if that fits, for rows before its end would not be learned from
    before = 0.0 if first == 0 else t[first - 1]
    late = first == 0 and t[0] > 0.1 * t[-1]
    flat_first = ((0.0, 0.2 * t[0]), (0.0, t[0])) if late else ((before, t[top + 1]),)
    candidates: list[tuple[float, str, float, Schedule]] = []
    for name, form, article in _FORMS:
        flat = form in (_cosine, _inverse_root)
        for ratio in RATIOS if form is not _inverse_root else (0.0,):
            for starts in flat_first if flat else ((t[top], t[top + 1]),):
                fitted = _fitted(form, ratio, later, rows, starts)
                if fitted is not None and fitted[0] <= ROUNDED and fitted[3] <= LONGEST * t[-1]:
                    missed, highest, start, end = fitted
                    candidates.append((missed, article, ratio, _schedule(name, highest * peak, start, end, ratio)))
                    break
    if not candidates:
        return None
    best = min(candidates, key=lambda candidate: candidate[0])
    near = max(2 * best[0], ROUNDED / 3)
    plausible = [candidate for candidate in candidates if candidate[0] <= near]  # in the order of what is usual
    kept: list[tuple[float, str, float, Schedule]] = []
    for candidate in plausible:
        ends = [other[3].total_tokens for other in kept if other[1] == candidate[1]]
        if all(abs(candidate[3].total_tokens / end - 1) > APART for end in ends) and len(kept) < MOST:
            kept.append(candidate)
    return kept[0][1], tuple(candidate[3] for candidate in kept)


Form = Callable[[np.ndarray, Any, Any, float], np.ndarray]  # of tokens, start, end and final ratio


def _cosine(t: np.ndarray, start: Any, end: Any, ratio: float) -> np.ndarray:
    return ratio + (1 - ratio) * (1 + np.cos(np.pi * np.clip((t - start) / (end - start), 0, 1))) / 2


def _line(t: np.ndarray, start: Any, end: Any, ratio: float) -> np.ndarray:
    return 1 - (1 - ratio) * np.clip((t - start) / (end - start), 0, 1)


def _root(t: np.ndarray, start: Any, end: Any, ratio: float) -> np.ndarray:
    return 1 - (1 - ratio) * np.sqrt(np.clip((t - start) / (end - start), 0, 1))


def _inverse_root(t: np.ndarray, start: Any, end: Any, ratio: float) -> np.ndarray:
    return np.sqrt(start / np.maximum(t, start))


_FORMS: tuple[tuple[str, Form, str], ...] = (
    ("cosine", _cosine, "a cosine"),
    ("linear", _line, "a linear decay"),
    ("sqrt", _root, "a decay by 1 - sqrt"),
    ("inverse_sqrt", _inverse_root, "an inverse square root"),
)


def _fitted(
    form: Form, ratio: float, t: np.ndarray, rate: np.ndarray, starts: tuple[float, float]
) -> tuple[float, float, float, float] | None:
    """Root mean square missed, peak (over the highest recorded), start and end of the form that is nearest to the rows.

    The least-squares solver begins at the best of a grid of starts and ends, where the peak is solved for, and not at
    all where nothing on the grid comes near the rows: `tsl watch` asks again at every new row.

    Args:
        starts: tokens between which the decay begins.
    """
    from scipy.optimize import least_squares  # late: a second to import

    now = t[-1]
    low, high = starts[0] / now, max(starts[1], starts[0] + 1e-9 * now) / now
    some = np.unique(np.linspace(0, len(t) - 1, min(len(t), MOST_ROWS)).round().astype(int))
    x, y = t[some] / now, rate[some]
    ends = np.geomspace(0.5, LONGEST, ENDS) if form is not _inverse_root else np.array([1.1])
    start, end = (grid.ravel()[:, None] for grid in np.meshgrid(np.linspace(low, high, STARTS), ends))
    start, end = start[(end > start + 1e-3).ravel()], end[(end > start + 1e-3).ravel()]
    values = form(x, start, end, ratio)  # (grid, row)
    peak = np.clip((values @ y) / np.maximum((values * values).sum(axis=1), 1e-300), 0.999, 3.0 if low == 0 else 1.01)
    size = np.sqrt(np.mean((peak[:, None] * values - y) ** 2, axis=1))
    k = int(np.argmin(size))
    if size[k] > HOPELESS:
        return None

    def missed(p: np.ndarray) -> np.ndarray:
        return p[0] * form(x, p[1], p[1] + p[2], ratio) - y

    begin = peak[k], start[k, 0], end[k, 0] - start[k, 0]
    bounds = (0.999, low, 1e-3), (3.0 if low == 0 else 1.01, high, LONGEST)
    made = least_squares(missed, np.clip(begin, *bounds), bounds=bounds, x_scale=(0.01, 0.1, 0.5))
    best = float(np.sqrt(np.mean(made.fun**2))), float(made.x[0]), float(made.x[1] * now)
    last = float((made.x[1] + made.x[2]) * now)
    # an end within the rows seen is none: the rate goes on below it
    return (*best, last) if last > now * (1 + 1e-9) else None


def _schedule(name: str, peak: float, start: float, end: float, ratio: float) -> Schedule:
    start, end = round(start), round(end)
    if name == "cosine":
        return Schedule("cosine", peak, start, end, final_ratio=ratio)
    if name == "inverse_sqrt":
        knots = np.geomspace(max(start, 1), end, 200)
        table = ((0.0, 0.0), *((float(t), float(peak * np.sqrt(max(start, 1) / t))) for t in knots))
        return Schedule("table", peak, 0, end, table=table)
    decay = "sqrt" if name == "sqrt" else "linear"
    return Schedule("wsd", peak, 0, end, final_ratio=ratio, decay_start_tokens=start, decay_form=decay)
