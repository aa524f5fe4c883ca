"""What a bad loss is, one rule for all: a number that is not finite, or, where the run asks for it, a spike.

A step is a spike where its loss lies above those of the steps before it by more than `spike_sigmas` of their spread:

    loss > median + spike_sigmas * spread,   spread = 1.4826 * median of |loss - median|,

both over the last `RECENT` steps; 1.4826 makes the spread of normal noise its standard deviation. Only losses that are
means of the same kind are compared: the steps begin anew where batch size, mixture or position weights change, and
until there are `RECENT` of them, or where they are all alike, nothing is a spike. A loss that falls is none.

The rule looks back only, at numbers that metrics.jsonl keeps exactly: a run that was interrupted decides as one that
was not, whatever the steps of a call, and all processes of a run decide alike. Then the run stops, or goes back to its
last evaluation and on without the batches since; the record names the batch either way.
"""

from __future__ import annotations

import json
import warnings
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from tsl_jax.training import hosts, noise_scale, run_dir

if TYPE_CHECKING:
    from tsl_jax.training.setup import TrainingRun
    from tsl_jax.training.step import TrainState
    from tsl_jax.training.timeline import RunTimeline

RECENT = 64  # steps: of so many the spread is known to 15 %, and a few wild ones among them do not move it
NORMAL = 1.4826  # standard deviations of normal noise in its median absolute deviation
MOST_ROLLBACKS = 8
ADVICE = "Lower peak_lr, or raise warmup or clip"


class BadLossError(ValueError):
    """A loss or gradient that is bad: the sentence for the user, what was found, and the step it was in."""

    def __init__(self, message: str, found: str, step: int):
        super().__init__(message)
        self.found, self.step = found, step


@dataclass
class LossRule:
    """Tells good losses from bad ones; remembers the good ones that the next is compared with.

    Attributes:
        spike_sigmas: `TrainConfig.spike_sigmas`; 0: nothing is a spike.
    """

    spike_sigmas: float
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))

    def begin(self, losses: Iterable[float] = ()) -> None:
        """Compare with these from here on, which are good, in the order of their steps."""
        self._recent.clear()
        self._recent.extend(losses)

    def problem(self, loss: float, grad_norm: float) -> str:
        """What is bad about the loss of the next step, in words; "" where it is good, and it is remembered."""
        if not (isfinite(loss) and isfinite(grad_norm)):
            return "is not finite"
        if self.spike_sigmas and len(self._recent) == self._recent.maxlen:
            losses = np.array(self._recent)
            median = float(np.median(losses))
            spread = NORMAL * float(np.median(np.abs(losses - median)))
            if spread and loss > median + self.spike_sigmas * spread:
                above = f"{(loss - median) / spread:.1f} standard deviations ({spread:.3g}) above {median:.4g}"
                return f"is a spike, {above}, the median of the {len(losses)} steps before"
        self._recent.append(loss)
        return ""


def judge_after(run: TrainingRun, step: int) -> None:
    """Judge the losses of the steps after `step` by those before it, as metrics.jsonl has them."""
    since = run.timeline.comparable_since(step)

    def recent() -> list[float]:
        lines = map(json.loads, run_dir.metrics_until(run.path, step))
        return [line["loss"] for line in lines if line["step"] > since][-RECENT:]

    run.losses.begin(hosts.from_writer(recent) if run.losses.spike_sigmas else ())


def error_at(run: TrainingRun, line: Mapping[str, Any], problem: str) -> BadLossError:
    """The error for a step, by its line and what is bad about its loss."""
    kept, step = run.checkpoints.steps(), line["step"]
    newest = f"the checkpoint of step {kept[-1]} in {run.checkpoints.folder} is good" if kept else "no checkpoint yet"
    first = run.timeline.first_sequence(step - 1)
    batch = f"sequences {first} to {first + run.timeline.segment_at(step - 1).batch_size - 1} of the data"
    found = f"loss {line['loss']}, gradient norm {line['grad_norm']} at step {step} ({line['tokens']} tokens) {problem}"
    return BadLossError(f"training: {found}; {batch}, learning rate {line['lr']:.3g}; {newest}. {ADVICE}", found, step)


def _facts(timeline: RunTimeline, error: BadLossError) -> dict[str, Any]:
    """What the record keeps of a bad loss; sequences as [first, first after them] in the order of the data."""
    done = max(error.step - 1, 0)
    first = timeline.first_sequence(done)
    failed = [first, first + timeline.segment_at(done).batch_size]
    return {"failed_step": error.step, "failed_sequences": failed, "reason": str(error)}


def _record(run: TrainingRun, facts: dict[str, Any]) -> None:
    """Add to the record as it is on disk."""
    run_dir.write_record(run.path, {**run_dir.read_record(run.path), **facts})


def rolled_back(run: TrainingRun, like: TrainState, error: BadLossError) -> tuple[TrainingRun, TrainState]:
    """After a bad loss: the run that skips the batches since the last evaluation, and the state of that.

    A checkpoint that an interruption has left since then is dropped: without the interruption there would be none. A
    kill before the record is written makes the same steps again, up to the same rollback; after it, what the rollback
    makes void is dropped on resuming.

    Raises:
        ValueError: the error itself where the run is to stop, another where there is nothing to go back to.
    """
    facts = _facts(run.timeline, error)
    if not run.roll_back:
        _record(run, {run_dir.STOPPED: facts})
        raise error
    rollbacks = run.record.get(run_dir.ROLLBACKS, [])
    state = run.checkpoints.restore(like, planned=True) if len(rollbacks) < MOST_ROLLBACKS else None
    leaves = [] if state is None else jax.tree.leaves(state.params)
    if state is None or not all(np.isfinite(hosts.whole(leaf)).all() for leaf in leaves):
        _record(run, {run_dir.STOPPED: facts})
        raise ValueError(f"{error} There were {len(rollbacks)} rollbacks before, and there is no more") from None
    good, timeline = int(state.step), run.timeline
    # after a NaN of an evaluation at a checkpoint itself, what led to it is not known: one batch is skipped
    after = max(facts["failed_sequences"][1], timeline.first_sequence(good) + timeline.segment_at(good).batch_size)
    sequences = [timeline.first_sequence(good), after]
    rollbacks = [*rollbacks, {"after_step": good, "skipped_sequences": sequences, **facts}]
    record = {**run.record, run_dir.ROLLBACKS: rollbacks}
    run.checkpoints.drop_after(good)
    _record(run, {**record, "step": good})
    warnings.warn(
        f"training: {error.found}; back at the checkpoint of step {good}, the sequences {sequences[0]} to "
        f"{sequences[1] - 1} of the data are skipped (record.json, {run_dir.ROLLBACKS})",
        stacklevel=4,
    )
    run = replace(run, timeline=timeline.skipping(good, sequences[1] - sequences[0]), record=record)
    run_dir.forget_after(run.path, run.timeline, good)
    if run.noise:
        run = replace(run, noise=noise_scale.resumed(run.path, good))
    run.data.follow(run.timeline)
    if run.weighting:
        run.weighting.resume(good)
    judge_after(run, good)
    return run, state
