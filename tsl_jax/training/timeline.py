"""When to evaluate: often while the loss falls fast, evenly later, and at the end."""

from __future__ import annotations

import numpy as np

WARM = 2  # evaluations within the warm-up
EARLY = 8  # at least, past the warm-up and within the first tenth: the shortest prefix a forecast is made from


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
    warm = min(WARM, warmup_steps, n // 8)
    early = min(max(EARLY, n // 4), (n - warm) // 2)
    start = min(max(warmup_steps, 1), total_steps)
    end = total_steps // 10
    if end < start + early:
        end = start + max((total_steps - start) // 10, min(early, (total_steps - start) // 2))
    chosen = {round(warmup_steps * (i + 1) / WARM) for i in range(warm)}
    chosen |= {int(step) for step in np.round(np.geomspace(start, end, early + 1)[1:])}
    chosen |= {int(step) for step in np.round(np.linspace(end, total_steps, n - warm - early + 1)[1:])}
    return _filled(chosen | {total_steps}, n)


def _filled(chosen: set[int], n: int) -> list[int]:
    """Steps that rounding merged come back in the widest gaps, the first of them where several are as wide."""
    steps = sorted(chosen - {0})
    while len(steps) < n:
        before = [0, *steps[:-1]]
        widest = int(np.argmax(np.subtract(steps, before)))
        steps.insert(widest, (before[widest] + steps[widest]) // 2)
    return steps
