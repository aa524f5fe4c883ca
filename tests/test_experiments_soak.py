"""A run that is killed inside a save, a rename or an append and goes on is the uninterrupted one; more in the soak."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from experiments import soak
from tsl_jax.training import run_dir


@pytest.mark.slow
def test_killed_runs_are_continued_to_the_same_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert soak.soak(tmp_path, 1, ("llama",), seed=1, moments=("save", "rename")) == []
    assert capsys.readouterr().out.count("equal") == 1
    whole, other = tmp_path / "whole-llama", tmp_path / "other"
    shutil.copytree(whole, other)
    assert soak.differences(other, whole) == []
    lines = (other / run_dir.METRICS).read_text().splitlines()
    first = json.loads(lines[0])
    lines[0] = json.dumps({**first, "loss": first["loss"] + 1e-15})
    (other / run_dir.METRICS).write_text("\n".join(lines))
    (other / ".record.json.1.tmp").touch()
    assert soak.differences(other, whole) == [run_dir.METRICS, "left behind: .record.json.1.tmp"]
