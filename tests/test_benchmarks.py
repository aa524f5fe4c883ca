"""The benchmark programs run, on sizes that say nothing about speed."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "experiments" / "benchmarks"


@pytest.mark.slow
def test_training_on_an_accelerator_runs_every_piece(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    importlib.import_module("gpu_train").main(["--piece", "smoke"])
    output = capsys.readouterr().out
    first, last = re.findall(r"fell from ([\d.]+) to ([\d.]+)", output)[0]
    assert float(last) < float(first)
    low = float(re.findall(r"\| bfloat16 \| (\S+)", output)[0])
    assert 0 < low < 0.05, "bfloat16 must differ from float32, and not much"
    for dtype, rows in zip(("bfloat16", "float32"), output.split("hidden states")[1:], strict=True):
        differences = [float(row.split("|")[-2]) for row in rows.splitlines() if row.startswith("| 64 |")]
        assert len(differences) == 2
        assert max(differences) < {"bfloat16": 1e-2, "float32": 1e-5}[dtype]


@pytest.mark.slow
def test_training_throughput_prints_our_row_and_says_which_peers_are_missing() -> None:
    arguments = ["--shape=tiny", "--cores=1", "--rows=ours,nanogpt", "--steps=1", "--blocks=1", "--no-tune"]
    command = [sys.executable, str(BENCHMARKS / "train_throughput.py"), *arguments]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.search(r"\| ours \| [\d,]+ \|.*\(cold, warm\) \|", output)
    assert output.count("not installed: pip install torch") == 4
