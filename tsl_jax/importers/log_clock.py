"""The clock of a run: tokens seen, from a column, from samples or from steps; steps where nothing says how many tokens.

tokens = column x unit, or samples x sequence length, or the sum over steps of the tokens of each: of a ramp
[(s_1, b_1), (s_2, b_2), ...] a step k takes b_j tokens for s_j <= k < s_(j+1), so that tokens(n) sums these over k < n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from tsl_jax.importers.log_roles import LogRoles
from tsl_jax.importers.log_rows import LogRows, Rows, every, rises, rows_where

LARGEST = 9e15  # float64 counts exactly up to here
BATCH = (256, 4e8)  # tokens a step that a trainer may take: decides what a column of tokens counts in


@dataclass(frozen=True)
class ClockOptions:
    """What the user says of steps and tokens; see `read_log`."""

    tokens_per_step: int | Sequence[tuple[int, int]] | None = None
    sequence_length: int | None = None
    tokens_unit: float | None = None
    logging_steps: int | None = None


@dataclass(frozen=True)
class ClockColumn:
    """The clock of each row, its unit in words, and the step of each row where it is known."""

    clock: Float[np.ndarray, " row"]
    unit: str
    step: Float[np.ndarray, " row"] | None


def clock_of(log: LogRows, roles: LogRoles, given: ClockOptions, rows: Rows, measured: np.ndarray) -> ClockColumn:
    """The clock of some rows; what was inferred is added to the findings.

    Args:
        measured: which of the rows have a loss.

    Raises:
        ValueError: for tokens beside tokens_per_step, or a clock that no row has.
    """
    step = None if roles.step is None else finite(log.columns[roles.step][rows])
    tokens = None if roles.tokens is None else finite(log.columns[roles.tokens][rows])
    if step is None and tokens is None:
        step = _counted(log, measured)
    if step is not None and given.logging_steps is not None and "steps_a_row" in log.known:
        step = step / log.known["steps_a_row"] * given.logging_steps
    if tokens is not None and given.tokens_per_step is not None:
        found = (
            f"tokens_per_step beside a column of tokens, {roles.tokens}; leave tokens_per_step out, or pass the column"
        )
        raise ValueError(f"{found} over with tokens=None (--tokens None)")
    if step is not None:
        step = _whole_steps(log, _over_epochs(log, step, rows, measured), measured)
    if tokens is not None:
        unit = _unit(log, roles, given, tokens, step, measured)
        tokens = tokens if unit == 1 else tokens * unit
        tokens = _complete(log, tokens, step, measured)
        tokens = _without_resets(log, tokens, step, measured, log.line[rows])
        return ClockColumn(_sized(tokens), "tokens", step)
    assert step is not None
    if given.tokens_per_step is not None:
        return ClockColumn(_sized(tokens_at(step, given.tokens_per_step)), "tokens", step)
    length = given.sequence_length or log.known.get("sequence_length")
    if roles.samples is not None and length:
        samples = _complete(log, finite(log.columns[roles.samples][rows]), step, measured)
        log.note("tokens_from_samples", f"tokens are {roles.samples} x {length:g}, the sequence length", 0, False)
        return ClockColumn(_sized(samples * length), "tokens", step)
    if "tokens_per_step" in log.known:
        each = log.known["tokens_per_step"]
        log.note("tokens_per_step", f"the log says that a step takes {each:,.0f} tokens", 0, warning=False)
        return ClockColumn(_sized(step * each), "tokens", step)
    hint = "--tokens-per-step N, or S:N,S:N of a ramp, makes tokens of them"
    if roles.samples is not None:
        samples = _complete(log, finite(log.columns[roles.samples][rows]), step, measured)
        if _is_ramp(samples[measured], step[measured]):
            log.note(
                "clock_is_samples", "samples are the clock, since the batch changes; --sequence-length N gives tokens"
            )
            return ClockColumn(_sized(samples), "samples", step)
        hint = "--sequence-length N or --tokens-per-step N makes tokens of them"
    log.note("clock_is_steps", f"tokens are not in the log: steps are the clock; {hint}", 0, warning=False)
    return ClockColumn(_sized(step), "steps", step)


def tokens_at(step: Float[np.ndarray, " row"], each: int | Sequence[tuple[int, int]]) -> Float[np.ndarray, " row"]:
    """Tokens seen after so many steps."""
    if isinstance(each, int | float):
        return step * each
    firsts = np.array([first for first, _ in each], float)
    sizes = np.array([size for _, size in each], float)
    firsts[0] = 0.0
    seen = np.concatenate([[0.0], np.cumsum(np.diff(firsts) * sizes[:-1])])
    part = np.clip(np.searchsorted(firsts, step, side="right") - 1, 0, len(firsts) - 1)
    return seen[part] + (step - firsts[part]) * sizes[part]


def finite(values: Float[np.ndarray, " row"]) -> Float[np.ndarray, " row"]:
    """The values, NaN where they are infinite."""
    values = np.asarray(values, float)
    return values if every(np.isfinite, values) else np.where(np.isfinite(values), values, np.nan)


def _sized(clock: Float[np.ndarray, " row"]) -> Float[np.ndarray, " row"]:
    """The clock without what no run has counted: negative, or beyond what is counted exactly."""
    with np.errstate(invalid="ignore"):
        sound = (clock >= 0) & (clock <= LARGEST)
    return clock if sound.all() else np.where(sound, clock, np.nan)


def _counted(log: LogRows, measured: np.ndarray) -> Float[np.ndarray, " row"]:
    """Rows counted, where there is neither a step nor tokens."""
    log.note("step_inferred", "there is no column of steps or tokens: rows were counted; --step names one")
    log.known["steps_a_row"] = 1
    return np.where(measured, np.cumsum(measured), np.nan).astype(float)


def _over_epochs(
    log: LogRows, step: Float[np.ndarray, " row"], rows: Rows, measured: np.ndarray
) -> Float[np.ndarray, " row"]:
    """Steps that begin again with each epoch, counted on: the batch of an epoch is no step of the run."""
    name = next((name for name in log.columns if name.lower() in ("epoch", "epochs")), None)
    if name is None:
        return step
    epoch = log.columns[name][rows]
    known = np.flatnonzero(measured & np.isfinite(step) & np.isfinite(epoch))
    falls = np.flatnonzero(np.diff(step[known]) < 0)
    if not len(falls) or not (np.diff(epoch[known])[falls] == 1).all() or (np.diff(epoch[known]) < 0).any():
        return step
    added = np.zeros(len(step))
    for fall in falls:
        added[known[fall + 1] :] += step[known[fall]] + 1 - step[known].min()
    log.note("epochs_joined", f"steps begin again with each epoch: counted on over {len(falls) + 1} epochs", 0, False)
    return step + added


def _whole_steps(log: LogRows, step: Float[np.ndarray, " row"], measured: np.ndarray) -> Float[np.ndarray, " row"]:
    """Steps that are whole numbers: fractions (an epoch, micro-steps) are counted in thousandths."""
    known = rows_where(step, measured & np.isfinite(step))
    if every(lambda part: part == np.round(part), known):
        return step if len(known) == len(step) else np.round(step)
    if (np.abs(known - np.round(known)) < 1e-6 * np.maximum(1, np.abs(known))).all():
        return np.round(step)
    log.note("fractions", "steps are fractions: counted in thousandths of a step")
    return np.round(step * 1000)


def _unit(
    log: LogRows,
    roles: LogRoles,
    given: ClockOptions,
    tokens: Float[np.ndarray, " row"],
    step: Float[np.ndarray, " row"] | None,
    measured: np.ndarray,
) -> float:
    """What the column of tokens counts in: as said, by its name, or as fractions of a token show."""
    if given.tokens_unit is not None:
        return given.tokens_unit
    if roles.tokens_factor != 1:
        found = f"{roles.tokens} counts in {roles.tokens_factor:g}, by its name"
        log.note("tokens_unit", f"{found}: multiplied", 0, warning=True)
        return roles.tokens_factor
    known = measured & np.isfinite(tokens) & (tokens > 0)
    if not known.any():
        return 1.0
    of_tokens = rows_where(tokens, known)
    fractions = float(of_tokens.max()) < 1e6 and bool((np.abs(of_tokens % 1) > 1e-9).mean() > 0.3)
    if not fractions:
        few = step is not None and every(lambda part, of: part > of * 2, rows_where(step, known), of_tokens)
        if few and len(of_tokens) > 1 and _monotone(step, tokens, known):
            found = f"{roles.tokens} is smaller than the step: thousands, millions or billions?"
            log.note("tokens_unit_doubtful", f"{found} --tokens-unit 1e9 multiplies it")
        return 1.0
    unit = 1e9
    if step is not None and (step[known] > 0).any():
        ratio = float(np.nanmedian(tokens[known] / np.where(step[known] > 0, step[known], np.nan)))
        fits = [factor for factor in (1e9, 1e6, 1e3, 1e12) if BATCH[0] <= ratio * factor <= BATCH[1]]
        unit = fits[0] if fits else 1e9
    word = {1e3: "thousands", 1e6: "millions", 1e9: "billions", 1e12: "trillions"}[unit]
    found = f"{roles.tokens} has fractions ({tokens[known].min():g} to {tokens[known].max():g}): taken as {word}"
    log.note("tokens_unit", f"{found}, times {unit:g}; --tokens-unit says otherwise")
    return unit


def _monotone(step: np.ndarray | None, tokens: np.ndarray, known: np.ndarray) -> bool:
    return step is not None and bool((np.diff(step[known]) >= 0).all() and (np.diff(tokens[known]) >= 0).all())


def _complete(
    log: LogRows, count: Float[np.ndarray, " row"], step: Float[np.ndarray, " row"] | None, measured: np.ndarray
) -> Float[np.ndarray, " row"]:
    """Tokens of rows that have a step alone, between those that have both."""
    missing = measured & np.isnan(count)
    if not missing.any() or step is None:
        return count
    both = np.isfinite(count) & np.isfinite(step)
    steps, first = np.unique(step[both], return_index=True)
    if len(steps) < 1:
        return count
    at = count[both][first]
    fill = np.interp(step[missing], steps, at)
    if len(steps) > 1:
        slope = (at[-1] - at[0]) / (steps[-1] - steps[0])
        beyond, before = step[missing] > steps[-1], step[missing] < steps[0]
        fill = np.where(beyond, at[-1] + (step[missing] - steps[-1]) * slope, fill)
        fill = np.where(before, np.maximum(at[0] - (steps[0] - step[missing]) * slope, 0), fill)
    elif steps[0] > 0:
        fill = step[missing] * at[0] / steps[0]
    fill = np.where(np.isfinite(step[missing]), np.round(fill), np.nan)
    guessed = int((~np.isin(step[missing], steps)).sum())
    if guessed:
        found = f"tokens of {guessed} rows are taken from their steps"
        log.note("tokens_interpolated", found, 0, warning=not log.eval_rows)
    complete = count.copy()
    complete[missing] = fill
    return complete


def _without_resets(
    log: LogRows,
    tokens: Float[np.ndarray, " row"],
    step: Float[np.ndarray, " row"] | None,
    measured: np.ndarray,
    line: np.ndarray,
) -> Float[np.ndarray, " row"]:
    """Tokens that begin to count again where the step goes on, and steps that go back where tokens rise."""
    if step is None:
        return tokens
    known = measured & np.isfinite(tokens) & np.isfinite(step)
    if "tokens_are_rounded" not in log.known and rises(rows_where(tokens, known)) and rises(rows_where(step, known)):
        return tokens
    rows = np.flatnonzero(known)
    if len(rows) < 3:
        return tokens
    of_tokens, of_step = np.diff(tokens[rows]), np.diff(step[rows])
    back = np.flatnonzero((of_step < 0) & (of_tokens > 0))
    falls = np.flatnonzero((of_step > 0) & (of_tokens < 0))
    if len(back) and not len(falls):
        at = rows[back[0] + 1]
        found = f"the step goes back {len(back)} times while tokens rise: tokens are the clock"
        log.note("step_back", found, int(line[at]))
    if len(falls) and len(falls) * 10 < len(rows) and (tokens[rows[falls + 1]] < 0.5 * tokens[rows[falls]]).all():
        tokens = tokens.copy()
        rising = (of_step > 0) & (of_tokens > 0)
        slope = float(np.median(of_tokens[rising] / of_step[rising])) if rising.any() else 0.0
        for fall in falls:
            before, here = rows[fall], rows[fall + 1]
            tokens[here:] += tokens[before] + slope * (step[here] - step[before]) - tokens[here]
        found = f"tokens are counted anew {len(falls)} times while the step goes on: added up"
        log.note("tokens_counted_anew", found, int(line[rows[falls[0] + 1]]))
    twice = (of_tokens == 0) & (of_step > 0)
    if twice.mean() > 0.3 or "tokens_are_rounded" in log.known:
        known = step[rows] > 0
        ratio = float(np.median(tokens[rows][known] / step[rows][known])) if known.any() else 0.0
        if ratio > 0:
            found = f"tokens are rounded, as 41M is: steps x {ratio:,.6g} are taken, the median of their ratios"
            log.note("tokens_rounded", found, 0, warning="tokens_are_rounded" not in log.known)
            return np.round(step * ratio)
    return tokens


def _is_ramp(samples: np.ndarray, step: np.ndarray) -> bool:
    known = np.isfinite(samples) & np.isfinite(step) & (step > 0)
    ratio = samples[known] / step[known]
    return len(ratio) > 1 and float(ratio.max()) > 1.02 * float(ratio.min())
