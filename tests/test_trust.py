"""Python of others, named in their files or lying in their folders, runs only where the user says so."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from training_material import small_run, write_words

from tsl_jax import cli, processes
from tsl_jax.sweeps import distribute, read_sweep
from tsl_jax.training import run_dir
from tsl_jax.training.checks import validate_config
from tsl_jax.training.config import TrainConfig, from_dict, to_dict
from tsl_jax.training.position_weights import sources
from tsl_jax.training.position_weights.weights import PositionWeights

RULE = "open({marker!r}, 'w').close()\ndef rule(observed):\n    return observed.weights + 0\n"


def tsl_command(*arguments: object) -> int:
    """Exit code of `tsl ARGUMENTS`, in this process."""
    verb, *rest = map(str, arguments)
    return cli.run_verb(verb, rest, debug=False)


@pytest.fixture(name="marker")
def _marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that their code makes when it runs: a rule in a file, and one in a package that can be imported."""
    marker = tmp_path / "it ran"
    (tmp_path / "rule.py").write_text(RULE.format(marker=str(marker)))
    package = tmp_path / "theirs" / "inner"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").write_text(RULE.format(marker=str(marker)))
    (package / "rules.py").write_text(RULE.format(marker=str(marker)))
    monkeypatch.syspath_prepend(tmp_path)
    return marker


@pytest.mark.parametrize("source", ["{folder}/rule.py:rule", "theirs.inner.rules:rule", "theirs.inner:rule"])
def test_reading_a_configuration_runs_nothing(source: str, marker: Path, tmp_path: Path, capsys) -> None:
    rule = source.format(folder=tmp_path)
    config = small_run(write_words(tmp_path / "text"))
    values = {**to_dict(config), "position_weights": rule}
    parsed = from_dict(TrainConfig, values)
    assert parsed.position_weights.runs_code
    assert len(parsed.position_weights.sha256) == sources.DIGITS
    validate_config(parsed, run_code=False)
    file, sweep_file, run = tmp_path / "theirs.yaml", tmp_path / "sweep.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(values))
    sweep_file.write_text(yaml.safe_dump({"name": "a", "base": "theirs.yaml"}))
    run.mkdir()
    run_dir.write_config(run, parsed)
    assert read_sweep(sweep_file)["a"] == parsed
    for arguments in (
        ("train", "--config", file, "--out", tmp_path / "out"),
        ("train", "--resume", "--out", run),
        ("demo", "--config", file, "--out", tmp_path / "out"),
        ("sweep", sweep_file, "--out", tmp_path / "pool"),
    ):
        assert tsl_command(*arguments) == 2
        assert "which is Python that would run; look at it, then add --trust" in capsys.readouterr().err
    assert tsl_command("evaluate", run, "--out", tmp_path / "e") == 2
    assert not marker.exists()


def test_what_the_user_names_or_trusts_runs(marker: Path, tmp_path: Path, monkeypatch) -> None:
    config = small_run(write_words(tmp_path / "text"))
    rule = f"{tmp_path}/rule.py:rule"
    file = tmp_path / "theirs.yaml"
    file.write_text(yaml.safe_dump({**to_dict(config), "position_weights": rule}))

    def stop(*arguments, **options):
        raise ValueError("far enough")

    monkeypatch.setattr("tsl_jax.training.run_dir.is_complete", stop)
    for options in (("--trust",), ("--position-weights", rule)):
        assert tsl_command("train", "--config", file, "--out", tmp_path / "out", *options) == 2
        assert marker.exists()
        marker.unlink()
    run = tmp_path / "run"
    run.mkdir()
    run_dir.write_config(run, replace(config, position_weights=PositionWeights.parse(rule)))
    assert run_dir.how_to_resume(run).endswith(f"--resume --position-weights {rule}")


def test_the_rules_of_the_library_need_no_trust() -> None:
    for name in ("learnable_excess", "tsl_jax.weighting:inverse_loss", "tsl_jax.position_weight_rules:inverse_loss"):
        assert not PositionWeights.parse(name).runs_code


@pytest.mark.parametrize("place", ["import", "call"])
def test_a_rule_does_not_decide_how_we_end(place: str, tmp_path: Path) -> None:
    code = {"import": "raise SystemExit(0)", "call": "def rule(observed):\n    raise SystemExit(0)"}
    (tmp_path / "ends.py").write_text(code[place])
    weights = PositionWeights.parse(f"{tmp_path}/ends.py:rule")
    with pytest.raises(ValueError, match="SystemExit"):
        weights.check(8)


def test_files_in_the_current_folder_are_not_imported(tmp_path: Path) -> None:
    for name in ("random", "csv", "copy", "jax", "numpy", "tyro", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'it ran')!r}, 'w').close()\nraise ImportError\n")
    command = [*processes.python("-m"), "tsl_jax.cli", "fit", "none.npy"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=processes.environment())
    assert done.returncode == 2, done.stderr
    assert "no file" in done.stderr
    typed = [sys.executable, "-c", "import sys; sys.argv = ['tsl', 'models', '--no-time']; "
             "from tsl_jax import cli; cli.main()"]  # fmt: skip
    (tmp_path / "sitecustomize.py").unlink()
    done = subprocess.run(typed, cwd=tmp_path, capture_output=True, text=True, env=processes.environment())
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "it ran").exists()


def test_children_are_started_without_the_current_folder(tmp_path: Path, monkeypatch) -> None:
    started = []
    monkeypatch.setattr(os, "execve", lambda *arguments: started.append(arguments[1]))
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    cli._restart_with_tuned_allocator()
    monkeypatch.setattr(distribute.subprocess, "Popen", lambda command, **options: started.append(command))
    distribute._start(tmp_path / "run", TrainConfig(), 0, False)
    assert len(started) == 2
    assert all(command[:3] == [sys.executable, "-P", "-m"] for command in started)


def test_a_demo_goes_into_no_folder_of_somebody_else(tmp_path: Path, capsys) -> None:
    for name in ("tokenizer.json", "metrics.jsonl"):
        (tmp_path / name).write_text("mine")
    assert tsl_command("demo", "--out", tmp_path) == 2
    assert "holds no run; use a new folder" in capsys.readouterr().err
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "tokenizer.json": "mine",
        "metrics.jsonl": "mine",
    }
