"""docs/cluster.md: its commands are commands of this version, its numbers those of the formulas."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from tsl_jax.commands import options
from tsl_jax.commands.sweep import SweepCommand, parse_shares
from tsl_jax.commands.train import TrainCommand
from tsl_jax.models.config import ModelConfig, resolve
from tsl_jax.models.cost import flops_per_token
from tsl_jax.training.checks import validate_config
from tsl_jax.training.config import TrainConfig, from_dict
from tsl_jax.training.mesh import shape
from tsl_jax.training.resources import PEAKS

TEXT = (Path(__file__).parents[1] / "docs" / "cluster.md").read_text()
BLOCKS = re.findall(r"```(bash|yaml)\n(.*?)```", TEXT, re.DOTALL)
SCRIPTS = [block for kind, block in BLOCKS if kind == "bash"]
(CONFIG,) = [yaml.safe_load(block) for kind, block in BLOCKS if kind == "yaml"]
TRAIN = re.findall(r"tsl train ([^\"\n&]*)", "\n".join(SCRIPTS))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.splitlines()[0])
def test_scripts_are_bash(script: str) -> None:
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("line", TRAIN)
def test_commands_to_train_are_ours(line: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    line = line.replace("/shared/llama-468m.yaml", str(tmp_path / "config.yaml")).replace("$resume", "")
    command = options.parse(TrainCommand, "train", shlex.split(line.replace("$i", "2").replace("$run", "/shared/run")))
    assert command.distributed
    assert command.train == from_dict(TrainConfig, CONFIG)
    if command.coordinator:
        assert (command.coordinator, command.processes, command.process_id) == ("node1:8476", 4, 2)


def test_the_configuration_fits_the_job() -> None:
    assert len(TRAIN) == 3
    config, (job,) = from_dict(TrainConfig, CONFIG), [script for script in SCRIPTS if "#SBATCH" in script]
    settings = dict(re.findall(r"#SBATCH --([\w-]+)=(\S+)", job))
    assert settings["ntasks-per-node"] == settings["gpus-per-node"]
    gpus = int(settings["nodes"]) * int(settings["ntasks-per-node"])
    data, fsdp, _ = shape(config.mesh, gpus)
    assert (gpus, data, fsdp) == (32, 4, 8)
    timeline = validate_config(config)
    assert [size % (data * fsdp) for size in (*timeline.batch_sizes, config.evaluation_batch)] == [0, 0]


def test_the_sweep_is_ours() -> None:
    (line,) = re.findall(r"tsl sweep (.*--ray.*)", "\n".join(SCRIPTS))
    command = options.parse(SweepCommand, "sweep", shlex.split(line))
    assert (command.ray, parse_shares(command.per_run), command.retries) == ("auto", {"GPU": 1, "CPU": 8}, 2)


def test_hours_are_those_of_the_formulas() -> None:
    rows = re.findall(r"^\| (\S+) \| (\S+) \| ([\d,]+) \| (\d+)(?:, fsdp \d+)? \| (\d+) \|$", TEXT, re.MULTILINE)
    assert len(rows) == 8
    for preset, flops, gpu_hours, gpus, hours in rows:
        cost = flops_per_token(resolve(ModelConfig(preset=preset), vocabulary=50_304, context=1024))
        expected = cost * 300e9 / (0.4 * PEAKS["NVIDIA H100 80GB HBM3"]) / 3600
        assert (flops, gpu_hours, hours) == (f"{cost:.2e}", f"{expected:,.0f}", f"{expected / int(gpus):.0f}"), preset
