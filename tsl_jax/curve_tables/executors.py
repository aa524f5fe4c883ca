"""Where shards are fitted: in this process, or by the workers of any `concurrent.futures` executor, such as Ray's.

In this process a thread writes finished shards while the next one is fitted. On an executor a shard that fails is
tried again twice, then reported with its error; the others go on, and their results are kept. A mistake in the request
(ValueError) is the same in every shard and ends the call at once.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any

from tsl_jax.curve_tables.shards import Shard, ShardResult
from tsl_jax.curve_tables.worker import ShardTask

ATTEMPTS = 3
MAX_SUBMITTED = 256  # shards that an executor holds: more than it has workers, few enough to keep their results
MAX_UNWRITTEN = 2  # finished shards that wait for the disk
PATIENCE = 660  # seconds that Ray's tasks may take to end once they are interrupted
OF_A_GPU = 0.9  # what jax may take of the memory: the rest is for others and for its programs

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

        One that is started here listens on the loopback interface alone, and asks for a token of this user.

        Raises:
            ModuleNotFoundError: Ray is not installed. ConnectionError: no cluster answers.
        """
        here = {"include_dashboard": False} if address == "local" else {}
        if here:  # read when Ray is imported; without it Ray listens on all interfaces
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        try:
            import ray  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError:
            raise ModuleNotFoundError("fit: Ray is not installed; pip install 'tsl_jax[ray]'") from None
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", **here)
        except Exception as error:  # Ray's own have no common type
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            message = f"ray: {address!r} gives no cluster ({reason}); start one, or check the address"
            raise ConnectionError(message) from error
        self._ray = ray
        self._running: dict[Future[Any], Any] = {}
        self.resources: dict[str, float] = ray.cluster_resources()  # of all machines, in Ray's names: "CPU", "GPU"
        self.share_out({})

    def share_out(self, per_call: Mapping[str, float]) -> None:
        """From here on a call takes so much of a machine: {"CPU": 4, "GPU": 1}. By itself a CPU, and as it likes.

        jax then uses no more cores, and of a part of a GPU no more memory.

        Raises:
            ValueError: where the whole cluster has less.
        """
        for name, amount in per_call.items():
            if amount > self.resources.get(name, 0):
                found = f"{amount:g} {name} for a call, the cluster has {self.resources.get(name, 0):g}"
                raise ValueError(f"ray: asked for {found}; ask for less, or add machines")
        others = dict(per_call)
        options: dict[str, Any] = {"max_retries": 0}  # who submits a call tries it again, and says so
        self._variables = {}
        if "CPU" in others:
            options["num_cpus"] = others.pop("CPU")
            self._variables["NPROC"] = str(max(1, int(per_call["CPU"])))
        if "GPU" in others:
            options["num_gpus"] = others.pop("GPU")
            if per_call["GPU"] < 1:
                self._variables["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{OF_A_GPU * per_call['GPU']:.3f}"
        self._call = self._ray.remote(resources=others, **options)(_call)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a call somewhere on the cluster."""
        task = self._call.remote(fn, args, kwargs, os.getcwd(), self._variables)
        future = task.future()
        self._running[future] = task
        future.add_done_callback(lambda done: self._running.pop(done, None))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the cluster; one started here ends. cancel_futures: calls under way are interrupted, as by Ctrl-C."""
        if cancel_futures and self._ray.is_initialized():
            tasks = list(self._running.values())
            for task in tasks:
                self._ray.cancel(task)
            if tasks and wait:
                self._ray.wait(tasks, num_returns=len(tasks), timeout=PATIENCE)
        self._ray.shutdown()


def _call(
    fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], folder: str, variables: dict[str, str]
) -> Any:
    """On a worker, where relative paths mean what they mean at home, if it sees that folder."""
    os.environ.update(variables)
    with suppress(OSError):
        os.chdir(folder)
    return fn(*args, **kwargs)
