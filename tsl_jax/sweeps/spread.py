"""The runs of a sweep, one after another or side by side: one task a run, whatever carries the tasks out.

`make_all` hands `Pool.make` to a `concurrent.futures` executor. With none the runs go one after another; `side_by_side`
gives each of several its own cores of this machine; and any executor whose workers see the same folders does, such as
`fitting.ray_executor.RayExecutor`, which is the way to many machines: one run a task, never one inside the other.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from typing import Any

from tsl_jax.sweeps.pool import Pool
from tsl_jax.training.config import TrainConfig

Watch = Callable[[str, bool], Any]


def make_all(
    pool: Pool,
    runs: Mapping[str, TrainConfig],
    executor: Executor | None = None,
    deadline: float | None = None,
    watch: Watch = lambda name, done: None,
) -> list[str]:
    """Make the runs that are not kept yet; the names of those that the deadline left unfinished, in order.

    Args:
        pool: keeps them. runs: name -> configuration. executor: None: one after another, here.
        deadline: of `time.monotonic`, for all together. watch: called with each name that was worked on, and whether it
            is complete.

    Raises:
        ValueError: of a run that failed, once those beside it have ended; what is kept stays kept.
    """
    todo = {name: config for name, config in runs.items() if not pool.find(config)}
    done = {}
    if executor is None:
        for name, config in todo.items():
            done[name] = pool.make(name, config, deadline)
            watch(name, done[name])
    else:
        tasks = {executor.submit(pool.make, name, config, deadline): name for name, config in todo.items()}
        for task in as_completed(tasks):
            done[tasks[task]] = task.result()
            watch(tasks[task], task.result())
    return [name for name in todo if not done[name]]


def side_by_side(runs: int) -> ThreadPoolExecutor:
    """An executor for so many runs at a time, each on its own share of the cores this process may use.

    Raises:
        ValueError: for fewer cores than runs, or a number below one.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    if not 1 <= runs <= len(cores):
        raise ValueError(f"sweep: {runs} runs side by side need a core each, there are {len(cores)}; ask for fewer")
    shares: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
    for k in range(runs):
        shares.put(cores[k * len(cores) // runs : (k + 1) * len(cores) // runs])

    def settle() -> None:
        """A thread's cores are those of the processes it starts (Linux; elsewhere the system spreads them)."""
        mine = shares.get()
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, mine)

    return ThreadPoolExecutor(runs, initializer=settle)
