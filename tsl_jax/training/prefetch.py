"""Things made ahead by one thread while the caller works: batches, ready on the device when a step asks for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")
DEPTH = 2  # made ahead: one more than is being waited for


def ahead(make: Callable[[K], V], keys: Iterable[K], depth: int = DEPTH) -> Generator[V, None, None]:
    """make(key) for every key in order; close it (`contextlib.closing`) to end the thread before the last key.

    Raises:
        Exception: what `make` raises, where its value would have come.
    """
    rest = iter(keys)
    pending: deque[Future[V]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as pool:
        try:
            while True:
                pending.extend(pool.submit(make, key) for key in islice(rest, depth - len(pending)))
                if not pending:
                    return
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
