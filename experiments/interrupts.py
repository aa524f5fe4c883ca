"""Runs that are interrupted while they start and compile: every one must end with its sentence and its exit code.

    python -m experiments.interrupts --runs 60 --within 6

Every run is `tsl train` on a few tokens, with nothing compiled before; SIGINT comes after a time at random. Counted are
exit codes: 130, 0 where the run had ended before, -2 where the signal came while Python itself began or ended, and any
other, a crash, whose last lines are printed. Exits with 1 where there is a crash.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

from experiments.soak import write_text
from tsl_jax.processes import environment, python

ENDS = (0, 130, -signal.SIGINT)
LAST = 1000  # characters of what a crashed run wrote


def interrupted(out: Path, text: tuple[str, ...], seconds: float) -> tuple[int, str]:
    """The exit code of a run that is interrupted after some seconds, and what it wrote."""
    shutil.rmtree(out, ignore_errors=True)
    few = ["--tokens", "20000", "--evaluations", "2", "--model.preset", "demo", "--context", "64"]
    windows = ["--evaluation.id-offsets", "2", "--evaluation.ood-offsets", "2", "--data.vocabulary", "300"]
    command = [*python("-m"), "tsl_jax.cli", "train", "--out", str(out), "--text", *text, *few, *windows]
    settings = {"PYTHONFAULTHANDLER": "1", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    run = subprocess.Popen(
        command, env=environment() | settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    time.sleep(seconds)
    run.send_signal(signal.SIGINT)
    written, _ = run.communicate(timeout=300)
    return run.returncode, written


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--within", type=float, default=6.0, help="seconds until the signal, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/interrupts"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    text, rng, codes = write_text(options.out.absolute()), random.Random(options.seed), Counter[int]()
    for k in range(options.runs):
        seconds = rng.uniform(1.0, options.within)
        code, written = interrupted(options.out / "run", text, seconds)
        codes[code] += 1
        if code not in ENDS:
            print(f"run {k}, after {seconds:.2f} s, exit code {code}:\n{written[-LAST:]}", flush=True)
    print(", ".join(f"{count} x {code}" for code, count in sorted(codes.items())), f"on {os.cpu_count()} cores")
    raise SystemExit(any(code not in ENDS for code in codes))


if __name__ == "__main__":
    main()
