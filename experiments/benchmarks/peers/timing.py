"""What every row of train_throughput.py is measured with, in the row's own interpreter. Needs numpy alone.

A row is a script that is given one JSON value and prints one. The value has the shape (d, layers, heads, ff,
vocabulary, context, batch), `steps` of a block, `blocks`, `cores`, `variant`, and `start`, the time at which its
process was asked for.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

WARM_UP = 3  # steps after the first that are not counted


def given() -> dict[str, Any]:
    """The value on the command line."""
    return json.loads(sys.argv[1])


def batches(shape: dict[str, Any], count: int = 8) -> list[np.ndarray]:
    """Random tokens, (batch, context + 1) int32: the same for every row."""
    rng = np.random.default_rng(0)
    size = (shape["batch"], shape["context"] + 1)
    return [rng.integers(0, shape["vocabulary"], size).astype(np.int32) for _ in range(count)]


def measure(shape: dict[str, Any], step: Callable[[np.ndarray], Any], loss_of: Callable[[Any], float]) -> None:
    """Time steps and print what came out.

    Args:
        shape: as `given`.
        step: takes a batch; may return before the work is done.
        loss_of: waits for what a step returned, and for all steps before it.
    """
    data = batches(shape)
    first_loss = loss_of(step(data[0]))
    to_first_step = time.time() - shape["start"]
    for i in range(WARM_UP):
        loss_of(step(data[i % len(data)]))
    seconds = []
    for _ in range(shape["blocks"]):
        start = time.perf_counter()
        for i in range(shape["steps"]):
            last = step(data[i % len(data)])
        last_loss = loss_of(last)
        seconds.append((time.perf_counter() - start) / shape["steps"])
    times = {"seconds": statistics.median(seconds), "best": min(seconds), "to_first_step": to_first_step}
    print(json.dumps({**times, "first_loss": first_loss, "last_loss": last_loss}))
