"""Runs killed at random and continued, compared with the uninterrupted run bit for bit.

    python -m experiments.soak --kills 200 --out runs/soak

Every run has an architecture at random and is killed up to `KILLS` times, each time at a moment and a place at random:
inside the save of a checkpoint, before or after a rename or an fsync, inside the append to the surface, or anywhere.
A process trains until SIGKILL ends it there, the next one goes on; the last one makes the run to its end, which is
compared: every loss of metrics.jsonl, every array of the surface, every array of the last checkpoint. Some of these
processes have two virtual devices, over which they share the parameters; sums come in another order there, so such a
run is compared within `ROUNDING`, the others bit for bit. A place that a process never came to is no kill: `--kills`
counts those that happened. Exits with 1 where anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tsl_jax import surface
from tsl_jax.data.config import DataConfig, EvalConfig
from tsl_jax.models.config import SIZES, ModelConfig
from tsl_jax.processes import environment, python
from tsl_jax.training import run_dir
from tsl_jax.training.config import MeshConfig, TrainConfig, from_dict, to_dict
from tsl_jax.training.loop import train

MOMENTS = ("save", "rename", "fsync", "append", "any")
PLACES = {"save": 5, "rename": 40, "fsync": 80, "append": 5, "any": 40}  # how often a run passes there, about
DELAY = 0.05  # seconds within a moment that lasts
KILLS = 6  # of one run, at most
MOVED = 0.5  # share of the runs of which some processes have two devices
ROUNDING = 1e-3  # nats, of losses that were summed over two devices for some of 40 steps


def write_text(folder: Path) -> tuple[str, ...]:
    """Words that nobody wrote, in two domains, of which one is not trained on."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 6))) for _ in range(120)]
    for domain in ("tale", "list"):
        (folder / domain).mkdir(parents=True, exist_ok=True)
        for i in range(24):
            (folder / domain / f"{i}.txt").write_text(" ".join(rng.choices(words, k=300)))
    return f"tale={folder}/tale/*.txt@1", f"list={folder}/list/*.txt@0"


def configuration(text: tuple[str, ...], architecture: str) -> TrainConfig:
    """A run of seconds: 40 steps, 5 evaluations."""
    return TrainConfig(
        data=DataConfig(text=text, heldout=0.3, vocabulary=300),
        model=ModelConfig(preset="tiny", architecture=architecture, layers="scan"),
        evaluation=EvalConfig(id_stretches=4, id_offsets=5, ood_stretches=3, ood_offsets=4),
        tokens=2560,
        context=16,
        batch_size=4,
        evaluations=5,
        evaluation_batch=8,
    )


def train_until_killed(config: TrainConfig, out: Path, moment: str, place: int, later: float) -> None:
    """Train in this process, which ends at the moment's `place`-th time, `later` seconds into it; or at the end."""
    from tsl_jax import atomic_write
    from tsl_jax.training.checkpoint import Checkpoints

    left = [place]

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def dying(act: Callable[..., Any]) -> Callable[..., Any]:
        """The function, within which the process ends once its time has come."""

        def call(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                threading.Timer(later, die).start()
            return act(*arguments, **options)

        return call

    def progress(stage: str, done: int, total: int) -> None:
        left[0] -= moment == "any"
        if moment == "any" and left[0] == 0:
            threading.Timer(later, die).start()

    if moment == "save":
        Checkpoints.save = dying(Checkpoints.save)
    elif moment == "append":
        surface.append = dying(surface.append)
    elif moment == "rename":
        os.replace, os.rename = dying(os.replace), dying(os.rename)
    elif moment == "fsync":
        atomic_write.os.fsync = dying(os.fsync)
    train(config, out, resume=True, progress=progress)


def moved_differences(out: Path, whole: Path) -> list[str]:
    """What of a finished run, made on other devices in part, is not as in another but for rounding."""
    ours, theirs = (np.array([line["loss"] for line in _metrics(run)]) for run in (out, whole))
    found = [] if ours.shape == theirs.shape and np.abs(ours - theirs).max() < ROUNDING else [run_dir.METRICS]
    ours, theirs = (surface.load_surface(run) for run in (out, whole))
    same = ours.loss.shape == theirs.loss.shape and float(np.abs(ours.loss - theirs.loss).max()) < ROUNDING
    found += [] if same and ours.tokens.equals(theirs.tokens) else [run_dir.SURFACE]
    steps = [list(_arrays(run / run_dir.CHECKPOINTS)) for run in (out, whole)]
    return found + ([] if steps[0] == steps[1] else [run_dir.CHECKPOINTS]) + _left_behind(out)


def differences(out: Path, whole: Path) -> list[str]:
    """What of a finished run is not, bit for bit, as in another."""
    found = [] if _metrics(out) == _metrics(whole) else [run_dir.METRICS]
    ours, theirs = (surface.load_surface(run) for run in (out, whole))
    found += [] if ours.drop_attrs().identical(theirs.drop_attrs()) else [run_dir.SURFACE]
    for name in ("n_params", "config_hash", "schedule", "windows"):
        found += [] if ours.attrs[name] == theirs.attrs[name] else [name]
    checkpoints = [_arrays(run / run_dir.CHECKPOINTS) for run in (out, whole)]
    found += [] if checkpoints[0] == checkpoints[1] else [run_dir.CHECKPOINTS]
    return found + _left_behind(out)


def _metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of all steps but for their speed."""
    lines = map(json.loads, (run / run_dir.METRICS).read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "tokens_per_second"} for line in lines]


def _left_behind(out: Path) -> list[str]:
    left = [path.name for path in out.rglob("*tmp*")]
    return [f"left behind: {', '.join(left)}"] * bool(left)


def _arrays(folder: Path) -> dict[str, str]:
    """Step -> the SHA-256 of all arrays of each checkpoint."""
    facts = (json.loads(path.read_text()) for path in sorted(folder.glob("*/facts/metadata")))
    return {fact["step"]: fact["sha256"] for fact in facts}


def soak(
    folder: Path, kills: int, architectures: Iterable[str], seed: int, moments: Iterable[str] = MOMENTS
) -> list[str]:
    """Kill and compare; a sentence for each run in which anything was different."""
    rng, text, wholes, problems = random.Random(seed), write_text(folder / "text"), {}, []
    met, run = 0, 0
    while met < kills:
        run += 1
        architecture = rng.choice(list(architectures))
        config = configuration(text, architecture)
        if architecture not in wholes:
            wholes[architecture] = train(config, folder / f"whole-{architecture}", resume=True)
        out, done, begun, compare = folder / f"killed-{run}", [], time.monotonic(), differences
        moving = rng.random() < MOVED
        for _ in range(rng.randint(1, KILLS)):
            moment = rng.choice(list(moments))
            place, later = rng.randint(1, PLACES[moment]), rng.choice([0.0, DELAY * rng.random()])
            mesh, flags = config.mesh, os.environ.get("XLA_FLAGS", "")
            if moving and rng.random() < 0.5:
                mesh, flags = MeshConfig(data=1, fsdp=2), f"{flags} --xla_force_host_platform_device_count=2"
                compare = moved_differences
            request = json.dumps([to_dict(replace(config, mesh=mesh)), str(out), moment, place, later])
            child = [*python("-m"), "experiments.soak", "--child", request]
            child_environment = {**environment(), "XLA_FLAGS": flags}
            code = subprocess.run(child, env=child_environment, stderr=subprocess.DEVNULL).returncode
            where = f"{moment} {place}" + " on two devices" * (mesh != config.mesh)
            met += code == -signal.SIGKILL
            done.append(where if code == -signal.SIGKILL else f"{where} not met, code {code}")
            if code not in (0, -signal.SIGKILL):
                problems.append(f"run {run}: {architecture}, {done[-1]}")
            if code == 0:
                break
        with warnings.catch_warnings(action="ignore"):
            train(config, out, resume=True)
        found = compare(out, wholes[architecture])
        equal = "equal" if compare is differences else "equal but for rounding"
        print(f"{run}: {architecture}, {'; '.join(done)}: {', '.join(found) or equal}, "
              f"{time.monotonic() - begun:.0f} s, {met} of {kills} kills", flush=True)  # fmt: skip
        if found:
            problems.append(f"run {run}: {architecture}, {'; '.join(done)}: {', '.join(found)}; see {out}")
        else:
            shutil.rmtree(out)
    return problems


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("runs/soak"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--architectures", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        values, *rest = json.loads(options.child)
        config = from_dict(TrainConfig, values)
        train_until_killed(config, Path(rest[0]), *rest[1:])
        return
    # Programs are the same in all processes: what one has compiled the next one reads
    for name, value in (
        ("jax_compilation_cache_dir", str(options.out.absolute() / "compiled")),
        ("jax_persistent_cache_min_compile_time_secs", 0.05),
    ):
        os.environ[name.upper()] = str(value)
        jax.config.update(name, value)
    problems = soak(options.out, options.kills, options.architectures, options.seed)
    print("\n".join(problems) or f"{options.kills} kills: every run is the uninterrupted one")
    raise SystemExit(bool(problems))


if __name__ == "__main__":
    main()
