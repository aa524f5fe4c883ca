"""A sweep over an embedded Ray: a failed run is tried again and reported, and Ctrl-C stops runs at a checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from tsl_jax.curve_tables import RayExecutor
from tsl_jax.processes import environment, python
from tsl_jax.sweeps import distribute
from tsl_jax.training.config import TrainConfig

if not find_spec("ray"):  # not imported yet: where it listens is decided before
    pytest.skip("Ray is an extra: pip install 'tsl_jax[ray]'", allow_module_level=True)
RUNS = {f"run-{k}": replace(TrainConfig(), seed=k) for k in range(3)}
RUN = """
import sys, time
from tsl_jax.processes import interruptible
with interruptible():
    try:
        open(sys.argv[1], "w").write("begun")
        time.sleep(100)
    except KeyboardInterrupt:
        time.sleep(3)
        open(sys.argv[1], "w").write("checkpoint")
        sys.exit(130)
"""


@dataclass
class Simulated:
    """A pool whose runs fail, or wait to be stopped; they leave files of what happened."""

    folder: Path
    long: bool = False

    def states(self, runs):
        return dict.fromkeys(runs, "to do")

    def make(self, name, config, deadline=None):
        if self.long:
            process = subprocess.Popen(
                [*python("-c"), RUN, str(self.folder / name)], process_group=0, env=environment()
            )
            try:
                while process.poll() is None:
                    time.sleep(0.1)
            except KeyboardInterrupt:
                distribute._interrupt(process)
                raise
            return True
        attempts = self.folder / name
        attempts.write_text(f"{attempts.read_text() if attempts.exists() else ''}{os.environ['NPROC']}")
        if name == "run-2" or (name == "run-1" and attempts.read_text() == "1"):
            raise ValueError(f"{name}: its worker was lost")
        return True


def test_runs_over_ray_are_tried_again_reported_and_stopped_at_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # where Ray keeps its token
    seen = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own
        with RayExecutor() as executor:
            import ray

            ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
            assert ray.get_runtime_context().gcs_address.startswith("127.0.0.1:")
            with pytest.raises(ValueError, match=r"asked for 1000 CPU for a call, the cluster has \d+; ask for less"):
                executor.share_out({"CPU": 1000})
            executor.share_out({"CPU": 1})
            failed = r"^run-2: its worker was lost\nsweep: 1 of 3 runs failed 2 times"
            with pytest.raises(ValueError, match=failed):
                distribute.make_all(Simulated(tmp_path), RUNS, executor, watch=seen.__setitem__, retries=1)
            assert seen == {"run-0": True, "run-1": True}
            assert [(tmp_path / name).read_text() for name in RUNS] == ["1", "11", "11"]

            begun = tmp_path / "begun"
            begun.mkdir()

            def press() -> None:
                while not list(begun.iterdir()):
                    time.sleep(0.1)
                time.sleep(0.5)
                os.kill(os.getpid(), signal.SIGINT)

            threading.Thread(target=press).start()
            with pytest.raises(KeyboardInterrupt):
                distribute.make_all(Simulated(begun, long=True), RUNS, executor)
            states = {path.read_text() for path in begun.iterdir()}
            assert states == {"checkpoint"}
    assert not ray.is_initialized()
