"""One run in several processes on loopback: the losses of one process, one writer, and all end when one does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import yaml
from training_material import small_run, write_words

from tsl_jax import surface
from tsl_jax.training.config import MeshConfig, to_dict
from tsl_jax.training.position_weights.weights import PositionWeights
from tsl_jax.training.reevaluation import reevaluate

STEPS, STOPPED, KILLED = 16, 6, 12
FLOAT32 = 1e-5  # losses of some steps, summed over devices in another order


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@dataclass
class Ended:
    """How the processes of a group ended."""

    codes: list[int]
    said: list[str]


def run_group(
    arguments: list[str], places: list[list[str]], environments: list[Mapping[str, str]], actor: int, act: str
) -> Ended:
    """One process a place; `actor` does what `act` says, at the step in the arguments, the others nothing."""
    flags = "--xla_backend_optimization_level=0 " + os.environ.get("XLA_FLAGS", "")
    programs = {"JAX_COMPILATION_CACHE_DIR": str(Path(arguments[0]).parent / "programs")}
    programs["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    base = {**os.environ, **programs, "JAX_PLATFORMS": "cpu"}
    script = str(Path(__file__).parent / "several_processes.py")
    processes = [
        subprocess.Popen(
            [sys.executable, script, *arguments, act if i == actor else "none", *place],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**base, **environment, "XLA_FLAGS": f"{flags} {environment.get('XLA_FLAGS', '')}"},
        )
        for i, (place, environment) in enumerate(zip(places, environments, strict=True))
    ]
    said = [process.communicate(timeout=300)[1] for process in processes]
    return Ended([process.returncode for process in processes], said)


def slurm(processes: int) -> list[Mapping[str, str]]:
    """What `srun` tells each of its tasks on this machine, as far as jax reads it."""
    job = {"SLURM_JOB_ID": str(free_port()), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": str(processes)}
    return [{**job, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(processes)]


def open_mpi(processes: int) -> list[Mapping[str, str]]:
    """What `mpirun` tells each of its processes."""
    job = {"OMPI_MCA_orte_hnp_uri": f"{free_port() * 2**12}.0;tcp://127.0.0.1:34911"}
    job |= {"OMPI_COMM_WORLD_SIZE": str(processes)}
    ranks = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")
    return [{**job, **dict.fromkeys(ranks, str(i))} for i in range(processes)]


@dataclass
class Runs:
    """One run in one process, and the same in 2, then 4, then 2 processes."""

    one: Path
    several: Path
    stopped: Ended
    stopped_lines: int
    killed: Ended
    finished: Ended


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    home = tmp_path_factory.mktemp("hosts")
    config = replace(
        small_run(write_words(home / "text"), steps=STEPS, evaluations=6),
        batch_size=8,
        tokens=STEPS * 128,
        mesh=MeshConfig(fsdp=2),
        position_weights=PositionWeights("inverse_loss"),
        weight_updates=3,
    )

    def command(fsdp: int, out: str, how: str, step: int) -> list[str]:
        file = home / f"fsdp{fsdp}.yaml"
        file.write_text(yaml.safe_dump(to_dict(replace(config, mesh=MeshConfig(fsdp=fsdp)))))
        return [str(file), str(home / out), how, str(step)]

    two_devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    coordinator = f"127.0.0.1:{free_port()}"
    alone = run_group(command(2, "one", "anew", 0), [[coordinator, "1", "0"]], [two_devices], 0, "none")
    assert alone.codes == [0], alone.said
    coordinator = f"127.0.0.1:{free_port()}"
    places = [[coordinator, "2", str(i)] for i in range(2)]
    stopped = run_group(command(2, "several", "anew", STOPPED), places, [{}, {}], 1, "interrupt")
    lines = len(lines_of(home / "several"))
    killed = run_group(command(4, "several", "resume", KILLED), [[]] * 4, open_mpi(4), 2, "kill")
    finished = run_group(command(2, "several", "resume", 0), [[]] * 2, slurm(2), 0, "none")
    return Runs(home / "one", home / "several", stopped, lines, killed, finished)


def test_losses_and_evaluation_sums_of_two_processes_are_those_of_one_to_the_bit(runs: Runs) -> None:
    assert runs.stopped.codes == [130, 130], runs.stopped.said
    steps = [lines_of(run) for run in (runs.one, runs.several)]
    facts = [[(line["step"], line["loss"], line["grad_norm"]) for line in lines[:STOPPED]] for lines in steps]
    assert facts[0] == facts[1]
    one, several = (surface.load_surface(run) for run in (runs.one, runs.several))
    before = {"tokens": slice(None, STOPPED * 128)}
    assert one.sel(before).sizes["tokens"] >= 2
    for name in ("loss_sum", "loss_sum_squares", "cluster_sum"):
        xr.testing.assert_equal(one[name].sel(before), several[name].sel(before))


def test_a_signal_to_one_process_stops_all_at_the_same_step(runs: Runs) -> None:
    assert runs.stopped.codes == [130, 130]
    assert runs.stopped_lines == STOPPED


def test_a_process_that_dies_ends_the_others_with_a_sentence(runs: Runs) -> None:
    assert [code for i, code in enumerate(runs.killed.codes) if i != 2] == [1, 1, 1], runs.killed.said
    assert runs.killed.codes[2] == -9
    for i in (0, 1, 3):
        last = runs.killed.said[i].strip().splitlines()[-1]
        assert "gone" in last or "no sign of life" in last
        assert "with --resume goes on" in last


def test_a_run_goes_on_in_another_number_of_processes_and_another_mesh(runs: Runs) -> None:
    assert runs.finished.codes == [0, 0], runs.finished.said
    steps = [lines_of(run) for run in (runs.one, runs.several)]
    assert [line["step"] for line in steps[1]] == list(range(1, STEPS + 1))
    losses = [[line["loss"] for line in lines] for lines in steps]
    np.testing.assert_allclose(*losses, rtol=0, atol=FLOAT32)
    one, several = (surface.load_surface(run).loss for run in (runs.one, runs.several))
    np.testing.assert_allclose(one, several, rtol=0, atol=FLOAT32)
    record = json.loads((runs.several / "record.json").read_text())
    assert record["complete"]
    meshes = [e["environment"]["mesh"]["fsdp"] for e in record["later_environments"]]
    assert (record["environment"]["mesh"]["fsdp"], meshes) == (2, [4, 2])


def test_one_process_reads_the_checkpoint_of_several(runs: Runs, tmp_path: Path) -> None:
    reevaluate(runs.several, tmp_path / "again", devices=MeshConfig(1, 1, 1), progress=lambda *_: None)
    again, several = (surface.load_surface(path).loss.isel(tokens=-1) for path in (tmp_path / "again", runs.several))
    np.testing.assert_allclose(again, several, rtol=0, atol=FLOAT32)
