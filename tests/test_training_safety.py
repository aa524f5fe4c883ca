"""What may go wrong around a run: two of them, signals, damage on disk, losses that are not finite."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_material import STEPS, at, interrupt_me, quiet, small_run, write_words

from tsl_jax import cli, processes, surface
from tsl_jax.data import corpora
from tsl_jax.training import bad_losses, loop, programs, run_dir, setup
from tsl_jax.training.checkpoint import Checkpoints
from tsl_jax.training.config import TrainConfig, config_hash
from tsl_jax.training.loop import train
from tsl_jax.training.reevaluation import reevaluate
from tsl_jax.training.timeline import resolve_timeline


@pytest.fixture(name="config", scope="module")
def _config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    return small_run(write_words(tmp_path_factory.mktemp("text")))


@pytest.fixture(name="begun", scope="module")
def _begun(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was interrupted after 16 of 40 steps; a second one beside it was refused."""
    out = tmp_path_factory.mktemp("begun") / "run"

    def second_one() -> None:
        for resume in (True, False):
            with pytest.raises(ValueError, match=r"is writing|holds an unfinished run"):
                train(config, out, resume=resume)
        interrupt_me()

    with pytest.raises(KeyboardInterrupt):
        train(config, out, progress=at("train", 16, second_one))
    return out


@pytest.fixture(name="whole", scope="module")
def _whole(config: TrainConfig, begun: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    shutil.copytree(begun, out)
    return train(config, out, resume=True)


@pytest.fixture(name="out")
def _out(begun: Path, tmp_path: Path) -> Path:
    return shutil.copytree(begun, tmp_path / "run")


def lines(out: Path) -> list[dict[str, Any]]:
    """The metrics but for the speed."""
    parsed = [json.loads(line) for line in (out / run_dir.METRICS).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "tokens_per_second"} for line in parsed]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*")
            if path.is_file() and path.name != ".lock"}  # fmt: skip


def test_the_second_of_two_runs_in_a_new_folder_is_refused(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its configuration: neither is made of parts of both."""
    monkeypatch.setenv("TSL_JAX_CACHE", str(tmp_path / "cache"))  # text that is prepared already is not read

    def second_one() -> None:
        with pytest.raises(ValueError, match=rf"process {os.getpid()} on .* is writing .*; wait until it ends"):
            train(replace(config, seed=1), tmp_path / "run")
        raise InterruptedError

    with pytest.raises(InterruptedError):
        train(config, tmp_path / "run", progress=at("read", 0, second_one))
    assert not (tmp_path / "run").exists()


def test_a_refused_resume_writes_nothing(config: TrainConfig, out: Path) -> None:
    with open(out / run_dir.METRICS, "a") as file:
        file.write("{not json}\n")
    before = content(out)
    with pytest.raises(ValueError, match=r"metrics.jsonl is damaged \(JSONDecodeError"):
        train(replace(config, keep=9), out, resume=True)
    assert content(out) == before


def test_metrics_that_were_lost_are_warned_of(config: TrainConfig, out: Path) -> None:
    for lose in ((out / run_dir.METRICS).unlink, lambda: (out / run_dir.METRICS).write_text("")):
        lose()
        with (
            pytest.warns(UserWarning, match="metrics.jsonl lacks 16 of the 16 steps that are done"),
            pytest.raises(KeyboardInterrupt),
        ):
            train(config, out, resume=True, progress=at("compile", 1, interrupt_me_later))


def interrupt_me_later() -> None:
    """Ctrl-C that a library swallows."""
    with contextlib.suppress(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_damaged_surface_file_ahead_of_the_checkpoint_is_measured_again(
    config: TrainConfig, whole: Path, begun: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(out / run_dir.CHECKPOINTS)
    shutil.copytree(begun / run_dir.CHECKPOINTS, out / run_dir.CHECKPOINTS)
    run_dir.write_record(out, {**run_dir.read_record(out), "complete": False})
    files = list(surface.checkpoints(out / "surface").values())
    for file in (files[0], files[-1]):
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="is damaged") as warned:
        train(config, out, resume=True)
    messages = [str(warning.message) for warning in warned]
    assert any(f"{files[0]} is damaged" in text and "nor measure it again" in text for text in messages)
    assert any(f"{files[-1]} is damaged" in text and text.endswith("it is measured again") for text in messages)
    files[0].write_bytes((whole / "surface" / files[0].name).read_bytes())
    assert surface.load_surface(out).loss.identical(surface.load_surface(whole).loss)


@pytest.mark.parametrize("lost", ["damaged", "deleted"])
def test_the_end_of_a_complete_run_is_measured_again_where_the_surface_has_lost_it(
    config: TrainConfig, whole: Path, tmp_path: Path, lost: str
) -> None:
    out = shutil.copytree(whole, tmp_path / "run")
    first, *_, last = surface.checkpoints(out / "surface").values()
    last.write_bytes(last.read_bytes()[:-100]) if lost == "damaged" else last.unlink()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        train(config, out, resume=True)
    messages = [str(warning.message) for warning in warned if "training: " in str(warning.message)]
    assert all(text.endswith("it is measured again") for text in messages)
    assert len(messages) == (lost == "damaged")
    assert surface.load_surface(out).loss.identical(surface.load_surface(whole).loss)
    # Without the checkpoint of the last step, and before it, a warning is all that can be done
    shutil.rmtree(out / run_dir.CHECKPOINTS)
    for file in (first, last):
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="nor measure it again") as warned_of:
        train(config, out, resume=True)
    assert len(warned_of) == 2


def test_a_header_that_was_changed_is_found(whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole / "surface", tmp_path / "surface")
    header = folder / surface.HEADER
    header.write_text(header.read_text().replace('"peak": 0.003', '"peak": 0.004'))
    with pytest.raises(ValueError, match=r"surface.json is damaged or was changed: its checksum does not match"):
        surface.load_surface(folder)
    values = json.loads(header.read_text())
    del values["sha256"]  # as earlier versions wrote it
    header.write_text(json.dumps(values))
    assert surface.load_surface(folder).attrs["schedule"]["peak"] == 0.004


@pytest.mark.parametrize(
    "change",
    [
        {"schema": None}, {"clusters": {}}, {"clusters": {"id": 0}}, {"clusters": {"id": 10**30}}, {"clusters": [3]},
        {"clusters": {"other": 3}}, {"context": "16"}, {"context": 3}, {"attrs": None}, [], "text", None,
    ],
)  # fmt: skip
def test_a_malformed_header_is_one_sentence(change: Any, whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole / "surface", tmp_path / "surface")
    values = json.loads((folder / surface.HEADER).read_text())
    del values["sha256"]
    (folder / surface.HEADER).write_text(json.dumps({**values, **change} if isinstance(change, dict) else change))
    with pytest.raises(ValueError, match=r"^surface: "):
        surface.load_surface(folder)


def test_a_checkpoint_that_the_training_removes_meanwhile_is_passed_over(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, read = shutil.copytree(whole, tmp_path / "run"), Checkpoints.read

    def removed(self: Checkpoints, step: int, like: Any) -> Any:
        if step < STEPS:
            shutil.rmtree(self.folder / str(step))
        return read(self, step, like)

    monkeypatch.setattr(Checkpoints, "read", removed)
    with pytest.warns(UserWarning, match="has been removed meanwhile, by the training that goes on"):
        reevaluate(out, tmp_path / "again", progress=quiet)
    assert surface.load_surface(tmp_path / "again").step.values.tolist() == [STEPS]


# -------------------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_signal_saves_and_has_its_exit_code(
    number: int, code: int, config: TrainConfig, out: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    advance = loop._advance

    def signalled(*arguments: Any) -> Any:
        os.kill(os.getpid(), number)
        return advance(*arguments)

    monkeypatch.setattr(loop, "_advance", signalled)
    if signal.getsignal(number) is signal.SIG_IGN:  # tests under nohup: a run leaves what is ignored alone
        signal.signal(number, signal.SIG_DFL)
    before = signal.getsignal(number)
    assert cli.run_verb("train", ["--out", str(out), "--resume"], debug=False) == code
    assert "interrupted; go on with: tsl train" in capsys.readouterr().err
    assert int(run_dir.read_record(out)["step"]) > 16
    assert (out / run_dir.CHECKPOINTS / str(run_dir.read_record(out)["step"])).is_dir()
    assert signal.getsignal(number) is before


def test_a_signal_that_was_blocked_by_who_started_us_comes_through() -> None:
    """Workers of Ray block SIGINT, and so does what they start."""
    ours = {signal.SIGINT} - signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with pytest.raises(KeyboardInterrupt), processes.interruptible():
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ours)


def test_a_signal_before_the_first_step_is_never_lost(config: TrainConfig, tmp_path: Path) -> None:
    for k, act in enumerate((lambda: os.kill(os.getpid(), signal.SIGTERM), interrupt_me_later)):
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / str(k), progress=at("compile", 0, act))
        assert not (tmp_path / str(k) / run_dir.METRICS).exists() or lines(tmp_path / str(k)) == []


COMPILES_FOR_HOURS = """
import hashlib, signal, sys
from tsl_jax import cli, processes
from tsl_jax.training import setup

def compile(*_):
    processes.GRACE = 0.2
    print("compiling", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"of C", b"as XLA", 1 << 30)  # no handler of Python runs meanwhile

setup.compile_programs = compile
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup's would be left alone
sys.exit(cli.run_verb("train", sys.argv[1:], debug=False))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_a_process_that_compiles(number: int, code: int, out: Path) -> None:
    before = content(out)
    command = [*processes.python("-c"), COMPILES_FOR_HOURS, "--out", str(out), "--resume"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, env=processes.environment()) as child:
        assert child.stdout is not None
        assert "compiling\n" in child.stdout
        began = time.monotonic()
        child.send_signal(number)
        said = child.communicate(timeout=60)[1]
        assert time.monotonic() - began < 30
    assert child.returncode == code
    assert f"tsl: interrupted; go on with: tsl train --out {out} --resume" in said
    assert content(out) == before


def test_the_thread_that_ends_leaves_alone_what_python_handles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a signal that Python comes to in time, nor Ctrl-C; and what read signals before goes on doing so."""
    monkeypatch.setattr(processes, "GRACE", 0.1)
    monkeypatch.setattr(processes, "_end", lambda *_: pytest.fail("ended"))
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            with processes.interruptible(), pytest.raises(KeyboardInterrupt), processes.ending_at_once():
                signal.raise_signal(number)
            assert os.read(reader, 1) == bytes([number])
        with processes.interruptible(), processes.ending_at_once():
            with contextlib.suppress(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(1)
            time.sleep(0.3)
        with processes.interruptible():
            interrupt_me_later()
            with pytest.raises(KeyboardInterrupt), processes.ending_at_once():
                pytest.fail("a signal was lost")
    finally:
        assert signal.set_wakeup_fd(before) == writer
        os.close(reader)
        os.close(writer)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_python_drops_prints_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dropped:
        def __init__(self, error: type[BaseException]) -> None:
            self.error = error

        def __del__(self) -> None:
            if issubclass(self.error, KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            raise self.error

    shown: list[type[BaseException]] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda lost: shown.append(lost.exc_type))
    hook = sys.unraisablehook
    with processes.interruptible():
        Dropped(KeyboardInterrupt)
        assert processes.received() == signal.SIGINT
        Dropped(RuntimeError)
    assert shown == [RuntimeError]
    assert sys.unraisablehook is hook


# ------------------------------------------------------------------------------------------- losses that are not finite


def poisoned_by(batch: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps of runs from here on lose their parameters on this batch."""
    make_step = programs.make_step

    def make(*arguments: Any) -> Any:
        step = make_step(*arguments)

        def poisoned(state: Any, given: Any, *weights: Any) -> Any:
            bad = jnp.all(given == jnp.asarray(batch))
            state, metrics = step(state, given, *weights)
            params = jax.tree.map(lambda leaf: jnp.where(bad, jnp.nan, leaf), state.params)
            return state._replace(params=params), {**metrics, "loss": jnp.where(bad, jnp.nan, metrics["loss"])}

        return jax.jit(poisoned)

    monkeypatch.setattr(programs, "make_step", make)


def batch_after(config: TrainConfig, step: int) -> np.ndarray:
    return setup.DataOrder(resolve_timeline(config), corpora.load(config.data), config.seed, None).batch(step)


@pytest.mark.exact_bits
def test_a_rollback_keeps_the_good_steps_and_passes_over_the_batches_since(
    config: TrainConfig, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned_by(batch_after(config, 25), monkeypatch)
    rolling = replace(config, on_nonfinite="rollback")
    good = max(step for step in resolve_timeline(config).evaluations if step <= 25)
    with pytest.warns(UserWarning, match=rf"loss nan.* at step 26 .*back at the checkpoint of step {good}, the seq"):
        train(rolling, tmp_path / "run")
    record = run_dir.read_record(tmp_path / "run")
    assert record["complete"]
    (rollback,) = record["rollbacks"]
    assert (rollback["after_step"], rollback["failed_step"]) == (good, 26)
    assert rollback["skipped_sequences"] == [good * config.batch_size, 26 * config.batch_size]
    got, expected = lines(tmp_path / "run"), lines(whole)
    assert [line["step"] for line in got] == list(range(1, STEPS + 1))
    assert [line["loss"] for line in got[:good]] == [line["loss"] for line in expected[:good]]
    assert all(a["loss"] != b["loss"] for a, b in zip(got[good:], expected[good:], strict=True))

    # interrupted after the rollback, the run goes on to the same bits
    with pytest.warns(UserWarning, match="loss nan"), pytest.raises(KeyboardInterrupt):
        train(rolling, tmp_path / "again", progress=after_rollback(tmp_path / "again", interrupt_me))
    train(rolling, tmp_path / "again", resume=True)
    assert [line["loss"] for line in lines(tmp_path / "again")] == [line["loss"] for line in got]
    assert surface.load_surface(tmp_path / "again").loss.identical(surface.load_surface(tmp_path / "run").loss)


def after_rollback(out: Path, act: Callable[[], None]) -> Callable[[str, int, int], None]:
    """A progress function that acts once, at the first stop after a rollback."""
    left = [act]

    def progress(stage: str, done: int, total: int) -> None:
        if left and stage == "train" and run_dir.read_record(out).get("rollbacks"):
            left.pop()()

    return progress


def test_rollbacks_have_an_end(config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poisoned_by(batch_after(config, 0), monkeypatch)
    monkeypatch.setattr(bad_losses, "MOST_ROLLBACKS", 0)
    with pytest.raises(ValueError, match=r"at step 1 .*There were 0 rollbacks before, and there is no more"):
        train(replace(config, on_nonfinite="rollback"), tmp_path / "run")
    monkeypatch.setattr(bad_losses, "MOST_ROLLBACKS", 1)
    with pytest.warns(UserWarning, match="back at the checkpoint of step 0"):
        train(replace(config, on_nonfinite="rollback"), tmp_path / "run", resume=True)
    assert len(lines(tmp_path / "run")) == STEPS


def test_the_hash_of_a_run_that_stops_is_as_it_was(config: TrainConfig) -> None:
    assert config_hash(TrainConfig()) == "2bc459cef835"
    assert config_hash(replace(config, on_nonfinite="rollback")) != config_hash(config)
