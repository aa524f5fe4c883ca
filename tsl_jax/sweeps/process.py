"""One training run as a process of its own, `tsl train`: begun or gone on with, told to stop, and never twice at once.

The process is of a group of its own, so that a terminal's Ctrl-C reaches only the sweep, which passes it on: told once,
a run writes a checkpoint and ends, told twice it ends without one. It inherits the lock of its run: should the sweep be
killed, the run goes on alone, and until it ends no other sweep begins it a second time.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tsl_jax.training import run_dir
from tsl_jax.training.config import TrainConfig, to_dict

INTERRUPTED = (130, -signal.SIGINT)  # `tsl` after Ctrl-C; the second while it still loads
POLL = 0.2  # seconds between looks at a run under way
PATIENCE = 600  # seconds that a run may take to write its checkpoint once it is told to stop


@contextmanager
def lock(run: Path) -> Iterator[int | None]:
    """The lock of a run, a file descriptor; None while another process has it."""
    run.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(_beside(run, "lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        yield handle if _taken(handle) else None
    finally:
        os.close(handle)


def _taken(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def train(run: Path, config: TrainConfig, locked: int, stop: Callable[[], bool], *, bars: bool) -> bool:
    """Whether the run is complete; False where it was told to stop.

    Args:
        run: its folder. locked: its lock. stop: asked again and again whether to tell it so. bars: it may draw them.

    Raises:
        ValueError: where it failed; its own message stands on stderr. KeyboardInterrupt: after Ctrl-C, here or there.
    """
    process = _started(run, config, locked, bars)
    try:
        while process.poll() is None and not stop():
            time.sleep(POLL)
    except KeyboardInterrupt:
        _stopped(process)
        raise
    told = process.returncode is None
    code = _stopped(process) if told else process.returncode
    if told and code in (*INTERRUPTED, -signal.SIGKILL):
        return False
    if code in INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        raise ValueError(f"sweep: run {run.name} {_ended(code)}")
    return True


def _started(run: Path, config: TrainConfig, locked: int, bars: bool) -> subprocess.Popen[bytes]:
    """`tsl train`, from a file beside the run's folder."""
    import yaml

    told = _beside(run, "yaml")
    told.write_text(yaml.safe_dump(to_dict(config), sort_keys=False))
    resume = ["--resume"] if (run / run_dir.CONFIG).exists() else []
    command = [sys.executable, "-m", "tsl_jax.cli", "train", "--config", str(told), "--out", str(run), *resume]
    environment = dict(os.environ) if bars else {**os.environ, "TERM": "dumb"}  # no bars over those of another run
    return subprocess.Popen(command, process_group=0, pass_fds=(locked,), env=environment)


def _beside(run: Path, kind: str) -> Path:
    """A file of ours beside a run; no run's name begins with a dot."""
    return run.with_name(f".{run.name}.{kind}")


def _stopped(process: subprocess.Popen[bytes]) -> int:
    """The exit code of a run that is told to stop; one that does not is killed, and loses what no checkpoint has."""
    process.send_signal(signal.SIGINT)
    try:
        return process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
    except BaseException:  # a second Ctrl-C
        process.kill()
        process.wait()
        raise


def _ended(code: int) -> str:
    if code == -signal.SIGKILL:
        return "was killed, as a system does whose memory is full; the same command goes on"
    if code < 0:
        return f"was ended by signal {-code}; the same command goes on"
    return f"ended with exit code {code}; its message stands above"
