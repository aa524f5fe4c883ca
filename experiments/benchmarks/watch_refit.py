"""How long does `tsl watch` take for a new checkpoint, once its programs are compiled? With a plan, with one to
recognise in the recorded rates, without rates, and with a plan beside eight finished runs.

    python -m experiments.benchmarks.watch_refit [--before CHECKOUT]

A synthetic cosine run of 120 checkpoints is looked at anew with each of the last LOOKS of them. Milliseconds of the
clock, and of the processor in brackets: where other work shares the cores the first are longer, the second hardly are.
With --before another checkout of this repository is timed in turn with this one, ROUNDS times each, and the ratios of
the medians printed: times of one machine at one time compare, others do not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

LOOKS, ROUNDS, END = 12, 2, 24_000
FEW_LOOKS, REFERENCE_RUNS = 2, 8  # beside reference runs, each of which is forecast by the others too
HERE = Path(__file__).parents[2]


def timed() -> dict[str, list[tuple[float, float]]]:
    """Seconds of each look, of the clock and of the processor, by what is known of the rate."""
    import tsl_jax as tsl
    from tsl_jax.forecasting.watching import outlook

    def simulated(share: float, end: int, seed: int) -> Any:
        """A run of `end` steps under a cosine, up to a share of them, its plan not stored."""
        steps = np.linspace(end / 240, share * end, int(240 * share)).round().astype(int)
        rate = 3e-5 + 2.7e-4 * (1 + np.cos(np.pi * steps / end)) / 2
        loss = 2.8 + 12 * steps**-0.4 + 0.004 * np.random.default_rng(seed).standard_normal(len(steps))
        return tsl.from_losses(loss[None, :, None], tokens=steps).assign_coords(lr=("tokens", rate))

    run = simulated(0.5, END, 0)
    plan = {"kind": "cosine", "peak": 3e-4, "warmup_tokens": 1, "total_tokens": END, "final_ratio": 0.1}
    finished = [simulated(1.0, END * (4 + k) // 16, 1 + k) for k in range(REFERENCE_RUNS)]
    cases: tuple[tuple[str, Any, Any, Any, int], ...] = (
        ("plan", run, plan, (), LOOKS),
        ("recognised", run, None, (), LOOKS),
        ("none", run.drop_vars("lr"), None, (), LOOKS),
        ("reference_runs", run, plan, finished, FEW_LOOKS),
    )
    seconds: dict[str, list[tuple[float, float]]] = {}
    for name, past, schedule, reference_runs, looks in cases:
        count = past.sizes["tokens"]
        for rows in range(count - looks - 2, count + 1):
            start, processor = time.perf_counter(), time.process_time()
            outlook(past.isel(tokens=slice(0, rows)), "", END, 3.0, schedule, reference_runs)
            spent = time.perf_counter() - start, time.process_time() - processor
            seconds.setdefault(name, []).append(spent)
        seconds[name] = seconds[name][-looks:]  # the first ones compile
    return seconds


def main() -> None:
    """Print the median milliseconds of a look, of the clock and (of the processor), and the ratios to a checkout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="another checkout of this repository")
    parser.add_argument("--alone", action="store_true", help="print the seconds as JSON, without another process")
    options = parser.parse_args()
    if options.alone:
        return print(json.dumps(timed()))
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for _ in range(ROUNDS):
        for name, folder in (("before", options.before), ("now", HERE)):
            if folder is None:
                continue
            environment = {**os.environ, "PYTHONPATH": str(folder.resolve())}
            command = [sys.executable, str(Path(__file__).resolve()), "--alone"]
            made = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=True)
            for kind, seconds in json.loads(made.stdout.splitlines()[-1]).items():
                found.setdefault(kind, {}).setdefault(name, []).extend(seconds)
    for kind, by_checkout in found.items():
        medians = {name: np.median(seconds, axis=0) for name, seconds in by_checkout.items()}
        line = ", ".join(f"{name} {1e3 * clock:.0f} ({1e3 * own:.0f}) ms" for name, (clock, own) in medians.items())
        if "before" in medians:
            clock, own = medians["before"] / medians["now"]
            line += f", {clock:.1f} ({own:.1f}) times as fast"
        print(f"{kind}: {line}")


if __name__ == "__main__":
    main()
