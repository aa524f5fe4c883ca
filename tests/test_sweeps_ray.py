"""A sweep over an embedded Ray: shared out, interrupted and gone on with, what fails is tried again and reported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from training_material import small_run, write_words

from tsl_jax.sweeps import Pool, read_sweep
from tsl_jax.training.config import to_dict

pytest.importorskip("ray", reason="Ray is an extra: pip install 'tsl_jax[ray]'")


def write_sweep(home: Path) -> Path:
    """Two runs that work, and one whose loss is not finite."""
    config = small_run(write_words(home / "text"), steps=400)
    (home / "base.yaml").write_text(yaml.safe_dump(to_dict(replace(config, seed=7))))
    file = home / "sweep.yaml"
    file.write_text(
        "- {name: 'run-{seed}', base: base.yaml, grid: {seed: [0, 1]}}\n"
        "- {name: broken, base: base.yaml, set: {optimizer.peak_lr: 1.0e+30}}\n"
    )
    return file


def start(home: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tsl_jax.cli", "sweep", "sweep.yaml", "--out", "out", "--ray", "local"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "HOME": str(home)}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, "--per-run", "CPU=1"], cwd=home, env=environment, **streams)


def test_a_sweep_over_ray_is_interrupted_goes_on_and_reports_what_failed(tmp_path: Path) -> None:
    file = write_sweep(tmp_path)
    runs, pool = read_sweep(file), Pool(tmp_path / "out", tmp_path / "out" / "runs")
    first = start(tmp_path)
    metrics = pool.runs / "run-0" / "metrics.jsonl"
    while first.poll() is None and not metrics.exists():
        time.sleep(0.1)
    first.send_signal(signal.SIGINT)
    said = first.communicate()[1]
    assert first.returncode == 130, said
    assert pool.states(runs)["run-0"] == "begun"
    assert list((pool.runs / "run-0" / "checkpoints").iterdir())

    second = start(tmp_path)
    said = second.communicate()
    assert second.returncode == 2, said
    assert pool.states(runs) == {"run-0": "kept", "run-1": "kept", "broken": "begun"}
    assert "Lower peak_lr, or raise warmup or clip" in said[1]
    assert "it is tried again after the others" in said[1]
    assert "runs failed 2 times, see above" in said[1]
