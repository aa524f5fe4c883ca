"""The runs of a sweep, one after another or side by side: one task a run, whatever carries the tasks out.

`make_all` hands `Pool.make` to a `concurrent.futures` executor. With none the runs go one after another; `side_by_side`
gives each of several its own cores of this machine; and any executor whose workers see the same folders does, such as
`curve_tables.RayExecutor`, which is the way to many machines: one run a task, never one inside the other.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed, wait
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

from tsl_jax.sweeps.pool import Pool
from tsl_jax.training.config import TrainConfig

Watch = Callable[[str, bool], Any]
Outcome = tuple[str, Callable[[], bool]]  # a name, and what gives or raises how it ended


def make_all(
    pool: Pool,
    runs: Mapping[str, TrainConfig],
    executor: Executor | None = None,
    deadline: float | None = None,
    watch: Watch = lambda name, done: None,
) -> list[str]:
    """Make the runs that are not kept yet; the names of those that are unfinished, in order.

    A run that fails, as one does whose learning rate is too high, keeps no other from being made. After Ctrl-C, SIGTERM
    or SIGHUP no further one begins, and those under way stop at a checkpoint.

    Args:
        pool: keeps them. runs: name -> configuration. executor: None: one after another, here.
        deadline: of `time.time`, for all together. watch: called with each name that was worked on, and whether it is
            complete.

    Raises:
        ValueError: naming the runs that failed, once all others have ended. KeyboardInterrupt: as said.
    """
    todo = {name: runs[name] for name, state in pool.states(runs).items() if state != "kept"}
    left, failed = [], []
    with _every_end_interrupts(), closing(_outcomes(pool, todo, executor, deadline)) as outcomes:
        for name, outcome in outcomes:
            try:
                done = outcome()
            except ValueError as error:
                failed.append(str(error))
                continue
            left += [] if done else [name]
            watch(name, done)
    if failed:
        raise ValueError("\n".join([*failed, f"sweep: {len(failed)} of {len(todo)} runs failed, see above"]))
    return [name for name in todo if name in left]


def _outcomes(
    pool: Pool, todo: Mapping[str, TrainConfig], executor: Executor | None, deadline: float | None
) -> Generator[Outcome, None, None]:
    """Each run and how it ended: one after another, or as they end."""
    if executor is None:
        yield from ((name, partial(pool.make, name, config, deadline)) for name, config in todo.items())
        return
    stop = threading.Event()
    asked = (stop.is_set,) if isinstance(executor, ThreadPoolExecutor) else ()  # an event reaches only threads
    tasks = {executor.submit(pool.make, name, config, deadline, *asked): name for name, config in todo.items()}
    try:
        for task in as_completed(tasks):
            yield tasks[task], task.result
    finally:  # also where the loop that we feed was left by an exception: Ctrl-C comes to the main thread alone
        stop.set()
        wait([task for task in tasks if not task.cancel()])


@contextmanager
def _every_end_interrupts() -> Iterator[None]:
    """SIGTERM, of `timeout` and schedulers, and SIGHUP, of a closed terminal, meanwhile do what Ctrl-C does.

    So does Ctrl-C where a script's & made us ignore it: our runs would inherit that, and could not be told to stop.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {end: signal.getsignal(end) for end in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    ours = [end for end in before if end == signal.SIGINT or before[end] == signal.SIG_DFL]  # nohup's stays ignored
    try:
        for end in ours:
            signal.signal(end, signal.default_int_handler)
        yield
    finally:
        for end in ours:
            signal.signal(end, before[end])


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
