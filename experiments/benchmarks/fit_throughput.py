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
        self.best = self.dense_search(self.few)

    def sse(self, a0: Any, a1: Any, a2: Any) -> Any:
        """SSE (curve,) of parameters on the first curves, in float64."""
        a0, a1, a2 = (self.np.asarray(a, float)[:, None] for a in (a0, a1, a2))
        return ((self.few[: len(a0)] - a0 / (1 + a1 * self.x) - a2) ** 2).sum(axis=1)

    def within(self, params: Any) -> str:
        """Share of the first curves whose parameters (curve, 3) are as good as the best."""
        params = self.np.asarray(params, float)[: self.given.slow]
        with self.np.errstate(all="ignore"):
            excess = self.sse(*params.T) / self.best[: len(params)] - 1
        return f"{self.np.mean(excess <= 1e-6):.4f}"

    def dense_search(self, y: Any) -> Any:
        """The smallest SSE over 4,000 values of the shape, then a golden section, all in float64."""
        np, x = self.np, self.x

        def height(theta: Any) -> Any:
            f = 1 / (1 + np.exp(theta)[:, None] * x)
            f = f - f.mean(axis=1, keepdims=True)
            return ((y * f).sum(1) / np.sqrt((f * f).sum(1))) ** 2

        grid = np.linspace(np.log(1e-3 / x[-1]), np.log(1e3), 4_000)
        frames = 1 / (1 + np.exp(grid)[:, None] * x)
        frames -= frames.mean(axis=1, keepdims=True)
        frames /= np.linalg.norm(frames, axis=1, keepdims=True)
        best = ((y @ frames.T) ** 2).argmax(axis=1)
        low, high = grid[np.maximum(best - 1, 0)], grid[np.minimum(best + 1, len(grid) - 1)]
        ratio = (5**0.5 - 1) / 2
        for _ in range(50):
            a, b = high - ratio * (high - low), low + ratio * (high - low)
            left = height(a) > height(b)
            low, high = np.where(left, low, a), np.where(left, b, high)
        a1 = np.exp((low + high) / 2)
        f = 1 / (1 + a1[:, None] * x)
        centred = f - f.mean(axis=1, keepdims=True)
        a0 = (y * centred).sum(1) / (centred**2).sum(1)
        a2 = y.mean(axis=1) - a0 * f.mean(axis=1)
        return self.sse(a0, a1, a2)

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
