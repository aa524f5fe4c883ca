"""Where shards are fitted: in this process, or by the workers of any `concurrent.futures` executor, such as Ray's.

In this process a thread writes finished shards while the next one is fitted. On an executor a shard that fails is
tried again twice, then reported with its error; the others go on, and their results are kept. A mistake in the request
(ValueError) is the same in every shard and ends the call at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from typing import Any

from tsl_jax.curve_tables.shards import Shard, ShardResult
from tsl_jax.curve_tables.worker import ShardTask

ATTEMPTS = 3
MAX_SUBMITTED = 256  # shards that an executor holds: more than it has workers, few enough to keep their results
MAX_UNWRITTEN = 2  # finished shards that wait for the disk

Store = Callable[[Shard, ShardResult], None]
Finished = Generator[tuple[Shard, ShardResult], None, None]


class ShardsFailed(ChildProcessError):
    """Some shards failed again and again on their workers; the others are kept."""


def fit_here(task: ShardTask, shards: list[Shard], store: Store) -> Finished:
    """Fit in this process, one shard after the other; each comes once it is stored."""
    unwritten: deque[tuple[Shard, ShardResult, Future[None]]] = deque()
    with ThreadPoolExecutor(1) as writer:  # leaving it, however that happens, waits for what is being written
        for shard, result in zip(shards, task.fit_all(shards), strict=True):
            unwritten.append((shard, result, writer.submit(store, shard, result)))
            if len(unwritten) > MAX_UNWRITTEN:
                yield _written(unwritten)
        while unwritten:
            yield _written(unwritten)


def _written(unwritten: deque[tuple[Shard, ShardResult, Future[None]]]) -> tuple[Shard, ShardResult]:
    """The first of the shards in the queue, once it is on disk."""
    shard, result, future = unwritten.popleft()
    future.result()
    return shard, result


def fit_on_executor(executor: Executor, task: ShardTask, shards: list[Shard], store: Store) -> Finished:
    """Fit on the executor's workers, in any order; each comes once it is stored.

    Raises:
        ShardsFailed: once all others are stored.
    """
    todo, running = deque(shards), {}
    attempts: dict[Shard, int] = {}
    failed: dict[Shard, BaseException] = {}
    try:
        while todo or running:
            while todo and len(running) < MAX_SUBMITTED:
                shard = todo.popleft()
                attempts[shard] = attempts.get(shard, 0) + 1
                try:
                    future = executor.submit(task, shard)
                except RuntimeError as error:  # it takes no more work (its workers died): a failure like others
                    future = Future()
                    future.set_exception(error)
                running[future] = shard
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                shard = running.pop(future)
                error = future.exception()
                if error is None:
                    store(shard, future.result())
                    yield shard, future.result()
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
            f"({shard.first} to {shard.end}) with {type(error).__name__}: {error}; the others are kept: fix the cause "
            "and repeat the call to fit these alone"
        ) from error


class RayExecutor(Executor):
    """A `concurrent.futures` executor over a Ray cluster; use it as a context.

    `submit` becomes a remote task, so that `fit_table` distributes its shards over the machines of a cluster, which
    must have tsl_jax and see the curves under the same path. Ray is an extra (`pip install tsl_jax[ray]`), imported
    only here and only when it is used.
    """

    def __init__(self, address: str = "local") -> None:
        """Connect to the cluster at `address` ("auto", "ray://host:10001"), or start one on this machine ("local").

        Raises:
            ModuleNotFoundError: Ray is not installed. ConnectionError: no cluster answers.
        """
        try:
            import ray  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError:
            raise ModuleNotFoundError("fit: Ray is not installed; pip install 'tsl_jax[ray]'") from None
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
        # a task that fails is tried again by `fit_table`, which then says so
        self._call = ray.remote(max_retries=0)(_call)
        self._ray = ray

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a call somewhere on the cluster."""
        return self._call.remote(fn, args, kwargs).future()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the cluster; one started here ends."""
        self._ray.shutdown()


def _call(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return fn(*args, **kwargs)
