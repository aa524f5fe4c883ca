"""Curves per second of the fitting engine on an accelerator, data on the device, and the share of bandwidth reached.

    python experiments/benchmarks/gpu_fit.py [--curves 1048576] [--points 1024]

Needs jax, numpy and xarray alone (jaxopt is not imported). Simulated hyperbolas as in fit_throughput.py, made on the
device, float32. Bandwidth: bytes of the data over the time of a fit, against a plain read of the same data in the same
run; a fit reads them at least twice, for the product and for the residuals. Accuracy: SSE of the first 4,096 curves
against the float64 engine on the host. Takes a few minutes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tsl_jax as tsl
from tsl_jax.fitting import prepare, solve_curves


def best_time(call: Callable[[], Any], repeats: int = 10) -> float:
    jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return min(times)


def simulated(curves: int, points: int) -> jax.Array:
    key, other = jax.random.split(jax.random.key(0))
    a1 = jnp.exp(jax.random.uniform(key, (curves, 1), minval=np.log(0.02), maxval=np.log(2.0)))
    noise = 0.02 * jax.random.normal(other, (curves, points))
    return 1.5 / (1 + a1 * jnp.arange(1.0, points + 1)) + 4 + noise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", type=int, default=1 << 20)
    parser.add_argument("--points", type=int, default=1024)
    given = parser.parse_args()
    device = jax.local_devices()[0]
    print(f"{device.device_kind}, jax {jax.__version__}, {given.curves:,} curves of {given.points} points, float32")
    x = np.arange(1.0, given.points + 1)
    plan = prepare(tsl.laws.HYPERBOLIC, x, np.ones(given.points), dtype="float32")
    y = jax.block_until_ready(jax.jit(simulated, static_argnums=(0, 1))(given.curves, given.points))
    size = y.nbytes / 1e9
    read = jax.jit(lambda y: jnp.sum(y, axis=1))
    bandwidth = size / best_time(lambda: read(y))
    print(f"plain read: {bandwidth:,.0f} GB/s")
    print("| rows at a time | what | M curves/s | GB/s of data | share of the read | compile, s |")
    print("|---|---|---|---|---|---|")
    for rows in (4_096, 16_384, 65_536):
        blocks = y.reshape(-1, rows, given.points)
        for name, pick in (("parameters and SSE", lambda c: (c.params, c.sse)), ("errors and status too", lambda c: c)):
            program = jax.jit(lambda plan, y, pick=pick: jax.lax.map(lambda some: pick(solve_curves(plan, some)), y))
            start = time.perf_counter()
            jax.block_until_ready(program(plan, blocks))
            compiled = time.perf_counter() - start
            seconds = best_time(lambda p=program, b=blocks: p(plan, b))
            rate = size / seconds
            print(
                f"| {rows:,} | {name} | {given.curves / seconds / 1e6:,.1f} | {rate:,.0f} | {rate / bandwidth:.2f} "
                f"| {compiled:.1f} |",
                flush=True,
            )
    few = np.asarray(y[:4096], float)
    solution = jax.jit(solve_curves)(plan, y[:4096])
    a0, a1, a2 = np.asarray(solution.params, float).T[..., None]
    sse = ((few - a0 / (1 + a1 * x) - a2) ** 2).sum(axis=1)
    best = tsl.fit(tsl.laws.HYPERBOLIC, few, x=x).sse.values
    print(f"within 1e-6 of the best SSE: {np.mean(sse / best - 1 <= 1e-6):.4f} of {len(few)} curves")


if __name__ == "__main__":
    main()
