"""What the cores can do: the best rate of a float32 matrix product, by numpy's BLAS and by XLA."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import timing


def rate(product: Callable[[], object], flops: float, seconds: float) -> float:
    """FLOP/s of the best call within some seconds."""
    product()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        product()
        best = min(best, time.perf_counter() - start)
    return flops / best


def main() -> None:
    shape = timing.given()
    n = 1024 if shape["steps"] > 1 else 128
    seconds = 5.0 if shape["steps"] > 1 else 0.05
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((n, n)).astype(np.float32) for _ in range(2))
    blas = rate(lambda: a @ b, 2 * n**3, seconds)
    x, y = jnp.asarray(a), jnp.asarray(b)
    times = jax.jit(lambda x, y: x @ y)
    xla = rate(lambda: times(x, y).block_until_ready(), 2 * n**3, seconds)
    print(json.dumps({"blas": blas, "xla": xla}))


if __name__ == "__main__":
    main()
