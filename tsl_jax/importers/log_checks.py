"""Doubts about a curve that its values raise: smoothed, coarsely rounded, sampled, carried along, no nats per token.

Each check states when it is silent: on healthy logs all are. `tests/test_importers_real_logs.py` runs them on public
curves.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from tsl_jax.importers.log_rows import LogRows, rows_where

LEAST = 200  # losses from which smoothing can be distinguished from chance
ALIKE = 0.78  # share of neighbouring residuals of one sign: .5 of independent noise, .81 of an average of weight .9
JUMPS = (
    1.15,
    1.8,
)  # change over two losses by that over one: 1 of independent noise, 1.4 of a walk, 2 of a smooth curve
MOST = 200_000  # losses at the end that are looked at
WINDOW = 61  # losses about which a residual is taken
COARSE = 0.01  # nats: rounding from which on the end of a run cannot be seen
HIGHEST = 13.0  # nats: the log of a vocabulary of 440,000; a model that knows nothing has less
SAMPLED = (500, 1000, 1500, 10_000)  # points that trackers keep of a longer history
CAPPED = np.exp(20.0)  # perplexity at which Megatron stops counting


def check_curve(log: LogRows, split: str, clock: np.ndarray, loss: np.ndarray, is_eval: bool) -> None:
    """Add the doubts that the losses of one split raise."""
    known = np.isfinite(loss)
    clock, loss = rows_where(clock, known), rows_where(loss, known)
    if len(loss) < 2:
        return
    codes = {finding.code for finding in log.findings}
    if len(loss) >= 8 and (digits := coarse(loss)) is not None:
        found = f"{split} is rounded to {digits:g}: too coarse to forecast from, where the last steps change less"
        log.note("coarse", found)
    if not is_eval and "smoothed" not in codes and looks_smoothed(loss):
        found = f"{split} looks smoothed: neighbouring losses err alike, as a moving average's do"
        log.note("smoothed", f"{found}; its noise is correlated, so an interval from it would be too narrow")
    late = loss[-max(3, len(loss) // 4) :]
    if len(loss) >= 3 and late.max() > HIGHEST and np.median(late) > HIGHEST:
        found = f"{split} stays above {HIGHEST:g}, more than any vocabulary's loss: a perplexity, or a sum over tokens?"
        log.note("too_high", f"{found} --loss-unit perplexity takes the logarithm")
    if "sampled" not in codes and looks_sampled(clock):
        found = f"{split} has {len(clock):,} points at irregular steps, as a sampled export has"
        log.note("sampled", f"{found}; export the whole history")


def coarse(loss: Float[np.ndarray, " checkpoint"]) -> float | None:
    """The step that all losses of the later half are multiples of, where it is COARSE or more.

    Silent on losses of three decimals, and on rounded losses that change by more than their rounding throughout.
    """
    late = loss[len(loss) // 2 :][-MOST:]
    for digits in (1.0, 0.1, COARSE):
        scaled = late / digits
        if np.all(np.abs(scaled - np.round(scaled)) < 1e-6 * np.maximum(np.abs(scaled), 1)):
            return digits
    return None


def looks_smoothed(loss: Float[np.ndarray, " checkpoint"]) -> bool:
    """Whether the residuals about a running mean keep their sign far more often than independent noise does.

    Silent below LEAST losses, on losses whose noise is drowned in their rounding, and on curves without noise.
    """
    if len(loss) < LEAST:
        return False
    late = loss[len(loss) // 5 :][-MOST:]
    kernel = np.ones(WINDOW) / WINDOW
    residual = late[WINDOW // 2 : -(WINDOW // 2)] - np.convolve(late, kernel, "valid")
    spread = np.median(np.abs(residual))
    rounding = np.min(np.abs(np.diff(np.unique(np.round(late, 9)))), initial=np.inf)
    if not np.isfinite(rounding) or spread < 4 * rounding or spread < 1e-4 * np.median(late):
        return False
    # Spikes and slow waves make many neighbours alike too: what is asked is how it is between them.
    calm = np.abs(residual) < 3 * spread
    pairs = calm[1:] & calm[:-1]
    alike = (residual[1:] > 0) == (residual[:-1] > 0)
    if pairs.sum() < LEAST // 2 or alike[pairs].mean() < ALIKE:
        return False
    # A curve that hardly scatters, as losses of one held-out text may be, is smooth, not smoothed.
    change, jump = np.abs(np.diff(late)), np.abs(late[2:] - late[:-2])
    return bool(JUMPS[0] < np.median(jump) / max(np.median(change), 1e-12) < JUMPS[1])


def looks_sampled(clock: np.ndarray) -> bool:
    """Whether a curve has as many points as trackers keep, at steps that keep no rhythm."""
    if not any(abs(len(clock) - count) <= 1 for count in SAMPLED):
        return False
    gaps = np.diff(clock)
    late = gaps[len(gaps) // 4 :]
    return len(np.unique(late)) > 12 and float(np.std(late)) > 0.3 * float(np.mean(late))


def carried_along(values: np.ndarray) -> np.ndarray | None:
    """Rows of an evaluation that repeat the one before it, where a log carries its last value along, else None.

    Silent where fewer than half of the rows repeat, on curves of fewer than three values, and on rounded ones that
    repeat by chance: a value that is carried along stands in blocks.
    """
    at = np.flatnonzero(np.isfinite(values))
    if len(at) < 6:
        return None
    same = np.concatenate([[False], np.diff(values[at]) == 0])
    blocks = len(at) - int(same.sum())
    if same.mean() < 0.5 or blocks < 2:
        return None
    rounded = np.abs(values[at] * 1e4 - np.round(values[at] * 1e4)).max() < 1e-6
    if rounded and same.mean() < 0.6:
        return None
    return at[same]


def drop_carried(log: LogRows, splits: list[str], loss: np.ndarray, line: np.ndarray) -> None:
    """Evaluations that a log carries along until the next one stand once, where they were made.

    They stand on rows with another loss that changes: the split that repeats least is never taken for carried along.
    """
    if len(splits) == 1:
        return
    known = np.isfinite(loss)
    measured = [rows_where(loss[:, k], known[:, k]) for k in range(len(splits))]
    repeats = [float(np.mean(values[1:] == values[:-1])) if len(values) > 1 else 0.0 for values in measured]
    main = int(np.argmin(repeats))
    for k, split in enumerate(splits):
        if k == main or repeats[k] < 0.5:
            continue
        rows = np.flatnonzero(known[:, k] & known[:, main])
        carried = carried_along(loss[rows, k])
        if carried is not None and len(carried):
            loss[rows[carried], k] = np.nan
            found = f"{split}: {len(carried)} rows carry an earlier value along: left out"
            log.note("carried_along", found, int(line[rows[carried[0]]]))
