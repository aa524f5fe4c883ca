"""Training steps on a CPU beside what pip installs, in one run: tokens/s, and the share of the cores' GEMM peak.

    python experiments/benchmarks/train_throughput.py [--cores 1,2] [--rows ours,nanodo] [--python VENV/bin/python]

Shape S: d 128, 4 layers, 4 heads, SwiGLU 344 (GELU 512 where the peer has one: the same FLOPs), vocabulary 4,096,
context 256, batch 16, tied embeddings, AdamW with clipping. Every row is a fresh interpreter; its figure is the median
over blocks of steps, its first step is apart. `to first step` counts from the start of the process, imports and
compilation included; for tsl_jax with an empty and with a filled cache of compiled programs. Every row gets the
allocator that `tsl` gives itself, peers too, which come without it; --no-tune leaves it alone for all. The PyTorch rows
want an interpreter that has torch and transformers (they are no dependency of the project). `share` divides model
FLOPs by the best float32 product in the same run, causal attention counted as half a square, and as a whole one in
brackets, as many papers count it. Run it on an idle machine; ratios travel, seconds do not.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tsl_jax.cli import TUNABLES
from tsl_jax.models.config import ModelConfig, resolve
from tsl_jax.models.cost import flops_per_token

PEERS = Path(__file__).parent / "peers"
SHAPES = {
    "S": {"d": 128, "layers": 4, "heads": 4, "ff": 344, "vocabulary": 4096, "context": 256, "batch": 16},
    "tiny": {"d": 32, "layers": 1, "heads": 2, "ff": 88, "vocabulary": 64, "context": 16, "batch": 2},
}
TORCH = ("eager float32", "compile float32", "eager bfloat16", "compile bfloat16")
ROWS = {  # name: (script, variant, what its interpreter needs)
    "ours": ("ours.py", "float32", "tsl_jax"),
    "ours bfloat16": ("ours.py", "bfloat16", "tsl_jax"),
    "nanodo-like": ("nanodo_like.py", "float32", "tsl_jax"),
    **{f"nanogpt-like {variant}": ("nanogpt_like.py", variant, "torch") for variant in TORCH},
    **{f"llama (transformers) {variant}": ("torch_llama.py", variant, "torch transformers") for variant in TORCH},
}


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", default=str(len(os.sched_getaffinity(0))), help="one table for each, such as 1,2")
    parser.add_argument("--rows", default="", help="only rows that begin so, such as ours,nanogpt (default: all)")
    parser.add_argument("--steps", type=int, default=8, help="steps of a block")
    parser.add_argument("--blocks", type=int, default=7)
    parser.add_argument("--shape", choices=SHAPES, default="S")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the PyTorch rows")
    parser.add_argument("--no-tune", action="store_true", help="leave glibc's allocator as it is")
    return parser.parse_args()


def main() -> None:
    given = options()
    wanted = [r for r in ROWS if r.startswith(tuple(given.rows.split(",")) if given.rows else "")]
    if not wanted:
        sys.exit(f"train_throughput: no row begins with {given.rows!r}; choose among {', '.join(ROWS)}")
    speeds_by_cores = {}
    for cores in (int(count) for count in given.cores.split(",")):
        print(f"\nshape {given.shape}, {cores} cores, allocator {'default' if given.no_tune else 'tuned'}\n")
        print("| | tokens/s | ms a step | share of the GEMM peak | to first step, s |\n|---|---|---|---|---|")
        speeds_by_cores[cores] = table(given, cores, wanted)
    ratios(speeds_by_cores)


def table(given: argparse.Namespace, cores: int, wanted: list[str]) -> dict[str, float]:
    """Print the rows of one number of cores; their tokens/s."""
    shape = SHAPES[given.shape]
    peak = child(given, cores, "gemm.py", "", sys.executable)
    top = max(peak["blas"], peak["xla"])
    gflops = [f"{peak[name] / 1e9:,.0f} GFLOP/s by {name}" for name in ("blas", "xla")]
    print(f"| limit: float32 matrix product, {', '.join(gflops)} | {top / flops(shape):,.0f} | | 1.00 | |", flush=True)
    speeds = {}
    for name in wanted:
        script, variant, needs = ROWS[name]
        python = given.python if "torch" in needs else sys.executable
        if missing := lacks(python, needs):
            print(f"| {name} | not installed: pip install {missing} (--python PATH) | | | |", flush=True)
            continue
        with tempfile.TemporaryDirectory() as programs:
            runs = [child(given, cores, script, variant, python, programs) for _ in range(1 + (script == "ours.py"))]
        last = runs[-1]
        speeds[name] = shape["batch"] * shape["context"] / last["seconds"]
        causal, whole = (speeds[name] * flops(shape, whole=w) / top for w in (False, True))
        first = ", ".join(f"{run['to_first_step']:.1f}" for run in runs) + (" (cold, warm)" if len(runs) > 1 else "")
        ms = f"{1e3 * last['seconds']:,.1f} (best {1e3 * last['best']:,.1f})"
        print(f"| {name} | {speeds[name]:,.0f} | {ms} | {causal:.2f} ({whole:.2f}) | {first} |", flush=True)
    return speeds


def flops(shape: dict[str, int], *, whole: bool = False) -> float:
    """Training FLOPs a token; `whole` counts masked attention as if it were computed."""
    config = ModelConfig(
        vocabulary=shape["vocabulary"],
        context=shape["context"],
        d_model=shape["d"],
        n_layers=shape["layers"],
        n_heads=shape["heads"],
        d_ff=shape["ff"],
    )
    masked = 6 * shape["layers"] * shape["d"] * (shape["context"] - 1)
    return flops_per_token(resolve(config)) + (masked if whole else 0)


def lacks(python: str, needs: str) -> str:
    """The packages an interpreter does not have."""
    code = "import importlib.util as u, sys; print(*[n for n in sys.argv[1:] if u.find_spec(n) is None])"
    return subprocess.run(
        [python, "-c", code, *needs.split()], capture_output=True, text=True, check=True
    ).stdout.strip()


def child(
    given: argparse.Namespace, cores: int, script: str, variant: str, python: str, programs: str = ""
) -> dict[str, Any]:
    """What one row's own process measured."""
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(cores))
    environment |= threads | ({} if given.no_tune else {"GLIBC_TUNABLES": TUNABLES})
    if programs:  # as `tsl` sets them
        environment |= {"JAX_COMPILATION_CACHE_DIR": programs, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3"}
    values = {**SHAPES[given.shape], "steps": given.steps, "blocks": given.blocks, "cores": cores, "variant": variant}
    allowed = sorted(os.sched_getaffinity(0))
    if cores > len(allowed):
        sys.exit(f"train_throughput: --cores {cores}, but this process may use {len(allowed)}")
    done = subprocess.run(
        [python, str(PEERS / script), json.dumps({**values, "start": time.time()})],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, allowed[:cores]),
    )
    return json.loads(done.stdout.splitlines()[-1])


def ratios(speeds_by_cores: dict[int, dict[str, float]]) -> None:
    """Ours over each peer, and many cores over few."""
    print()
    for cores, speeds in speeds_by_cores.items():
        for name, speed in speeds.items():
            if "ours" in speeds and name != "ours":
                print(f"{cores} cores: ours / {name}: {speeds['ours'] / speed:.2f}")
    with_ours = [cores for cores in speeds_by_cores if "ours" in speeds_by_cores[cores]]
    for few, many in itertools.pairwise(with_ours):
        print(f"ours, {many} cores / {few}: {speeds_by_cores[many]['ours'] / speeds_by_cores[few]['ours']:.2f}")


if __name__ == "__main__":
    main()
