"""Who fits the shards: this process, or the workers of any `concurrent.futures` executor.

In this process a thread writes finished shards while the next one is fitted. On an executor a shard that fails is
tried again twice, then reported with its error; the others go on, and what they gave is kept. A mistake in the request
(ValueError) is the same in every shard and ends the call at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait

from tsl_jax.curve_tables.shards import Shard
from tsl_jax.curve_tables.worker import Fitted, Work

ATTEMPTS = 3
AT_ONCE = 256  # shards that an executor holds: more than it has workers, few enough for their results to fit in memory
WAITING = 2  # finished shards that wait for the disk

Store = Callable[[Shard, Fitted], None]
Done = Callable[[Shard, Fitted], None]


class ShardsFailed(ChildProcessError):
    """Some shards failed again and again on their workers; the others are kept."""


def here(work: Work, shards: list[Shard], store: Store, done: Done) -> None:
    """Fit in this process, one shard after the other."""
    waiting: deque[tuple[Shard, Fitted, Future[None]]] = deque()

    def settle(allowed: int) -> None:
        while len(waiting) > allowed:
            shard, fitted, written = waiting.popleft()
            written.result()
            done(shard, fitted)

    with ThreadPoolExecutor(1) as writer:  # leaving it, however that happens, waits for what is being written
        for shard, fitted in zip(shards, work.over(shards), strict=True):
            waiting.append((shard, fitted, writer.submit(store, shard, fitted)))
            settle(WAITING)
        settle(0)


def elsewhere(executor: Executor, work: Work, shards: Iterable[Shard], store: Store, done: Done) -> None:
    """Fit on the executor's workers.

    Raises:
        ShardsFailed: once all others are stored.
    """
    todo, running = deque(shards), {}
    attempts: dict[Shard, int] = {}
    failed: dict[Shard, BaseException] = {}
    try:
        while todo or running:
            while todo and len(running) < AT_ONCE:
                shard = todo.popleft()
                attempts[shard] = attempts.get(shard, 0) + 1
                running[_submitted(executor, work, shard)] = shard
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                shard = running.pop(future)
                error = future.exception()
                if error is None:
                    store(shard, future.result())
                    done(shard, future.result())
                elif isinstance(error, ValueError):
                    raise error
                elif attempts[shard] < ATTEMPTS:
                    todo.append(shard)
                else:
                    failed[shard] = error
    finally:
        for future in running:
            future.cancel()
    if failed:
        shard, error = next(iter(failed.items()))
        raise ShardsFailed(
            f"fit: {len(failed)} shards failed {ATTEMPTS} times each, the first one shard {shard.number} "
            f"({shard.first} to {shard.end}) with {type(error).__name__}: {error}; the others are kept: mend the cause "
            "and repeat the call to fit these alone"
        ) from error


def _submitted(executor: Executor, work: Work, shard: Shard) -> Future[Fitted]:
    """The future of a shard; an executor that takes no more work (its workers died) is a failure like others."""
    try:
        return executor.submit(work, shard)
    except RuntimeError as error:
        refused: Future[Fitted] = Future()
        refused.set_exception(error)
        return refused
