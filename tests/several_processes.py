"""One of several processes of a run, started by `test_training_hosts`: it may end itself, or find a spike, at a step.

python several_processes.py CONFIG.yaml OUT resume|anew STEP none|interrupt|kill|fail|spike [COORDINATOR COUNT INDEX]
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from pathlib import Path

import yaml
from training_material import at, interrupt_me

from tsl_jax.training import bad_losses, hosts
from tsl_jax.training.bad_losses import LossRule
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


def plant_a_spike(step: int) -> None:
    """The loss of a step is judged 5 nats higher than it is, the first time it is made; the other steps are as ever."""
    judged, problem, bad_losses.RECENT = itertools.count(1), LossRule.problem, 4

    def spiked(rule: LossRule, loss: float, grad_norm: float) -> str:
        return problem(rule, loss + 5.0 * (next(judged) == step), grad_norm)

    LossRule.problem = spiked


def run(command: tuple[str, ...]) -> None:
    config, out, resume, step, act, *place = command
    with hosts.joined(*place[:1], *map(int, place[1:])):
        values = yaml.safe_load(Path(config).read_text())
        if act == "spike":
            plant_a_spike(int(step))
        acting = at("train", int(step), ACTS.get(act, ACTS["none"]))
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
