"""Curves per second of the fitting engine, beside scipy, jaxopt, optimistix and the machine's own limits, in one run.

    python experiments/benchmarks/fit_throughput.py [--cores 1] [--points 1024] [--noise 0.02] [--file] ...

Simulated hyperbolas a0/(1 + a1 i) + a2 with a1 log-uniform in .02..2 and normal noise, seed 0. `within` is the share of
curves whose parameters have an SSE within 1e-6 (relative) of the best, which a search over a dense grid of the shape in
float64 finds; slow methods are timed on fewer curves. Times are the best of several, compilation apart. Run it on an
idle machine; ratios travel, seconds do not.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=int, default=0, help="cores to use (0: all)")
    parser.add_argument("--points", type=int, default=1024)
    parser.add_argument("--curves", type=int, default=262_144)
    parser.add_argument("--noise", type=float, default=0.02)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--slow", type=int, default=2_000, help="curves given to the peers")
    parser.add_argument("--ours", action="store_true", help="without the peers")
    parser.add_argument("--file", action="store_true", help="also 1 million curves from .npy to Parquet with `tsl fit`")
    return parser.parse_args()


def limit_cores(count: int) -> None:
    """Before numpy and jax start their threads."""
    if count:
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:count]))
    if count == 1:
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
        os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"


def best_time(call: Callable[[], Any], repeats: int = 5) -> float:
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def row(name: str, curves: int, seconds: float, within: str = "", note: str = "") -> None:
    print(f"| {name} | {curves / seconds:,.0f} | {within} | {note} |", flush=True)


def main() -> None:
    given = options()
    limit_cores(given.cores)
    import jax

    jax.config.update("jax_enable_x64", given.dtype == "float64")
    bench = Bench(given)
    print(
        f"n = {given.points}, noise {given.noise}, {given.dtype}, "
        f"{len(os.sched_getaffinity(0))} cores, jax {jax.__version__}"
    )
    print("| method | curves/s | within 1e-6 of the best SSE | |\n|---|---|---|---|")
    bench.machine()
    bench.engine()
    bench.through_fit()
    bench.own_weights()
    if not given.ours:
        bench.scipy()
        bench.levenberg_marquardt()
        bench.optimistix()
    if given.file:
        bench.file_to_file()


class Bench:
    """The data, and what each method makes of it."""

    def __init__(self, given: argparse.Namespace):
        import numpy as np

        self.given, self.np = given, np
        rng = np.random.default_rng(0)
        self.x = np.arange(1.0, given.points + 1)
        self.a1 = np.exp(rng.uniform(np.log(0.02), np.log(2), given.curves))
        self.y = np.empty((given.curves, given.points), given.dtype)
        for k in range(0, given.curves, 4096):
            part = slice(k, k + 4096)
            noise = given.noise * rng.standard_normal((len(self.a1[part]), given.points))
            self.y[part] = 1.5 / (1 + self.a1[part, None] * self.x) + 4 + noise
        self.few = self.y[: given.slow].astype(float)
        self.best = self.dense_search(self.few, np.ones_like(self.few))

    def sse(self, params: Any, weights: Any = 1.0) -> Any:
        """SSE (curve,) of parameters (curve, 3) on the first curves, in float64."""
        a0, a1, a2 = self.np.asarray(params, float).T[..., None]
        return (weights * (self.few[: len(a0)] - a0 / (1 + a1 * self.x) - a2) ** 2).sum(axis=1)

    def within(self, params: Any, weights: Any = 1.0, best: Any = None) -> str:
        """Share of the first curves whose parameters (curve, 3) are as good as the best."""
        params = self.np.asarray(params, float)[: self.given.slow]
        with self.np.errstate(all="ignore"):
            excess = self.sse(params, weights) / (self.best if best is None else best)[: len(params)] - 1
        return f"{self.np.mean(excess <= 1e-6):.4f}"

    def dense_search(self, y: Any, weights: Any) -> Any:
        """The smallest weighted SSE over 4,000 values of the shape, then a golden section, all in float64."""
        np, x = self.np, self.x
        y = y - np.average(y, axis=1, weights=weights)[:, None]
        weighted, total = weights * y, weights.sum(axis=1)

        def height(theta: Any) -> Any:
            f = 1 / (1 + np.exp(theta)[:, None] * x)
            f = f - np.average(f, axis=1, weights=weights)[:, None]
            return (weighted * f).sum(1) ** 2 / (weights * f * f).sum(1)

        grid = np.linspace(np.log(1e-3 / x[-1]), np.log(1e3), 4_000)
        frames = 1 / (1 + np.exp(grid)[:, None] * x)
        frames -= frames.mean(axis=1, keepdims=True)
        square = weights @ (frames**2).T - (weights @ frames.T) ** 2 / total[:, None]
        best = ((weighted @ frames.T) ** 2 / square).argmax(axis=1)
        low, high = grid[np.maximum(best - 1, 0)], grid[np.minimum(best + 1, len(grid) - 1)]
        ratio = (5**0.5 - 1) / 2
        for _ in range(50):
            a, b = high - ratio * (high - low), low + ratio * (high - low)
            left = height(a) > height(b)
            low, high = np.where(left, low, a), np.where(left, b, high)
        f = 1 / (1 + np.exp((low + high) / 2)[:, None] * x)
        f -= np.average(f, axis=1, weights=weights)[:, None]
        a0 = (weighted * f).sum(1) / (weights * f**2).sum(1)
        return (weights * (y - a0[:, None] * f) ** 2).sum(1)

    def machine(self) -> None:
        import jax
        import jax.numpy as jnp

        y = jnp.asarray(self.y)
        frame = jnp.ones((self.given.points, 17), y.dtype)
        ones = jnp.ones(self.given.points, y.dtype)
        read = jax.jit(lambda y: y @ ones)
        row("limit: reading the data once", len(y), best_time(lambda: read(y).block_until_ready()))
        product = jax.jit(lambda y: jnp.dot(y, frame, precision="highest"))
        row("limit: product with 17 vectors", len(y), best_time(lambda: product(y).block_until_ready()))

    def engine(self) -> None:
        """Data on the device."""
        import jax
        import jax.numpy as jnp

        from tsl_jax import laws
        from tsl_jax.fitting import prepare, solve_curves

        rows = max(8, 256 * 1024 // max(self.given.points, 1024))
        plan = prepare(laws.HYPERBOLIC, self.x, self.np.ones(len(self.x)), dtype=self.given.dtype)
        y = jnp.asarray(self.y).reshape(-1, rows, self.given.points)

        def some(curves: Any) -> Any:
            return curves.params, curves.sse

        whole = jax.jit(lambda plan, y: jax.lax.map(lambda rows: solve_curves(plan, rows), y))
        bare = jax.jit(lambda plan, y: jax.lax.map(lambda rows: some(solve_curves(plan, rows)), y))
        for name, program in (("parameters and SSE", bare), ("errors and status too", whole)):
            start = time.perf_counter()
            solution = jax.block_until_ready(program(plan, y))
            compiled = time.perf_counter() - start
            seconds = best_time(lambda p=program: jax.block_until_ready(p(plan, y)))
            params = solution[0].reshape(-1, 3)
            note = f"first call {compiled:.1f} s"
            row(f"tsl_jax, on the device: {name}", len(self.y), seconds, self.within(params), note)

    def own_weights(self) -> None:
        """Weights of each curve's own: variances that differ, points that are missing, lengths that differ."""
        import jax
        import jax.numpy as jnp

        import tsl_jax as tsl
        from tsl_jax.fitting import prepare, solve_weighted

        np, count, points = self.np, min(65_536, len(self.y)), self.given.points
        rng, rows = np.random.default_rng(1), max(8, 128 * 1024 // max(points, 1024))
        kinds = {
            "a weight a point": rng.uniform(0.2, 5, (count, points)),
            "30 % missing": (rng.uniform(size=(count, points)) < 0.7),
            "lengths of 10 to 100 %": np.arange(points) < rng.integers(points // 10, points + 1, (count, 1)),
        }
        plan = prepare(tsl.laws.HYPERBOLIC, self.x, dtype=self.given.dtype, many=True)
        program = jax.jit(lambda plan, y, w: jax.lax.map(lambda pair: solve_weighted(plan, *pair), (y, w)))
        y = jnp.asarray(self.y[:count]).reshape(-1, rows, points)
        for kind, weights in kinds.items():
            weights = weights.astype(self.given.dtype)
            few = weights[: len(self.few)].astype(float)
            best = self.dense_search(self.few, few)
            w = jnp.asarray(weights).reshape(y.shape)
            fits, sure = jax.block_until_ready(program(plan, y, w))
            seconds = best_time(lambda w=w: jax.block_until_ready(program(plan, y, w)))
            note = f"{float(jnp.mean(~sure)):.4f} left to the general solver"
            row(
                f"tsl_jax, on the device: {kind}",
                count,
                seconds,
                self.within(fits.params.reshape(-1, 3), few, best),
                note,
            )

            def call(weights: Any = weights) -> Any:
                return tsl.fit(tsl.laws.HYPERBOLIC, self.y[:count], x=self.x, weights=weights, dtype=self.given.dtype)

            seconds = best_time(call, 2)
            row(f"tsl_jax, numpy through fit: {kind}", count, seconds, self.within(call().params.values, few, best))

    def through_fit(self) -> None:
        import tsl_jax as tsl

        def call() -> Any:
            return tsl.fit(tsl.laws.HYPERBOLIC, self.y, x=self.x, dtype=self.given.dtype)

        row("tsl_jax, numpy through fit", len(self.y), best_time(call), self.within(call().params.values))

    def scipy(self) -> None:
        from scipy.optimize import curve_fit

        np = self.np

        def curve(i: Any, a0: float, a1: float, a2: float) -> Any:
            return a0 / (1 + a1 * i) + a2

        def slopes(i: Any, a0: float, a1: float, a2: float) -> Any:
            f = 1 / (1 + a1 * i)
            return np.stack([f, -a0 * i * f * f, np.ones_like(f)], axis=1)

        def run(count: int, **how: Any) -> Any:
            params = np.full((count, 3), np.nan)
            for k in range(count):
                start = {"p0": (1.5, self.a1[k], 4.0), "jac": slopes} if how else {}
                try:
                    params[k] = curve_fit(curve, self.x, self.few[k], **start)[0]
                except RuntimeError:
                    continue
            return params

        with np.errstate(all="ignore"):
            for name, how in (("true start and Jacobian", {"true": True}), ("default start", {})):
                count = min(300, len(self.few))
                seconds = best_time(lambda n=count, h=how: run(n, **h), repeats=2)
                row(f"scipy curve_fit, {name}", count, seconds, self.within(run(count, **how)))

    def levenberg_marquardt(self) -> None:
        """jaxopt on log a1 with the coefficients projected out (ours), and as users write it, from the true start."""
        import jax
        import jax.numpy as jnp
        from jaxopt import LevenbergMarquardt

        import tsl_jax as tsl

        count = min(1024, len(self.few))

        def ours() -> Any:
            return tsl.fit(tsl.laws.HYPERBOLIC, self.few[:count], x=self.x, method="lm")

        row("tsl_jax, method='lm' (float64)", count, best_time(ours, 2), self.within(ours().params.values))
        x = jnp.asarray(self.x, self.given.dtype)
        solver = LevenbergMarquardt(lambda p, y: y - p[0] / (1 + p[1] * x) - p[2], maxiter=100)
        plain = jax.jit(jax.vmap(lambda p, y: solver.run(p, y).params))
        start = jnp.asarray(
            self.np.stack([self.np.full(count, 1.5), self.a1[:count], self.np.full(count, 4.0)], 1), x.dtype
        )
        y = jnp.asarray(self.few[:count], x.dtype)
        seconds = best_time(lambda: jax.block_until_ready(plain(start, y)), 2)
        row("jaxopt LevenbergMarquardt, jit + vmap, true start", count, seconds, self.within(plain(start, y)))

    def optimistix(self) -> None:
        try:
            import optimistix
        except ImportError:
            print("| optimistix LevenbergMarquardt | | | not installed |")
            return
        import jax
        import jax.numpy as jnp

        count = min(1024, len(self.few))
        x = jnp.asarray(self.x, self.given.dtype)
        solver = optimistix.LevenbergMarquardt(rtol=1e-6, atol=1e-6)

        def solve(p: Any, y: Any) -> Any:
            def left(p: Any, y: Any) -> Any:
                return y - p[0] / (1 + p[1] * x) - p[2]

            return optimistix.least_squares(left, solver, p, args=y, max_steps=256, throw=False).value

        start = self.np.stack([self.np.full(count, 1.5), self.a1[:count], self.np.full(count, 4.0)], 1)
        program, y = jax.jit(jax.vmap(solve)), jnp.asarray(self.few[:count], x.dtype)
        p = jnp.asarray(start, x.dtype)
        seconds = best_time(lambda: jax.block_until_ready(program(p, y)), 2)
        row("optimistix LevenbergMarquardt, jit + vmap, true start", count, seconds, self.within(program(p, y)))

    def file_to_file(self) -> None:
        """One million curves through the command, after a first run that caches file and programs."""
        np, count = self.np, 1_000_000
        with tempfile.TemporaryDirectory() as folder:
            path, out = Path(folder) / "curves.npy", Path(folder) / "fits.parquet"
            whole = np.lib.format.open_memmap(path, "w+", np.float32, (count, self.given.points))
            for k in range(0, count, len(self.y)):
                whole[k : k + len(self.y)] = self.y[: min(len(self.y), count - k)]
            whole.flush()
            command = [sys.executable, "-m", "tsl_jax.cli", "fit", str(path), "--out", str(out), "--dtype", "float32"]
            for what in ("first call, compilation included", "second call"):
                out.unlink(missing_ok=True)
                start = time.perf_counter()
                done = subprocess.run([*command], capture_output=True, text=True, check=True)
                seconds = time.perf_counter() - start
                note = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""
                row(
                    f"tsl fit, file to file, {what}",
                    count,
                    seconds,
                    note=f"whole process {seconds:.1f} s; {note[:120]}",
                )


if __name__ == "__main__":
    main()
