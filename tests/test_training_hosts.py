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

from tsl_jax import cli, surface
from tsl_jax.training import hosts, mesh
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
    arguments: list[str], places: list[list[str]], environments: list[Mapping[str, str]], actor: int | None, act: str
) -> Ended:
    """One process a place; `actor`, or None for all, does what `act` says, at the step in the arguments."""
    flags = "--xla_backend_optimization_level=0 " + os.environ.get("XLA_FLAGS", "")
    programs = {"JAX_COMPILATION_CACHE_DIR": str(Path(arguments[0]).parent / "programs")}
    programs["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    base = {**os.environ, **programs, "JAX_PLATFORMS": "cpu"}
    script = str(Path(__file__).parent / "several_processes.py")
    processes = [
        subprocess.Popen(
            [sys.executable, script, *arguments, act if actor in (i, None) else "none", *place],
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_the_same_step(runs: Runs) -> None:
    assert runs.stopped.codes == [130, 130]
    assert runs.stopped_lines == STOPPED


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_with_a_sentence(runs: Runs) -> None:
    assert [code for i, code in enumerate(runs.killed.codes) if i != 2] == [1, 1, 1], runs.killed.said
    assert runs.killed.codes[2] == -9
    for i in (0, 1, 3):
        last = runs.killed.said[i].strip().splitlines()[-1]
        assert "gone" in last or "no sign of life" in last
        assert "with --resume goes on" in last


@pytest.mark.slow
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


@pytest.mark.slow
def test_processes_go_back_from_a_spike_together_as_one_does(tmp_path: Path) -> None:
    config = replace(
        small_run(write_words(tmp_path / "text"), steps=STEPS, evaluations=4),
        batch_size=8,
        tokens=STEPS * 128,
        mesh=MeshConfig(fsdp=2),
        spike_sigmas=20.0,
        on_nonfinite="rollback",
    )
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(to_dict(config)))
    for processes in (1, 2):
        coordinator = f"127.0.0.1:{free_port()}"
        places = [[coordinator, str(processes), str(i)] for i in range(processes)]
        devices = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={2 // processes}"}
        command = [str(tmp_path / "run.yaml"), str(tmp_path / f"by-{processes}"), "anew", str(KILLED)]
        ended = run_group(command, places, [devices] * processes, None, "spike")
        assert ended.codes == [0] * processes, ended.said
    one, two = (json.loads((tmp_path / f"by-{n}" / "record.json").read_text())["rollbacks"] for n in (1, 2))
    assert [rollback["failed_step"] for rollback in two] == [KILLED]
    assert [r["skipped_sequences"] for r in two] == [r["skipped_sequences"] for r in one]
    losses = [[line["loss"] for line in lines_of(tmp_path / f"by-{n}")] for n in (1, 2)]
    assert len(losses[0]) == STEPS
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_one_process_reads_the_checkpoint_of_several(runs: Runs, tmp_path: Path) -> None:
    reevaluate(runs.several, tmp_path / "again", devices=MeshConfig(1, 1, 1), progress=lambda *_: None)
    again, several = (surface.load_surface(path).loss.isel(tokens=-1) for path in (tmp_path / "again", runs.several))
    np.testing.assert_allclose(again, several, rtol=0, atol=FLOAT32)


# ---------------------------------------------------------------------------------- one process, the others simulated


class Store:
    """What jax's client gives: keys that all processes see."""

    def __init__(self, **values: str):
        self.values = {name.replace("__", "/"): value for name, value in values.items()}
        self.gone = False

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        if self.gone or (key in self.values and not allow_overwrite):
            raise RuntimeError("UNAVAILABLE" if self.gone else "ALREADY_EXISTS")
        self.values[key] = value

    def key_value_try_get(self, key: str) -> str:
        if key not in self.values:
            raise RuntimeError("NOT_FOUND: no such key")
        return self.values[key]

    def key_value_dir_get(self, folder: str) -> list[tuple[str, str]]:
        return [(key, value) for key, value in self.values.items() if key.startswith(folder)]

    def blocking_key_value_get(self, key: str, timeout: int) -> str:
        return self.values[key]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Beats of milliseconds; the exit codes of processes that end at once, and of those that leave jax behind."""
    codes: list[int] = []

    def leave(code: int) -> None:
        codes.append(code)
        raise SystemExit(code)

    for name, seconds in (("BEAT", 0.01), ("MISSED", 0.2), ("GRACE", 0.02)):
        monkeypatch.setattr(hosts, name, seconds)
    monkeypatch.setattr(hosts.os, "_exit", leave)
    monkeypatch.setattr(hosts.atexit, "register", lambda exit_at_once, code: codes.append(code))
    return codes


@pytest.mark.parametrize(
    ("index", "values", "sentence"),
    [
        (0, {"tsl__beat__1": "7"}, "process 1 has given no sign of life for 0 seconds: all processes of the run end"),
        (1, {"tsl__end": "process 0 ended: data: too little text"}, "process 0 ended: data: too little text: all"),
        (1, {"gone": ""}, "process 0, which all are connected to, is gone: all processes"),
    ],
)
def test_a_process_ends_with_the_reason_of_another(
    quick: list[int], capsys: pytest.CaptureFixture[str], index: int, values: dict[str, str], sentence: str
) -> None:
    group = hosts._Group(index, 2, Store(**values))
    group.client.gone = "gone" in values
    with pytest.raises(SystemExit):
        hosts._watch(group)
    assert quick == [1]
    assert sentence in capsys.readouterr().err
    assert group.client.values.get("tsl/beat/1") == hosts.GONE or index == 0 or group.client.gone


def test_an_error_of_one_process_is_the_reason_of_all(quick: list[int]) -> None:
    error = ValueError("training: the loss is not finite")
    first = hosts._Group(1, 2, Store())
    assert hosts._ended(first, error) is error
    assert first.client.values["tsl/end"] == "process 1 ended: training: the loss is not finite"
    same = hosts._ended(hosts._Group(1, 2, Store(tsl__end=f"process 0 ended: {error}")), error)
    assert isinstance(same, SystemExit)
    interrupted = hosts._ended(hosts._Group(1, 2, Store(tsl__end="process 0 was interrupted")), KeyboardInterrupt())
    assert isinstance(interrupted, SystemExit)
    lost = hosts._ended(
        hosts._Group(1, 2, Store()), ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer")
    )
    assert "another process is gone: all processes of the run end" in str(lost)
    assert quick == [2, 2, 130, 1]


def test_a_process_that_is_interrupted_while_it_compiles_tells_the_others(
    quick: list[int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hosts.leaving("advice") == "advice"
    store = Store()
    own, other = hosts._Group(1, 2, store), hosts._Group(0, 2, store)
    monkeypatch.setattr(hosts, "_group", own)
    assert hosts.leaving("advice") == "advice"
    hosts._watch(own)  # nothing else ends it: it does so by itself
    assert quick == []
    with pytest.raises(SystemExit):
        hosts._watch(other)
    assert "process 1 was interrupted: all processes of the run end" in capsys.readouterr().err


def test_processes_that_were_started_differently_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = json.dumps({"seed": 0, "tokens": 100})
    monkeypatch.setattr(hosts, "_group", hosts._Group(1, 2, Store(tsl__1=theirs, tsl__2=theirs)))
    hosts.check_same("the configuration", {"tokens": 100, "seed": 0})
    found = "the configuration of process 1 is {'seed': 1}, of process 0 {'seed': 0}; all processes need the same"
    with pytest.raises(ValueError, match=found):
        hosts.check_same("the configuration", {"tokens": 100, "seed": 1})
    with pytest.raises(ValueError, match="on 4 devices of 2 processes leaves some without work"):
        mesh.shape(MeshConfig(data=2), 4)


def test_options_of_several_processes_alone_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run_verb("train", ["--out", str(tmp_path / "run"), "--processes", "2"], debug=False) == 2
    assert "add --distributed, or leave them out" in capsys.readouterr().err
