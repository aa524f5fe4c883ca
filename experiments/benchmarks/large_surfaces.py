"""How much memory and time do large surfaces and many reference runs take? One table, a child process a row.

    python experiments/benchmarks/large_surfaces.py                      # every row
    python experiments/benchmarks/large_surfaces.py --rows log siblings  # some of them
    python experiments/benchmarks/large_surfaces.py --timeout 300 --keep runs/surfaces

Surfaces are simulated: an annealing law for the level, a hyperbola over positions, noise, a cosine plan; `clusters`
adds sums by document, as training writes them. Peak memory is the largest resident set of the child, its start and
imports (about .4 GB) included; seconds are of the whole command, beside those of the processor, which other work on
the machine changes less. Every command compiles anew: what an earlier one left on disk would hide most of its cost.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import tsl_jax as tsl
from tsl_jax import surface as surfaces
from tsl_jax.forecasting.lr_history import LearningRate

TOTAL = 20_000_000_000
PLAN = {"kind": "cosine", "peak": 1e-3, "warmup_tokens": 200_000_000, "total_tokens": TOTAL, "final_ratio": 0.1}
CLUSTERS = 16
SIBLINGS = (0, 3, 8, 20)
ROWS = ("log", "long_context", "large", "clusters", "siblings")


def losses(checkpoints: int, positions: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (checkpoint,) and losses (checkpoint, position)."""
    random = np.random.default_rng(seed)
    tokens = np.linspace(TOTAL / checkpoints, TOTAL, checkpoints).astype(np.int64)
    rate = LearningRate(*tsl.laws.Schedule.from_plan(PLAN).knots()).covariates(tokens, float(TOTAL))
    level = np.concatenate(
        [
            np.asarray(tsl.laws.AREA_ANNEALING.basis(np.array([0.4, 500.0]), {**rate, "area": part}), float)
            for part in np.array_split(rate["area"], -(-checkpoints // 1000))
        ]
    ) @ np.array([2.5, 0.5, 0.1])
    level = level + 0.02 * random.standard_normal()
    gap = (1.2 + 0.1 * np.log(rate["area"]))[:, None] / (1 + 0.3 * np.arange(1, positions + 1))
    return tokens, level[:, None] + gap + 0.003 * random.standard_normal((checkpoints, positions))


def plain(file: Path, checkpoints: int, positions: int, splits: int = 1, seed: int = 0, seen: float = 1.0) -> Path:
    """A saved surface without sums by cluster, of the first share `seen` of the run."""
    if not file.exists():
        tokens, loss = losses(checkpoints, positions, seed)
        kept = slice(int(seen * checkpoints))
        both = np.stack([loss[kept] + 0.4 * k for k in range(splits)])
        names = ["id", "ood"][:splits]
        surfaces.save_surface(
            tsl.from_losses(both, tokens=tokens[kept], split=names, schedule=PLAN, run=file.stem), file
        )
    return file


def by_cluster(folder: Path, checkpoints: int, positions: int) -> Path:
    """A run's surface with sums by cluster, a file a checkpoint."""
    if not (folder / surfaces.HEADER).exists():
        tokens, loss = losses(checkpoints, positions, 0)
        random = np.random.default_rng(1)
        attrs = {"run": folder.name, "schedule": PLAN}
        surfaces.create(folder, clusters={"id": CLUSTERS}, context=positions, attrs=attrs)
        for at, curve in zip(tokens, loss, strict=True):
            of_cluster = 8 * (curve + 0.05 * random.standard_normal((CLUSTERS, positions)))
            sums = {"cluster_sum": of_cluster, "cluster_sum_squares": of_cluster**2 / 8}
            arrays = {**sums, "cluster_count": np.full(of_cluster.shape, 8.0)}
            arrays |= {"loss_sum": of_cluster.sum(0), "loss_sum_squares": sums["cluster_sum_squares"].sum(0)}
            arrays |= {"count": np.full(positions, 8.0 * CLUSTERS), "loss_additive": curve}
            arrays["loss_additive_sem"] = np.full(positions, 0.01)
            surfaces.append(folder, tokens=int(at), step=int(at) // 1_000_000, lr=1e-3, splits={"id": arrays})
    return folder


def cases(folder: Path, rows: tuple[str, ...]) -> Iterator[tuple[str, list[str]]]:
    """Name and arguments of `tsl` of each row."""
    out = str(folder / "out")
    sizes = {"log": (10_000, 1, 1), "long_context": (30, 4096, 2), "large": (2000, 4096, 1)}
    for name, (checkpoints, positions, splits) in sizes.items():
        if name in rows:
            file = str(plain(folder / f"{name}.npz", checkpoints, positions, splits))
            size = f"{checkpoints:,} x {positions:,}" + (" x 2 splits" if splits > 1 else "")
            law = "power" if positions == 1 else "hyperbolic"
            yield f"fit, {size}", ["fit", file, "--law", law, "--out", f"{out}.parquet"]
            yield f"forecast, {size}", ["forecast", file, "--cutoff", ".6", "--out", f"{out}.json"]
            yield f"report, {size}", ["report", file, "--out", out]
    if "clusters" in rows:
        for checkpoints in (30, 500):
            run = str(by_cluster(folder / f"clusters-{checkpoints}", checkpoints, 4096))
            size = f"{checkpoints} x 4,096 x {CLUSTERS} clusters"
            yield f"forecast, {size}", ["forecast", run, "--cutoff", ".6", "--out", f"{out}.json"]
            yield f"report, {size}", ["report", run, "--out", out]
    if "siblings" in rows:
        run = str(plain(folder / "run.npz", 60, 64, seen=0.4))
        others = [str(plain(folder / f"sibling-{k}.npz", 60, 64, seed=k + 1)) for k in range(max(SIBLINGS))]
        for count in SIBLINGS:
            more = ["--siblings", *others[:count]] if count else []
            yield f"forecast, {count} siblings", ["forecast", run, "--out", f"{out}.json", *more]


def measured(arguments: list[str], timeout: float) -> tuple[float, float, float, str]:
    """Seconds, those of the processor, peak resident memory in GB, and how the command ended."""
    command = [sys.executable, "-c", "import sys; from tsl_jax.cli import main; sys.exit(main())", *arguments]
    start, words = time.perf_counter(), ""
    with tempfile.TemporaryFile("w+") as log, tempfile.TemporaryDirectory() as programs:
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": programs}
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        while not pid:
            if time.perf_counter() - start > timeout:
                words = "stopped: time"
                process.kill()
            time.sleep(0.05)
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        process.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        lines = [line for line in log.read().splitlines() if line.strip()] or [""]
    words = words or ("ok" if process.returncode == 0 else f"exit {process.returncode}: {lines[-1][:80]}")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20, words


def main() -> None:
    """Measure, and print a line a row as it ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds after which a command is stopped")
    parser.add_argument("--keep", type=Path, help="folder of the surfaces, which are made once")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        print("| command, checkpoints x positions | seconds | of processor | peak GB | |\n|---|---|---|---|---|")
        for name, arguments in cases(folder, tuple(options.rows)):
            seconds, processor, peak, words = measured(arguments, options.timeout)
            print(f"| {name} | {seconds:.1f} | {processor:.1f} | {peak:.2f} | {words} |", flush=True)


if __name__ == "__main__":
    main()
