"""Bytes and rows per second of `tsl.read_log`, by format, with the memory it takes.

    python experiments/benchmarks/import_throughput.py [--megabytes 200] [--rows 10000000] [--only Megatron-LM,rows]
        [--before CHECKOUT --repeats 3]

Logs are simulated in the shapes of tests/importers_material.py with noise on each loss, seed 0, and each is read in a
process of its own, which has imported everything and read the first lines; with another checkout of this repository in
turns, which is what can be compared. Processor seconds are given beside those of the clock: where other
work shares the cores, only they say something, and they too are longer than on an idle machine.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
FORMATS = ("modded-nanogpt", "Megatron-LM", "torchtitan", "OLMo-core", "lingua")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200, help="of each log of text or JSON lines")
    parser.add_argument("--rows", type=int, default=10_000_000, help="of the table")
    parser.add_argument("--before", type=Path, help="a checkout of an earlier commit, read with in turns")
    parser.add_argument("--repeats", type=int, default=1, help="readings of each log")
    parser.add_argument("--only", default="", help="formats, parted by commas; rows is the table")
    parser.add_argument("--read", help="read one file and print a row (used by this script itself)")
    return parser.parse_args()


def write_log(name: str, file: Path, megabytes: int) -> None:
    """A log of a format, whose losses have noise."""
    sys.path.insert(0, str(ROOT / "tests"))
    import importers_material as material

    rng = np.random.default_rng(0)
    clean = material.loss
    material.loss = lambda step: round(clean(step) + 0.05 * float(rng.standard_normal()), 4)
    material.EVALS = frozenset(range(0, 100_000_000, 1000))
    with open(file, "w") as out:
        step = 0
        while out.tell() < megabytes << 20:
            out.write(material.FORMATS[name][1](tuple(range(step, step + 20_000))))
            step += 20_000


def write_table(file: Path, rows: int) -> None:
    """A CSV of step, tokens, loss and lr."""
    import pyarrow as pa
    import pyarrow.csv

    step = np.arange(1, rows + 1)
    loss = np.round(3 + 8 / (1 + step / 400) ** 0.3 + np.random.default_rng(0).normal(0, 0.05, rows), 4)
    table = pa.table({"step": step, "tokens": step * 1024, "loss": loss, "lr": np.full(rows, 3e-4)})
    pyarrow.csv.write_csv(table, file)


def read(file: Path) -> None:
    """One row of the table of results."""
    for name in ("pandas", "pyarrow.compute", "pyarrow.csv", "pyarrow.json", "xarray"):  # imports are not timed
        import_module(name)

    from tsl_jax.importers import read_log

    with tempfile.TemporaryDirectory() as folder:
        few = Path(folder) / file.name
        with open(file, "rb") as log:
            few.write_bytes(b"".join(log.readlines(1 << 12)))
        read_log(few)
    before, processor = time.perf_counter(), time.process_time()
    result = read_log(file)
    seconds, processor = time.perf_counter() - before, time.process_time() - processor
    megabytes = os.path.getsize(file) / 1e6
    checkpoints = sum(surface.sizes["tokens"] for surface in result.surfaces.values())
    tree = Path(sys.modules["tsl_jax"].__path__[0]).parent.name
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(
        f"| {file.stem} | {tree} | {megabytes:.0f} | {checkpoints:,} | {seconds:.1f} ({processor:.1f}) | "
        f"{megabytes / seconds:.0f} ({megabytes / processor:.0f}) | {peak:,.0f} | {len(result.warnings)} |",
        flush=True,
    )


def main() -> None:
    given = options()
    if given.read:
        return read(Path(given.read))
    print(f"load {os.getloadavg()[0]:.1f}, {len(os.sched_getaffinity(0))} cores")
    print(
        "| log | tree | MB | checkpoints | seconds (processor) | MB/s (of processor) | peak MB | warnings |\n"
        + "|---" * 8
        + "|"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name in given.only.split(",") if given.only else (*FORMATS, "rows"):
            file = Path(folder) / (
                f"{name}.csv" if name == "rows" else f"{name}.jsonl" if name == "lingua" else f"{name}.log"
            )
            if name == "rows":
                write_table(file, given.rows)
            else:
                write_log(name, file, given.megabytes)
            for tree in (given.before, ROOT) * given.repeats:
                if tree is not None:
                    script = [sys.executable, __file__, "--read", str(file)]
                    subprocess.run(script, check=True, env={**os.environ, "PYTHONPATH": str(tree)})
            file.unlink()
    return None


if __name__ == "__main__":
    main()
