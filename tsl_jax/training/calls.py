"""Which steps the device makes in one call, and where the host looks at them.

A run goes from stop to stop: at each the host waits for the device, looks at the losses, and may be interrupted. The
stops are the evaluations, the updates of adaptive position weights, and every so many steps between them; from stop to
stop calls of several steps are made as long as they fit, then calls of one. All of it follows from the configuration,
so that a run that was interrupted, at a stop as always, makes the same calls as one that was not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import jax

from tsl_jax.training.config import TrainConfig, batch_tokens

FLUSH = 16  # steps between looks at their losses: the device works ahead meanwhile
WORK = 1e12  # FLOPs of one device in a call, at least: some ms on a GPU, against the .3 to 1 ms of a call on the host


def steps_per_call(config: TrainConfig, flops_per_token: int, devices: int) -> int:
    """The configured number, or by platform: 1 on CPU; elsewhere so many that a call is `WORK`, 16 at most."""
    if config.steps_per_call or jax.default_backend() == "cpu":
        return config.steps_per_call or 1
    work = flops_per_token * batch_tokens(config) / devices
    return max(1, min(FLUSH, round(WORK / work)))


def next_stop(step: int, planned: Collection[int], per_call: int) -> int:
    """The stop after `step`, which is no further than the last that is planned."""
    return min(min(one for one in planned if one > step), step + max(FLUSH, 4 * per_call))


def calls(first: int, last: int, per_call: int) -> Iterator[tuple[int, int]]:
    """The calls from one stop to the next as (steps done before, steps done after)."""
    while first < last:
        n = per_call if first + per_call <= last else 1
        yield first, first + n
        first += n


def all_calls(step: int, planned: Collection[int], per_call: int) -> Iterator[tuple[int, int]]:
    """The calls from `step`, a stop, to the end of the run."""
    while step < max(planned):
        last = next_stop(step, planned, per_call)
        yield from calls(step, last, per_call)
        step = last
