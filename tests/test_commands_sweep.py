"""`tsl sweep` and `tsl reproduce`: what they say before any run begins, and whom they hand over to."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from training_material import write_words

from tsl_jax import cli
from tsl_jax.commands import reproduce
from tsl_jax.commands.sweep import describe_runs, format_duration, make_runs
from tsl_jax.sweeps import Pool, distribute, read_sweep, sweep
from tsl_jax.training.config import TrainConfig

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


@pytest.fixture(autouse=True)
def nothing_is_trained(monkeypatch) -> None:
    monkeypatch.setattr(distribute, "train", None)
    monkeypatch.setattr(sweep, "machine_rate", lambda dtype: {"float32": 1e9, "bfloat16": 1e10}[dtype])


def tsl_command(*arguments: object) -> int:
    """Exit code of `tsl ARGUMENTS`, in this process."""
    verb, *rest = map(str, arguments)
    return cli.run_verb(verb, rest, debug=False)


def write_sweep(folder: Path, more: str = "") -> Path:
    text = write_words(folder / "text")
    file = folder / "sweep.yaml"
    file.write_text(f"name: {'long-' * 12}{{seed}}\nbase: {{model: {{preset: tiny}}, data: {{text: {list(text)}}}}}\n"
                    f"grid: {{seed: [0, 1]}}\n{more}")  # fmt: skip
    return file


def test_a_list_says_which_runs_there_are_and_what_they_cost(tmp_path, capsys):
    file = write_sweep(tmp_path)
    assert tsl_command("sweep", file, "--out", tmp_path / "out", "--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"{'long-' * 12}{seed}  to do" for seed in (0, 1)]
    assert lines[2].startswith("to make: 2 runs: 5e+06 tokens in ")
    assert lines[3].startswith("about ")
    assert not (tmp_path / "out").exists()


def test_a_list_of_runs_whose_text_is_not_built_is_a_list_all_the_same(tmp_path, capsys):
    file = tmp_path / "sweep.yaml"
    file.write_text("name: a\nset: {data.corpus: nowhere}\n")
    assert tsl_command("sweep", file, "--list") == 0
    assert "what they cost is not known yet: data: nowhere holds no whole corpus" in capsys.readouterr().out
    assert tsl_command("sweep", file) == 2
    assert "holds no whole corpus" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--side-by-side", "0"], "--side-by-side is 1 or more"),
        (["--minutes", "-1"], "--minutes not negative"),
        (["--minutes", "nan"], "--minutes not negative"),
        (["--side-by-side", "1000"], "ask for fewer"),
        (["--retries", "-1"], "--retries is 0 or more"),
        (["--per-run", "GPU=1"], "give --ray, or leave it out"),
        (["--ray", "local", "--per-run", "GPU:1"], "amounts such as CPU=4 GPU=0.5, found 'GPU:1'"),
        (["--ray", "local", "--per-run", "GPU=0"], "amounts such as"),
        (["--ray", "local", "--side-by-side", "2"], "leave out --side-by-side"),
    ],
)
def test_options_that_cannot_work_are_refused_before_the_first_run(tmp_path, capsys, arguments, message):
    assert tsl_command("sweep", write_sweep(tmp_path), "--out", tmp_path / "out", *arguments) == 2
    written = capsys.readouterr()
    assert message in written.err
    if message != "ask for fewer":  # which takes what the runs are
        assert not written.out


def test_without_ray_the_option_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert tsl_command("sweep", write_sweep(tmp_path), "--out", tmp_path / "out", "--ray", "local") == 2
    assert "sweep: Ray is not installed; pip install 'tsl_jax[ray]'" in capsys.readouterr().err


def test_minutes_of_zero_are_no_limit_and_others_are(tmp_path, monkeypatch, capsys):
    deadlines = []
    monkeypatch.setattr(distribute, "train", lambda run, config, locked, late, bars: deadlines.append(late()) or False)
    runs, pool = read_sweep(write_sweep(tmp_path)), Pool(tmp_path / "kept", tmp_path / "runs")
    assert make_runs(pool, runs, 1, 0) == list(runs)
    assert make_runs(pool, runs, 1, 1e-9) == list(runs)
    assert deadlines == [False, False]  # of the first call: the second began none
    assert f"{'long-' * 12}0: unfinished" in capsys.readouterr().out


def test_runs_of_unlike_dtypes_are_guessed_by_their_own_speed(tmp_path):
    file = write_sweep(tmp_path, "variants: {a: {}, b: {model.dtype: bfloat16}}\n")
    file.write_text(file.read_text().replace("{seed}", "{seed}-{variant}"))
    runs = read_sweep(file)
    last = describe_runs(Pool(tmp_path / "kept", tmp_path / "runs"), runs).splitlines()[-1]
    seconds = sum(sweep.cost(run).seconds({"float32": 1e9, "bfloat16": 1e10}[run.model.dtype]) for run in runs.values())
    assert last.startswith(format_duration(seconds))
    assert [format_duration(60 * n) for n in (3, 600, 1e5)] == ["about 3 minutes", "about 10 hours", "about 69.4 days"]


def test_reproduce_lists_the_experiments_with_their_questions(capsys):
    assert tsl_command("reproduce") == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert {"learning_dynamics", "position_weighting"} <= lines.keys()
    assert "Do all positions learn at the same rate" in lines["learning_dynamics"]
    assert all((EXPERIMENTS / name / "README.md").exists() for name in lines)  # which experiments/shared has not


def test_a_name_that_is_no_experiment_is_refused_with_those_there_are(capsys):
    assert tsl_command("reproduce", "learning-dynamics") == 2
    assert "expected one of by_position, kaplan, learning_dynamics, " in capsys.readouterr().err


def test_reproduce_becomes_the_experiment(monkeypatch):
    """Its own process, so that Ctrl-C comes once and to the one that has runs to stop."""
    became = []
    monkeypatch.setattr(os, "execve", lambda path, arguments, environment: became.append((arguments[1:], environment)))
    assert tsl_command("reproduce", "learning_dynamics", "--scale", "gpu", "--minutes", "0", "--cost") == 0
    assert tsl_command("reproduce", "learning_dynamics") == 0
    (arguments, environment), (defaults, _) = became
    options = ["--scale", "gpu", "--side-by-side", "1", "--minutes", "0.0", "--cost"]
    assert arguments == ["-P", "-m", "experiments.learning_dynamics.study", *options]
    assert defaults[3:] == ["--scale", "cpu", "--side-by-side", "1"]
    assert tsl_command("reproduce", "learning_dynamics", "--text") == 0
    assert became[-1][0][-1] == "--text"
    assert environment["PYTHONPATH"].split(os.pathsep)[0] == str(EXPERIMENTS.parent)


def test_an_installed_library_says_that_experiments_need_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "__file__", str(tmp_path / "library/a/b/c.py"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="clone the repository"):
        reproduce.experiments()


def test_experiments_of_the_current_folder_run_only_where_they_are_trusted(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "__file__", str(tmp_path / "library/a/b/c.py"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments" / "plans").mkdir(parents=True)
    (tmp_path / "experiments" / "theirs").mkdir()
    (tmp_path / "experiments" / "theirs" / "study.py").write_text('"""A question?"""\n')
    became = []
    monkeypatch.setattr(os, "execve", lambda *arguments: became.append(arguments))
    assert tsl_command("reproduce") == 0
    assert tsl_command("reproduce", "theirs") == 2
    assert "is Python that would run; look at it, then add --trust" in capsys.readouterr().err
    assert became == []
    assert tsl_command("reproduce", "theirs", "--trust") == 0
    assert len(became) == 1


def test_a_sweep_that_time_ended_is_no_success(tmp_path, monkeypatch, capsys):
    file = write_sweep(tmp_path)
    monkeypatch.setattr(distribute, "make_all", lambda pool, runs, *more: list(runs))
    assert tsl_command("sweep", file, "--out", tmp_path / "out") == 3
    assert "2 of 2 runs unfinished" in capsys.readouterr().out


def test_files_of_somebody_else_keep_their_names_in_a_pool(tmp_path):
    pool, config = Pool(tmp_path / "kept", tmp_path / "kept" / "runs"), TrainConfig()
    (tmp_path / "kept").mkdir()
    for name, content in (("a.npz", b"mine"), ("b.json", b'{"mine": 1}'), ("c.json", b"[1]")):
        (tmp_path / "kept" / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} is there and is not of this sweep; move it away"):
            pool.validate_name(name[0], config)
    pool.validate_name("d", config)
