"""One of several processes of a run, started by `test_training_hosts`, which may end itself at a given step.

python several_processes.py CONFIG.yaml OUT resume|anew STEP none|interrupt|kill|fail [COORDINATOR PROCESSES INDEX]
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import yaml
from training_material import at, interrupt_me

from tsl_jax.training import hosts
from tsl_jax.training.config import TrainConfig, from_dict
from tsl_jax.training.loop import train


def fail() -> None:
    raise ValueError("training: made to fail")


ACTS = {
    "none": lambda: None,
    "interrupt": interrupt_me,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "fail": fail,
}


def run(command: tuple[str, ...]) -> None:
    config, out, resume, step, act, *place = command
    with hosts.joined(*place[:1], *map(int, place[1:])):
        values = yaml.safe_load(Path(config).read_text())
        acting = at("train", int(step), ACTS[act])
        train(from_dict(TrainConfig, values), out, resume=resume == "resume", progress=acting)


if __name__ == "__main__":
    # as `tsl train` ends: one sentence and an exit code
    try:
        run(tuple(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, OSError) as error:
        print(f"tsl: {error}", file=sys.stderr)
        sys.exit(2)
