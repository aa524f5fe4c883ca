"""When things happen in a run, resolved once from its configuration.

Whatever needs a step, a count of tokens, a batch size or a learning rate asks the `RunTimeline`, never the
configuration. Tokens are Python integers, exact at any size.

A run goes from stop to stop: at each the host waits for the device, looks at the losses, and may be interrupted. The
stops are the evaluations, the interventions, the updates of adaptive position weights, and every so many steps between
them. From stop to stop the device makes calls of several steps as long as they fit, then calls of one. All of it
follows from the configuration, so that a run that was interrupted, at a stop as always, makes the same calls as one
that was not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from tsl_jax.schedules import Schedule
from tsl_jax.training.config import TrainConfig
from tsl_jax.training.interventions import Segment, run_segments
from tsl_jax.training.optimizer import lr_plan

FLUSH = 16  # steps between looks at their losses: the device works ahead meanwhile
IN_WARMUP = 2  # evaluations within the warm-up
EARLY = 8  # at least, past the warm-up and within the first tenth: the shortest prefix a forecast is made from


@dataclass(frozen=True)
class RunTimeline:
    """Steps and tokens of a run, and what happens at them.

    A step is named by the number of optimizer steps that are done after it: tokens_at(1) are those of one batch.

    Attributes:
        context: tokens in a sequence. segments: steps between interventions, in order.
        steps: optimizer steps of the run.
        warmup: steps of the learning rate's warm-up.
        base_plan: of the learning rate, if nothing intervenes. lr_plan: the same with interventions, as it is kept with
            the surface: where the rate changes, a list of plans, each known from its own beginning.
        schedule: of lr_plan.
        evaluations: steps after which the loss surface is measured, increasing; the last is that of the run.
        weight_updates: steps after which adaptive position weights are updated.
    """

    context: int
    segments: tuple[Segment, ...]
    steps: int
    warmup: int
    base_plan: dict[str, Any]
    lr_plan: dict[str, Any] | list[dict[str, Any]]
    schedule: Schedule
    evaluations: tuple[int, ...]
    weight_updates: tuple[int, ...]

    @property
    def batch_sizes(self) -> list[int]:
        """Sequences in a step, the distinct numbers of the run, increasing."""
        return sorted({segment.batch_size for segment in self.segments})

    @property
    def batch_tokens(self) -> int:
        """Training tokens in one step, as the run begins."""
        return self.segments[0].batch_size * self.context

    @property
    def total_tokens(self) -> int:
        """Training tokens of the run, in whole steps."""
        return self.tokens_at(self.steps)

    def segment_at(self, step: int) -> Segment:
        """The segment of the step that is made after `step` steps."""
        return next(segment for segment in reversed(self.segments) if segment.step <= step)

    def tokens_at(self, step: int) -> int:
        """Tokens seen after `step` steps."""
        segment = self.segment_at(max(step - 1, 0))
        return segment.tokens + (step - segment.step) * segment.batch_size * self.context

    def first_sequence(self, step: int) -> int:
        """Place, in the order of the data, of the first sequence of the step that is made after `step` steps."""
        segment = self.segment_at(step)
        return segment.sequence + (step - segment.step) * segment.batch_size

    def comparable_since(self, step: int) -> int:
        """The last step, `step` at most, after which batch size, mixture or weights, and so what a loss is, changed."""
        changes = [0, *(update for update in self.weight_updates if update <= step)]
        for before, after in pairwise(self.segments):
            if after.step <= step and (after.batch_size, after.mixture) != (before.batch_size, before.mixture):
                changes.append(after.step)
        return max(changes)

    def skipping(self, step: int, sequences: int) -> RunTimeline:
        """The same with so many sequences of the data passed over after `step` steps."""
        first = self.first_sequence(step) + sequences
        begin = replace(self.segment_at(step), step=step, tokens=self.tokens_at(step), sequence=first)
        before = [segment for segment in self.segments if segment.step < step]
        after = [replace(s, sequence=s.sequence + sequences) for s in self.segments if s.step > step]
        return replace(self, segments=(*before, begin, *after))

    def learning_rate(self, step: int) -> float:
        """Learning rate of the last of `step` steps."""
        return float(self.schedule.rate(self.tokens_at(step), np))

    def next_stop(self, step: int, per_call: int) -> int:
        """The stop after `step`, no further than the next evaluation, intervention or update of the weights."""
        begins = tuple(segment.step for segment in self.segments)
        planned = min(stop for stop in (*self.evaluations, *self.weight_updates, *begins) if stop > step)
        return min(planned, step + max(FLUSH, 4 * per_call))

    def calls(self, step: int, per_call: int) -> Iterator[tuple[int, int]]:
        """The calls from `step`, a stop, to the end of the run, as (steps done before, steps done after)."""
        while step < self.steps:
            stop = self.next_stop(step, per_call)
            yield from calls_between(step, stop, per_call)
            step = stop


def calls_between(step: int, stop: int, per_call: int) -> Iterator[tuple[int, int]]:
    """The calls from one stop to the next: of `per_call` steps as long as they fit, then of one."""
    while step < stop:
        n = per_call if step + per_call <= stop else 1
        yield step, step + n
        step += n


def resolve_timeline(config: TrainConfig) -> RunTimeline:
    """The timeline of a run.

    Raises:
        ValueError: for changes that cannot be read, or that leave no whole step before or after them.
    """
    batch_tokens = config.batch_size * config.context
    planned_steps = config.tokens // batch_tokens  # if no batch size changes; the learning rate is planned in these
    base_plan = lr_plan(config.optimizer, planned_steps, batch_tokens)
    warmup = base_plan["warmup_tokens"] // batch_tokens
    segments = run_segments(config.changes, config.tokens, config.context, config.batch_size)
    last = segments[-1]
    steps = last.step + (config.tokens - last.tokens) // (last.batch_size * config.context)

    plans, factor = [{"from_tokens": 0, **base_plan}], 1.0
    for segment in segments:
        if segment.lr_factor != factor:
            factor = segment.lr_factor
            # the checkpoint at the intervention itself still has the rate, and the plan, of before
            plans.append({**base_plan, "from_tokens": segment.tokens + 1, "peak": factor * base_plan["peak"]})

    run_plan = plans if len(plans) > 1 else base_plan

    evaluations = evaluation_steps(planned_steps, warmup, config.evaluations)
    if config.changes:
        # where batches change, at the same tokens as without, as nearly as whole steps allow
        near = {_step_near(segments, step * batch_tokens, config.context) for step in evaluations[:-1]}
        evaluations = sorted({step for step in near if step < steps} | {steps})
    updates: set[int] = set()
    if config.position_weights.adaptive:
        # the first after the warm-up, but after one step at least: a rule is to see a model that has learned
        n, first = config.weight_updates, max(1, warmup)
        updates = {step for step in (first + round(i * steps / n) for i in range(n)) if step < steps}
    return RunTimeline(
        context=config.context,
        segments=segments,
        steps=steps,
        warmup=warmup,
        base_plan=base_plan,
        lr_plan=run_plan,
        schedule=Schedule.from_plan(run_plan),
        evaluations=tuple(evaluations),
        weight_updates=tuple(sorted(updates)),
    )


def _step_near(segments: tuple[Segment, ...], tokens: int, context: int) -> int:
    """The number of steps after which the tokens seen are nearest to these."""
    segment = next(segment for segment in reversed(segments) if segment.tokens <= tokens)
    return segment.step + round((tokens - segment.tokens) / (segment.batch_size * context))


def evaluation_steps(total_steps: int, warmup_steps: int, n: int) -> list[int]:
    """Optimizer steps after which the surface is measured, increasing, all distinct, the last one the final step.

    Two lie within the warm-up, then at least eight, log-spaced, within the first tenth of the run (a tenth of what is
    left where the warm-up is longer), and the others evenly spaced. A run too short for this gets what fits.

    Args:
        total_steps: of the run; warmup_steps: of its learning rate; n: how many, at most `total_steps` are given.

    Raises:
        ValueError: if n or total_steps is below 1.
    """
    if n < 1 or total_steps < 1:
        raise ValueError(f"training: evaluations and steps must be at least 1, found {n} and {total_steps}")
    n = min(n, total_steps)
    in_warmup = min(IN_WARMUP, warmup_steps, n // 8)
    early = min(max(EARLY, n // 4), (n - in_warmup) // 2)
    start = min(max(warmup_steps, 1), total_steps)
    end = total_steps // 10
    if end < start + early:
        end = start + max((total_steps - start) // 10, min(early, (total_steps - start) // 2))
    chosen = {round(warmup_steps * (i + 1) / IN_WARMUP) for i in range(in_warmup)}
    chosen |= {int(step) for step in np.round(np.geomspace(start, end, early + 1)[1:])}
    chosen |= {int(step) for step in np.round(np.linspace(end, total_steps, n - in_warmup - early + 1)[1:])}
    # steps that rounding merged come back in the widest gaps, the first of them where several are as wide
    steps = sorted((chosen | {total_steps}) - {0})
    while len(steps) < n:
        before = [0, *steps[:-1]]
        widest = int(np.argmax(np.subtract(steps, before)))
        steps.insert(widest, (before[widest] + steps[widest]) // 2)
    return steps
