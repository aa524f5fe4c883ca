"""Ray as an executor: `submit` becomes a remote task, so that `fit_table` spreads its shards over a cluster.

Ray is an extra (`pip install tsl_jax[ray]`), imported only here and only when it is used. The machines of the cluster
must have tsl_jax and see the curves under the same path.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

LOCAL = "local"


class RayExecutor(Executor):
    """A `concurrent.futures` executor over a Ray cluster; use it as a context."""

    def __init__(self, address: str = LOCAL) -> None:
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
